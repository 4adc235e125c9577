//! `embedding`: y[r] = w[ids[r]], and its gradient.

use super::batch::{TokenGroups, TokenIds};
use super::check;
use super::gemm::math;
use super::layout;
use super::rows::{Rows, for_row_ranges};
use crate::contracts::{EmbeddingBackwardParams, EmbeddingParams};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/embedding.h`.
pub static EMBEDDING: Kernel<EmbeddingParams> =
    Kernel { name: "embedding", twins: twins!(embedding_twin), geometry, cost, accounting: 0 };

/// y[r] = w[ids[r]]; y (rows, cols), w (vocabulary, cols), both dense.
///
/// # Errors
/// If a shape, stride or dtype differs, or the ids were checked against a larger vocabulary.
pub fn embedding(stream: &Stream, mut y: ViewMut<'_>, ids: &TokenIds, w: View<'_>) -> Result<()> {
    check::matrix("embedding", "y", &y.as_view(), ids.rows(), w.cols())?;
    check::dtype("embedding", "y", &y.as_view(), w.dtype())?;
    check::dense("embedding", "y", &y.as_view())?;
    check::dense("embedding", "w", &w)?;
    if w.rows() < ids.vocabulary() {
        let expected = format!("at least {} rows", ids.vocabulary());
        return Err(Error::invalid("embedding: w", expected, w.shape()));
    }
    let params = EmbeddingParams {
        y: y.ptr(),
        ids: ids.ids(),
        w: w.ptr(),
        rows: ids.rows() as i64,
        cols: w.cols() as i64,
        vocabulary: w.rows() as i64,
    };
    // SAFETY: shapes, strides and dtypes were checked, the ids when they were made.
    unsafe { stream.launch(&EMBEDDING, w.dtype(), &params) }
}

fn geometry(p: &EmbeddingParams, dtype: DType, _: &Chip) -> Geometry {
    let packable = layout::is_packable(&[p.y.cast_const(), p.w], &[p.cols], dtype);
    layout::packed_cells(p.rows * p.cols, dtype, packable)
}

fn cost(p: &EmbeddingParams, dtype: DType) -> Cost {
    let row = 2.0 * p.cols as f64 * dtype.size() as f64 + 4.0;
    Cost { bytes: p.rows as f64 * row, flops: 0.0 }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn embedding_twin<T: Real>(p: &EmbeddingParams, host: &Host) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    let (y, w) = (Rows::<T>::dense(p.y, cols), Rows::<T>::dense(p.w, cols));
    let ids = Rows::<i32>::dense(p.ids.cast(), rows);
    for_row_ranges(host, rows, cols, |range| {
        for r in range {
            // SAFETY: ids are inside the vocabulary; each row of y is of one task only.
            unsafe { y.get_mut(r).copy_from_slice(w.get(ids.get(0)[r] as usize)) };
        }
    });
}

/// See `kernels/embedding.h`.
pub static EMBEDDING_BACKWARD: Kernel<EmbeddingBackwardParams> = Kernel {
    name: "embedding_backward",
    twins: twins!(embedding_backward_twin),
    geometry: backward_geometry,
    cost: backward_cost,
    accounting: 0,
};

/// dw\[row\] += the sum of dx\[token\] over the tokens of each group; dw (rows, cols) f32, dx
/// (tokens, cols). Rows of both may be strided; rows of dw that no group is of stay as they are.
///
/// # Errors
/// If a shape or dtype differs, or a group is of a row or has a token that is not there.
pub fn embedding_backward(
    stream: &Stream,
    mut dw: ViewMut<'_>,
    groups: &TokenGroups,
    dx: View<'_>,
) -> Result<()> {
    let op = "embedding_backward";
    check::matrix(op, "dw", &dw.as_view(), dw.rows(), dx.cols())?;
    check::dtype(op, "dw", &dw.as_view(), DType::F32)?;
    let (rows, tokens) = groups.bounds();
    if dw.rows() < rows || dx.rows() < tokens {
        let expected = format!("at least {rows} rows of dw and {tokens} of dx");
        let found = format!("{} and {}", dw.rows(), dx.rows());
        return Err(Error::invalid("embedding_backward: groups", expected, found));
    }
    let [rows, begin, order] = groups.indices();
    let params = EmbeddingBackwardParams {
        dw: dw.ptr(),
        dx: dx.ptr(),
        rows,
        begin,
        order,
        groups: groups.groups() as i64,
        cols: dx.cols() as i64,
        dw_stride: dw.stride() as i64,
        dx_stride: dx.stride() as i64,
        tokens: groups.tokens() as i64,
    };
    // SAFETY: shapes and dtypes were checked, the groups when they were made; dw is borrowed
    // exclusively.
    unsafe { stream.launch(&EMBEDDING_BACKWARD, dx.dtype(), &params) }
}

/// Lanes of a warp, and warps of a block.
const WARP: i64 = 32;
const WARPS: i64 = 8;

fn backward_geometry(p: &EmbeddingBackwardParams, dtype: DType, _: &Chip) -> Geometry {
    let packable = layout::is_packable(&[p.dx], &[p.cols, p.dx_stride], dtype);
    let (variant, own) = if packable { ("", 16 / dtype.size() as i64) } else { ("_plain", 1) };
    let stripes = layout::groups(p.cols, WARP * own) as u32;
    let shared = (WARPS * WARP * own) as u32 * size_of::<f32>() as u32;
    let grid = [p.groups as u32, stripes, 1];
    Geometry { variant, grid, shared, ..Geometry::linear(0, (WARPS * WARP) as u32) }
}

fn backward_cost(p: &EmbeddingBackwardParams, dtype: DType) -> Cost {
    let (groups, tokens, cols) = (p.groups as f64, p.tokens as f64, p.cols as f64);
    let indices = 4.0 * (tokens + 2.0 * groups);
    let bytes = cols * (tokens * dtype.size() as f64 + 8.0 * groups) + indices;
    Cost { bytes, flops: tokens * cols }
}

/// Columns of one task.
const COLUMNS: usize = 256;

/// # Safety
/// As [`Stream::launch`].
unsafe fn embedding_backward_twin<T: Real>(p: &EmbeddingBackwardParams, host: &Host) {
    let (groups, cols) = (p.groups as usize, p.cols as usize);
    let dw = Rows::<f32>::new(p.dw.cast(), p.dw_stride, cols);
    let dx = Rows::<T>::new(p.dx, p.dx_stride, cols);
    let [rows, begin, order] = [p.rows, p.begin, p.order].map(|i| Rows::<i32>::dense(i.cast(), 1));
    // SAFETY: an element of an index, which nobody writes.
    let at = |of: Rows<i32>, i: usize| unsafe { of.get(i)[0] } as usize;
    let stripes = cols.div_ceil(COLUMNS);
    host.pool.run(groups * stripes, |task| {
        let (group, start) = (task / stripes, task % stripes * COLUMNS);
        let len = COLUMNS.min(cols - start);
        // As on a card: eight sums of every eighth token, then those in order.
        let mut sums = [[0f32; COLUMNS]; WARPS as usize];
        for (i, j) in (at(begin, group)..at(begin, group + 1)).enumerate() {
            // SAFETY: the token exists.
            let dx = unsafe { dx.part(at(order, j), start, len) };
            for (sum, x) in sums[i % WARPS as usize].iter_mut().zip(dx) {
                *sum += math::widen(*x);
            }
        }
        // SAFETY: these columns of this row are this task's only.
        let dw = unsafe { dw.part_mut(at(rows, group), start, len) };
        for (i, dw) in dw.iter_mut().enumerate() {
            *dw = sums.iter().fold(*dw, |total, sum| total + sum[i]);
        }
    });
}

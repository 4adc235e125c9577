//! `column_sums`: y[q, c] (+)= sum of x[r, c] over the rows r of part q.

use super::check;
use super::gemm::Out;
use super::layout;
use super::rows::Rows;
use crate::contracts::ColumnSumsParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Result, twins};

/// See `kernels/column_sums.h`.
pub static COLUMN_SUMS: Kernel<ColumnSumsParams> =
    Kernel { name: "column_sums", twins: twins!(column_sums_twin), geometry, cost, accounting: 0 };

/// y (+)= sums of the rows of x (rows, cols), by as many parts of them as y (parts, cols) f32 has
/// rows. Rows of x may be strided.
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn column_sums(stream: &Stream, mut y: ViewMut<'_>, out: Out, x: View<'_>) -> Result<()> {
    let op = "column_sums";
    let parts = y.rows();
    check::matrix(op, "y", &y.as_view(), parts, x.cols())?;
    check::dtype(op, "y", &y.as_view(), DType::F32)?;
    check::dense(op, "y", &y.as_view())?;
    check::small(op, "parts", parts)?;
    let params = ColumnSumsParams {
        y: y.ptr(),
        x: x.ptr(),
        rows: x.rows() as i64,
        cols: x.cols() as i64,
        parts: parts as i64,
        part_rows: x.rows().div_ceil(parts.max(1)) as i64,
        x_stride: x.stride() as i64,
        accumulate: i32::from(out == Out::Accumulate),
        reserved: 0,
    };
    // SAFETY: shapes and dtypes were checked; y is borrowed exclusively.
    unsafe { stream.launch(&COLUMN_SUMS, x.dtype(), &params) }
}

/// Lanes of a warp, and warps of a block.
const WARP: i64 = 32;
const WARPS: i64 = 8;

fn geometry(p: &ColumnSumsParams, dtype: DType, _: &Chip) -> Geometry {
    let packable = layout::is_packable(&[p.x], &[p.cols, p.x_stride], dtype);
    let (variant, own) = if packable { ("", 16 / dtype.size() as i64) } else { ("_plain", 1) };
    let blocks = (p.cols.max(0) as u64).div_ceil((WARP * own) as u64) as u32;
    let shared = (WARPS * WARP * own) as u32 * size_of::<f32>() as u32;
    let grid = [blocks, p.parts as u32, 1];
    Geometry { variant, grid, shared, ..Geometry::linear(0, (WARPS * WARP) as u32) }
}

fn cost(p: &ColumnSumsParams, dtype: DType) -> Cost {
    let (cells, sums) = (p.rows as f64 * p.cols as f64, p.parts as f64 * p.cols as f64);
    let written = if p.accumulate == 0 { 4.0 } else { 8.0 };
    Cost { bytes: cells * dtype.size() as f64 + written * sums, flops: cells }
}

/// Columns of one task.
const COLUMNS: usize = 64;

/// # Safety
/// As [`Stream::launch`].
unsafe fn column_sums_twin<T: Real>(p: &ColumnSumsParams, host: &Host) {
    let (rows, cols, part_rows) = (p.rows as usize, p.cols as usize, p.part_rows as usize);
    let (y, x) = (Rows::<f32>::dense(p.y.cast(), cols), Rows::<T>::new(p.x, p.x_stride, cols));
    let (stripes, accumulates) = (cols.div_ceil(COLUMNS), p.accumulate != 0);
    host.pool.run(p.parts as usize * stripes, |task| {
        let (part, start) = (task / stripes, task % stripes * COLUMNS);
        let len = COLUMNS.min(cols - start);
        // As on a card: eight sums of every eighth row, then those in order.
        let mut sums = [[0f32; COLUMNS]; WARPS as usize];
        for (i, r) in (part * part_rows..rows.min((part + 1) * part_rows)).enumerate() {
            // SAFETY: the row exists.
            let row = unsafe { x.part(r, start, len) };
            for (sum, x) in sums[i % WARPS as usize].iter_mut().zip(row) {
                *sum += x.to_f32();
            }
        }
        // SAFETY: these columns of this part are this task's only.
        let y = unsafe { y.part_mut(part, start, len) };
        for (i, y) in y.iter_mut().enumerate() {
            let old = if accumulates { *y } else { 0.0 };
            *y = sums.iter().fold(old, |total, sum| total + sum[i]);
        }
    });
}

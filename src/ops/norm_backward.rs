//! `norm_backward`: gradients of the norms' inputs and weights.

use super::check;
use super::gemm::Out;
use super::lanes::{self, Grid, Lanes, PAD, dot, sums, widen_row};
use super::layout;
use super::rows::Rows;
use crate::contracts::NormBackwardParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Result, twins};
use std::ops::Range;

/// See `kernels/norm_backward.h`.
pub static NORM_BACKWARD: Kernel<NormBackwardParams> = Kernel {
    name: "norm_backward",
    twins: twins!(norm_backward_twin),
    geometry,
    cost,
    accounting: 0,
};

/// Where the gradients of weight and bias go: a row for each part of the rows, (parts, cols) f32,
/// for [`column_sums`](super::column_sums) to add up.
#[derive(Default)]
pub struct NormParts<'a> {
    /// Sums of dy h.
    pub dw: Option<ViewMut<'a>>,
    /// Sums of dy; only of a layernorm.
    pub db: Option<ViewMut<'a>>,
}

/// dx (+)= the gradient of [`layernorm`](super::layernorm) at x, given dy; dx, dy and x (rows,
/// cols), w (cols). Rows may be strided.
///
/// # Errors
/// If a shape or dtype differs.
#[expect(clippy::too_many_arguments, reason = "each one is a part of the equation")]
pub fn layernorm_backward(
    stream: &Stream,
    dx: ViewMut<'_>,
    out: Out,
    dy: View<'_>,
    x: View<'_>,
    w: View<'_>,
    eps: f32,
    parts: NormParts<'_>,
) -> Result<()> {
    launch(stream, true, dx, out, dy, x, w, eps, parts)
}

/// dx (+)= the gradient of [`rmsnorm`](super::rmsnorm) at x, given dy; shapes as in
/// [`layernorm_backward`].
///
/// # Errors
/// If a shape or dtype differs.
#[expect(clippy::too_many_arguments, reason = "each one is a part of the equation")]
pub fn rmsnorm_backward(
    stream: &Stream,
    dx: ViewMut<'_>,
    out: Out,
    dy: View<'_>,
    x: View<'_>,
    w: View<'_>,
    eps: f32,
    dw: Option<ViewMut<'_>>,
) -> Result<()> {
    launch(stream, false, dx, out, dy, x, w, eps, NormParts { dw, db: None })
}

/// Block sums of the kernels.
const SUMS: u32 = 5;

/// Parts where nobody wants their sums: enough for every multiprocessor to have some.
const PARTS: usize = 512;

#[expect(clippy::too_many_arguments, reason = "each one is a part of the equation")]
fn launch(
    stream: &Stream,
    is_centred: bool,
    mut dx: ViewMut<'_>,
    out: Out,
    dy: View<'_>,
    x: View<'_>,
    w: View<'_>,
    eps: f32,
    mut parts: NormParts<'_>,
) -> Result<()> {
    let (op, rows, cols) = ("norm_backward", x.rows(), x.cols());
    for (name, view) in [("dx", &dx.as_view()), ("dy", &dy)] {
        check::matrix(op, name, view, rows, cols)?;
        check::dtype(op, name, view, x.dtype())?;
    }
    check::vector(op, "w", &w, cols)?;
    check::dtype(op, "w", &w, x.dtype())?;
    let wanted = [("dw", parts.dw.as_ref()), ("db", parts.db.as_ref())];
    let count = wanted.iter().find_map(|(_, v)| *v).map_or(PARTS.min(rows.max(1)), ViewMut::rows);
    for (name, view) in wanted {
        let Some(view) = view.map(ViewMut::as_view) else { continue };
        check::matrix(op, name, &view, count, cols)?;
        check::dtype(op, name, &view, DType::F32)?;
        check::dense(op, name, &view)?;
    }
    check::small(op, "parts", count)?;
    let params = NormBackwardParams {
        dx: dx.ptr(),
        dw: parts.dw.as_mut().map_or(std::ptr::null_mut(), ViewMut::ptr),
        db: parts.db.as_mut().map_or(std::ptr::null_mut(), ViewMut::ptr),
        dy: dy.ptr(),
        x: x.ptr(),
        w: w.ptr(),
        rows: rows as i64,
        cols: cols as i64,
        parts: count as i64,
        part_rows: rows.div_ceil(count.max(1)) as i64,
        dx_stride: dx.stride() as i64,
        dy_stride: dy.stride() as i64,
        x_stride: x.stride() as i64,
        eps,
        is_centred: i32::from(is_centred),
        accumulate: i32::from(out == Out::Accumulate),
        reserved: 0,
    };
    // SAFETY: shapes and dtypes were checked; what is written is borrowed exclusively.
    unsafe { stream.launch(&NORM_BACKWARD, x.dtype(), &params) }
}

fn geometry(p: &NormBackwardParams, dtype: DType, _: &Chip) -> Geometry {
    let addresses = [p.dx.cast_const(), p.dy, p.x, p.w];
    let distances = [p.cols, p.dx_stride, p.dy_stride, p.x_stride];
    let packable = layout::is_packable(&addresses, &distances, dtype);
    layout::row_blocks(p.parts, p.cols, dtype, packable, SUMS)
}

fn cost(p: &NormBackwardParams, dtype: DType) -> Cost {
    let (rows, cols) = (p.rows as f64, p.cols as f64);
    let moved = if p.accumulate == 0 { 3.0 } else { 4.0 } * rows + 1.0;
    let sums = (i32::from(!p.dw.is_null()) + i32::from(!p.db.is_null())) as f64;
    let bytes = (moved * dtype.size() as f64 + sums * 4.0 * p.parts as f64) * cols;
    Cost { bytes, flops: 20.0 * rows * cols }
}

struct Task<T> {
    dx: Rows<T>,
    dw: Option<Rows<f32>>,
    db: Option<Rows<f32>>,
    dy: Rows<T>,
    x: Rows<T>,
    w: Rows<T>,
    rows: usize,
    cols: usize,
    part_rows: usize,
    eps: f32,
    is_centred: bool,
    accumulate: bool,
}

impl<T: Real> Task<T> {
    fn part(&self, task: usize) -> Range<usize> {
        let start = (task * self.part_rows).min(self.rows);
        start..(start + self.part_rows).min(self.rows)
    }
}

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, _: usize) -> usize {
        5 * self.cols.next_multiple_of(PAD)
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        let cols = self.cols;
        let mut rows = scratch.chunks_exact_mut(cols.next_multiple_of(PAD));
        let mut row = || &mut rows.next().expect("as many as scratch() says")[..cols];
        let (h, g, w, dw, db) = (row(), row(), row(), row(), row());
        dw.fill(0.0);
        db.fill(0.0);
        let n = cols as f32;
        // SAFETY: rows inside the contract's extent; a part's belong to one task.
        unsafe {
            widen_row::<L, T>(self.w.get(0), w);
            for r in self.part(task) {
                widen_row::<L, T>(self.x.get(r), h);
                widen_row::<L, T>(self.dy.get(r), g);
                let mean = if self.is_centred { sums::<L>(h, 0.0).0 / n } else { 0.0 };
                let (rest, squares) = sums::<L>(h, mean);
                let rest = if self.is_centred { rest / n } else { 0.0 };
                let variance = squares / n - rest * rest;
                let scale = 1.0 / (if variance < 0.0 { 0.0 } else { variance } + self.eps).sqrt();
                for i in 0..cols {
                    h[i] = ((h[i] - mean) - rest) * scale;
                    dw[i] += g[i] * h[i];
                    db[i] += g[i];
                    g[i] *= w[i];
                }
                let mean_g = if self.is_centred { sums::<L>(g, 0.0).0 / n } else { 0.0 };
                let mean_gh = dot::<L>(g, h) / n;
                let dx = self.dx.get_mut(r);
                for i in 0..cols {
                    let d = (g[i] - mean_g - h[i] * mean_gh) * scale;
                    let old = if self.accumulate { dx[i].to_f32() } else { 0.0 };
                    dx[i] = T::from_f32(old + d);
                }
            }
            for (sums, kept) in [(dw, self.dw), (db, self.db)] {
                if let Some(kept) = kept {
                    kept.get_mut(task).copy_from_slice(sums);
                }
            }
        }
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn norm_backward_twin<T: Real>(p: &NormBackwardParams, host: &Host) {
    let cols = p.cols as usize;
    let sums = |to: *mut f32| (!to.is_null()).then(|| Rows::dense(to.cast(), cols));
    let grid = Task::<T> {
        dx: Rows::new(p.dx, p.dx_stride, cols),
        dw: sums(p.dw),
        db: sums(p.db),
        dy: Rows::new(p.dy, p.dy_stride, cols),
        x: Rows::new(p.x, p.x_stride, cols),
        w: Rows::dense(p.w, cols),
        rows: p.rows as usize,
        cols,
        part_rows: p.part_rows as usize,
        eps: p.eps,
        is_centred: p.is_centred != 0,
        accumulate: p.accumulate != 0,
    };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, p.parts as usize, &grid) }
}

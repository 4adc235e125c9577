//! `rmsnorm`: y = x / sqrt(mean(x^2) + eps) * w, per row.

use super::check;
use super::gemm::math;
use super::lanes::{self, Grid, Lanes, PAD, sums, widen_row};
use super::layout;
use super::rows::{Rows, narrow, row_range, row_tasks};
use crate::contracts::RmsnormParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Result, twins};

/// See `kernels/rmsnorm.h`.
pub static RMSNORM: Kernel<RmsnormParams> =
    Kernel { name: "rmsnorm", twins: twins!(rmsnorm_twin), geometry, cost, accounting: 0 };

/// y = x / sqrt(mean(x^2) + eps) * w, per row; y and x (rows, cols) dense, w (cols).
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn rmsnorm(
    stream: &Stream,
    mut y: ViewMut<'_>,
    x: View<'_>,
    w: View<'_>,
    eps: f32,
) -> Result<()> {
    check::matrix("rmsnorm", "y", &y.as_view(), x.rows(), x.cols())?;
    check::dtype("rmsnorm", "y", &y.as_view(), x.dtype())?;
    check::dense("rmsnorm", "y", &y.as_view())?;
    check::dense("rmsnorm", "x", &x)?;
    check::vector("rmsnorm", "w", &w, x.cols())?;
    check::dtype("rmsnorm", "w", &w, x.dtype())?;
    let params = RmsnormParams {
        y: y.ptr(),
        x: x.ptr(),
        w: w.ptr(),
        rows: x.rows() as i64,
        cols: x.cols() as i64,
        eps,
        reserved: 0,
    };
    // SAFETY: shapes, strides and dtypes were checked; y is borrowed exclusively.
    unsafe { stream.launch(&RMSNORM, x.dtype(), &params) }
}

fn geometry(p: &RmsnormParams, dtype: DType, _: &Chip) -> Geometry {
    let packable = layout::is_packable(&[p.y.cast_const(), p.x, p.w], &[p.cols], dtype);
    layout::rows_in_registers(p.rows, p.cols, dtype, packable, 1)
}

fn cost(p: &RmsnormParams, dtype: DType) -> Cost {
    let (rows, cols) = (p.rows as f64, p.cols as f64);
    Cost { bytes: (2.0 * rows + 1.0) * cols * dtype.size() as f64, flops: 4.0 * rows * cols }
}

struct Task<T> {
    y: Rows<T>,
    x: Rows<T>,
    w: Rows<T>,
    rows: usize,
    cols: usize,
    eps: f32,
}

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, _: usize) -> usize {
        2 * self.cols.next_multiple_of(PAD)
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        let cols = self.cols;
        let (v, w) = scratch.split_at_mut(cols.next_multiple_of(PAD));
        let (v, w) = (&mut v[..cols], &mut w[..cols]);
        // SAFETY: rows inside the contract's extent, each of one task only.
        unsafe {
            widen_row::<L, T>(self.w.get(0), w);
            for r in row_range(task, self.rows, cols) {
                widen_row::<L, T>(self.x.get(r), v);
                let scale = 1.0 / (sums::<L>(v, 0.0).1 / cols as f32 + self.eps).sqrt();
                for (v, w) in v.iter_mut().zip(w.iter()) {
                    *v = math::widen(math::narrow::<T>(*v * scale)) * w;
                }
                narrow(v, self.y.get_mut(r));
            }
        }
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn rmsnorm_twin<T: Real>(p: &RmsnormParams, host: &Host) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    let grid = Task {
        y: Rows::<T>::dense(p.y, cols),
        x: Rows::dense(p.x, cols),
        w: Rows::dense(p.w, cols),
        rows,
        cols,
        eps: p.eps,
    };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, row_tasks(rows, cols), &grid) }
}

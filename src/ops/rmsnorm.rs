//! `rmsnorm`: y = x / sqrt(mean(x^2) + eps) * w, per row.

use super::check;
use super::rows::{Rows, for_row_ranges, narrow, widen, with_scratch};
use crate::contracts::RmsnormParams;
use crate::device::{Cost, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Result, twins};

/// See `kernels/rmsnorm.h`.
pub static RMSNORM: Kernel<RmsnormParams> =
    Kernel { name: "rmsnorm", twins: twins!(rmsnorm_twin), cost };

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

fn cost(p: &RmsnormParams, dtype: DType) -> Cost {
    let (rows, cols) = (p.rows as f64, p.cols as f64);
    Cost { bytes: (2.0 * rows + 1.0) * cols * dtype.size() as f64, flops: 4.0 * rows * cols }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn rmsnorm_twin<T: Real>(p: &RmsnormParams, host: &Host) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    let (y, x) = (Rows::<T>::dense(p.y, cols), Rows::<T>::dense(p.x, cols));
    let (w, eps) = (Rows::<T>::dense(p.w, cols), p.eps);
    for_row_ranges(host, rows, cols, |range| {
        with_scratch(cols, |v| {
            for r in range {
                // SAFETY: rows inside the contract's extent, each of one task only.
                unsafe {
                    widen(x.get(r), v);
                    let mean = v.iter().map(|v| v * v).sum::<f32>() / cols as f32;
                    let scale = 1.0 / (mean + eps).sqrt();
                    for (v, w) in v.iter_mut().zip(w.get(0)) {
                        *v = T::from_f32(*v * scale).to_f32() * w.to_f32();
                    }
                    narrow(v, y.get_mut(r));
                }
            }
        });
    });
}

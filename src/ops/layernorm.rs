//! `layernorm`: y = (x - mean(x)) / sqrt(var(x) + eps) * w + b, per row.

use super::check;
use super::rows::{Rows, for_row_ranges, narrow, widen, with_scratch};
use crate::contracts::LayernormParams;
use crate::device::{Cost, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Result, twins};

/// See `kernels/layernorm.h`.
pub static LAYERNORM: Kernel<LayernormParams> =
    Kernel { name: "layernorm", twins: twins!(layernorm_twin), cost };

/// y = (x - mean(x)) / sqrt(var(x) + eps) * w + b, per row; y and x (rows, cols), w and b (cols).
/// Rows of y and x may be strided.
///
/// # Errors
/// If a shape or dtype differs.
pub fn layernorm(
    stream: &Stream,
    mut y: ViewMut<'_>,
    x: View<'_>,
    w: View<'_>,
    b: Option<View<'_>>,
    eps: f32,
) -> Result<()> {
    check::matrix("layernorm", "y", &y.as_view(), x.rows(), x.cols())?;
    check::dtype("layernorm", "y", &y.as_view(), x.dtype())?;
    let y_stride = y.stride();
    launch(stream, y.ptr(), y_stride, x, w, b, eps)
}

/// [`layernorm`] with y = x: the q part of [q | k | v] rows, say.
///
/// # Errors
/// If a shape or dtype differs.
pub fn layernorm_in_place(
    stream: &Stream,
    mut x: ViewMut<'_>,
    w: View<'_>,
    b: Option<View<'_>>,
    eps: f32,
) -> Result<()> {
    let (y, y_stride) = (x.ptr(), x.stride());
    launch(stream, y, y_stride, x.as_view(), w, b, eps)
}

fn launch(
    stream: &Stream,
    y: *mut std::ffi::c_void,
    y_stride: usize,
    x: View<'_>,
    w: View<'_>,
    b: Option<View<'_>>,
    eps: f32,
) -> Result<()> {
    check::vector("layernorm", "w", &w, x.cols())?;
    check::dtype("layernorm", "w", &w, x.dtype())?;
    if let Some(b) = &b {
        check::vector("layernorm", "b", b, x.cols())?;
        check::dtype("layernorm", "b", b, x.dtype())?;
    }
    let params = LayernormParams {
        y,
        x: x.ptr(),
        w: w.ptr(),
        b: b.map_or(std::ptr::null(), |b| b.ptr()),
        rows: x.rows() as i64,
        cols: x.cols() as i64,
        y_stride: y_stride as i64,
        x_stride: x.stride() as i64,
        eps,
        reserved: 0,
    };
    // SAFETY: shapes and dtypes were checked; y is borrowed exclusively or is x itself.
    unsafe { stream.launch(&LAYERNORM, x.dtype(), &params) }
}

fn cost(p: &LayernormParams, dtype: DType) -> Cost {
    let (rows, cols) = (p.rows as f64, p.cols as f64);
    let vectors = if p.b.is_null() { 1.0 } else { 2.0 };
    Cost { bytes: (2.0 * rows + vectors) * cols * dtype.size() as f64, flops: 8.0 * rows * cols }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn layernorm_twin<T: Real>(p: &LayernormParams, host: &Host) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    let (y, x) = (Rows::<T>::new(p.y, p.y_stride, cols), Rows::<T>::new(p.x, p.x_stride, cols));
    let (w, b) = (Rows::<T>::dense(p.w, cols), Rows::<T>::dense(p.b, cols));
    let (has_bias, eps) = (!p.b.is_null(), p.eps);
    for_row_ranges(host, rows, cols, |range| {
        with_scratch(cols, |v| {
            for r in range {
                // SAFETY: rows inside the contract's extent; each row belongs to one task, and the
                // borrow of x ends before y, which may be the same row, is written.
                unsafe {
                    widen(x.get(r), v);
                    let mean = v.iter().sum::<f32>() / cols as f32;
                    v.iter_mut().for_each(|v| *v -= mean);
                    let variance = v.iter().map(|v| v * v).sum::<f32>() / cols as f32;
                    let scale = 1.0 / (variance + eps).sqrt();
                    for (i, v) in v.iter_mut().enumerate() {
                        *v = *v * scale * w.get(0)[i].to_f32();
                        if has_bias {
                            *v += b.get(0)[i].to_f32();
                        }
                    }
                    narrow(v, y.get_mut(r));
                }
            }
        });
    });
}

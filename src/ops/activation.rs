//! `swiglu`: y = silu(gate) * up, where a row of x is [gate | up].

use super::check;
use super::rows::{Rows, for_row_ranges};
use crate::contracts::SwigluParams;
use crate::device::{Cost, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Result, twins};

/// See `kernels/activation.h`.
pub static SWIGLU: Kernel<SwigluParams> =
    Kernel { name: "swiglu", twins: twins!(swiglu_twin), cost };

/// y = silu(gate) * up; y (rows, cols), x = [gate | up] (rows, 2*cols), both dense.
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn swiglu(stream: &Stream, mut y: ViewMut<'_>, x: View<'_>) -> Result<()> {
    check::matrix("swiglu", "x", &x, y.rows(), 2 * y.cols())?;
    check::dtype("swiglu", "x", &x, y.dtype())?;
    check::dense("swiglu", "y", &y.as_view())?;
    check::dense("swiglu", "x", &x)?;
    let params =
        SwigluParams { rows: y.rows() as i64, cols: y.cols() as i64, y: y.ptr(), x: x.ptr() };
    // SAFETY: shapes, strides and dtypes were checked; y is borrowed exclusively.
    unsafe { stream.launch(&SWIGLU, x.dtype(), &params) }
}

fn cost(p: &SwigluParams, dtype: DType) -> Cost {
    let cells = p.rows as f64 * p.cols as f64;
    Cost { bytes: 3.0 * cells * dtype.size() as f64, flops: 6.0 * cells }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn swiglu_twin<T: Real>(p: &SwigluParams, host: &Host) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    let (y, x) = (Rows::<T>::dense(p.y, cols), Rows::<T>::dense(p.x, 2 * cols));
    for_row_ranges(host, rows, 2 * cols, |range| {
        for r in range {
            // SAFETY: rows inside the contract's extent, each of one task only.
            let (y, (gate, up)) = unsafe { (y.get_mut(r), x.get(r).split_at(cols)) };
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                let gate = gate.to_f32();
                *y = T::from_f32(gate / (1.0 + (-gate).exp()) * up.to_f32());
            }
        }
    });
}

//! `layernorm`: y = (x - mean(x)) / sqrt(var(x) + eps) * w + b, per row.

use super::check;
use super::lanes::{self, Grid, Lanes, PAD, sums, widen_row};
use super::layout;
use super::rows::{Rows, narrow, row_range, row_tasks};
use crate::contracts::LayernormParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Result, twins};

/// See `kernels/layernorm.h`.
pub static LAYERNORM: Kernel<LayernormParams> =
    Kernel { name: "layernorm", twins: twins!(layernorm_twin), geometry, cost, accounting: 0 };

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

fn geometry(p: &LayernormParams, dtype: DType, _: &Chip) -> Geometry {
    let addresses = [p.y.cast_const(), p.x, p.w, p.b];
    let packable = layout::is_packable(&addresses, &[p.cols, p.y_stride, p.x_stride], dtype);
    layout::rows_in_registers(p.rows, p.cols, dtype, packable, 3)
}

fn cost(p: &LayernormParams, dtype: DType) -> Cost {
    let (rows, cols) = (p.rows as f64, p.cols as f64);
    let vectors = if p.b.is_null() { 1.0 } else { 2.0 };
    Cost { bytes: (2.0 * rows + vectors) * cols * dtype.size() as f64, flops: 8.0 * rows * cols }
}

struct Task<T> {
    y: Rows<T>,
    x: Rows<T>,
    w: Rows<T>,
    b: Option<Rows<T>>,
    rows: usize,
    cols: usize,
    eps: f32,
}

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, _: usize) -> usize {
        3 * self.cols.next_multiple_of(PAD)
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        let cols = self.cols;
        let (v, rest) = scratch.split_at_mut(cols.next_multiple_of(PAD));
        let (w, b) = rest.split_at_mut(cols.next_multiple_of(PAD));
        let (v, w, b) = (&mut v[..cols], &mut w[..cols], &mut b[..cols]);
        // SAFETY: rows inside the contract's extent; each row belongs to one task, and the borrow
        // of x ends before y, which may be the same row, is written.
        unsafe {
            widen_row::<L, T>(self.w.get(0), w);
            match self.b {
                Some(row) => widen_row::<L, T>(row.get(0), b),
                None => b.fill(0.0),
            }
            for r in row_range(task, self.rows, cols) {
                widen_row::<L, T>(self.x.get(r), v);
                let mean = sums::<L>(v, 0.0).0 / cols as f32;
                let (rest, squares) = sums::<L>(v, mean);
                // What rounding left of the mean, which matters when it is far from 0.
                let rest = rest / cols as f32;
                let variance = squares / cols as f32 - rest * rest;
                let scale = 1.0 / (if variance < 0.0 { 0.0 } else { variance } + self.eps).sqrt();
                for ((v, w), b) in v.iter_mut().zip(w.iter()).zip(b.iter()) {
                    *v = ((*v - mean) - rest) * scale * w + b;
                }
                narrow(v, self.y.get_mut(r));
            }
        }
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn layernorm_twin<T: Real>(p: &LayernormParams, host: &Host) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    let grid = Task {
        y: Rows::<T>::new(p.y, p.y_stride, cols),
        x: Rows::new(p.x, p.x_stride, cols),
        w: Rows::dense(p.w, cols),
        b: (!p.b.is_null()).then(|| Rows::dense(p.b, cols)),
        rows,
        cols,
        eps: p.eps,
    };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, row_tasks(rows, cols), &grid) }
}

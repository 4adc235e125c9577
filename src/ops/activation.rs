//! `swiglu`: y = silu(gate) * up, where a row of x is [gate | up]; `activation`: y = f(x); and
//! their gradients.

use super::check;
use super::gemm::{Activation, math};
use super::lanes::{self, Grid, Lanes, widen_row};
use super::layout;
use super::rows::{Rows, narrow, row_range, row_tasks};
use crate::contracts::{
    ActivationBackwardParams, ActivationParams, SwigluBackwardParams, SwigluParams,
};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Result, twins};

/// See `kernels/activation.h`.
pub static SWIGLU: Kernel<SwigluParams> =
    Kernel { name: "swiglu", twins: twins!(swiglu_twin), geometry, cost, accounting: 0 };

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

fn geometry(p: &SwigluParams, dtype: DType, _: &Chip) -> Geometry {
    let packable = layout::is_packable(&[p.y.cast_const(), p.x], &[p.cols], dtype);
    layout::packed_cells(p.rows * p.cols, dtype, packable)
}

fn cost(p: &SwigluParams, dtype: DType) -> Cost {
    let cells = p.rows as f64 * p.cols as f64;
    Cost { bytes: 3.0 * cells * dtype.size() as f64, flops: 6.0 * cells }
}

struct Task<T> {
    y: Rows<T>,
    x: Rows<T>,
    rows: usize,
    cols: usize,
}

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, _: usize) -> usize {
        0
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, _: &mut [f32]) {
        for r in row_range(task, self.rows, 2 * self.cols) {
            // SAFETY: rows inside the contract's extent, each of one task only.
            let (y, (gate, up)) = unsafe { (self.y.get_mut(r), self.x.get(r).split_at(self.cols)) };
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                let gate = math::widen(*gate);
                // Finite times 0 at the lower end, where the limit is 0.
                let low = if gate < -100.0 { -100.0 } else { gate };
                *y = math::narrow(low * math::sigmoid(gate) * math::widen(*up));
            }
        }
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn swiglu_twin<T: Real>(p: &SwigluParams, host: &Host) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    let grid = Task { y: Rows::<T>::dense(p.y, cols), x: Rows::dense(p.x, 2 * cols), rows, cols };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, row_tasks(rows, 2 * cols), &grid) }
}

/// See `kernels/activation.h`.
pub static SWIGLU_BACKWARD: Kernel<SwigluBackwardParams> = Kernel {
    name: "swiglu_backward",
    twins: twins!(swiglu_backward_twin),
    geometry: backward_geometry,
    cost: backward_cost,
    accounting: 0,
};

/// dx = [dgate | dup] (rows, 2*cols) from dy (rows, cols) and x = [gate | up]; all dense.
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn swiglu_backward(
    stream: &Stream,
    mut dx: ViewMut<'_>,
    dy: View<'_>,
    x: View<'_>,
) -> Result<()> {
    let op = "swiglu_backward";
    for (name, view) in [("dx", &dx.as_view()), ("x", &x)] {
        check::matrix(op, name, view, dy.rows(), 2 * dy.cols())?;
        check::dtype(op, name, view, dy.dtype())?;
        check::dense(op, name, view)?;
    }
    check::dense(op, "dy", &dy)?;
    let params = SwigluBackwardParams {
        dx: dx.ptr(),
        dy: dy.ptr(),
        x: x.ptr(),
        rows: dy.rows() as i64,
        cols: dy.cols() as i64,
    };
    // SAFETY: shapes, strides and dtypes were checked; dx is borrowed exclusively.
    unsafe { stream.launch(&SWIGLU_BACKWARD, dy.dtype(), &params) }
}

fn backward_geometry(p: &SwigluBackwardParams, dtype: DType, _: &Chip) -> Geometry {
    let packable = layout::is_packable(&[p.dx.cast_const(), p.dy, p.x], &[p.cols], dtype);
    layout::packed_cells(p.rows * p.cols, dtype, packable)
}

fn backward_cost(p: &SwigluBackwardParams, dtype: DType) -> Cost {
    let cells = p.rows as f64 * p.cols as f64;
    Cost { bytes: 5.0 * cells * dtype.size() as f64, flops: 12.0 * cells }
}

struct BackwardTask<T> {
    dx: Rows<T>,
    dy: Rows<T>,
    x: Rows<T>,
    rows: usize,
    cols: usize,
}

impl<T: Real> Grid for BackwardTask<T> {
    fn scratch(&self, _: usize) -> usize {
        0
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, _: &mut [f32]) {
        let cols = self.cols;
        for r in row_range(task, self.rows, 2 * cols) {
            // SAFETY: rows inside the contract's extent, each of one task only.
            let (dx, dy, x) = unsafe { (self.dx.get_mut(r), self.dy.get(r), self.x.get(r)) };
            for i in 0..cols {
                let [dy, gate, up] = [dy[i], x[i], x[cols + i]].map(math::widen);
                let s = math::sigmoid(gate);
                // Far below, gate * s goes to 0 although gate does not.
                let silu = (if gate < -100.0 { -100.0 } else { gate }) * s;
                dx[i] = math::narrow(dy * up * (s + silu * (1.0 - s)));
                dx[cols + i] = math::narrow(dy * silu);
            }
        }
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn swiglu_backward_twin<T: Real>(p: &SwigluBackwardParams, host: &Host) {
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    let grid = BackwardTask {
        dx: Rows::<T>::dense(p.dx, 2 * cols),
        dy: Rows::dense(p.dy, cols),
        x: Rows::dense(p.x, 2 * cols),
        rows,
        cols,
    };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, row_tasks(rows, 2 * cols), &grid) }
}

/// See `kernels/activation.h`.
pub static ACTIVATION: Kernel<ActivationParams> = Kernel {
    name: "activation",
    twins: twins!(activation_twin),
    geometry: |p, dtype, _| {
        let packable = layout::is_packable(&[p.y.cast_const(), p.x], &[p.cells], dtype);
        layout::packed_cells(p.cells, dtype, packable)
    },
    cost: |p, dtype| per_cell(p.cells, dtype, 2.0, 12.0),
    accounting: 0,
};

/// See `kernels/activation.h`.
pub static ACTIVATION_BACKWARD: Kernel<ActivationBackwardParams> = Kernel {
    name: "activation_backward",
    twins: twins!(activation_backward_twin),
    geometry: |p, dtype, _| {
        let packable = layout::is_packable(&[p.dx.cast_const(), p.dy, p.x], &[p.cells], dtype);
        layout::packed_cells(p.cells, dtype, packable)
    },
    cost: |p, dtype| per_cell(p.cells, dtype, 3.0, 16.0),
    accounting: 0,
};

fn per_cell(cells: i64, dtype: DType, moved: f64, flops: f64) -> Cost {
    Cost { bytes: moved * (cells as usize * dtype.size()) as f64, flops: flops * cells as f64 }
}

/// y = f(x); y and x (rows, cols) dense: what the epilogue of [`gemm`](super::gemm) does, for a
/// forward pass that keeps x.
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn activation(
    stream: &Stream,
    mut y: ViewMut<'_>,
    x: View<'_>,
    activation: Activation,
) -> Result<()> {
    let op = "activation";
    check::matrix(op, "y", &y.as_view(), x.rows(), x.cols())?;
    check::dtype(op, "y", &y.as_view(), x.dtype())?;
    check::dense(op, "y", &y.as_view())?;
    check::dense(op, "x", &x)?;
    let params = ActivationParams {
        y: y.ptr(),
        x: x.ptr(),
        cells: (x.rows() * x.cols()) as i64,
        activation: activation as i32,
        reserved: 0,
    };
    // SAFETY: shapes, strides and dtypes were checked; y is borrowed exclusively.
    unsafe { stream.launch(&ACTIVATION, x.dtype(), &params) }
}

/// dx = dy * f'(x), with x as it was before f; all (rows, cols) dense.
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn activation_backward(
    stream: &Stream,
    mut dx: ViewMut<'_>,
    dy: View<'_>,
    x: View<'_>,
    activation: Activation,
) -> Result<()> {
    let op = "activation_backward";
    for (name, view) in [("dx", &dx.as_view()), ("dy", &dy)] {
        check::matrix(op, name, view, x.rows(), x.cols())?;
        check::dtype(op, name, view, x.dtype())?;
        check::dense(op, name, view)?;
    }
    check::dense(op, "x", &x)?;
    let params = ActivationBackwardParams {
        dx: dx.ptr(),
        dy: dy.ptr(),
        x: x.ptr(),
        cells: (x.rows() * x.cols()) as i64,
        activation: activation as i32,
        reserved: 0,
    };
    // SAFETY: shapes, strides and dtypes were checked; dx is borrowed exclusively.
    unsafe { stream.launch(&ACTIVATION_BACKWARD, x.dtype(), &params) }
}

/// Cells one by one: y = f(x), or with a dy, y = dy f'(x).
struct CellTask<T> {
    y: Rows<T>,
    dy: Option<Rows<T>>,
    x: Rows<T>,
    cells: usize,
    activation: i32,
}

/// Cells that are widened at a time.
const PIECE: usize = 1024;

impl<T: Real> Grid for CellTask<T> {
    fn scratch(&self, _: usize) -> usize {
        PIECE
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        for piece in row_range(task, self.cells.div_ceil(PIECE), PIECE) {
            let at = piece * PIECE;
            let len = PIECE.min(self.cells - at);
            let own = &mut scratch[..len];
            // SAFETY: cells inside the contract's extent, each of one task only. y may be dy: its
            // cells are read before any of them is written.
            unsafe {
                widen_row::<L, T>(self.x.part(0, at, len), own);
                match (self.activation, self.dy.is_some()) {
                    (1, false) => own.iter_mut().for_each(|x| *x = math::gelu(*x)),
                    (2, false) => own.iter_mut().for_each(|x| *x = math::quick_gelu(*x)),
                    (1, true) => own.iter_mut().for_each(|x| *x = math::gelu_slope(*x)),
                    (2, true) => own.iter_mut().for_each(|x| *x = math::quick_gelu_slope(*x)),
                    (_, false) => {}
                    (_, true) => own.fill(1.0),
                }
                if let Some(dy) = self.dy {
                    for (x, dy) in own.iter_mut().zip(dy.part(0, at, len)) {
                        *x *= math::widen(*dy);
                    }
                }
                narrow(own, self.y.part_mut(0, at, len));
            }
        }
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn activation_twin<T: Real>(p: &ActivationParams, host: &Host) {
    let cells = p.cells as usize;
    let (y, x) = (Rows::<T>::dense(p.y, cells), Rows::dense(p.x, cells));
    let grid = CellTask { y, dy: None, x, cells, activation: p.activation };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, row_tasks(cells.div_ceil(PIECE), PIECE), &grid) }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn activation_backward_twin<T: Real>(p: &ActivationBackwardParams, host: &Host) {
    let cells = p.cells as usize;
    let (dx, dy) = (Rows::<T>::dense(p.dx, cells), Some(Rows::dense(p.dy, cells)));
    let grid = CellTask { y: dx, dy, x: Rows::dense(p.x, cells), cells, activation: p.activation };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, row_tasks(cells.div_ceil(PIECE), PIECE), &grid) }
}

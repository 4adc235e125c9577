//! `gate_backward`: through a tanh gate, to what it scaled and to itself.

use super::check;
use super::gemm::math;
use super::lanes::{self, Grid, Lanes, dot, widen_row};
use super::layout;
use super::rows::Rows;
use crate::contracts::GateBackwardParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/gate_backward.h`.
pub static GATE_BACKWARD: Kernel<GateBackwardParams> = Kernel {
    name: "gate_backward",
    twins: twins!(gate_backward_twin),
    geometry,
    cost,
    accounting: 0,
};

/// The gradients of x + tanh(gate) h W^T: d, which holds dy W (rows, cols), becomes the gradient of
/// h, d tanh(gate); `parts` (parts) f32 becomes sums of d h (1 - tanh(gate)^2), for
/// [`column_sums`](super::column_sums) to add up to the gradient of the gate. h (rows, cols) and d
/// are dense, gate (1).
///
/// # Errors
/// If a shape, stride or dtype differs.
pub fn gate_backward(
    stream: &Stream,
    mut d: ViewMut<'_>,
    mut parts: ViewMut<'_>,
    h: View<'_>,
    gate: View<'_>,
) -> Result<()> {
    let op = "gate_backward";
    let dtype = h.dtype();
    check::matrix(op, "d", &d.as_view(), h.rows(), h.cols())?;
    for (name, view) in [("d", d.as_view()), ("h", h), ("gate", gate)] {
        check::dtype(op, name, &view, dtype)?;
        check::dense(op, name, &view)?;
    }
    check::vector(op, "gate", &gate, 1)?;
    let (cells, count) = (h.rows() * h.cols(), parts.rows() * parts.cols());
    check::flat(op, "parts", &parts.as_view(), count, DType::F32)?;
    check::small(op, "parts", count)?;
    if count == 0 {
        return Err(Error::invalid("gate_backward: parts", "one or more", parts.shape()));
    }
    let params = GateBackwardParams {
        d: d.ptr(),
        parts: parts.ptr(),
        h: h.ptr(),
        gate: gate.ptr(),
        cells: cells as i64,
        count: count as i64,
        part_cells: cells.div_ceil(count).next_multiple_of(PACK) as i64,
    };
    // SAFETY: shapes, strides and dtypes were checked; what is written is borrowed exclusively.
    unsafe { stream.launch(&GATE_BACKWARD, dtype, &params) }
}

/// Elements that a part is a multiple of, so that it begins at a multiple of 16 bytes.
const PACK: usize = 8;

fn geometry(p: &GateBackwardParams, dtype: DType, _: &Chip) -> Geometry {
    let packable = layout::is_packable(&[p.d.cast_const(), p.h], &[p.cells, p.part_cells], dtype);
    let variant = if packable { "" } else { "_plain" };
    // `sizeof(GateBackwardShared)`: a float a warp.
    Geometry { variant, shared: 8 * 4, ..Geometry::linear(p.count as u32, 256) }
}

fn cost(p: &GateBackwardParams, dtype: DType) -> Cost {
    let bytes = 3.0 * p.cells as f64 * dtype.size() as f64 + 4.0 * p.count as f64;
    Cost { bytes, flops: 3.0 * p.cells as f64 }
}

struct Task<T> {
    d: Rows<T>,
    h: Rows<T>,
    parts: Rows<f32>,
    factor: f32,
    cells: usize,
    part_cells: usize,
}

/// Cells that are widened at a time.
const PIECE: usize = 1024;

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, _: usize) -> usize {
        2 * PIECE
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        let (d, h) = scratch.split_at_mut(PIECE);
        let end = self.cells.min((task + 1) * self.part_cells);
        let mut sum = 0.0;
        for at in (task * self.part_cells..end).step_by(PIECE) {
            let len = PIECE.min(end - at);
            let (d, h) = (&mut d[..len], &mut h[..len]);
            // SAFETY: cells inside the contract's extent, each of one task only.
            unsafe {
                let kept = self.d.part_mut(0, at, len);
                widen_row::<L, T>(kept, d);
                widen_row::<L, T>(self.h.part(0, at, len), h);
                sum += dot::<L>(d, h);
                for (kept, d) in kept.iter_mut().zip(d.iter()) {
                    *kept = math::narrow(d * self.factor);
                }
            }
        }
        // SAFETY: the part is this task's.
        unsafe { self.parts.get_mut(task)[0] = (1.0 - self.factor * self.factor) * sum };
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn gate_backward_twin<T: Real>(p: &GateBackwardParams, host: &Host) {
    // SAFETY: the gate is one element.
    let factor = unsafe { *p.gate.cast::<T>() }.to_f32().tanh();
    let (cells, part_cells) = (p.cells as usize, p.part_cells as usize);
    let grid = Task::<T> {
        d: Rows::dense(p.d, cells),
        h: Rows::dense(p.h, cells),
        parts: Rows::dense(p.parts.cast(), 1),
        factor,
        cells,
        part_cells,
    };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, p.count as usize, &grid) }
}

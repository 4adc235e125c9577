//! `rope`: rotary positions for the query and key heads of [q | k | v] rows, in place.

use super::batch::Ragged;
use super::check;
use super::gemm::math;
use super::lanes::{self, Grid, Lanes};
use super::layout;
use super::rows::{Rows, row_range, row_tasks};
use crate::contracts::RopeParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::ViewMut;
use crate::{DType, Error, Result, twins};

/// See `kernels/rope.h`.
pub static ROPE: Kernel<RopeParams> =
    Kernel { name: "rope", twins: twins!(rope_twin), geometry, cost, accounting: 0 };

/// Where positions enter queries and keys: features that turn and the base of their angles, or not.
pub type Rotary = Option<(usize, f32)>;

/// Rotates the first `rotary` features of every query and key head of qkv (rows, 3*heads*head_dim)
/// by position * base^(-2i/rotary), in place. Rows may be strided.
///
/// # Errors
/// If the shape differs, `rotary` is odd or does not fit a head, or `base` is not positive.
pub fn rope(
    stream: &Stream,
    qkv: ViewMut<'_>,
    batch: &Ragged,
    heads: usize,
    head_dim: usize,
    rotary: usize,
    base: f32,
) -> Result<()> {
    turn(stream, qkv, batch, [heads, head_dim, rotary], base, false)
}

/// The gradient of [`rope`]: dqkv, the gradient of what it made, becomes that of what it was given,
/// in place. A rotation's transpose is the rotation by the opposite angle.
///
/// # Errors
/// As [`rope`].
pub fn rope_backward(
    stream: &Stream,
    dqkv: ViewMut<'_>,
    batch: &Ragged,
    heads: usize,
    head_dim: usize,
    rotary: usize,
    base: f32,
) -> Result<()> {
    turn(stream, dqkv, batch, [heads, head_dim, rotary], base, true)
}

fn turn(
    stream: &Stream,
    mut qkv: ViewMut<'_>,
    batch: &Ragged,
    [heads, head_dim, rotary]: [usize; 3],
    base: f32,
    is_inverse: bool,
) -> Result<()> {
    let width = check::width("rope", 3, heads, head_dim)?;
    check::matrix("rope", "qkv", &qkv.as_view(), batch.rows(), width)?;
    check_rotary("rope", rotary, base, head_dim)?;
    let params = RopeParams {
        qkv: qkv.ptr(),
        positions: batch.positions(),
        rows: batch.rows() as i64,
        row_stride: qkv.stride() as i64,
        heads: check::small("rope", "heads", heads)?,
        head_dim: check::small("rope", "head_dim", head_dim)?,
        rotary: check::small("rope", "rotary", rotary)?,
        base,
        is_inverse: i32::from(is_inverse),
        reserved: 0,
    };
    // SAFETY: the shape was checked; the batch holds one position per row; qkv is exclusive.
    unsafe { stream.launch(&ROPE, qkv.dtype(), &params) }
}

/// `rotary` features of a head turn, by angles of `base`.
pub(super) fn check_rotary(op: &str, rotary: usize, base: f32, head_dim: usize) -> Result<()> {
    if rotary == 0 || !rotary.is_multiple_of(2) || rotary > head_dim {
        let expected = format!("even, 2 to {head_dim}");
        return Err(Error::invalid(format!("{op}: rotary"), expected, rotary));
    }
    if !(base > 0.0 && base.is_finite()) {
        return Err(Error::invalid(format!("{op}: base"), "a positive number", base));
    }
    Ok(())
}

/// Heads of a block of the kernels.
const HEADS: i64 = 8;

fn geometry(p: &RopeParams, _: DType, _: &Chip) -> Geometry {
    let mut geometry = layout::cells(p.rows * i64::from(p.rotary / 2), 1);
    geometry.grid[1] = layout::groups(2 * i64::from(p.heads), HEADS) as u32;
    geometry
}

fn cost(p: &RopeParams, dtype: DType) -> Cost {
    let cells = p.rows as f64 * 2.0 * p.heads as f64 * p.rotary as f64;
    Cost { bytes: 2.0 * cells * dtype.size() as f64, flops: 3.0 * cells }
}

struct Task<T> {
    qkv: Rows<T>,
    positions: Rows<i32>,
    rows: usize,
    heads: usize,
    head_dim: usize,
    rotary: usize,
    base: f32,
    is_inverse: bool,
}

impl<T: Real> Task<T> {
    /// Columns that may change: queries and keys.
    fn cols(&self) -> usize {
        2 * self.heads * self.head_dim
    }
}

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, _: usize) -> usize {
        3 * self.rotary / 2
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        let half = self.rotary / 2;
        let (frequencies, turns) = scratch.split_at_mut(half);
        let (cosines, sines) = turns.split_at_mut(half);
        for (i, f) in frequencies.iter_mut().enumerate() {
            *f = 1.0 / self.base.powf((2 * i) as f32 / self.rotary as f32);
        }
        for r in row_range(task, self.rows, self.cols()) {
            // SAFETY: each row of qkv is of one task only.
            let (row, position) = unsafe { (self.qkv.get_mut(r), self.positions.get(0)[r]) };
            for ((s, c), f) in sines.iter_mut().zip(cosines.iter_mut()).zip(frequencies.iter()) {
                let (sine, cosine) = (position as f32 * f).sin_cos();
                (*s, *c) = (if self.is_inverse { -sine } else { sine }, cosine);
            }
            for head in row.chunks_exact_mut(self.head_dim) {
                let (first, second) = head[..self.rotary].split_at_mut(half);
                let pairs = first.iter_mut().zip(second);
                for ((a, b), (c, s)) in pairs.zip(cosines.iter().zip(sines.iter())) {
                    let (x, y) = (math::widen(*a), math::widen(*b));
                    *a = math::narrow(x * c - y * s);
                    *b = math::narrow(y * c + x * s);
                }
            }
        }
    }
}

/// # Safety
/// As [`Stream::launch`].
pub(super) unsafe fn rope_twin<T: Real>(p: &RopeParams, host: &Host) {
    let (heads, head_dim, rows) = (p.heads as usize, p.head_dim as usize, p.rows as usize);
    let grid = Task {
        qkv: Rows::<T>::new(p.qkv, p.row_stride, 2 * heads * head_dim),
        positions: Rows::dense(p.positions.cast(), rows),
        rows,
        heads,
        head_dim,
        rotary: p.rotary as usize,
        base: p.base,
        is_inverse: p.is_inverse != 0,
    };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, row_tasks(rows, grid.cols()), &grid) }
}

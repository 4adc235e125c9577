//! `square_sum` and `clip_factor`: the norm of all gradients, and what it makes of them.

use super::check;
use super::lanes::{self, Grid, Lanes, sums, widen_row};
use super::layout;
use super::rows::Rows;
use crate::contracts::{ClipFactorParams, SquareSumParams};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/square_sum.h`.
pub static SQUARE_SUM: Kernel<SquareSumParams> =
    Kernel { name: "square_sum", twins: twins!(square_sum_twin), geometry, cost, accounting: 0 };

/// See `kernels/square_sum.h`.
pub static CLIP_FACTOR: Kernel<ClipFactorParams> = Kernel {
    name: "clip_factor",
    twins: &[(DType::F32, clip_twin), (DType::BF16, clip_twin), (DType::F16, clip_twin)],
    geometry: |_, _, _| Geometry::linear(1, 1),
    cost: |_, _| Cost { bytes: 16.0, flops: 5.0 },
    accounting: 0,
};

/// `parts` (parts, 2) f32 become [sum of squares, count of what is not finite] of as many parts of
/// x, which is dense, in whatever shape. [`column_sums`](super::column_sums) adds up the parts: of
/// many tensors, where they lie one behind the other.
///
/// # Errors
/// If a shape, stride or dtype differs, or there is no part.
pub fn square_sum(stream: &Stream, mut parts: ViewMut<'_>, x: View<'_>) -> Result<()> {
    let op = "square_sum";
    let (count, n) = (parts.rows(), x.rows() * x.cols());
    check::matrix(op, "parts", &parts.as_view(), count, 2)?;
    check::dtype(op, "parts", &parts.as_view(), DType::F32)?;
    check::dense(op, "parts", &parts.as_view())?;
    check::dense(op, "x", &x)?;
    check::small(op, "parts", count)?;
    if count == 0 {
        return Err(Error::invalid("square_sum: parts", "one or more", parts.shape()));
    }
    let params = SquareSumParams {
        parts: parts.ptr(),
        x: x.ptr(),
        n: n as i64,
        count: count as i64,
        each: n.div_ceil(count).next_multiple_of(PACK) as i64,
    };
    // SAFETY: shapes, strides and dtypes were checked; parts is borrowed exclusively.
    unsafe { stream.launch(&SQUARE_SUM, x.dtype(), &params) }
}

/// With norm = scale * sqrt(sums\[0\]): factor (2) f32 = [scale * min(1, max_norm / (norm + 1e-6)),
/// norm], the first one NaN if anything was not finite, for an optimiser to leave all as it is.
/// `sums` (2) f32 are those of [`square_sum`]; a `max_norm` of infinity does not clip.
///
/// # Errors
/// If a shape or dtype differs, `max_norm` is not above 0, or `scale` not finite and above 0.
pub fn clip_factor(
    stream: &Stream,
    mut factor: ViewMut<'_>,
    sums: View<'_>,
    max_norm: f32,
    scale: f32,
) -> Result<()> {
    let op = "clip_factor";
    check::flat(op, "factor", &factor.as_view(), 2, DType::F32)?;
    check::flat(op, "sums", &sums, 2, DType::F32)?;
    if max_norm.is_nan() || max_norm <= 0.0 {
        return Err(Error::invalid("clip_factor: max_norm", "more than 0", max_norm));
    }
    if !scale.is_finite() || scale <= 0.0 {
        return Err(Error::invalid("clip_factor: scale", "finite and more than 0", scale));
    }
    let params = ClipFactorParams { factor: factor.ptr(), sums: sums.ptr(), max_norm, scale };
    // SAFETY: sizes and dtypes were checked; factor is borrowed exclusively.
    unsafe { stream.launch(&CLIP_FACTOR, DType::F32, &params) }
}

/// Elements that a part is a multiple of, so that it begins at a multiple of 16 bytes.
const PACK: usize = 8;

fn geometry(p: &SquareSumParams, dtype: DType, _: &Chip) -> Geometry {
    let packable = layout::is_packable(&[p.x], &[p.n, p.each], dtype);
    let variant = if packable { "" } else { "_plain" };
    // `sizeof(SquareSumShared)`: two floats a warp.
    Geometry { variant, shared: 2 * 8 * 4, ..Geometry::linear(p.count as u32, 256) }
}

fn cost(p: &SquareSumParams, dtype: DType) -> Cost {
    let bytes = p.n as f64 * dtype.size() as f64 + 8.0 * p.count as f64;
    Cost { bytes, flops: 2.0 * p.n as f64 }
}

struct Task<T> {
    parts: Rows<f32>,
    x: Rows<T>,
    n: usize,
    each: usize,
}

/// Elements that are widened at a time.
const PIECE: usize = 1024;

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, _: usize) -> usize {
        PIECE
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        let end = self.n.min((task + 1) * self.each);
        let (mut squares, mut odd) = (0.0, 0usize);
        for at in (task * self.each..end).step_by(PIECE) {
            let wide = &mut scratch[..PIECE.min(end - at)];
            // SAFETY: elements inside the contract's extent.
            let sum = unsafe {
                widen_row::<L, T>(self.x.part(0, at, wide.len()), wide);
                sums::<L>(wide, 0.0).1
            };
            squares += sum;
            if !sum.is_finite() {
                odd += wide.iter().filter(|x| !x.is_finite()).count();
            }
        }
        // SAFETY: the part is this task's.
        unsafe { self.parts.get_mut(task).copy_from_slice(&[squares, odd as f32]) };
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn square_sum_twin<T: Real>(p: &SquareSumParams, host: &Host) {
    let (n, each) = (p.n as usize, p.each as usize);
    let (parts, x) = (Rows::dense(p.parts.cast(), 2), Rows::dense(p.x, n));
    // SAFETY: the caller's.
    unsafe { lanes::run(host, p.count as usize, &Task::<T> { parts, x, n, each }) }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn clip_twin(p: &ClipFactorParams, _: &Host) {
    // SAFETY: the caller's.
    let [squares, odd] = unsafe { p.sums.cast::<[f32; 2]>().read() };
    let norm = p.scale * squares.sqrt();
    let is_whole = odd == 0.0 && norm < f32::INFINITY;
    let factor = p.scale * f32::min(1.0, p.max_norm / (norm + 1e-6));
    // SAFETY: the caller's.
    unsafe {
        p.factor.cast::<[f32; 2]>().write([if is_whole { factor } else { f32::NAN }, norm]);
    }
}

//! `quantize`: weights to codes of 8 or 4 bits and their scales; `dequantize`: back.
//!
//! Rounding a scale to bf16 costs nothing, because codes are chosen under the scale as it is
//! stored. 4 bits: a scale of the largest weight's eighth is also about the best for normal numbers
//! in groups of 128 (0.33 of their deviation against 0.335), so no better one is searched for.

use super::check;
use super::gemm::math;
use super::gemm_quantized::{INT4_GROUP, Quantized};
use super::lanes::{self, Grid, Lanes, PAD, sums, widen_row};
use super::layout;
use super::rows::{Rows, for_row_ranges, row_range, row_tasks};
use crate::contracts::{DequantizeParams, QuantizeParams};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};
use half::bf16;

/// See `kernels/quantize.h`.
pub static QUANTIZE: Kernel<QuantizeParams> =
    Kernel { name: "quantize", twins: twins!(quantize_twin), geometry, cost, accounting: 0 };

/// See `kernels/quantize.h`.
pub static DEQUANTIZE: Kernel<DequantizeParams> = Kernel {
    name: "dequantize",
    twins: twins!(dequantize_twin),
    geometry: back_geometry,
    cost: back_cost,
    accounting: 0,
};

/// Codes and scales of w (rows, cols), 16 bytes aligned: codes (rows, cols) i8 with scales (rows)
/// bf16, or codes (rows, cols/2) u8 with scales (rows, cols/[`INT4_GROUP`]); and in `losses` for
/// every scale [sum of the squares of what the codes differ from w by, that of w's], f32. All are
/// dense.
///
/// # Errors
/// If a shape, stride, dtype or alignment differs, or rows are not whole groups.
pub fn quantize(
    stream: &Stream,
    mut codes: ViewMut<'_>,
    mut scales: ViewMut<'_>,
    mut losses: Option<ViewMut<'_>>,
    w: View<'_>,
) -> Result<()> {
    let op = "quantize";
    let made = Quantized { codes: codes.as_view(), scales: scales.as_view() };
    let (bits, groups) = check_stored(op, &made, &w)?;
    if let Some(losses) = losses.as_ref().map(ViewMut::as_view) {
        check::flat(op, "losses", &losses, 2 * groups, DType::F32)?;
    }
    let params = QuantizeParams {
        codes: codes.ptr(),
        scales: scales.ptr(),
        losses: losses.as_mut().map_or(std::ptr::null_mut(), ViewMut::ptr),
        w: w.ptr(),
        rows: w.rows() as i64,
        cols: w.cols() as i64,
        bits,
    };
    // SAFETY: shapes, strides, alignment and dtypes were checked; what is written is borrowed
    // exclusively.
    unsafe { stream.launch(&QUANTIZE, w.dtype(), &params) }
}

/// w (rows, cols) = code * scale; shapes and limits as in [`quantize`].
///
/// # Errors
/// As [`quantize`].
pub fn dequantize(stream: &Stream, mut w: ViewMut<'_>, of: Quantized<'_>) -> Result<()> {
    let (bits, _) = check_stored("dequantize", &of, &w.as_view())?;
    let params = DequantizeParams {
        w: w.ptr(),
        codes: of.codes.ptr(),
        scales: of.scales.ptr(),
        rows: w.rows() as i64,
        cols: w.cols() as i64,
        bits,
    };
    // SAFETY: shapes, strides, alignment and dtypes were checked; w is borrowed exclusively.
    unsafe { stream.launch(&DEQUANTIZE, w.dtype(), &params) }
}

/// The bits of a code, and the number of scales.
fn check_stored(op: &str, of: &Quantized<'_>, w: &View<'_>) -> Result<(i64, usize)> {
    let (rows, cols) = (w.rows(), w.cols());
    let (bits, multiple, groups) = match of.codes.dtype() {
        DType::I8 => (8, 16, rows),
        DType::U8 => (4, INT4_GROUP, rows * (cols / INT4_GROUP)),
        other => {
            let expected = "i8, or u8 of two weights";
            return Err(Error::invalid(format!("{op}: codes"), expected, other));
        }
    };
    if !cols.is_multiple_of(multiple) {
        let expected = format!("rows of a multiple of {multiple}");
        return Err(Error::invalid(format!("{op}: w"), expected, w.shape()));
    }
    check::matrix(op, "codes", &of.codes, rows, cols * bits as usize / 8)?;
    check::flat(op, "scales", &of.scales, groups, DType::BF16)?;
    for (name, view) in [("codes", &of.codes), ("w", w)] {
        check::dense(op, name, view)?;
        check::aligned(op, name, view, 16)?;
    }
    Ok((bits, groups))
}

/// Weights of a thread at a time.
const EACH: usize = 8;

fn geometry(p: &QuantizeParams, _: DType, _: &Chip) -> Geometry {
    if p.bits == 8 {
        // `sizeof(QuantizeShared)`: three floats a warp.
        let blocks = if p.cols > 0 { p.rows as u32 } else { 0 };
        return Geometry { variant: "_int8", shared: 3 * 8 * 4, ..Geometry::linear(blocks, 256) };
    }
    Geometry { variant: "_int4", ..layout::cells(p.rows * p.cols, EACH) }
}

fn back_geometry(p: &DequantizeParams, _: DType, _: &Chip) -> Geometry {
    let variant = if p.bits == 8 { "_int8" } else { "_int4" };
    Geometry { variant, ..layout::cells(p.rows * p.cols, EACH) }
}

/// Bytes of the codes, and the number of scales.
fn stored(rows: i64, cols: i64, bits: i64) -> (f64, f64) {
    let groups = if bits == 8 { 1 } else { cols / INT4_GROUP as i64 };
    (rows as f64 * cols as f64 * bits as f64 / 8.0, rows as f64 * groups as f64)
}

fn cost(p: &QuantizeParams, dtype: DType) -> Cost {
    let ((codes, scales), weights) =
        (stored(p.rows, p.cols, p.bits), p.rows as f64 * p.cols as f64);
    let each = if p.losses.is_null() { 2.0 } else { 10.0 };
    let bytes = weights * dtype.size() as f64 + codes + each * scales;
    Cost { bytes, flops: 8.0 * weights }
}

fn back_cost(p: &DequantizeParams, dtype: DType) -> Cost {
    let ((codes, scales), weights) =
        (stored(p.rows, p.cols, p.bits), p.rows as f64 * p.cols as f64);
    Cost { bytes: weights * dtype.size() as f64 + codes + 2.0 * scales, flops: weights }
}

struct Task<T> {
    codes: Rows<u8>,
    scales: Rows<bf16>,
    losses: Option<Rows<f32>>,
    w: Rows<T>,
    rows: usize,
    cols: usize,
    is_int8: bool,
}

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, _: usize) -> usize {
        self.cols.next_multiple_of(PAD) + INT4_GROUP
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        let (row, off) = scratch.split_at_mut(self.cols.next_multiple_of(PAD));
        let row = &mut row[..self.cols];
        let per_group = if self.is_int8 { self.cols } else { INT4_GROUP };
        for r in row_range(task, self.rows, self.cols) {
            // SAFETY: rows inside the contract's extent, each of one task only.
            let (codes, scales) = unsafe {
                widen_row::<L, T>(self.w.get(r), row);
                (self.codes.get_mut(r), self.scales.get_mut(r))
            };
            let groups = row.chunks_exact_mut(per_group);
            let own = codes.chunks_exact_mut(if self.is_int8 { self.cols } else { per_group / 2 });
            for (i, (group, codes)) in groups.zip(own).enumerate() {
                let most = most(group);
                let exact = if self.is_int8 { most / 127.0 } else { signed(group, most) / -8.0 };
                scales[i] = <bf16 as Real>::from_f32(exact);
                let mut loss = [0f32; 2];
                let step = INT4_GROUP * codes.len() / per_group;
                for (part, codes) in group.chunks_mut(INT4_GROUP).zip(codes.chunks_mut(step)) {
                    let off = &mut off[..part.len()];
                    // SAFETY: the processor has L.
                    loss[1] += unsafe { sums::<L>(part, 0.0) }.1;
                    nearest(part, off, Real::to_f32(scales[i]), self.is_int8);
                    // SAFETY: as above.
                    loss[0] += unsafe { sums::<L>(off, 0.0) }.1;
                    store(part, codes, self.is_int8);
                }
                if let Some(losses) = self.losses {
                    // SAFETY: the scale's pair is of this task only.
                    unsafe { losses.get_mut(r * scales.len() + i).copy_from_slice(&loss) };
                }
            }
        }
    }
}

/// The largest |w|; NaN counts for nothing.
#[inline(always)]
fn most(group: &[f32]) -> f32 {
    let mut most = [0f32; PAD];
    for part in group.chunks(PAD) {
        for (most, w) in most.iter_mut().zip(part) {
            *most = if w.abs() > *most { w.abs() } else { *most };
        }
    }
    most.into_iter().fold(0.0, f32::max)
}

/// The first weight as large as `most`, with its sign.
#[inline(always)]
fn signed(group: &[f32], most: f32) -> f32 {
    group.iter().find(|w| w.abs() == most).copied().unwrap_or(0.0)
}

/// w becomes its codes, as numbers; `off` what they differ from it by.
#[inline(always)]
fn nearest(w: &mut [f32], off: &mut [f32], scale: f32, is_int8: bool) {
    /// 1.5 * 2^23: adding it rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    let (least, most) = if is_int8 { (-127.0, 127.0) } else { (-8.0, 7.0) };
    // Weights that are 0, or so small that their reciprocal is no number.
    let inverse = if scale.abs() >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    for (w, off) in w.iter_mut().zip(off) {
        let q = ((*w * inverse).clamp(least, most) + ROUND) - ROUND;
        *off = *w - q * scale;
        *w = q;
    }
}

/// Codes as they are stored; NaN is the first of them, or 0 of 8 bits.
#[inline(always)]
fn store(numbers: &[f32], codes: &mut [u8], is_int8: bool) {
    if is_int8 {
        for (code, q) in codes.iter_mut().zip(numbers) {
            *code = *q as i8 as u8;
        }
        return;
    }
    for (word, q) in codes.as_chunks_mut::<4>().0.iter_mut().zip(numbers.as_chunks::<8>().0) {
        let nibble = |i: usize| (q[i] + 8.0) as u32;
        let places = PLACES.iter().enumerate();
        *word = places.fold(0, |word, (at, i)| word | nibble(*i) << (4 * at)).to_le_bytes();
    }
}

/// Whose weights a word's nibbles are, from the lowest.
const PLACES: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// # Safety
/// As [`Stream::launch`].
unsafe fn quantize_twin<T: Real>(p: &QuantizeParams, host: &Host) {
    let (rows, cols, is_int8) = (p.rows as usize, p.cols as usize, p.bits == 8);
    let (bytes, scales) = if is_int8 { (cols, 1) } else { (cols / 2, cols / INT4_GROUP) };
    if cols == 0 {
        return;
    }
    let grid = Task::<T> {
        codes: Rows::dense(p.codes, bytes),
        scales: Rows::dense(p.scales, scales),
        losses: (!p.losses.is_null()).then(|| Rows::dense(p.losses.cast(), 2)),
        w: Rows::dense(p.w, cols),
        rows,
        cols,
        is_int8,
    };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, row_tasks(rows, cols), &grid) }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn dequantize_twin<T: Real>(p: &DequantizeParams, host: &Host) {
    let (rows, cols, is_int8) = (p.rows as usize, p.cols as usize, p.bits == 8);
    let (bytes, groups) = if is_int8 { (cols, 1) } else { (cols / 2, cols / INT4_GROUP) };
    let (codes, scales) =
        (Rows::<u8>::dense(p.codes, bytes), Rows::<bf16>::dense(p.scales, groups));
    let w = Rows::<T>::dense(p.w, cols);
    for_row_ranges(host, rows, cols, |range| {
        for r in range {
            // SAFETY: rows inside the contract's extent, each of one task only.
            let (w, codes, scales) = unsafe { (w.get_mut(r), codes.get(r), scales.get(r)) };
            if is_int8 {
                let scale = scales[0].to_f32();
                for (w, code) in w.iter_mut().zip(codes) {
                    *w = math::narrow(f32::from(*code as i8) * scale);
                }
                continue;
            }
            let words = codes.as_chunks::<4>().0.iter().zip(w.as_chunks_mut::<8>().0);
            for (i, (word, w)) in words.enumerate() {
                let (word, scale) = (u32::from_le_bytes(*word), scales[i * 8 / INT4_GROUP]);
                for (at, place) in PLACES.iter().enumerate() {
                    let code = (word >> (4 * at) & 15) as i32 - 8;
                    w[*place] = math::narrow(code as f32 * scale.to_f32());
                }
            }
        }
    });
}

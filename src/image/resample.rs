//! Pillow's resize, sample for sample: bicubic (a = -0.5, widened when shrinking) and nearest.
//!
//! Separable, and rounded and clipped between the passes; 8-bit samples with weights of 22
//! fractional bits, 16-bit samples with unrounded weights (`Resample.c` of Pillow defines both).
//! Rows come first, except that since Pillow 13 columns do in very tall pictures. Only the outputs
//! inside of the crop window are computed: each depends on its own source samples alone.
//!
//! Both depths are summed in f64: products of 8-bit samples and 22-bit weights are exact in it
//! (and so equal Pillow's integers), and 16-bit samples are summed in f64 in Pillow too, tap after
//! tap. Eight sums run side by side, over eight rows and then over eight columns, so that every
//! x86-64 multiplies two at a time.

use std::array::from_fn;
use std::ops::Range;

/// Fractional bits of an 8-bit picture's weights.
const BITS: u32 = 22;
/// Sums computed side by side.
const LANES: usize = 8;

/// Samples of as many rows, or of as many columns.
type Lanes = [f64; LANES];

/// The `size` x `size` window at (`left`, `top`) of a picture resized to `width` x `height`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub width: usize,
    pub height: usize,
    pub left: usize,
    pub top: usize,
    pub size: usize,
}

impl Target {
    fn columns(&self) -> Range<usize> {
        self.left..self.left + self.size
    }

    fn rows(&self) -> Range<usize> {
        self.top..self.top + self.size
    }

    /// Whether Pillow 13 resizes columns before rows, which rounds otherwise: if the height loses
    /// more than twice as many pixels as the width (python-pillow/Pillow#9549; always false in
    /// Pillow 12 and before).
    fn is_columns_first(&self, w: usize, h: usize) -> bool {
        let lost = |from: usize, to: usize| from as i64 - to as i64;
        lost(h, self.height) > (2 * lost(w, self.width)).max(0)
    }
}

/// The source samples of each output in a window, and their weights.
struct Axis {
    /// Source samples that are used at all.
    used: Range<usize>,
    /// Per output: the first source sample, counted from `used.start`, and the weights.
    taps: Vec<(usize, Vec<f64>)>,
}

impl Axis {
    /// Weights of `outputs` when `input` samples become `output`.
    fn new(input: usize, output: usize, outputs: Range<usize>) -> Self {
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let support = 2.0 * stretch;
        let taps = outputs.map(|i| {
            let center = (i as f64 + 0.5) * scale;
            let first = (center - support + 0.5) as usize;
            let last = ((center + support + 0.5) as usize).min(input);
            let weight = |k| cubic((k as f64 - center + 0.5) * (1.0 / stretch));
            let mut weights: Vec<f64> = (first..last).map(weight).collect();
            let sum = weights.iter().fold(0.0, |sum, w| sum + w);
            if sum != 0.0 {
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            (first, weights)
        });
        let mut taps: Vec<_> = taps.collect();
        let start = taps.first().map_or(0, |t| t.0);
        let end = taps.last().map_or(0, |t| t.0 + t.1.len());
        taps.iter_mut().for_each(|t| t.0 -= start);
        Axis { used: start..end, taps }
    }

    /// The weights of 8-bit samples: whole numbers of `2^-BITS`, half away from zero.
    fn fixed(mut self) -> Self {
        for w in self.taps.iter_mut().flat_map(|(_, weights)| weights) {
            *w = (*w * f64::from(1 << BITS) + if *w < 0.0 { -0.5 } else { 0.5 }).trunc();
        }
        self
    }
}

/// Keys' kernel with a = -0.5.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    } else {
        0.0
    }
}

/// Bicubic resize and crop of `C` interleaved 8-bit channels.
///
/// `data` is (h, w, C) with `w` pixels per row; the result is (size, size, C).
pub(super) fn bicubic<const C: usize>(data: &[u8], w: usize, target: &Target) -> Vec<u8> {
    let pixels = data.as_chunks::<C>().0;
    let out = resize(pixels, w, target, Axis::fixed, round_8);
    out.as_flattened().iter().map(|&v| v as u8).collect()
}

/// Bicubic resize and crop of 16-bit samples (h, w), stored low byte first, to (size, size).
pub(super) fn bicubic_16(data: &[u8], w: usize, target: &Target) -> Vec<u16> {
    let sample = |&bytes: &[u8; 2]| [u16::from_le_bytes(bytes)];
    let samples: Vec<[u16; 1]> = data.as_chunks().0.iter().map(sample).collect();
    let out = resize(&samples, w, target, |axis| axis, round_16);
    out.as_flattened().iter().map(|&v| v as u16).collect()
}

/// `sum * 2^-BITS`, half up, clipped to 0..=255.
#[inline(always)]
fn round_8(sum: f64) -> f64 {
    const UNIT: f64 = 1.0 / (1 << BITS) as f64;
    // Adding this leaves no room for a fraction: the nearest whole number is what remains. Half a
    // unit more than the sum, which is a number of units, is never in the middle.
    const WHOLE: f64 = 1.5 * (1u64 << 52) as f64;
    (sum * UNIT + 0.5 * UNIT + WHOLE - WHOLE).clamp(0.0, 255.0)
}

/// Half away from zero, clipped to 0..=65535.
#[inline(always)]
fn round_16(sum: f64) -> f64 {
    (sum + if sum >= 0.0 { 0.5 } else { -0.5 }).trunc().clamp(0.0, 65_535.0)
}

/// Both passes, in Pillow's order. (h, w, C) to (size, size, C) of whole numbers.
fn resize<T: Copy + Into<f64>, const C: usize>(
    pixels: &[[T; C]],
    w: usize,
    target: &Target,
    weights: impl Fn(Axis) -> Axis,
    round: impl Fn(f64) -> f64 + Copy,
) -> Vec<[f64; C]> {
    let h = pixels.len() / w;
    let across = weights(Axis::new(w, target.width, target.columns()));
    let down = weights(Axis::new(h, target.height, target.rows()));
    if target.is_columns_first(w, h) {
        let columns = transpose(pixels, w);
        transpose(&rows_first(&columns, h, &down, &across, round), target.size)
    } else {
        rows_first(pixels, w, &across, &down, round)
    }
}

/// (h, w) to (w, h), where `w` is the length of a row of `pixels`.
fn transpose<T: Copy>(pixels: &[T], w: usize) -> Vec<T> {
    let h = pixels.len() / w;
    (0..w).flat_map(|x| (0..h).map(move |y| pixels[y * w + x])).collect()
}

fn rows_first<T: Copy + Into<f64>, const C: usize>(
    pixels: &[[T; C]],
    w: usize,
    across: &Axis,
    down: &Axis,
    round: impl Fn(f64) -> f64 + Copy,
) -> Vec<[f64; C]> {
    let lanes = across.taps.len() * C;
    let columns = resize_rows(pixels, w, across, &down.used, round);
    let height = columns.len() / lanes.div_ceil(LANES);
    let mut out = vec![[0.0; C]; down.taps.len() * across.taps.len()];
    let flat = out.as_flattened_mut();
    for (group, column) in columns.chunks_exact(height).enumerate() {
        for (row, (first, weights)) in flat.chunks_exact_mut(lanes).zip(&down.taps) {
            let sums = weigh(&column[*first..][..weights.len()], weights).map(round);
            row[group * LANES..].iter_mut().zip(sums).for_each(|(to, v)| *to = v);
        }
    }
    out
}

/// The horizontal pass over `rows`: for each eight columns of the result, all the rows, and at the
/// end some more (copies of the last one) that make their number a multiple of eight.
#[inline(always)]
fn resize_rows<T: Copy + Into<f64>, const C: usize>(
    pixels: &[[T; C]],
    w: usize,
    across: &Axis,
    rows: &Range<usize>,
    round: impl Fn(f64) -> f64 + Copy,
) -> Vec<Lanes> {
    let height = rows.len().next_multiple_of(LANES);
    let groups = (across.taps.len() * C).div_ceil(LANES);
    let mut columns = vec![Lanes::default(); groups * height];
    let width = across.used.len();
    let mut band = vec![Lanes::default(); C * width];
    for top in (0..height).step_by(LANES) {
        let lines: [&[[T; C]]; LANES] = from_fn(|r| {
            let y = rows.start + (top + r).min(rows.len() - 1);
            &pixels[y * w..][across.used.clone()]
        });
        for x in 0..width {
            let samples: [[T; C]; LANES] = from_fn(|r| lines[r][x]);
            for c in 0..C {
                band[c * width + x] = from_fn(|r| samples[r][c].into());
            }
        }
        for (x, (first, weights)) in across.taps.iter().enumerate() {
            for c in 0..C {
                let samples = &band[c * width + first..][..weights.len()];
                let sums = weigh(samples, weights).map(round);
                let lane = x * C + c;
                let column = &mut columns[lane / LANES * height + top..][..LANES];
                column.iter_mut().zip(sums).for_each(|(to, v)| to[lane % LANES] = v);
            }
        }
    }
    columns
}

/// `sum over k of weights[k] * samples[k]`, one tap after another, for each lane.
#[inline(always)]
fn weigh(samples: &[Lanes], weights: &[f64]) -> Lanes {
    let mut sums = Lanes::default();
    for (sample, weight) in samples.iter().zip(weights) {
        for i in 0..LANES {
            sums[i] += sample[i] * weight;
        }
    }
    sums
}

/// Nearest-neighbour resize and crop of one byte per pixel, (h, w) to (size, size).
pub(super) fn nearest(data: &[u8], w: usize, target: &Target) -> Vec<u8> {
    let columns = nearest_axis(w, target.width, target.columns());
    let rows = nearest_axis(data.len() / w, target.height, target.rows());
    let mut out = Vec::with_capacity(target.size * target.size);
    for y in rows {
        // A source position past the last sample is left at 0.
        match data.chunks_exact(w).nth(y) {
            Some(row) => out.extend(columns.iter().map(|&x| row.get(x).copied().unwrap_or(0))),
            None => out.resize(out.len() + columns.len(), 0),
        }
    }
    out
}

/// Source positions of `outputs`. Pillow steps by adding, so its rounding errors add up too.
fn nearest_axis(input: usize, output: usize, outputs: Range<usize>) -> Vec<usize> {
    let step = input as f64 / output as f64;
    let mut at = step * 0.5;
    let mut positions = Vec::with_capacity(outputs.end);
    for _ in 0..outputs.end {
        positions.push(at as usize);
        at += step;
    }
    positions.split_off(outputs.start)
}

//! Pillow's resize, sample for sample: bicubic (a = -0.5, widened when shrinking) and nearest.
//!
//! Separable, and rounded and clipped between the passes; 8-bit samples with weights of 22
//! fractional bits, 16-bit samples in f64 (`Resample.c` of Pillow defines both). Rows come first,
//! except that since Pillow 13 columns do in very tall pictures. Only the outputs inside of the
//! crop window are computed: each depends on its own source samples alone.
//!
//! Speed: a 22-bit weight is split into 11 low bits and the rest, so that both halves and the
//! pixels are i16 and two taps of a sum are one multiply-add instruction of every x86-64. Both
//! passes run the same loop, eight sums at a time: over eight rows, then over eight columns.

use std::array::from_fn;
use std::ops::Range;

/// Fractional bits of an 8-bit picture's weights.
const BITS: u32 = 22;
/// Bits of a weight that go to its low half.
const LOW_BITS: u32 = 11;
/// Sums computed together.
const LANES: usize = 8;

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

    fn transposed(&self) -> Self {
        let Target { width, height, left, top, size } = *self;
        Target { width: height, height: width, left: top, top: left, size }
    }
}

/// (h, w) to (w, h), where `w` is the length of a row of `pixels`.
fn transpose<T: Copy>(pixels: &[T], w: usize) -> Vec<T> {
    let h = pixels.len() / w;
    (0..w).flat_map(|x| (0..h).map(move |y| pixels[y * w + x])).collect()
}

/// Two taps by eight sums.
type Pair = [[i16; 2]; LANES];

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

    /// The same weights in fixed point, in pairs of taps that begin on an even sample.
    fn fixed(&self) -> Vec<FixedTaps> {
        let fixed = |&(first, ref weights): &(usize, Vec<f64>)| {
            let round =
                |w: &f64| (w * f64::from(1 << BITS) + if *w < 0.0 { -0.5 } else { 0.5 }) as i32;
            let mut whole = vec![0; first % 2];
            whole.extend(weights.iter().map(round));
            whole.resize(whole.len().next_multiple_of(2), 0);
            let pairs = whole.as_chunks::<2>().0;
            let low = |&w: &[i32; 2]| w.map(|w| (w & ((1 << LOW_BITS) - 1)) as i16);
            let high = |&w: &[i32; 2]| w.map(|w| (w >> LOW_BITS) as i16);
            FixedTaps {
                first: first / 2,
                low: pairs.iter().map(low).collect(),
                high: pairs.iter().map(high).collect(),
            }
        };
        self.taps.iter().map(fixed).collect()
    }
}

struct FixedTaps {
    /// The first pair of source samples.
    first: usize,
    low: Vec<[i16; 2]>,
    high: Vec<[i16; 2]>,
}

impl FixedTaps {
    /// Eight weighted sums over `pixels`, rounded and clipped to 0..=255.
    #[inline(always)]
    fn weigh(&self, pixels: &[Pair]) -> [i16; LANES] {
        let pixels = &pixels[self.first..self.first + self.low.len()];
        let (mut low, mut high) = ([0i32; LANES], [0i32; LANES]);
        for ((pixel, l), h) in pixels.iter().zip(&self.low).zip(&self.high) {
            for i in 0..LANES {
                low[i] = low[i].wrapping_add(dot(pixel[i], *l));
                high[i] = high[i].wrapping_add(dot(pixel[i], *h));
            }
        }
        from_fn(|i| {
            let sum = (high[i] << LOW_BITS).wrapping_add(low[i]).wrapping_add(1 << (BITS - 1));
            (sum >> BITS).clamp(0, 255) as i16
        })
    }
}

#[inline(always)]
fn dot(a: [i16; 2], b: [i16; 2]) -> i32 {
    i32::from(a[0]) * i32::from(b[0]) + i32::from(a[1]) * i32::from(b[1])
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
    let (pixels, _) = data.as_chunks::<C>();
    let h = pixels.len() / w;
    if target.is_columns_first(w, h) {
        let columns = transpose(pixels, w);
        let out = rows_first::<C>(&columns, h, &target.transposed());
        return transpose(out.as_chunks::<C>().0, target.size).as_flattened().to_vec();
    }
    rows_first::<C>(pixels, w, target)
}

fn rows_first<const C: usize>(pixels: &[[u8; C]], w: usize, target: &Target) -> Vec<u8> {
    let across = Axis::new(w, target.width, target.columns());
    let down = Axis::new(pixels.len() / w, target.height, target.rows());
    let columns = shrink_rows(pixels, w, &across, down.used.clone());
    let row_pairs = down.used.len().div_ceil(2 * (LANES / 2)) * (LANES / 2);
    let lanes = target.size * C;
    let mut out = vec![0; target.size * lanes];
    for (row, taps) in out.chunks_exact_mut(lanes).zip(down.fixed()) {
        for (out, column) in row.chunks_mut(LANES).zip(columns.chunks_exact(row_pairs)) {
            let sums = taps.weigh(column);
            out.iter_mut().zip(sums).for_each(|(o, v)| *o = v as u8);
        }
    }
    out
}

/// The horizontal pass over `rows`: for each eight columns of the result, all pairs of rows.
fn shrink_rows<const C: usize>(
    pixels: &[[u8; C]],
    w: usize,
    across: &Axis,
    rows: Range<usize>,
) -> Vec<Pair> {
    let taps = across.fixed();
    let bands = rows.len().div_ceil(LANES);
    let row_pairs = bands * LANES / 2;
    let mut columns = vec![Pair::default(); (taps.len() * C).div_ceil(LANES) * row_pairs];
    let column_pairs = across.used.len().div_ceil(2);
    let mut band = vec![Pair::default(); C * column_pairs];
    for b in 0..bands {
        for r in 0..LANES {
            // Rows past the end repeat the last one; the vertical pass never reads them.
            let y = (rows.start + b * LANES + r).min(rows.end - 1);
            load_row(&pixels[y * w..][across.used.clone()], r, &mut band, column_pairs);
        }
        for (x, taps) in taps.iter().enumerate() {
            for c in 0..C {
                let sums = taps.weigh(&band[c * column_pairs..][..column_pairs]);
                let (group, lane) = ((x * C + c) / LANES, (x * C + c) % LANES);
                let at = group * row_pairs + b * LANES / 2;
                for (pair, sums) in columns[at..].iter_mut().zip(sums.as_chunks::<2>().0) {
                    pair[lane] = *sums;
                }
            }
        }
    }
    columns
}

/// Spreads one row over lane `r` of `band`, which is (C, column pairs).
#[inline(always)]
fn load_row<const C: usize>(row: &[[u8; C]], r: usize, band: &mut [Pair], column_pairs: usize) {
    let (pairs, rest) = row.as_chunks::<2>();
    for c in 0..C {
        let plane = &mut band[c * column_pairs..][..column_pairs];
        for (to, from) in plane.iter_mut().zip(pairs) {
            to[r] = [i16::from(from[0][c]), i16::from(from[1][c])];
        }
        if let (Some(to), [from]) = (plane.last_mut(), rest) {
            to[r] = [i16::from(from[c]), 0];
        }
    }
}

/// Bicubic resize and crop of 16-bit samples (h, w), stored low byte first, to (size, size).
pub(super) fn bicubic_16(data: &[u8], w: usize, target: &Target) -> Vec<u16> {
    let samples: Vec<u16> = data.as_chunks().0.iter().map(|&v| u16::from_le_bytes(v)).collect();
    let h = samples.len() / w;
    if target.is_columns_first(w, h) {
        let out = rows_first_16(&transpose(&samples, w), h, &target.transposed());
        return transpose(&out, target.size);
    }
    rows_first_16(&samples, w, target)
}

fn rows_first_16(samples: &[u16], w: usize, target: &Target) -> Vec<u16> {
    let across = Axis::new(w, target.width, target.columns());
    let down = Axis::new(samples.len() / w, target.height, target.rows());
    let mut middle = Vec::with_capacity(down.used.len() * target.size);
    for row in samples.chunks_exact(w).take(down.used.end).skip(down.used.start) {
        let row = &row[across.used.clone()];
        middle.extend(across.taps.iter().map(|(first, weights)| {
            let terms = row[*first..].iter().zip(weights);
            round_16(terms.fold(0.0, |sum, (&v, w)| sum + f64::from(v) * w))
        }));
    }
    let mut out = Vec::with_capacity(target.size * target.size);
    for (first, weights) in &down.taps {
        let rows = &middle[first * target.size..];
        out.extend((0..target.size).map(|x| {
            let terms = rows[x..].iter().step_by(target.size).zip(weights);
            round_16(terms.fold(0.0, |sum, (&v, w)| sum + f64::from(v) * w))
        }));
    }
    out
}

/// Half away from zero, clipped.
fn round_16(sum: f64) -> u16 {
    let whole = (sum + if sum >= 0.0 { 0.5 } else { -0.5 }) as i32;
    whole.clamp(0, 0xffff) as u16
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

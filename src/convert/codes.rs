//! Rows of f32 to codes of 8 or 4 bits and their scales, as `kernels/gemm_quantized.h` has them.
//!
//! Each weight takes the code nearest to it under the scale as it is stored, so that rounding the
//! scale to bf16 costs nothing. 8 bits: a row's largest weight is 127 scales. 4 bits: a group's
//! largest weight is code -8, whatever its sign, by a scale of the opposite one; that step is also
//! about the best for normal numbers in groups of 128 (0.33 of their deviation against 0.335), so
//! no better one is searched for.

use crate::dtype::Real;
use crate::ops::INT4_GROUP;
use half::bf16;

/// Bits of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Int8,
    Int4,
}

impl Precision {
    /// `int8` or `int4`.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
        }
    }

    /// Rows of a multiple of so many weights can be stored: whole loads of 16 bytes, whole groups.
    pub const fn multiple(self) -> usize {
        match self {
            Precision::Int8 => 16,
            Precision::Int4 => INT4_GROUP,
        }
    }

    /// Bytes of a row's codes, and its scales.
    pub const fn row(self, cols: usize) -> (usize, usize) {
        match self {
            Precision::Int8 => (cols, 1),
            Precision::Int4 => (cols / 2, cols / INT4_GROUP),
        }
    }
}

/// What was lost: the sum of the squares of the differences, and of the weights.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loss {
    difference: f64,
    weights: f64,
}

impl Loss {
    /// Root of the mean square difference, relative to that of the weights.
    pub(super) fn relative(&self) -> f64 {
        if self.weights > 0.0 { (self.difference / self.weights).sqrt() } else { 0.0 }
    }
}

/// Appends the codes and scales of one row.
pub(super) fn row(
    precision: Precision,
    row: &[f32],
    codes: &mut Vec<u8>,
    scales: &mut Vec<u8>,
    loss: &mut Loss,
) {
    match precision {
        Precision::Int8 => {
            let most = row.iter().fold(0f32, |m, x| m.max(x.abs()));
            let scale = store(most / 127.0, scales);
            let mut block = [0f32; INT4_GROUP];
            for part in row.chunks(block.len()) {
                let block = &mut block[..part.len()];
                nearest(part, scale, (-127.0, 127.0), block, loss);
                codes.extend(block.iter().map(|q| *q as i8 as u8));
            }
        }
        Precision::Int4 => {
            let mut block = [0f32; INT4_GROUP];
            for group in row.chunks_exact(INT4_GROUP) {
                let further = |m: f32, x: &f32| if x.abs() > m.abs() { *x } else { m };
                let scale = store(group.iter().fold(0.0, further) / -8.0, scales);
                nearest(group, scale, (-8.0, 7.0), &mut block, loss);
                for w in block.as_chunks::<8>().0 {
                    let nibble = |i: usize| (w[i] + 8.0) as u32;
                    let places = [0, 2, 4, 6, 1, 3, 5, 7].iter().enumerate();
                    let word = places.fold(0, |word, (at, i)| word | nibble(*i) << (4 * at));
                    codes.extend(word.to_le_bytes());
                }
            }
        }
    }
}

/// Appends a scale, and returns what is read of it.
fn store(scale: f32, scales: &mut Vec<u8>) -> f32 {
    let stored = <bf16 as Real>::from_f32(scale);
    scales.extend(stored.to_le_bytes());
    Real::to_f32(stored)
}

/// The codes from `least` to `most` nearest to `row` / `scale`.
fn nearest(row: &[f32], scale: f32, (least, most): (f32, f32), codes: &mut [f32], loss: &mut Loss) {
    /// 1.5 * 2^23: adding it rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    // Weights that are 0, or so small that their reciprocal is no number.
    let inverse = if scale.abs() >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    let (mut difference, mut weights) = (0f32, 0f32);
    for (q, x) in codes.iter_mut().zip(row) {
        *q = ((x * inverse).clamp(least, most) + ROUND) - ROUND;
        let off = x - *q * scale;
        difference += off * off;
        weights += x * x;
    }
    loss.difference += f64::from(difference);
    loss.weights += f64::from(weights);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized(precision: Precision, x: &[f32]) -> (Vec<u8>, Vec<f32>, Loss) {
        let (mut codes, mut scales, mut loss) = (Vec::new(), Vec::new(), Loss::default());
        row(precision, x, &mut codes, &mut scales, &mut loss);
        assert_eq!((codes.len(), scales.len() / 2), precision.row(x.len()));
        let number = |b: &[u8]| bf16::from_le_bytes([b[0], b[1]]).to_f32();
        (codes, scales.chunks(2).map(number).collect(), loss)
    }

    /// 256 numbers, the largest -3 in the first half and 2 in the second.
    fn numbers() -> Vec<f32> {
        let mut x: Vec<f32> = (0..256).map(|i| (i * 37 % 101) as f32 / 80.0 - 0.6).collect();
        (x[5], x[130]) = (-3.0, 2.0);
        x
    }

    #[test]
    fn every_weight_is_within_half_a_step() {
        let x = numbers();
        let (codes, scales, loss) = quantized(Precision::Int8, &x);
        for (q, x) in codes.iter().zip(&x) {
            assert!((f32::from(*q as i8) * scales[0] - x).abs() <= scales[0] * 0.51);
        }
        assert_eq!(codes[5] as i8, -127);
        assert!(loss.relative() < 0.02, "{loss:?}");

        let (codes, scales, loss) = quantized(Precision::Int4, &x);
        assert_eq!(scales, [0.375, -0.25]);
        for (i, x) in x.iter().enumerate() {
            // Weight i is the nibble [0, 4, 1, 5, 2, 6, 3, 7][i % 8] of its word.
            let place = i % 8 / 2 + i % 2 * 4;
            let nibble = codes[i / 8 * 4 + place / 2] >> (place % 2 * 4) & 15;
            let scale = scales[i / 128];
            let found = (f32::from(nibble) - 8.0) * scale;
            assert!((found - x).abs() <= scale.abs() * 0.51, "{i}: {found} {x}");
        }
        assert!((0.05..0.3).contains(&loss.relative()), "{loss:?}");
    }

    #[test]
    fn zeros_and_tiny_numbers_stay_finite() {
        for x in [0.0, 1e-40, -1e-44, 1e-37] {
            for precision in [Precision::Int8, Precision::Int4] {
                let (_, scales, loss) = quantized(precision, &[x; 128]);
                assert!(scales.iter().all(|s| s.is_finite()) && loss.relative().is_finite());
            }
        }
    }
}

//! One row of logits: its maximum, its softmax normaliser, its best entries.
//!
//! Only IEEE additions, multiplications and comparisons decide anything here, and what is summed
//! are whole numbers, so equal logits give equal results on every machine, in whatever order it
//! adds. Refuses NaN, +inf and rows of -inf.

use crate::{Error, Result};

/// Numbers added side by side, so that a compiler can keep them in one register.
const LANES: usize = 8;
/// Entries looked at together: within a chunk the work is wide, between chunks it may be skipped.
const CHUNK: usize = 512;

/// What log-softmax needs to know of a row: log p(i) = (x_i - maximum) - log_sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub maximum: f32,
    /// The first index that has it.
    pub argmax: u32,
    /// ln sum_i exp(x_i - maximum), at least 0.
    pub log_sum: f32,
}

impl Summary {
    /// Summarises `logits` (V) f32.
    ///
    /// # Errors
    /// Empty rows, NaN, +inf, nothing but -inf.
    pub fn of(logits: &[f32]) -> Result<Summary> {
        let (maximum, argmax) = first_maximum(logits).map_err(|e| e.error(logits.len()))?;
        Ok(Summary { maximum, argmax, log_sum: log_sum(sum_of_weights(logits, maximum)) })
    }

    /// The log-probability of an entry with logit `x`.
    pub fn logprob(&self, x: f32) -> f32 {
        (x - self.maximum) - self.log_sum
    }
}

/// What makes a row unusable: a number that is NaN or +inf, or the first of nothing but -inf.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Unusable {
    pub value: f32,
    pub token: u32,
}

impl Unusable {
    /// The error of a row of `vocabulary` entries.
    pub fn error(self, vocabulary: usize) -> Error {
        let found = match self.value == f32::NEG_INFINITY || vocabulary == 0 {
            true => format!("{vocabulary} times -inf"),
            false => format!("{} at token {}", self.value, self.token),
        };
        Error::invalid("logits", "finite numbers or -inf, not all -inf", found)
    }
}

/// The largest of `logits` and the first index that has it.
pub(super) fn first_maximum(logits: &[f32]) -> std::result::Result<(f32, u32), Unusable> {
    let (mut maximum, mut has_nan, mut place) = (f32::NEG_INFINITY, false, 0);
    for (i, chunk) in logits.chunks(CHUNK).enumerate() {
        has_nan |= chunk.iter().fold(false, |found, x| found | x.is_nan());
        let most = largest(chunk);
        if most > maximum {
            (maximum, place) = (most, i * CHUNK);
        }
    }
    if has_nan || !maximum.is_finite() {
        let token = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY).unwrap_or(0);
        let value = logits.get(token).copied().unwrap_or(f32::NEG_INFINITY);
        return Err(Unusable { value, token: token as u32 });
    }
    let within = logits[place..].iter().position(|&x| x == maximum).unwrap_or(0);
    // Of 0 and -0, which are equals, the one that is there.
    Ok((logits[place + within], (place + within) as u32))
}

/// The largest entry; -inf if there is none. NaN is passed over.
fn largest(chunk: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut groups = chunk.chunks_exact(LANES);
    for group in &mut groups {
        for lane in 0..LANES {
            lanes[lane] = if group[lane] > lanes[lane] { group[lane] } else { lanes[lane] };
        }
    }
    let rest = groups.remainder().iter().copied();
    lanes.into_iter().chain(rest).fold(f32::NEG_INFINITY, f32::max)
}

/// 1 as a weight.
pub(super) const ONE: f32 = (1u64 << 40) as f32;

/// exp(y) for y <= 0 in whole units of 2^-40, rounded down. As whole numbers weights add up to the
/// same sum in any order, and 2^23 of them fit.
pub(super) fn weight(y: f32) -> u64 {
    (exp_nonpositive(y) * ONE) as i64 as u64
}

/// The sum of the weights of all x - maximum.
pub(super) fn sum_of_weights(logits: &[f32], maximum: f32) -> u64 {
    logits.iter().map(|&x| weight(x - maximum)).sum()
}

/// ln of a sum of weights.
pub(super) fn log_sum(weights: u64) -> f32 {
    (weights as f64 / f64::from(ONE)).ln() as f32
}

/// exp(x) for x <= 0, within 2e-7 relative; below -87, where the true value is under 2e-38, it
/// stays at exp(-87). exp(0) is exactly 1.
///
/// Written out because the system's `exp` differs between systems, and because a compiler can
/// make this one wide: exp(x) = 2^k exp(r), k = round(x / ln 2), |r| <= ln 2 / 2, Taylor in r.
#[inline]
fn exp_nonpositive(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to an integer, which then sits in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few enough bits for k * LN2_HIGH to be exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    let scale = (shifted.to_bits() << 23).wrapping_add(127 << 23);
    p * f32::from_bits(scale)
}

/// The n best of the entries offered so far, best first; of equal entries the earlier offered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Best {
    limit: usize,
    items: Vec<(f32, u32)>,
}

impl Best {
    /// Forgets everything and keeps `limit` entries from now on.
    pub fn restart(&mut self, limit: usize) {
        self.limit = limit;
        self.items.clear();
        self.items.reserve(limit);
    }

    /// Offers `scores`, numbered from `first`.
    pub fn offer(&mut self, scores: &[f32], first: u32) {
        if self.limit == 0 {
            return;
        }
        for (chunk, start) in scores.chunks(CHUNK).zip((first..).step_by(CHUNK)) {
            if self.items.len() < self.limit || largest(chunk) > self.worst() {
                self.offer_each(chunk, start);
            }
        }
    }

    fn offer_each(&mut self, scores: &[f32], first: u32) {
        for (&score, index) in scores.iter().zip(first..) {
            if self.items.len() < self.limit || score > self.worst() {
                let place = self.items.partition_point(|item| item.0 >= score);
                self.items.truncate(self.limit - 1);
                self.items.insert(place, (score, index));
            }
        }
    }

    pub fn items(&self) -> &[(f32, u32)] {
        &self.items
    }

    fn worst(&self) -> f32 {
        self.items.last().map_or(f32::NEG_INFINITY, |item| item.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exponential_is_close_everywhere() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp_nonpositive(x)) - exact).abs() / exact);
        }
        assert!(worst < 2e-7, "{worst}");
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert!(exp_nonpositive(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn unusable_rows_are_named() {
        let text = |row: &[f32]| Summary::of(row).unwrap_err().to_string();
        let inf = f32::INFINITY;
        assert!(text(&[0.0, 1.0, f32::NAN]).ends_with("found NaN at token 2"));
        let mut long = vec![0.0; 100];
        long[13] = f32::NAN;
        assert!(text(&long).ends_with("found NaN at token 13"));
        assert!(text(&[0.0, inf]).ends_with("found inf at token 1"));
        assert!(text(&[-inf; 9]).ends_with("found 9 times -inf"));
        assert!(text(&[]).ends_with("found 0 times -inf"));
    }

    #[test]
    fn weights_are_whole_and_of_the_best_one() {
        assert_eq!((weight(0.0), weight(-0.0)), (1 << 40, 1 << 40));
        assert_eq!((weight(-87.0), weight(f32::NEG_INFINITY)), (0, 0));
        let third = weight(-(3.0f32.ln())) as f64 / f64::from(ONE);
        assert!((third - 1.0 / 3.0).abs() < 1e-7, "{third}");
    }

    #[test]
    fn of_equal_maxima_the_first_counts() {
        let mut row = vec![0.0; 2000];
        (row[1300], row[1711], row[1712], row[1999]) = (1.0, 2.0, 2.0, 2.0);
        assert_eq!(first_maximum(&row).unwrap(), (2.0, 1711));
        row[700] = 2.0;
        assert_eq!(first_maximum(&row).unwrap(), (2.0, 700));
    }

    proptest! {
        #[test]
        fn summary_agrees_with_f64(row in prop::collection::vec(-80.0f32..80.0, 1..1500)) {
            let s = Summary::of(&row).unwrap();
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|&x| (f64::from(x) - f64::from(top)).exp()).sum();
            prop_assert_eq!(s.maximum, top);
            prop_assert!((f64::from(s.log_sum) - sum.ln()).abs() < 1e-6);
        }

        #[test]
        fn best_is_the_head_of_a_stable_sort(
            scores in prop::collection::vec(-3i8..3, 0..1200), limit in 0usize..9,
            cut in 0usize..1200,
        ) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let (a, b) = scores.split_at(cut.min(scores.len()));
            let mut best = Best::default();
            best.restart(limit);
            best.offer(a, 0);
            best.offer(b, a.len() as u32);
            let mut all: Vec<_> = scores.iter().zip(0u32..).map(|(&s, i)| (s, i)).collect();
            all.sort_by(|x, y| y.0.total_cmp(&x.0));
            all.truncate(limit);
            prop_assert_eq!(best.items(), &all[..]);
        }
    }
}

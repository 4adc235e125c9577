//! Logits to the next token: greedy, or drawn from the likelier part of the distribution.
//!
//! Rules and order are those of `generate` in transformers 4.28 - 4.33: [`Processors`], then, when
//! sampling, temperature, `top_k`, `top_p`, and `min_p` (which later releases added after it). The
//! random stream is this crate's own: ChaCha8 keyed with the seed, one 64-bit number per token,
//! inverse distribution function over f64 sums in a fixed order. Equal logits and equal seeds give
//! equal tokens on every machine.

use super::logits::{Best, Summary, exp_nonpositive, first_maximum};
use super::options::GenerateOptions;
use super::processors::Processors;
use crate::Result;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub id: u32,
    /// ln p(id) under the model itself: log-softmax of the logits as they came, before penalties,
    /// suppression, temperature or truncation.
    pub logprob: f32,
    /// The `logprobs` most probable tokens with ln p, best first, of the same distribution; of
    /// equals the lowest id first.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one answer; owns its random numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    processors: Processors,
    logprobs: usize,
    draw: Option<Draw>,
    /// Processed scores (V), reused from token to token.
    scores: Vec<f32>,
    best: Best,
}

impl Sampler {
    /// A sampler for one answer. `eos` ends it (for `min_new_tokens`); `suppress` is never chosen.
    pub fn new(options: &GenerateOptions, eos: &[u32], suppress: &[u32]) -> Self {
        Sampler {
            processors: Processors::new(options, eos, suppress),
            logprobs: options.logprobs,
            draw: options.is_sampling().then(|| Draw::new(options)),
            scores: Vec::new(),
            best: Best::default(),
        }
    }

    /// The token after `history` (prompt and answer so far, of which the last `generated` are the
    /// answer), given `logits` (V) f32 of its place. Greedy: the first maximum of the processed
    /// scores. Allocates only for [`Choice::top`] once the first token is out.
    ///
    /// # Errors
    /// NaN or +inf among the logits; nothing left to choose; a token outside the vocabulary.
    pub fn next(&mut self, logits: &[f32], history: &[u32], generated: usize) -> Result<Choice> {
        let model = Summary::of(logits)?;
        let id = self.choose(&model, logits, history, generated)?;
        self.best.restart(self.logprobs);
        self.best.offer(logits, 0);
        let top = self.best.items().iter().map(|&(x, id)| (id, model.logprob(x))).collect();
        Ok(Choice { id, logprob: model.logprob(logits[id as usize]), top })
    }

    fn choose(
        &mut self,
        model: &Summary,
        logits: &[f32],
        history: &[u32],
        generated: usize,
    ) -> Result<u32> {
        let is_idle = self.processors.is_idle(generated);
        if !is_idle {
            self.scores.clear();
            self.scores.extend_from_slice(logits);
            self.processors.apply(&mut self.scores, history, generated)?;
        }
        let scores = if is_idle { logits } else { &self.scores[..] };
        let (maximum, argmax) = if is_idle {
            (model.maximum, model.argmax)
        } else {
            first_maximum(scores).map_err(|e| e.within("after penalties and suppression"))?
        };
        Ok(match &mut self.draw {
            None => argmax,
            Some(draw) => draw.next(scores, maximum),
        })
    }
}

/// Draws a token from the part of a distribution that is kept.
#[derive(Clone, Debug)]
struct Draw {
    temperature: f32,
    top_k: usize,
    top_p: f64,
    min_p: f64,
    random: ChaCha8Rng,
    kept: Kept,
    /// Running sums of the kept weights.
    sums: Vec<f64>,
}

impl Draw {
    fn new(options: &GenerateOptions) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&options.seed.to_le_bytes());
        Draw {
            temperature: options.temperature as f32,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            random: ChaCha8Rng::from_seed(key),
            kept: Kept::default(),
            sums: Vec::new(),
        }
    }

    /// A token drawn from `scores` (V), whose largest is `maximum`.
    fn next(&mut self, scores: &[f32], maximum: f32) -> u32 {
        self.keep(scores, maximum);
        self.sums.clear();
        let mut total = 0.0;
        self.sums.extend(self.kept.entries.iter().map(|&entry| {
            total += weight(entry);
            total
        }));
        let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let place = self.sums.partition_point(|&sum| sum <= uniform * total);
        id(self.kept.entries[place.min(self.sums.len() - 1)])
    }

    /// Leaves in `kept` the tokens that may be drawn; the most probable one always is.
    fn keep(&mut self, scores: &[f32], maximum: f32) {
        self.kept.all(scores, maximum, self.temperature);
        if self.top_k != 0 {
            self.kept.top_k(self.top_k);
        }
        if self.top_p < 1.0 {
            self.kept.top_p(self.top_p);
        }
        if self.min_p > 0.0 {
            self.kept.min_p(self.min_p);
        }
    }
}

/// Tokens that may be drawn, each one number: (bits of |y|) << 32 | id, where y <= 0 is the score
/// relative to the best and divided by the temperature. Ascending numbers are descending scores,
/// and ascending ids among equals, so any sorting algorithm gives the same order.
#[derive(Clone, Debug, Default)]
struct Kept {
    entries: Vec<u64>,
}

/// exp(y), the unnormalised probability of an entry; 1 for the best.
fn weight(entry: u64) -> f64 {
    f64::from(exp_nonpositive(-f32::from_bits((entry >> 32) as u32)))
}

fn id(entry: u64) -> u32 {
    entry as u32
}

impl Kept {
    /// All tokens with a score above -inf, by id.
    fn all(&mut self, scores: &[f32], maximum: f32, temperature: f32) {
        self.entries.clear();
        self.entries.extend(scores.iter().zip(0u64..).filter_map(|(&score, id)| {
            let y = (score - maximum) / temperature;
            (y > f32::NEG_INFINITY).then(|| u64::from(y.abs().to_bits()) << 32 | id)
        }));
    }

    /// The `k` best and all that tie with the last of them, best first.
    fn top_k(&mut self, k: usize) {
        if k >= self.entries.len() {
            return;
        }
        let (_, &mut last, _) = self.entries.select_nth_unstable(k - 1);
        let mut end = k;
        for i in k..self.entries.len() {
            if self.entries[i] >> 32 == last >> 32 {
                self.entries.swap(end, i);
                end += 1;
            }
        }
        self.entries.truncate(end);
        self.entries.sort_unstable();
    }

    /// The fewest best whose probabilities reach `p`, best first: a token stays if those before
    /// it hold less than `p` (the same cut as dropping, from the worst up, while the sum is at
    /// most 1 - p). Sorts no further than needed.
    fn top_p(&mut self, p: f64) {
        let total: f64 = self.entries.iter().map(|&entry| weight(entry)).sum();
        let (mut sorted, mut before) = (0, 0.0);
        while sorted < self.entries.len() {
            let end = (sorted * 4).max(64).min(self.entries.len());
            if end < self.entries.len() {
                self.entries[sorted..].select_nth_unstable(end - sorted);
            }
            self.entries[sorted..end].sort_unstable();
            for i in sorted..end {
                if i > 0 && before >= p * total {
                    self.entries.truncate(i);
                    return;
                }
                before += weight(self.entries[i]);
            }
            sorted = end;
        }
    }

    /// Those at least `p` times as probable as the best.
    fn min_p(&mut self, p: f64) {
        self.entries.retain(|&entry| weight(entry) >= p);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampling(change: impl FnOnce(&mut GenerateOptions)) -> GenerateOptions {
        let mut options = GenerateOptions { temperature: 1.0, ..Default::default() };
        change(&mut options);
        options
    }

    /// The ids that may be drawn, in ascending order.
    fn kept(scores: &[f32], options: &GenerateOptions) -> Vec<u32> {
        let mut draw = Draw::new(options);
        draw.keep(scores, first_maximum(scores).unwrap().0);
        let mut ids: Vec<u32> = draw.kept.entries.iter().map(|&entry| id(entry)).collect();
        ids.sort_unstable();
        ids
    }

    fn ln(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn greedy_takes_the_first_maximum_and_reports_the_model() {
        let options = GenerateOptions { logprobs: 3, ..Default::default() };
        let logits = ln(&[0.1, 0.4, 0.4, 0.1]);
        let choice = Sampler::new(&options, &[], &[]).next(&logits, &[], 0).unwrap();
        assert_eq!(choice.id, 1);
        assert!((choice.logprob - 0.4f32.ln()).abs() < 1e-6);
        assert_eq!(choice.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 0]);
        assert!((choice.top[2].1 - 0.1f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn logprobs_are_of_the_model_even_when_its_favourite_is_suppressed() {
        let options = GenerateOptions { logprobs: 1, ..Default::default() };
        let logits = ln(&[0.1, 0.6, 0.3]);
        let choice = Sampler::new(&options, &[], &[1]).next(&logits, &[], 0).unwrap();
        assert_eq!(choice.id, 2);
        assert!((choice.logprob - 0.3f32.ln()).abs() < 1e-6);
        assert_eq!(choice.top[0].0, 1);
    }

    #[test]
    fn ties_with_the_last_of_top_k_are_kept() {
        let scores = [1.0, 3.0, 2.0, 2.0, 0.0, 2.0];
        assert_eq!(kept(&scores, &sampling(|o| o.top_k = 1)), [1]);
        assert_eq!(kept(&scores, &sampling(|o| o.top_k = 2)), [1, 2, 3, 5]);
        assert_eq!(kept(&scores, &sampling(|o| o.top_k = 5)), [0, 1, 2, 3, 5]);
        assert_eq!(kept(&scores, &sampling(|o| o.top_k = 100)), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn top_p_cuts_where_the_mass_before_reaches_p() {
        let scores = ln(&[0.05, 0.5, 0.15, 0.3]);
        assert_eq!(kept(&scores, &sampling(|o| o.top_p = 0.0)), [1]);
        assert_eq!(kept(&scores, &sampling(|o| o.top_p = 0.49)), [1]);
        assert_eq!(kept(&scores, &sampling(|o| o.top_p = 0.51)), [1, 3]);
        assert_eq!(kept(&scores, &sampling(|o| o.top_p = 0.81)), [1, 2, 3]);
        assert_eq!(kept(&scores, &sampling(|o| o.top_p = 1.0)), [0, 1, 2, 3]);
        let halves = [0.0, f32::ln(0.5), f32::ln(0.5)];
        assert_eq!(kept(&halves, &sampling(|o| o.top_p = 0.5)), [0]);
    }

    #[test]
    fn top_p_sees_what_top_k_left() {
        // Of all: .4 .3 .2 .1; of the best two, renormalised: 4/7 and 3/7.
        let scores = ln(&[0.4, 0.3, 0.2, 0.1]);
        assert_eq!(kept(&scores, &sampling(|o| o.top_p = 0.45)), [0, 1]);
        assert_eq!(kept(&scores, &sampling(|o| (o.top_k, o.top_p) = (2, 0.45))), [0]);
    }

    #[test]
    fn min_p_is_relative_to_the_best_after_temperature() {
        let scores = ln(&[0.5, 0.26, 0.24]);
        assert_eq!(kept(&scores, &sampling(|o| o.min_p = 0.5)), [0, 1]);
        assert_eq!(kept(&scores, &sampling(|o| o.min_p = 1.0)), [0]);
        // At temperature 2 the ratios are square roots: 0.72 and 0.69.
        assert_eq!(kept(&scores, &sampling(|o| (o.temperature, o.min_p) = (2.0, 0.5))), [0, 1, 2]);
    }

    #[test]
    fn nothing_to_choose_is_an_error() {
        for options in [GenerateOptions::default(), sampling(|_| ())] {
            let mut sampler = Sampler::new(&options, &[], &[0, 1]);
            let e = sampler.next(&[0.0, 0.0], &[], 0).unwrap_err().to_string();
            assert!(e.starts_with("after penalties and suppression: logits"), "{e}");
            assert!(sampler.next(&[0.0, f32::NAN, 1.0], &[], 0).is_err());
            assert!(sampler.next(&[f32::NEG_INFINITY; 3], &[], 0).is_err());
        }
    }

    #[test]
    fn the_first_tokens_of_a_seed_never_change() {
        let logits = [0.0f32; 1000];
        let mut sampler = Sampler::new(&sampling(|o| o.seed = 42), &[], &[]);
        let ids: Vec<u32> = (0..6).map(|_| sampler.next(&logits, &[], 0).unwrap().id).collect();
        assert_eq!(ids, FIRST_OF_42);
    }

    /// floor(1000 u) of the first numbers u of ChaCha8 with key 42, 0, 0, ...
    const FIRST_OF_42: [u32; 6] = [348, 285, 493, 367, 825, 67];

    proptest! {
        #[test]
        fn truncation_agrees_with_its_definition(
            scores in prop::collection::vec(-6i8..6, 1..300), divisor in 1u8..9,
            k in 0usize..40, p in 0.0f64..1.2, least in 0.0f64..0.5,
        ) {
            let scores: Vec<f32> =
                scores.into_iter().map(|s| f32::from(s) / f32::from(divisor)).collect();
            let (top_p, min_p) = (p.min(1.0), if least < 0.1 { 0.0 } else { least });
            let options = sampling(|o| (o.top_k, o.top_p, o.min_p) = (k, top_p, min_p));
            let ids = kept(&scores, &options);
            prop_assert!(!ids.is_empty());
            prop_assert!(ids.contains(&first_maximum(&scores).unwrap().1));
            // Definition, over a full sort in f64.
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            if k != 0 && k < order.len() {
                let bar = scores[order[k - 1]];
                order.retain(|&i| scores[i] >= bar);
            }
            let mass = |order: &[usize]| -> f64 {
                order.iter().map(|&i| f64::from(scores[i]).exp()).sum()
            };
            let total = mass(&order);
            let share = |n: usize| mass(&order[..n]) / total;
            // A cut within rounding of a boundary may fall on either side of it.
            prop_assume!((1..order.len()).all(|n| (share(n) - top_p).abs() > 1e-6));
            let n = (1..order.len()).find(|&n| share(n) >= top_p).unwrap_or(order.len());
            order.truncate(n);
            let ratio = |i: usize| f64::from(scores[i] - scores[order[0]]).exp();
            prop_assume!(order.iter().all(|&i| (ratio(i) - min_p).abs() > 1e-6));
            let mut expected: Vec<u32> =
                order.iter().filter(|&&i| ratio(i) >= min_p).map(|&i| i as u32).collect();
            expected.sort_unstable();
            prop_assert_eq!(ids, expected);
        }
    }
}

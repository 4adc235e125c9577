//! How the tokens of one answer are chosen: greedy, or drawn from the likelier part.
//!
//! Rules and order are those of `generate` in transformers 4.28 - 4.33: [`Processors`], then, when
//! sampling, temperature, `top_k`, `top_p`, and `min_p` (which later releases added after it). The
//! random stream is this crate's own: ChaCha8 keyed with the seed, one 64-bit number per token.
//! The choice itself is a kernel, [`crate::ops::sampling`], whose sums are of whole numbers: equal
//! logits and equal seeds give equal tokens on every device.

use super::options::GenerateOptions;
use super::processors::Processors;
use crate::Result;
use crate::ops::{Choice, Draw, choose};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Says how the tokens of one answer are chosen; owns its random numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    processors: Processors,
    temperature: f32,
    top_k: usize,
    top_p: f64,
    min_p: f64,
    logprobs: usize,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler for one answer. `eos` ends it (for `min_new_tokens`); `suppress` is never chosen.
    pub fn new(options: &GenerateOptions, eos: &[u32], suppress: &[u32]) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&options.seed.to_le_bytes());
        Sampler {
            processors: Processors::new(options, eos, suppress),
            temperature: options.temperature as f32,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            logprobs: options.logprobs,
            random: ChaCha8Rng::from_seed(key),
        }
    }

    /// How to choose the token after `history` (prompt and answer so far, of which the last
    /// `generated` are the answer) from `row` of logits over `vocabulary` tokens. Takes a random
    /// number if it is to be drawn.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn draw(
        &mut self,
        row: usize,
        history: &[u32],
        generated: usize,
        vocabulary: usize,
    ) -> Result<Draw<'_>> {
        let is_greedy = self.temperature == 0.0;
        Ok(Draw {
            row,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            uniform: if is_greedy { 0 } else { self.random.next_u64() },
            alternatives: self.logprobs,
            edits: self.processors.edits(history, generated, vocabulary)?,
        })
    }

    /// True if it matters for a choice which tokens came before, not only how many.
    pub fn minds_history(&self) -> bool {
        self.processors.mind_history()
    }

    /// The token after `history`, as [`Sampler::draw`] has it, given `logits` (V) f32 of its place
    /// in this process's memory.
    ///
    /// # Errors
    /// NaN or +inf among the logits; nothing left to choose; a token outside the vocabulary.
    pub fn next(&mut self, logits: &[f32], history: &[u32], generated: usize) -> Result<Choice> {
        choose(logits, &self.draw(0, history, generated, logits.len())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(change: impl FnOnce(&mut GenerateOptions)) -> GenerateOptions {
        let mut options = GenerateOptions { temperature: 1.0, ..Default::default() };
        change(&mut options);
        options
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
}

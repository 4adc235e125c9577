//! Rules that change the scores of tokens before one is chosen, whoever chooses.
//!
//! The same rules in the same order as `LogitsProcessorList` of transformers 4.28 - 4.33:
//! repetition penalty, repeated n-grams, least number of new tokens, suppressed tokens.

use super::options::GenerateOptions;
use crate::{Error, Result};

/// The rules of one request; the sampler applies them to logits, beam search to log-probabilities.
#[derive(Clone, Debug)]
pub struct Processors {
    repetition_penalty: f32,
    no_repeat_ngram_size: usize,
    min_new_tokens: usize,
    eos: Vec<u32>,
    suppress: Vec<u32>,
    /// For each token the last round in which its score was penalised (V), once a round needs it.
    penalised: Vec<u32>,
    round: u32,
}

impl Processors {
    /// The rules that `options` asks for. `eos` ends an answer; `suppress` is never generated.
    pub fn new(options: &GenerateOptions, eos: &[u32], suppress: &[u32]) -> Self {
        Processors {
            repetition_penalty: options.repetition_penalty as f32,
            no_repeat_ngram_size: options.no_repeat_ngram_size,
            min_new_tokens: options.min_new_tokens,
            eos: eos.to_vec(),
            suppress: suppress.to_vec(),
            penalised: Vec::new(),
            round: 0,
        }
    }

    /// The tokens that end an answer.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// True if [`Processors::apply`] would change nothing with `generated` new tokens.
    pub fn is_idle(&self, generated: usize) -> bool {
        self.repetition_penalty == 1.0
            && self.no_repeat_ngram_size == 0
            && (self.eos.is_empty() || generated >= self.min_new_tokens)
            && self.suppress.is_empty()
    }

    /// Changes `scores` (V) f32 of the token after `history` (prompt and answer so far), of which
    /// the last `generated` are the answer.
    ///
    /// # Errors
    /// A token of the history or of the rules that `scores` has no entry for.
    pub fn apply(&mut self, scores: &mut [f32], history: &[u32], generated: usize) -> Result<()> {
        if self.repetition_penalty != 1.0 {
            self.penalise_repetition(scores, history)?;
        }
        if self.no_repeat_ngram_size != 0 {
            ban_repeated_ngrams(scores, history, self.no_repeat_ngram_size)?;
        }
        if generated < self.min_new_tokens {
            ban("eos", scores, &self.eos)?;
        }
        ban("suppress", scores, &self.suppress)
    }

    /// score < 0 ? score * penalty : score / penalty, once for each token of `history`.
    fn penalise_repetition(&mut self, scores: &mut [f32], history: &[u32]) -> Result<()> {
        self.round = self.round.wrapping_add(1);
        if self.penalised.len() != scores.len() || self.round == 0 {
            self.penalised.clear();
            self.penalised.resize(scores.len(), 0);
            self.round = 1;
        }
        for &id in history {
            let score = entry("history", scores, id)?;
            let last = &mut self.penalised[id as usize];
            if std::mem::replace(last, self.round) == self.round {
                continue;
            }
            if *score < 0.0 {
                *score *= self.repetition_penalty;
            } else {
                *score /= self.repetition_penalty;
            }
        }
        Ok(())
    }
}

/// Forbids every token that would complete an n-gram which `history` already holds.
fn ban_repeated_ngrams(scores: &mut [f32], history: &[u32], n: usize) -> Result<()> {
    let Some(start) = (history.len() + 1).checked_sub(n) else { return Ok(()) };
    let prefix = &history[start..];
    for ngram in history.windows(n) {
        if ngram[..n - 1] == *prefix {
            *entry("history", scores, ngram[n - 1])? = f32::NEG_INFINITY;
        }
    }
    Ok(())
}

fn ban(who: &str, scores: &mut [f32], ids: &[u32]) -> Result<()> {
    for &id in ids {
        *entry(who, scores, id)? = f32::NEG_INFINITY;
    }
    Ok(())
}

fn entry<'a>(who: &str, scores: &'a mut [f32], id: u32) -> Result<&'a mut f32> {
    let vocabulary = scores.len();
    scores
        .get_mut(id as usize)
        .ok_or_else(|| Error::invalid(who, format!("a token below {vocabulary}"), id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BANNED: f32 = f32::NEG_INFINITY;

    fn with(change: impl FnOnce(&mut GenerateOptions)) -> Processors {
        let mut options = GenerateOptions::default();
        change(&mut options);
        Processors::new(&options, &[4], &[])
    }

    #[test]
    fn a_penalty_moves_both_signs_down_and_only_once() {
        let mut scores = [2.0, -2.0, 0.0, 3.0, -3.0];
        let mut rules = with(|o| o.repetition_penalty = 2.0);
        rules.apply(&mut scores, &[0, 1, 2, 1, 0, 0], 0).unwrap();
        assert_eq!(scores, [1.0, -4.0, 0.0, 3.0, -3.0]);
        rules.apply(&mut scores, &[3], 0).unwrap();
        assert_eq!(scores, [1.0, -4.0, 0.0, 1.5, -3.0]);
    }

    #[test]
    fn a_penalty_below_one_is_a_reward() {
        let mut scores = [2.0, -2.0];
        with(|o| o.repetition_penalty = 0.5).apply(&mut scores, &[0, 1], 0).unwrap();
        assert_eq!(scores, [4.0, -1.0]);
    }

    #[test]
    fn rounds_survive_their_counter_wrapping() {
        let mut rules = with(|o| o.repetition_penalty = 2.0);
        rules.apply(&mut [8.0; 5], &[3], 0).unwrap();
        rules.round = u32::MAX;
        let mut scores = [8.0; 5];
        rules.apply(&mut scores, &[3, 3], 0).unwrap();
        assert_eq!(scores, [8.0, 8.0, 8.0, 4.0, 8.0]);
    }

    #[test]
    fn ngrams_do_not_come_twice() {
        let banned = |history: &[u32], n| {
            let mut scores = [0.0; 5];
            with(|o| o.no_repeat_ngram_size = n).apply(&mut scores, history, 0).unwrap();
            (0..5).filter(|&i| scores[i] == BANNED).collect::<Vec<_>>()
        };
        assert_eq!(banned(&[1, 2, 3, 1, 2, 0, 1, 2], 3), [0, 3]);
        assert_eq!(banned(&[1, 2, 3, 1, 2, 0, 1, 2], 2), [0, 3]);
        assert_eq!(banned(&[1, 2, 1], 1), [1, 2]);
        assert_eq!(banned(&[1, 1], 2), [1]);
        assert!(banned(&[1, 2], 3).is_empty());
        assert!(banned(&[1], 3).is_empty());
        assert!(banned(&[], 1).is_empty());
        assert!(banned(&[], 2).is_empty());
    }

    #[test]
    fn an_answer_may_not_end_too_soon_nor_hold_suppressed_tokens() {
        let options = GenerateOptions { min_new_tokens: 2, ..Default::default() };
        let mut rules = Processors::new(&options, &[3, 4], &[0]);
        let mut scores = [0.0; 5];
        rules.apply(&mut scores, &[1, 1], 1).unwrap();
        assert_eq!(scores, [BANNED, 0.0, 0.0, BANNED, BANNED]);
        let mut scores = [0.0; 5];
        rules.apply(&mut scores, &[1, 1], 2).unwrap();
        assert_eq!(scores, [BANNED, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn idle_means_that_nothing_changes() {
        assert!(with(|_| ()).is_idle(0));
        assert!(!with(|o| o.min_new_tokens = 1).is_idle(0));
        assert!(with(|o| o.min_new_tokens = 1).is_idle(1));
        assert!(!with(|o| o.repetition_penalty = 1.1).is_idle(9));
        assert!(!with(|o| o.no_repeat_ngram_size = 3).is_idle(9));
        assert!(!Processors::new(&GenerateOptions::default(), &[], &[1]).is_idle(9));
    }

    #[test]
    fn tokens_without_a_score_are_errors() {
        let mut rules = with(|o| o.repetition_penalty = 1.1);
        let e = rules.apply(&mut [0.0; 5], &[5], 0).unwrap_err().to_string();
        assert_eq!(e, "history: expected a token below 5, found 5");
        let mut rules = Processors::new(&GenerateOptions::default(), &[], &[9]);
        let e = rules.apply(&mut [0.0; 5], &[], 0).unwrap_err().to_string();
        assert_eq!(e, "suppress: expected a token below 5, found 9");
    }
}

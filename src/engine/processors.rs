//! Rules that change the scores of tokens before one is chosen, whoever chooses.
//!
//! The same rules in the same order as `LogitsProcessorList` of transformers 4.28 - 4.33:
//! repetition penalty, repeated n-grams, least number of new tokens, suppressed tokens.

use super::options::GenerateOptions;
use crate::ops::Edits;
use crate::{Error, Result};

/// The rules of one request; the sampler applies them to logits, beam search to log-probabilities.
#[derive(Clone, Debug)]
pub struct Processors {
    repetition_penalty: f32,
    no_repeat_ngram_size: usize,
    min_new_tokens: usize,
    eos: Vec<u32>,
    suppress: Vec<u32>,
    /// Tokens whose scores are penalised, ascending, and those that are forbidden, next time.
    penalised: Vec<i32>,
    banned: Vec<i32>,
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
            banned: Vec::new(),
        }
    }

    /// The tokens that end an answer.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// True if the [`Processors::edits`] depend on which tokens the history has.
    pub fn mind_history(&self) -> bool {
        self.repetition_penalty != 1.0 || self.no_repeat_ngram_size != 0
    }

    /// What the rules do to the scores (V = `vocabulary`) of the token after `history` (prompt and
    /// answer so far), of which the last `generated` are the answer. A penalty counts once for each
    /// token of the history.
    ///
    /// # Errors
    /// A token of the history or of the rules that is outside the vocabulary.
    pub fn edits(
        &mut self,
        history: &[u32],
        generated: usize,
        vocabulary: usize,
    ) -> Result<Edits<'_>> {
        self.penalised.clear();
        self.banned.clear();
        if self.repetition_penalty != 1.0 {
            add("history", &mut self.penalised, history, vocabulary)?;
            self.penalised.sort_unstable();
            self.penalised.dedup();
        }
        if self.no_repeat_ngram_size != 0 {
            let last = repeated_ngrams(history, self.no_repeat_ngram_size);
            add("history", &mut self.banned, last, vocabulary)?;
        }
        if generated < self.min_new_tokens {
            add("eos", &mut self.banned, &self.eos, vocabulary)?;
        }
        add("suppress", &mut self.banned, &self.suppress, vocabulary)?;
        let penalty = self.repetition_penalty;
        Ok(Edits { penalty, penalised: &self.penalised, banned: &self.banned })
    }

    /// Makes the [`Processors::edits`] of `scores` (V) f32.
    ///
    /// # Errors
    /// As there.
    pub fn apply(&mut self, scores: &mut [f32], history: &[u32], generated: usize) -> Result<()> {
        self.edits(history, generated, scores.len())?.apply(scores);
        Ok(())
    }
}

/// Every token that would complete an n-gram which `history` already holds.
fn repeated_ngrams(history: &[u32], n: usize) -> impl Iterator<Item = &u32> {
    let prefix = (history.len() + 1).checked_sub(n).map(|start| &history[start..]);
    let ngrams = history.windows(n).filter(move |ngram| prefix == Some(&ngram[..n - 1]));
    ngrams.map(move |ngram| &ngram[n - 1])
}

/// Adds the tokens `ids` of `who` to `list`.
fn add<'a>(
    who: &str,
    list: &mut Vec<i32>,
    ids: impl IntoIterator<Item = &'a u32>,
    vocabulary: usize,
) -> Result<()> {
    for &id in ids {
        if id as usize >= vocabulary {
            return Err(Error::invalid(who, format!("a token below {vocabulary}"), id));
        }
        list.push(id as i32);
    }
    Ok(())
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
    fn no_rules_edit_nothing() {
        let count = |mut rules: Processors, generated| {
            let edits = rules.edits(&[1, 2], generated, 5).unwrap();
            edits.penalised.len() + edits.banned.len()
        };
        assert_eq!(count(with(|_| ()), 0), 0);
        assert_eq!(count(with(|o| o.min_new_tokens = 1), 0), 1);
        assert_eq!(count(with(|o| o.min_new_tokens = 1), 1), 0);
        assert_eq!(count(with(|o| o.repetition_penalty = 1.1), 9), 2);
        assert_eq!(count(Processors::new(&GenerateOptions::default(), &[], &[1]), 9), 1);
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

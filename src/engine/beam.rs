//! Beam search over log-probabilities, knowing nothing of the model.
//!
//! The rules are those of `beam_search`, `BeamSearchScorer` and `BeamHypotheses` in transformers
//! 4.28 - 4.33, where lengths include the prompt. Differences: of equal candidates the lowest
//! (beam, token) comes first, where upstream leaves the order open; an answer that ended keeps the
//! token that ended it, where upstream writes the first of several; a search cut short by its
//! caller leaves open beams open, where upstream appends the end token.

use super::options::{EarlyStopping, GenerateOptions};
use super::processors::Processors;
use crate::ops::{Best, Summary};
use crate::{Error, Result};

/// What a beam that does not exist yet scores, so that step one looks at the first beam only.
const ABSENT: f32 = -1e9;

/// The state of one search: open beams and the best finished answers.
#[derive(Clone, Debug)]
pub struct Beams {
    processors: Processors,
    prompt: usize,
    left_pads: usize,
    max_new_tokens: usize,
    generated: usize,
    open: Vec<Beam>,
    /// The beams of the next step while it is made, then those of the last one.
    spare: Vec<Beam>,
    finished: Finished,
    is_done: bool,
    parents: Vec<usize>,
    tokens: Vec<u32>,
    /// Log-probabilities (V) of one beam, processed.
    scores: Vec<f32>,
    /// log-softmax of each beam's logits.
    models: Vec<Summary>,
    best: Best,
}

/// An open answer: prompt and answer so far.
#[derive(Clone, Debug, Default)]
struct Beam {
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    /// Sum of the processed log-probabilities.
    score: f32,
}

impl Beam {
    fn copy_from(&mut self, other: &Beam) {
        self.ids.clone_from(&other.ids);
        self.logprobs.clone_from(&other.logprobs);
        self.score = other.score;
    }
}

/// How the open beams go on after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Advance<'a> {
    /// For each beam the beam of the step before that it continues: whose cache it needs. All 0
    /// after the first step.
    pub parents: &'a [usize],
    /// For each beam the token it continues with.
    pub tokens: &'a [u32],
    /// True if no further step is needed or allowed; the rest then no longer matters.
    pub done: bool,
}

/// An answer that beam search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Prompt and answer, with the token that ended it, if one did.
    pub ids: Vec<u32>,
    /// Sum of log-probabilities / length^length_penalty.
    pub score: f64,
    /// ln p of each generated token under the model itself, before penalties and suppression.
    pub logprobs: Vec<f32>,
    /// True if the answer ended by itself rather than at the limit of new tokens.
    pub is_ended: bool,
}

impl Beams {
    /// A search from `prompt`. `eos` ends an answer; `suppress` is never chosen. With one beam it
    /// is greedy decoding only if it stops early; [`super::sampler::Sampler`] is the way to that.
    ///
    /// # Errors
    /// An empty prompt; options outside their limits.
    pub fn new(
        options: &GenerateOptions,
        prompt: &[u32],
        eos: &[u32],
        suppress: &[u32],
    ) -> Result<Self> {
        options.check(usize::MAX)?;
        if prompt.is_empty() {
            return Err(Error::invalid("prompt", "at least one token", "none"));
        }
        let beam = |score| Beam { ids: prompt.to_vec(), logprobs: Vec::new(), score };
        let beams = options.num_beams;
        let finished = Finished {
            limit: beams,
            length_penalty: options.length_penalty,
            early_stopping: options.early_stopping,
            max_length: prompt.len().saturating_add(options.max_new_tokens),
            worst: 1e9,
            answers: Vec::with_capacity(beams + 1),
        };
        Ok(Beams {
            processors: Processors::new(options, eos, suppress),
            prompt: prompt.len(),
            left_pads: 0,
            max_new_tokens: options.max_new_tokens,
            generated: 0,
            open: (0..beams).map(|i| beam(if i == 0 { 0.0 } else { ABSENT })).collect(),
            spare: (0..beams).map(|_| beam(0.0)).collect(),
            finished,
            is_done: false,
            parents: (0..beams).collect(),
            tokens: vec![0; beams],
            scores: Vec::new(),
            models: Vec::with_capacity(beams),
            best: Best::default(),
        })
    }

    /// Counts `pads` more tokens into every length, as upstream does for the padding that a batch
    /// puts before a short prompt: reproduces scores of padded batches.
    pub fn with_left_pads(mut self, pads: usize) -> Self {
        self.left_pads = pads;
        self.finished.max_length = (self.prompt + pads).saturating_add(self.max_new_tokens);
        self
    }

    /// Makes one step. `logits` has a row (V) f32 for the last token of each beam, in the order
    /// of the last [`Advance`]; the first step, when all beams are the prompt, may have one row.
    ///
    /// # Errors
    /// A wrong number of rows, rows of unequal length, NaN or +inf, no token left to choose, a
    /// step after the last.
    pub fn step(&mut self, logits: &[&[f32]]) -> Result<Advance<'_>> {
        if self.is_over() {
            return Err(Error::invalid("beam search", "a search that is not done", "done"));
        }
        self.rank(logits)?;
        self.branch(logits)?;
        self.generated += 1;
        let length = self.left_pads + self.prompt + self.generated;
        let best = f64::from(self.best.items()[0].0);
        self.is_done = self.finished.is_done(best, length);
        std::mem::swap(&mut self.open, &mut self.spare);
        Ok(Advance { parents: &self.parents, tokens: &self.tokens, done: self.is_over() })
    }

    /// Ends the search, now if it is not done: the answers, best first.
    pub fn finish(mut self) -> Vec<Hypothesis> {
        if !self.is_done {
            for beam in &self.open {
                let length = self.left_pads + beam.ids.len();
                self.finished.add(beam, None, f64::from(beam.score), length);
            }
        }
        let mut answers = self.finished.answers;
        answers.sort_by(|a, b| a.score.total_cmp(&b.score));
        answers.reverse();
        answers
    }

    fn is_over(&self) -> bool {
        self.is_done || self.generated >= self.max_new_tokens
    }

    /// Leaves in `best` the most probable continuations of all beams, numbered beam * V + token.
    fn rank(&mut self, logits: &[&[f32]]) -> Result<()> {
        let beams = self.open.len();
        let is_shared = logits.len() == 1 && self.generated == 0;
        if logits.len() != beams && !is_shared {
            return Err(Error::invalid("logits", format!("{beams} rows"), logits.len()));
        }
        let vocabulary = logits[0].len();
        if let Some(row) = logits.iter().find(|row| row.len() != vocabulary) {
            return Err(Error::invalid("logits", format!("rows of {vocabulary}"), row.len()));
        }
        self.models.clear();
        self.best.restart(beams * (1 + self.processors.eos().len()).max(2));
        for (i, beam) in self.open.iter().enumerate() {
            let row = logits[if is_shared { 0 } else { i }];
            let model = Summary::of(row)?;
            self.scores.clear();
            self.scores.extend(row.iter().map(|&x| model.logprob(x)));
            self.processors.apply(&mut self.scores, &beam.ids, self.generated)?;
            self.scores.iter_mut().for_each(|score| *score += beam.score);
            self.best.offer(&self.scores, (i * vocabulary) as u32);
            self.models.push(model);
        }
        Ok(())
    }

    /// Walks the candidates from the best down: ends answers, and fills `spare`, `parents` and
    /// `tokens` with the beams that go on.
    fn branch(&mut self, logits: &[&[f32]]) -> Result<()> {
        let (beams, vocabulary) = (self.open.len(), logits[0].len());
        let mut filled = 0;
        for (rank, &(score, index)) in self.best.items().iter().enumerate() {
            if filled == beams {
                break;
            }
            let (parent, token) = (index as usize / vocabulary, index % vocabulary as u32);
            let beam = &self.open[parent];
            let row = logits[parent.min(logits.len() - 1)];
            let logprob = self.models[parent].logprob(row[token as usize]);
            if self.processors.eos().contains(&token) {
                if rank < beams {
                    let length = self.left_pads + beam.ids.len();
                    self.finished.add(beam, Some((token, logprob)), f64::from(score), length);
                }
                continue;
            }
            let next = &mut self.spare[filled];
            next.copy_from(beam);
            next.ids.push(token);
            next.logprobs.push(logprob);
            next.score = score;
            // Before the first step all beams are the prompt, of which a caller keeps one.
            self.parents[filled] = if self.generated == 0 { 0 } else { parent };
            self.tokens[filled] = token;
            filled += 1;
        }
        if filled < beams {
            let expected = format!("{beams} tokens that do not end the answer");
            return Err(Error::invalid("logits", expected, filled));
        }
        Ok(())
    }
}

/// The best answers that are complete.
#[derive(Clone, Debug)]
struct Finished {
    limit: usize,
    length_penalty: f64,
    early_stopping: EarlyStopping,
    /// Most tokens of prompt, pads and answer.
    max_length: usize,
    /// The lowest score among `answers`.
    worst: f64,
    /// In the order in which they came.
    answers: Vec<Hypothesis>,
}

impl Finished {
    /// sum / length^length_penalty.
    fn score(&self, sum: f64, length: usize) -> f64 {
        sum / (length as f64).powf(self.length_penalty)
    }

    /// Adds `beam`, which ended with `end` (token and its ln p), if it is among the best. `length`
    /// counts everything but the end.
    fn add(&mut self, beam: &Beam, end: Option<(u32, f32)>, sum: f64, length: usize) {
        let score = self.score(sum, length);
        if self.answers.len() == self.limit && score <= self.worst {
            return;
        }
        let (mut ids, mut logprobs) = (beam.ids.clone(), beam.logprobs.clone());
        ids.extend(end.map(|end| end.0));
        logprobs.extend(end.map(|end| end.1));
        self.answers.push(Hypothesis { ids, score, logprobs, is_ended: end.is_some() });
        if self.answers.len() > self.limit {
            let lowest = self.lowest();
            self.answers.remove(lowest);
        }
        self.worst = self.answers[self.lowest()].score;
    }

    /// The first answer with the lowest score.
    fn lowest(&self) -> usize {
        let scores = self.answers.iter().map(|answer| answer.score);
        let lowest = scores.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        lowest.map_or(0, |(i, _)| i)
    }

    /// True if no open beam can still get in; `best` is the highest sum of the step that made
    /// sequences of `length`.
    fn is_done(&self, best: f64, length: usize) -> bool {
        if self.answers.len() < self.limit {
            return false;
        }
        let length = match self.early_stopping {
            EarlyStopping::True => return true,
            EarlyStopping::Never if self.length_penalty > 0.0 => self.max_length,
            EarlyStopping::Never | EarlyStopping::False => length,
        };
        self.worst >= self.score(best, length)
    }
}

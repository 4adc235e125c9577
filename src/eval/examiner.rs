//! Asks a model, many questions at a time: which of the allowed answers is the most probable, and
//! what it says by itself.

use crate::device::Stream;
use crate::engine::Engine;
use crate::model::{Flamingo, KvPool, MaskMode, Media, Origin, Probe, Rows, Session, Step};
use crate::ops::Summary;
use crate::phantom::{Control, Item};
use crate::prompt::{Limits, Prompt};
use crate::tensor::Arena;
use crate::text::Tokenizer;
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// Questions that are answered together.
pub(super) const TOGETHER: usize = 12;
/// Images through the vision tower at once.
const IMAGES: usize = 16;
/// Tokens of an answer by itself: two syllables, a full stop, and some more to be wrong.
const GREEDY: usize = 6;

/// What a model did with one question.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The log-probability of each allowed answer with its full stop.
    pub logprobs: Vec<f64>,
    /// What greedy decoding gives, to the end of the chunk or [`GREEDY`] tokens.
    pub text: String,
}

impl Outcome {
    /// The place of the most probable answer, the first of equal ones.
    pub fn best(&self) -> usize {
        let better = |best: usize, i: usize| {
            if self.logprobs[i] > self.logprobs[best] { i } else { best }
        };
        (0..self.logprobs.len()).reduce(better).unwrap_or(0)
    }

    /// True if the text begins with `answer` and its full stop.
    pub fn says(&self, answer: &str) -> bool {
        let said = self.text.trim_start().strip_prefix(answer);
        said.is_some_and(|rest| rest.starts_with('.'))
    }
}

/// A model with room for a batch of questions.
pub struct Examiner<'a> {
    engine: &'a Engine,
    arena: Arena,
    pool: KvPool,
    /// By the gray levels of the picture.
    seen: HashMap<Vec<u8>, Arc<Media>>,
}

/// A question that has been read up to `Answer:`.
struct Read {
    session: Session,
    /// Log-probabilities of the next token.
    next: Vec<f32>,
}

impl<'a> Examiner<'a> {
    /// For questions with up to `shots` shots.
    ///
    /// # Errors
    /// Too little memory for their keys and values.
    pub fn new(engine: &'a Engine, shots: usize) -> Result<Self> {
        // A chunk has at most 72 tokens, with a note; every question and its forks hold pages of
        // their own.
        let tokens = TOGETHER * ((shots + 1) * 72 + 32 + 4 * 32);
        Ok(Examiner {
            engine,
            arena: Arena::new(engine.stream(), 0)?,
            pool: engine.model().kv_pool(engine.stream(), tokens)?,
            seen: HashMap::new(),
        })
    }

    /// Forgets the pictures seen so far.
    pub fn forget(&mut self) {
        self.seen.clear();
    }

    /// What the model makes of `items` under `control`.
    ///
    /// # Errors
    /// A model that cannot read the prompts; logits that are not finite.
    pub fn answer(&mut self, items: &[Item], control: Control) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(items.len());
        for some in items.chunks(TOGETHER) {
            let read = self.read(some, control)?;
            let scores = self.rank(some, &read)?;
            let texts = self.continuations(read)?;
            let both = scores.into_iter().zip(texts);
            outcomes.extend(both.map(|(logprobs, text)| Outcome { logprobs, text }));
        }
        Ok(outcomes)
    }

    fn tokenizer(&self) -> &'a Tokenizer {
        self.engine.tokenizer()
    }

    /// Reads the prompts, all together.
    fn read(&mut self, items: &[Item], control: Control) -> Result<Vec<Read>> {
        let config = self.engine.model().config();
        let mut prompts = Vec::new();
        for item in items {
            let (text, pictures) = item.prompt(control, false)?;
            let limits = Limits::tokens(config.language.context - GREEDY);
            let prompt = Prompt::from_text(self.tokenizer(), &text, pictures, &limits)?;
            prompts.push(prompt);
        }
        let mut unseen: Vec<_> = prompts.iter().flat_map(|p| p.images()).collect();
        unseen.retain(|p| !self.seen.contains_key(&p.data));
        for some in unseen.chunks(IMAGES) {
            let images: Vec<_> =
                some.iter().map(|p| self.engine.picture(p)).collect::<Result<_>>()?;
            let data: Vec<_> = images.iter().map(|i| i.pixels().data.as_slice()).collect();
            let (stream, model) = (self.engine.stream(), self.engine.model());
            let media = model.see(stream, &mut self.arena, &data, &mut Probe::none())?;
            self.seen.extend(some.iter().map(|p| p.data.clone()).zip(media));
        }
        let session = |p: &Prompt<crate::image::Picture>| {
            let media = p.images().iter().filter_map(|p| self.seen.get(&p.data).cloned());
            Session::new(config, MaskMode::V2, p.markers().len(), media.collect())
        };
        let mut sessions: Vec<_> = prompts.iter().map(session).collect();
        let mut steps: Vec<_> = sessions
            .iter_mut()
            .zip(&prompts)
            .map(|(session, prompt)| Step {
                session,
                ids: prompt.ids(),
                origin: Origin::Prompt,
                logits: Rows::Last,
            })
            .collect();
        let rows = self.forward(&mut steps)?;
        drop(steps);
        let read = sessions.into_iter().zip(rows);
        Ok(read.map(|(session, next)| Read { session, next }).collect())
    }

    /// Log-probabilities of all tokens at every row of the steps.
    fn forward(&mut self, steps: &mut [Step<'_>]) -> Result<Vec<Vec<f32>>> {
        let (stream, model): (&Stream, &Flamingo) = (self.engine.stream(), self.engine.model());
        let (arena, pool) = (&mut self.arena, &mut self.pool);
        let logits = model.forward(stream, arena, pool, steps, &mut Probe::none())?;
        let vocabulary = model.config().language.vocabulary;
        let row = |row: &[f32]| {
            let summary = Summary::of(row)?;
            Ok(row.iter().map(|x| summary.logprob(*x)).collect())
        };
        logits.view().to_f32()?.chunks_exact(vocabulary).map(row).collect()
    }

    /// The log-probability of each allowed answer and the full stop after it.
    fn rank(&mut self, items: &[Item], read: &[Read]) -> Result<Vec<Vec<f64>>> {
        let mut scores = Vec::new();
        let mut tails: Vec<(usize, usize, Vec<u32>)> = Vec::new();
        let mut forks = Vec::new();
        for (i, (item, read)) in items.iter().zip(read).enumerate() {
            let mut own = Vec::new();
            for (c, word) in item.question().candidates.iter().enumerate() {
                let ids = self.tokenizer().encode_text(&format!(" {word}."))?;
                own.push(f64::from(read.next[ids[0] as usize]));
                forks.push(read.session.fork());
                tails.push((i, c, ids));
            }
            scores.push(own);
        }
        let mut steps: Vec<_> = forks
            .iter_mut()
            .zip(&tails)
            .map(|(session, (_, _, ids))| Step {
                session,
                ids: &ids[..ids.len() - 1],
                origin: Origin::Generated,
                logits: Rows::All,
            })
            .collect();
        let mut rows = self.forward(&mut steps)?.into_iter();
        for (i, c, ids) in &tails {
            for &id in &ids[1..] {
                let row = rows.next().ok_or_else(|| Error::invalid("logits", "a row", "none"))?;
                scores[*i][*c] += f64::from(row[id as usize]);
            }
        }
        Ok(scores)
    }

    /// What greedy decoding gives.
    fn continuations(&mut self, read: Vec<Read>) -> Result<Vec<String>> {
        let specials = self.tokenizer().specials();
        let best = |row: &[f32]| {
            let mut all = (0..row.len()).filter(|&i| i as u32 != specials.image);
            let first = all.next().unwrap_or(0);
            all.fold(first, |best, i| if row[i] > row[best] { i } else { best }) as u32
        };
        let mut said: Vec<Vec<u32>> = read.iter().map(|r| vec![best(&r.next)]).collect();
        let mut sessions: Vec<_> = read.into_iter().map(|r| r.session).collect();
        for _ in 1..GREEDY {
            let is_open = |ids: &[u32]| ids.last() != Some(&specials.end_of_chunk);
            let open: Vec<usize> = (0..said.len()).filter(|&i| is_open(&said[i])).collect();
            let last: Vec<u32> = open.iter().filter_map(|&i| said[i].last().copied()).collect();
            let mut steps: Vec<_> = sessions
                .iter_mut()
                .zip(&said)
                .filter(|(_, ids)| is_open(ids))
                .zip(last.chunks(1))
                .map(|((session, _), ids)| Step {
                    session,
                    ids,
                    origin: Origin::Generated,
                    logits: Rows::Last,
                })
                .collect();
            if steps.is_empty() {
                break;
            }
            let rows = self.forward(&mut steps)?;
            open.into_iter().zip(rows).for_each(|(i, row)| said[i].push(best(&row)));
        }
        Ok(said.iter().map(|ids| self.tokenizer().decode(ids, true)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_only_if_it_is_the_whole_word() {
        let outcome = |text: &str, logprobs: &[f64]| Outcome {
            text: text.into(),
            logprobs: logprobs.to_vec(),
        };
        assert!(outcome(" left. The", &[0.0]).says("left"));
        for text in [" lefty.", " left", " right. left.", ""] {
            assert!(!outcome(text, &[0.0]).says("left"), "{text}");
        }
        assert_eq!(outcome("", &[-2.0, -1.0, -1.0]).best(), 1);
    }
}

//! A pass over the sequences from its launches to the tokens that were chosen: what lies between,
//! the device does alone.
//!
//! The tokens of a step are chosen on the device, where the next step finds them. So a step of
//! generated tokens is begun before those of the last one have been read: between two tokens the
//! device never waits for the host. If one of them turns out to have been the last, its part of
//! the next step was for nothing.

use super::Engine;
use super::run::{Chooser, Running, Text};
use crate::Result;
use crate::device::Stream;
use crate::model::Probe;
use crate::ops::{self, Choice, Choices, Draws, PendingChoices, TokenIds};
use crate::tensor::{Arena, Tensor};
use std::ops::Range;

/// What a pass found for one request.
pub(super) enum Found {
    /// Its prompt has not been read yet.
    Nothing,
    Token(Result<Choice>),
    /// The logits of each beam: a search compares all tokens of all beams, on the host.
    Beams(Vec<f32>),
}

/// A pass that has been launched.
pub(super) struct Flight {
    /// Of each request in it: its number, tokens of each of its sessions, what is known.
    parts: Vec<(usize, usize, Found)>,
    /// Tokens that are being chosen, and whose they are, of the parts.
    pending: Option<(Vec<usize>, PendingChoices)>,
}

impl Flight {
    /// Waits for what was chosen: of each request its number, tokens of each of its sessions, and
    /// what was found.
    pub fn land(mut self) -> Result<Vec<(usize, usize, Found)>> {
        if let Some((places, pending)) = self.pending {
            for (i, choice) in places.into_iter().zip(pending.wait()?) {
                self.parts[i].2 = Found::Token(choice);
            }
        }
        Ok(self.parts)
    }
}

/// The tokens that were chosen last, on the device: always in the same place, so that the steps
/// that read them are the same.
pub(super) struct Chosen {
    arena: Arena,
    choices: Option<Choices>,
    /// Numbers of the requests whose they are.
    of: Vec<usize>,
}

impl Chosen {
    pub fn new(stream: &Stream, most: usize) -> Result<Self> {
        let arena = Arena::new(stream, Choices::footprint(most))?;
        Ok(Chosen { arena, choices: None, of: Vec::new() })
    }

    /// Numbers now stand for other requests.
    pub fn forget(&mut self) {
        self.of.clear();
    }

    /// Room for as many tokens, which are those of requests `of`.
    fn room(&mut self, stream: &Stream, of: Vec<usize>, vocabulary: usize) -> Result<&mut Choices> {
        if self.choices.as_ref().is_none_or(|c| c.ids().rows() != of.len()) {
            self.choices = None;
            self.arena.reset(stream, Choices::footprint(of.len()))?;
        }
        self.of = of;
        match &mut self.choices {
            Some(choices) => Ok(choices),
            none => Ok(none.insert(Choices::new(&mut self.arena, self.of.len(), vocabulary)?)),
        }
    }

    /// The tokens, if they are the next ones of all that run.
    fn of_all(&self, running: &[Running]) -> Option<&TokenIds> {
        let choices = self.choices.as_ref()?;
        let is_all = running.iter().map(|r| r.index).eq(self.of.iter().copied());
        is_all.then(|| choices.ids())
    }
}

/// How the tokens of a pass are chosen, and what is known of its requests before it runs.
struct Choosing {
    parts: Vec<(usize, usize, Found)>,
    /// Rows of logits of each.
    rows: Vec<Range<usize>>,
    /// Of those whose tokens the device chooses: which parts they are.
    draws: Option<(Vec<usize>, Draws)>,
}

impl Engine {
    /// Launches a pass: of each request the next piece of its prompt, or a token; so many tokens
    /// of each session as `plan` says, `ahead` of the last one that is known.
    pub(super) fn begin(
        &mut self,
        running: &mut [Running],
        plan: &[usize],
        ahead: usize,
    ) -> Result<Flight> {
        let choosing = self.choosing(running, plan, ahead)?;
        let are_decoded = running.iter().zip(plan).all(|(r, &tokens)| r.is_read() && tokens == 1);
        let mut steps = Vec::new();
        let chosen = self.chosen.of_all(running).filter(|_| are_decoded);
        for (r, &tokens) in running.iter_mut().zip(plan) {
            r.steps(tokens, &mut steps);
        }
        let (stream, arena, pool) = (&self.stream, &mut self.arena, &mut self.pool);
        let logits = match chosen {
            Some(ids) => self.model.forward_chosen(stream, arena, pool, &mut steps, ids)?,
            None => self.model.forward(stream, arena, pool, &mut steps, &mut Probe::none())?,
        };
        self.choose(&logits, running, choosing)
    }

    /// Launches the pass after the last one, if that can be said without knowing its tokens.
    pub(super) fn begin_ahead(&mut self, running: &mut [Running]) -> Result<Option<Flight>> {
        let waits_for_host = self.stream.is_host() || self.stream.is_watched();
        if waits_for_host || !running.iter().all(Running::goes_on) {
            return Ok(None);
        }
        let pages = running.iter().flat_map(|r| &r.sessions).map(|s| s.pages_for(1)).sum::<usize>();
        if pages > self.pool.free_pages() || self.chosen.of_all(running).is_none() {
            return Ok(None);
        }
        self.begin(running, &vec![1; running.len()], 1).map(Some)
    }

    /// How the tokens of a pass will be chosen, `ahead` tokens after the last one that is known:
    /// said before the pass, so that nothing comes between its last launch and the choice.
    fn choosing(
        &mut self,
        running: &mut [Running],
        plan: &[usize],
        ahead: usize,
    ) -> Result<Choosing> {
        let vocabulary = self.model.config().language.vocabulary;
        let (mut parts, mut rows, mut row) = (Vec::new(), Vec::new(), 0);
        let (mut places, mut draws) = (Vec::new(), Vec::new());
        for (i, (r, &tokens)) in running.iter_mut().zip(plan).enumerate() {
            let own = row..row + r.logit_rows(tokens);
            row = own.end;
            let mut found = Found::Nothing;
            if let Chooser::One(text) = &mut r.chooser
                && !own.is_empty()
            {
                let Text { sampler, history, .. } = &mut **text;
                let generated = history.len() - r.request.prompt.len() + ahead;
                match sampler.draw(own.start, history, generated, vocabulary) {
                    Ok(draw) => {
                        draws.push(draw);
                        places.push(i);
                    }
                    Err(e) => found = Found::Token(Err(e)),
                }
            }
            parts.push((r.index, tokens, found));
            rows.push(own);
        }
        if draws.is_empty() {
            return Ok(Choosing { parts, rows, draws: None });
        }
        self.draws.reset(&self.stream, Draws::footprint(&draws))?;
        let draws = Draws::new(&mut self.draws, &draws, row, vocabulary)?;
        Ok(Choosing { parts, rows, draws: Some((places, draws)) })
    }

    /// Has the tokens chosen that the `logits` of a pass are for; of what the pass read, only they
    /// leave the device.
    fn choose(
        &mut self,
        logits: &Tensor,
        running: &[Running],
        choosing: Choosing,
    ) -> Result<Flight> {
        let Choosing { mut parts, rows, draws } = choosing;
        let vocabulary = logits.shape().cols();
        for ((r, own), (.., found)) in running.iter().zip(rows).zip(&mut parts) {
            if matches!(r.chooser, Chooser::Beams(_)) && !own.is_empty() {
                *found = Found::Beams(logits.view().block(own, 0..vocabulary)?.to_f32()?);
            }
        }
        let Some((places, draws)) = draws else { return Ok(Flight { parts, pending: None }) };
        let of = places.iter().map(|&i| parts[i].0).collect();
        let choices = self.chosen.room(&self.stream, of, vocabulary)?;
        let _phase = self.stream.phase("sampling");
        ops::sampling(&self.stream, choices, logits.view(), &draws)?;
        let pending = choices.begin_read(&draws)?;
        Ok(Flight { parts, pending: Some((places, pending)) })
    }
}

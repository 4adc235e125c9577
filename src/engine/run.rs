//! The loop: sequences are admitted, their prompts read in pieces, their tokens chosen, together.

use super::Engine;
use super::beam::Beams;
use super::cache::ImageKey;
use super::flight::{Flight, Found};
use super::request::{Answer, Control, Event, Finish, Request, Timings, TokenLogprob};
use super::sampler::Sampler;
use crate::model::{Media, Origin, Probe, Rows, Session, Step};
use crate::ops::Choice;
use crate::text::{StopStrings, TokenStream};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Most new tokens in one pass: bounds intermediates and how long others wait for a long prompt.
const PASS_TOKENS: usize = 512;
/// Most images through the vision tower at once: bounds intermediates.
const PASS_IMAGES: usize = 8;

/// A request that has been admitted.
pub(super) struct Running {
    pub index: usize,
    pub request: Request,
    /// One, or one per beam once the prompt has been read.
    pub sessions: Vec<Session>,
    /// Tokens of the prompt in the first session.
    read: usize,
    /// The last token of each session, once the prompt has been read.
    last: Vec<u32>,
    pub chooser: Chooser,
    images: Vec<ImageKey>,
    cached_tokens: usize,
    cached_images: usize,
    started: Instant,
    latest: Instant,
    timings: Timings,
}

/// How the next token is chosen.
pub(super) enum Chooser {
    One(Box<Text>),
    Beams(Box<Beams>),
}

/// A single continuation that is shown as it grows.
pub(super) struct Text {
    pub sampler: Sampler,
    pub history: Vec<u32>,
    stream: TokenStream,
    stops: StopStrings,
    text: String,
    logprobs: Vec<TokenLogprob>,
}

/// The receiver of all events of a batch.
type On<'a> = dyn FnMut(usize, Event<'_>) -> Control + 'a;

impl Engine {
    /// Continues several prompts together, without padding; `on` gets each event with the request's
    /// number. Answers come in the order of the requests, each as it would have been alone.
    pub fn generate_batch(
        &mut self,
        requests: Vec<Request>,
        on: &mut On<'_>,
    ) -> Vec<Result<Answer>> {
        let mut answers: Vec<Option<Result<Answer>>> = requests.iter().map(|_| None).collect();
        let mut waiting: VecDeque<_> = requests.into_iter().enumerate().collect();
        let mut running: Vec<Running> = Vec::new();
        // A pass that has been launched before the tokens of the last one are known.
        let mut ahead = None;
        self.chosen.forget();
        while !waiting.is_empty() || !running.is_empty() {
            while running.len() < self.options.concurrent.max(1) {
                let Some((index, request)) = waiting.pop_front() else { break };
                match self.admit(index, request) {
                    Ok(admitted) => running.push(admitted),
                    Err(e) => answers[index] = Some(Err(e)),
                }
            }
            match self.take_off(ahead.take(), &mut running, &mut answers) {
                Ok(Some((flight, next))) => {
                    ahead = next;
                    self.land(flight, &mut running, &mut answers, on);
                }
                Ok(None) => {}
                Err(e) => fail_all(&mut running, &mut answers, &e),
            }
        }
        answers.into_iter().map(|a| a.unwrap_or(Err(Error::Cancelled))).collect()
    }

    /// Looks at the images and finds the longest known beginning of the prompt.
    fn admit(&mut self, index: usize, request: Request) -> Result<Running> {
        let started = Instant::now();
        let (media, images, cached_images) = self.look(&request)?;
        let vision = started.elapsed().as_secs_f64() * 1e3;
        let (ids, markers) = (request.prompt.ids(), request.prompt.markers().len());
        let (read, session) = match self.prefixes.longest(ids, &images) {
            Some((read, session)) => (read, session.with_media(markers, media)),
            None => {
                let mode = self.options.mask_mode;
                (0, Session::new(self.model.config(), mode, markers, media))
            }
        };
        let chooser = self.chooser(&request)?;
        Ok(Running {
            index,
            sessions: vec![session],
            read,
            last: Vec::new(),
            chooser,
            images,
            cached_tokens: read,
            cached_images,
            started,
            latest: started,
            timings: Timings {
                load: self.load_ms,
                place: self.place_ms,
                vision,
                ..Timings::default()
            },
            request,
        })
    }

    fn chooser(&self, request: &Request) -> Result<Chooser> {
        let (options, ids) = (&request.options, request.prompt.ids());
        let eos: Vec<u32> = self.generation.eos_token_id.into_iter().collect();
        let suppress = &self.generation.suppress_tokens;
        if options.num_beams > 1 {
            let beams = Beams::new(options, ids, &eos, suppress)?;
            return Ok(Chooser::Beams(Box::new(beams.with_left_pads(request.left_pads))));
        }
        Ok(Chooser::One(Box::new(Text {
            sampler: Sampler::new(options, &eos, suppress),
            history: ids.to_vec(),
            stream: self.tokenizer.continuation(),
            stops: StopStrings::new(options.stop.clone())?,
            text: String::new(),
            logprobs: Vec::new(),
        })))
    }

    /// What the model sees of the request's images, remembered or computed.
    fn look(&mut self, request: &Request) -> Result<(Vec<Arc<Media>>, Vec<ImageKey>, usize)> {
        let images = request.prompt.images();
        let keys: Vec<_> = images.iter().map(|image| *image.key()).collect();
        let mut found: Vec<_> = keys.iter().map(|k| self.images.get(k)).collect();
        let known = found.iter().flatten().count();
        let mut missing: Vec<usize> = (0..found.len()).filter(|&i| found[i].is_none()).collect();
        // The same picture twice in one prompt is computed once.
        missing.retain(|&i| keys[..i].iter().all(|k| *k != keys[i]));
        for some in missing.chunks(PASS_IMAGES) {
            let batch: Vec<_> = some.iter().map(|&i| images[i].pixels().data.as_slice()).collect();
            let (stream, arena) = (&self.stream, &mut self.arena);
            let seen = self.model.see(stream, arena, &batch, &mut Probe::none())?;
            for (&i, media) in some.iter().zip(seen) {
                self.images.put(keys[i], media.clone());
                found[i] = Some(media);
            }
        }
        let first = |i: usize| keys.iter().position(|k| *k == keys[i]).unwrap_or(i);
        let media = (0..found.len()).filter_map(|i| found[first(i)].clone()).collect();
        Ok((media, keys, known))
    }

    /// One pass over every sequence: that which is `launched` already, or the next piece of a
    /// prompt or one token of each; None if there is nothing to compute. With it the pass after it,
    /// if that could be launched too.
    fn take_off(
        &mut self,
        launched: Option<Flight>,
        running: &mut Vec<Running>,
        answers: &mut [Option<Result<Answer>>],
    ) -> Result<Option<(Flight, Option<Flight>)>> {
        let flight = match launched {
            Some(flight) => flight,
            None => {
                self.make_room(running, answers);
                let mut left = PASS_TOKENS;
                let plan: Vec<usize> = running.iter().map(|r| r.next_tokens(&mut left)).collect();
                if plan.iter().all(|&tokens| tokens == 0) {
                    return Ok(None);
                }
                self.begin(running, &plan, 0)?
            }
        };
        let next = self.begin_ahead(running)?;
        Ok(Some((flight, next)))
    }

    /// Uses what a pass has found for those that are still running.
    fn land(
        &mut self,
        flight: Flight,
        running: &mut Vec<Running>,
        answers: &mut [Option<Result<Answer>>],
        on: &mut On<'_>,
    ) {
        let found = match flight.land() {
            Ok(found) => found,
            Err(e) => return fail_all(running, answers, &e),
        };
        for (index, tokens, found) in found {
            let Some(at) = running.iter().position(|r| r.index == index) else { continue };
            match self.take(&mut running[at], tokens, found, on) {
                Ok(None) => {}
                Ok(Some(finish)) => {
                    let ended = running.remove(at);
                    answers[index] = Some(self.finish(ended, finish));
                }
                Err(e) => {
                    running.remove(at);
                    answers[index] = Some(Err(e));
                }
            }
        }
    }

    /// Forgets remembered prompts, then fails the newest requests, until the pass fits the pool.
    fn make_room(&mut self, running: &mut Vec<Running>, answers: &mut [Option<Result<Answer>>]) {
        loop {
            let mut left = PASS_TOKENS;
            let needed: usize = running
                .iter()
                .map(|r| {
                    let tokens = r.next_tokens(&mut left);
                    r.sessions.iter().map(|s| s.pages_for(tokens)).sum::<usize>()
                })
                .sum();
            if needed <= self.pool.free_pages() || self.prefixes.evict() {
                if needed <= self.pool.free_pages() {
                    return;
                }
                continue;
            }
            let Some(newest) = running.pop() else { return };
            let expected = format!("{needed} free pages of {} tokens", crate::model::PAGE_TOKENS);
            answers[newest.index] =
                Some(Err(Error::invalid("kv pool", expected, self.pool.free_pages())
                    .advise("shorten the prompts, run fewer at once, or raise --kv-tokens")));
        }
    }

    /// Uses the logits that a pass made for one request; `Some` when it is finished.
    fn take(
        &mut self,
        r: &mut Running,
        tokens: usize,
        found: Found,
        on: &mut On<'_>,
    ) -> Result<Option<Finish>> {
        if tokens == 0 {
            return Ok(None);
        }
        let now = Instant::now();
        let since = |t: Instant| (now - t).as_secs_f64() * 1e3;
        let total = r.request.prompt.len();
        if r.last.is_empty() {
            r.read += tokens;
            let event = Event::Prefill { done: r.read, total };
            if on(r.index, event) == Control::Cancel {
                return Ok(Some(Finish::Cancelled));
            }
            if r.read < total {
                return Ok(None);
            }
            r.timings.prefill = since(r.started) - r.timings.vision;
            r.timings.first_token = since(r.started);
            let remembered = r.sessions[0].fork();
            self.prefixes.put(r.request.prompt.ids(), r.images.clone(), remembered);
        } else {
            r.timings.decode.push(since(r.latest));
        }
        r.latest = now;
        match &mut r.chooser {
            Chooser::One(text) => {
                let Found::Token(choice) = found else { return Ok(None) };
                let (choice, generated) = (choice?, text.history.len() - total);
                text.history.push(choice.id);
                if r.request.options.logprobs > 0 {
                    text.logprobs.push(self.describe(&choice));
                }
                r.last = vec![choice.id];
                let room = r.request.options.max_new_tokens - generated - 1;
                Ok(self.show(text, r.index, choice.id, room, on))
            }
            Chooser::Beams(beams) => {
                let Found::Beams(logits) = found else { return Ok(None) };
                let vocabulary = self.model.config().language.vocabulary;
                let rows: Vec<&[f32]> = logits.chunks_exact(vocabulary).collect();
                let advance = beams.step(&rows)?;
                r.sessions = advance.parents.iter().map(|&p| r.sessions[p].fork()).collect();
                r.last = advance.tokens.to_vec();
                let event = Event::Prefill { done: total, total };
                if on(r.index, event) == Control::Cancel {
                    return Ok(Some(Finish::Cancelled));
                }
                Ok(advance.done.then_some(Finish::Length))
            }
        }
    }

    /// Adds a token to the text, shows what became readable; `Some` if it was the last.
    fn show(
        &self,
        text: &mut Text,
        index: usize,
        id: u32,
        room: usize,
        on: &mut On<'_>,
    ) -> Option<Finish> {
        let is_end = Some(id) == self.generation.eos_token_id;
        let mut readable = text.stream.push(id).unwrap_or_default();
        if is_end || room == 0 {
            readable += &text.stream.finish();
        }
        let mut found = text.stops.push(&readable).text;
        if (is_end || room == 0) && text.stops.stopped().is_none() {
            found += &text.stops.finish();
        }
        text.text += &found;
        let control = on(index, Event::Token { id, text: &found });
        match () {
            () if text.stops.stopped().is_some() => Some(Finish::Stop),
            () if is_end => Some(Finish::EndOfChunk),
            () if room == 0 => Some(Finish::Length),
            () if control == Control::Cancel => Some(Finish::Cancelled),
            () => None,
        }
    }

    fn describe(&self, choice: &Choice) -> TokenLogprob {
        let token = |id: u32| String::from_utf8_lossy(&self.tokenizer.token_bytes(id)).into_owned();
        TokenLogprob {
            id: choice.id,
            token: token(choice.id),
            logprob: choice.logprob,
            top: choice.top.iter().map(|&(id, p)| (id, token(id), p)).collect(),
        }
    }

    fn finish(&self, r: Running, finish: Finish) -> Result<Answer> {
        let total = r.request.prompt.len();
        let eos = self.generation.eos_token_id;
        let (text, token_ids, logprobs, score, finish_reason) = match r.chooser {
            Chooser::One(one) => {
                let ids = one.history[total..].to_vec();
                (one.text, ids, one.logprobs, None, finish)
            }
            Chooser::Beams(beams) => {
                let best = beams.finish().into_iter().next();
                let best = best.ok_or(Error::Cancelled)?;
                let ids = best.ids[total..].to_vec();
                let mut stream = self.tokenizer.continuation();
                let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
                text += &stream.finish();
                let ended = ids.last().copied() == eos && eos.is_some();
                let reason = if ended { Finish::EndOfChunk } else { finish };
                (text, ids, Vec::new(), Some(best.score), reason)
            }
        };
        Ok(Answer {
            text,
            token_ids,
            finish_reason,
            logprobs,
            score,
            prompt_tokens: total,
            cached_tokens: r.cached_tokens,
            images: r.images.len(),
            cached_images: r.cached_images,
            timings_ms: r.timings,
            memory_bytes: self.memory(),
            work: self.work(),
        })
    }
}

impl Running {
    /// Tokens of the next pass in each session, out of `left`.
    fn next_tokens(&self, left: &mut usize) -> usize {
        let wanted = if self.last.is_empty() { self.request.prompt.len() - self.read } else { 1 };
        let tokens = wanted.min(*left / self.sessions.len());
        *left -= tokens * self.sessions.len();
        tokens
    }

    pub(super) fn steps<'a>(&'a mut self, tokens: usize, steps: &mut Vec<Step<'a>>) {
        if tokens == 0 {
            return;
        }
        if self.last.is_empty() {
            let ids = &self.request.prompt.ids()[self.read..self.read + tokens];
            let whole = self.read + tokens == self.request.prompt.len();
            let logits = if whole { Rows::Last } else { Rows::None };
            let session = &mut self.sessions[0];
            steps.push(Step { session, ids, origin: Origin::Prompt, logits });
        } else {
            let pairs = self.sessions.iter_mut().zip(self.last.chunks(1));
            steps.extend(pairs.map(|(session, ids)| Step {
                session,
                ids,
                origin: Origin::Generated,
                logits: Rows::Last,
            }));
        }
    }

    /// True once the prompt has been read, and its first token chosen.
    pub(super) fn is_read(&self) -> bool {
        !self.last.is_empty()
    }

    /// True if there is a token after the next one for all that is known now, and how it will be
    /// chosen does not depend on which the next one is.
    pub(super) fn goes_on(&self) -> bool {
        let Chooser::One(text) = &self.chooser else { return false };
        let generated = text.history.len() - self.request.prompt.len();
        self.is_read()
            && generated + 1 < self.request.options.max_new_tokens
            && !text.sampler.minds_history()
    }

    /// Rows of logits that [`Running::steps`] asked for.
    pub(super) fn logit_rows(&self, tokens: usize) -> usize {
        match (tokens, self.last.is_empty()) {
            (0, _) => 0,
            (_, true) => usize::from(self.read + tokens == self.request.prompt.len()),
            (_, false) => self.sessions.len(),
        }
    }
}

/// An error that belongs to no single request ends them all.
fn fail_all(running: &mut Vec<Running>, answers: &mut [Option<Result<Answer>>], error: &Error) {
    for r in running.drain(..) {
        answers[r.index] = Some(Err(match error {
            Error::Device { device, message } => Error::device(device, message),
            other => Error::device("engine", other),
        }));
    }
}

/// See [`Engine::inspect`].
pub(super) fn inspect(
    engine: &mut Engine,
    request: &Request,
    probe: &mut Probe<'_>,
) -> Result<Vec<f32>> {
    let images = request.prompt.images().iter();
    let pixels: Vec<_> = images.map(|image| image.pixels().data.as_slice()).collect();
    let media = if pixels.is_empty() {
        Vec::new()
    } else {
        engine.model.see(&engine.stream, &mut engine.arena, &pixels, probe)?
    };
    let markers = request.prompt.markers().len();
    let mode = engine.options.mask_mode;
    let mut session = Session::new(engine.model.config(), mode, markers, media);
    let (ids, origin) = (request.prompt.ids(), Origin::Prompt);
    let mut steps = [Step { session: &mut session, ids, origin, logits: Rows::All }];
    let (stream, arena, pool) = (&engine.stream, &mut engine.arena, &mut engine.pool);
    engine.model.forward(stream, arena, pool, &mut steps, probe)?.view().to_f32()
}

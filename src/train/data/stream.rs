//! The samples of one source as an iterator with a state.

use super::builder::Builder;
use super::order::{Item, Order, Rule, Snapshot};
use super::queue::{Queue, Step, Taken};
use super::record::read;
use super::rules::Rules;
use super::shards::{Record, Shards, Source};
use super::tally::{Refusal, Tally};
use crate::image::Preprocess;
use crate::text::Tokenizer;
use crate::train::{Batch, Sample};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Items between two snapshots of the order.
const SNAPSHOT: u64 = 64;
/// What [`Stream::state`] writes.
const STATE_FORMAT: u64 = 1;

/// How a source is gone through.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamOptions {
    pub seed: u64,
    /// False reads the shards in the order of their names, for validation.
    pub shuffle: bool,
    /// Records among which the next is drawn.
    pub buffer: usize,
    /// This process among `world`.
    pub rank: usize,
    pub world: usize,
    /// Times that the source is gone through; None never ends.
    pub epochs: Option<u64>,
    /// Threads that decode.
    pub threads: usize,
    /// Samples that are ready or under way at most.
    pub ahead: usize,
    /// Ends the run when a larger share of the records is damaged.
    pub max_bad_share: f64,
    /// Records after which the share is first looked at; the end of an epoch comes first.
    pub judged_after: u64,
    /// The number that its samples carry.
    pub source: usize,
}

impl Default for StreamOptions {
    /// Shuffled within 2000 records, without end, two threads, at most 1 % damaged of the first 200
    /// records and more.
    fn default() -> Self {
        StreamOptions {
            seed: 42,
            shuffle: true,
            buffer: 2000,
            rank: 0,
            world: 1,
            epochs: None,
            threads: 2,
            ahead: 32,
            max_bad_share: 0.01,
            judged_after: 200,
            source: 0,
        }
    }
}

impl StreamOptions {
    /// # Errors
    /// Numbers that make no sense, by name.
    pub fn check(&self) -> Result<()> {
        let between = |name: &str, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Error::invalid(name, format!("{least} to {most}"), value))
        };
        between("world", self.world, 1, 1 << 20)?;
        between("rank", self.rank, 0, self.world - 1)?;
        between("buffer", self.buffer, 1, 1 << 20)?;
        between("threads", self.threads, 1, 256)?;
        between("ahead", self.ahead, 1, 1 << 16)?;
        if !(0.0..=1.0).contains(&self.max_bad_share) {
            return Err(Error::invalid("max_bad_share", "0 to 1", self.max_bad_share));
        }
        Ok(())
    }

    fn rule(&self) -> Rule {
        Rule {
            seed: self.seed,
            buffer: self.buffer,
            is_shuffled: self.shuffle,
            rank: self.rank,
            world: self.world,
            epochs: self.epochs,
        }
    }
}

/// A result, and a state from which it is the next.
struct Delivery {
    outcome: Outcome,
    before: Option<Arc<Snapshot>>,
}

enum Outcome {
    Sample(Sample),
    Refused(Refusal),
    EpochEnd,
}

struct Job {
    record: Record,
    number: u64,
    before: Option<Arc<Snapshot>>,
}

/// Goes through one source; see the module for the order.
pub struct Stream {
    shards: Arc<Shards>,
    source: Arc<Source>,
    builder: Arc<Builder>,
    options: StreamOptions,
    queue: Option<Queue<Job, Delivery>>,
    snapshot: Arc<Snapshot>,
    /// Items taken since `snapshot`.
    since: u64,
    tally: Tally,
    kept_in_epoch: u64,
    waited: Duration,
    waits: u64,
}

impl Stream {
    /// Opens `source`; nothing is read ahead before the first sample is asked for.
    ///
    /// # Errors
    /// Shards that are not there, options that make no sense.
    pub fn open(
        source: Source,
        rules: Rules,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        options: StreamOptions,
    ) -> Result<Self> {
        options.check()?;
        if rules.form != source.form() {
            let found = format!("{:?}", rules.form);
            let expected = format!("{:?}, as the source has", source.form());
            return Err(Error::invalid("rules.form", expected, found));
        }
        let shards = Arc::new(Shards::open(&source)?);
        let (seed, number) = (options.seed, options.source);
        let builder = Builder { tokenizer, preprocess, rules, seed, source: number };
        Ok(Stream {
            shards,
            source: Arc::new(source),
            builder: Arc::new(builder),
            options,
            queue: None,
            snapshot: Arc::default(),
            since: 0,
            tally: Tally::default(),
            kept_in_epoch: 0,
            waited: Duration::ZERO,
            waits: 0,
        })
    }

    /// The next sample, or None after the last epoch.
    ///
    /// # Errors
    /// Too many damaged records, or an epoch without a usable one.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Sample>> {
        loop {
            if self.queue.is_none() {
                self.queue = Some(self.start()?);
            }
            let Some(queue) = &mut self.queue else { continue };
            let begin = Instant::now();
            let (taken, has_waited) = queue.take();
            if has_waited {
                self.waited += begin.elapsed();
                self.waits += 1;
            }
            let delivery = match taken {
                Taken::Result(delivery) => delivery,
                Taken::End => return Ok(None),
                Taken::Lost => {
                    return Err(Error::invalid(self.who(), "records that are read", "a panic")
                        .advise("this is a fault of the program; please report it"));
                }
            };
            if let Some(snapshot) = delivery.before {
                (self.snapshot, self.since) = (snapshot, 0);
            }
            self.since += 1;
            if let Some(sample) = self.count(delivery.outcome)? {
                return Ok(Some(sample));
            }
        }
    }

    /// Up to `n` samples; None when there are no more.
    ///
    /// # Errors
    /// As [`Stream::next`].
    pub fn batch(&mut self, n: usize) -> Result<Option<Batch>> {
        let mut sequences = Vec::with_capacity(n);
        while sequences.len() < n {
            match self.next()? {
                Some(sample) => sequences.push(sample),
                None => break,
            }
        }
        Ok((!sequences.is_empty()).then_some(Batch { sequences }))
    }

    /// What was kept and what was not, since the beginning of the run.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Time that the caller has waited in [`Stream::next`], and how often, in this process.
    pub fn waited(&self) -> (Duration, u64) {
        (self.waited, self.waits)
    }

    /// Results that are ready now; [`StreamOptions::ahead`] when the workers have nothing to do.
    pub fn ready(&self) -> usize {
        self.queue.as_ref().map_or(0, Queue::ready)
    }

    /// The place after the last sample that was taken, for [`Stream::restore`].
    pub fn state(&self) -> Value {
        json!({
            "format": STATE_FORMAT,
            "shards": self.shards.fingerprint(),
            "seed": self.options.seed,
            "rank": self.options.rank,
            "world": self.options.world,
            "shuffle": self.options.shuffle,
            "buffer_size": self.options.buffer,
            "order": *self.snapshot,
            "since": self.since,
            "kept_in_epoch": self.kept_in_epoch,
            "tally": self.tally.to_json(),
        })
    }

    /// Goes on where `state` was written: the same samples follow, whatever the number of threads.
    ///
    /// # Errors
    /// A state of other data, of another seed, order or number of ranks, or a damaged one.
    pub fn restore(&mut self, state: &Value) -> Result<()> {
        let fixed = self.state();
        for key in ["format", "shards", "seed", "rank", "world", "shuffle", "buffer_size"] {
            if state[key] != fixed[key] {
                let who = format!("data state of source {}: {key}", self.options.source);
                return Err(Error::invalid(who, &fixed[key], &state[key])
                    .advise("resume with the data and options that the checkpoint was made with"));
            }
        }
        let damaged = |what: &str| Error::invalid(self.who(), "a whole data state", what);
        let snapshot =
            Snapshot::deserialize(&state["order"]).map_err(|e| damaged(&format!("order: {e}")))?;
        let number = |key: &str| state[key].as_u64().ok_or_else(|| damaged(key));
        let (since, kept) = (number("since")?, number("kept_in_epoch")?);
        let tally = Tally::from_json(&state["tally"]).ok_or_else(|| damaged("tally"))?;
        // The shards are looked at now, so that a wrong state is no surprise hours later.
        Order::resume(self.shards.clone(), self.options.rule(), &snapshot)?;
        self.queue = None;
        (self.snapshot, self.since) = (Arc::new(snapshot), since);
        (self.tally, self.kept_in_epoch) = (tally, kept);
        Ok(())
    }

    fn who(&self) -> String {
        format!("training data, source {}", self.options.source)
    }

    fn count(&mut self, outcome: Outcome) -> Result<Option<Sample>> {
        match outcome {
            Outcome::Sample(sample) => {
                self.tally.keep();
                self.kept_in_epoch += 1;
                return Ok(Some(sample));
            }
            Outcome::Refused(refusal) => {
                self.tally.refuse(refusal);
                if self.tally.total() >= self.options.judged_after {
                    self.tally.check(&self.who(), self.options.max_bad_share)?;
                }
            }
            Outcome::EpochEnd => {
                self.tally.check(&self.who(), self.options.max_bad_share)?;
                // A rank among more ranks than records may well have none in an epoch.
                if self.kept_in_epoch == 0 && (self.options.world == 1 || self.tally.kept() == 0) {
                    return Err(self.tally.nothing(&self.who()));
                }
                self.kept_in_epoch = 0;
            }
        }
        Ok(None)
    }

    /// Starts the threads at the state.
    fn start(&self) -> Result<Queue<Job, Delivery>> {
        let rule = self.options.rule();
        let mut order = Order::resume(self.shards.clone(), rule, &self.snapshot)?;
        for _ in 0..self.since {
            order.next();
        }
        let mut number = 0u64;
        let feed = move || {
            let is_due = number.is_multiple_of(SNAPSHOT);
            let before = if is_due { order.snapshot().map(Arc::new) } else { None };
            // One that could not be taken is taken at the next chance.
            number += u64::from(!is_due || before.is_some());
            let step = match order.next()? {
                Item::Record(record, number) => Step::Work(Job { record, number, before }),
                Item::Lost(refusal) => {
                    Step::Done(Delivery { outcome: Outcome::Refused(refusal), before })
                }
                Item::EpochEnd => Step::Done(Delivery { outcome: Outcome::EpochEnd, before }),
            };
            Some(step)
        };
        let (source, shards) = (self.source.clone(), self.shards.clone());
        let builder = self.builder.clone();
        let work = move |job: Job| {
            let content = read(&source, &shards, &job.record, &builder.rules);
            let sample = content.and_then(|content| {
                builder.build(content, job.number).map_err(|mut e| {
                    e.detail = format!("{}: {}", shards.place(&job.record), e.detail);
                    e
                })
            });
            let outcome = sample.map_or_else(Outcome::Refused, Outcome::Sample);
            Delivery { outcome, before: job.before }
        };
        Queue::start(self.options.threads, self.options.ahead, feed, work)
            .map_err(|e| Error::device("host", format!("no thread for data: {e}")))
    }
}

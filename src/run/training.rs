//! The loop: micro-batches, the sum over ranks, an update; and, from time to time, a line of
//! metrics, a validation, samples, a checkpoint.
//!
//! Ranks do everything together and in the same order. What only one of them writes, all compute.

use super::checkpoint::{Checkpoints, FOLDER};
use super::config::RunConfig;
use super::disk::Disk;
use super::feed;
use super::folder::{RunFolder, model_identity};
use super::metrics::Metrics;
use super::samples::{self, Sample};
use super::state::{self, Identity};
use super::stop::Stop;
use super::validation::{self, Measured};
use crate::comm::Comm;
use crate::device::Stream as Queue;
use crate::engine::ModelFolder;
use crate::phantom::Split;
use crate::tensor::Tensor;
use crate::train::data::Feed;
use crate::train::{Batch, OverRanks, Report, Shard, Skipped, SourceLoss, Sums, Trainer};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

/// How a run begins.
pub struct Start {
    pub config: RunConfig,
    /// Go on with the run in the folder, if there is one.
    pub is_resumed: bool,
    pub stop: Stop,
    pub disk: Disk,
}

/// What happens, for whoever watches.
pub enum Event<'a> {
    /// Of so many steps, some may have been done before.
    Began {
        step: u64,
        steps: u64,
        trained: usize,
    },
    Step {
        report: &'a Report,
        names: &'a [String],
    },
    Validated {
        measured: &'a [Measured],
    },
    Saved {
        folder: PathBuf,
    },
    /// Something that does not end the run, but that somebody should know.
    Note(String),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub step: u64,
    /// Before all steps were done, because somebody asked.
    pub is_early: bool,
}

/// Told of every event.
pub type Watch<'a> = dyn FnMut(Event<'_>) + 'a;

/// Failed checkpoints in a row after which a run ends: its steps would be lost.
const MOST_UNSAVED: u32 = 3;

struct Run<'a> {
    config: RunConfig,
    comm: Rc<Comm>,
    trainer: Trainer,
    sources: Vec<Feed>,
    names: Vec<String>,
    model: ModelFolder,
    samples: Vec<Sample>,
    identity: Identity,
    checkpoints: Checkpoints,
    /// Of rank 0.
    metrics: Option<Metrics>,
    /// Elements of the flat tensors that each rank looks after.
    parts: Vec<Range<usize>>,
    /// Numbers of the embedding rows that are trained.
    rows: Vec<(String, Tensor)>,
    stop: Stop,
    /// Checkpoints in a row that could not be saved.
    unsaved: u32,
    skipped: u64,
    saved_at: u64,
    began: Instant,
    watch: &'a mut Watch<'a>,
}

/// Trains. All ranks call it, each with its own `queue`.
///
/// # Errors
/// A model or data that is not there, a checkpoint that is not of this run, a device, rank or disk
/// that fails.
pub fn train<'a>(
    start: Start,
    comm: Comm,
    queue: Queue,
    watch: &'a mut Watch<'a>,
) -> Result<Ended> {
    let Start { config, is_resumed, stop, disk } = start;
    let at = config.run.folder.clone();
    let held = match comm.rank() {
        0 => RunFolder::open(&at, is_resumed).map(Some),
        _ => Ok(None),
    };
    let (held, why) = match held {
        Ok(held) => (held, Ok(Vec::new())),
        Err(e) => (None, Err(e)),
    };
    comm.agree(why)??;
    let prepared = prepare(config, comm, queue, stop, watch)?;
    let mut run = prepared;
    run.resume(is_resumed)?;
    if let Some(folder) = &held {
        folder.write_config(&run.config, &disk)?;
        let step = run.trainer.progress().steps;
        run.metrics = Some(Metrics::open(folder.path(), step, &disk)?);
    }
    run.checkpoints = Checkpoints::new(&at.join(FOLDER), run.config.run.keep_checkpoints, disk);
    run.all_steps()
}

fn prepare<'a>(
    config: RunConfig,
    comm: Comm,
    queue: Queue,
    stop: Stop,
    watch: &'a mut Watch<'a>,
) -> Result<Run<'a>> {
    let folder = config.model.folder.clone();
    let folder = folder.ok_or_else(|| {
        Error::invalid("model", "folder", "preset")
            .advise("a preset is for --plan; make a folder with `medflamingo-tools synth`")
    })?;
    let mut model = ModelFolder::open(&folder)?;
    if config.sources.is_empty() {
        return Err(Error::invalid("[[source]]", "at least one", "none"));
    }
    let (rank, world) = (comm.rank(), comm.world());
    let mut sources = Vec::new();
    for (i, source) in config.sources.iter().enumerate() {
        let (seed, ranks) = ((config.run.seed, i), (rank, world));
        let opened = feed::open(source, Split::Train, seed, ranks, &model);
        sources.push(opened.map_err(|e| e.within(format!("[[source]] {}", source.name)))?);
    }
    let samples = samples::read(&config.samples, &model)?;
    let comm = Rc::new(comm.on(&queue)?);
    let (architecture, options) = (model.config.clone(), config.train.clone());
    let over = || Box::new(OverRanks::new(comm.clone())) as Box<dyn Sums>;
    let sums = config.run.has_sums(world).then(over);
    let (weights, bytes) = (&mut model.weights, &model.preprocess);
    let trainer = Trainer::new(queue, weights, &architecture, bytes, options, sums)?;
    let parts = Shard { rank, world }.ranges(trainer.flat().cols());
    let identity =
        Identity { model: model_identity(&folder)?, model_folder: folder.display().to_string() };
    Ok(Run {
        checkpoints: Checkpoints::new(&config.run.folder.join(FOLDER), 1, Disk::default()),
        names: config.sources.iter().map(|s| s.name.clone()).collect(),
        rows: state::row_ids(&trainer)?,
        metrics: None,
        unsaved: 0,
        skipped: 0,
        saved_at: 0,
        began: Instant::now(),
        config,
        comm,
        trainer,
        sources,
        model,
        samples,
        identity,
        parts,
        stop,
        watch,
    })
}

/// What ranks tell each other between gradients and update.
#[derive(Serialize, Deserialize)]
struct Told {
    loss: f64,
    wants_end: bool,
    losses: Vec<(usize, f64, usize)>,
    tokens: usize,
    images: usize,
}

impl Run<'_> {
    /// Goes back to the newest checkpoint that holds, if the run is to go on and there is one.
    fn resume(&mut self, is_resumed: bool) -> Result<()> {
        if !is_resumed {
            return Ok(());
        }
        let (newest, damaged) = self.checkpoints.newest();
        for e in damaged {
            (self.watch)(Event::Note(format!("passed over a damaged checkpoint: {e}")));
        }
        let step = newest.as_ref().map(|s| s.manifest.step.to_le_bytes());
        let all = self.comm.exchange(step.as_ref().map_or(&[], |bytes| &bytes[..]))?;
        if all.iter().any(|other| other != &all[0]) {
            return Err(Error::invalid("checkpoint", "the same one on all ranks", "several")
                .advise("run.folder must be on a disk that all ranks share"));
        }
        let Some(saved) = newest else { return Ok(()) };
        let rank = self.comm.rank();
        let restored = saved.state(rank.min(saved.manifest.world.saturating_sub(1)));
        let restored = restored.and_then(|state| {
            let architecture = self.trainer.config().clone();
            let (config, comm) = (&self.config, &self.comm);
            state::check(&saved, &state, config, &architecture, &self.identity, comm)?;
            state::restore(&saved, &state, rank, &mut self.trainer, &mut self.sources)
        });
        self.comm.agree(restored.map(|()| Vec::new()))??;
        self.saved_at = self.trainer.progress().steps;
        Ok(())
    }

    fn all_steps(&mut self) -> Result<Ended> {
        let steps = self.config.run.steps;
        let step = self.trainer.progress().steps;
        let trained = self.trainer.parameters().iter().map(|p| p.range.len()).sum();
        (self.watch)(Event::Began { step, steps, trained });
        self.began = Instant::now();
        let mut wants_end = false;
        while self.trainer.progress().steps < steps && !wants_end {
            wants_end = self.step()?;
        }
        let step = self.trainer.progress().steps;
        if self.saved_at != step {
            self.save(step, true)?;
        }
        Ok(Ended { step, is_early: step < steps })
    }

    /// One optimiser step and what is due after it; true if somebody wants the run to end.
    fn step(&mut self) -> Result<bool> {
        let (micro_batches, world) = (self.config.run.micro_batches, self.comm.world());
        for _ in 0..micro_batches {
            let batch = self.batch()?;
            self.trainer.accumulate(&batch, micro_batches * world)?;
        }
        let own = Told {
            loss: self.trainer.loss(),
            wants_end: self.stop.is_asked(),
            losses: Vec::new(),
            tokens: 0,
            images: 0,
        };
        let squares = self.trainer.squares()?;
        let (squares, told) = self.tell(&squares, &own)?;
        let loss = told.iter().map(|t| t.loss).sum();
        let mut report = self.trainer.update(&squares, 1.0, loss)?;
        if world > 1 {
            let (comm, parts) = (&self.comm, &self.parts);
            self.trainer.exchange(&mut |stream, flat| comm.all_gather(stream, flat, parts))?;
            self.gather(&mut report)?;
        }
        self.after(&report)?;
        Ok(told.iter().any(|t| t.wants_end))
    }

    /// Sequences of every source.
    fn batch(&mut self) -> Result<Batch> {
        let mut all = Batch::default();
        for (source, options) in self.sources.iter_mut().zip(&self.config.sources) {
            let batch = source.batch(options.batch)?;
            let batch = batch.ok_or_else(|| {
                Error::invalid(&options.name, "a source that does not end", "its end")
            })?;
            all.sequences.extend(batch.sequences);
        }
        Ok(all)
    }

    /// Everybody's sums of squares, one after another, and what they tell.
    fn tell(&self, squares: &[f32], own: &Told) -> Result<(Vec<f32>, Vec<Told>)> {
        let json = serde_json::to_vec(own).map_err(|e| Error::invalid("message", "JSON", e))?;
        let numbers = squares.iter().flat_map(|x| x.to_le_bytes());
        let head = (json.len() as u32).to_le_bytes();
        let message: Vec<u8> = head.into_iter().chain(json).chain(numbers).collect();
        let (mut all, mut told) = (Vec::new(), Vec::new());
        for message in self.comm.exchange(&message)?.iter() {
            let damaged = || Error::invalid("message", "that of a rank", "something else");
            let (head, rest) = message.split_first_chunk().ok_or_else(damaged)?;
            let len = u32::from_le_bytes(*head) as usize;
            let (json, numbers) = rest.split_at_checked(len).ok_or_else(damaged)?;
            told.push(serde_json::from_slice(json).map_err(|_| damaged())?);
            let numbers = numbers.chunks_exact(4).filter_map(|b| b.first_chunk().copied());
            all.extend(numbers.map(f32::from_le_bytes));
        }
        Ok((all, told))
    }

    /// Makes the report that of all ranks.
    fn gather(&self, report: &mut Report) -> Result<()> {
        let losses = report.losses.iter().map(|l| (l.source, l.loss, l.targets)).collect();
        let own = Told {
            loss: 0.0,
            wants_end: false,
            losses,
            tokens: report.tokens,
            images: report.images,
        };
        let (_, told) = self.tell(&[], &own)?;
        report.tokens = told.iter().map(|t| t.tokens).sum();
        report.images = told.iter().map(|t| t.images).sum();
        let of_source = |source: usize| {
            let own = told.iter().flat_map(|t| &t.losses).filter(|(s, ..)| *s == source);
            let (mut loss, mut targets, mut count) = (0.0, 0, 0);
            for (_, l, t) in own {
                (loss, targets, count) = (loss + l, targets + t, count + 1);
            }
            (count > 0).then(|| SourceLoss { source, loss: loss / f64::from(count), targets })
        };
        report.losses = (0..self.names.len()).filter_map(of_source).collect();
        Ok(())
    }

    /// What is due after a step.
    fn after(&mut self, report: &Report) -> Result<()> {
        (self.watch)(Event::Step { report, names: &self.names });
        if let Some(why) = &report.skipped {
            return self.after_skipped(report, why);
        }
        self.skipped = 0;
        let (step, every) = (report.step, self.config.run.clone());
        let is_due = |every: u64| every > 0 && step.is_multiple_of(every);
        if is_due(every.log_every) || step == every.steps {
            self.log(report);
        }
        if is_due(every.validate_every) {
            self.validate(step)?;
        }
        if is_due(every.sample_every) {
            self.sample(step)?;
        }
        if is_due(every.checkpoint_every) {
            self.save(step, false)?;
        }
        Ok(())
    }

    fn after_skipped(&mut self, report: &Report, why: &Skipped) -> Result<()> {
        self.skipped += 1;
        let (step, count) = (report.step, self.skipped);
        self.note(step, format!("a step after step {step} was left out: {why:?}"));
        if count <= self.config.run.most_skipped {
            return Ok(());
        }
        let expected = format!("at most {} steps in a row left out", self.config.run.most_skipped);
        Err(Error::invalid("training", expected, count).advise(
            "the newest checkpoint is from before; lower the learning rate, or look at the data",
        ))
    }

    fn note(&mut self, step: u64, what: String) {
        if let Some(metrics) = &mut self.metrics {
            // The note is for people; that it cannot be written, too, changes nothing.
            let _ = metrics.event("note", step, &what);
        }
        (self.watch)(Event::Note(what));
    }

    fn log(&mut self, report: &Report) {
        let loss = |l: &SourceLoss| (format!("loss/{}", self.names[l.source]), l.loss);
        let mut numbers: Vec<(String, f64)> = report.losses.iter().map(loss).collect();
        let elapsed = self.began.elapsed().as_secs_f64();
        let waited: f64 = self.sources.iter().map(|s| s.waited().0.as_secs_f64()).sum();
        let seconds = report.seconds.gradients + report.seconds.optimizer;
        let more = [
            ("loss", report.loss),
            ("lr", report.lr),
            ("grad_norm", report.grad_norm),
            ("tokens", report.tokens as f64),
            ("images", report.images as f64),
            ("tokens_per_second", report.tokens as f64 / seconds.max(1e-9)),
            ("data_wait_share", waited / elapsed.max(1e-9)),
            ("sum_wait_share", report.seconds.waiting / seconds.max(1e-9)),
            ("skipped", self.trainer.progress().skipped as f64),
        ];
        numbers.extend(more.map(|(name, value)| (name.to_string(), value)));
        self.write(report.step, |metrics| metrics.numbers("train", report.step, &numbers));
    }

    /// Metrics that cannot be written do not end a run.
    fn write(&mut self, step: u64, body: impl FnOnce(&mut Metrics) -> Result<()>) {
        let Some(metrics) = &mut self.metrics else { return };
        if let Err(e) = body(metrics) {
            (self.watch)(Event::Note(format!("metrics of step {step} were not written: {e}")));
        }
    }

    fn validate(&mut self, step: u64) -> Result<()> {
        let measured = validation::run(&self.config, &self.model, &self.comm, &mut self.trainer)?;
        let loss = |m: &Measured| (format!("loss/{}", m.name), m.loss);
        let numbers: Vec<_> = measured.iter().map(loss).collect();
        self.write(step, |metrics| metrics.numbers("validation", step, &numbers));
        (self.watch)(Event::Validated { measured: &measured });
        Ok(())
    }

    fn sample(&mut self, step: u64) -> Result<()> {
        let mode = self.config.train.mask_mode.at_inference();
        let all = samples::run(&self.samples, &mut self.model, &self.trainer, mode)?;
        let text: String = all
            .iter()
            .map(|s| format!("- {} **{}**\n", s.prompt.escape_debug(), s.text.escape_debug()))
            .collect();
        self.write(step, |metrics| metrics.text(step, "samples", &text));
        Ok(())
    }

    /// Saves; a full disk ends the run only if it is the end anyway, or again and again.
    fn save(&mut self, step: u64, is_last: bool) -> Result<()> {
        let (config, identity) = (&self.config, &self.identity);
        let content = state::content(config, identity, &self.trainer, &self.rows, &self.sources)?;
        let saved = self.checkpoints.save(&self.comm, step, &content)?;
        match saved {
            Ok(folder) => {
                (self.saved_at, self.unsaved) = (step, 0);
                (self.watch)(Event::Saved { folder });
                Ok(())
            }
            Err(e) => {
                self.unsaved += 1;
                if is_last || self.unsaved >= MOST_UNSAVED {
                    return Err(e);
                }
                self.note(step, format!("no checkpoint of step {step}: {e}; training goes on"));
                Ok(())
            }
        }
    }
}

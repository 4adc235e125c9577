//! Training: batches in, better weights out. A [`Trainer`] owns a device, a model, its gradients
//! and the state of its optimiser; everything that changes while training is in it.
//!
//! A step is [`Trainer::accumulate`] for each micro-batch, then [`Trainer::update`]; with [`Sums`]
//! the gradients are added up over ranks meanwhile. [`Trainer::step`] is both for one rank.

mod batch;
pub mod data;
mod guard;
mod optimizer;
mod options;
mod ranks;

pub use crate::model::{ALIGN, Parameter, Recompute, Shard, Sums, Trained};
pub use batch::{Batch, NO_LABEL, Sample};
pub use guard::{Guard, Skipped};
pub use optimizer::StateTensor;
pub use options::{
    Decayed, OptimizerOptions, Outliers, Precision, Schedule, ScheduleKind, TrainOptions,
};
pub use ranks::OverRanks;

use crate::device::Stream;
use crate::image::Preprocess;
use crate::model::{Config, Gradients, MaskMode, Packed, Parameters, Purpose, Training};
use crate::ops;
use crate::tensor::{Tensor, View, ViewMut};
use crate::weights::Weights;
use crate::{DType, Error, Result};
use optimizer::Optimizer;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::time::Instant;

/// Everything that changes while training.
pub struct Trainer {
    stream: Stream,
    config: Config,
    options: TrainOptions,
    model: Training,
    params: Parameters,
    grads: Gradients,
    optimizer: Optimizer,
    shard: Shard,
    own: Range<usize>,
    /// Of each part of the own gradients the sum of squares, and how many are not finite.
    squares: Tensor,
    progress: Progress,
    pending: Pending,
}

/// Where a run is, besides its tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps that changed the parameters.
    pub steps: u64,
    /// Steps that were left out.
    pub skipped: u64,
    pub guard: Guard,
}

/// The loss of one source.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SourceLoss {
    pub source: usize,
    /// Mean over the labelled tokens of a micro-batch, and over micro-batches, nats.
    pub loss: f64,
    /// Labelled tokens.
    pub targets: usize,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Steps that have changed the parameters, this one included.
    pub step: u64,
    pub lr: f64,
    /// By source, those that had labelled tokens.
    pub losses: Vec<SourceLoss>,
    /// Their weighted sum, which the gradients are of.
    pub loss: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    pub tokens: usize,
    pub images: usize,
    /// Why nothing was changed, if nothing was.
    pub skipped: Option<Skipped>,
    pub seconds: Seconds,
}

/// Where the time of a step went, as the host sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// Losses and gradients, with their sums over ranks.
    pub gradients: f64,
    /// Norm, clipping and update.
    pub optimizer: f64,
    /// Of those of gradients: waiting for sums over ranks that had not ended when they were needed.
    /// On a card the queue waits, which the host does not see.
    pub waiting: f64,
}

/// What has been accumulated since the last update.
#[derive(Clone, Debug, Default)]
struct Pending {
    micro_batches: usize,
    /// Sum of the means, micro-batches with labels, labelled tokens; by source.
    losses: Vec<(f64, usize, usize)>,
    loss: f64,
    tokens: usize,
    images: usize,
    seconds: f64,
}

impl Trainer {
    /// A trainer of the model in `weights`, which are copied to the device where they are not on
    /// it; bytes of pixels stand for what `preprocess` says. With `sums`, each micro-batch's
    /// gradients are added up over ranks, and those of a rank's share and the optimiser's state of
    /// it are what is here.
    ///
    /// # Errors
    /// Options that contradict each other or the model, a missing tensor, too little memory.
    pub fn new(
        stream: Stream,
        weights: &mut Weights,
        config: &Config,
        preprocess: &Preprocess,
        options: TrainOptions,
        sums: Option<Box<dyn Sums>>,
    ) -> Result<Self> {
        options.check(config.dtype.into())?;
        let shard = sums.as_ref().map_or(Shard::WHOLE, |sums| sums.shard());
        if shard.rank >= shard.world {
            let expected = format!("a rank below {}", shard.world);
            return Err(Error::invalid("shard", expected, shard.rank));
        }
        weights.place(&stream)?;
        let params = Parameters::load(&stream, weights, config, &options.trained)?;
        let trained = options.trained;
        let model = Training::load(&stream, weights, config, preprocess, &params, trained)?;
        let own = shard.range(params.flat().cols());
        let (o, seed) = (&options.optimizer, options.seed);
        Ok(Trainer {
            optimizer: Optimizer::new(&stream, &params, o, seed, own.clone())?,
            grads: Gradients::new(&stream, &params, config, sums)?,
            squares: Tensor::zeros(&stream, DType::F32, &[own.len() / ALIGN, 2])?,
            config: config.clone(),
            progress: Progress::default(),
            pending: Pending::default(),
            model,
            params,
            shard,
            own,
            options,
            stream,
        })
    }

    /// One optimiser step over `batches`, the micro-batches, on one rank.
    ///
    /// # Errors
    /// A batch that the model cannot read (nothing has changed then), too little memory, a failed
    /// device.
    pub fn step(&mut self, batches: &[Batch]) -> Result<Report> {
        batches.iter().try_for_each(|batch| batch.check(&self.config))?;
        self.pending = Pending::default();
        for batch in batches {
            self.accumulate(batch, batches.len())?;
        }
        let squares = self.squares()?;
        let loss = self.pending.loss;
        self.update(&squares, 1.0, loss)
    }

    /// Adds the gradients of one micro-batch out of `micro_batches`, those of all ranks together:
    /// of the sum over sources of weight times mean loss, divided by `micro_batches`.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn accumulate(&mut self, batch: &Batch, micro_batches: usize) -> Result<()> {
        let start = Instant::now();
        batch.check(&self.config)?;
        if self.pending.micro_batches == 0 {
            self.grads.clear();
        }
        let (placement, seed) = (self.options.mask_mode, self.options.seed);
        let forward = self.forward(micro_batches);
        let packed = self.pack(batch, |source| placement.mask(seed, forward, source));
        let shares: Vec<f64> = (packed.targets().iter().enumerate())
            .map(|(source, t)| {
                let parts = t.rows.len().max(1) * micro_batches.max(1);
                self.options.loss_weight(source) / parts as f64
            })
            .collect();
        let scales: Vec<f32> = shares.iter().map(|&s| s as f32).collect();
        let purpose = Purpose::Train { scales: &scales, recompute: self.options.recompute };
        let rows = self.options.logit_rows;
        let (stream, params, grads) = (&self.stream, &self.params, &mut self.grads);
        let sums = self.model.run(stream, params, grads, &packed, rows, purpose)?;
        grads.complete(stream, params)?;
        let pending = &mut self.pending;
        pending.micro_batches += 1;
        pending.tokens += batch.tokens();
        pending.images += batch.images();
        pending.losses.resize(packed.targets().len().max(pending.losses.len()), (0.0, 0, 0));
        for (source, (sum, share)) in sums.iter().zip(&shares).enumerate() {
            let count = packed.targets()[source].rows.len();
            if count > 0 {
                let of_source = &mut pending.losses[source];
                of_source.0 += f64::from(*sum) / count as f64;
                of_source.1 += 1;
                of_source.2 += count;
                pending.loss += f64::from(*sum) * share;
            }
        }
        pending.seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// The weighted loss that has been accumulated since the last update.
    pub fn loss(&self) -> f64 {
        self.pending.loss
    }

    /// Gradients of this rank's share accumulated since the last update, (1, elements) f32: those
    /// of [`Trainer::parameters`], each in its range, from [`Trainer::own`] on.
    ///
    /// # Errors
    /// If the device or a rank has failed.
    pub fn gradients(&mut self) -> Result<View<'_>> {
        self.grads.settle(&self.stream, &self.params)?;
        Ok(self.grads.own())
    }

    /// Sums of squares of the gradients in this rank's share, [`ALIGN`] elements each: those of all
    /// ranks one after another are the same however many ranks there are.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn squares(&mut self) -> Result<Vec<f32>> {
        let start = Instant::now();
        self.grads.settle(&self.stream, &self.params)?;
        self.pending.seconds += start.elapsed().as_secs_f64();
        if self.own.is_empty() {
            return Ok(Vec::new());
        }
        ops::square_sum(&self.stream, self.squares.view_mut(), self.grads.own())?;
        let parts = self.squares.view().read::<f32>()?;
        let sum = |p: &[f32]| if p[1] == 0.0 { p[0] } else { f32::NAN };
        Ok(parts.chunks_exact(2).map(sum).collect())
    }

    /// Changes the parameters of this rank's share by the gradients times `scale`, clipped, and
    /// forgets what was accumulated. `squares` are those of all ranks in order, `loss` is the mean
    /// of theirs. Where norm or loss is not finite, or an outlier, nothing changes.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn update(&mut self, squares: &[f32], scale: f64, loss: f64) -> Result<Report> {
        let start = Instant::now();
        let sum: f64 = squares.iter().map(|&x| f64::from(x)).sum();
        let grad_norm = scale * sum.sqrt();
        let skipped = self.progress.guard.judge(&self.options.outliers, loss, grad_norm);
        let lr = self.options.schedule.at(self.progress.steps);
        if skipped.is_some() {
            self.progress.skipped += 1;
        } else {
            let clip = self.options.clip;
            // As torch.nn.utils.clip_grad_norm_.
            let limit = if clip > 0.0 { (clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
            let (grads, step) = (self.grads.own(), self.progress.steps + 1);
            let _phase = self.stream.phase("optimizer");
            let factor = (scale * limit) as f32;
            self.optimizer.step(&self.stream, &mut self.params, grads, step, lr, factor)?;
            self.progress.steps = step;
        }
        let Pending { losses, tokens, images, seconds, .. } = std::mem::take(&mut self.pending);
        let of_source = |(source, (sum, count, targets)): (usize, (f64, usize, usize))| {
            (count > 0).then(|| SourceLoss { source, loss: sum / count as f64, targets })
        };
        let seconds = Seconds {
            gradients: seconds,
            optimizer: start.elapsed().as_secs_f64(),
            waiting: self.grads.waited().as_secs_f64(),
        };
        Ok(Report {
            step: self.progress.steps,
            lr,
            losses: losses.into_iter().enumerate().filter_map(of_source).collect(),
            loss,
            grad_norm,
            tokens,
            images,
            skipped,
            seconds,
        })
    }

    /// The losses of a batch; nothing changes.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn evaluate(&mut self, batch: &Batch) -> Result<Vec<SourceLoss>> {
        batch.check(&self.config)?;
        let mask = self.options.mask_mode.at_inference();
        let packed = self.pack(batch, |_| mask);
        let (rows, purpose) = (self.options.logit_rows, Purpose::Evaluate);
        let (stream, params, grads) = (&self.stream, &self.params, &mut self.grads);
        let sums = self.model.run(stream, params, grads, &packed, rows, purpose)?;
        let each = packed.targets().iter().zip(sums).enumerate();
        let of_source = |(source, (t, sum)): (usize, (&crate::model::Targets, f32))| {
            let targets = t.rows.len();
            let loss = f64::from(sum) / targets as f64;
            (targets > 0).then_some(SourceLoss { source, loss, targets })
        };
        Ok(each.filter_map(of_source).collect())
    }

    /// The number of the next forward among those of all ranks, since the run began. Micro-batch
    /// `turn` of rank r of W is the (turn W + r)-th of a step: the records of one sequence a source
    /// are in the same order, so that these are forwards of the same data for every W.
    fn forward(&self, micro_batches: usize) -> u64 {
        let Shard { rank, world } = self.shard;
        let steps = self.progress.steps + self.progress.skipped;
        let own = self.pending.micro_batches * world + rank;
        steps * micro_batches as u64 + own as u64
    }

    fn pack<'a>(&self, batch: &'a Batch, mask: impl Fn(usize) -> MaskMode) -> Packed<'a> {
        let sources = batch.sequences.iter().map(|s| s.source + 1).max().unwrap_or(0);
        let mut packed = Packed::new(sources);
        for s in &batch.sequences {
            let label = |i: usize| u32::try_from(s.labels[i]).ok();
            let images = s.images.iter().map(|p| p.as_slice());
            packed.push(&self.config, mask(s.source), &s.ids, label, images, s.source);
        }
        packed
    }

    /// Everything that must be saved, with [`Trainer::progress`], for a run to go on to the bit.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn state(&self) -> Result<Vec<StateTensor<'_>>> {
        self.optimizer.state(&self.params)
    }

    /// Goes back to what [`Trainer::state`] and [`Trainer::progress`] were: `read` fills each
    /// tensor, by its name.
    ///
    /// # Errors
    /// Those of `read`; some tensors may have been filled then.
    pub fn restore(
        &mut self,
        progress: Progress,
        read: &mut dyn FnMut(&str, ViewMut<'_>) -> Result<()>,
    ) -> Result<()> {
        self.optimizer.restore(&mut self.params, read)?;
        self.pending = Pending::default();
        self.progress = progress;
        Ok(())
    }

    /// Steps so far, and what the guard remembers of them.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What is trained, in the order of names.
    pub fn parameters(&self) -> &[Parameter] {
        self.params.trained()
    }

    /// All that is trained, (1, elements), in the weights' type.
    pub fn flat(&self) -> View<'_> {
        self.params.flat()
    }

    /// Lets `change` write into all that is trained, as after an exchange between ranks.
    ///
    /// # Errors
    /// Those of `change`; if the device has failed.
    pub fn exchange(
        &mut self,
        change: &mut dyn FnMut(&Stream, ViewMut<'_>) -> Result<()>,
    ) -> Result<()> {
        change(&self.stream, self.params.flat_mut())?;
        self.params.refresh()
    }

    /// This rank's elements of the flat tensors.
    pub fn own(&self) -> Range<usize> {
        self.own.clone()
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// Bytes held, by what for; those of activations are what the steps so far have needed.
    pub fn memory(&self) -> Memory {
        Memory {
            parameters: self.params.flat().bytes(),
            gradients: self.grads.bytes(),
            optimizer: self.optimizer.bytes(),
            activations: self.model.bytes(),
        }
    }
}

/// Bytes of a trainer, besides frozen weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    pub parameters: usize,
    pub gradients: usize,
    pub optimizer: usize,
    pub activations: usize,
}

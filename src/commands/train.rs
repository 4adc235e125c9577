//! `medflamingo train`

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use medflamingo::comm::{Comm, Launch};
use medflamingo::convert::Spec;
use medflamingo::convert::quantize::{Choice, Part, Precision};
use medflamingo::device::Device;
use medflamingo::model::{Config, preset};
use medflamingo::run::plan::{Shape, Stored, bytes_of};
use medflamingo::run::{Disk, Event, RunConfig, Start, Stop, train};
use medflamingo::train::{Report, Trained};
use medflamingo::weights::{INDEX, SINGLE};
use medflamingo::{Error, Result};
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

/// Train a model folder as a TOML file says: upstream's choice of parts, or all of them.
///
/// The run's folder gets the complete configuration, checkpoints, metrics (JSONL, TensorBoard).
/// Ctrl-C saves and ends, a second one ends at once. Several cards: start it with torchrun, srun or
/// mpirun, one process per card.
///
/// Research software. Not a medical device.
#[derive(Args)]
pub struct Train {
    /// The run's configuration
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// Go on with the run in run.folder, from its newest checkpoint that holds
    #[arg(long)]
    resume: bool,
    /// Print the memory that the run needs, by kind of tensor, and do nothing
    #[arg(long)]
    plan: bool,
    /// With --plan: a card's memory, such as 80GB, and what would make the run fit
    #[arg(long, value_name = "SIZE", requires = "plan", value_parser = bytes_of)]
    memory: Option<u64>,
    /// With --plan: ranks that share the optimiser's state
    #[arg(long, value_name = "N", requires = "plan", default_value_t = 1)]
    ranks: usize,
    /// With --plan: as JSON
    #[arg(long, requires = "plan")]
    json: bool,
}

impl Train {
    pub fn run(self) -> Result<()> {
        let config = RunConfig::read(&self.config)?;
        if self.plan {
            return self.show_plan(&config);
        }
        let launch = Launch::from_environment(&|name| std::env::var(name).ok())?;
        let timeout = Duration::from_secs(config.run.timeout_seconds);
        let comm = match &launch {
            Some(launch) => Comm::join(launch, timeout)?,
            None => Comm::Single,
        };
        let device = match (config.run.device.parse()?, &launch) {
            // The launcher has said which card is whose.
            (Device::Auto, Some(l)) if l.world > 1 && Device::auto().0 != Device::Host => {
                Device::Cuda(l.local_rank)
            }
            (device, _) => device,
        };
        let queue = device.open(config.run.threads)?;
        if let Some(why) = queue.fallback() {
            eprintln!("note: on the CPU: {why}");
        }
        let mut watcher = Watcher::new(comm.rank() == 0, queue.describe());
        let stop = Stop::on_signals()?;
        let start = Start { config, is_resumed: self.resume, stop, disk: Disk::default() };
        let ended = train(start, comm, queue, &mut |event| watcher.see(event))?;
        watcher.finish();
        if ended.is_early {
            eprintln!("saved at step {}; go on with --resume", ended.step);
            return Err(Error::Cancelled);
        }
        Ok(())
    }

    fn show_plan(&self, config: &RunConfig) -> Result<()> {
        let architecture = match (&config.model.folder, &config.model.preset) {
            (Some(folder), _) => Config::read(&folder.join("config.json"))?,
            (None, name) => preset(name.as_deref().unwrap_or_default())?,
        };
        config.train.check(architecture.dtype.into())?;
        if !(1..=65536).contains(&self.ranks) {
            return Err(Error::invalid("--ranks", "1 to 65536", self.ranks));
        }
        let mut shape = Shape::of(config, &architecture, self.ranks);
        let trained = &config.train.trained;
        let has_weights =
            |folder: &&PathBuf| [SINGLE, INDEX].iter().any(|name| folder.join(name).exists());
        if let Some(folder) = config.model.folder.as_ref().filter(has_weights) {
            shape.weights = Stored::read(folder, trained)?;
        }
        if !shape.weights.has_codes {
            shape.int8 = frozen_int8(&architecture, trained);
        }
        let plan = match self.memory {
            Some(bytes) => shape.plan_for(bytes)?,
            None => shape.plan()?,
        };
        if self.json {
            return super::print_json(&plan);
        }
        super::print_text(&plan.to_string());
        Ok(())
    }
}

/// The weights as `medflamingo-tools quantize` would store them, with 8 bits where nothing is
/// trained.
fn frozen_int8(config: &Config, trained: &Trained) -> Option<Stored> {
    let parts = Part::ALL.into_iter().filter(|part| !match part {
        Part::Vision => trained.vision,
        Part::Resampler => trained.resampler,
        Part::Xattn => trained.gated_blocks,
        Part::Language | Part::Head => trained.language,
    });
    let choice = Choice { weights: Precision::Int8, parts: parts.collect() };
    let specs = choice.stored(config);
    let has_codes = specs.iter().any(|spec| !spec.dtype.is_float());
    let bytes: usize = specs.iter().filter_map(Spec::bytes).sum();
    has_codes.then_some(Stored { bytes: bytes as u64, has_codes })
}

/// Progress for people: a bar on a terminal, else a line now and then.
struct Watcher {
    bar: ProgressBar,
    is_terminal: bool,
    is_first: bool,
    device: String,
    steps: u64,
}

impl Watcher {
    fn new(is_first: bool, device: String) -> Self {
        let is_terminal = is_first && std::io::stderr().is_terminal();
        let bar = if is_terminal { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} [{eta}]");
        let bar = style.map_or(bar.clone(), |style| bar.with_style(style));
        Watcher { bar, is_terminal, is_first, device, steps: 0 }
    }

    fn say(&self, line: &str) {
        if self.is_terminal {
            self.bar.suspend(|| eprintln!("{line}"));
        } else if self.is_first {
            eprintln!("{line}");
        }
    }

    fn see(&mut self, event: Event<'_>) {
        match event {
            Event::Began { step, steps, trained } => {
                self.steps = steps;
                self.bar.set_length(steps);
                self.bar.set_position(step);
                let from =
                    if step > 0 { format!("goes on at step {step}") } else { "begins".into() };
                let millions = trained as f64 / 1e6;
                self.say(&format!(
                    "{from}: {steps} steps, {millions:.2} M parameters, {}",
                    self.device
                ));
            }
            Event::Step { report, names } => self.step(report, names),
            Event::Validated { measured } => {
                let each = measured.iter().map(|m| format!("{} {:.4}", m.name, m.loss));
                self.say(&format!("validation: {}", each.collect::<Vec<_>>().join(", ")));
            }
            Event::Saved { folder } => self.say(&format!("saved {}", folder.display())),
            Event::Note(what) => self.say(&format!("note: {what}")),
        }
    }

    fn step(&mut self, report: &Report, names: &[String]) {
        let mut text = String::new();
        for l in &report.losses {
            let _ = write!(text, "{} {:.4}  ", names[l.source], l.loss);
        }
        let _ = write!(text, "|g| {:.3}  lr {:.2e}", report.grad_norm, report.lr);
        self.bar.set_position(report.step);
        self.bar.set_message(text.clone());
        // Some fifty lines of a run whose output nobody watches.
        let every = (self.steps / 50).max(1);
        if !self.is_terminal && (report.step.is_multiple_of(every) || report.step == self.steps) {
            self.say(&format!("step {}/{}  {text}", report.step, self.steps));
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

//! The configuration of a run: one TOML file, whose every key is known, checked, and written back
//! complete into the run's folder.

mod source;

pub use source::{SourceForm, SourceOptions};

use crate::device::Device;
use crate::model::preset;
use crate::train::TrainOptions;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// No configuration is longer, bytes.
const MOST: u64 = 1 << 20;

/// Everything that a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    pub run: RunOptions,
    pub model: ModelOptions,
    #[serde(default)]
    pub train: TrainOptions,
    /// What is trained on; a micro-batch has sequences of each.
    #[serde(default, rename = "source", skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceOptions>,
    /// What is only looked at, from time to time.
    #[serde(default, rename = "validation", skip_serializing_if = "Vec::is_empty")]
    pub validation: Vec<SourceOptions>,
    /// Prompts that are continued from time to time.
    #[serde(default, rename = "sample", skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<SampleOptions>,
}

/// How long, where to, and how often what is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunOptions {
    /// Of configuration, checkpoints and metrics.
    pub folder: PathBuf,
    /// Optimiser steps.
    pub steps: u64,
    /// Micro-batches of each rank in a step.
    #[serde(default = "defaults::one")]
    pub micro_batches: usize,
    /// Of the order of the data and of stochastic rounding.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// auto, cpu, cuda or cuda:N; a launcher's processes take a card each.
    #[serde(default = "defaults::device")]
    pub device: String,
    /// On the CPU; 0 is one per core.
    #[serde(default)]
    pub threads: usize,
    /// Micro-batches are summed one by one, as several ranks do it: then 1, 2, 4 and 8 ranks give
    /// the same bits. Without it a single rank adds them up in place, which saves the memory of two
    /// buckets of gradients, and their copies.
    #[serde(default = "defaults::exact_sums")]
    pub exact_sums: bool,
    /// Steps between two checkpoints.
    #[serde(default = "defaults::checkpoint_every")]
    pub checkpoint_every: u64,
    /// How many checkpoints stay.
    #[serde(default = "defaults::keep")]
    pub keep_checkpoints: usize,
    /// Steps between two lines of metrics.
    #[serde(default = "defaults::one_step")]
    pub log_every: u64,
    /// Steps between two validations; 0 for none.
    #[serde(default)]
    pub validate_every: u64,
    /// Sequences of each validation source.
    #[serde(default = "defaults::validation_sequences")]
    pub validation_sequences: usize,
    /// Steps between two rounds of samples; 0 for none.
    #[serde(default)]
    pub sample_every: u64,
    /// Steps in a row that may be left out because they are not finite, or outliers.
    #[serde(default = "defaults::most_skipped")]
    pub most_skipped: u64,
    /// How long a rank waits for the others.
    #[serde(default = "defaults::timeout")]
    pub timeout_seconds: u64,
}

mod defaults {
    pub fn one() -> usize {
        1
    }
    pub fn one_step() -> u64 {
        1
    }
    pub fn seed() -> u64 {
        42
    }
    pub fn device() -> String {
        "auto".into()
    }
    pub fn exact_sums() -> bool {
        true
    }
    pub fn checkpoint_every() -> u64 {
        500
    }
    pub fn keep() -> usize {
        3
    }
    pub fn validation_sequences() -> usize {
        256
    }
    pub fn most_skipped() -> u64 {
        20
    }
    pub fn timeout() -> u64 {
        60
    }
    pub fn weight() -> f64 {
        1.0
    }
    pub fn new_tokens() -> usize {
        32
    }
}

/// What training begins with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelOptions {
    /// A model folder, of `medflamingo-tools convert` or `synth`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// A published shape instead, of which `--plan` says what it would need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
}

/// A prompt that is continued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleOptions {
    pub prompt: String,
    #[serde(default)]
    pub images: Vec<PathBuf>,
    #[serde(default = "defaults::new_tokens")]
    pub max_new_tokens: usize,
}

impl RunOptions {
    /// True if `world` ranks keep sums apart from the gradients of a micro-batch.
    pub fn has_sums(&self, world: usize) -> bool {
        world > 1 || (self.exact_sums && self.micro_batches > 1)
    }
}

impl RunConfig {
    /// Reads, completes and checks a file. Paths in it are relative to its folder.
    ///
    /// # Errors
    /// Names the line or the key, what it may be and what it is.
    pub fn read(path: &Path) -> Result<Self> {
        let length = path.metadata().map_err(|e| Error::io("read", path, e))?.len();
        if length > MOST {
            let expected = format!("at most {MOST} bytes");
            return Err(Error::invalid(path.display(), expected, length));
        }
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let folder = super::disk::parent(path);
        let folder = std::path::absolute(folder).map_err(|e| Error::io("find", path, e))?;
        Self::parse(&text, &folder).map_err(|e| e.within(path.display()))
    }

    /// As [`RunConfig::read`], of a file's text.
    ///
    /// # Errors
    /// As [`RunConfig::read`].
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        let mut config: RunConfig = toml::from_str(text).map_err(|e| located(text, &e))?;
        let raw: toml::Table = toml::from_str(text).map_err(|e| located(text, &e))?;
        let schedule = raw.get("train").and_then(|t| t.get("schedule"));
        if schedule.and_then(|s| s.get("total_steps")).is_none() {
            config.train.schedule.total_steps = config.run.steps;
        }
        config.complete(folder)?;
        config.check()?;
        Ok(config)
    }

    /// The whole of it, as TOML.
    ///
    /// # Errors
    /// Never for one that was read.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::invalid("configuration", "TOML", e))
    }

    /// The whole of it, for a checkpoint.
    ///
    /// # Errors
    /// As [`RunConfig::to_toml`].
    pub fn to_json(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|e| Error::invalid("configuration", "JSON", e))
    }

    fn complete(&mut self, folder: &Path) -> Result<()> {
        let at = |path: &mut PathBuf| *path = folder.join(&*path);
        at(&mut self.run.folder);
        self.model.folder.iter_mut().for_each(at);
        for source in self.sources.iter_mut().chain(&mut self.validation) {
            source.shards.iter_mut().for_each(|s| *s = folder.join(&*s).display().to_string());
            source.file.iter_mut().chain(&mut source.images).for_each(at);
            source.complete();
        }
        self.samples.iter_mut().flat_map(|s| &mut s.images).for_each(at);
        let weights: Vec<f64> = self.sources.iter().map(|s| s.weight).collect();
        let given = std::mem::replace(&mut self.train.loss_weights, weights);
        if !given.is_empty() && given != self.train.loss_weights {
            let found = format!("{given:?}");
            return Err(Error::invalid("train.loss_weights", "weight in each [[source]]", found));
        }
        if self.train.seed == 0 {
            self.train.seed = self.run.seed;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let r = &self.run;
        const STEPS: u64 = 1 << 40;
        for (name, value, least, most) in [
            ("run.steps", r.steps, 1, STEPS),
            ("run.micro_batches", r.micro_batches as u64, 1, 1 << 16),
            ("run.threads", r.threads as u64, 0, 1024),
            ("run.checkpoint_every", r.checkpoint_every, 1, STEPS),
            ("run.keep_checkpoints", r.keep_checkpoints as u64, 1, 10_000),
            ("run.log_every", r.log_every, 1, STEPS),
            ("run.validate_every", r.validate_every, 0, STEPS),
            ("run.validation_sequences", r.validation_sequences as u64, 1, 1 << 32),
            ("run.sample_every", r.sample_every, 0, STEPS),
            ("run.most_skipped", r.most_skipped, 0, STEPS),
            ("run.timeout_seconds", r.timeout_seconds, 1, 86_400),
        ] {
            if !(least..=most).contains(&value) {
                return Err(Error::invalid(name, format!("{least} to {most}"), value));
            }
        }
        r.device.parse::<Device>().map_err(|e| e.within("run.device"))?;
        let schedule = &self.train.schedule;
        if schedule.warmup_steps >= r.steps {
            let expected = format!("less than run.steps = {}", r.steps);
            return Err(Error::invalid(
                "train.schedule.warmup_steps",
                expected,
                schedule.warmup_steps,
            )
            .advise("the learning rate would never be reached; 5000 unless given"));
        }
        match (&self.model.folder, &self.model.preset) {
            (Some(_), None) => {}
            (None, Some(name)) => drop(preset(name).map_err(|e| e.within("model"))?),
            (None, None) => return Err(Error::invalid("model", "folder or preset", "neither")),
            (Some(_), Some(_)) => return Err(Error::invalid("model", "folder or preset", "both")),
        }
        self.check_sources()?;
        match self.samples.iter().find(|s| !(1..=4096).contains(&s.max_new_tokens)) {
            Some(s) => Err(Error::invalid("sample.max_new_tokens", "1 to 4096", s.max_new_tokens)),
            None => Ok(()),
        }
    }

    fn check_sources(&self) -> Result<()> {
        for (kind, list) in [("source", &self.sources), ("validation", &self.validation)] {
            for (i, source) in list.iter().enumerate() {
                source.check().map_err(|e| e.within(format!("[[{kind}]] {}", source.name)))?;
                if list[..i].iter().any(|other| other.name == source.name) {
                    let found = format!("`{}` twice", source.name);
                    return Err(Error::invalid(format!("[[{kind}]] name"), "each once", found));
                }
            }
        }
        Ok(())
    }

    /// The first key on which what is computed depends and that is not as `before`: its name, and
    /// both values.
    ///
    /// # Errors
    /// As [`RunConfig::to_json`].
    pub fn difference(&self, before: &Value) -> Result<Option<(String, String, String)>> {
        /// What a run may change between two of its parts.
        const FREE: [&str; 13] = [
            "run.folder",
            "run.steps",
            "run.device",
            "run.threads",
            "run.checkpoint_every",
            "run.keep_checkpoints",
            "run.log_every",
            "run.validate_every",
            "run.validation_sequences",
            "run.sample_every",
            "run.most_skipped",
            "run.timeout_seconds",
            "sample",
        ];
        let now = self.to_json()?;
        let is_free = |at: &str| {
            let is_worker = at.starts_with("source[")
                && [".threads", ".ahead", ".max_bad_share"].iter().any(|end| at.ends_with(end));
            FREE.contains(&at) || at.starts_with("validation") || is_worker
        };
        Ok(differing("", before, &now, &is_free))
    }
}

/// Where two values first differ: the key, what it was and what it is.
pub fn first_difference(before: &Value, now: &Value) -> Option<(String, String, String)> {
    differing("", before, now, &|_| false)
}

/// Where two values first differ, by path, but for what `is_free`.
fn differing(
    at: &str,
    before: &Value,
    now: &Value,
    is_free: &dyn Fn(&str) -> bool,
) -> Option<(String, String, String)> {
    if before == now || is_free(at) {
        return None;
    }
    match (before, now) {
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
            let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            let (a, b) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
            differing(&path, a, b, is_free)
        }),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let mut each = a.iter().zip(b).enumerate();
            each.find_map(|(i, (a, b))| differing(&format!("{at}[{i}]"), a, b, is_free))
        }
        _ => Some((at.to_string(), before.to_string(), now.to_string())),
    }
}

/// What is wrong, with the line where it is.
fn located(text: &str, e: &toml::de::Error) -> Error {
    let start = e.span().map_or(0, |span| span.start.min(text.len()));
    let number = text.get(..start).map_or(1, |before| before.matches('\n').count() + 1);
    let line = text.lines().nth(number - 1).unwrap_or_default().trim();
    let line: String = line.chars().take(80).collect();
    let who =
        if line.is_empty() { format!("line {number}") } else { format!("line {number}, `{line}`") };
    Error::invalid(who, "keys and values of a training configuration", e.message())
        .advise("examples/train.toml has every key")
}

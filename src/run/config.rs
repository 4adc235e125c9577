//! The configuration of a run: one TOML file, whose every key is known, checked, and written back
//! complete into the run's folder.

use crate::device::Device;
use crate::model::preset;
use crate::train::TrainOptions;
use crate::train::data::{Form, LabelRules, Matching, Rules, Source, StreamOptions};
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
    /// the same bits. Without it a single rank adds them up in place, which saves a copy of the
    /// gradients.
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

/// One source of samples. What is not given is as upstream has it for the form and the labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceOptions {
    /// In metrics: letters, digits, `-` and `_`.
    pub name: String,
    pub form: SourceForm,
    /// Tar files of pairs and interleaved documents: paths, folders, `{000..127}`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<String>,
    /// A JSONL file of `image` and `caption`, and the folder of its images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// Sequences in a micro-batch.
    #[serde(default = "defaults::one")]
    pub batch: usize,
    /// Factor of its loss.
    #[serde(default = "defaults::weight")]
    pub weight: f64,
    #[serde(default)]
    pub labels: LabelRules,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_images: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_images: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matching: Option<Matching>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_image_bytes: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub single_image_drop: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps_image_order: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flip: Option<f64>,
    /// Records among which the next is drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer: Option<usize>,
    /// Threads that decode, and samples that they keep ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<usize>,
    /// The run ends when a larger share of the records is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bad_share: Option<f64>,
}

/// What a source's records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceForm {
    /// Shards of a picture and its caption.
    Pairs,
    /// A JSONL file of pictures and captions.
    Lines,
    /// Shards of documents with pictures in them.
    Interleaved,
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
    /// True if `world` ranks keep sums apart from the gradients that are added to them.
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
            return Err(Error::invalid("train.schedule.warmup_steps", expected, schedule.warmup_steps)
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
            Some(s) => {
                Err(Error::invalid("sample.max_new_tokens", "1 to 4096", s.max_new_tokens))
            }
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
    let who = if line.is_empty() { format!("line {number}") } else { format!("line {number}, `{line}`") };
    Error::invalid(who, "keys and values of a training configuration", e.message())
        .advise("examples/train.toml has every key")
}

impl SourceOptions {
    /// Fills in what is not given.
    fn complete(&mut self) {
        let (rules, stream) = (self.defaults(), StreamOptions::default());
        self.max_tokens.get_or_insert(rules.max_tokens);
        self.max_images.get_or_insert(rules.max_images);
        self.min_images.get_or_insert(rules.min_images);
        self.flip.get_or_insert(rules.flip);
        if self.form == SourceForm::Interleaved {
            self.matching.get_or_insert(rules.matching);
            self.similarity.get_or_insert(rules.similarity);
            self.min_image_bytes.get_or_insert(rules.min_image_bytes);
            self.single_image_drop.get_or_insert(rules.single_image_drop);
            self.keeps_image_order.get_or_insert(rules.keeps_image_order);
        }
        self.buffer.get_or_insert(stream.buffer);
        self.threads.get_or_insert(stream.threads);
        self.ahead.get_or_insert(stream.ahead);
        self.max_bad_share.get_or_insert(stream.max_bad_share);
    }

    fn defaults(&self) -> Rules {
        match self.form {
            SourceForm::Interleaved => Rules::interleaved(self.labels),
            _ => Rules::pairs(self.labels),
        }
    }

    fn check(&self) -> Result<()> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(is_plain) {
            let expected = "1 to 64 letters, digits, - and _";
            return Err(Error::invalid("name", expected, format!("`{}`", self.name)));
        }
        for (name, value, most) in [
            ("batch", self.batch, 1 << 16),
            ("max_tokens", self.max_tokens.unwrap_or(1), 1 << 20),
            ("max_images", self.max_images.unwrap_or(1), 4096),
        ] {
            if !(1..=most).contains(&value) {
                return Err(Error::invalid(name, format!("1 to {most}"), value));
            }
        }
        let shares = [
            ("flip", self.flip),
            ("single_image_drop", self.single_image_drop),
            ("max_bad_share", self.max_bad_share),
        ];
        for (name, value) in shares {
            if value.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
                return Err(Error::invalid(name, "0 to 1", value.unwrap_or_default()));
            }
        }
        if !(self.weight >= 0.0 && self.weight.is_finite()) {
            return Err(Error::invalid("weight", "0 or a positive number", self.weight));
        }
        let has_lines = self.file.is_some() || self.images.is_some();
        let is_complete = match self.form {
            SourceForm::Lines => {
                self.file.is_some() && self.images.is_some() && self.shards.is_empty()
            }
            _ => !self.shards.is_empty() && !has_lines,
        };
        if !is_complete {
            let expected = match self.form {
                SourceForm::Lines => "file and images, no shards (form lines)",
                _ => "shards, no file or images (forms pairs and interleaved)",
            };
            return Err(Error::invalid("place of the data", expected, "another choice of keys"));
        }
        Ok(())
    }

    /// Where the data is.
    pub fn source(&self) -> Source {
        let shards = self.shards.clone();
        match (self.form, &self.file, &self.images) {
            (SourceForm::Lines, Some(file), Some(images)) => {
                Source::Lines { file: file.clone(), images: images.clone() }
            }
            (SourceForm::Interleaved, ..) => Source::Interleaved { shards },
            _ => Source::Pairs { shards },
        }
    }

    /// Which documents become samples, and how.
    pub fn rules(&self) -> Rules {
        let d = self.defaults();
        Rules {
            form: match self.form {
                SourceForm::Interleaved => Form::Interleaved,
                _ => Form::Pairs,
            },
            labels: self.labels,
            max_tokens: self.max_tokens.unwrap_or(d.max_tokens),
            max_images: self.max_images.unwrap_or(d.max_images),
            min_images: self.min_images.unwrap_or(d.min_images),
            matching: self.matching.unwrap_or(d.matching),
            similarity: self.similarity.unwrap_or(d.similarity),
            min_image_bytes: self.min_image_bytes.unwrap_or(d.min_image_bytes),
            single_image_drop: self.single_image_drop.unwrap_or(d.single_image_drop),
            keeps_image_order: self.keeps_image_order.unwrap_or(d.keeps_image_order),
            flip: self.flip.unwrap_or(d.flip),
        }
    }

    /// How the source is gone through while training.
    pub fn stream(&self, seed: u64, number: usize, rank: usize, world: usize) -> StreamOptions {
        let d = StreamOptions::default();
        StreamOptions {
            seed,
            source: number,
            rank,
            world,
            buffer: self.buffer.unwrap_or(d.buffer),
            threads: self.threads.unwrap_or(d.threads),
            ahead: self.ahead.unwrap_or(d.ahead),
            max_bad_share: self.max_bad_share.unwrap_or(d.max_bad_share),
            ..d
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
[run]
folder = "out"
steps = 10
[model]
folder = "model"
[train.schedule]
warmup_steps = 2
[[source]]
name = "pairs"
form = "pairs"
shards = ["pairs/{00..03}.tar"]
weight = 0.2
"#;

    fn parse(text: &str) -> Result<RunConfig> {
        RunConfig::parse(text, Path::new("/data"))
    }

    #[test]
    fn what_is_not_given_is_upstreams_and_written_back() {
        let config = parse(SMALL).unwrap();
        assert_eq!(config.run.folder, Path::new("/data/out"));
        assert_eq!(config.sources[0].shards, ["/data/pairs/{00..03}.tar"]);
        assert_eq!(config.sources[0].max_tokens, Some(32));
        assert_eq!(config.train.loss_weights, [0.2]);
        assert_eq!((config.train.seed, config.train.schedule.total_steps), (42, 10));
        assert_eq!((config.train.schedule.lr, config.train.optimizer.weight_decay), (1e-4, 0.1));
        let text = config.to_toml().unwrap();
        let again = RunConfig::parse(&text, Path::new("/elsewhere")).unwrap();
        assert_eq!(again, config, "{text}");
        assert_eq!(config.sources[0].rules(), Rules::pairs(LabelRules::V2));
    }

    /// The example has every key that there is, and what it calls a default is one.
    #[test]
    fn the_example_has_every_key() {
        let text = include_str!("../../examples/train.toml");
        let example = parse(text).unwrap();
        fn keys(value: &Value, all: &mut Vec<String>) {
            match value {
                Value::Object(map) => map.iter().for_each(|(key, value)| {
                    all.push(key.clone());
                    keys(value, all);
                }),
                Value::Array(list) => list.iter().for_each(|value| keys(value, all)),
                _ => {}
            }
        }
        let mut all = Vec::new();
        keys(&example.to_json().unwrap(), &mut all);
        for key in all.iter().filter(|k| !["loss_weights", "seed"].contains(&k.as_str())) {
            assert!(text.contains(&format!("{key} = ")) || text.contains(&format!("{key}]")), "{key}");
        }
        let mut bare = parse(&text.replace("warmup_steps = 1875", "warmup_steps = 1")).unwrap();
        let is_kept = |line: &&str| {
            let default = !line.contains("no default") && !line.contains("default ");
            let wanted = ["file =", "images =", "shards =", "folder =", "prompt =", "["];
            !default || wanted.iter().any(|w| line.starts_with(w))
        };
        let short: Vec<&str> = text.lines().filter(is_kept).collect();
        let short = parse(&short.join("\n").replace("= 1875", "= 1")).unwrap();
        bare.samples = short.samples.clone();
        assert_eq!(short, bare);
    }

    #[test]
    fn mistakes_name_the_key_and_what_it_may_be() {
        let with = |from: &str, to: &str| {
            assert!(SMALL.contains(from));
            parse(&SMALL.replacen(from, to, 1)).unwrap_err().to_string()
        };
        for (from, to, needles) in [
            ("steps = 10", "steps = 10\nstep = 3", &["line 5", "`step`", "micro_batches"][..]),
            ("steps = 10", "steps = \"x\"", &["line 4, `steps = \"x\"`", "string"]),
            ("steps = 10", "steps = 0", &["run.steps: expected 1 to"]),
            ("steps = 10", "steps = 10\nmicro_batches = 0", &["run.micro_batches: expected 1 to"]),
            ("steps = 10", "steps = 10\ndevice = \"gpu\"", &["run.device", "cuda:N", "`gpu`"]),
            ("steps = 10", "steps = 2", &["train.schedule.warmup_steps", "run.steps = 2"]),
            ("folder = \"out\"\n", "", &["missing field `folder`"]),
            ("form = \"pairs\"", "form = \"pair\"", &["`pair`", "`interleaved`"]),
            ("weight = 0.2", "weight = -1.0", &["[[source]] pairs: weight", "-1"]),
            ("weight = 0.2", "flip = 2.0", &["flip: expected 0 to 1, found 2"]),
            ("weight = 0.2", "batch = 0", &["batch: expected 1 to"]),
            ("name = \"pairs\"", "name = \"a/b\"", &["name: expected 1 to 64", "`a/b`"]),
            ("form = \"pairs\"", "form = \"lines\"", &["file and images"]),
            ("[model]\nfolder", "[model]\npreset", &["model: preset", "med-flamingo-9b"]),
            ("[run]", "[run", &["line 2"]),
            ("[train.schedule]", "[train.schedule]\nkind = \"sine\"", &["`sine`", "`cosine`"]),
        ] {
            let message = with(from, to);
            for needle in needles {
                assert!(message.contains(needle), "{to}: {needle}: {message}");
            }
        }
        let twice = format!("{SMALL}\n{}", &SMALL[SMALL.find("[[source]]").unwrap()..]);
        assert!(parse(&twice).unwrap_err().to_string().contains("`pairs` twice"));
    }

    #[test]
    fn a_resumed_run_may_change_what_nothing_depends_on() {
        let before = parse(SMALL).unwrap().to_json().unwrap();
        let changed = |from: &str, to: &str| {
            parse(&SMALL.replacen(from, to, 1)).unwrap().difference(&before).unwrap()
        };
        // With warm-up and a constant rate, the number of steps is in the schedule, too.
        let fixed = "[train.schedule]\ntotal_steps = 10";
        let longer = SMALL.replacen("[train.schedule]", fixed, 1).replacen("= 10", "= 20", 1);
        assert_eq!(parse(&longer).unwrap().difference(&before).unwrap(), None);
        assert_eq!(changed("steps = 10", "steps = 10\nthreads = 2\nlog_every = 5"), None);
        let (key, was, is) = changed("weight = 0.2", "weight = 0.5").unwrap();
        assert_eq!((was.as_str(), is.as_str()), ("0.2", "0.5"));
        assert!(key.contains("loss_weights") || key == "source[0].weight", "{key}");
        let (key, ..) = changed("{00..03}", "{00..04}").unwrap();
        assert_eq!(key, "source[0].shards[0]");
        let (key, was, is) = changed("steps = 10", "steps = 10\nseed = 1").unwrap();
        assert!(key.ends_with("seed") && was == "42" && is == "1", "{key}");
    }
}

//! One source of samples, as a configuration has it.

use super::defaults;
use crate::phantom::Kind;
use crate::train::data::{Form, LabelRules, Matching, Rules, Source, StreamOptions};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

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
    /// Kinds of pages of phantom studies, with weights: `shots, words=3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<String>,
    /// Phantom studies: false leaves the questions out of the loss; answers and captions stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicts_questions: Option<bool>,
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
    /// Pages of phantom studies, drawn when they are due.
    Phantom,
}

impl SourceOptions {
    /// Fills in what is not given.
    pub(super) fn complete(&mut self) {
        let (rules, stream) = (self.defaults(), StreamOptions::default());
        self.threads.get_or_insert(stream.threads);
        if self.form == SourceForm::Phantom {
            self.predicts_questions.get_or_insert(true);
            return;
        }
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
        self.ahead.get_or_insert(stream.ahead);
        self.max_bad_share.get_or_insert(stream.max_bad_share);
    }

    fn defaults(&self) -> Rules {
        match self.form {
            SourceForm::Interleaved | SourceForm::Phantom => Rules::interleaved(self.labels),
            _ => Rules::pairs(self.labels),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
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
        let (has_shards, has_pages) = (!self.shards.is_empty(), self.pages.is_some());
        let (is_complete, expected) = match self.form {
            SourceForm::Lines => (
                self.file.is_some() && self.images.is_some() && !has_shards && !has_pages,
                "file and images, no shards (form lines)",
            ),
            SourceForm::Phantom => {
                (has_pages && !has_shards && !has_lines, "pages, and nothing else (form phantom)")
            }
            _ => (
                has_shards && !has_lines && !has_pages,
                "shards, no file or images (forms pairs and interleaved)",
            ),
        };
        if !is_complete {
            return Err(Error::invalid("place of the data", expected, "another choice of keys"));
        }
        self.pages.iter().try_for_each(|pages| Kind::mix(pages).map(drop))
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
                SourceForm::Interleaved | SourceForm::Phantom => Form::Interleaved,
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

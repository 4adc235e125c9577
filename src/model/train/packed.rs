//! The sequences of a micro-batch side by side, without padding: what a training pass reads.

use super::super::config::Config;
use super::super::media::{Marker, MaskMode, Origin};
use crate::contracts::MediaSpan;

/// Rows that are to predict something, and what: those of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// Rows of the batch.
    pub rows: Vec<i32>,
    /// The token that each should predict.
    pub labels: Vec<i32>,
}

/// Sequences of tokens, one row per token, with the images they refer to.
pub struct Packed<'a> {
    pub(super) ids: Vec<i32>,
    pub(super) lengths: Vec<usize>,
    pub(super) spans: Vec<MediaSpan>,
    /// (3, S, S) of each image.
    pub(super) images: Vec<&'a [u8]>,
    pub(super) targets: Vec<Targets>,
}

impl<'a> Packed<'a> {
    /// Nothing yet, from so many sources.
    pub fn new(sources: usize) -> Self {
        let targets = vec![Targets::default(); sources];
        Packed { ids: vec![], lengths: vec![], spans: vec![], images: vec![], targets }
    }

    /// Adds a sequence. `label(i)` is what token i should have been predicted as, if anything.
    pub fn push(
        &mut self,
        config: &Config,
        mode: MaskMode,
        ids: &[u32],
        label: impl Fn(usize) -> Option<u32>,
        images: impl Iterator<Item = &'a [u8]>,
        source: usize,
    ) {
        let (row, image) = (self.ids.len(), self.images.len());
        self.images.extend(images);
        let markers = ids.iter().filter(|&&id| id == config.tokens.image).count();
        let count = self.images.len() - image;
        let mut marker = Marker::new(mode, config.tokens.image, markers, count);
        marker.spans(ids, Origin::Prompt, image, &mut self.spans);
        self.ids.extend(ids.iter().map(|&id| id as i32));
        self.lengths.push(ids.len());
        let targets = &mut self.targets[source];
        for i in 1..ids.len() {
            if let Some(label) = label(i) {
                targets.rows.push((row + i - 1) as i32);
                targets.labels.push(label as i32);
            }
        }
    }

    /// Tokens.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Rows to predict, by source.
    pub fn targets(&self) -> &[Targets] {
        &self.targets
    }
}

//! What a training step reads: token ids with their labels, and the images between them.

use crate::model::Config;
use crate::{Error, Result};
use std::sync::Arc;

/// Of a token that is not to be predicted.
pub const NO_LABEL: i32 = -100;

/// One sequence: a caption with its image, or a page with the images in it.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Tokens, without padding.
    pub ids: Vec<u32>,
    /// The label of each token: itself, or [`NO_LABEL`]. Token i + 1 is what row i predicts, so the
    /// first label is never used.
    pub labels: Vec<i32>,
    /// Pixels (3, S, S) of each `<image>`, in order.
    pub images: Vec<Arc<Vec<u8>>>,
    /// Counts the sources of the run from 0: losses are averaged and weighted per source.
    pub source: usize,
}

/// The sequences of one micro-batch, in any order and of any lengths.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub sequences: Vec<Sample>,
}

impl Batch {
    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.ids.len()).sum()
    }

    /// Images of all sequences.
    pub fn images(&self) -> usize {
        self.sequences.iter().map(|s| s.images.len()).sum()
    }

    /// Refuses what the model of `config` cannot read.
    ///
    /// # Errors
    /// An empty or too long sequence, an id or label outside the vocabulary, markers without
    /// images, images of another size. The message names the sequence.
    pub fn check(&self, config: &Config) -> Result<()> {
        let each = |(i, s): (usize, &Sample)| {
            s.check(config).map_err(|e| e.within(format!("sequence {i} of source {}", s.source)))
        };
        self.sequences.iter().enumerate().try_for_each(each)
    }
}

impl Sample {
    fn check(&self, config: &Config) -> Result<()> {
        let (tokens, context) = (self.ids.len(), config.language.context);
        if tokens == 0 || tokens > context {
            return Err(Error::invalid("tokens", format!("1 to {context}"), tokens));
        }
        if self.labels.len() != tokens {
            let expected = format!("{tokens}, one per token");
            return Err(Error::invalid("labels", expected, self.labels.len()));
        }
        let vocabulary = config.language.vocabulary;
        let outside = |id: i64| id < 0 || id as usize >= vocabulary;
        if let Some(id) = self.ids.iter().find(|&&id| outside(i64::from(id))) {
            return Err(Error::invalid("token id", format!("0 to {vocabulary} - 1"), id));
        }
        let wrong = |label: &&i32| **label != NO_LABEL && outside(i64::from(**label));
        if let Some(label) = self.labels.iter().find(wrong) {
            let expected = format!("{NO_LABEL}, or 0 to {vocabulary} - 1");
            return Err(Error::invalid("label", expected, label));
        }
        let markers = self.ids.iter().filter(|&&id| id == config.tokens.image).count();
        if markers != self.images.len() {
            let expected = format!("{markers}, one per <image>");
            return Err(Error::invalid("images", expected, self.images.len()));
        }
        let side = config.vision.image_size;
        match self.images.iter().find(|p| p.len() != 3 * side * side) {
            Some(p) => Err(Error::invalid("pixels", format!("(3, {side}, {side})"), p.len())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::preset;

    #[test]
    fn what_a_model_cannot_read_is_refused_by_name() {
        let config = preset("tiny").unwrap();
        let side = config.vision.image_size;
        let image = config.tokens.image;
        let good = Sample {
            ids: vec![image, 5, 6],
            labels: vec![NO_LABEL, 5, 6],
            images: vec![Arc::new(vec![0; 3 * side * side])],
            source: 1,
        };
        let refused = |change: &dyn Fn(&mut Sample)| {
            let mut sample = good.clone();
            change(&mut sample);
            let batch = Batch { sequences: vec![good.clone(), sample] };
            batch.check(&config).unwrap_err().to_string()
        };
        Batch { sequences: vec![good.clone()] }.check(&config).unwrap();
        assert!(refused(&|s| s.ids.clear()).starts_with("sequence 1 of source 1: tokens"));
        assert!(refused(&|s| s.ids = vec![3; config.language.context + 1]).contains("tokens"));
        assert!(refused(&|s| s.labels.truncate(1)).contains("one per token"));
        assert!(refused(&|s| s.ids[1] = 1 << 30).contains("token id"));
        assert!(refused(&|s| s.labels[1] = -1).contains("label"));
        assert!(refused(&|s| s.images.clear()).contains("one per <image>"));
        assert!(refused(&|s| s.images[0] = Arc::new(vec![0; 3])).contains("pixels"));
    }
}

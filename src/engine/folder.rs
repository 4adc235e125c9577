//! A model folder, opened: configuration, weights, tokenizer, preprocessing, what ends an answer.

use crate::image::Preprocess;
use crate::model::Config;
use crate::model::config::read_small;
use crate::text::Tokenizer;
use crate::weights::Weights;
use crate::{DType, Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `generation_config.json`: which ids end an answer and which are never generated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// `<|endofchunk|>`, normally.
    pub eos_token_id: Option<u32>,
    pub pad_token_id: Option<u32>,
    pub bos_token_id: Option<u32>,
    /// Ids whose output rows no checkpoint defines.
    pub suppress_tokens: Vec<u32>,
}

/// Everything in a model folder. Weights are mapped, not read.
pub struct ModelFolder {
    pub config: Config,
    pub weights: Weights,
    pub tokenizer: Tokenizer,
    pub preprocess: Preprocess,
    pub generation: GenerationConfig,
}

impl ModelFolder {
    /// # Errors
    /// A folder without one of the files, or files that contradict each other.
    pub fn open(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            let found = if folder.exists() { "a file" } else { "nothing" };
            return Err(Error::invalid(folder.display(), "a model folder", found)
                .advise("make one with `medflamingo-tools convert` or `medflamingo-tools synth`"));
        }
        let config = Config::read(&folder.join("config.json"))?;
        let tokenizer = Tokenizer::open(folder)?.with_leading(config.tokens.leading)?;
        let preprocess: Preprocess = read_json(&folder.join("preprocessor_config.json"))?;
        let generation = read_json(&folder.join("generation_config.json"))?;
        let opened = ModelFolder {
            weights: Weights::open(folder)?,
            config,
            tokenizer,
            preprocess,
            generation,
        };
        opened.agree().map_err(|e| e.within(folder.display()))?;
        Ok(opened)
    }

    fn agree(&self) -> Result<()> {
        let (c, t) = (&self.config, &self.tokenizer);
        let specials = t.specials();
        if self.weights.dtype() != c.dtype.into() {
            let expected = format!("{} (config.json)", DType::from(c.dtype));
            return Err(Error::invalid("weights", expected, self.weights.dtype()));
        }
        for (name, expected, found) in [
            ("tokenizer.json <image>", c.tokens.image, specials.image),
            ("tokenizer.json <|endofchunk|>", c.tokens.end_of_chunk, specials.end_of_chunk),
        ] {
            if expected != found {
                return Err(Error::invalid(name, format!("id {expected} (config.json)"), found));
            }
        }
        if t.vocab_size() > c.language.vocabulary {
            let expected = format!("at most {} ids (config.json)", c.language.vocabulary);
            return Err(Error::invalid("tokenizer.json", expected, t.vocab_size()));
        }
        if self.preprocess.size != c.vision.image_size {
            let expected = format!("size {} (config.json)", c.vision.image_size);
            return Err(Error::invalid("preprocessor_config.json", expected, self.preprocess.size));
        }
        let ids = self.generation.suppress_tokens.iter().chain(&self.generation.eos_token_id);
        match ids.copied().find(|&id| id as usize >= c.language.vocabulary) {
            Some(id) => {
                let expected = format!("ids below {}", c.language.vocabulary);
                Err(Error::invalid("generation_config.json", expected, id))
            }
            None => Ok(()),
        }
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read_small(path)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::invalid(path.display(), "the JSON of a model folder", e))
}

//! Ids, labels and pixels of one document.

use super::labels::label;
use super::random::{Use, numbers, uniform};
use super::record::{Content, Picture};
use super::rules::{Form, Rules};
use super::tally::{Reason, Refusal};
use crate::image::{self, Limits, Preprocess};
use crate::prompt::Part;
use crate::text::Tokenizer;
use crate::train::batch::{NO_LABEL, Sample};
use std::sync::Arc;

/// Makes samples of the documents of one source.
#[derive(Clone, Debug)]
pub struct Builder {
    pub tokenizer: Tokenizer,
    pub preprocess: Preprocess,
    pub rules: Rules,
    pub seed: u64,
    /// Which source the samples are of.
    pub source: usize,
}

impl Builder {
    /// The sample of `content`; `number` decides what is left to chance.
    ///
    /// The leading id, the parts with their markers as special tokens (nothing in a text is one),
    /// and the end token if the tokenizer has one; cut off at the most tokens, and the images with
    /// them.
    ///
    /// # Errors
    /// Why it is no sample.
    pub fn build(&self, content: Content, number: u64) -> Result<Sample, Refusal> {
        let rules = &self.rules;
        let (ids, pictures) = self.ids(&content.parts)?;
        let mut random = numbers(self.seed, Use::Sample, number);
        self.check(&ids, pictures.len(), content.is_mmc4, uniform(&mut random))?;
        let specials = self.tokenizer.specials();
        let labels = label(&ids, &specials, rules.form, rules.labels);
        if labels.iter().skip(1).all(|&label| label == NO_LABEL) {
            return Err(Refusal::new(Reason::NoLabel, "no token is predicted"));
        }
        let image = |picture: &&Picture| {
            let is_flipped = uniform(&mut random) < rules.flip;
            self.pixels(picture, is_flipped).map(Arc::new)
        };
        let images = pictures.iter().map(image).collect::<Result<_, _>>()?;
        Ok(Sample { ids, labels, images, source: self.source })
    }

    /// At most `max_tokens` ids, and the pictures of the markers among them.
    fn ids<'a>(&self, parts: &'a [Part<Picture>]) -> Result<(Vec<u32>, Vec<&'a Picture>), Refusal> {
        let most = self.rules.max_tokens;
        let specials = self.tokenizer.specials();
        let mut ids: Vec<u32> = self.tokenizer.leading().into_iter().collect();
        let (mut pictures, mut text) = (Vec::new(), String::new());
        for part in parts {
            let id = match part {
                Part::Text(more) => {
                    text.push_str(more);
                    continue;
                }
                Part::Image(_) => specials.image,
                Part::EndOfChunk => specials.end_of_chunk,
            };
            self.encode(&mut text, &mut ids)?;
            if ids.len() >= most {
                break;
            }
            ids.push(id);
            if let Part::Image(picture) = part {
                pictures.push(picture);
            }
        }
        self.encode(&mut text, &mut ids)?;
        ids.extend(specials.eos);
        ids.truncate(most);
        Ok((ids, pictures))
    }

    /// Moves `text` to the end of `ids`.
    fn encode(&self, text: &mut String, ids: &mut Vec<u32>) -> Result<(), Refusal> {
        // What cannot be kept need not be encoded, but at most a megabyte is, anyway.
        if ids.len() < self.rules.max_tokens {
            let more = self.tokenizer.encode_text(text);
            ids.extend(more.map_err(|e| Refusal::new(Reason::Text, e))?);
        }
        text.clear();
        Ok(())
    }

    /// The rules about numbers of images (open_flamingo/train/data.py, preprocess_interleaved).
    fn check(&self, ids: &[u32], images: usize, is_mmc4: bool, draw: f64) -> Result<(), Refusal> {
        let rules = &self.rules;
        let refuse = |reason, detail: String| Err(Refusal::new(reason, detail));
        if rules.form == Form::Interleaved {
            if images < rules.min_images.max(1) {
                let tokens = rules.max_tokens;
                return refuse(Reason::FewImages, format!("{images} within {tokens} tokens"));
            }
            if images == 1 && ids.last() == Some(&self.tokenizer.specials().image) {
                return refuse(Reason::ImageLast, "one image as the last token".into());
            }
            if images == 1 && is_mmc4 && draw < rules.single_image_drop {
                return refuse(Reason::SingleImage, "one image, by chance".into());
            }
        }
        Ok(())
    }

    /// (3, S, S).
    fn pixels(&self, file: &Picture, is_flipped: bool) -> Result<Vec<u8>, Refusal> {
        let refuse = |e: crate::Error| Refusal::new(Reason::Image, e);
        let picture = image::decode(file, &Limits::default()).map_err(refuse)?;
        let pixels = image::preprocess(&picture, &self.preprocess).map_err(refuse)?;
        let mut data = pixels.data;
        if is_flipped {
            data.chunks_exact_mut(pixels.size).for_each(<[u8]>::reverse);
        }
        Ok(data)
    }
}

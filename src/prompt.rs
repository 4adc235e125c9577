//! A prompt that is ready for the model: ids and images whose numbers agree.

use crate::error::{Error, Result};
use crate::text::{IMAGE, Tokenizer};

/// One piece of a prompt that is put together by a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part<I> {
    /// Text as data: nothing in it is a marker. Neighbouring texts are joined first.
    Text(String),
    /// One image and its `<image>` marker.
    Image(I),
    /// `<|endofchunk|>`: the end of what belongs to the image before it.
    EndOfChunk,
}

/// What a prompt is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most tokens, in tokens: the context less what is to be generated.
    pub tokens: usize,
    /// Lets a prompt have more `<image>` markers than images.
    ///
    /// The original then lets the text after a surplus marker attend to all images uniformly; this
    /// is for reproducing that, and an error otherwise.
    pub surplus_markers: bool,
}

impl Limits {
    /// At most `tokens` tokens, one image for each marker.
    pub fn tokens(tokens: usize) -> Self {
        Limits { tokens, surplus_markers: false }
    }
}

/// Ids and images with count(`<image>`) == images; `I` is whatever stands for an image.
///
/// The order of the images is the order of the markers.
#[derive(Clone, Debug)]
pub struct Prompt<I> {
    ids: Vec<u32>,
    images: Vec<I>,
    markers: Vec<usize>,
}

impl<I> Prompt<I> {
    /// A prompt as people write it: `text` with one `<image>` for each of `images`.
    ///
    /// # Errors
    /// Numbers of markers and images that differ, an empty prompt, or one that is too long.
    pub fn from_text(
        tokenizer: &Tokenizer,
        text: &str,
        images: Vec<I>,
        limits: &Limits,
    ) -> Result<Self> {
        check_bytes(tokenizer, text.len(), limits)?;
        Self::from_ids(tokenizer, tokenizer.encode_prompt(text)?, images, limits)
    }

    /// A prompt put together from `parts`, in which texts are never read as markers.
    ///
    /// # Errors
    /// An empty prompt, or one that is too long.
    pub fn from_parts(
        tokenizer: &Tokenizer,
        parts: impl IntoIterator<Item = Part<I>>,
        limits: &Limits,
    ) -> Result<Self> {
        let specials = tokenizer.specials();
        let mut ids: Vec<u32> = tokenizer.leading().into_iter().collect();
        let (mut images, mut text) = (Vec::new(), String::new());
        for part in parts {
            let id = match part {
                Part::Text(more) => {
                    check_bytes(tokenizer, text.len() + more.len(), limits)?;
                    text.push_str(&more);
                    continue;
                }
                Part::Image(image) => {
                    images.push(image);
                    specials.image
                }
                Part::EndOfChunk => specials.end_of_chunk,
            };
            ids.append(&mut tokenizer.encode_text(&std::mem::take(&mut text))?);
            ids.push(id);
            check_length(ids.len(), limits)?;
        }
        ids.append(&mut tokenizer.encode_text(&text)?);
        Self::from_ids(tokenizer, ids, images, limits)
    }

    /// A prompt from ids that are known already, the leading one included.
    ///
    /// # Errors
    /// As [`Prompt::from_text`], or an id outside the vocabulary.
    pub fn from_ids(
        tokenizer: &Tokenizer,
        ids: Vec<u32>,
        images: Vec<I>,
        limits: &Limits,
    ) -> Result<Self> {
        let vocab = tokenizer.vocab_size();
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::invalid("prompt", format!("ids below {vocab}"), id));
        }
        if ids.iter().copied().eq(tokenizer.leading()) {
            return Err(Error::invalid("prompt", "text or an image", "nothing"));
        }
        check_length(ids.len(), limits)?;
        let image = tokenizer.specials().image;
        let markers: Vec<usize> = (0..ids.len()).filter(|&i| ids[i] == image).collect();
        check_images(markers.len(), images.len(), limits)?;
        Ok(Prompt { ids, images, markers })
    }

    /// Token ids, the leading one included.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The images, in the order of their markers.
    pub fn images(&self) -> &[I] {
        &self.images
    }

    /// Positions of the `<image>` markers among the ids.
    pub fn markers(&self) -> &[usize] {
        &self.markers
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Never true for a prompt that was made here.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The same prompt with each image replaced, in order: decoded, encoded, or moved to a device.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_map<J>(self, f: impl FnMut(I) -> Result<J>) -> Result<Prompt<J>> {
        let images = self.images.into_iter().map(f).collect::<Result<_>>()?;
        Ok(Prompt { ids: self.ids, images, markers: self.markers })
    }
}

fn check_images(markers: usize, images: usize, limits: &Limits) -> Result<()> {
    if markers == images || (limits.surplus_markers && markers > images) {
        return Ok(());
    }
    let plural = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
    let advice = if markers > images {
        format!(
            "give {} more, in the order of the markers, or take markers out of the text",
            plural(markers - images, "image")
        )
    } else {
        format!(
            "put {IMAGE} where each image belongs in the text, or leave out {}",
            plural(images - markers, "image")
        )
    };
    let expected = format!("one image for each of its {}", plural(markers, "<image> marker"));
    Err(Error::invalid("prompt", expected, plural(images, "image")).advise(advice))
}

fn check_length(tokens: usize, limits: &Limits) -> Result<()> {
    if tokens <= limits.tokens {
        return Ok(());
    }
    Err(too_long(limits, format!("{tokens} tokens")))
}

/// Refuses text that cannot fit before any work is done on it.
fn check_bytes(tokenizer: &Tokenizer, bytes: usize, limits: &Limits) -> Result<()> {
    if tokenizer.fewest_tokens(bytes) <= limits.tokens {
        return Ok(());
    }
    let found = format!("{bytes} bytes, at least {} tokens", tokenizer.fewest_tokens(bytes));
    Err(too_long(limits, found))
}

fn too_long(limits: &Limits, found: String) -> Error {
    Error::invalid("prompt", format!("at most {} tokens", limits.tokens), found)
        .advise("shorten the prompt, use fewer examples, or generate fewer tokens")
}

//! What goes in and what comes out.

use super::cache::{ImageKey, image_key};
use super::options::GenerateOptions;
use crate::image::Pixels;
use crate::prompt::Prompt;
use serde::Serialize;
use std::sync::Arc;

/// A picture as the model looks at it, made by [`super::Engine::image`] or of pixels. Cheap to
/// clone: one that is in many prompts, as a shot, is prepared once.
#[derive(Clone, Debug)]
pub struct Image {
    pixels: Arc<Pixels>,
    key: ImageKey,
}

impl Image {
    /// Reads all pixels once, to know them again.
    pub fn new(pixels: Pixels) -> Self {
        Image { key: image_key(&pixels.data), pixels: Arc::new(pixels) }
    }

    pub fn pixels(&self) -> &Pixels {
        &self.pixels
    }

    pub(super) fn key(&self) -> &ImageKey {
        &self.key
    }
}

/// A prompt with its images, and how to continue it. Made by [`super::Engine::request`].
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Prompt<Image>,
    pub options: GenerateOptions,
    /// Padding tokens to count into the length of beams, as upstream does for the shorter prompts
    /// of a batch; 0 unless its scores are to be reproduced.
    pub left_pads: usize,
}

/// Progress of one request.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// So many of the prompt's tokens have been read.
    Prefill { done: usize, total: usize },
    /// A token was chosen. `text` is what became readable with it; it may be empty.
    Token { id: u32, text: &'a str },
}

/// What the receiver of an [`Event`] wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    Continue,
    /// End the request now; its answer holds what there is.
    Cancel,
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model said `<|endofchunk|>`.
    EndOfChunk,
    /// A stop string appeared; it is not part of the text.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The receiver cancelled.
    Cancelled,
}

/// A chosen token with the model's probabilities, natural logarithms.
#[derive(Clone, Debug, Serialize)]
pub struct TokenLogprob {
    pub id: u32,
    pub token: String,
    pub logprob: f32,
    /// The most probable tokens, best first.
    pub top: Vec<(u32, String, f32)>,
}

/// Where the time went, in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Timings {
    /// Opening the model folder; the same for every request of an engine.
    pub load: f64,
    /// Of that, copying the weights to a card; nothing on the host, which maps them.
    pub place: f64,
    /// Vision tower, resampler and media keys and values of images not in the cache.
    pub vision: f64,
    /// The prompt through the language model, beyond the cached prefix.
    pub prefill: f64,
    /// From the start of the request to its first token.
    pub first_token: f64,
    /// Between consecutive tokens, from the second on.
    pub decode: Vec<f64>,
}

/// What memory is in use, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// Anonymous memory of the process, everything but mapped files.
    pub anonymous: u64,
    /// Weights, mapped or on a card.
    pub weights: u64,
    /// Pages of keys and values in use.
    pub kv_pages: u64,
    /// Images remembered.
    pub images: u64,
}

/// What a device has been given to do since the engine was opened.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Work {
    /// Kernels, counted one by one.
    pub launches: u64,
    /// Steps that a graph was made of.
    pub graphs: u64,
    /// Steps that were one launch of a graph made before.
    pub replays: u64,
}

/// A finished continuation.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    pub text: String,
    /// Generated ids; ends with `<|endofchunk|>` if the model said it.
    pub token_ids: Vec<u32>,
    pub finish_reason: Finish,
    /// One per token if `logprobs` were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// The hypothesis' score, with beams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    pub prompt_tokens: usize,
    /// Prompt tokens whose keys and values were in the cache.
    pub cached_tokens: usize,
    pub images: usize,
    /// Images that were in the cache.
    pub cached_images: usize,
    pub timings_ms: Timings,
    pub memory_bytes: Memory,
    pub work: Work,
}

//! Text to token ids and back: the tokenizers of LLaMA, MPT and GPT-NeoX with Flamingo's markers.
//!
//! Text that people type never becomes a special token: [`Tokenizer::encode_text`] knows none, and
//! [`Tokenizer::encode_prompt`] knows only the two documented markers, [`IMAGE`] and
//! [`END_OF_CHUNK`]. Everything else that looks like one (`</s>`, `<unk>`, `<PAD>`) stays text.
//!
//! Refused: models other than byte-complete BPE (Unigram, WordPiece), and normalisers,
//! pre-tokenisers and decoders other than those of the three families (see [`file`]).

mod bytes;
pub mod file;
mod prepare;
mod sentencepiece;
mod stop;
mod stream;
mod tokenizer;

pub use prepare::{Prepared, add_flamingo_specials, prepare};
pub use sentencepiece::from_sentencepiece;
pub use stop::{Found, StopStrings};
pub use stream::TokenStream;
pub use tokenizer::{MAX_TEXT, Tokenizer};

/// Stands for one image in a prompt.
pub const IMAGE: &str = "<image>";
/// Ends the text that belongs to one image; generation stops at it.
pub const END_OF_CHUNK: &str = "<|endofchunk|>";
/// The padding token that is added when a tokenizer has none.
pub const PAD: &str = "<PAD>";

/// The ids that the engine has to know by meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Specials {
    /// `<|endofchunk|>`.
    pub end_of_chunk: u32,
    /// `<image>`.
    pub image: u32,
    /// The padding token; the unknown token or `<|endofchunk|>` where the files name it "".
    pub pad: u32,
    /// The language model's own start, end and unknown tokens, where its files name them.
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unk: Option<u32>,
}

/// The special tokens that a folder's `tokenizer_config.json` and `special_tokens_map.json` name.
///
/// `None`: not named. `Some("")`: named as the empty string, as the LLaMA-7B conversion does that
/// Med-Flamingo was trained with, which changes the leading id (see [`prepare`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
    /// `sep_token`, `cls_token`, `mask_token` and `additional_special_tokens`, in upstream's order.
    pub others: Vec<String>,
    pub add_bos_token: Option<bool>,
    pub add_eos_token: Option<bool>,
}

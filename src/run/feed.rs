//! Sources of a configuration, opened.

use super::config::SourceOptions;
use crate::Result;
use crate::engine::ModelFolder;
use crate::phantom::Split;
use crate::train::data::{Feed, PhantomStream, Stream, StreamOptions};

/// Opens `source`, the `number`-th of a run with `seed`, for rank `rank` of `world`. Validation
/// goes through its data once, in order, and draws other phantom studies than training.
///
/// # Errors
/// Data that is not there; a model that phantom studies are not for.
pub fn open(
    source: &SourceOptions,
    split: Split,
    (seed, number): (u64, usize),
    (rank, world): (usize, usize),
    model: &ModelFolder,
) -> Result<Feed> {
    let (tokenizer, preprocess) = (model.tokenizer.clone(), model.preprocess);
    let mut options = source.stream(seed, number, rank, world);
    if let Some(kinds) = &source.pages {
        // Sources of a run draw different studies.
        let seed = seed.wrapping_add(number as u64 * 1_000_003);
        let address = (seed, rank as u64, world as u64);
        let pages = PhantomStream::open(kinds, split, address, tokenizer, preprocess, number)?;
        let pages = pages.with_questions(source.predicts_questions.unwrap_or(true));
        return Ok(Feed::Phantom(Box::new(pages.with_threads(options.threads))));
    }
    if split == Split::Validation {
        options = StreamOptions { shuffle: false, epochs: Some(1), ..options };
    }
    let stream = Stream::open(source.source(), source.rules(), tokenizer, preprocess, options)?;
    Ok(Feed::Records(Box::new(stream)))
}

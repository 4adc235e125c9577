//! `medflamingo-tools books`.

use crate::convert::size;
use crate::report;
use clap::Args;
use medflamingo::Result;
use medflamingo::books::{self, Options};
use medflamingo::text::Tokenizer;
use std::path::PathBuf;

/// Make shards of text with images in place from HTML, XHTML and EPUB textbooks.
///
/// DIR holds EPUB files (at any depth), HTML files, or a folder of HTML files for each book.
/// Boilerplate, references, repeated text, and tiny, blank or repeated pictures are left out; the
/// rest is cut into segments with at least one image. Books are divided into train-*.tar and
/// validation-*.tar; report.json and report.txt say what was kept and why the rest was not.
/// Nothing in a book is executed or fetched.
#[derive(Args)]
pub struct Books {
    /// The folder of the books
    #[arg(value_name = "DIR")]
    input: PathBuf,
    /// The folder of shards to make
    #[arg(long, value_name = "SHARDS")]
    output: PathBuf,
    /// Model folder whose tokenizer counts tokens; without one, four bytes are a token
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Most tokens of a segment
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Most images of a segment
    #[arg(long, value_name = "N", default_value_t = 6)]
    max_images: usize,
    /// Smallest shorter side of an image, in pixels
    #[arg(long, value_name = "N", default_value_t = 64)]
    min_side: usize,
    /// Share of the books for validation
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    validation: f64,
    /// Decides which books are for validation
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Share of phrases in common from which on paragraphs are the same
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    near: f64,
    /// Most bytes of a shard, such as 256MB
    #[arg(long, value_name = "SIZE", default_value = "256MB", value_parser = size)]
    max_shard_size: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Books {
    pub fn run(self) -> Result<()> {
        let options = Options {
            tokenizer: self.model.as_deref().map(Tokenizer::open).transpose()?,
            max_tokens: self.max_tokens,
            max_images: self.max_images,
            min_side: self.min_side,
            validation: self.validation,
            seed: self.seed,
            max_shard: self.max_shard_size,
            near: self.near,
            ..Options::new(self.input, self.output)
        };
        let bar = report::Bar::new();
        let made = books::make(&options, &|done, total| bar.set(done, total))?;
        bar.finish();
        match self.json {
            true => report::print_json(&made)?,
            false => report::print(made.to_string())?,
        }
        eprintln!("made {}", options.output.display());
        Ok(())
    }
}

//! Textbooks in, interleaved shards out: `medflamingo-tools books`.
//!
//! HTML, XHTML and EPUB files are read in place; every page becomes paragraphs and pictures in
//! reading order, is freed of boilerplate and of what was there before, and cut into segments of
//! text with at least one picture. Books, not segments, are divided into training and validation.
//!
//! Nothing in a book is executed, fetched or unpacked: pictures come from within the bundle, data
//! URIs included, or not at all. What is left out is counted by reason in the report.

mod bundle;
mod clean;
mod duplicates;
mod epub;
mod html;
mod report;
mod segment;
mod thumbnail;
mod write;

pub use report::{BookReport, Report};

use crate::prompt::Part;
use crate::text::Tokenizer;
use crate::{Error, Result};
use bundle::Book;
use duplicates::{Pictures, Texts};
use segment::Item;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use write::Output;

/// What to make of which books.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of the books: EPUB files anywhere in it, HTML files, folders of HTML files.
    pub input: PathBuf,
    /// The folder to make.
    pub output: PathBuf,
    /// Counts tokens; None estimates one for every four bytes.
    pub tokenizer: Option<Tokenizer>,
    /// Tokens of a segment at most, markers included.
    pub max_tokens: usize,
    /// Pictures of a segment at most.
    pub max_images: usize,
    /// The shorter side of a picture at least, in pixels.
    pub min_side: usize,
    /// Share of the books for validation.
    pub validation: f64,
    /// Decides which.
    pub seed: u64,
    /// Bytes of a shard at most, but for its last segment.
    pub max_shard: u64,
    /// Paragraphs that share this much of their five-word phrases are the same.
    pub near: f64,
}

impl Options {
    /// The defaults: 256 tokens, 6 pictures of at least 64 pixels, 5 % for validation.
    pub fn new(input: PathBuf, output: PathBuf) -> Self {
        Options {
            input,
            output,
            tokenizer: None,
            max_tokens: 256,
            max_images: 6,
            min_side: 64,
            validation: 0.05,
            seed: 0,
            max_shard: 256 << 20,
            near: 0.8,
        }
    }

    fn check(&self) -> Result<()> {
        let refuse = |name, expected, found: String| Err(Error::invalid(name, expected, found));
        if !(32..=1 << 16).contains(&self.max_tokens) {
            return refuse("max tokens", "32 to 65536", self.max_tokens.to_string());
        }
        if !(1..=64).contains(&self.max_images) {
            return refuse("max images", "1 to 64", self.max_images.to_string());
        }
        if !(0.0..1.0).contains(&self.validation) {
            return refuse("validation", "a share from 0 to below 1", self.validation.to_string());
        }
        if !(0.5..=1.0).contains(&self.near) {
            return refuse("near", "0.5 to 1", self.near.to_string());
        }
        Ok(())
    }
}

/// Makes the shards `train-NNNNN.tar` and `validation-NNNNN.tar`, `report.json` and `report.txt` in
/// a new folder. `progress` hears of every book: done, all.
///
/// # Errors
/// Options that make no sense, no books, an output that exists, what the operating system says. A
/// book that cannot be read is no error: the report says why.
pub fn make(options: &Options, progress: &dyn Fn(u64, u64)) -> Result<Report> {
    options.check()?;
    let books = bundle::find(&options.input)?;
    let validation = choose(&books, options);
    let mut output = Output::new(&options.output, options.max_shard)?;
    let mut seen = Seen { texts: Texts::new(options.near), pictures: Pictures::default() };
    let mut report = Report::default();
    for (i, book) in books.iter().enumerate() {
        progress(i as u64, books.len() as u64);
        let is_validation = validation[i];
        let mut own = BookReport::new(book.name(), is_validation);
        match items(book, options, &mut seen, &mut own) {
            Ok(items) => {
                let segments = segment::segments(items, options, &mut own)?;
                for parts in &segments {
                    output.write(is_validation, book.name(), parts)?;
                }
            }
            Err(e) => own.error = Some(e.to_string()),
        }
        report.add(own);
    }
    progress(books.len() as u64, books.len() as u64);
    report.shards = output.shards();
    output.finish(&report)?;
    Ok(report)
}

/// What all books so far have said and shown.
struct Seen {
    texts: Texts,
    pictures: Pictures,
}

/// The cleaned paragraphs and pictures of a book in order, with the beginnings of sections.
fn items(
    book: &Book,
    options: &Options,
    seen: &mut Seen,
    report: &mut BookReport,
) -> Result<Vec<Item>> {
    let bundle = book.open()?;
    let pages = bundle.pages(report)?;
    let mut blocks = Vec::new();
    for page in &pages {
        let found = bundle.page(page).and_then(|bytes| html::blocks(&bytes, page));
        match found {
            Ok((mut found, dropped)) => {
                report.pages += 1;
                report.characters.add("boilerplate", dropped);
                blocks.push((page, clean::clean(std::mem::take(&mut found), report)));
            }
            Err(reason) => report.dropped_pages.add(reason, 1),
        }
    }
    let repeated = clean::repeated(blocks.iter().flat_map(|(_, blocks)| blocks));
    let mut items = Vec::new();
    for (page, blocks) in blocks {
        items.push(Item::Section);
        for block in blocks {
            match block {
                html::Block::Text { text, level } => {
                    if (1..=3).contains(&level) {
                        items.push(Item::Section);
                    }
                    match seen.texts.judge(&text, repeated.contains(&text)) {
                        None => items.push(Item::Text(text)),
                        Some(reason) => report.drop_text(reason, &text),
                    }
                }
                html::Block::Image(source) => {
                    let found = bundle.picture(page, &source);
                    match found.and_then(|bytes| seen.pictures.judge(bytes, options.min_side)) {
                        Ok(bytes) => items.push(Item::Image(bytes)),
                        Err(reason) => report.dropped_images.add(reason, 1),
                    }
                }
            }
        }
    }
    Ok(items)
}

/// Which books are for validation: those with the smallest hashes, at least one of several.
fn choose(books: &[Book], options: &Options) -> Vec<bool> {
    let hash = |book: &Book| {
        let mut hash = Sha256::new();
        hash.update(options.seed.to_le_bytes());
        hash.update(book.name());
        <[u8; 32]>::from(hash.finalize())
    };
    let mut order: Vec<usize> = (0..books.len()).collect();
    order.sort_by_key(|&i| hash(&books[i]));
    let least = usize::from(options.validation > 0.0 && books.len() > 1);
    let count = ((books.len() as f64 * options.validation).round() as usize).max(least);
    let mut is_chosen = vec![false; books.len()];
    order.iter().take(count).for_each(|&i| is_chosen[i] = true);
    is_chosen
}

/// The parts of a segment.
type Parts = Vec<Part<Vec<u8>>>;

//! What was kept of the books, and why the rest was not.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Counts by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    /// Adds `n`, if it is something.
    pub fn add(&mut self, reason: &'static str, n: u64) {
        if n > 0 {
            *self.0.entry(reason).or_default() += n;
        }
    }

    /// What was counted for `reason`.
    pub fn get(&self, reason: &str) -> u64 {
        self.0.get(reason).copied().unwrap_or(0)
    }

    fn merge(&mut self, other: &Counts) {
        other.0.iter().for_each(|(reason, n)| self.add(reason, *n));
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted: Vec<_> = self.0.iter().collect();
        sorted.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let texts: Vec<_> = sorted.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        f.write_str(if texts.is_empty() { "none" } else { "" })?;
        f.write_str(&texts.join(", "))
    }
}

/// One book, or all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BookReport {
    pub name: String,
    pub is_validation: bool,
    /// Why it could not be read at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub pages: u64,
    pub segments: u64,
    pub images: u64,
    /// Tokens of the segments, markers included.
    pub tokens: u64,
    /// Characters of the segments.
    pub kept_characters: u64,
    /// Characters that were left out, by reason.
    pub characters: Counts,
    pub dropped_paragraphs: Counts,
    pub dropped_images: Counts,
    pub dropped_pages: Counts,
}

impl BookReport {
    pub(super) fn new(name: &str, is_validation: bool) -> Self {
        BookReport { name: name.into(), is_validation, ..Default::default() }
    }

    /// Counts a paragraph and its characters.
    pub(super) fn drop_text(&mut self, reason: &'static str, text: &str) {
        self.dropped_paragraphs.add(reason, 1);
        self.characters.add(reason, text.chars().count() as u64);
    }

    fn merge(&mut self, other: &BookReport) {
        self.pages += other.pages;
        self.segments += other.segments;
        self.images += other.images;
        self.tokens += other.tokens;
        self.kept_characters += other.kept_characters;
        self.characters.merge(&other.characters);
        self.dropped_paragraphs.merge(&other.dropped_paragraphs);
        self.dropped_images.merge(&other.dropped_images);
        self.dropped_pages.merge(&other.dropped_pages);
    }
}

/// All books.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Sums over the books for training.
    pub train: BookReport,
    /// Sums over the books for validation.
    pub validation: BookReport,
    pub books: Vec<BookReport>,
    /// Files of the output.
    pub shards: Vec<String>,
}

impl Report {
    pub(super) fn add(&mut self, book: BookReport) {
        let sum = if book.is_validation { &mut self.validation } else { &mut self.train };
        sum.merge(&book);
        self.books.push(book);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, sum, is_validation) in
            [("train", &self.train, false), ("validation", &self.validation, true)]
        {
            let of = |book: &&BookReport| book.is_validation == is_validation;
            let books = self.books.iter().filter(of).count();
            let failed = self.books.iter().filter(of).filter(|b| b.error.is_some()).count();
            writeln!(f, "{name}: {books} books ({failed} unreadable), {} pages", sum.pages)?;
            writeln!(
                f,
                "  kept      {} segments, {} images, {} tokens, {} characters",
                sum.segments, sum.images, sum.tokens, sum.kept_characters
            )?;
            writeln!(f, "  left out  characters: {}", sum.characters)?;
            writeln!(f, "            paragraphs: {}", sum.dropped_paragraphs)?;
            writeln!(f, "            images: {}", sum.dropped_images)?;
            writeln!(f, "            pages: {}", sum.dropped_pages)?;
        }
        for book in self.books.iter().filter(|b| b.segments == 0) {
            let why = book.error.as_deref().unwrap_or("no segment with an image");
            writeln!(f, "nothing of {:?}: {why}", book.name)?;
        }
        Ok(())
    }
}

//! Samples that cannot be used: why, and how many.

use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::fmt;

/// Why a record became no sample: a closed set, so that it can be counted and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The shard ends early or its headers make no sense; the rest of it is lost.
    Shard,
    /// The operating system did not give the bytes.
    Io,
    /// Larger than the limits, or more parts than they allow.
    TooLarge,
    /// JSON that cannot be parsed or lacks what its form needs.
    Json,
    /// No caption among the files of a pair.
    NoText,
    /// No picture among the files of a pair, or one that is named and not there.
    NoImage,
    /// Text that is not UTF-8 or that the tokenizer refuses.
    Text,
    /// A picture that cannot be decoded.
    Image,
    /// A path that leads out of the folder of the pictures.
    Path,
    /// A caption of nothing but white space.
    EmptyText,
    /// An interleaved document without a picture that meets the rules.
    NoValidImage,
    /// No picture is similar enough to a sentence.
    Similarity,
    /// Fewer images than the least number within the tokens that are kept.
    FewImages,
    /// One image only, and the draw went against it.
    SingleImage,
    /// One image only, and no text after it.
    ImageLast,
    /// No token has a label.
    NoLabel,
}

impl Reason {
    /// All of them, the damages first.
    pub const ALL: [Reason; 16] = [
        Reason::Shard,
        Reason::Io,
        Reason::TooLarge,
        Reason::Json,
        Reason::NoText,
        Reason::NoImage,
        Reason::Text,
        Reason::Image,
        Reason::Path,
        Reason::EmptyText,
        Reason::NoValidImage,
        Reason::Similarity,
        Reason::FewImages,
        Reason::SingleImage,
        Reason::ImageLast,
        Reason::NoLabel,
    ];

    /// Its name in states, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Shard => "damaged-shard",
            Reason::Io => "io",
            Reason::TooLarge => "too-large",
            Reason::Json => "bad-json",
            Reason::NoText => "no-text",
            Reason::NoImage => "no-image",
            Reason::Text => "bad-text",
            Reason::Image => "bad-image",
            Reason::Path => "path-outside",
            Reason::EmptyText => "empty-text",
            Reason::NoValidImage => "no-valid-image",
            Reason::Similarity => "low-similarity",
            Reason::FewImages => "few-images",
            Reason::SingleImage => "single-image",
            Reason::ImageLast => "image-last",
            Reason::NoLabel => "no-label",
        }
    }

    /// True for what is wrong with the data; false for what the rules leave out.
    pub fn is_damage(self) -> bool {
        self <= Reason::Path
    }
}

/// One record that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    /// Where and what, for people; never the content.
    pub detail: String,
}

impl Refusal {
    pub fn new(reason: Reason, detail: impl fmt::Display) -> Self {
        Refusal { reason, detail: detail.to_string() }
    }
}

/// Counts of what was kept and of what was not, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    kept: u64,
    refused: [u64; Reason::ALL.len()],
    examples: [Option<String>; Reason::ALL.len()],
}

impl Tally {
    /// Counts one sample.
    pub fn keep(&mut self) {
        self.kept += 1;
    }

    /// Counts one refusal; the first of each reason is kept as an example.
    pub fn refuse(&mut self, refusal: Refusal) {
        let i = refusal.reason as usize;
        self.refused[i] += 1;
        self.examples[i].get_or_insert(refusal.detail);
    }

    /// Samples that were kept.
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// Records refused for `reason`.
    pub fn count(&self, reason: Reason) -> u64 {
        self.refused[reason as usize]
    }

    /// Kept and refused.
    pub fn total(&self) -> u64 {
        self.kept + self.refused.iter().sum::<u64>()
    }

    /// Records refused because something is wrong with them.
    pub fn damaged(&self) -> u64 {
        Reason::ALL.iter().filter(|r| r.is_damage()).map(|&r| self.count(r)).sum()
    }

    /// # Errors
    /// When more than `share` of all records are damaged.
    pub fn check(&self, who: &str, share: f64) -> Result<()> {
        let (damaged, total) = (self.damaged(), self.total());
        if damaged as f64 <= share * total as f64 {
            return Ok(());
        }
        let expected = format!("at most {:.1} % damaged records", 100.0 * share);
        let found = format!("{damaged} of {total}: {}", self.worst(Reason::is_damage));
        Err(Error::invalid(who, expected, found)
            .advise("repair or leave out the shards named, or raise max_bad_share"))
    }

    /// The error for a source that gave nothing at all.
    pub fn nothing(&self, who: &str) -> Error {
        let found = match self.total() {
            0 => "no records".to_string(),
            n => format!("none of {n} records usable: {}", self.worst(|_| true)),
        };
        Error::invalid(who, "at least one usable sample in an epoch", found)
            .advise("check the paths and the rules (similarity, image size) against the data")
    }

    /// The three most frequent reasons, each with its first example.
    fn worst(&self, is_meant: impl Fn(Reason) -> bool) -> String {
        let mut found: Vec<Reason> =
            Reason::ALL.into_iter().filter(|&r| is_meant(r) && self.count(r) > 0).collect();
        found.sort_by_key(|&r| std::cmp::Reverse(self.count(r)));
        let say = |&r: &Reason| {
            let example = self.examples[r as usize].as_deref().unwrap_or("before the resume");
            format!("{} {} (first: {example})", self.count(r), r.name())
        };
        found.iter().take(3).map(say).collect::<Vec<_>>().join("; ")
    }

    /// `{"kept": n, "refused": {reason: n}}`, without zeros.
    pub fn to_json(&self) -> Value {
        let counts = Reason::ALL.iter().filter(|&&r| self.count(r) > 0);
        let refused: Map<_, _> =
            counts.map(|&r| (r.name().to_string(), json!(self.count(r)))).collect();
        json!({ "kept": self.kept, "refused": refused })
    }

    /// The counts that [`Tally::to_json`] wrote.
    pub fn from_json(value: &Value) -> Option<Self> {
        let mut tally = Tally { kept: value.get("kept")?.as_u64()?, ..Tally::default() };
        for (name, count) in value.get("refused")?.as_object()? {
            let reason = Reason::ALL.iter().find(|r| r.name() == name)?;
            tally.refused[*reason as usize] = count.as_u64()?;
        }
        Some(tally)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_damages_are_named_with_an_example() {
        let mut tally = Tally::default();
        (0..10).for_each(|_| tally.keep());
        (0..3).for_each(|i| tally.refuse(Refusal::new(Reason::Image, format!("a.tar at {i}"))));
        tally.refuse(Refusal::new(Reason::Json, "b.tar at 7"));
        (0..20).for_each(|_| tally.refuse(Refusal::new(Reason::Similarity, "0.1")));
        tally.check("source 0", 0.12).unwrap();
        let text = tally.check("source 0", 0.1).unwrap_err().to_string();
        let found = "4 of 34: 3 bad-image (first: a.tar at 0); 1 bad-json (first: b.tar at 7)";
        assert!(text.contains(found), "{text}");
        let back = Tally::from_json(&tally.to_json()).unwrap();
        assert_eq!((back.kept(), back.damaged(), back.total()), (10, 4, 34));
    }

    #[test]
    fn reasons_are_in_the_order_of_their_numbers() {
        assert!(Reason::ALL.iter().enumerate().all(|(i, &r)| r as usize == i));
    }
}

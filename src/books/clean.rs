//! Paragraphs that are in every book and say nothing about its subject.

use super::html::Block;
use super::report::BookReport;
use std::collections::{HashMap, HashSet};

/// Headings of parts that are left out until the next heading of their level.
const APPARATUS: [&str; 20] = [
    "references",
    "bibliography",
    "further reading",
    "suggested reading",
    "suggested readings",
    "recommended reading",
    "works cited",
    "literature cited",
    "selected references",
    "index",
    "contents",
    "table of contents",
    "list of figures",
    "list of tables",
    "list of contributors",
    "copyright",
    "acknowledgments",
    "acknowledgements",
    "dedication",
    "about the author",
];
/// Longest paragraph that is taken for a notice, in bytes.
const MAX_NOTICE: usize = 400;
/// A shorter line that is there so often in one book is a running header.
const REPEATS: usize = 4;
const MAX_HEADER: usize = 100;

/// `blocks` without apparatus.
pub(super) fn clean(blocks: Vec<Block>, report: &mut BookReport) -> Vec<Block> {
    let mut kept = Vec::with_capacity(blocks.len());
    let mut skipped: Option<u8> = None;
    for block in blocks {
        match &block {
            Block::Text { text, level } => {
                if *level > 0 && skipped.is_some_and(|s| *level <= s) {
                    skipped = None;
                }
                if *level > 0 && skipped.is_none() && is_apparatus(text) {
                    skipped = Some(*level);
                }
                match (skipped, reason(text)) {
                    (Some(_), _) => report.drop_text("references and lists", text),
                    (None, Some(reason)) => report.drop_text(reason, text),
                    (None, None) => kept.push(block),
                }
            }
            Block::Image(_) if skipped.is_some() => report.dropped_images.add("boilerplate", 1),
            Block::Image(_) => kept.push(block),
        }
    }
    kept
}

/// The texts of running headers: short, and there again and again.
pub(super) fn repeated<'a>(blocks: impl Iterator<Item = &'a Block>) -> HashSet<String> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for block in blocks {
        if let Block::Text { text, .. } = block
            && text.len() < MAX_HEADER
        {
            *counts.entry(text).or_default() += 1;
        }
    }
    counts.into_iter().filter(|(_, n)| *n >= REPEATS).map(|(text, _)| text.to_string()).collect()
}

fn is_apparatus(heading: &str) -> bool {
    let is_number = |c: char| c.is_ascii_digit() || ".:)( ".contains(c);
    let plain = heading.trim_matches(is_number).to_lowercase();
    APPARATUS.contains(&plain.as_str())
}

/// Why a paragraph is left out.
fn reason(text: &str) -> Option<&'static str> {
    let lower = text.to_lowercase();
    if !text.chars().any(char::is_alphabetic) || is_page_number(&lower) {
        return Some("page number or no letters");
    }
    let has_leader = ["....", ". . . .", "……"].iter().any(|leader| text.contains(leader));
    if has_leader && text.ends_with(|c: char| c.is_ascii_digit() || "ivxlc".contains(c)) {
        return Some("line of a table of contents");
    }
    const NOTICES: [&str; 6] = [
        "all rights reserved",
        "copyright ©",
        "© 19",
        "© 20",
        "isbn",
        "library of congress cataloging",
    ];
    if text.len() <= MAX_NOTICE && NOTICES.iter().any(|notice| lower.contains(notice)) {
        return Some("copyright notice");
    }
    None
}

/// `page 12`, `xiv`, `- 12 -`.
fn is_page_number(lower: &str) -> bool {
    let rest = lower.trim_matches(|c: char| !c.is_alphanumeric());
    let rest = rest.strip_prefix("page").map_or(rest, str::trim_start);
    let is_roman = rest.len() >= 2 && rest.chars().all(|c| "ivxlc".contains(c));
    is_roman || (!rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(level: u8, text: &str) -> Block {
        Block::Text { text: text.into(), level }
    }

    #[test]
    fn apparatus_ends_with_the_next_heading_of_its_level() {
        let mut report = BookReport::default();
        let blocks = vec![
            text(1, "One"),
            text(0, "The liver is large."),
            text(2, "5. References"),
            text(0, "Smith, J."),
            text(3, "More"),
            Block::Image("logo.png".into()),
            text(2, "Two"),
            Block::Image("a.png".into()),
        ];
        let kept = clean(blocks.clone(), &mut report);
        let expected: Vec<_> = [0, 1, 6, 7].iter().map(|&i: &usize| blocks[i].clone()).collect();
        assert_eq!(kept, expected);
        assert_eq!(report.dropped_paragraphs.get("references and lists"), 3);
        assert_eq!(report.dropped_images.get("boilerplate"), 1);
    }

    #[test]
    fn notices_numbers_and_lines_of_contents_are_told_from_text() {
        for (line, is_kept) in [
            ("Page 12", false),
            ("- 7 -", false),
            ("xiv", false),
            ("***", false),
            ("Chapter 3 ........ 41", false),
            ("Copyright © 2001 by the authors. All rights reserved.", false),
            ("ISBN 978-3-16-148410-0", false),
            ("Figure 3. A mass in the left lung.", true),
            ("IV contrast was given.", true),
            ("Wait .... then look again.", true),
        ] {
            assert_eq!(reason(line).is_none(), is_kept, "{line}");
        }
        let line = text(0, "Clinical Radiology");
        let blocks = [line.clone(), line.clone(), line.clone(), line, text(0, "once")];
        assert_eq!(repeated(blocks.iter()).into_iter().collect::<Vec<_>>(), ["Clinical Radiology"]);
        assert!(repeated(blocks[1..].iter()).is_empty());
    }
}

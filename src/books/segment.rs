//! Text and pictures cut into segments that a model can read at once.

use super::report::BookReport;
use super::{Options, Parts};
use crate::Result;
use crate::prompt::Part;

/// Tokens of a segment besides its text and pictures: leading, last end of chunk, end.
const FRAME: usize = 3;
/// Tokens of a picture: its marker and the end of the chunk before it.
const PICTURE: usize = 2;

/// A book in order.
pub(super) enum Item {
    /// A segment ends here.
    Section,
    Text(String),
    Image(Vec<u8>),
}

/// Packs `items` greedily into segments with at least one picture each.
pub(super) fn segments(
    items: Vec<Item>,
    options: &Options,
    report: &mut BookReport,
) -> Result<Vec<Parts>> {
    let mut packer = Packer { options, report, done: Vec::new(), parts: Vec::new(), tokens: FRAME };
    for item in items {
        match item {
            Item::Section => packer.close(),
            Item::Text(text) => packer.text(text)?,
            Item::Image(bytes) => packer.image(bytes),
        }
    }
    packer.close();
    Ok(packer.done)
}

struct Packer<'a> {
    options: &'a Options,
    report: &'a mut BookReport,
    done: Vec<Parts>,
    parts: Parts,
    tokens: usize,
}

impl Packer<'_> {
    fn image(&mut self, bytes: Vec<u8>) {
        if self.images() == self.options.max_images
            || self.tokens + PICTURE > self.options.max_tokens
        {
            self.close();
        }
        self.tokens += PICTURE;
        self.parts.push(Part::Image(bytes));
    }

    fn text(&mut self, text: String) -> Result<()> {
        let cost = self.cost(&text)?;
        if FRAME + cost <= self.options.max_tokens {
            if self.tokens + cost > self.options.max_tokens {
                self.close();
            }
            self.push(text, cost);
            return Ok(());
        }
        let middle = middle(&text);
        if middle == 0 {
            self.report.drop_text("a word longer than a segment", &text);
            return Ok(());
        }
        // Halves of halves until they fit: at most as deep as there are bits in the length.
        self.text(text[..middle].trim().to_string())?;
        self.text(text[middle..].trim().to_string())
    }

    /// Appends a paragraph.
    fn push(&mut self, text: String, cost: usize) {
        self.tokens += cost;
        match self.parts.last_mut() {
            Some(Part::Text(last)) => {
                last.push('\n');
                last.push_str(&text);
            }
            _ => self.parts.push(Part::Text(text)),
        }
    }

    /// Tokens of a paragraph and of the break before it.
    fn cost(&self, text: &str) -> Result<usize> {
        // Text of more than a megabyte does not fit in any segment.
        let most = crate::text::MAX_TEXT;
        Ok(1 + match &self.options.tokenizer {
            Some(tokenizer) if text.len() <= most => tokenizer.encode_text(text)?.len(),
            Some(_) => most,
            None => text.len().div_ceil(4),
        })
    }

    fn images(&self) -> usize {
        self.parts.iter().filter(|part| matches!(part, Part::Image(_))).count()
    }

    /// Ends the segment; without a picture it is left out.
    fn close(&mut self) {
        let parts = std::mem::take(&mut self.parts);
        let tokens = std::mem::replace(&mut self.tokens, FRAME);
        let texts = parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text),
            _ => None,
        });
        let images = parts.iter().filter(|part| matches!(part, Part::Image(_))).count();
        if images == 0 {
            texts.for_each(|text| self.report.drop_text("segment without an image", text));
            return;
        }
        self.report.kept_characters += texts.map(|t| t.chars().count() as u64).sum::<u64>();
        self.report.segments += 1;
        self.report.images += images as u64;
        self.report.tokens += tokens as u64;
        self.done.push(parts);
    }
}

/// Where to cut `text` in two: after the sentence, or else the word, that ends nearest to the
/// middle. 0 if it is one word.
fn middle(text: &str) -> usize {
    let half = text.len() / 2;
    let near = |ends: Vec<usize>| ends.into_iter().min_by_key(|end| end.abs_diff(half));
    let inside = |end: &usize| *end > 0 && *end < text.len();
    let sentences: Vec<usize> = [". ", "? ", "! ", "; "]
        .iter()
        .flat_map(|end| text.match_indices(end).map(|(at, end)| at + end.len()))
        .filter(inside)
        .collect();
    let words = || text.match_indices(' ').map(|(at, _)| at + 1).filter(inside).collect();
    // A cut in the outer quarters would not make it much shorter.
    near(sentences)
        .filter(|end| (text.len() / 4..=text.len() / 4 * 3).contains(end))
        .or_else(|| near(words()))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(items: Vec<Item>, max_tokens: usize) -> (Vec<String>, BookReport) {
        let options = Options { max_tokens, max_images: 2, ..Options::new("".into(), "".into()) };
        let mut report = BookReport::default();
        let segments = segments(items, &options, &mut report).unwrap();
        let show = |parts: Parts| {
            let show = |part: &Part<Vec<u8>>| match part {
                Part::Text(text) => text.clone(),
                _ => "[]".into(),
            };
            parts.iter().map(show).collect::<String>()
        };
        (segments.into_iter().map(show).collect(), report)
    }

    fn text(text: &str) -> Item {
        Item::Text(text.into())
    }

    fn image() -> Item {
        Item::Image(vec![1])
    }

    #[test]
    fn segments_keep_order_and_have_pictures() {
        let items = vec![
            text("one"),
            image(),
            text("two"),
            text("three"),
            image(),
            image(),
            text("four"),
            Item::Section,
            text("five"),
            Item::Section,
            image(),
        ];
        let (found, report) = pack(items, 100);
        assert_eq!(found, ["one[]two\nthree[]", "[]four", "[]"]);
        assert_eq!((report.segments, report.images), (3, 4));
        assert_eq!(report.characters.get("segment without an image"), 4);
    }

    #[test]
    fn long_paragraphs_are_cut_at_sentences_and_budgets_kept() {
        let long = "A sentence of some words. ".repeat(40);
        let items = vec![image(), text(long.trim()), image()];
        let (found, report) = pack(items, 64);
        assert!(found.iter().all(|s| s.len() / 4 < 64), "{found:?}");
        assert!(found[0].starts_with("[]A sentence") && found[0].ends_with("words."), "{found:?}");
        assert!(report.tokens <= 64 * report.segments);
        let (found, report) = pack(vec![image(), text(&"x".repeat(5000))], 64);
        assert_eq!(found, ["[]"]);
        assert_eq!(report.characters.get("a word longer than a segment"), 5000);
    }
}

//! An endless, resumable supply of pages.

use super::dice::Dice;
use super::episode;
use super::page::Page;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::str::FromStr;

/// What a page is for. Pages of one split never have the seed of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    /// For losses while training.
    Validation,
    /// For examinations; made-up words are other ones here.
    Examination,
}

impl Split {
    const fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Examination => "examination",
        }
    }
}

/// Kinds of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A picture with its caption.
    Caption,
    /// A picture with a word for each property.
    Findings,
    /// A picture with questions and answers.
    Questions,
    /// Pictures with texts that refer to each other.
    Interleaved,
    /// Few-shot questions in known words.
    Shots,
    /// Few-shot questions in words that the shots define.
    Words,
    /// As `words` with eight shots.
    Lessons,
    /// As `lessons` with notes in the place of the first pictures.
    Bridges,
    /// Any of those before `lessons` but findings, with notes in the place of pictures: text alone.
    Reports,
    /// Few-shot questions with notes, of which some are missing: text alone.
    Gaps,
    /// A list of words, said twice: text alone.
    Echo,
    /// Words with the made-up words that stand for them, over and over: text alone.
    Glossary,
    /// As `words` after notes of a few words: text alone.
    Drills,
}

impl Kind {
    pub const ALL: [Kind; 13] = [
        Kind::Caption,
        Kind::Findings,
        Kind::Questions,
        Kind::Interleaved,
        Kind::Shots,
        Kind::Words,
        Kind::Lessons,
        Kind::Bridges,
        Kind::Reports,
        Kind::Gaps,
        Kind::Echo,
        Kind::Glossary,
        Kind::Drills,
    ];

    /// As configurations write it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Caption => "caption",
            Kind::Findings => "findings",
            Kind::Questions => "questions",
            Kind::Interleaved => "interleaved",
            Kind::Shots => "shots",
            Kind::Words => "words",
            Kind::Lessons => "lessons",
            Kind::Bridges => "bridges",
            Kind::Reports => "reports",
            Kind::Gaps => "gaps",
            Kind::Echo => "echo",
            Kind::Glossary => "glossary",
            Kind::Drills => "drills",
        }
    }

    /// Kinds with weights, as configurations write them: `shots=1, words=3`; a weight is 1 unless
    /// given.
    ///
    /// # Errors
    /// A kind that does not exist, a weight that is no number.
    pub fn mix(text: &str) -> Result<Vec<(Kind, u32)>> {
        let one = |part: &str| {
            let (kind, weight) = part.split_once('=').unwrap_or((part, "1"));
            let wrong = |_| Error::invalid("weight", "a whole number", format!("`{weight}`"));
            Ok((kind.trim().parse()?, weight.trim().parse().map_err(wrong)?))
        };
        text.split(',').map(one).collect()
    }

    fn page(self, dice: &mut Dice, split: Split) -> Page {
        let is_held_out = split == Split::Examination;
        match self {
            Kind::Caption => episode::caption(dice),
            Kind::Findings => episode::findings(dice),
            Kind::Questions => episode::questions(dice),
            Kind::Interleaved => episode::interleaved(dice),
            Kind::Shots => episode::shots(dice),
            Kind::Words => episode::coined(dice, is_held_out),
            Kind::Lessons => episode::lesson(dice, is_held_out),
            Kind::Bridges => episode::bridge(dice, is_held_out),
            Kind::Gaps => episode::gaps(dice, is_held_out),
            Kind::Echo => episode::echo(dice, is_held_out),
            Kind::Glossary => episode::glossary(dice, is_held_out),
            Kind::Drills => episode::drill(dice, is_held_out),
            Kind::Reports => {
                let kinds =
                    [Kind::Caption, Kind::Questions, Kind::Interleaved, Kind::Shots, Kind::Words];
                let kind = kinds[dice.weighted([1, 1, 1, 2, 4].into_iter())];
                let page = kind.page(dice, split);
                episode::described(page, dice)
            }
        }
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        Kind::ALL.into_iter().find(|k| k.name() == word).ok_or_else(|| {
            let names = Kind::ALL.map(Kind::name).join(", ");
            Error::invalid("kind of page", names, format!("`{word}`"))
        })
    }
}

/// Page after page, each of a kind drawn by weight. Page `i` depends on the seed, the split, the
/// weights and `i` alone, so that the state is a number.
#[derive(Clone, Debug)]
pub struct Pages {
    seed: u64,
    split: Split,
    mix: Vec<(Kind, u32)>,
    next: u64,
    /// Pages passed over after each one that is given out: for one of several workers.
    step: u64,
}

impl Pages {
    /// # Errors
    /// Weights that are all 0.
    pub fn new(seed: u64, split: Split, mix: Vec<(Kind, u32)>) -> Result<Self> {
        let total: u64 = mix.iter().map(|(_, weight)| u64::from(*weight)).sum();
        if total == 0 || total > 1 << 20 {
            return Err(Error::invalid("kinds of pages", "weights that sum to 1..=2^20", total));
        }
        Ok(Pages { seed, split, mix, next: 0, step: 1 })
    }

    /// The part of worker `rank` of `ranks`, which together give every page once.
    ///
    /// # Errors
    /// A rank that does not exist.
    pub fn of_rank(mut self, rank: u64, ranks: u64) -> Result<Self> {
        if rank >= ranks {
            return Err(Error::invalid("rank", format!("below {ranks}"), rank));
        }
        (self.next, self.step) = (rank, ranks);
        Ok(self)
    }

    /// The next page; there is always one.
    pub fn next_page(&mut self) -> Page {
        let page = self.page(self.next);
        self.next += self.step;
        page
    }

    /// Page `index`.
    pub fn page(&self, index: u64) -> Page {
        let mut dice = Dice::new(self.seed, self.split.name(), index);
        let kind = self.mix[dice.weighted(self.mix.iter().map(|(_, weight)| *weight))].0;
        kind.page(&mut dice, self.split)
    }

    /// Where it stands.
    pub fn state(&self) -> Value {
        json!({"seed": self.seed, "next": self.next, "step": self.step})
    }

    /// Goes on where [`Pages::state`] was taken.
    ///
    /// # Errors
    /// A state of other pages.
    pub fn restore(&mut self, state: &Value) -> Result<()> {
        let field = |name: &str| {
            let missing = || Error::invalid("state of phantom pages", name, state);
            state.get(name).and_then(Value::as_u64).ok_or_else(missing)
        };
        let (seed, next, step) = (field("seed")?, field("next")?, field("step")?);
        if (seed, step) != (self.seed, self.step) {
            let expected = format!("seed {} and step {}", self.seed, self.step);
            let found = format!("seed {seed} and step {step}");
            return Err(Error::invalid("state of phantom pages", expected, found));
        }
        self.next = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn all(seed: u64, split: Split) -> Pages {
        Pages::new(seed, split, Kind::ALL.map(|k| (k, 1)).to_vec()).unwrap()
    }

    #[test]
    fn a_restored_supply_goes_on_as_the_first_would_have() {
        let mut pages = all(1, Split::Train);
        (0..5).for_each(|_| drop(pages.next_page()));
        let state = pages.state();
        let next: Vec<_> = (0..5).map(|_| pages.next_page()).collect();
        let mut other = all(1, Split::Train);
        other.restore(&state).unwrap();
        assert_eq!((0..5).map(|_| other.next_page()).collect::<Vec<_>>(), next);
        let e = all(2, Split::Train).restore(&state).unwrap_err().to_string();
        assert!(e.contains("seed 2") && e.contains("seed 1"), "{e}");
        assert!(all(1, Split::Train).restore(&json!({})).is_err());
    }

    /// What the recipe trained on. If this fails, the model in the program is no longer what
    /// `recipes/phantom/run` makes: make it again, or leave the pages as they were.
    #[test]
    fn pages_are_those_that_the_model_in_the_program_has_seen() {
        let digest = |kind| {
            let mut pages = Pages::new(1, Split::Train, vec![(kind, 1)]).unwrap();
            let text: String = (0..50).map(|_| pages.next_page().text()).collect();
            let hash = Sha256::digest(text);
            format!("{} {:02x}{:02x}{:02x}{:02x}", kind.name(), hash[0], hash[1], hash[2], hash[3])
        };
        let seen = [
            "caption f328d37d",
            "findings 9361fc4d",
            "questions 036965cd",
            "interleaved 6e36d0cb",
            "shots 150f5372",
            "words dea73596",
            "lessons dba5d733",
            "bridges aa38eb73",
            "reports 444505f2",
            "gaps 40aa2fe1",
            "echo d17f10ec",
            "glossary bcf7e6dc",
            "drills 003e7be8",
        ];
        assert_eq!(Kind::ALL.map(digest), seen);
    }

    #[test]
    fn ranks_share_the_pages_and_splits_share_none() {
        let together: Vec<_> = {
            let mut pages = all(1, Split::Train);
            (0..6).map(|_| pages.next_page()).collect()
        };
        let mut ranks: Vec<_> =
            (0..3).map(|r| all(1, Split::Train).of_rank(r, 3).unwrap()).collect();
        let shared: Vec<_> = (0..2)
            .flat_map(|_| ranks.iter_mut().map(Pages::next_page).collect::<Vec<_>>())
            .collect();
        assert_eq!(shared, together);
        assert!(all(1, Split::Train).of_rank(3, 3).is_err());
        assert!(together.iter().all(|p| (0..6).all(|i| all(1, Split::Validation).page(i) != *p)));
    }

    #[test]
    fn pages_have_a_picture_for_each_marker_and_reports_have_none() {
        for kind in Kind::ALL {
            let mut pages = Pages::new(4, Split::Train, vec![(kind, 1)]).unwrap();
            for _ in 0..20 {
                let page = pages.next_page();
                let (text, pictures) = (page.text(), page.pictures().unwrap().len());
                assert_eq!(text.matches("<image>").count(), pictures, "{text}");
                assert_eq!(text.matches("<|endofchunk|>").count(), page.pieces.len());
                let is_text = [Kind::Reports, Kind::Gaps, Kind::Echo, Kind::Glossary, Kind::Drills];
                assert_eq!(pictures == 0, is_text.contains(&kind));
                // Every text after a picture is about the last one before it.
                let is_note = page.pieces.iter().map(|p| p.note.is_some());
                assert!(is_note.is_sorted_by_key(|is_note| !is_note), "{text}");
            }
            assert_eq!(kind.name().parse::<Kind>().unwrap(), kind);
        }
        assert!("captions".parse::<Kind>().unwrap_err().to_string().contains("caption, findings"));
        assert!(Pages::new(0, Split::Train, vec![(Kind::Caption, 0)]).is_err());
        let mix = Kind::mix("shots, words = 3").unwrap();
        assert_eq!(mix, [(Kind::Shots, 1), (Kind::Words, 3)]);
        assert!(Kind::mix("words=x").unwrap_err().to_string().contains("`x`"));
    }
}

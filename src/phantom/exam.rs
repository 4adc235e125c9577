//! Examinations: questions whose right answer is known, and the same with something taken away.

use super::dice::Dice;
use super::episode::{coined_with, described, known};
use super::page::{Page, Piece};
use super::study::{Property, Study};
use super::words::{self, Question};
use crate::image::{Mode, Picture};
use crate::text::{END_OF_CHUNK, IMAGE};
use crate::{Error, Result};

/// What is done to a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Nothing.
    Normal,
    /// The last picture is another study's.
    Swapped,
    /// The pictures of the shots change places at random.
    Shuffled,
    /// The shots are left out.
    NoShots,
    /// The last picture is plain gray.
    Blank,
}

impl Control {
    pub const ALL: [Control; 5] =
        [Control::Normal, Control::Swapped, Control::Shuffled, Control::NoShots, Control::Blank];

    /// In words, for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Control::Normal => "normal",
            Control::Swapped => "query image swapped",
            Control::Shuffled => "shots' images shuffled",
            Control::NoShots => "no shots",
            Control::Blank => "query image blank",
        }
    }
}

/// One question of an examination.
#[derive(Clone, Debug)]
pub struct Item {
    /// Shots, then the question; the last piece holds the answer, which the prompt leaves out.
    page: Page,
    question: Question,
    /// What takes the place of the last picture.
    other: Piece,
    /// Where the picture of each shot comes from when they are shuffled.
    order: Vec<usize>,
    is_coined: bool,
}

impl Item {
    fn new(page: Page, is_coined: bool, dice: &mut Dice) -> Result<Self> {
        let last = page.pieces.last().and_then(|piece| piece.question.clone());
        let question = last.ok_or_else(|| Error::invalid("page", "a question at its end", ""))?;
        let property = question.property;
        // Of two coined words, each is as likely to be right for the other picture.
        let values: Vec<usize> = match is_coined {
            true => page.pieces.iter().map(|p| p.study.get(property)).collect(),
            false => (0..property.values().len()).collect(),
        };
        let mut values = values;
        values.sort_unstable();
        values.dedup();
        let value = *dice.pick(&values);
        let study = Study::draw_with(dice, property, value);
        let (look, text) = (dice.seed(), String::new());
        let other = Piece { study, look, note: None, text, question: None, is_first: false };
        let mut order: Vec<usize> = (0..page.pieces.len() - 1).collect();
        dice.shuffle(&mut order);
        Ok(Item { page, question, other, order, is_coined })
    }

    pub fn question(&self) -> &Question {
        &self.question
    }

    /// The page that it was made of: shots, question and answer.
    pub fn page(&self) -> &Page {
        &self.page
    }

    /// True if its words are made up.
    pub fn is_coined(&self) -> bool {
        self.is_coined
    }

    /// The prompt up to `Answer:`, with its pictures.
    ///
    /// # Errors
    /// As [`Picture::new`].
    pub fn prompt(&self, control: Control, says_why: bool) -> Result<(String, Vec<Picture>)> {
        let Some((last, shots)) = self.page.pieces.split_last() else {
            return Err(Error::invalid("examination", "a question", "an empty page"));
        };
        let (mut text, mut pictures) = (String::new(), Vec::new());
        let mut see = |text: &mut String, piece: &Piece| -> Result<()> {
            match &piece.note {
                Some(note) => *text += &format!("{note} "),
                None => {
                    *text += IMAGE;
                    pictures.push(piece.picture()?);
                }
            }
            Ok(())
        };
        if control != Control::NoShots {
            text += &self.page.preamble;
            for (i, shot) in shots.iter().enumerate() {
                let from = if control == Control::Shuffled { self.order[i] } else { i };
                see(&mut text, &shots[from])?;
                text += &format!("{}{END_OF_CHUNK}", shot.text);
            }
        }
        match control {
            Control::Swapped => see(&mut text, &self.other)?,
            Control::Blank if last.note.is_none() => {
                text += IMAGE;
                pictures.push(blank()?);
            }
            Control::Blank => (),
            _ => see(&mut text, last)?,
        }
        text += &self.question.ask(says_why);
        Ok((text, pictures))
    }

    /// The share of right answers that `control` leaves to one who is otherwise always right;
    /// `None` if it should change nothing.
    pub fn expected(&self, control: Control) -> Option<f64> {
        match control {
            Control::Swapped | Control::Blank => Some(words::chance(&self.question)),
            Control::Shuffled | Control::NoShots if self.is_coined => {
                Some(words::chance(&self.question))
            }
            _ => None,
        }
    }
}

fn blank() -> Result<Picture> {
    let side = super::draw::SIDE;
    Picture::new(side, side, Mode::Gray, vec![128; side * side])
}

/// Questions in known words and in made-up ones, as many of each property.
#[derive(Clone, Debug)]
pub struct Exam {
    pub known: Vec<Item>,
    pub coined: Vec<Item>,
}

impl Exam {
    /// `count` questions of each sort after `shots` shots (even). No page of training has the
    /// studies, pictures or made-up words of these.
    ///
    /// # Errors
    /// An odd number of shots, or none.
    pub fn new(seed: u64, count: usize, shots: usize) -> Result<Self> {
        if shots == 0 || !shots.is_multiple_of(2) || shots > 8 {
            return Err(Error::invalid("shots", "2, 4, 6 or 8", shots));
        }
        let property = |i: usize| Some(Property::ALL[i % Property::ALL.len()]);
        let known = (0..count).map(|i| {
            let mut dice = Dice::new(seed, "examination in known words", i as u64);
            let page = known(shots, property(i), &mut dice);
            Item::new(page, false, &mut dice)
        });
        let coined = (0..count).map(|i| {
            let mut dice = Dice::new(seed, "examination in made-up words", i as u64);
            let page = coined_with(shots, property(i), true, &mut dice);
            Item::new(page, true, &mut dice)
        });
        Ok(Exam { known: known.collect::<Result<_>>()?, coined: coined.collect::<Result<_>>()? })
    }

    /// The same questions with notes in the place of pictures: what the language model alone can
    /// do.
    pub fn described(mut self, seed: u64) -> Self {
        let items = self.known.iter_mut().chain(&mut self.coined);
        for (i, item) in items.enumerate() {
            let mut dice = Dice::new(seed, "notes of an examination", i as u64);
            let (preamble, mut pieces) = (String::new(), item.page.pieces.clone());
            pieces.push(item.other.clone());
            let mut page = described(Page { preamble, pieces }, &mut dice);
            item.other.note = page.pieces.pop().and_then(|piece| piece.note);
            item.page.pieces = page.pieces;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_ends_where_the_answer_begins_and_controls_change_only_what_they_say() {
        let exam = Exam::new(1, 30, 4).unwrap();
        for item in exam.known.iter().chain(&exam.coined) {
            let (text, pictures) = item.prompt(Control::Normal, false).unwrap();
            assert!(text.ends_with(" Answer:"), "{text}");
            assert_eq!(text.matches(IMAGE).count(), 5);
            for control in Control::ALL {
                let (t, p) = item.prompt(control, false).unwrap();
                assert_eq!(t.matches(IMAGE).count(), p.len());
                let is_same = |range: std::ops::Range<usize>| p[range.clone()] == pictures[range];
                match control {
                    Control::Normal => assert!(t == text && p == pictures),
                    Control::Swapped | Control::Blank => {
                        assert!(t == text && is_same(0..4) && p[4] != pictures[4]);
                    }
                    Control::Shuffled => {
                        let mut sorted = [p[..4].to_vec(), pictures[..4].to_vec()];
                        sorted.iter_mut().for_each(|s| s.sort_by(|a, b| a.data.cmp(&b.data)));
                        assert!(t == text && is_same(4..5) && sorted[0] == sorted[1]);
                    }
                    Control::NoShots => assert!(text.ends_with(&t) && p == pictures[4..]),
                }
            }
        }
    }

    #[test]
    fn notes_take_the_place_of_all_pictures() {
        let exam = Exam::new(1, 18, 2).unwrap().described(4);
        for item in exam.known.iter().chain(&exam.coined) {
            let said = |control| {
                let (text, pictures) = item.prompt(control, false).unwrap();
                assert!(pictures.is_empty() && !text.contains(IMAGE) && text.ends_with("Answer:"));
                text
            };
            let (normal, property) = (said(Control::Normal), item.question.property);
            if property != Property::Line {
                assert!(normal.contains(item.page.pieces[2].study.word(property)), "{normal}");
            }
            assert!(said(Control::Swapped) != normal && said(Control::Blank) != normal);
            assert!(normal.ends_with(&said(Control::NoShots)));
        }
    }

    /// Whoever knows a prompt's text but not its pictures, or the shots' pictures in another order,
    /// is right as often as chance says: best constant place, last shot's word, first shot's word.
    #[test]
    fn words_of_the_shots_say_nothing_of_the_answer() {
        let exam = Exam::new(2, 3000, 4).unwrap();
        let mut right = [0usize; 3];
        for item in &exam.coined {
            let shots = &item.page.pieces[..4];
            let word = |i: usize| shots[i].question.as_ref().unwrap().answer();
            let answer = item.question.answer();
            right[0] += usize::from(item.question.answer == 0);
            right[1] += usize::from(word(3) == answer);
            right[2] += usize::from(word(0) == answer);
            assert_eq!((0..4).filter(|&i| word(i) == answer).count(), 2);
        }
        for count in right {
            // Five standard errors.
            assert!(count.abs_diff(1500) < 137, "{right:?}");
        }
    }

    /// One who is always right falls to the expected share when the last picture is another's.
    #[test]
    fn a_swapped_picture_has_the_same_answer_by_chance_alone() {
        let exam = Exam::new(3, 3600, 2).unwrap();
        for items in [&exam.known, &exam.coined] {
            let (mut right, mut expected) = (0, 0.0);
            for item in items {
                let (q, other) = (&item.question, &item.other.study);
                let value = other.get(q.property);
                let shot = item.page.pieces.iter().find(|p| p.study.get(q.property) == value);
                let answer = match () {
                    () if item.is_coined => shot.unwrap().question.as_ref().unwrap().answer(),
                    () if q.candidates.len() == 2 && q.text.starts_with("Is the") => {
                        let says = q.text.contains(&format!(" {}?", other.word(q.property)));
                        ["no", "yes"][usize::from(says)]
                    }
                    () => other.word(q.property),
                };
                right += usize::from(answer == q.answer());
                expected += item.expected(Control::Swapped).unwrap();
            }
            assert!((right as f64 - expected).abs() < 150.0, "{right}, {expected}");
        }
        assert!(Exam::new(0, 1, 3).is_err() && Exam::new(0, 1, 0).is_err());
    }
}

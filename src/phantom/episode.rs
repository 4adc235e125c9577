//! How pages of each kind are put together.

use super::dice::Dice;
use super::page::{Page, Piece};
use super::study::{Property, Study};
use super::words::{self, Question};

/// Most shots before a question in known words.
pub const MOST_SHOTS: usize = 4;

/// A picture and all that can be seen in it.
pub fn caption(dice: &mut Dice) -> Page {
    let study = Study::draw(dice);
    let text = words::caption(&study, dice);
    Page { preamble: String::new(), pieces: vec![piece(study, text, None, dice)] }
}

/// A picture and one to three questions.
pub fn questions(dice: &mut Dice) -> Page {
    let study = Study::draw(dice);
    let mut properties = Property::ALL;
    dice.shuffle(&mut properties);
    let count = 1 + dice.below(3);
    let asked: Vec<Question> =
        properties[..count].iter().map(|&p| words::question(&study, p, dice)).collect();
    let says_why = dice.one_in(3);
    let texts: Vec<_> = asked.iter().map(|q| q.ask(says_why) + &q.reply(says_why)).collect();
    let pieces = vec![piece(study, texts.join(" "), asked.into_iter().next_back(), dice)];
    Page { preamble: String::new(), pieces }
}

/// Two to four pictures with captions or questions; each after the first is compared with the one
/// before.
pub fn interleaved(dice: &mut Dice) -> Page {
    let mut pieces: Vec<Piece> = Vec::new();
    for _ in 0..2 + dice.below(3) {
        let mut study = Study::draw(dice);
        let mut after = String::new();
        if let Some(before) = pieces.last() {
            let property = *dice.pick(&Property::ALL);
            let is_same = dice.one_in(2);
            let (values, old) = (property.values().len(), before.study.get(property));
            let new = if is_same { old } else { (old + 1 + dice.below(values - 1)) % values };
            study.set(property, new);
            after = format!(" {}", words::comparison(property, is_same, dice));
        }
        let text = if dice.one_in(2) {
            words::caption(&study, dice)
        } else {
            let q = words::question(&study, *dice.pick(&Property::ALL), dice);
            q.ask(true) + &q.reply(true)
        };
        pieces.push(piece(study, text + &after, None, dice));
    }
    Page { preamble: String::new(), pieces }
}

/// Up to [`MOST_SHOTS`] questions with answers, and one more, in known words; half of the pages ask
/// for one property only.
pub fn shots(dice: &mut Dice) -> Page {
    let count = dice.below(MOST_SHOTS + 1);
    known(count, None, dice)
}

/// `count` shots and a question; the last one asks for `property` if it is given.
pub fn known(count: usize, property: Option<Property>, dice: &mut Dice) -> Page {
    let property = property.unwrap_or(*dice.pick(&Property::ALL));
    let (is_one_property, says_why) = (dice.one_in(2), dice.one_in(4));
    let mut pieces = Vec::new();
    for i in 0..=count {
        let study = Study::draw(dice);
        let other = *dice.pick(&Property::ALL);
        let property = if i == count || is_one_property { property } else { other };
        let q = words::question(&study, property, dice);
        pieces.push(asked(study, q, says_why, dice));
    }
    Page { preamble: preamble(dice), pieces }
}

/// Two or four shots that name two values of a property in two new words, and a question that only
/// they and its picture answer.
pub fn coined(dice: &mut Dice, is_held_out: bool) -> Page {
    let count = 2 + 2 * dice.below(2);
    coined_with(count, None, is_held_out, dice)
}

/// As [`coined`], with `count` shots, half of them for each word.
pub fn coined_with(
    count: usize,
    property: Option<Property>,
    is_held_out: bool,
    dice: &mut Dice,
) -> Page {
    let property = property.unwrap_or(*dice.pick(&Property::ALL));
    let words = words::coin(dice, is_held_out);
    // Any two of its values, in any order: a word says nothing of the value it stands for.
    let mut values: Vec<usize> = (0..property.values().len()).collect();
    dice.shuffle(&mut values);
    let mut order: Vec<usize> = (0..count).map(|i| i % 2).collect();
    dice.shuffle(&mut order);
    order.push(dice.below(2));
    let phrase = dice.below(2);
    let mut pieces = Vec::new();
    for answer in order {
        let study = Study::draw_with(dice, property, values[answer]);
        let q = words::coined(&study, property, &words, answer, phrase);
        pieces.push(asked(study, q, false, dice));
    }
    Page { preamble: preamble(dice), pieces }
}

/// The page without pictures: a note in the place of each.
pub fn described(mut page: Page, dice: &mut Dice) -> Page {
    for piece in &mut page.pieces {
        let study = &piece.study;
        let is_short = !dice.one_in(4);
        let note = if is_short { words::note(study, dice) } else { words::caption(study, dice) };
        piece.note = Some(note);
    }
    page
}

fn preamble(dice: &mut Dice) -> String {
    if dice.one_in(2) { words::INSTRUCTION.into() } else { String::new() }
}

fn asked(study: Study, q: Question, says_why: bool, dice: &mut Dice) -> Piece {
    let text = q.ask(says_why) + &q.reply(says_why);
    piece(study, text, Some(q), dice)
}

fn piece(study: Study, text: String, question: Option<Question>, dice: &mut Dice) -> Piece {
    Piece { study, look: dice.seed(), note: None, text, question }
}

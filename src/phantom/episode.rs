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
    plain(vec![piece(study, text, None, dice)])
}

/// A picture and a word for each of its properties, always in the same order: nothing in so few
/// words says more about a picture.
pub fn findings(dice: &mut Dice) -> Page {
    let study = Study::draw(dice);
    let text = words::findings(&study);
    plain(vec![piece(study, text, None, dice)])
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
    plain(pieces)
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
    plain(pieces)
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
    let balanced = |dice: &mut Dice| {
        let mut order: Vec<usize> = (0..count).map(|i| i % 2).collect();
        dice.shuffle(&mut order);
        order.push(dice.below(2));
        order
    };
    named(balanced, property, is_held_out, dice)
}

/// As [`coined`], with eight shots of either word: each shot is a question too, and no count of the
/// words says which is next.
pub fn lesson(dice: &mut Dice, is_held_out: bool) -> Page {
    let free = |dice: &mut Dice| (0..=2 * MOST_SHOTS).map(|_| dice.below(2)).collect();
    named(free, None, is_held_out, dice)
}

/// Pictures of two values of a property in two new words, one after the other as `order` says.
fn named(
    order: impl FnOnce(&mut Dice) -> Vec<usize>,
    property: Option<Property>,
    is_held_out: bool,
    dice: &mut Dice,
) -> Page {
    let property = property.unwrap_or(*dice.pick(&Property::ALL));
    let words = words::coin(2, dice, is_held_out);
    // Any two of its values, in any order: a word says nothing of the value it stands for.
    let mut values: Vec<usize> = (0..property.values().len()).collect();
    dice.shuffle(&mut values);
    let order = order(dice);
    let phrase = dice.below(8);
    let mut pieces = Vec::new();
    let mut is_said = [false; 2];
    for answer in order {
        let study = Study::draw_with(dice, property, values[answer]);
        let q = words::coined(&study, property, &words, answer, phrase);
        let is_first = !std::mem::replace(&mut is_said[answer], true);
        pieces.push(Piece { is_first, ..asked(study, q, false, dice) });
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

/// Shots and a question with notes, of which a third is missing: where nothing is said of a study,
/// what is said of others is no answer.
pub fn gaps(dice: &mut Dice, is_held_out: bool) -> Page {
    let page = match dice.one_in(3) {
        true => known(MOST_SHOTS, None, dice),
        false => coined_with(2 * MOST_SHOTS, None, is_held_out, dice),
    };
    let mut page = described(page, dice);
    for piece in &mut page.pieces {
        if dice.one_in(3) {
            piece.note = Some(String::new());
        }
    }
    page
}

/// A lesson with notes in the place of the first two to eight pictures: what an example in words
/// defines must be found in a picture.
pub fn bridge(dice: &mut Dice, is_held_out: bool) -> Page {
    let mut page = described(lesson(dice, is_held_out), dice);
    let notes = 2 + dice.below(2 * MOST_SHOTS - 1);
    page.pieces.iter_mut().skip(notes).for_each(|piece| piece.note = None);
    page
}

/// A list of words, known and made up, said twice: the second time, each can be known from the
/// first. What copying is, as densely as it can be taught.
pub fn echo(dice: &mut Dice, is_held_out: bool) -> Page {
    let mut list = words::coin(8 + dice.below(9), dice, is_held_out);
    for _ in 0..dice.below(9) {
        let property = *dice.pick(&Property::ALL);
        list.push(dice.pick(property.values()).to_string());
    }
    dice.shuffle(&mut list);
    let text = list.join(" ") + ".";
    let study = Study::draw(dice);
    let first = Piece { is_first: true, ..noted(study, "Note:".into(), text.clone(), dice) };
    let second = noted(study, "Note:".into(), text, dice);
    plain(vec![first, second])
}

/// Notes of one word, each with the made-up word that stands for it on this page, over and over.
/// On half of the pages more or less stands between the two, so that how far apart they are says
/// nothing; the others are the way there.
pub fn glossary(dice: &mut Dice, is_held_out: bool) -> Page {
    let count = 2 + dice.below(4);
    let made_up = words::coin(count, dice, is_held_out);
    let mut entries: Vec<(Property, usize)> = Vec::new();
    while entries.len() < count {
        let property = *dice.pick(&Property::ALL);
        let entry = (property, dice.below(property.values().len()));
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    let mut is_said = vec![false; count];
    let mut pieces = Vec::new();
    let always = dice.one_in(2).then(|| dice.below(4));
    for _ in 0..4 * count {
        let answer = dice.below(count);
        let (property, value) = entries[answer];
        let study = Study::draw_with(dice, property, value);
        let q = words::coined(&study, property, &made_up, answer, dice.below(8));
        let mut note = words::note_of(&study, &[property], dice);
        let between = always.unwrap_or_else(|| dice.below(4));
        let text = match between {
            0 | 1 => q.reply(false).trim_start().to_string(),
            2 => format!("Answer:{}", q.reply(false)),
            _ => q.ask(false) + &q.reply(false),
        };
        if between == 0 {
            // No full stop.
            note.pop();
        }
        let is_first = !std::mem::replace(&mut is_said[answer], true);
        pieces.push(Piece { is_first, ..noted(study, note, text, dice) });
    }
    plain(pieces)
}

/// Two to eight notes that name one property, and up to eight beside it, with a made-up word each.
/// On half of the pages some notes are longer than others, so that the short ones teach to read the
/// long ones.
pub fn drill(dice: &mut Dice, is_held_out: bool) -> Page {
    let property = *dice.pick(&Property::ALL);
    let count = 2 * (1 + dice.below(MOST_SHOTS));
    let mut page = coined_with(count, Some(property), is_held_out, dice);
    let lengths = [0, 1, 2, 4, 6, 8];
    let always = dice.one_in(2).then(|| *dice.pick(&lengths));
    for piece in &mut page.pieces {
        let beside = always.unwrap_or_else(|| *dice.pick(&lengths));
        let mut properties = Property::ALL;
        dice.shuffle(&mut properties);
        let asked = properties.iter().position(|p| *p == property).unwrap_or(0);
        properties.swap(0, asked);
        piece.note = Some(words::note_of(&piece.study, &properties[..=beside], dice));
    }
    page
}

fn noted(study: Study, note: String, text: String, dice: &mut Dice) -> Piece {
    Piece { note: Some(note), ..piece(study, text, None, dice) }
}

fn plain(pieces: Vec<Piece>) -> Page {
    Page { preamble: String::new(), pieces }
}

fn preamble(dice: &mut Dice) -> String {
    if dice.one_in(2) { words::INSTRUCTION.into() } else { String::new() }
}

fn asked(study: Study, q: Question, says_why: bool, dice: &mut Dice) -> Piece {
    let text = q.ask(says_why) + &q.reply(says_why);
    piece(study, text, Some(q), dice)
}

fn piece(study: Study, text: String, question: Option<Question>, dice: &mut Dice) -> Piece {
    Piece { study, look: dice.seed(), note: None, text, question, is_first: false }
}

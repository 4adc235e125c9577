//! What can be said of a study and asked about it, in a closed vocabulary.

use super::dice::Dice;
use super::study::{Property, Study};

/// A question about one picture, with everything an examiner needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub property: Property,
    /// With its question mark.
    pub text: String,
    /// All answers that the question allows, each as likely as the others.
    pub candidates: Vec<String>,
    /// The place of the right one.
    pub answer: usize,
    /// One sentence: what in the picture says so.
    pub reason: String,
}

impl Question {
    /// The right answer's word.
    pub fn answer(&self) -> &str {
        &self.candidates[self.answer]
    }

    /// `Question: ... Answer:`, to be continued; `Say why.` asks for the reason as well.
    pub fn ask(&self, says_why: bool) -> String {
        format!("Question: {}{} Answer:", self.text, if says_why { " Say why." } else { "" })
    }

    /// What follows [`Question::ask`].
    pub fn reply(&self, says_why: bool) -> String {
        match says_why {
            true => format!(" {}. {}", self.answer(), self.reason),
            false => format!(" {}.", self.answer()),
        }
    }
}

/// The share of right answers of one who sees no picture.
pub fn chance(question: &Question) -> f64 {
    1.0 / question.candidates.len() as f64
}

/// Asks for `property` of `study`: openly, or whether it has a value.
pub(super) fn question(study: &Study, property: Property, dice: &mut Dice) -> Question {
    let values = property.values();
    let value = study.get(property);
    let reason = reason(study, property);
    if property != Property::Line && dice.one_in(3) {
        // As often the true value as not, and each other one equally: "yes" is a coin.
        let is_true = dice.one_in(2);
        let other = (value + 1 + dice.below(values.len() - 1)) % values.len();
        let asked = values[if is_true { value } else { other }];
        let text = format!("Is the {} {asked}?", property.name());
        let candidates = vec!["no".to_string(), "yes".to_string()];
        return Question { property, text, candidates, answer: usize::from(is_true), reason };
    }
    let text = dice.pick(phrases(property)).to_string();
    let candidates = values.iter().map(|v| v.to_string()).collect();
    Question { property, text, candidates, answer: value, reason }
}

/// Asks for `property` in words made for it, where `answer` is the place of the right one. Most
/// phrases are those for known words: nothing but the examples says which words are meant.
pub(super) fn coined(
    study: &Study,
    property: Property,
    words: &[String],
    answer: usize,
    phrase: usize,
) -> Question {
    let name = property.name();
    let text = match phrase {
        0 => format!("Which word names the {name}?"),
        1 => format!("What is the {name} in new words?"),
        _ => phrases(property)[phrase % phrases(property).len()].into(),
    };
    Question { property, text, candidates: words.to_vec(), answer, reason: reason(study, property) }
}

/// Open questions.
fn phrases(property: Property) -> &'static [&'static str] {
    match property {
        Property::Side => &["Which side is it on?", "What is the side?", "Is it left or right?"],
        Property::Level => {
            &["Which level is it on?", "What is the level?", "Is it upper or lower?"]
        }
        Property::Count => &["How many marks are there?", "What is the count?"],
        Property::Size => &["What size is it?", "What is the size?", "Is it small or large?"],
        Property::Margin => &["What is the margin?", "Is the margin smooth or ragged?"],
        Property::Texture => &["What is the texture?", "Which texture is seen?"],
        Property::Kind => &["What kind of picture is this?", "What is the kind?"],
        Property::Outline => &["What is the outline?", "Which outline is seen?"],
        Property::Line => &["Is a line seen?", "Is there a line?"],
    }
}

/// One sentence that gives the value of `property` away.
fn reason(study: &Study, property: Property) -> String {
    let word = study.word(property);
    let (mark, is) = number(study);
    let value = study.get(property);
    match property {
        Property::Side | Property::Level => format!("The {mark} {is} in the {word} half."),
        Property::Count => format!("There {is} {word} {} {mark}.", study.word(Property::Size)),
        Property::Size => format!("The {} {mark} {is} {word}.", study.word(Property::Side)),
        Property::Margin => ["The edge is even.", "The edge has spikes."][value].into(),
        Property::Texture => {
            ["The inside is filled.", "The inside is open.", "The inside has points."][value].into()
        }
        Property::Kind => [
            "It is bright on a dark ground.",
            "It is dark on a bright ground.",
            "It is cut in a fan.",
        ][value]
            .into(),
        Property::Outline => {
            ["The body is a circle.", "The body is a box.", "The body has two halves."][value]
                .into()
        }
        Property::Line => line(study).into(),
    }
}

fn number(study: &Study) -> (&'static str, &'static str) {
    if study.get(Property::Count) == 0 { ("mark", "is") } else { ("marks", "are") }
}

fn line(study: &Study) -> &'static str {
    ["No line is seen.", "A line is seen."][study.get(Property::Line)]
}

/// All properties of `study`, in one of several forms.
pub(super) fn caption(study: &Study, dice: &mut Dice) -> String {
    use Property::{Count, Kind, Level, Margin, Outline, Side, Size, Texture};
    let (mark, is) = number(study);
    let w = |property| study.word(property);
    let (kind, outline, count) = (w(Kind), w(Outline), w(Count));
    let (level, side, line) = (w(Level), w(Side), line(study));
    let (size, margin, texture) = (w(Size), w(Margin), w(Texture));
    match dice.below(4) {
        0 => format!(
            "A {kind} with a {outline} outline. It shows {count} {size} {texture} {mark} with a \
             {margin} margin in the {level} {side} part. {line}"
        ),
        1 => format!(
            "This {outline} {kind} shows {count} {mark} in the {level} {side} part: {size}, \
             {margin} and {texture}. {line}"
        ),
        2 => format!(
            "In the {level} {side} part of a {outline} {kind} there {is} {count} {size} {mark}. \
             {line} The margin is {margin} and the texture is {texture}."
        ),
        _ => findings(study),
    }
}

/// The bare words in the order of [`Property::ALL`].
pub(super) fn findings(study: &Study) -> String {
    format!("Note: {}.", bare(study, &Property::ALL).join(" "))
}

/// The bare words in any order.
pub(super) fn note(study: &Study, dice: &mut Dice) -> String {
    note_of(study, &Property::ALL, dice)
}

/// The bare words of `properties`, in any order.
pub(super) fn note_of(study: &Study, properties: &[Property], dice: &mut Dice) -> String {
    let mut words = bare(study, properties);
    dice.shuffle(&mut words);
    format!("Note: {}.", words.join(" "))
}

fn bare(study: &Study, properties: &[Property]) -> Vec<&'static str> {
    let word = |&property: &Property| match property {
        Property::Line => ["lineless", "lined"][study.get(property)],
        _ => study.word(property),
    };
    properties.iter().map(word).collect()
}

/// How this picture compares with the one before.
pub(super) fn comparison(property: Property, is_same: bool, dice: &mut Dice) -> String {
    let name = property.name();
    match (dice.below(2), is_same) {
        (0, true) => format!("The {name} is the same as before."),
        (0, false) => format!("The {name} is not the same as before."),
        (_, same) => {
            let answer = if same { "yes" } else { "no" };
            format!("Question: Is the {name} the same as before? Answer: {answer}.")
        }
    }
}

/// Before the first picture of some pages.
pub(super) const INSTRUCTION: &str = "Follow the examples and answer the last question.";

/// Syllables that begin and end made-up words.
pub(super) const FIRST: [&str; 16] = [
    "da", "de", "fi", "fo", "ga", "gu", "ka", "ke", "mo", "mu", "na", "ni", "ro", "ru", "ta", "ti",
];
pub(super) const SECOND: [&str; 16] = [
    "bo", "bu", "hi", "ho", "ja", "jo", "la", "lo", "pe", "pu", "va", "ve", "wi", "wo", "xa", "zi",
];

/// Made-up words that share no syllable, 16 at most. Those of examinations never occur in
/// training, though their syllables do.
pub(super) fn coin(count: usize, dice: &mut Dice, is_held_out: bool) -> Vec<String> {
    let mut words: Vec<(usize, usize)> = Vec::new();
    while words.len() < count {
        let (first, second) = (dice.below(FIRST.len()), dice.below(SECOND.len()));
        // A quarter of all words: each syllable in four of them.
        let is_apart = (first % 4 == second % 4) == is_held_out;
        let is_new = words.iter().all(|(a, b)| *a != first && *b != second);
        match is_apart && is_new {
            true => words.push((first, second)),
            // Others may have taken all that goes with what is left.
            false if dice.one_in(1000) => words.clear(),
            false => (),
        }
    }
    words.into_iter().map(|(a, b)| format!("{}{}", FIRST[a], SECOND[b])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// One who knows the questions by heart and sees no picture is right as often as chance says.
    #[test]
    fn the_best_answer_to_each_question_is_at_chance() {
        let mut dice = Dice::new(11, "balance", 0);
        let mut counts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for _ in 0..60_000 {
            let study = Study::draw(&mut dice);
            let property = *dice.pick(&Property::ALL);
            let q = question(&study, property, &mut dice);
            let count = counts.entry(q.text.clone()).or_insert(vec![0; q.candidates.len()]);
            count[q.answer] += 1;
        }
        assert!(counts.len() > 35, "{}", counts.len());
        for (text, count) in counts {
            let total = count.iter().sum::<usize>() as f64;
            let chance = 1.0 / count.len() as f64;
            let best = *count.iter().max().unwrap() as f64 / total;
            // Four standard errors, and a bit for the choice of the best of three.
            let error = (chance * (1.0 - chance) / total).sqrt();
            assert!(best < chance + 4.5 * error, "{text}: {best:.3} of {total}");
        }
    }

    #[test]
    fn reasons_and_captions_say_the_value() {
        let mut dice = Dice::new(12, "say", 0);
        for property in Property::ALL {
            let mut reasons = BTreeSet::new();
            for value in 0..property.values().len() {
                let mut study = Study::draw_with(&mut Dice::new(0, "same", 0), property, value);
                study.set(Property::Count, if property == Property::Count { value } else { 1 });
                reasons.insert(reason(&study, property));
                if property != Property::Line {
                    let caption = caption(&study, &mut dice);
                    assert!(caption.contains(study.word(property)), "{caption}");
                }
            }
            assert_eq!(reasons.len(), property.values().len(), "{}", property.name());
        }
    }

    #[test]
    fn words_of_examinations_are_new_and_their_syllables_are_not() {
        let mut dice = Dice::new(13, "coin", 0);
        let mut draw = |held| -> BTreeSet<String> {
            (0..4000).flat_map(|_| coin(2, &mut dice, held)).collect()
        };
        let (known, held) = (draw(false), draw(true));
        assert_eq!((known.len(), held.len()), (192, 64));
        assert!(known.is_disjoint(&held));
        for i in [0, 2] {
            let part = |words: &BTreeSet<String>| -> BTreeSet<String> {
                words.iter().map(|w| w[i..i + 2].to_string()).collect()
            };
            assert_eq!(part(&known), part(&held));
        }
    }
}

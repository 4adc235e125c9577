//! Examining a model with phantom studies (see [`crate::phantom`]): how often it is right, with
//! intervals, and how often when something that it needs has been taken away.
//!
//! A model that is right for the right reason falls to chance when the picture is another one, and,
//! where only the shots say what a word means, when they are taken away or mixed up. What each
//! control should give is computed from the questions, not measured.

mod examiner;
mod gaze;
mod interval;

pub use examiner::{Examiner, Outcome};
pub use gaze::{Gaze, Look};
pub use interval::Rate;

use crate::Result;
use crate::engine::Engine;
use crate::phantom::{Control, Exam, Item, Property};
use serde::Serialize;
use std::fmt;

/// How to examine.
#[derive(Clone, Debug, Serialize)]
pub struct Options {
    pub seed: u64,
    /// Questions in known words, and as many in made-up ones.
    pub questions: usize,
    /// Shots before each question.
    pub shots: usize,
    /// With notes in the place of pictures: what the language model alone can do.
    pub is_described: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { seed: 20_261_126, questions: 306, shots: 4, is_described: false }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub control: &'static str,
    /// The most probable of the allowed answers is the right one.
    pub ranked: Rate,
    /// The text that greedy decoding gives is the right answer.
    pub greedy: Rate,
    /// The share of right answers that this control should leave; `None` if it should change
    /// nothing.
    pub expected: Option<f64>,
    /// True if the interval of `ranked` holds what is expected: chance, or some rate of the
    /// interval of the normal questions.
    pub holds: bool,
}

/// An examination's result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub options: Options,
    /// Questions in words of the vocabulary.
    pub known: Vec<Row>,
    /// Questions in words that only the shots define; none of them was ever trained on.
    pub coined: Vec<Row>,
    /// The normal questions by what they ask for, in the order of [`Property::ALL`].
    pub properties: Vec<PropertyRow>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// The normal questions that ask for one property.
#[derive(Clone, Debug, Serialize)]
pub struct PropertyRow {
    pub property: &'static str,
    /// In words of the vocabulary, ranked.
    pub known: Rate,
    /// In words that only the shots define, ranked.
    pub coined: Rate,
}

/// Examines the model of `engine`; `progress` is told how many prompts are done, of how many.
///
/// # Errors
/// A model that cannot read phantom pages, or gives logits that are not finite.
pub fn examine(
    engine: &Engine,
    options: &Options,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    let started = std::time::Instant::now();
    let mut exam = Exam::new(options.seed, options.questions, options.shots)?;
    if options.is_described {
        exam = exam.described(options.seed);
    }
    let mut examiner = Examiner::new(engine, options.shots)?;
    let total = (exam.known.len() + exam.coined.len()) * Control::ALL.len();
    let mut done = 0;
    let mut table = |items: &[Item]| -> Result<(Vec<Row>, Vec<Rate>)> {
        let mut tallies = [(0, 0); Control::ALL.len()];
        let mut properties = [(0, 0); Property::ALL.len()];
        for some in items.chunks(examiner::TOGETHER) {
            for (control, tally) in Control::ALL.into_iter().zip(&mut tallies) {
                for (item, outcome) in some.iter().zip(examiner.answer(some, control)?) {
                    let question = item.question();
                    let is_right = outcome.best() == question.answer;
                    tally.0 += usize::from(is_right);
                    if control == Control::Normal {
                        let of_property = &mut properties[question.property as usize];
                        of_property.0 += usize::from(is_right);
                        of_property.1 += 1;
                    }
                    tally.1 += usize::from(outcome.says(question.answer()));
                }
                done += some.len();
                progress(done, total);
            }
            examiner.forget();
        }
        let properties = properties.map(|(right, count)| Rate::new(right, count));
        Ok((rows(items, &tallies), properties.to_vec()))
    };
    let (known, coined) = (table(&exam.known)?, table(&exam.coined)?);
    let rates = known.1.into_iter().zip(coined.1);
    let row = |(property, (known, coined)): (Property, _)| PropertyRow {
        property: property.name(),
        known,
        coined,
    };
    let properties = Property::ALL.into_iter().zip(rates).map(row).collect();
    let seconds = started.elapsed().as_secs_f64();
    Ok(Report { options: options.clone(), known: known.0, coined: coined.0, properties, seconds })
}

impl Row {
    /// What this control should give, in words; nothing for the normal questions.
    pub fn expectation(&self) -> String {
        match self.expected {
            Some(share) => format!("{:.1} %", 100.0 * share),
            None if self.control == Control::Normal.name() => String::new(),
            None => "as normal".into(),
        }
    }
}

/// For a terminal.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { seed, questions, shots, is_described } = self.options;
        let sight = if is_described { "notes instead of pictures, " } else { "" };
        writeln!(
            f,
            "{questions} questions of each sort, {shots} shots, {sight}seed {seed}: share of right \
             answers, 95 % intervals"
        )?;
        for (title, rows) in [("known words", &self.known), ("made-up words", &self.coined)] {
            let heads = ("ranked answers", "greedy text", "expected");
            writeln!(f, "\n  {title:24}{:24}{:24}{:>10}", heads.0, heads.1, heads.2)?;
            for row in rows {
                let (ranked, greedy) = (row.ranked.to_string(), row.greedy.to_string());
                let outside = if row.holds { "" } else { "  outside the interval" };
                let expected = row.expectation();
                writeln!(f, "  {:24}{ranked:24}{greedy:24}{expected:>10}{outside}", row.control)?;
            }
        }
        writeln!(f, "\n  {:24}{:24}{:24}", "normal, by property", "known words", "made-up words")?;
        for row in &self.properties {
            let (known, coined) = (row.known.to_string(), row.coined.to_string());
            writeln!(f, "  {:24}{known:24}{coined}", row.property)?;
        }
        Ok(())
    }
}

fn rows(items: &[Item], tallies: &[(usize, usize)]) -> Vec<Row> {
    let rate = |right| Rate::new(right, items.len());
    let normal = rate(tallies.first().map_or(0, |t| t.0));
    let row = |(control, tally): (Control, &(usize, usize))| {
        let shares: Option<Vec<f64>> = items.iter().map(|item| item.expected(control)).collect();
        let expected = shares.filter(|s| !s.is_empty());
        let expected = expected.map(|s| s.iter().sum::<f64>() / s.len() as f64);
        let ranked = rate(tally.0);
        let holds = match expected {
            Some(share) => ranked.low <= share && share <= ranked.high,
            None => ranked.low <= normal.high && normal.low <= ranked.high,
        };
        Row { control: control.name(), ranked, greedy: rate(tally.1), expected, holds }
    };
    Control::ALL.into_iter().zip(tallies).map(row).collect()
}

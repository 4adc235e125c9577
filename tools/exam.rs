//! `medflamingo-tools exam`.

use crate::report;
use clap::Args;
use medflamingo::Result;
use medflamingo::engine::{Engine, EngineOptions};
use medflamingo::eval::{self, Options};
use std::path::PathBuf;

/// Examine a model of phantom studies: how often it is right, and with something taken away.
///
/// Toy model, synthetic pictures, no medical meaning.
#[derive(Args)]
pub struct Exam {
    /// The model folder
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Notes in the place of pictures: what the language model alone can do
    #[arg(long)]
    described: bool,
    /// Questions in known words, and as many in made-up ones
    #[arg(long, value_name = "N", default_value_t = 306)]
    questions: usize,
    /// Shots before each question: 2, 4, 6 or 8
    #[arg(long, value_name = "N", default_value_t = 4)]
    shots: usize,
    /// What the random numbers start from
    #[arg(long, value_name = "N", default_value_t = Options::default().seed)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Exam {
    pub fn run(self) -> Result<()> {
        let Exam { questions, shots, seed, described: is_described, .. } = self;
        let engine = Engine::open(&self.model, &EngineOptions::default())?;
        let options = Options { seed, questions, shots, is_described };
        let bar = report::Bar::new();
        let report = eval::examine(&engine, &options, &mut |done, total| {
            bar.set(done as u64, total as u64);
        })?;
        bar.finish();
        if self.json {
            return report::print_json(&report);
        }
        report::print(format!("{report}\n{:.1} s on {}\n", report.seconds, engine.device()))
    }
}

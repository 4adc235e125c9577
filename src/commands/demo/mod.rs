//! `medflamingo demo`: the main job on data that comes with the sources.

mod conversion;
mod page;
mod phantom;

use clap::Args;
use medflamingo::Result;
use std::path::PathBuf;

/// See few-shot questions about images answered, and how often the answers are right.
///
/// With --model, a small model that was trained on synthetic phantom pictures: a few-shot prompt,
/// the answers with their probabilities, where the model looked, and its accuracy over hundreds of
/// new questions, with controls; all of it as a web page too. Without, a tiny model with random
/// weights is converted from upstream's file formats, and its answer compared with the one that the
/// original PyTorch implementation gave, token for token.
///
/// Toy models and drawn pictures: nothing here has a medical meaning.
#[derive(Args)]
pub struct Demo {
    /// The folder of a model of phantom studies
    #[arg(long, value_name = "DIR", conflicts_with_all = ["data", "keep"])]
    model: Option<PathBuf>,
    /// Where to write the page [default: medflamingo-demo.html among the temporary files]
    #[arg(long, value_name = "FILE", requires = "model")]
    html: Option<PathBuf>,
    /// Questions of the examination in known words, and as many in made-up ones; 0 for none
    #[arg(long, value_name = "N", default_value_t = 306, requires = "model")]
    questions: usize,
    /// Print the results as JSON instead
    #[arg(long, requires = "model")]
    json: bool,
    /// Without --model: a folder like tests/golden: MODEL/{lm,clip,flamingo.pt,golden} and images
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Without --model: keep the converted model folder here
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

impl Demo {
    pub fn run(self) -> Result<()> {
        match self.model {
            Some(model) => {
                let page = std::env::temp_dir().join("medflamingo-demo.html");
                let html = self.html.unwrap_or(page);
                phantom::run(&phantom::Options {
                    model,
                    html,
                    questions: self.questions,
                    is_json: self.json,
                })
            }
            None => conversion::run(self.data, self.keep),
        }
    }
}

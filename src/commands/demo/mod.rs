//! `medflamingo demo`: what the engine does, on a model and on data that come with it.

mod conversion;
mod page;
mod phantom;

use clap::Args;
use medflamingo::Result;
use medflamingo::convert::Scratch;
use std::path::PathBuf;

/// See few-shot questions about images answered, and how often the answers are right.
///
/// A small model that was trained on synthetic phantom pictures, and that comes inside this
/// program, answers a few prompts: the answers with their probabilities, where the model looked,
/// and its accuracy over hundreds of new questions, with controls; all of it as a web page too. It
/// needs no network, no GPU and no files.
///
/// With --conversion, a tiny model with random weights is converted from upstream's file formats,
/// and its answer compared with the one that the original PyTorch implementation gave, token for
/// token.
///
/// Toy models and drawn pictures: nothing here has a medical meaning.
#[derive(Args)]
pub struct Demo {
    /// The folder of another model of phantom studies
    #[arg(long, value_name = "DIR", conflicts_with = "conversion")]
    model: Option<PathBuf>,
    /// Where to write the page [default: medflamingo-demo.html among the temporary files]
    #[arg(long, value_name = "FILE", conflicts_with = "conversion")]
    html: Option<PathBuf>,
    /// Questions of the examination in known words, and as many in made-up ones; 0 for none
    #[arg(long, value_name = "N", default_value_t = 306, conflicts_with = "conversion")]
    questions: usize,
    /// Print the results as JSON instead
    #[arg(long, conflicts_with = "conversion")]
    json: bool,
    /// Convert upstream's files and compare with the original instead
    #[arg(long)]
    conversion: bool,
    /// A folder like tests/golden: MODEL/{lm,clip,flamingo.pt,golden} and images
    #[arg(long, value_name = "DIR", requires = "conversion")]
    data: Option<PathBuf>,
    /// Keep the converted model folder here
    #[arg(long, value_name = "DIR", requires = "conversion")]
    keep: Option<PathBuf>,
}

impl Demo {
    pub fn run(self) -> Result<()> {
        if self.conversion {
            return conversion::run(self.data, self.keep);
        }
        // Until the end: the engine maps the weights in it.
        let scratch;
        let (model, name) = match self.model {
            Some(model) => (model.clone(), model.display().to_string()),
            None => {
                scratch = Scratch::new("demo")?;
                medflamingo::phantom::unpack(scratch.path())?;
                (scratch.path().to_path_buf(), "embedded".to_string())
            }
        };
        let page = std::env::temp_dir().join("medflamingo-demo.html");
        phantom::run(&phantom::Options {
            model,
            name,
            html: self.html.unwrap_or(page),
            questions: self.questions,
            is_json: self.json,
        })
    }
}

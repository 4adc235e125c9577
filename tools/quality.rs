//! `medflamingo-tools quality`.

use crate::report;
use clap::Args;
use medflamingo::device::Device;
use medflamingo::engine::{Engine, EngineOptions, GenerateOptions, Request};
use medflamingo::quality::{Agreement, Quality};
use medflamingo::{Error, Result};
use serde::Deserialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Compare a model's predictions with a reference's over prompts: what quantising costs.
///
/// For every position of every prompt KL(reference || model) in nats, and whether the most probable
/// tokens agree; the last position of a prompt, where the answer begins, also on its own. Both
/// models are open at once: their weights are mapped, so memory holds what fits of them.
#[derive(Args)]
pub struct Compare {
    /// The model that is right, such as the bf16 folder
    #[arg(long, value_name = "DIR")]
    reference: PathBuf,
    /// The model that is measured, such as a folder made by `quantize`
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// JSONL, a line per prompt: {"prompt": "..", "images": ["..", ..]}; images are relative to it
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Where to run: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: Device,
    /// Threads on the CPU; 0 is one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: String,
    #[serde(default)]
    images: Vec<PathBuf>,
}

impl Compare {
    pub fn run(self) -> Result<()> {
        let lines = lines(&self.prompts)?;
        let options =
            EngineOptions { device: self.device, threads: self.threads, ..Default::default() };
        let mut reference = Engine::open(&self.reference, &options)?;
        let mut model = Engine::open(&self.model, &options)?;
        let folder = self.prompts.parent().unwrap_or(Path::new("."));
        let mut quality = Quality::default();
        for (n, line) in (1..).zip(&lines) {
            let mut add = || {
                let right = request(&reference, line, folder)?;
                let own = request(&model, line, folder)?;
                quality.add((&mut reference, &right), (&mut model, &own))
            };
            add().map_err(|e| e.within(format!("{}, prompt {n}", self.prompts.display())))?;
        }
        let found = quality.report();
        if self.json {
            return report::print_json(&found);
        }
        let mut text =
            String::from("              positions   KL mean    median   largest  top-1\n");
        for (name, a) in [("all positions", &found.all), ("last of each", &found.last)] {
            let Agreement { positions, kl_mean, kl_median, kl_max, top1 } = a;
            let share = 100.0 * top1;
            let kl = format!("{kl_mean:>9.5} {kl_median:>9.5} {kl_max:>9.5}");
            let _ = writeln!(text, "{name:13} {positions:>9} {kl} {share:>5.1} %");
        }
        report::print(text)
    }
}

fn request(engine: &Engine, line: &Line, folder: &Path) -> Result<Request> {
    let read = |path: &PathBuf| {
        let path = folder.join(path);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        engine.image(&bytes).map_err(|e| e.within(path.display()))
    };
    let images = line.images.iter().map(read).collect::<Result<_>>()?;
    let options = GenerateOptions { max_new_tokens: 1, ..Default::default() };
    engine.request(&line.prompt, images, options)
}

fn lines(path: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let parsed = lines.map(|(n, line)| {
        serde_json::from_str(line).map_err(|e| {
            let who = format!("{}, line {n}", path.display());
            Error::invalid(who, "{\"prompt\": \"..\", \"images\": [\"..\", ..]}", e)
        })
    });
    let lines: Vec<Line> = parsed.collect::<Result<_>>()?;
    match lines.is_empty() {
        true => Err(Error::invalid(path.display(), "a prompt a line", "none")),
        false => Ok(lines),
    }
}

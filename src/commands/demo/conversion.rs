//! The demo's conversion: a tiny model from upstream's file formats, compared with the original.

use super::super::generate::summary;
use super::super::print_text;
use medflamingo::convert::{self, NewHeadRows, Scratch};
use medflamingo::engine::{Answer, Control, Engine, EngineOptions, Event, GenerateOptions};
use medflamingo::model::config::StoredDType;
use medflamingo::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the demo needs of a recording's manifest.
#[derive(Deserialize)]
struct Manifest {
    image_order: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    prompts: Vec<String>,
    image_indices: Vec<Vec<usize>>,
    greedy: Option<Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
    new_ids: Vec<Vec<u32>>,
    max_new_tokens: usize,
}

/// Converts the model of `data` (the sources' unless given), asks it the recorded six-shot question
/// and compares the answer; `keep` keeps the converted folder.
pub fn run(data: Option<PathBuf>, keep: Option<PathBuf>) -> Result<()> {
    let data = match data {
        Some(folder) => folder,
        None => sources()?.join("tests/golden"),
    };
    let model = data.join("llama-tiny");
    let manifest: Manifest = read_json(&model.join("golden/manifest.json"))?;
    println!("Toy model with random weights, drawn pictures: no medical meaning.\n");
    let scratch = Scratch::new("demo")?;
    let output = keep.unwrap_or_else(|| scratch.path().join("model"));
    convert_model(&model, &output)?;
    let mut engine = Engine::open(&output, &EngineOptions::default())?;
    let case = manifest.cases.iter().find(|c| c.name == "six_shot");
    let missing = || Error::invalid(model.display(), "a recorded case six_shot", "none");
    let case = case.ok_or_else(missing)?;
    let recorded = case.greedy.as_ref().ok_or_else(missing)?;
    let images: Vec<_> = case
        .image_indices
        .first()
        .ok_or_else(missing)?
        .iter()
        .filter_map(|&i| manifest.image_order.get(i))
        .map(|name| data.join("images").join(name))
        .collect();
    let prompt = case.prompts.first().ok_or_else(missing)?;
    show_prompt(prompt, &images);
    let answer = ask(&mut engine, prompt, &images, recorded.max_new_tokens)?;
    compare(&engine, &answer, recorded);
    ask_again(&mut engine, prompt, &images)?;
    next_steps();
    Ok(())
}

/// The sources this program was built from.
fn sources() -> Result<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    if folder.join("tests/golden/llama-tiny").is_dir() {
        return Ok(folder);
    }
    Err(Error::invalid(folder.display(), "the sources with tests/golden", "no such folder")
        .advise("run the demo in a clone (`cargo run --release -- demo`) or give --data DIR"))
}

fn convert_model(model: &Path, output: &Path) -> Result<()> {
    let started = Instant::now();
    let options = convert::Options {
        language_model: model.join("lm"),
        vision: model.join("clip/open_clip_pytorch_model.pt"),
        flamingo: model.join("flamingo.pt"),
        output: output.to_path_buf(),
        dtype: StoredDType::F32,
        new_head_rows: NewHeadRows::default(),
        activation: None,
        max_shard: 5 << 30,
        is_forced: false,
    };
    let ledger = convert::convert(&options, &|_, _| {})?;
    let (mapped, tied, ignored) = ledger.counts();
    println!(
        "1. Converted lm/, clip/ and flamingo.pt in {:.0} ms: {mapped} keys mapped, {tied} tied, \
         {ignored} ignored with a reason, {} tensors written.",
        started.elapsed().as_secs_f64() * 1e3,
        ledger.tensors.len()
    );
    Ok(())
}

fn show_prompt(prompt: &str, images: &[PathBuf]) {
    println!("2. Prompt, {} images:", images.len());
    let mut names = images.iter().filter_map(|i| i.file_name()).map(|n| n.to_string_lossy());
    for (i, piece) in prompt.split("<image>").enumerate() {
        let image = if i == 0 { None } else { names.next() };
        let image = image.map(|name| format!("<image: {name}> ")).unwrap_or_default();
        println!("   | {image}{piece}");
    }
}

fn ask(
    engine: &mut Engine,
    prompt: &str,
    images: &[PathBuf],
    max_new_tokens: usize,
) -> Result<Answer> {
    let open = |path: &PathBuf| {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        engine.image(&bytes).map_err(|e| e.within(path.display()))
    };
    let images = images.iter().map(open).collect::<Result<_>>()?;
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    let request = engine.request(prompt, images, options)?;
    print_text("   > ");
    let answer = engine.generate(request, &mut |event| {
        if let Event::Token { text, .. } = event {
            print_text(&text.escape_debug().to_string());
        }
        Control::Continue
    })?;
    println!("\n   {}", summary(&answer, engine));
    Ok(answer)
}

fn compare(engine: &Engine, answer: &Answer, recorded: &Recorded) {
    let theirs = recorded.new_ids.first().map(Vec::as_slice).unwrap_or_default();
    println!("3. The original implementation (open_flamingo 2.0.1, PyTorch) answered:");
    println!("   > {}", engine.tokenizer().decode(theirs, true).escape_debug());
    if answer.token_ids == theirs {
        println!("   Identical: {} of {} token ids.", theirs.len(), theirs.len());
    } else {
        println!("   DIFFERENT: ours {:?}, theirs {theirs:?}", answer.token_ids);
    }
}

/// Another question about the last image, after the same shots.
fn ask_again(engine: &mut Engine, prompt: &str, images: &[PathBuf]) -> Result<()> {
    let Some(at) = prompt.rfind("<image>") else { return Ok(()) };
    let second = format!("{}<image>Question: Is this normal? Answer:", &prompt[..at]);
    println!("4. Another question with the same shots: images and shots are remembered.");
    println!("   | <image> Question: Is this normal? Answer:");
    ask(engine, &second, images, 10).map(drop)
}

fn next_steps() {
    println!(
        "\nNext:\n  \
         medflamingo-tools convert --help    your OpenFlamingo or Med-Flamingo checkpoint\n  \
         medflamingo generate --help         your prompt and images\n\n\
         Research software. Not a medical device."
    );
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::invalid(path.display(), "a manifest", e))
}

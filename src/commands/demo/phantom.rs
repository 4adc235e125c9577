//! The demo of a model that was trained on phantom studies: what it answers, where it looked, how
//! often it is right.

use super::super::{print_json, print_text};
use super::page;
use medflamingo::engine::{Answer, Control, Engine, EngineOptions, Event, GenerateOptions};
use medflamingo::eval::{self, Gaze, Look, Report};
use medflamingo::image::Picture;
use medflamingo::phantom::{self, Exam, Item};
use medflamingo::{Error, Result};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// Said on top of everything.
pub const NOTICE: &str = "Toy model, synthetic pictures, no medical meaning. Research software, \
                          not a medical device.";

/// Prompts that are shown, in known words and in made-up ones.
const SHOWN: usize = 2;
/// Alternatives of each token.
const ALTERNATIVES: usize = 4;

pub struct Options {
    pub model: PathBuf,
    /// What to call it.
    pub name: String,
    pub html: PathBuf,
    pub questions: usize,
    pub is_json: bool,
}

/// One prompt and what the model made of it.
#[derive(Serialize)]
pub struct Shown {
    pub title: &'static str,
    /// Text before the first picture.
    pub preamble: String,
    /// The text that belongs to each picture; the last one ends with `Answer:`.
    pub texts: Vec<String>,
    #[serde(skip)]
    pub pictures: Vec<Picture>,
    /// Where the last token of each text looked.
    #[serde(skip)]
    pub looks: Vec<Option<Look>>,
    pub expected: String,
    pub answer: Answer,
    pub is_right: bool,
}

/// Everything that the page shows.
#[derive(Serialize)]
pub struct Results {
    pub notice: &'static str,
    pub model: String,
    pub device: String,
    pub parameters: usize,
    pub shown: Vec<Shown>,
    pub report: Option<Report>,
    /// From the start to the first token of the first answer, seconds.
    pub first_token_seconds: f64,
    pub seconds: f64,
}

pub fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    let say = |text: &str| {
        if !options.is_json {
            print_text(text);
        }
    };
    let mut engine = Engine::open(&options.model, &EngineOptions::default())?;
    let config = engine.model().config();
    let parameters = config.tensors().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
    if config.vision.image_size != phantom::SIDE {
        let found = format!("images of {}", config.vision.image_size);
        let expected = format!("a model of phantom studies, images of {}", phantom::SIDE);
        return Err(Error::invalid(options.model.display(), expected, found));
    }
    say(&format!("{NOTICE}\n\n"));
    let before = started.elapsed().as_secs_f64();
    let shown = show_all(&mut engine, &Gaze::open(&options.model)?, &say)?;
    let first_token_seconds =
        before + shown.first().map_or(0.0, |one| one.answer.timings_ms.first_token / 1e3);
    let report = match options.questions {
        0 => None,
        questions => Some(examine(&engine, questions)?),
    };
    let results = Results {
        notice: NOTICE,
        model: options.name.clone(),
        device: engine.device(),
        parameters,
        shown,
        report,
        first_token_seconds,
        seconds: started.elapsed().as_secs_f64(),
    };
    let html = page::render(&results)?;
    std::fs::write(&options.html, html).map_err(|e| Error::io("write", &options.html, e))?;
    if options.is_json {
        return print_json(&results);
    }
    results.report.iter().for_each(|report| print_text(&report.to_string()));
    print_text(&format!(
        "\nfirst token after {:.0} ms, all of it {:.1} s on {}\npage: {}\n\n{NOTICE}\n",
        1e3 * results.first_token_seconds,
        results.seconds,
        results.device,
        options.html.display()
    ));
    Ok(())
}

/// Some questions in known words and in made-up ones, other than the examination's.
fn show_all(engine: &mut Engine, gaze: &Gaze, say: &dyn Fn(&str)) -> Result<Vec<Shown>> {
    let exam = Exam::new(1, 3 * SHOWN, 4)?;
    let known = exam.known.iter().step_by(3).map(|item| (item, "Words the model knows"));
    let coined = exam.coined.iter().step_by(3).map(|item| (item, "Words only the examples define"));
    known.chain(coined).map(|(item, title)| show(engine, gaze, item, title, say)).collect()
}

/// Asks one question, saying everything as it comes.
fn show(
    engine: &mut Engine,
    gaze: &Gaze,
    item: &Item,
    title: &'static str,
    say: &dyn Fn(&str),
) -> Result<Shown> {
    let says_why = !item.is_coined();
    let (text, pictures) = item.prompt(phantom::Control::Normal, says_why)?;
    let mut parts = text.split("<image>");
    let preamble = parts.next().unwrap_or_default().to_string();
    let texts: Vec<String> = parts.map(String::from).collect();
    say(&format!("{title}\n"));
    for part in &texts {
        say(&format!("  <image> {}\n", part.replace("<|endofchunk|>", "")));
    }
    say("  >");
    let images = pictures.iter().map(|p| engine.picture(p)).collect::<Result<Vec<_>>>()?;
    let options = GenerateOptions {
        max_new_tokens: 32,
        logprobs: ALTERNATIVES,
        ..GenerateOptions::default()
    };
    let request = engine.request(&text, images, options)?;
    let answer = engine.generate(request.clone(), &mut |event| {
        if let Event::Token { text, .. } = event {
            say(text);
        }
        Control::Continue
    })?;
    // The last token of each text: of the shots it is the end of the chunk, of the question ":".
    let ids = request.prompt.ids();
    let next_images = request.prompt.markers().iter().skip(1).map(|m| m - 1);
    let rows: Vec<usize> = next_images.chain([ids.len() - 1]).collect();
    let looks = gaze.looks(engine, &request, &rows)?;
    let expected = item.question().answer().to_string();
    let said = answer.text.trim_start().split('.').next().unwrap_or_default();
    let is_right = said == expected;
    let first = answer.logprobs.first().map_or(0.0, |t| t.logprob.exp());
    let verdict = if is_right { "right" } else { "WRONG" };
    say(&format!(
        "\n    {verdict} (expected: {expected}); p = {first:.2}, {}\n\n",
        timing(&answer)
    ));
    Ok(Shown { title, preamble, texts, pictures, looks, expected, answer, is_right })
}

/// One line of timings.
pub fn timing(answer: &Answer) -> String {
    let t = &answer.timings_ms;
    format!(
        "{} images {:.1} ms, {} prompt tokens {:.1} ms, {} tokens {:.1} ms",
        answer.images,
        t.vision,
        answer.prompt_tokens,
        t.prefill,
        answer.token_ids.len(),
        t.decode.iter().sum::<f64>()
    )
}

fn examine(engine: &Engine, questions: usize) -> Result<Report> {
    let bar = indicatif::ProgressBar::new(0);
    let form = "{bar:30} {pos} of {len} prompts, {eta} left";
    if let Ok(style) = indicatif::ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    let options = eval::Options { questions, ..eval::Options::default() };
    let report = eval::examine(engine, &options, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    report
}

//! Examinations of a model that has learned nothing: every part runs, and nothing is known.

use medflamingo::convert::synth::{Options, Start, synth};
use medflamingo::engine::{Engine, EngineOptions, GenerateOptions};
use medflamingo::eval::{self, Examiner, Gaze, Rate};
use medflamingo::model::config::StoredDType;
use medflamingo::phantom::{Control, Exam};
use medflamingo::run::RunConfig;
use std::path::PathBuf;

/// A phantom model with random weights and open gates.
fn model() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model");
    let options = Options {
        preset: "phantom".into(),
        output: output.clone(),
        seed: 3,
        dtype: StoredDType::F32,
        max_shard: 1 << 30,
        is_forced: false,
        start: Start::Trained,
    };
    synth(&options, &|_, _| {}).unwrap();
    (folder, output)
}

#[test]
fn a_model_that_has_learned_nothing_is_at_chance_whatever_is_taken_away() {
    let (_folder, path) = model();
    let engine = Engine::open(&path, &EngineOptions::default()).unwrap();
    let options = eval::Options { questions: 27, shots: 2, ..eval::Options::default() };
    let mut told = Vec::new();
    let report = eval::examine(&engine, &options, &mut |done, all| told.push((done, all))).unwrap();
    assert_eq!(told.last(), Some(&(270, 270)));
    for (rows, chance) in [(&report.known, 0.43), (&report.coined, 0.5)] {
        assert_eq!(rows.len(), Control::ALL.len());
        for row in rows {
            assert_eq!(row.ranked, Rate::new(row.ranked.right, 27));
            // Three standard errors of 27 questions.
            assert!((row.ranked.share - chance).abs() < 0.29, "{}: {}", row.control, row.ranked);
            assert!(row.greedy.share < 0.2, "random words are no answers: {}", row.greedy);
        }
        let expected: Vec<_> = rows.iter().map(|r| r.expected).collect();
        assert!(expected[0].is_none() && expected[1].is_some() && expected[4].is_some());
        assert_eq!(expected[2].is_some(), chance == 0.5, "known words need no shots");
    }
    let of_property = |rate: fn(&eval::PropertyRow) -> Rate| {
        let all: Vec<Rate> = report.properties.iter().map(rate).collect();
        let sum = |part: fn(&Rate) -> usize| all.iter().map(part).sum::<usize>();
        (all.len(), sum(|r| r.right), sum(|r| r.count))
    };
    assert_eq!(of_property(|row| row.known), (9, report.known[0].ranked.right, 27));
    assert_eq!(of_property(|row| row.coined), (9, report.coined[0].ranked.right, 27));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["coined"][3]["control"], "no shots");
    let text = report.to_string();
    assert!(text.contains("27 questions of each sort, 2 shots, seed 20261126"), "{text}");
    // With notes there is no picture to be seen, and nothing else changes.
    let options = eval::Options { questions: 9, is_described: true, ..options };
    let report = eval::examine(&engine, &options, &mut |_, _| ()).unwrap();
    assert!(report.to_string().contains("notes instead of pictures"));
    assert!(report.coined.iter().all(|row| row.ranked.count == 9));
}

/// The ranking's log-probabilities are those that generation reports, whatever is asked beside it.
#[test]
fn ranked_answers_have_the_probabilities_of_generation() {
    let (_folder, path) = model();
    let mut engine = Engine::open(&path, &EngineOptions::default()).unwrap();
    let exam = Exam::new(5, 3, 2).unwrap();
    let mut examiner = Examiner::new(&engine, 2).unwrap();
    let together = examiner.answer(&exam.coined, Control::Normal).unwrap();
    let alone = examiner.answer(&exam.coined[2..], Control::Normal).unwrap();
    for (a, b) in together[2].logprobs.iter().zip(&alone[0].logprobs) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    drop(examiner);
    for (item, outcome) in exam.coined.iter().zip(&together) {
        let (text, pictures) = item.prompt(Control::Normal, false).unwrap();
        for (c, word) in item.question().candidates.iter().enumerate() {
            let whole = format!("{text} {word}.");
            let images = pictures.iter().map(|p| engine.picture(p).unwrap()).collect();
            let request = engine.request(&whole, images, GenerateOptions::default()).unwrap();
            let logits = engine.inspect(&request, &mut |_, _| ()).unwrap();
            let vocabulary = engine.model().config().language.vocabulary;
            let ids = request.prompt.ids();
            let logprob: f64 = (ids.len() - 3..ids.len())
                .map(|i| {
                    let row = &logits[(i - 1) * vocabulary..i * vocabulary];
                    let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                    f64::from(row[ids[i] as usize]) - sum.ln()
                })
                .sum();
            assert!((logprob - outcome.logprobs[c]).abs() < 1e-3, "{word}: {logprob}");
        }
    }
}

#[test]
fn looks_are_shares_of_the_image_that_a_row_may_see() {
    let (_folder, path) = model();
    let mut engine = Engine::open(&path, &EngineOptions::default()).unwrap();
    let gaze = Gaze::open(&path).unwrap();
    let exam = Exam::new(6, 1, 2).unwrap();
    let (text, pictures) = exam.known[0].prompt(Control::Normal, false).unwrap();
    let images = pictures.iter().map(|p| engine.picture(p).unwrap()).collect();
    let request = engine.request(&text, images, GenerateOptions::default()).unwrap();
    let markers = request.prompt.markers().to_vec();
    let rows = [0, markers[0], markers[2] - 1, request.prompt.len() - 1];
    let looks = gaze.looks(&mut engine, &request, &rows).unwrap();
    let seen: Vec<_> = looks.iter().map(|l| l.as_ref().map(|l| l.image)).collect();
    assert_eq!(seen, [None, Some(0), Some(1), Some(2)]);
    for look in looks.into_iter().flatten() {
        assert_eq!((look.side, look.patches.len()), (8, 64));
        assert!(look.patches.iter().all(|p| *p >= 0.0));
        assert!((look.patches.iter().sum::<f32>() - 1.0).abs() < 1e-4);
    }
}

/// One file with everything in it: pictures, answers, probabilities, intervals, and what it is not.
#[test]
fn the_demo_makes_a_page_that_needs_nothing_else() {
    let (folder, path) = model();
    let page = folder.path().join("demo.html");
    let demo = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_medflamingo"));
        command.args(["demo", "--model", path.to_str().unwrap()]);
        command.args(arguments).output().unwrap()
    };
    let out = demo(&["--questions", "9", "--html", page.to_str().unwrap()]);
    let (said, failed) = (String::from_utf8(out.stdout).unwrap(), out.stderr);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&failed));
    let needles =
        ["no medical meaning", "not a medical device", "shots' images shuffled", "demo.html"];
    for needle in needles {
        assert!(said.contains(needle), "{needle}: {said}");
    }
    let html = std::fs::read_to_string(&page).unwrap();
    assert_eq!(html.matches("data:image/png;base64,").count(), 4 * 5);
    assert!(html.matches("no medical meaning").count() == 2 && html.contains("fill-opacity"));
    assert_eq!(html.matches("<tr><td>").count(), 2 * Control::ALL.len());
    assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("<script"));
    let out = demo(&["--questions", "0", "--json", "--html", page.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["shown"].as_array().unwrap().len(), 4);
    assert!(json["report"].is_null() && json["notice"].as_str().unwrap().contains("Toy model"));
}

/// What the README says of the model that comes with the program: over both bars, and no better
/// than chance where something that it needs is missing.
#[test]
fn the_model_inside_is_right_for_the_right_reasons() {
    let folder = tempfile::tempdir().unwrap();
    medflamingo::phantom::unpack(folder.path()).unwrap();
    assert!(medflamingo::convert::verify::verify(folder.path(), &|_, _| {}).is_ok());
    let engine = Engine::open(folder.path(), &EngineOptions::default()).unwrap();
    let report = eval::examine(&engine, &eval::Options::default(), &mut |_, _| ()).unwrap();
    let share = |rows: &[eval::Row]| rows[0].ranked.share;
    assert!(share(&report.known) >= 0.9 && share(&report.coined) >= 0.75, "{report}");
    for row in report.known.iter().chain(&report.coined) {
        assert!(row.ranked.count >= 300 && row.holds, "{}: {report}", row.control);
    }
}

#[test]
fn recipes_are_configurations_that_the_trainer_takes() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("recipes/phantom");
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            let config = RunConfig::read(&path).unwrap();
            config.train.check(medflamingo::DType::F32).unwrap();
            assert!(config.sources.iter().all(|s| s.pages.is_some()), "{}", path.display());
            count += 1;
        }
    }
    assert_eq!(count, 7);
    let text = std::fs::read_to_string(folder.join("1-language.toml")).unwrap();
    for (from, to, needle) in [
        ("pages = \"reports\"", "pages = \"report\"", "caption, findings"),
        ("pages = \"reports\"", "shards = [\"x.tar\"]", "pages, and nothing else"),
        ("form = \"phantom\"", "form = \"pairs\"", "shards, no file"),
    ] {
        let e = RunConfig::parse(&text.replace(from, to), &folder).unwrap_err().to_string();
        assert!(e.contains(needle), "{e}");
    }
}

/// Two steps of each stage's kind: text alone, and pairs with interleaved pages.
#[test]
fn phantom_studies_are_trained_on() {
    let (folder, path) = model();
    let source = |name: &str, pages: &str| {
        format!(
            "[[source]]\nname = \"{name}\"\nform = \"phantom\"\npages = \"{pages}\"\nbatch = 2\n"
        )
    };
    let text = source("text", "reports");
    let joint = source("pairs", "caption, questions") + &source("interleaved", "shots, words");
    let language = "[train.trained]\nlanguage = true\nresampler = false\ngated_blocks = false\n\
                    embedding_rows = false\n";
    for (name, parts, sources) in [("text", language, text), ("joint", "", joint)] {
        let file = folder.path().join(format!("{name}.toml"));
        let config = format!(
            "[run]\nfolder = \"{name}\"\nsteps = 2\n[model]\nfolder = \"{}\"\n{parts}\
             [train.schedule]\nwarmup_steps = 1\n{sources}",
            path.display()
        );
        std::fs::write(&file, config).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_medflamingo"));
        let out = command.arg("train").arg(&file).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let metrics = folder.path().join(name).join("metrics.jsonl");
        let lines = std::fs::read_to_string(metrics).unwrap();
        assert!(lines.lines().count() >= 2 && !lines.contains("NaN"), "{lines}");
    }
}

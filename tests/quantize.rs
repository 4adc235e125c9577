//! Model folders of few bits: made, described, verified, run on both devices, compared with their
//! source, and refused where they are damaged.

#[allow(dead_code)]
mod golden_folder;

use golden_folder::{Model, models};
use medflamingo::convert::quantize::{Choice, Options, Part, Precision, dry_run, quantize};
use medflamingo::device::{Chip, Device};
use medflamingo::engine::{Control, Engine, EngineOptions, GenerateOptions};
use medflamingo::quality::{Quality, Report};
use medflamingo::weights::{SINGLE, Weights};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn model() -> Model {
    models().into_iter().find(|m| m.name == "llama-tiny").unwrap()
}

fn options(weights: Precision, output: PathBuf) -> Options {
    let model = model().convert("bf16");
    let choice = Choice::all(weights);
    let (max_shard, is_forced, device, threads) = (1 << 30, false, Device::Host, 2);
    Options { model, output, choice, max_shard, is_forced, device, threads }
}

/// The quantised folder, in one that goes away with it.
fn made(weights: Precision) -> (tempfile::TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let output = parent.path().join("model");
    quantize(&options(weights, output.clone()), &|_, _| {}).unwrap();
    (parent, output)
}

fn tools(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_medflamingo-tools")).args(arguments).output().unwrap()
}

fn json(out: &Output) -> Value {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn engine(folder: &Path, device: Device) -> Engine {
    let how = EngineOptions { device, surplus_markers: true, ..EngineOptions::default() };
    Engine::open(folder, &how).unwrap()
}

/// Every case of the recordings, against the bf16 folder.
fn quality(folder: &Path) -> Report {
    let model = model();
    let mut reference = engine(&model.convert("bf16"), Device::Host);
    let mut own = engine(folder, Device::Host);
    let mut quality = Quality::default();
    for case in model.cases() {
        for row in 0..case.rows() {
            let few = || GenerateOptions { max_new_tokens: 1, ..GenerateOptions::default() };
            let requests = [&reference, &own].map(|e| model.request(e, &case, row, few()));
            quality.add((&mut reference, &requests[0]), (&mut own, &requests[1])).unwrap();
        }
    }
    quality.report()
}

#[test]
fn predictions_stay_close_to_those_of_bf16() {
    let same = quality(&model().convert("bf16"));
    assert!(same.all.kl_max < 1e-5 && same.all.top1 == 1.0, "{:?}", same.all);
    let int8 = quality(&made(Precision::Int8).1).all;
    let int4 = quality(&made(Precision::Int4).1).all;
    // Random weights put the best tokens close together, so that a share of them must differ.
    assert!(int8.kl_mean > 0.0 && int8.kl_mean < 5e-3 && int8.top1 > 0.9, "{int8:?}");
    assert!(int4.kl_mean > int8.kl_mean && int4.kl_mean < 0.05 && int4.top1 > 0.8, "{int4:?}");
}

/// An int4 folder has matrices of all three kinds: int4, int8 (the head), and what does not fit.
#[test]
fn the_emulated_kernels_give_the_hosts_tokens() {
    let model = model();
    let case = model.cases().into_iter().find(|c| !c.image_indices(0).is_empty()).unwrap();
    let (_parent, folder) = made(Precision::Int4);
    let [host, emulated] = [Device::Host, Device::Simt(Chip::H200)].map(|device| {
        let mut engine = engine(&folder, device);
        let few = GenerateOptions { max_new_tokens: 3, ..GenerateOptions::default() };
        let request = model.request(&engine, &case, 0, few);
        engine.generate(request, &mut |_| Control::Continue).unwrap().token_ids
    });
    assert!(!host.is_empty() && emulated == host, "{emulated:?}, not {host:?}");
}

#[test]
fn the_command_makes_what_the_others_understand() {
    let parent = tempfile::tempdir().unwrap();
    let source = model().convert("bf16");
    let output = parent.path().join("int8");
    let (from, to) = (source.to_str().unwrap(), output.to_str().unwrap());
    let arguments = ["quantize", from, "--weights", "int8", "--output", to, "--json"];
    let planned = json(&tools(&[&arguments[..], &["--dry-run"]].concat()));
    assert!(!output.exists() && planned["tensors"][0]["sha256"].is_null());
    let ledger = json(&tools(&[&arguments[..], &["--max-shard-size", "200kB"]].concat()));
    assert_eq!(
        ledger["keys"].as_array().unwrap().len(),
        Weights::open(&source).unwrap().iter().count()
    );
    let errors = ledger["tensors"].as_array().unwrap().iter();
    let errors: Vec<f64> = errors.filter_map(|t| t["relative_error"].as_f64()).collect();
    assert!(errors.len() > 20 && errors.iter().all(|e| (1e-4..2e-2).contains(e)), "{errors:?}");
    assert!(json(&tools(&["verify", to, "--json"]))["tensors"].as_u64().unwrap() > 100);

    let [before, after] = [from, to].map(|f| json(&tools(&["inspect", f, "--json"])));
    assert_eq!(before["parameters"], after["parameters"]);
    assert_eq!(before["model"], after["model"]);
    assert!(after["bytes"].as_u64().unwrap() < before["bytes"].as_u64().unwrap() * 2 / 3);
    let find = |report: &Value| {
        let mut all = report["tensors"].as_array().unwrap().iter();
        all.find(|t| t["name"] == "language.layers.0.attn.qkv.weight").cloned().unwrap()
    };
    assert_eq!(
        (&find(&after)["dtype"], &find(&after)["shape"]),
        (&"int8".into(), &find(&before)["shape"])
    );

    let again = tools(&["quantize", to, "--weights", "int4", "--output", "x"]);
    let message = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(2) && message.contains("quantised"), "{message}");
}

#[test]
fn parts_and_shapes_that_do_not_fit_stay_as_they_are() {
    let parent = tempfile::tempdir().unwrap();
    let mut options = options(Precision::Int4, parent.path().join("model"));
    let how = |options: &Options, name: &str| {
        let ledger = dry_run(options).unwrap();
        ledger.tensors.into_iter().find(|t| t.name == name).unwrap().how
    };
    assert_eq!(how(&options, "resampler.layers.0.attn.out.weight"), "int4 codes");
    assert_eq!(how(&options, "language.head.weight"), "int8 codes");
    let narrow = how(&options, "language.layers.0.attn.qkv.weight");
    assert!(narrow.contains("rows of 48") && narrow.contains("128"), "{narrow}");
    assert!(how(&options, "language.embedding.weight").starts_with("copied"));
    options.choice.parts = vec![Part::Resampler];
    assert!(how(&options, "language.head.weight").contains("--parts"));
    options.choice.parts = vec![Part::Language];
    let message = dry_run(&options).unwrap_err().to_string();
    assert!(message.contains("whole groups") && message.contains("int8"), "{message}");
}

#[test]
fn damaged_folders_are_refused_with_the_tensors_name() {
    let (_parent, folder) = made(Precision::Int8);
    let file = folder.join(SINGLE);
    let good = std::fs::read(&file).unwrap();
    let open = || Engine::open(&folder, &EngineOptions::default()).err().map(|e| e.to_string());
    let spoil = |from: &str, to: &str| {
        let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bad = good.clone();
        bad[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&file, bad).unwrap();
    };
    assert_eq!(open(), None);
    spoil("language.head.scales", "language.head.skales");
    let message = open().unwrap();
    assert!(message.contains("language.head.scales") && message.contains("bf16"), "{message}");
    // A matrix whose codes claim to be something else.
    let codes = r#""language.head.weight":{"dtype":"I8""#;
    spoil(codes, &codes.replace("I8", "U8"));
    assert!(open().unwrap().contains("language.head.weight"));
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bad).unwrap();
    let out = tools(&["verify", folder.to_str().unwrap()]);
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(2) && message.contains("sha256"), "{message}");
}

#[test]
fn quality_reads_prompts_and_reports() {
    let (parent, folder) = made(Precision::Int8);
    let prompts = parent.path().join("prompts.jsonl");
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images/phantom_0.jpg");
    std::fs::copy(image, parent.path().join("a.jpg")).unwrap();
    let lines = r#"{"prompt": "<image>Question: Is it round? Answer:", "images": ["a.jpg"]}

{"prompt": "No image here"}
"#;
    std::fs::write(&prompts, lines).unwrap();
    let reference = model().convert("bf16");
    let run = |extra: &[&str]| {
        let paths = [&reference, &folder, &prompts].map(|p| p.to_str().unwrap());
        let all = ["quality", "--reference", paths[0], "--model", paths[1], "--prompts", paths[2]];
        tools(&[&all[..], extra].concat())
    };
    let report = json(&run(&["--json"]));
    assert_eq!(report["prompts"].as_array().unwrap().len(), 2);
    assert_eq!(report["last"]["positions"], 2);
    assert!(report["all"]["positions"].as_u64().unwrap() > 10);
    assert!((0.0..0.01).contains(&report["all"]["kl_mean"].as_f64().unwrap()));
    assert!(String::from_utf8_lossy(&run(&[]).stdout).contains("all positions"));
    std::fs::write(&prompts, "{\"text\": 1}").unwrap();
    let refused = run(&[]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && message.contains("line 1"), "{message}");
}

/// The table of the README, from the preset alone.
#[test]
fn the_memory_of_a_published_model_is_told_without_its_weights() {
    let report = json(&tools(&["inspect", "--preset", "med-flamingo-9b", "--json"]));
    let memory = report["model"]["memory"].as_array().unwrap();
    let at = |p: &str| {
        let row = memory.iter().find(|m| m["precision"] == p).unwrap();
        row["at_300_tokens"].as_u64().unwrap()
    };
    assert!(at("int8") <= 8_900_000_000 && at("int4") <= 5_200_000_000);
}

//! Runs that begin with a quantised folder: what they plan, write, resume and export.

use super::*;
use medflamingo::DType;
use medflamingo::checkpoint::{Checkpoint, Entry};
use medflamingo::convert::quantize::{Choice, Options, Part, Precision, quantize};
use medflamingo::convert::verify::verify;
use medflamingo::device::Device;
use medflamingo::engine::{Engine, EngineOptions};
use medflamingo::weights::{SCALES, SINGLE, Weights};
use serde_json::Value;

/// [`model`] with 8 bits a weight in `parts`, in a folder `name`.
fn quantized(scratch: &Path, name: &str, parts: &[Part]) -> PathBuf {
    let output = scratch.join(name);
    let options = Options {
        model: model(0),
        output: output.clone(),
        choice: Choice { weights: Precision::Int8, parts: parts.to_vec() },
        max_shard: 1 << 30,
        is_forced: false,
        device: Device::Host,
        threads: 1,
    };
    quantize(&options, &|_, _| {}).unwrap();
    output
}

const FROZEN: [Part; 3] = [Part::Vision, Part::Language, Part::Head];

/// As [`prepared`], with that folder for the model.
fn prepared_with(scratch: &Path, folder: &Path, steps: u64, more: &str) -> PathBuf {
    let config = prepared(scratch, steps, more);
    let text = std::fs::read_to_string(&config).unwrap();
    let own = folder.display().to_string();
    std::fs::write(&config, text.replace(&model(0).display().to_string(), &own)).unwrap();
    config
}

fn tools(arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_medflamingo-tools"));
    let out = command.args(arguments).output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let file = Checkpoint::open(&folder.join(SINGLE)).unwrap();
    file.iter().map(|(name, entry)| (name.to_string(), entry.to_vec())).collect()
}

#[test]
fn a_run_goes_on_to_the_bit_and_is_exported_with_its_codes_or_without() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = quantized(scratch.path(), "int8", &FROZEN);
    let more = "checkpoint_every = 2\nsample_every = 4";
    let config = prepared_with(scratch.path(), &folder, 4, more);
    let sample =
        "[[sample]]\nprompt = \"<image>\"\nimages = [\"data/0.png\"]\nmax_new_tokens = 2\n";
    let text = std::fs::read_to_string(&config).unwrap() + sample;
    std::fs::write(&config, &text).unwrap();
    alone(&config, false).unwrap();
    let whole = newest(&config).unwrap();
    let run = scratch.path().join("out");
    std::fs::remove_dir_all(run.join("checkpoints/step-00000004")).unwrap();
    alone(&config, true).unwrap();
    assert_eq!(newest(&config).unwrap(), whole);

    let to_dense = text.replace(folder.to_str().unwrap(), model(0).to_str().unwrap());
    std::fs::write(&config, to_dense).unwrap();
    let message = alone(&config, true).unwrap_err().to_string();
    assert!(message.contains("the model folder that the run began with"), "{message}");

    let [codes, numbers, file] =
        ["codes", "numbers", "trained.pt"].map(|name| scratch.path().join(name));
    let (from, dense) = (run.to_str().unwrap(), model(0));
    for (output, more) in
        [(&codes, &[][..]), (&numbers, &["--model", dense.to_str().unwrap()]), (&file, &[])]
    {
        let (is_made, message) =
            tools(&[&["export", from, "--output", output.to_str().unwrap()][..], more].concat());
        assert!(is_made, "{message}");
    }
    let saved = run.join("checkpoints/step-00000004/trainable.safetensors");
    let trained = Checkpoint::open(&saved).unwrap();
    let is_trained = |name: &str| trained.names().any(|n| n.starts_with(name));
    for (output, source) in [(&codes, &folder), (&numbers, &dense)] {
        verify(output, &|_, _| {}).unwrap();
        Engine::open(output, &EngineOptions::default()).unwrap();
        let (before, now) = (bytes(source), bytes(output));
        assert!(before.keys().eq(now.keys()));
        for (name, data) in &now {
            match trained.get(name) {
                Some(entry) => assert!(*data == entry.to_vec(), "{name}"),
                None if is_trained(name) => assert!(*data != before[name], "{name}"),
                None => assert!(*data == before[name], "{name}"),
            }
        }
    }
    Checkpoint::open(&file).unwrap().verify().unwrap();
}

/// The bytes of the files, not of the elements that they stand for; and codes in what is trained
/// are refused before anything else.
#[test]
fn a_plan_counts_codes_and_scales() {
    let scratch = tempfile::tempdir().unwrap();
    let planned = |config: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_medflamingo"));
        command.args(["train", config.to_str().unwrap(), "--plan"]).args(more);
        command.output().unwrap()
    };
    let plan = |folder: &Path| {
        let config = prepared_with(scratch.path(), folder, 2, "");
        let out = planned(&config, &["--json"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()
    };
    let int8 = quantized(scratch.path(), "int8", &FROZEN);
    let [(dense, a), (codes, b)] = [&model(0), &int8].map(|folder| {
        let plan = plan(folder);
        let weights = Weights::open(folder).unwrap().bytes() as u64;
        assert_eq!(plan["classes"][0]["bytes"].as_u64(), Some(weights), "{plan}");
        (plan, weights)
    });
    let stored = Weights::open(&int8).unwrap();
    let codes_of = |(_, entry): (&str, &Entry)| (entry.dtype == DType::I8).then(|| entry.count());
    let count: usize = stored.iter().filter_map(codes_of).sum();
    let scales = stored.iter().filter(|(name, _)| name.ends_with(SCALES));
    let scales: usize = scales.map(|(_, entry)| entry.bytes()).sum();
    assert!(count > 100_000 && a - b == (3 * count - scales) as u64, "{count} {scales} {a} {b}");
    assert_eq!(dense["parameters"], codes["parameters"]);
    assert_eq!(dense["trained_parameters"], codes["trained_parameters"]);
    let name = codes["classes"][0]["name"].as_str().unwrap();
    assert!(name.contains("few bits"), "{name}");

    // What `quantize` would make is a way to make it fit, with the very same total.
    let total = |plan: &Value| plan["total"].as_u64().unwrap();
    let config = prepared_with(scratch.path(), &model(0), 2, "");
    let memory = (total(&codes) as f64 / 0.95) as u64 + 2;
    let out = planned(&config, &["--json", "--memory", &memory.to_string()]);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let ways = report["card"]["ways"].as_array().unwrap();
    let way = ways.iter().find(|w| w[0] == "int8 frozen weights (medflamingo-tools quantize)");
    assert_eq!(way.unwrap()[1].as_u64(), Some(total(&codes)), "{report}");

    let blocks = quantized(scratch.path(), "blocks", &[Part::Xattn]);
    let config = prepared_with(scratch.path(), &blocks, 2, "");
    let out = planned(&config, &[]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{text}");
    assert!(text.contains("train.trained.gated_blocks") && text.contains("--parts"), "{text}");
    let message = alone(&config, false).unwrap_err().to_string();
    assert!(message.contains("train.trained.gated_blocks"), "{message}");
}

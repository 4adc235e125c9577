//! The command lines, run as a user runs them: what they print, their exit status, and what they
//! refuse.

#[allow(dead_code)]
mod golden_folder;

use golden_folder::models;
use medflamingo::DType;
use medflamingo::device::Chip;
use medflamingo::ops::{TileTable, gemm_shape, gemm_tilings};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn folder() -> PathBuf {
    models().into_iter().find(|m| m.name == "llama-tiny").unwrap().convert("f32")
}

fn image(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images").join(name)
}

fn medflamingo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_medflamingo")).args(arguments).output().unwrap()
}

fn generate(arguments: &[&str]) -> Output {
    let folder = folder();
    let mut all = vec!["generate", "--model", folder.to_str().unwrap()];
    all.extend(arguments);
    medflamingo(&all)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Exit status 2, one `error:` and the needle, no panic, nothing on stdout.
fn refused(out: &Output, needle: &str) {
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{err}");
    assert!(err.contains(needle), "{needle}: {err}");
    assert!(err.contains("error:") && !err.contains("panicked"), "{err}");
    assert!(out.stdout.is_empty(), "{}", text(&out.stdout));
}

#[test]
fn json_has_text_ids_logprobs_timings_and_memory() {
    let image = image("phantom_0.jpg");
    let arguments = [
        "--prompt",
        "<image>Question: Is it round? Answer:",
        "--image",
        image.to_str().unwrap(),
        "--max-new-tokens",
        "4",
        "--logprobs",
        "3",
        "--json",
    ];
    let out = generate(&arguments);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let answer: Value = serde_json::from_slice(&out.stdout).unwrap();
    let ids = answer["token_ids"].as_array().unwrap();
    assert!(!ids.is_empty() && ids.len() <= 4);
    assert_eq!(answer["logprobs"].as_array().unwrap().len(), ids.len());
    assert_eq!(answer["logprobs"][0]["top"].as_array().unwrap().len(), 3);
    assert_eq!(answer["timings_ms"]["decode"].as_array().unwrap().len(), ids.len() - 1);
    for key in ["load", "vision", "prefill", "first_token"] {
        assert!(answer["timings_ms"][key].as_f64().unwrap() > 0.0, "{key}");
    }
    assert!(answer["memory_bytes"]["weights"].as_u64().unwrap() > 0);
    assert!(["end_of_chunk", "length"].contains(&answer["finish_reason"].as_str().unwrap()));
    assert!(answer["text"].is_string());
    // As a stream of text it says the same.
    let plain = generate(&arguments[..6]);
    assert_eq!(text(&plain.stdout).trim_end_matches('\n'), answer["text"].as_str().unwrap());
}

/// In the tests' build the kernels themselves answer, under the emulator: drawn tokens, too.
#[test]
fn emulated_kernels_answer_as_the_host_does() {
    let ids = |device: &str| {
        let how =
            "--max-new-tokens 3 --temperature 0.9 --top-p 0.9 --repetition-penalty 1.2 --json";
        let mut arguments = vec!["--prompt", "Is it", "--device", device];
        arguments.extend(how.split(' '));
        let out = generate(&arguments);
        assert!(out.status.success(), "{}", text(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["token_ids"].clone()
    };
    assert_eq!(ids("simt:a100"), ids("cpu"));
}

#[test]
fn a_batch_answers_each_line_as_it_would_be_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("requests.jsonl");
    std::fs::copy(image("phantom_1.jpg"), dir.path().join("a.jpg")).unwrap();
    let lines = r#"{"id":"q1", "prompt": "<image>Question: Is it big? Answer:", "images": ["a.jpg"]}

{"id": 2, "prompt": "No image here", "max_new_tokens": 2, "temperature": 0.0}
"#;
    std::fs::write(&file, lines).unwrap();
    let out = generate(&["--batch", file.to_str().unwrap(), "--json", "--max-new-tokens", "5"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let answers: Vec<Value> =
        text(&out.stdout).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((answers.len(), &answers[0]["id"], &answers[1]["id"]), (2, &"q1".into(), &2.into()));
    assert!(answers[1]["answer"]["token_ids"].as_array().unwrap().len() <= 2);
    let image = dir.path().join("a.jpg");
    let alone = generate(&[
        "--prompt",
        "<image>Question: Is it big? Answer:",
        "--image",
        image.to_str().unwrap(),
        "--max-new-tokens",
        "5",
        "--json",
    ]);
    let alone: Value = serde_json::from_slice(&alone.stdout).unwrap();
    assert_eq!(answers[0]["answer"]["token_ids"], alone["token_ids"]);
}

#[test]
fn dump_writes_the_tensors_of_the_recordings() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let image = image("phantom_0.jpg");
    let out = generate(&[
        "--prompt",
        "<image>x",
        "--image",
        image.to_str().unwrap(),
        "--dump",
        file.to_str().unwrap(),
    ]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for name in [
        "vision.ln_pre",
        "vision.block.01",
        "vision.tokens",
        "vision.pooled",
        "resampler.5.attn_raw",
        "resampler.0.ff_raw",
        "resampler.out",
        "lm.embed",
        "lm.01.gated_attn_raw",
        "lm.03.gated_ff_raw",
        "lm.03.gated_out",
        "lm.00.layer_out",
        "lm.final_norm",
        "logits",
        "token_logprobs",
        "input_ids",
    ] {
        assert!(tensors.tensor(name).is_ok(), "{name}");
    }
}

#[test]
fn devices_says_what_there_is() {
    let out = medflamingo(&["devices", "--json"]);
    let devices: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(devices["cpu"].as_str().unwrap().starts_with("cpu"));
    assert!(devices["host_kernels"].as_array().unwrap().len() > 8);
}

#[test]
fn a_card_that_cannot_be_used_is_an_error_of_its_own() {
    // No machine has so many: the driver, the kernels or the card is what is missing.
    let out = generate(&["--prompt", "x", "--device", "cuda:99"]);
    assert_eq!(out.status.code(), Some(3));
    assert!(text(&out.stderr).starts_with("error: cuda"), "{}", text(&out.stderr));
}

#[test]
fn help_explains_every_verb_and_says_what_this_is_not() {
    for arguments in
        [&["--help"][..], &["generate", "--help"], &["demo", "--help"], &["devices", "--help"]]
    {
        let out = medflamingo(arguments);
        assert!(out.status.success() && out.stdout.len() > 100, "{arguments:?}");
    }
    assert!(text(&medflamingo(&["--help"]).stdout).contains("Not a medical device"));
    assert!(text(&medflamingo(&["generate", "--help"]).stdout).contains("v1-attend-next"));
}

#[test]
fn wrong_arguments_are_refused_by_name() {
    let pixel = image("phantom_0.jpg");
    let pixel = pixel.to_str().unwrap();
    let long = "word ".repeat(2000);
    let missing = "/nonexistent/file";
    refused(&generate(&[]), "--prompt");
    refused(&generate(&["--prompt", ""]), "text or an image");
    refused(&generate(&["--prompt", "<image>x"]), "1 <image> marker");
    refused(&generate(&["--prompt", "x", "--image", pixel]), "found 1 image");
    refused(&generate(&["--prompt", "<image>x", "--image", missing]), missing);
    refused(&generate(&["--prompt-file", missing]), missing);
    refused(&generate(&["--batch", missing]), missing);
    refused(&generate(&["--prompt", &long]), "tokens");
    refused(&generate(&["--prompt", "x", "--device", "tpu"]), "cuda:N");
    refused(&generate(&["--prompt", "x", "--mask-mode", "v3"]), "v1-attend-next");
    refused(&generate(&["--prompt", "x", "--num-beams", "99"]), "num_beams");
    refused(&generate(&["--prompt", "x", "--temperature", "-1"]), "temperature");
    refused(&generate(&["--prompt", "x", "--top-p", "0.5"]), "temperature");
    refused(&generate(&["--prompt", "x", "--max-new-tokens", "0"]), "max_new_tokens");
    refused(&generate(&["--prompt", "x", "--frobnicate"]), "--frobnicate");
    refused(&medflamingo(&["generate", "--model", missing, "--prompt", "x"]), missing);
    refused(&medflamingo(&["generate", "--model", pixel, "--prompt", "x"]), "a model folder");
    refused(&medflamingo(&["demo", "--conversion", "--data", missing]), missing);
    refused(&medflamingo(&["demo", "--data", missing]), "--conversion");
    refused(&medflamingo(&["demo", "--model", missing]), missing);
    refused(&medflamingo(&["demo", "--conversion", "--questions", "3"]), "--questions");
}

fn tiles(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_medflamingo-tools"));
    command.arg("tiles").args(arguments).output().unwrap()
}

#[test]
fn tiles_of_a_chip_are_a_table_of_the_best_by_estimate() {
    let own = include_str!("../src/ops/gemm/tables/a100.txt");
    assert_eq!(text(&tiles(&["--chip", "a100"]).stdout), own, "what was not measured");
    let few = tiles(&["--chip", "h200"]).stdout;
    let table = TileTable::parse("h200", &text(&few)).unwrap();
    assert_eq!((table.chip(), table.measured(), table.rows().len()), (&Chip::H200, None, 38));
    for row in table.rows() {
        let all = gemm_tilings(&gemm_shape(row.shape), DType::BF16, &Chip::H200);
        let hoppers = all.iter().filter(|t| t.variant.starts_with("_sm90"));
        let least = hoppers.min_by(|a, b| a.predicted_us.total_cmp(&b.predicted_us)).unwrap();
        assert_eq!((row.variant(), row.parts), (least.variant, least.parts), "{:?}", row.shape);
    }
    // The slower ones are there for people only.
    let all = text(&tiles(&["--chip", "h200", "--all"]).stdout);
    assert!(all.matches("\n# 250 4096 16384 ").count() > 5, "{all}");
    let lines = |text: &str| -> Vec<_> {
        text.lines().filter(|l| !l.starts_with('#')).map(String::from).collect()
    };
    assert_eq!(lines(&all), lines(&text(&few)));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiles.txt");
    std::fs::write(&path, "old").unwrap();
    let out = tiles(&["--chip", "h200", "--output", path.to_str().unwrap()]);
    assert!(out.status.success() && out.stdout.is_empty(), "{}", text(&out.stderr));
    assert_eq!(std::fs::read(&path).unwrap(), few);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn tiles_are_of_a_card_or_of_a_known_chip() {
    let folder = tempfile::tempdir().unwrap();
    let away = folder.path().join("away/tiles.txt");
    let [folder, away] = [folder.path(), &away].map(|path| path.to_str().unwrap());
    refused(&tiles(&["--device", "cpu"]), "--chip for an estimate, found cpu");
    refused(&tiles(&["--chip", "b200"]), "a100, h200");
    refused(&tiles(&["--chip", "h200", "--device", "cuda"]), "cannot be used with");
    refused(&tiles(&["--chip", "h200", "--output", away]), "no such folder");
    refused(&tiles(&["--chip", "h200", "--output", folder]), "something else");
}

#[test]
fn images_that_are_not_are_refused_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(image("phantom_5.jpg")).unwrap();
    for (name, bytes) in [
        ("empty.jpg", Vec::new()),
        ("text.png", b"hello".to_vec()),
        ("cut.jpg", whole[..whole.len() / 2].to_vec()),
        ("gif.gif", b"GIF89a\x01\x00\x01\x00".to_vec()),
    ] {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        refused(&generate(&["--prompt", "<image>x", "--image", file.to_str().unwrap()]), name);
    }
}

#[test]
fn batch_lines_that_are_wrong_are_refused_by_number() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("r.jsonl");
    for (line, needle) in [
        ("{", "line 2"),
        ("[]", "line 2"),
        ("{\"prompt\": 3}", "line 2"),
        ("{\"images\": []}", "prompt"),
        ("{\"prompt\": \"x\", \"tempreature\": 1}", "tempreature"),
        ("{\"prompt\": \"x\", \"seed\": -1}", "line 2"),
        ("{\"prompt\": \"<image>x\", \"images\": [\"none.jpg\"]}", "none.jpg"),
    ] {
        std::fs::write(&file, format!("{{\"prompt\": \"fine\"}}\n{line}\n")).unwrap();
        refused(&generate(&["--batch", file.to_str().unwrap()]), needle);
    }
}

/// A model folder with one file missing, cut or changed.
#[test]
fn damaged_model_folders_are_refused_by_file() {
    let source = folder();
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("model");
    type Damage = fn(Vec<u8>) -> Option<Vec<u8>>;
    let gone: Damage = |_| None;
    let cut: Damage = |bytes| Some(bytes[..bytes.len() / 2].to_vec());
    let empty: Damage = |_| Some(Vec::new());
    let noise: Damage = |bytes| Some(bytes.iter().map(|b| b ^ 0x5a).collect());
    let names = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "preprocessor_config.json",
        "generation_config.json",
    ];
    for name in names {
        for damage in [gone, cut, empty, noise] {
            let _ = std::fs::remove_dir_all(&copy);
            std::fs::create_dir(&copy).unwrap();
            for file in names {
                let bytes = std::fs::read(source.join(file)).unwrap();
                let bytes = if file == name { damage(bytes) } else { Some(bytes) };
                if let Some(bytes) = bytes {
                    std::fs::write(copy.join(file), bytes).unwrap();
                }
            }
            let model = copy.to_str().unwrap();
            let out = medflamingo(&["generate", "--model", model, "--prompt", "x"]);
            refused(&out, name);
        }
    }
}

#[test]
fn config_values_out_of_range_are_named() {
    let source = folder();
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(&source).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    for (pointer, value, needle) in [
        ("/language/heads", 0.into(), "language.heads"),
        ("/language/width", 49.into(), "language.width"),
        ("/language/layers", u64::MAX.into(), "language.layers"),
        ("/language/layers", 5.into(), "language.layers.4"),
        ("/vision/width", 24.into(), "(24"),
        ("/vision/patch_size", 13.into(), "vision.image_size"),
        ("/tokens/image", 100_000.into(), "tokens.image"),
        ("/tokens/image", 3.into(), "<image>"),
        ("/model_type", "llama".into(), "model_type"),
        ("/dtype", "bf16".into(), "bf16"),
        ("/language/position", serde_json::json!({"rope": {"dims": 3, "base": 1.0}}), "position"),
    ] {
        let mut changed = config.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        std::fs::write(dir.path().join("config.json"), changed.to_string()).unwrap();
        let model = dir.path().to_str().unwrap();
        refused(&medflamingo(&["generate", "--model", model, "--prompt", "x"]), needle);
    }
}

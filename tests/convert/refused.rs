//! What is refused, and that nothing is left behind; the commands as a user types them.

use super::*;
use medflamingo::convert::Ledger;
use tempfile::TempDir;

/// A working set of arguments that a case spoils.
struct Case {
    folder: TempDir,
    lm: PathBuf,
    clip: PathBuf,
    flamingo: PathBuf,
    more: Vec<String>,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lm = folder.path().join("lm");
        bare_folder(&golden("fmt-tiny/lm"), &lm);
        let weights = "model.safetensors";
        std::fs::copy(golden("fmt-tiny/lm").join(weights), lm.join(weights)).unwrap();
        let clip = folder.path().join("clip.safetensors");
        std::fs::copy(golden("fmt-tiny/clip/ViT-fmt-repo.json"), folder.path().join("clip.json"))
            .unwrap();
        std::fs::copy(golden("fmt-tiny/clip/open_clip_model.safetensors"), &clip).unwrap();
        let flamingo = folder.path().join("flamingo.safetensors");
        std::fs::copy(golden("fmt-tiny/checkpoints/v2_bare.safetensors"), &flamingo).unwrap();
        Case { folder, lm, clip, flamingo, more: vec![] }
    }

    fn command(&self) -> Vec<String> {
        let path = |p: &Path| p.to_str().unwrap().to_string();
        let mut arguments = vec!["convert".to_string(), "--dtype".into(), "f16".into()];
        for (name, value) in [
            ("--language-model", &self.lm),
            ("--vision", &self.clip),
            ("--flamingo", &self.flamingo),
            ("--output", &self.folder.path().join("model")),
        ] {
            arguments.extend([name.to_string(), path(value)]);
        }
        arguments.extend(self.more.clone());
        arguments
    }

    fn run(&self) -> Output {
        let arguments = self.command();
        tools(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn edit(&self, path: &Path, edit: impl FnOnce(&mut File)) {
        let mut file = load(path);
        edit(&mut file);
        save(path, &file);
    }

    /// Status 2, a message with all of `expected`, and nothing left behind.
    fn refuse(&self, what: &str, expected: &[&str]) {
        let before = self.listing();
        self.refused(what, expected, &self.run());
        assert_eq!(self.listing(), before, "{what}: something was left behind");
    }

    fn refused(&self, what: &str, expected: &[&str], output: &Output) {
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{what}: {error}");
        assert!(output.stdout.is_empty(), "{what}");
        for text in expected {
            assert!(error.contains(text), "{what}: no `{text}` in: {error}");
        }
    }

    fn listing(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut paths: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        paths.sort();
        paths
    }
}

const Q: &str = "perceiver.layers.0.0.to_q.weight";
const EMBEDDING: &str = "lang_encoder.model.embed_tokens.weight";

#[test]
fn the_unspoilt_case_converts() {
    let mut case = Case::new();
    case.more.push("--json".into());
    let output = case.run();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let ledger: Ledger = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ledger.dtype, "f16");
    let model = case.folder.path().join("model");
    let inspected = tools(&["inspect", model.to_str().unwrap(), "--json"]);
    let report: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(report["tensors"].as_array().unwrap().len(), ledger.tensors.len());
    assert_eq!(report["model"]["memory"].as_array().unwrap().len(), 5);
    let checkpoint = tools(&["inspect", case.flamingo.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&checkpoint.stdout).contains("gated cross-attention"));
    // Again: it exists, unless it is to be replaced.
    case.refuse("an output that exists", &["model", "--force"]);
    case.more.push("--force".into());
    assert_eq!(case.run().status.code(), Some(0));
    std::fs::remove_file(model.join("config.json")).unwrap();
    case.refuse("an output that is no model folder", &["model", "--force replaces only"]);
}

#[test]
fn keys_that_are_missing_extra_or_misshapen_are_named() {
    let spoil = |what: &str, expected: &[&str], edit: &dyn Fn(&mut File)| {
        let case = Case::new();
        case.edit(&case.flamingo, edit);
        case.refuse(what, expected);
    };
    spoil("missing", &["missing keys", "to_out.weight"], &|f| {
        f.remove("perceiver.layers.3.0.to_out.weight");
    });
    spoil("missing first", &[Q], &|f| {
        f.remove(Q);
    });
    spoil("extra", &["perceiver.surprise", "only keys that"], &|f| {
        f.insert("perceiver.surprise".into(), (vec![1], vec![0.0]));
    });
    spoil("frames", &["perceiver.frame_embs"], &|f| {
        f.insert("perceiver.frame_embs".into(), (vec![1, 8], vec![0.0; 8]));
    });
    spoil("misshapen", &["perceiver.norm.weight", "[8]", "[4, 2]"], &|f| {
        f.insert("perceiver.norm.weight".into(), (vec![4, 2], vec![1.0; 8]));
    });
    spoil("heads", &[Q, "multiple of 64"], &|f| {
        f.insert(Q.into(), (vec![100, 8], vec![1.0; 800]));
    });
    spoil("no resampler", &["perceiver", "OpenFlamingo checkpoint"], &|f| {
        f.retain(|name, _| !name.starts_with("perceiver"));
    });
    spoil("another vocabulary", &[EMBEDDING, "403 rows", "402 rows"], &|f| {
        f.insert(EMBEDDING.into(), (vec![402, 32], vec![1.0; 402 * 32]));
    });
    spoil("no embedding", &[EMBEDDING, "rows for the added tokens"], &|f| {
        f.remove(EMBEDDING);
    });
    spoil("another family", &["transformer.wte.weight", "another family"], &|f| {
        let tensor = f.remove(EMBEDDING).unwrap();
        f.insert("lang_encoder.transformer.wte.weight".into(), tensor);
    });
    spoil("an alias that differs", &["gated_cross_attn_layers.1.attn_gate", "same values"], &|f| {
        let name = "lang_encoder.gated_cross_attn_layers.1.attn_gate";
        f.insert(name.into(), (vec![1], vec![9.0]));
    });
    spoil("another interval", &["every 1 of 2 layers", "1 blocks"], &|f| {
        let old = std::mem::take(f);
        f.extend(old.into_iter().map(|(n, t)| (n.replace("layers.1.gated", "layers.0.gated"), t)));
    });
    spoil("too many layers", &["every 2 of 2 layers"], &|f| {
        let name = "lang_encoder.model.layers.3.gated_cross_attn_layer.attn_gate";
        f.insert(name.into(), (vec![1], vec![1.0]));
    });
    spoil("another CLIP", &["vision_encoder.proj", "another CLIP"], &|f| {
        f.insert("vision_encoder.proj".into(), (vec![8, 24], vec![1.0; 192]));
    });
    spoil("not a number", &["latents", "NaN"], &|f| {
        f.get_mut("perceiver.latents").unwrap().1[5] = f32::NAN;
    });
    spoil("beyond f16", &["latents", "--dtype bf16"], &|f| {
        f.get_mut("perceiver.latents").unwrap().1[5] = 1e6;
    });
}

#[test]
fn a_language_model_that_does_not_fit_is_refused() {
    let with = |key: &str, value: Value| {
        let case = Case::new();
        edit_json(&case.lm.join("config.json"), |c| c[key] = value);
        case
    };
    with("num_hidden_layers", json!(3)).refuse("layers", &["model.layers", "3 layers", "found 2"]);
    with("num_key_value_heads", json!(1)).refuse("grouped", &["num_key_value_heads"]);
    with("hidden_size", json!(64)).refuse("width", &["to_out.weight", "64"]);
    with("model_type", json!("opt")).refuse("family", &["model_type", "opt"]);
    with("intermediate_size", json!(65)).refuse("mlp", &["gate_proj", "[65, 32]"]);
    let case = Case::new();
    case.edit(&case.lm.join("model.safetensors"), |f| {
        f.insert("lm_head.weight".into(), (vec![399, 32], vec![0.0; 399 * 32]));
    });
    case.refuse("rows", &["lm_head.weight", "400 tokens", "399 rows"]);
    let case = Case::new();
    case.edit(&case.lm.join("model.safetensors"), |f| {
        f.insert("model.layers.0.self_attn.q_proj.bias".into(), (vec![32], vec![0.0; 32]));
    });
    case.refuse("biases", &["q_proj.bias"]);
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let case = Case::new();
        std::fs::remove_file(case.lm.join(name)).unwrap();
        case.refuse(name, &["lm", name]);
    }
    let case = Case::new();
    case.edit(&case.clip, |f| f.retain(|name, _| !name.starts_with("visual.")));
    case.refuse("no vision tower", &["clip.safetensors", "visual.class_embedding"]);
    let case = Case::new();
    edit_json(&case.folder.path().join("clip.json"), |c| {
        *c = json!({"model_cfg": c, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}});
    });
    case.refuse("other pixels", &["clip.json", "preprocess_cfg: mean"]);
    let case = Case::new();
    std::fs::remove_file(case.folder.path().join("clip.json")).unwrap();
    case.refuse("unknown heads", &["clip.safetensors", "how wide a head"]);
    let case = Case::new();
    case.edit(&case.clip, |f| {
        f.remove("visual.transformer.resblocks.0.attn.out_proj.bias");
    });
    case.refuse("incomplete CLIP", &["resblocks.0.attn.out_proj.bias"]);
}

#[test]
fn files_that_are_cut_off_or_absent_leave_nothing_behind() {
    for which in 0..3 {
        let case = Case::new();
        let weights = case.lm.join("model.safetensors");
        let path = [&case.flamingo, &case.clip, &weights][which].clone();
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            case.refuse("cut off", &[path.file_name().unwrap().to_str().unwrap()]);
        }
        std::fs::remove_file(&path).unwrap();
        case.refuse("absent", &[]);
    }
    let mut case = Case::new();
    case.more.extend(["--new-head-rows".into(), "nowhere.safetensors".into()]);
    case.refuse("no rows", &["nowhere.safetensors"]);
}

/// The file size limit stands for a full disk: writing fails half-way.
#[test]
fn a_disk_that_fills_up_leaves_no_partial_folder() {
    let case = Case::new();
    let before = case.listing();
    let script = "trap '' XFSZ; ulimit -f 400; exec \"$@\"";
    let program = env!("CARGO_BIN_EXE_medflamingo-tools").to_string();
    let output = Command::new("sh")
        .args(["-c", script, "sh", &program])
        .args(case.command())
        .output()
        .unwrap();
    case.refused("a full disk", &["model.safetensors", "cannot write"], &output);
    assert_eq!(case.listing(), before);
}

#[test]
fn a_changed_byte_is_found() {
    let case = Case::new();
    assert_eq!(case.run().status.code(), Some(0));
    let model = case.folder.path().join("model");
    let verify = || tools(&["verify", model.to_str().unwrap()]);
    assert_eq!(verify().status.code(), Some(0));
    let path = model.join("model.safetensors");
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    case.refused("a flipped bit", &["model.safetensors", "sha256"], &verify());
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    case.refused("a short file", &["model.safetensors"], &verify());
    std::fs::write(&path, &good).unwrap();
    edit_json(&model.join("config.json"), |c| c["language"]["mlp_width"] = json!(65));
    case.refused("another shape", &["gate_up"], &verify());
}

/// Bytes of the JSON files beside the weights, changed at random: a model or an error, no panic.
#[test]
fn damaged_configurations_are_errors() {
    use rand_chacha::rand_core::{Rng, SeedableRng};
    let case = Case::new();
    let options = Options {
        language_model: case.lm.clone(),
        vision: case.clip.clone(),
        flamingo: case.flamingo.clone(),
        ..options("fmt-tiny", case.folder.path())
    };
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    let mut below = |n: usize| random.next_u32() as usize % n;
    let names = ["lm/config.json", "lm/tokenizer_config.json", "clip.json"];
    let start = std::time::Instant::now();
    let mut refused = 0;
    for round in 0..900 {
        if start.elapsed().as_secs() >= 5 {
            break;
        }
        let path = case.folder.path().join(names[round % names.len()]);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        let at = below(bad.len());
        match below(5) {
            0 => bad[at] = below(256) as u8,
            1 => bad.truncate(at),
            2 => drop(bad.splice(at..at, *b"99999999999")),
            3 => {
                bad[at..].iter_mut().filter(|b| b.is_ascii_digit()).take(1).for_each(|b| *b = b'0')
            }
            _ => bad[at..].iter_mut().filter(|b| **b == b':').take(1).for_each(|b| *b = b','),
        }
        std::fs::write(&path, &bad).unwrap();
        refused += usize::from(medflamingo::convert::dry_run(&options).is_err());
        std::fs::write(&path, &good).unwrap();
    }
    assert!(refused > 50, "{refused}");
    medflamingo::convert::dry_run(&options).unwrap();
}

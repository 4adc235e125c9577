//! Conversion of upstream's files as a user runs it: what comes out, and what is refused.

use medflamingo::DType;
use medflamingo::checkpoint::Checkpoint;
use medflamingo::convert::{self, Ledger, NewHeadRows, Options, ledger::Fate};
use medflamingo::model::config::{Activation, Config, StoredDType};
use medflamingo::weights::Weights;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// Inputs of the golden model `name`, converted as f32 into `folder`/model.
fn options(name: &str, folder: &Path) -> Options {
    let flamingo = if name == "fmt-tiny" { "checkpoints/v2_bare.pt" } else { "flamingo.pt" };
    Options {
        language_model: golden(name).join("lm"),
        vision: golden(name).join("clip/open_clip_pytorch_model.pt"),
        flamingo: golden(name).join(flamingo),
        output: folder.join("model"),
        dtype: StoredDType::F32,
        new_head_rows: NewHeadRows::Eos,
        activation: None,
        max_shard: 1 << 30,
        is_forced: false,
    }
}

fn run(options: &Options) -> Ledger {
    convert::convert(options, &|_, _| {}).unwrap()
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// All tensors of a model folder whose weights are f32.
fn tensors(folder: &Path) -> Tensors {
    let weights = Weights::open(folder).unwrap();
    let read = |(name, entry): (&str, &medflamingo::checkpoint::Entry)| {
        assert_eq!(entry.dtype, DType::F32);
        (name.to_string(), (entry.shape.clone(), floats(&entry.to_vec())))
    };
    weights.iter().map(read).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn converted(options: &Options) -> Tensors {
    run(options);
    tensors(&options.output)
}

/// Tensors of a checkpoint, to be changed and written again as safetensors.
type File = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn load(path: &Path) -> File {
    let read = |(name, entry): (&str, &medflamingo::checkpoint::Entry)| match entry.dtype {
        DType::F32 => Some((name.to_string(), (entry.shape.clone(), floats(&entry.to_vec())))),
        _ => None,
    };
    Checkpoint::open(path).unwrap().iter().filter_map(read).collect()
}

fn save(path: &Path, file: &File) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (shape, values)) in file {
        let start = data.len();
        values.iter().for_each(|x| data.extend(x.to_le_bytes()));
        let offsets = [start, data.len()];
        header
            .insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], &header, &data].concat()).unwrap();
}

/// A copy of a language model's folder without its weights.
fn bare_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn every_container_makes_the_same_model() {
    let work = tempfile::tempdir().unwrap();
    let mut options = options("fmt-tiny", work.path());
    // Whole dumps hold all rows of the head; these are the same rows.
    let rows = golden("fmt-tiny/golden/golden.safetensors");
    options.new_head_rows = NewHeadRows::File(rows);
    let mut all = Vec::new();
    for name in [
        "v2_bare.pt",
        "v2_bare.safetensors",
        "v2_bare_legacy_format.pt",
        "v2_bare_views_and_parameters.pt",
        "v1_train_checkpoint.pt",
        "v2_full_state_dict.pt",
        "v1_full_state_dict_model.pt",
    ] {
        options.flamingo = golden("fmt-tiny/checkpoints").join(name);
        options.output = work.path().join(name);
        all.push((name, converted(&options)));
    }
    for clip in ["open_clip_model.safetensors", "open_clip_training_checkpoint.pt"] {
        options.vision = golden("fmt-tiny/clip").join(clip);
        options.output = work.path().join(clip);
        all.push((clip, converted(&options)));
    }
    let binary = work.path().join("lm");
    bare_folder(&golden("fmt-tiny/lm"), &binary);
    let name = "pytorch_model.bin";
    std::fs::copy(golden("fmt-tiny/lm").join(name), binary.join(name)).unwrap();
    options.language_model = binary;
    options.output = work.path().join("bin");
    all.push((name, converted(&options)));
    for (name, tensors) in &all[1..] {
        assert!(*tensors == all[0].1, "{name}");
    }

    options.flamingo = golden("fmt-tiny/checkpoints/v2_bare_fp16.pt");
    options.output = work.path().join("fp16");
    for (name, (_, values)) in converted(&options) {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= b.abs() / 1024.0 + 1e-7;
        assert!(values.iter().zip(&all[0].1[&name].1).all(close), "{name}");
    }
    options.flamingo = golden("fmt-tiny/checkpoints/train_run/checkpoint_0.pt");
    options.output = work.path().join("trained");
    let ledger = run(&options);
    let ignored = &ledger.sources[2].ignored;
    assert!(ignored.iter().any(|(name, _)| name.contains("optimizer")), "{ignored:?}");
}

#[test]
fn openai_s_archive_and_hugging_face_s_folder_are_read() {
    let work = tempfile::tempdir().unwrap();
    let mut options = options("fmt-tiny", work.path());
    let expected = converted(&options);

    let folder = work.path().join("hf-clip");
    std::fs::create_dir(&folder).unwrap();
    save(&folder.join("model.safetensors"), &hugging_face(&load(&options.vision)));
    let tower = json!({"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1,
        "patch_size": 14, "image_size": 28, "hidden_act": "quick_gelu"});
    let config = json!({"model_type": "clip", "vision_config": tower}).to_string();
    std::fs::write(folder.join("config.json"), config).unwrap();
    options.vision = folder.clone();
    options.output = work.path().join("hf");
    assert!(converted(&options) == expected);
    edit_json(&folder.join("config.json"), |c| c["vision_config"]["hidden_act"] = json!("gelu"));
    let notes = convert::dry_run(&options).unwrap().notes.join("\n");
    assert!(notes.contains("activation gelu"), "{notes}");

    // The archive is wider, so the checkpoint has to be.
    let mut wide = load(&options.flamingo);
    for (shape, values) in wide.values_mut() {
        shape.iter_mut().filter(|d| **d == 8).for_each(|d| *d = 64);
        values.resize(shape.iter().product(), 0.25);
    }
    options.flamingo = work.path().join("wide.safetensors");
    save(&options.flamingo, &wide);
    options.vision = golden("fmt-tiny/clip_openai_jit/openai_style.pt");
    options.output = work.path().join("openai");
    let tensors = converted(&options);
    let config = Config::read(&options.output.join("config.json")).unwrap();
    let v = &config.vision;
    assert_eq!((v.width, v.heads, v.layers, v.image_size, v.projection), (64, 1, 2, 28, 32));
    assert_eq!(v.activation, Activation::QuickGelu);
    let archive = Checkpoint::open(&options.vision).unwrap();
    let half = archive.get("visual.proj").unwrap();
    assert_eq!(half.dtype, DType::F16);
    let bytes = half.to_vec();
    let (_, projection) = &tensors["vision.projection.weight"];
    for row in 0..64 {
        for col in 0..32 {
            let at = (row * 32 + col) * 2;
            let expected = half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
            assert_eq!(projection[col * 64 + row], expected);
        }
    }
}

/// open_clip's names and shapes to Hugging Face's.
fn hugging_face(clip: &File) -> File {
    let mut out = File::new();
    for (name, (shape, values)) in clip {
        let Some(name) = name.strip_prefix("visual.") else { continue };
        let name = name
            .replace("transformer.resblocks.", "encoder.layers.")
            .replace(".ln_1.", ".layer_norm1.")
            .replace(".ln_2.", ".layer_norm2.")
            .replace("c_fc", "fc1")
            .replace("c_proj", "fc2")
            .replace("attn.out_proj", "self_attn.out_proj")
            .replace("ln_pre", "pre_layrnorm")
            .replace("ln_post", "post_layernorm")
            .replace("conv1.", "embeddings.patch_embedding.")
            .replace("class_embedding", "embeddings.class_embedding")
            .replace("positional_embedding", "embeddings.position_embedding.weight");
        if let Some((layer, tail)) = name.split_once("attn.in_proj_") {
            let part = values.len() / 3;
            for (i, which) in ["q", "k", "v"].iter().enumerate() {
                let name = format!("vision_model.{layer}self_attn.{which}_proj.{tail}");
                let mut shape = shape.clone();
                shape[0] /= 3;
                out.insert(name, (shape, values[i * part..(i + 1) * part].to_vec()));
            }
        } else if name == "proj" {
            let (rows, cols) = (shape[0], shape[1]);
            let at = |i: usize| values[(i % rows) * cols + i / rows];
            let transposed = (0..rows * cols).map(at).collect();
            out.insert("visual_projection.weight".into(), (vec![cols, rows], transposed));
        } else {
            out.insert(format!("vision_model.{name}"), (shape.clone(), values.clone()));
        }
    }
    out.insert("text_model.final_layer_norm.weight".into(), (vec![2], vec![0.0; 2]));
    out.insert("logit_scale".into(), (vec![], vec![1.0]));
    out
}

#[test]
fn each_family_fills_the_rows_it_should() {
    let work = tempfile::tempdir().unwrap();
    let options = |name: &str| options(name, &work.path().join(name));
    for name in ["llama-tiny", "mpt-tiny", "neox-tiny"] {
        std::fs::create_dir(work.path().join(name)).unwrap();
    }
    let llama = converted(&options("llama-tiny"));
    let lm = load(&golden("llama-tiny/lm/model.safetensors"));
    let of = |kind: &str| lm[&format!("model.layers.2.{kind}.weight")].1.clone();
    let qkv = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(of).concat();
    assert_eq!(llama["language.layers.2.attn.qkv.weight"].1, qkv);
    let gate_up = ["mlp.gate_proj", "mlp.up_proj"].map(of).concat();
    assert_eq!(llama["language.layers.2.mlp.gate_up.weight"].1, gate_up);
    let flamingo = load(&golden("llama-tiny/flamingo.pt"));
    let rows = &flamingo["lang_encoder.model.embed_tokens.weight"];
    assert_eq!(llama["language.embedding.weight"], *rows);
    assert_ne!(rows.1, lm["model.embed_tokens.weight"].1);

    let mpt = converted(&options("mpt-tiny"));
    let lm = load(&golden("mpt-tiny/lm/model.safetensors"));
    let name = "language.layers.1.mlp.fc1.weight";
    assert_eq!(mpt[name], lm["transformer.blocks.1.ffn.up_proj.weight"]);
    assert!(!mpt.contains_key("language.head.weight"), "tied");

    let neox = converted(&options("neox-tiny"));
    let lm = load(&golden("neox-tiny/lm/model.safetensors"));
    let (heads, width) = (4, 64);
    let dims = width / heads;
    for (tail, cols) in [("weight", width), ("bias", 1)] {
        let theirs = &lm[&format!("gpt_neox.layers.1.attention.query_key_value.{tail}")].1;
        let ours = &neox[&format!("language.layers.1.attn.qkv.{tail}")].1;
        for (which, head, d) in [(0, 0, 0), (0, 3, 5), (1, 0, 15), (1, 2, 1), (2, 3, 15)] {
            let a = &ours[(which * width + head * dims + d) * cols..][..cols];
            let b = &theirs[((head * 3 + which) * dims + d) * cols..][..cols];
            assert_eq!(a, b, "{tail} {which} {head} {d}");
        }
    }
    let flamingo = load(&golden("neox-tiny/flamingo.pt"));
    assert_eq!(neox["language.head.weight"], flamingo["lang_encoder.embed_out.weight"]);
    let config = work.path().join("neox-tiny/model/config.json");
    assert_eq!(Config::read(&config).unwrap().vision.activation, Activation::Gelu);
}

#[test]
fn mpt_1b_has_older_names_and_norms_of_queries() {
    let work = tempfile::tempdir().unwrap();
    let mut options = options("mpt-tiny", work.path());
    let expected = converted(&options);
    let folder = work.path().join("lm");
    bare_folder(&options.language_model, &folder);
    let renamed = |name: &str| {
        let ffn =
            name.replace("ffn.up_proj", "mlp.mlp_up").replace("ffn.down_proj", "mlp.mlp_down");
        ffn.replace("norm_1", "ln_1").replace("norm_2", "ln_2").replace("norm_f", "ln_f")
    };
    let lm = load(&options.language_model.join("model.safetensors"));
    let mut lm: File = lm.into_iter().map(|(name, tensor)| (renamed(&name), tensor)).collect();
    for layer in 0..2 {
        for (name, value) in [("q_ln", 0.5), ("k_ln", 2.0)] {
            let name = format!("transformer.blocks.{layer}.attn.{name}.weight");
            lm.insert(name, (vec![48], vec![value; 48]));
        }
    }
    save(&folder.join("model.safetensors"), &lm);
    let config = json!({"model_type": "mosaic_gpt", "d_model": 48, "n_heads": 4, "n_layers": 2,
        "mlp_ratio": 4, "max_seq_len": 1024, "no_bias": true, "alibi": true, "attn_qk_ln": true});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    options.language_model = folder;
    options.output = work.path().join("mosaic");
    let mut found = converted(&options);
    let norm = found.remove("language.layers.1.attn.k_norm.weight").unwrap();
    assert_eq!(norm.1, [2.0; 48]);
    found.retain(|name, _| !name.ends_with("attn.q_norm.weight") && !name.contains("k_norm"));
    assert!(found == expected);
}

#[test]
fn rows_that_nobody_has_are_made_as_asked() {
    let work = tempfile::tempdir().unwrap();
    let mut options = options("fmt-tiny", work.path());
    let mut make = |name: &str, mode: &str| {
        options.new_head_rows = mode.parse().unwrap();
        options.output = work.path().join(name);
        let ledger = run(&options);
        let path = options.output.join("generation_config.json");
        let generation: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(generation["suppress_tokens"], json!(ledger.suppress_tokens));
        assert_eq!(generation["eos_token_id"], 400);
        let head = tensors(&options.output)["language.head.weight"].1.clone();
        (head, ledger)
    };
    let (head, ledger) = make("eos", "eos");
    let old = load(&golden("fmt-tiny/lm/model.safetensors"))["lm_head.weight"].1.clone();
    assert_eq!(head[..400 * 32], old);
    assert_eq!(head[400 * 32..401 * 32], old[2 * 32..3 * 32], "the row of </s>");
    assert!(head[401 * 32..].iter().all(|x| *x == 0.0));
    assert_eq!(ledger.suppress_tokens, [401, 402]);
    assert!(ledger.new_head_rows.contains("</s> (2)"), "{}", ledger.new_head_rows);

    let (random, ledger) = make("random", "random:7");
    assert!(ledger.suppress_tokens.is_empty());
    let new = &random[400 * 32..];
    let deviation = (new.iter().map(|x| x * x).sum::<f32>() / new.len() as f32).sqrt();
    assert!((0.014..0.026).contains(&deviation), "{deviation}");
    assert_eq!(random, make("again", "random:7").0);
    assert_ne!(random, make("other", "random:8").0);
    let (zero, ledger) = make("zero", "zero");
    assert!(zero[400 * 32..].iter().all(|x| *x == 0.0));
    assert_eq!(ledger.suppress_tokens, [401, 402]);
    let rows = golden("fmt-tiny/golden/golden.safetensors");
    let (from_file, _) = make("file", rows.to_str().unwrap());
    assert_eq!(from_file[400 * 32..], load(&rows)["lm_head_new_rows"].1);
    // Rows that a file has are used as they are.
    let folder = work.path().join("llama");
    std::fs::create_dir(&folder).unwrap();
    let ledger = run(&self::options("llama-tiny", &folder));
    assert!(ledger.suppress_tokens.is_empty() && ledger.new_head_rows.starts_with("none"));
}

#[test]
fn the_ledger_explains_every_key_and_every_tensor() {
    let work = tempfile::tempdir().unwrap();
    let mut options = options("fmt-tiny", work.path());
    options.flamingo = golden("fmt-tiny/checkpoints/v1_full_state_dict_model.pt");
    options.max_shard = 200_000;
    let planned = convert::dry_run(&options).unwrap();
    assert!(!options.output.exists());
    let ledger = run(&options);
    let config = Config::read(&options.output.join("config.json")).unwrap();
    let names: Vec<_> = ledger.tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    assert_eq!(names, config.tensors());
    assert!(ledger.tensors.iter().all(|t| t.sha256.len() == 64 && !t.from.is_empty()));
    assert!(ledger.files.len() > 6, "shards and an index: {:?}", ledger.files);
    let keys: usize = ledger.sources.iter().map(|s| s.tensors).sum();
    assert_eq!(ledger.keys.len(), keys);
    assert_eq!(planned.keys, ledger.keys);
    let fate = |name: &str| &ledger.keys.iter().find(|k| k.name == name).unwrap().fate;
    let tied = fate("lang_encoder.gated_cross_attn_layers.1.attn_gate");
    assert!(matches!(tied, Fate::Tied(to) if to.contains("layers.1.gated_cross")), "{tied:?}");
    assert!(matches!(fate("vision_encoder.visual.proj"), Fate::Ignored(_)));
    assert!(matches!(fate("vision_encoder.token_embedding.weight"), Fate::Ignored(_)));
    let written = std::fs::read(options.output.join("conversion.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Ledger>(&written).unwrap(), ledger);
    assert_eq!(tools(&["verify", options.output.to_str().unwrap()]).status.code(), Some(0));
}

fn tools(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_medflamingo-tools")).args(arguments).output().unwrap()
}

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

//! What comes out, tensor by tensor.

use super::*;
use medflamingo::convert::{self, Ledger, ledger::Fate};
use medflamingo::model::config::{Activation, Config};
use medflamingo::weights::Weights;

fn run(options: &Options) -> Ledger {
    convert::convert(options, &|_, _| {}).unwrap()
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// All tensors of a model folder whose weights are f32.
fn tensors(folder: &Path) -> Tensors {
    let weights = Weights::open(folder).unwrap();
    let read = |(name, entry): (&str, &Entry)| {
        assert_eq!(entry.dtype, DType::F32);
        (name.to_string(), (entry.shape.clone(), floats(&entry.to_vec())))
    };
    weights.iter().map(read).collect()
}

fn converted(options: &Options) -> Tensors {
    run(options);
    tensors(&options.output)
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

/// LLaMA-7B as Med-Flamingo was trained with it: SentencePiece only, special tokens named "".
#[test]
fn a_sentencepiece_model_with_empty_names_starts_prompts_with_unk() {
    let work = tempfile::tempdir().unwrap();
    let mut options = options("fmt-tiny", work.path());
    let folder = work.path().join("lm");
    bare_folder(&options.language_model, &folder);
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    std::fs::remove_file(folder.join("special_tokens_map.json")).unwrap();
    let model = golden("extras/llama_sentencepiece_tokenizer/tokenizer.model");
    std::fs::copy(model, folder.join("tokenizer.model")).unwrap();
    let names = json!({"bos_token": "", "eos_token": "", "unk_token": ""}).to_string();
    std::fs::write(folder.join("tokenizer_config.json"), names).unwrap();
    let resized = |path: &Path, name: &str, rows: usize| {
        let mut file = load(path);
        let (shape, values) = file.get_mut(name).unwrap();
        shape[0] = rows;
        values.resize(rows * 32, 0.5);
        file
    };
    let weights = "model.safetensors";
    let lm = resized(&options.language_model.join(weights), "lm_head.weight", 520);
    save(&folder.join(weights), &lm);
    let embedding = "lang_encoder.model.embed_tokens.weight";
    let flamingo = resized(&options.flamingo, embedding, 523);
    options.flamingo = work.path().join("flamingo.safetensors");
    save(&options.flamingo, &flamingo);
    options.language_model = folder;
    let tensors = converted(&options);
    let config = Config::read(&options.output.join("config.json")).unwrap();
    let t = &config.tokens;
    assert_eq!((t.leading, t.end_of_chunk, t.image, t.pad), (Some(0), 520, 521, 522));
    let head = &tensors["language.head.weight"].1;
    assert_eq!(head[520 * 32..521 * 32], head[2 * 32..3 * 32], "the row of </s>");
    let tokenizer = medflamingo::text::Tokenizer::open(&options.output).unwrap();
    assert_eq!(tokenizer.encode_prompt("a<image>b").unwrap()[0], 0);
}

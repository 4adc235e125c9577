//! Checkpoint files: every container gives the same tensors, and no hostile one gets through.

mod pickle;

use medflamingo::checkpoint::{Checkpoint, Format};
use medflamingo::{DType, Result};
use pickle::sweep::{Random, Tally, fuzz, mutate, prefixes_and_flips, survive};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fmt-tiny").join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap_or_else(|e| panic!("{e}"))
}

type Tensors = BTreeMap<String, (DType, Vec<usize>, Vec<u8>)>;

/// Everything a checkpoint holds, read through `read`, with `module.` taken out of the names.
fn tensors(checkpoint: &Checkpoint) -> Tensors {
    let read = checkpoint.iter().map(|(name, entry)| {
        let mut bytes = Vec::new();
        let mut keep = |piece: &[u8]| -> Result<()> {
            bytes.extend_from_slice(piece);
            Ok(())
        };
        entry.read(&mut keep).unwrap();
        assert_eq!(bytes.len(), entry.bytes());
        if let Some(whole) = entry.contiguous() {
            assert!(whole == bytes, "{name}: contiguous and read differ");
        }
        let name = name.replace("module.", "");
        (name, (entry.dtype, entry.shape.clone(), bytes))
    });
    read.collect()
}

/// All of `part` is in `whole`, bit for bit.
fn assert_within(part: &Tensors, whole: &Tensors, label: &str) {
    for (name, tensor) in part {
        let other = whole.get(name).unwrap_or_else(|| panic!("{label}: no {name}"));
        assert!(tensor == other, "{label}: {name} differs");
    }
}

#[test]
fn every_container_of_one_model_gives_identical_tensors() {
    let reference = open("checkpoints/v2_bare.safetensors");
    assert_eq!(reference.format(), Format::SafeTensors);
    let reference = tensors(&reference);
    for (name, format, is_whole) in [
        ("checkpoints/v2_bare.pt", Format::TorchZip, true),
        ("checkpoints/v2_bare_legacy_format.pt", Format::TorchLegacy, true),
        ("checkpoints/v2_bare_views_and_parameters.pt", Format::TorchZip, true),
        ("checkpoints/v2_full_state_dict.pt", Format::TorchZip, false),
        ("checkpoints/v1_full_state_dict_model.pt", Format::TorchZip, false),
        ("checkpoints/v1_train_checkpoint.pt", Format::TorchZip, false),
    ] {
        let checkpoint = open(name);
        assert_eq!(checkpoint.format(), format, "{name}");
        let found = tensors(&checkpoint);
        assert_within(&reference, &found, name);
        if is_whole {
            assert_eq!(found.len(), reference.len(), "{name}");
        }
    }
}

#[test]
fn a_training_checkpoint_gives_its_model_and_names_the_rest() {
    let run = open("checkpoints/train_run/checkpoint_0.pt");
    let names = tensors(&open("checkpoints/v2_bare.safetensors"));
    let found = tensors(&run);
    assert_eq!(found.keys().collect::<Vec<_>>(), names.keys().collect::<Vec<_>>());
    for (name, (dtype, shape, _)) in &names {
        assert_eq!((&found[name].0, &found[name].1), (dtype, shape), "{name}");
    }
    let ignored: Vec<&str> = run.ignored().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(ignored, ["epoch", "optimizer_state_dict", "lr_scheduler_state_dict"]);
    assert!(run.ignored()[1].1.contains("not part of the model"), "{:?}", run.ignored());
    assert_eq!(run.verify().unwrap(), 326);
}

#[test]
fn half_precision_is_the_rounded_single_precision() {
    let single = tensors(&open("checkpoints/v2_bare.pt"));
    let half = tensors(&open("checkpoints/v2_bare_fp16.pt"));
    assert_eq!(single.len(), half.len());
    for (name, (dtype, shape, bytes)) in &half {
        assert_eq!(*dtype, DType::F16, "{name}");
        let (_, wide_shape, wide) = &single[name];
        assert_eq!(shape, wide_shape);
        for (h, w) in bytes.chunks_exact(2).zip(wide.chunks_exact(4)) {
            let w = f32::from_le_bytes(w.try_into().unwrap());
            let h = half::f16::from_le_bytes(h.try_into().unwrap());
            assert_eq!(h.to_bits(), half::f16::from_f32(w).to_bits(), "{name}");
        }
    }
}

#[test]
fn clip_in_three_containers_is_one_model() {
    let safe = tensors(&open("clip/open_clip_model.safetensors"));
    let bare = open("clip/open_clip_pytorch_model.pt");
    let trained = open("clip/open_clip_training_checkpoint.pt");
    assert_eq!(safe, tensors(&bare));
    assert_eq!(safe, tensors(&trained));
    assert!(trained.names().all(|name| name.starts_with("module.")));
    let ignored: Vec<&str> = trained.ignored().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(ignored, ["epoch", "name"]);
}

#[test]
fn torchscript_parameters_have_the_names_types_and_shapes_of_its_state_dict() {
    let program = open("clip_openai_jit/openai_style.pt");
    assert_eq!(program.format(), Format::TorchScript);
    let keys = std::fs::read(fixture("clip_openai_jit/state_dict_keys.json")).unwrap();
    let keys: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&keys).unwrap();
    let expected: BTreeMap<String, String> =
        keys.iter().map(|(name, v)| (name.clone(), format!("{} {}", v[0], v[1]))).collect();
    let torch_name = |dtype: DType| match dtype {
        DType::F32 => "torch.float32",
        DType::F16 => "torch.float16",
        DType::I64 => "torch.int64",
        other => panic!("{other}"),
    };
    let found: BTreeMap<String, String> = program
        .iter()
        .map(|(name, e)| (name.into(), format!("\"{}\" {:?}", torch_name(e.dtype), e.shape)))
        .map(|(name, text): (String, String)| (name, text.replace(", ", ",")))
        .collect();
    assert_eq!(found, expected);
    program.verify().unwrap();
}

#[test]
fn a_language_model_folder_is_the_same_as_safetensors_and_as_bin() {
    let folder = open("lm");
    assert_eq!(folder.format(), Format::SafeTensors);
    let bin = open("lm/pytorch_model.bin");
    assert_eq!(bin.format(), Format::TorchZip);
    let (folder, bin) = (tensors(&folder), tensors(&bin));
    assert_within(&folder, &bin, "bin");
    assert_within(&bin, &folder, "safetensors");
}

#[test]
fn every_hostile_file_is_refused_with_its_own_message() {
    let cases = pickle::hostile::cases();
    assert!(cases.len() >= 120, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let start = Instant::now();
        let message = match Checkpoint::from_bytes("file", case.file.clone()) {
            Ok(_) => "accepted".into(),
            Err(e) => e.to_string(),
        };
        let is_fast = start.elapsed().as_secs() < 5;
        if !message.contains(case.says) || !message.starts_with("file: ") || !is_fast {
            wrong.push(format!("{}: {message}\n    instead of: {}", case.label, case.says));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    println!("{} hostile files refused", cases.len());
}

#[test]
fn unusual_but_honest_files_are_read() {
    for case in pickle::honest::cases() {
        let file = case.file.clone();
        let checkpoint = Checkpoint::from_bytes("file", file).unwrap_or_else(|e| {
            panic!("{}: {e}", case.label);
        });
        assert_eq!(checkpoint.names().count(), case.tensors.len(), "{}", case.label);
        for (name, dtype, shape, bytes) in &case.tensors {
            let entry = checkpoint.get(name).unwrap();
            let found = (entry.dtype, &entry.shape, entry.to_vec());
            assert_eq!(found, (*dtype, shape, bytes.clone()), "{}", case.label);
        }
        checkpoint.verify().unwrap();
    }
}

#[test]
fn tensors_that_share_their_bytes_are_recognised() {
    let file = open("checkpoints/v1_full_state_dict_model.pt");
    let block = "lang_encoder.gated_cross_attn_layers.1.attn_gate";
    let alias = "lang_encoder.model.layers.1.gated_cross_attn_layer.attn_gate";
    let (a, b) = (file.get(block).unwrap(), file.get(alias).unwrap());
    assert!(a.is_alias_of(b) && a.identity() == b.identity());
    let other = file.get("perceiver.latents").unwrap();
    assert!(!a.is_alias_of(other));
    let different: std::collections::HashSet<_> = file.iter().map(|(_, e)| e.identity()).collect();
    assert!(different.len() < file.len());
}

/// Small files of each format: what the sweeps and the fuzz loops start from.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    use pickle::*;
    let id = "( s:storage c:torch.FloatStorage s:9 s:cpu i:4 None t Q";
    let dict = format!("}} ( s:w {} u", view(id, "i:0", "i:4", "i:1"));
    let module = format!("c:__torch__.M ) new }} ( s:w {} s:training True u b", four());
    let header = r#"{"__metadata__":{"format":"pt"},
        "w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "v":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}}"#;
    vec![
        ("archive", torch_with(&one(&four()))),
        ("legacy", legacy_with(&dict, "] s:9 a", &[(4, &[1; 16])])),
        ("script", script_with(&asm(&format!("proto:2 {module} .")))),
        ("safetensors", safetensors_with(header, &[5; 10])),
    ]
}

#[test]
fn every_prefix_and_every_bit_of_small_files_is_survived() {
    let mut tally = Tally::default();
    for (name, file) in seeds() {
        let before = tally.accepted;
        prefixes_and_flips(&mut tally, name, &file);
        assert!(tally.accepted > before, "{name}: the unread parts may differ");
        assert!(Checkpoint::from_bytes(name, file).is_ok(), "{name}");
    }
    println!("{tally}");
}

#[test]
fn fixtures_survive_every_prefix_and_a_bit_flip_of_every_byte() {
    let mut tally = Tally::default();
    let mut random = Random(0x0f11_e57a_7e00_0001);
    for name in ["clip/open_clip_model.safetensors", "clip/open_clip_pytorch_model.pt"] {
        let file = std::fs::read(fixture(name)).unwrap();
        assert!(file.len() <= 64 << 10);
        for n in 0..file.len() {
            survive(&mut tally, || format!("{name}: first {n} bytes"), file[..n].to_vec());
            let mut flipped = file.clone();
            flipped[n] ^= 1 << random.below(8);
            survive(&mut tally, || format!("{name}: flip in byte {n}"), flipped);
        }
    }
    println!("{tally}");
}

#[test]
fn mutated_pickles_behind_a_good_checksum_are_survived() {
    let of = |name: &str| pickle_of(&std::fs::read(fixture(name)).unwrap());
    let mut pickles = vec![
        (of("clip/open_clip_training_checkpoint.pt"), false),
        (of("clip_openai_jit/openai_style.pt"), true),
    ];
    for case in pickle::honest::cases().into_iter().filter(|case| case.file.starts_with(b"PK")) {
        let is_script = case.file.windows(8).any(|w| w == b"__torch_");
        pickles.push((pickle_of(&case.file), is_script));
    }
    let tally = fuzz("pickle", |tally, random, i| {
        let (mut mutant, is_script) = pickles[random.below(pickles.len())].clone();
        mutate(random, &mut mutant);
        let file =
            if is_script { pickle::script_with(&mutant) } else { pickle::torch_with(&mutant) };
        survive(tally, || format!("pickle {i}"), file);
    });
    assert!(tally.accepted > 0);
}

#[test]
fn mutated_files_of_every_format_are_survived() {
    let mut files: Vec<Vec<u8>> = seeds().into_iter().map(|(_, file)| file).collect();
    for name in ["clip/open_clip_model.safetensors", "clip/open_clip_training_checkpoint.pt"] {
        files.push(std::fs::read(fixture(name)).unwrap());
    }
    let tally = fuzz("file", |tally, random, i| {
        let mut mutant = files[random.below(files.len())].clone();
        mutate(random, &mut mutant);
        survive(tally, || format!("file {i}"), mutant);
    });
    assert!(tally.tried > 10);
}

/// The bytes of `data.pkl`, by its place in an archive that stores its members.
fn pickle_of(archive: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(archive)).unwrap();
    for i in 0..zip.len() {
        let mut member = zip.by_index(i).unwrap();
        if member.name().is_ok_and(|name| name.ends_with("/data.pkl")) {
            let mut bytes = Vec::new();
            member.read_to_end(&mut bytes).unwrap();
            return bytes;
        }
    }
    panic!("no data.pkl");
}

/// A folder with two shards of one tensor each, and an index written by `index`.
fn sharded(index: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("a.bin", &pickle::torch_with(&pickle::one(&pickle::four())));
    let header = r#"{"v":{"dtype":"F16","shape":[3],"data_offsets":[0,6]}}"#;
    write("b.safetensors", &pickle::safetensors_with(header, &[1; 6]));
    write("pytorch_model.bin.index.json", index.as_bytes());
    folder
}

#[test]
fn shards_are_one_checkpoint_in_the_order_of_the_index() {
    let folder =
        sharded(r#"{"metadata":{"total_size":22},"weight_map":{"v":"b.safetensors","w":"a.bin"}}"#);
    let whole = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(whole.format(), Format::ShardedTorch);
    assert_eq!(whole.names().collect::<Vec<_>>(), ["v", "w"]);
    assert_eq!(whole.get("v").unwrap().to_vec(), [1; 6]);
    assert_eq!(whole.verify().unwrap(), 4);
    let by_file = Checkpoint::open(&folder.path().join("pytorch_model.bin.index.json")).unwrap();
    assert_eq!(tensors(&by_file), tensors(&whole));
    let part = sharded(r#"{"weight_map":{"w":"a.bin"}}"#);
    assert_eq!(Checkpoint::open(part.path()).unwrap().names().collect::<Vec<_>>(), ["w"]);
}

#[test]
fn a_tensor_that_the_index_leaves_out_is_listed_as_ignored() {
    let folder = sharded(r#"{"weight_map":{"w":"a.bin"}}"#);
    let bytes = pickle::asm(&format!("proto:2 }} ( s:w {0} s:x {0} u .", pickle::four()));
    std::fs::write(folder.path().join("a.bin"), pickle::torch_with(&bytes)).unwrap();
    let whole = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(whole.ignored(), [("x".into(), "in a.bin but not in the index".to_string())]);
}

#[test]
fn indexes_that_lead_elsewhere_are_refused() {
    for (index, says) in [
        (r#"{"weight_map":{"w":"../a.bin"}}"#, "plain file names"),
        (r#"{"weight_map":{"w":"/etc/passwd"}}"#, "plain file names"),
        (r#"{"weight_map":{"w":"..\\a.bin"}}"#, "plain file names"),
        (r#"{"weight_map":{"w":"C:a.bin"}}"#, "plain file names"),
        (r#"{"weight_map":{"w":".."}}"#, "plain file names"),
        (r#"{"weight_map":{"w":""}}"#, "plain file names"),
        (r#"{"weight_map":{"w":"a.bin\u0000"}}"#, "plain file names"),
        (r#"{"weight_map":{"w":"pytorch_model.bin.index.json"}}"#, "plain file names"),
        (r#"{"weight_map":{"w":"c.bin"}}"#, "c.bin: cannot read"),
        (r#"{"weight_map":{"w":"b.safetensors"}}"#, "w: expected a tensor of b.safetensors"),
        (r#"{"weight_map":{"w":"a.bin","w":"a.bin"}}"#, "repeated key `w`"),
        (r#"{"weight_map":{"w":"a.bin"},"weight_map":{}}"#, "duplicate field"),
        (r#"{"weight_map":{}}"#, "between 1 and 10000 shards"),
        (r#"{"weight_map":{"w":7}}"#, "expected a string"),
        (r#"{"weight_map":["w"]}"#, "expected an object"),
        (r#"{"weights":{}}"#, "missing field `weight_map`"),
        (r#"{"weight_map":{"w":"a.bin"}"#, "EOF"),
        (r#"[["#, "expected an object"),
        ("", "an empty file"),
    ] {
        let folder = sharded(index);
        let message = Checkpoint::open(folder.path()).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(says), "{index}: {message}");
        assert!(message.contains(&folder.path().display().to_string()), "{message}");
    }
}

#[test]
fn paths_that_are_no_files_are_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &std::path::Path| Checkpoint::open(path).unwrap_err().to_string();
    assert!(refused(folder.path()).contains("one of model.safetensors"));
    assert!(refused(&folder.path().join("missing.pt")).contains("cannot read"));
    let empty = folder.path().join("empty.pt");
    std::fs::write(&empty, b"").unwrap();
    assert!(refused(&empty).contains("an empty file"));
    assert!(refused(std::path::Path::new("/dev/zero")).contains("a regular file"));
    let pipe = folder.path().join("pipe.pt");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if made.is_ok_and(|status| status.success()) {
        assert!(refused(&pipe).contains("a regular file"));
    }
}

#[test]
fn mutated_indexes_are_survived() {
    let text = r#"{"metadata":{"total_size":22},"weight_map":{"v":"b.safetensors","w":"a.bin"}}"#;
    let folder = sharded(text);
    let path = folder.path().join("pytorch_model.bin.index.json");
    let tally = fuzz("index", |tally, random, i| {
        let mut mutant = text.as_bytes().to_vec();
        mutate(random, &mut mutant);
        std::fs::write(&path, &mutant).unwrap();
        let opened = std::panic::catch_unwind(|| Checkpoint::open(&path).is_ok());
        tally.tried += 1;
        tally.accepted += usize::from(opened.unwrap_or_else(|_| panic!("index {i}")));
    });
    assert!(tally.tried > 10);
}

#[test]
fn an_accepted_archive_is_the_same_archive_to_another_reader() {
    let seed = pickle::torch_with(&pickle::one(&pickle::four()));
    let tally = fuzz("differential", |tally, random, i| {
        let mut mutant = seed.clone();
        mutate(random, &mut mutant);
        tally.tried += 1;
        let Ok(ours) = Checkpoint::from_bytes("file", mutant.clone()) else { return };
        if ours.verify().is_err() {
            return;
        }
        tally.accepted += 1;
        let mut theirs = zip::ZipArchive::new(std::io::Cursor::new(&mutant)).unwrap();
        assert_eq!(theirs.len(), 4, "file {i}");
        let mut data = Vec::new();
        theirs.by_name("archive/data/0").unwrap().read_to_end(&mut data).unwrap();
        let w = ours.iter().next().unwrap().1;
        assert_eq!(data, w.to_vec(), "file {i}");
    });
    assert!(tally.accepted > 0);
}

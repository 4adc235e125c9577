//! Checkpoint files: every container gives the same tensors, and no hostile one gets through.

use medflamingo::checkpoint::{Checkpoint, Format};
use medflamingo::{DType, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

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

//! What training made, written for others: upstream's form read back by our own converter, and
//! model folders; for every family of the golden data.

#[allow(dead_code)]
mod golden_folder;

use golden_folder::models;
use medflamingo::checkpoint::Checkpoint;
use medflamingo::convert;
use medflamingo::convert::export::{Options, export};
use medflamingo::convert::quantize::{self, Choice, Part, Precision};
use medflamingo::device::Device;
use medflamingo::model::Config;
use medflamingo::model::config::StoredDType;
use medflamingo::weights::Weights;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const EMBEDDING: &str = "language.embedding.weight";

fn values(weights: &Weights, name: &str, shape: &[usize]) -> Vec<f32> {
    weights.get(name, shape).unwrap().view().to_f32().unwrap()
}

/// A checkpoint as a run writes it: resampler, gated blocks and two rows of the embedding, all of
/// them changed. Returns the file and what the tensors are now.
fn trained(folder: &Path, into: &Path) -> (PathBuf, BTreeMap<String, Vec<f32>>) {
    let config = Config::read(&folder.join("config.json")).unwrap();
    let weights = Weights::open(folder).unwrap();
    let (mut now, mut stored) = (BTreeMap::new(), Vec::new());
    for (name, shape) in config.tensors() {
        let mut data = values(&weights, &name, &shape);
        if name.starts_with("resampler.") || name.starts_with("xattn.") {
            data.iter_mut().for_each(|x| *x = *x * 1.25 + 0.001);
            stored.push((name.clone(), shape, Dtype::F32, bytes(&data)));
        } else if name == EMBEDDING {
            let mut rows = vec![config.tokens.end_of_chunk as i32, config.tokens.image as i32];
            rows.sort();
            let (cols, mut changed) = (shape[1], Vec::new());
            for &row in &rows {
                let own = &mut data[row as usize * cols..(row as usize + 1) * cols];
                own.iter_mut().for_each(|x| *x -= 0.5);
                changed.extend_from_slice(own);
            }
            stored.push((format!("{name}.rows"), vec![2, cols], Dtype::F32, bytes(&changed)));
            let ids = rows.iter().flat_map(|r| r.to_le_bytes()).collect();
            stored.push((format!("{name}.row_ids"), vec![2], Dtype::I32, ids));
        }
        now.insert(name, data);
    }
    let views = stored.iter().map(|(name, shape, dtype, data)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let path = into.join("trainable.safetensors");
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    (path, now)
}

/// The folder of one model, a place for outputs, and [`trained`] in it.
fn trained_once() -> (PathBuf, tempfile::TempDir, PathBuf, BTreeMap<String, Vec<f32>>) {
    let folder = models()[0].convert("f32");
    let scratch = tempfile::tempdir().unwrap();
    let (file, now) = trained(&folder, scratch.path());
    (folder, scratch, file, now)
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn options(folder: &Path, trained: &Path, output: PathBuf) -> Options {
    let (folder, trained) = (folder.to_path_buf(), trained.to_path_buf());
    Options {
        folder,
        trained,
        output,
        parts: Vec::new(),
        dtype: None,
        max_shard: 5 << 30,
        is_forced: false,
    }
}

/// Upstream's form, converted with the same language model and CLIP, is the folder that training
/// made, tensor by tensor.
#[test]
fn what_is_exported_converts_back_to_the_same_model() {
    for model in models() {
        let folder = model.convert("f32");
        let scratch = tempfile::tempdir().unwrap();
        let (file, now) = trained(&folder, scratch.path());
        let config = Config::read(&folder.join("config.json")).unwrap();
        let whole = scratch.path().join("folder");
        export(&options(&folder, &file, whole.clone()), &|_, _| {}).unwrap();
        let mut found = vec![whole];
        for ending in ["pt", "safetensors"] {
            let output = scratch.path().join(format!("exported.{ending}"));
            export(&options(&folder, &file, output.clone()), &|_, _| {}).unwrap();
            let again = export(&options(&folder, &file, output.clone()), &|_, _| {});
            assert!(again.unwrap_err().to_string().contains("--force"));
            Checkpoint::open(&output).unwrap().verify().unwrap();
            let back = scratch.path().join(ending);
            let from = convert::Options {
                flamingo: output,
                output: back.clone(),
                ..model.conversion(StoredDType::F32)
            };
            convert::convert(&from, &|_, _| {}).unwrap();
            found.push(back);
        }
        for back in found {
            let weights = Weights::open(&back).unwrap();
            for (name, shape) in config.tensors() {
                let is_made_up = name == "language.head.weight";
                let same = values(&weights, &name, &shape) == now[&name];
                assert!(same || is_made_up, "{}: {}: {name}", model.name, back.display());
            }
            assert!(medflamingo::engine::ModelFolder::open(&back).is_ok());
        }
        let left = std::fs::read_dir(scratch.path()).unwrap().flatten();
        let partial = left.filter(|e| e.file_name().to_string_lossy().contains("partial"));
        assert_eq!(partial.count(), 0);
    }
}

/// A folder may hold what was trained in fewer bits: each element rounded once.
#[test]
fn a_folder_is_exported_in_another_type() {
    let (folder, scratch, file, now) = trained_once();
    let output = scratch.path().join("bf16");
    let of_type = |output: &Path| Options {
        dtype: Some(StoredDType::Bf16),
        ..options(&folder, &file, output.to_path_buf())
    };
    export(&of_type(&output), &|_, _| {}).unwrap();
    let config = Config::read(&output.join("config.json")).unwrap();
    assert_eq!(config.dtype, StoredDType::Bf16);
    let weights = Weights::open(&output).unwrap();
    for (name, shape) in config.tensors() {
        let rounded: Vec<f32> =
            now[&name].iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
        assert_eq!(values(&weights, &name, &shape), rounded, "{name}");
    }
    assert!(convert::verify::verify(&output, &|_, _| {}).is_ok());
    let e = export(&of_type(&scratch.path().join("a.pt")), &|_, _| {}).unwrap_err().to_string();
    assert!(e.contains("a.pt") && e.contains("f32"), "{e}");
}

/// Parts of a run go into the folder of another: the others stay as that one has them.
#[test]
fn parts_of_what_was_trained_are_taken_and_no_others() {
    let (folder, scratch, file, now) = trained_once();
    let (before, output) = (Weights::open(&folder).unwrap(), scratch.path().join("part"));
    let parts = vec!["resampler".parse().unwrap()];
    let of_part = Options { parts, ..options(&folder, &file, output.clone()) };
    export(&of_part, &|_, _| {}).unwrap();
    let after = Weights::open(&output).unwrap();
    let mut changed = 0;
    for (name, shape) in Config::read(&folder.join("config.json")).unwrap().tensors() {
        let (old, new) = (values(&before, &name, &shape), values(&after, &name, &shape));
        let is_taken = name.starts_with("resampler.");
        assert_eq!(new, if is_taken { now[&name].clone() } else { old.clone() }, "{name}");
        changed += usize::from(!is_taken && now[&name] != old);
    }
    assert!(changed > 0, "something that was not taken was trained");
}

/// The keys of upstream's own checkpoint, no more and no less.
#[test]
fn keys_and_shapes_are_upstreams() {
    for model in models() {
        let folder = model.convert("f32");
        let scratch = tempfile::tempdir().unwrap();
        let (file, _) = trained(&folder, scratch.path());
        let output = scratch.path().join("a.pt");
        export(&options(&folder, &file, output.clone()), &|_, _| {}).unwrap();
        let list = |path: &Path| {
            let checkpoint = Checkpoint::open(path).unwrap();
            let all = checkpoint.iter().map(|(n, e)| (n.to_string(), e.shape.clone()));
            all.collect::<BTreeMap<_, _>>()
        };
        let upstream = list(&model.conversion(StoredDType::F32).flamingo);
        // Buffers that every load computes again.
        let ours = list(&output);
        let is_buffer = |n: &str| n.contains("inv_freq") || n.contains("attention.bias");
        let other = |n: &str| n.contains("masked_bias") || n.contains("position_ids");
        // Of a tied head upstream's filter leaves a second name.
        let config = Config::read(&folder.join("config.json")).unwrap();
        let tied = |n: &str| config.language.tied_head && n == "lang_encoder.lm_head.weight";
        let upstream: BTreeMap<_, _> =
            upstream.into_iter().filter(|(n, _)| !is_buffer(n) && !other(n) && !tied(n)).collect();
        assert_eq!(ours, upstream, "{}", model.name);
    }
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let models = models();
    let (a, b) = (models[0].convert("f32"), models[1].convert("f32"));
    let scratch = tempfile::tempdir().unwrap();
    let (file, _) = trained(&a, scratch.path());
    let output = scratch.path().join("a.pt");
    let e = export(&options(&b, &file, output.clone()), &|_, _| {}).unwrap_err().to_string();
    assert!(e.contains("another model") && !output.exists(), "{e}");
}

/// GPT-NeoX's head is in upstream's form whatever was trained, and there only as elements.
#[test]
fn a_quantised_head_is_no_part_of_upstreams_form() {
    let neox = models().into_iter().find(|m| m.name == "neox-tiny").unwrap();
    let folder = neox.convert("f32");
    let scratch = tempfile::tempdir().unwrap();
    let quantized = scratch.path().join("int8");
    let choice = Choice { weights: Precision::Int8, parts: vec![Part::Language, Part::Head] };
    let how = quantize::Options {
        model: folder.clone(),
        output: quantized.clone(),
        choice,
        max_shard: 1 << 30,
        is_forced: false,
        device: Device::Host,
        threads: 1,
    };
    quantize::quantize(&how, &|_, _| {}).unwrap();
    let (file, _) = trained(&folder, scratch.path());
    let output = scratch.path().join("a.pt");
    let e = export(&options(&quantized, &file, output.clone()), &|_, _| {}).unwrap_err();
    let e = e.to_string();
    assert!(e.contains("language.head.weight") && e.contains("--model"), "{e}");
    assert!(!output.exists());
    export(&options(&folder, &file, output.clone()), &|_, _| {}).unwrap();
    let whole = scratch.path().join("folder");
    export(&options(&quantized, &file, whole.clone()), &|_, _| {}).unwrap();
    medflamingo::convert::verify::verify(&whole, &|_, _| {}).unwrap();
}

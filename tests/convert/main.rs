//! Conversion of upstream's files as a user runs it: what comes out, and what is refused.

mod made;
mod refused;

use medflamingo::DType;
use medflamingo::checkpoint::{Checkpoint, Entry};
use medflamingo::convert::{NewHeadRows, Options};
use medflamingo::model::config::StoredDType;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Tensors of a checkpoint, to be changed and written again as safetensors.
type File = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn load(path: &Path) -> File {
    let read = |(name, entry): (&str, &Entry)| match entry.dtype {
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

fn tools(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_medflamingo-tools")).args(arguments).output().unwrap()
}

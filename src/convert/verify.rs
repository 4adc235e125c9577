//! Recomputes what a model folder says about itself.

use super::LEDGER;
use super::ledger::{FileSum, Ledger};
use super::pieces::hex;
use super::quantize::matrix;
use super::synth::CHECKSUMS;
use super::write::Progress;
use crate::model::Config;
use crate::weights::Weights;
use crate::{DType, Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

/// What was compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Where the checksums were found.
    pub checksums: String,
    /// Files and tensors whose bytes are as they were written.
    pub files: usize,
    pub tensors: usize,
    /// Tensors whose shape and type follow from config.json.
    pub shapes: usize,
    pub bytes: u64,
}

/// The list of checksums that `synth` writes.
#[derive(Deserialize)]
struct Checksums {
    files: Vec<FileSum>,
}

/// Compares every tensor's shape and type with `config.json`, the tokenizer with the vocabulary,
/// and every byte with the checksums in `conversion.json` or `checksums.json`.
///
/// # Errors
/// The first thing that is not as it was written.
pub fn verify(folder: &Path, progress: &Progress) -> Result<Report> {
    let config = Config::read(&folder.join("config.json"))?;
    let mut report = Report { shapes: shapes(folder, &config)?, ..Report::default() };
    tokens(folder, &config)?;
    let (ledger, files) = listed(folder)?;
    report.checksums = if ledger.is_some() { LEDGER } else { CHECKSUMS }.into();
    let tensors = ledger.map(|l| l.tensors).unwrap_or_default();
    let tensors = tensors.into_iter().map(|t| (t.name, t.sha256)).collect();
    let total = files.iter().map(|f| f.bytes).sum();
    for file in &files {
        check_file(folder, file, report.bytes, total, progress)?;
        report.files += 1;
        report.bytes += file.bytes;
    }
    report.tensors = check_tensors(folder, &tensors)?;
    Ok(report)
}

/// The files of a folder with their checksums, and the ledger if a conversion made it.
///
/// # Errors
/// A folder without either list; names that leave the folder.
pub(super) fn listed(folder: &Path) -> Result<(Option<Ledger>, Vec<FileSum>)> {
    let (ledger, list) = (folder.join(LEDGER), folder.join(CHECKSUMS));
    let read = |path: &Path| -> Result<Vec<u8>> {
        const MOST: u64 = 256 << 20;
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        file.take(MOST).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
        Ok(bytes)
    };
    let odd = |path: &Path, e| Error::invalid(path.display(), "checksums of a model folder", e);
    let (ledger, files) = if ledger.exists() {
        let all: Ledger = serde_json::from_slice(&read(&ledger)?).map_err(|e| odd(&ledger, e))?;
        let files = all.files.clone();
        (Some(all), files)
    } else if list.exists() {
        let all: Checksums = serde_json::from_slice(&read(&list)?).map_err(|e| odd(&list, e))?;
        (None, all.files)
    } else {
        let expected = format!("{LEDGER} or {CHECKSUMS}");
        return Err(Error::invalid(folder.display(), expected, "neither")
            .advise("only folders made by `convert`, `quantize` or `synth` have checksums"));
    };
    let is_plain = |name: &str| {
        matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)])
    };
    match files.iter().find(|f| !is_plain(&f.name)) {
        Some(file) => Err(Error::invalid(folder.display(), "plain file names", &file.name)),
        None => Ok((ledger, files)),
    }
}

/// Every tensor that config.json implies is there, matrices with scales if they are codes, and no
/// other.
fn shapes(folder: &Path, config: &Config) -> Result<usize> {
    let weights = Weights::open(folder)?;
    let dtype = DType::from(config.dtype);
    if weights.dtype() != dtype {
        let who = format!("{}: type of the weights", folder.display());
        return Err(Error::invalid(who, dtype, weights.dtype()));
    }
    let specs = config.tensors();
    for (name, shape) in &specs {
        match matrix(name, shape) {
            Some((at, rows, cols)) => weights.matrix(at, rows, cols).map(drop)?,
            None => weights.get(name, shape).map(drop)?,
        }
    }
    match weights.unused().first() {
        Some(name) => {
            let who = format!("{}: {name}", folder.display());
            Err(Error::invalid(who, "only tensors that config.json implies", "another"))
        }
        None => Ok(specs.len()),
    }
}

fn tokens(folder: &Path, config: &Config) -> Result<()> {
    let tokenizer = crate::text::Tokenizer::open(folder)?;
    let (s, t) = (tokenizer.specials(), &config.tokens);
    let found = (tokenizer.vocab_size(), s.end_of_chunk, s.image, s.pad, tokenizer.leading());
    let expected = (config.language.vocabulary, t.end_of_chunk, t.image, t.pad, t.leading);
    if found != expected {
        let who =
            format!("{}: tokens, <|endofchunk|>, <image>, padding, leading", folder.display());
        return Err(Error::invalid(who, format!("{expected:?}"), format!("{found:?}")));
    }
    Ok(())
}

fn check_file(
    folder: &Path,
    sum: &FileSum,
    before: u64,
    total: u64,
    progress: &Progress,
) -> Result<()> {
    let path = folder.join(&sum.name);
    let mut file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(|e| Error::io("read", &path, e))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        bytes += n as u64;
        progress(before + bytes, total);
    }
    let (who, found) = (path.display(), hex(hash));
    if bytes != sum.bytes {
        return Err(Error::invalid(who, format!("{} bytes", sum.bytes), format!("{bytes} bytes")));
    }
    if found != sum.sha256 {
        return Err(Error::invalid(who, format!("sha256 {}", sum.sha256), found)
            .advise("the file has changed since it was written; convert again"));
    }
    Ok(())
}

fn check_tensors(folder: &Path, sums: &BTreeMap<String, String>) -> Result<usize> {
    if sums.is_empty() {
        return Ok(0);
    }
    let weights = Weights::open(folder)?;
    let mut left: BTreeSet<&str> = sums.keys().map(String::as_str).collect();
    for (name, entry) in weights.iter() {
        let Some(expected) = sums.get(name) else { continue };
        let mut hash = Sha256::new();
        entry.read(&mut |bytes| {
            hash.update(bytes);
            Ok(())
        })?;
        let found = hex(hash);
        if found != *expected {
            let who = format!("{}: {name}", folder.display());
            return Err(Error::invalid(who, format!("sha256 {expected}"), found));
        }
        left.remove(name);
    }
    match left.first() {
        Some(name) => Err(Error::invalid(folder.display(), format!("tensor {name}"), "none")),
        None => Ok(sums.len()),
    }
}

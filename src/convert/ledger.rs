//! What became of every source key, and what filled every target tensor.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

/// The record of a conversion; written as `conversion.json` into the model folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// Program and version that converted.
    pub program: String,
    /// Storage type of every weight written.
    pub dtype: String,
    pub sources: Vec<SourceFile>,
    /// Decisions that are not visible in a tensor's line.
    pub notes: Vec<String>,
    /// How rows of the output head were made that no source has.
    pub new_head_rows: String,
    /// Ids that generation never returns.
    pub suppress_tokens: Vec<u32>,
    pub keys: Vec<Key>,
    pub tensors: Vec<Target>,
    /// Files of the model folder, this one excepted.
    pub files: Vec<FileSum>,
}

/// One of the inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceFile {
    /// `language-model`, `vision` or `flamingo`.
    pub role: String,
    pub path: String,
    pub format: String,
    pub tensors: usize,
    /// Contents that are not tensors of the model, such as optimiser state, with the reason.
    pub ignored: Vec<(String, String)>,
}

/// One key of a source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// The role of its source.
    pub source: String,
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    #[serde(flatten)]
    pub fate: Fate,
}

/// What became of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "fate", content = "why")]
pub enum Fate {
    /// It is (part of) this target tensor.
    Mapped(String),
    /// It holds the same values as this other key; checked.
    Tied(String),
    /// It is not used, for this reason.
    Ignored(String),
}

/// One tensor of the model folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Target {
    pub name: String,
    pub shape: Vec<usize>,
    /// `role:key` of everything that fills it, in row order.
    pub from: Vec<String>,
    /// What was done, such as `stacked` or `transposed`.
    pub how: String,
    /// The type or types it had in the sources.
    pub source_dtype: String,
    /// Of a matrix that was quantised: the root of the mean square difference from its source,
    /// relative to that of its weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_error: Option<f64>,
    /// The file that holds it and the SHA-256 of its bytes there; empty in a dry run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
}

/// One file of a model folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

impl Ledger {
    /// Pretty JSON.
    ///
    /// # Errors
    /// Never for a ledger that was made here.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|e| Error::invalid("ledger", "JSON", e))
    }

    /// Counts of mapped, tied and ignored keys.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |of: fn(&Fate) -> bool| self.keys.iter().filter(|k| of(&k.fate)).count();
        (
            count(|f| matches!(f, Fate::Mapped(_))),
            count(|f| matches!(f, Fate::Tied(_))),
            count(|f| matches!(f, Fate::Ignored(_))),
        )
    }
}

/// The ledger for people: sources, ignored keys by reason, targets with equal layers folded, notes.
impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for s in &self.sources {
            writeln!(f, "{:15} {} ({}, {} tensors)", s.role, s.path, s.format, s.tensors)?;
            for (name, why) in &s.ignored {
                writeln!(f, "{:15}   left out {name}: {why}", "")?;
            }
        }
        let (mapped, tied, ignored) = self.counts();
        writeln!(f, "\nkeys            {mapped} mapped, {tied} tied, {ignored} ignored")?;
        for (why, names) in self.ignored() {
            writeln!(f, "  {:5} ignored: {why}\n        {}", names.len(), shortened(&names))?;
        }
        writeln!(f, "\ntensors         {} in {}", self.tensors.len(), self.dtype)?;
        for (line, count) in self.folded() {
            let times = if count > 1 { format!("x{count}") } else { String::new() };
            writeln!(f, "  {times:>4} {line}")?;
        }
        writeln!(f, "\nnew head rows   {}", self.new_head_rows)?;
        let errors: Vec<f64> = self.tensors.iter().filter_map(|t| t.relative_error).collect();
        if let Some(most) = errors.iter().copied().reduce(f64::max) {
            let mean = errors.iter().sum::<f64>() / errors.len() as f64;
            let count = errors.len();
            writeln!(f, "relative error  {mean:.4}, at most {most:.4}, of {count} matrices")?;
        }
        for note in &self.notes {
            writeln!(f, "note            {note}")?;
        }
        for file in &self.files {
            let short: String = file.sha256.chars().take(16).collect();
            writeln!(f, "file            {} ({} bytes, sha256 {short}..)", file.name, file.bytes)?;
        }
        Ok(())
    }
}

impl Ledger {
    fn ignored(&self) -> BTreeMap<String, Vec<String>> {
        let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for key in &self.keys {
            if let Fate::Ignored(why) = &key.fate {
                let name = format!("{}:{}", key.source, key.name);
                by_reason.entry(why.clone()).or_default().push(name);
            }
        }
        by_reason
    }

    /// Lines that differ in numbers only, once, with how many there are.
    fn folded(&self) -> Vec<(String, usize)> {
        let mut lines: Vec<(String, usize)> = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for t in &self.tensors {
            let sizes: Vec<_> = t.shape.iter().map(usize::to_string).collect();
            let from = t.from.iter().map(|k| unnumbered(k)).collect::<Vec<_>>().join(" + ");
            let name = unnumbered(&t.name);
            let how = if t.how.is_empty() { String::new() } else { format!(", {}", t.how) };
            let shape = sizes.join(", ");
            let line = format!("{name} ({shape}) <- {from} [{}{how}]", t.source_dtype);
            match places.get(&line) {
                Some(&at) => lines[at].1 += 1,
                None => {
                    places.insert(line.clone(), lines.len());
                    lines.push((line, 1));
                }
            }
        }
        lines
    }
}

/// `layers.12.` as `layers.N.`, where the number is the first one in the name.
fn unnumbered(name: &str) -> String {
    let mut is_first = true;
    let part = |part: &str| {
        let is_number = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if is_number && std::mem::take(&mut is_first) { "N".to_string() } else { part.to_string() }
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// The first few names.
pub(super) fn shortened(names: &[String]) -> String {
    const MOST: usize = 4;
    let mut text = names.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > MOST {
        let _ = write!(text, " and {} more", names.len() - MOST);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_fold_into_one_line() {
        let target = |n: usize| Target {
            name: format!("language.layers.{n}.norm_1.weight"),
            shape: vec![8],
            from: vec![format!("language-model:model.layers.{n}.input_layernorm.weight")],
            how: String::new(),
            source_dtype: "f16".into(),
            ..Target::default()
        };
        let ledger = Ledger { tensors: (0..32).map(target).collect(), ..Ledger::default() };
        let text = ledger.to_string();
        assert!(text.contains("x32 language.layers.N.norm_1.weight (8) <- "), "{text}");
        let json = ledger.to_json().unwrap();
        assert_eq!(serde_json::from_slice::<Ledger>(&json).unwrap(), ledger);
    }
}

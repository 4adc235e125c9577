//! One input of a conversion: its tensors under canonical names, and what became of each.

use super::ledger::{Fate, Key, SourceFile, shortened};
use crate::checkpoint::{Checkpoint, Entry};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// Bytes compared at a time.
const CHUNK: usize = 1 << 20;

/// A checkpoint whose keys are accounted for one by one.
pub(super) struct Source {
    /// `language-model`, `vision` or `flamingo`.
    pub role: &'static str,
    pub checkpoint: Checkpoint,
    keys: Vec<Tracked>,
    by_name: HashMap<String, usize>,
}

struct Tracked {
    raw: String,
    fate: Option<Fate>,
}

impl Source {
    /// Gives each key its canonical name. Keys with the same one must be equal: the first is kept,
    /// the others are tied to it.
    ///
    /// # Errors
    /// If two keys with the same meaning hold different values.
    pub(super) fn new(
        role: &'static str,
        checkpoint: Checkpoint,
        canonical: impl Fn(&str) -> String,
    ) -> Result<Self> {
        let mut source = Source { role, checkpoint, keys: Vec::new(), by_name: HashMap::new() };
        let names: Vec<String> = source.checkpoint.names().map(str::to_string).collect();
        for raw in names {
            let (name, at) = (canonical(&raw), source.keys.len());
            let mut fate = None;
            match source.by_name.get(&name) {
                None => {
                    source.by_name.insert(name, at);
                }
                Some(&first) => {
                    let first = source.keys[first].raw.clone();
                    source.check_equal(&first, &raw)?;
                    fate = Some(Fate::Tied(first));
                }
            }
            source.keys.push(Tracked { raw, fate });
        }
        Ok(source)
    }

    pub(super) fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// The tensor with this canonical name.
    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).and_then(|&at| self.checkpoint.get(&self.keys[at].raw))
    }

    /// Canonical names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// One more than the largest number that follows `start` in a name.
    pub(super) fn layers(&self, start: &str) -> usize {
        let number = |n: &str| n.strip_prefix(start)?.split('.').next()?.parse::<usize>().ok();
        self.names().filter_map(number).max().map_or(0, |last| last.saturating_add(1))
    }

    /// `role:key` of the tensor with this canonical name, as the ledger has it.
    pub(super) fn label(&self, name: &str) -> String {
        let raw = self.by_name.get(name).map_or(name, |&at| self.keys[at].raw.as_str());
        format!("{}:{raw}", self.role)
    }

    /// Says what became of the tensor with this canonical name. The first word counts.
    pub(super) fn settle(&mut self, name: &str, fate: Fate) {
        if let Some(&at) = self.by_name.get(name) {
            self.keys[at].fate.get_or_insert(fate);
        }
    }

    /// Settles every key that `why` has a reason for and that nothing has used.
    pub(super) fn ignore(&mut self, why: impl Fn(&str) -> Option<String>) {
        let names: Vec<String> = self.by_name.keys().cloned().collect();
        for name in names {
            if let Some(reason) = why(&name) {
                self.settle(&name, Fate::Ignored(reason));
            }
        }
    }

    /// # Errors
    /// Names the keys that nothing has explained.
    pub(super) fn check_explained(&self, advice: &str) -> Result<()> {
        let left = self.keys.iter().filter(|k| k.fate.is_none());
        let left: Vec<String> = left.map(|k| format!("`{}`", k.raw)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let who = self.path().display();
        Err(Error::invalid(who, "only keys that the model has", shortened(&left)).advise(advice))
    }

    /// For the ledger.
    pub(super) fn file(&self) -> SourceFile {
        SourceFile {
            role: self.role.into(),
            path: self.path().display().to_string(),
            format: self.checkpoint.format().to_string(),
            tensors: self.checkpoint.len(),
            ignored: self.checkpoint.ignored().to_vec(),
        }
    }

    /// Every key with its fate, for the ledger.
    pub(super) fn into_keys(self) -> Vec<Key> {
        let entries = self.checkpoint.iter();
        let keys = self.keys.iter().zip(entries).map(|(key, (_, entry))| Key {
            source: self.role.into(),
            name: key.raw.clone(),
            dtype: entry.dtype.to_string(),
            shape: entry.shape.clone(),
            fate: key.fate.clone().unwrap_or(Fate::Ignored("unexplained".into())),
        });
        keys.collect()
    }

    /// Settles `name`, if it is there, as another name of `other`, which must be there too.
    ///
    /// # Errors
    /// If their values differ; the message has both keys.
    pub(super) fn tie(&mut self, name: &str, other: &str) -> Result<()> {
        let raw = |n: &str| self.by_name.get(n).map(|&at| self.keys[at].raw.clone());
        if let (Some(a), Some(b)) = (raw(name), raw(other)) {
            self.check_equal(&b, &a)?;
            self.settle(name, Fate::Tied(b));
        }
        Ok(())
    }

    fn check_equal(&self, first: &str, other: &str) -> Result<()> {
        let (Some(a), Some(b)) = (self.checkpoint.get(first), self.checkpoint.get(other)) else {
            return Ok(());
        };
        let is_equal =
            a.is_alias_of(b) || (a.dtype == b.dtype && a.shape == b.shape && has_same_bytes(a, b));
        if is_equal {
            return Ok(());
        }
        let who = format!("{}: {other}", self.path().display());
        Err(Error::invalid(who, format!("the same values as {first}"), "other values"))
    }
}

/// Compares in pieces where the file allows it.
fn has_same_bytes(a: &Entry, b: &Entry) -> bool {
    match (a.contiguous(), b.contiguous()) {
        (Some(a), Some(b)) => a.chunks(CHUNK).eq(b.chunks(CHUNK)),
        _ => a.to_vec() == b.to_vec(),
    }
}

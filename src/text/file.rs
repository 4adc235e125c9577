//! `tokenizer.json`: the part of the format that LLaMA, MPT and GPT-NeoX use, read strictly.
//!
//! The file is data from strangers. It is parsed into plain structs here, with limits, and checked
//! as a whole; the tokenizers crate only ever sees a vocabulary and merges that have passed.

use crate::error::{Error, Result};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

/// Largest `tokenizer.json` that is read, in bytes (LLaMA's has 1.8 MB, GPT-NeoX's 2.1 MB).
pub const MAX_FILE: u64 = 64 << 20;
/// Most tokens, the added ones included.
pub const MAX_TOKENS: usize = 1 << 20;
/// Longest token in bytes.
pub const MAX_TOKEN_BYTES: usize = 1024;

/// One entry of `added_tokens`: a token found in the text before the model sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    #[serde(default)]
    pub normalized: bool,
    #[serde(default)]
    pub special: bool,
}

impl Added {
    /// A special token that is matched as it stands, as Flamingo's markers are.
    pub fn special(id: u32, content: &str) -> Self {
        Added {
            id,
            content: content.to_string(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: true,
        }
    }
}

/// The `model` of a `tokenizer.json`: byte-pair encoding.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bpe {
    #[serde(rename = "type", default = "bpe")]
    pub kind: String,
    #[serde(default)]
    pub dropout: Option<f32>,
    #[serde(default)]
    pub unk_token: Option<String>,
    #[serde(default)]
    pub continuing_subword_prefix: Option<String>,
    #[serde(default)]
    pub end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub fuse_unk: bool,
    #[serde(default)]
    pub byte_fallback: bool,
    #[serde(default)]
    pub ignore_merges: bool,
    /// Token and id, in the order of the file.
    #[serde(deserialize_with = "read_vocab", serialize_with = "write_vocab")]
    pub vocab: Vec<(String, u32)>,
    /// Pairs to join, most urgent first.
    #[serde(deserialize_with = "read_merges", serialize_with = "write_merges")]
    pub merges: Vec<(String, String)>,
}

fn bpe() -> String {
    "BPE".into()
}

/// How the text of one segment is prepared for the model, and how tokens become text again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// GPT-2's byte alphabet (MPT, GPT-NeoX): the text is split by a fixed pattern first.
    ByteLevel { nfc: bool, prefix_space: bool, split: bool },
    /// SentencePiece (LLaMA): `▁` before each segment and for each space; other bytes as `<0xNN>`.
    SentencePiece,
}

/// A whole `tokenizer.json`. Truncation and padding are dropped: neither belongs in a prompt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenizerFile {
    #[serde(default = "version")]
    pub version: String,
    #[serde(skip_deserializing)]
    truncation: (),
    #[serde(skip_deserializing)]
    padding: (),
    #[serde(default)]
    pub added_tokens: Vec<Added>,
    #[serde(default)]
    pub normalizer: Value,
    #[serde(default)]
    pub pre_tokenizer: Value,
    #[serde(default)]
    pub post_processor: Value,
    #[serde(default)]
    pub decoder: Value,
    pub model: Bpe,
}

fn version() -> String {
    "1.0".into()
}

impl TokenizerFile {
    /// The SentencePiece form of `vocab` and `merges`, as transformers' fast LLaMA class writes it.
    pub fn llama(vocab: Vec<(String, u32)>, merges: Vec<(String, String)>) -> Self {
        let space = || serde_json::json!({"String": " "});
        let bar = || serde_json::json!({"String": "▁"});
        TokenizerFile {
            version: version(),
            truncation: (),
            padding: (),
            added_tokens: Vec::new(),
            normalizer: serde_json::json!({"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": space(), "content": "▁"}]}),
            pre_tokenizer: Value::Null,
            post_processor: Value::Null,
            decoder: serde_json::json!({"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": bar(), "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
            model: Bpe {
                kind: bpe(),
                dropout: None,
                unk_token: None,
                continuing_subword_prefix: None,
                end_of_word_suffix: None,
                fuse_unk: true,
                byte_fallback: true,
                ignore_merges: false,
                vocab,
                merges,
            },
        }
    }

    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// A file that is missing, over [`MAX_FILE`], not JSON, or outside the supported part of the
    /// format; the message names the file and the key. Ids are checked by
    /// [`TokenizerFile::tokens`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read_limited(path, MAX_FILE)?).map_err(|e| e.within(path.display()))
    }

    /// [`TokenizerFile::read`] from bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let file: TokenizerFile =
            serde_json::from_slice(bytes).map_err(|e| match kind_of_model(bytes) {
                Some(kind) if kind != "BPE" => wrong_model(&kind),
                _ => Error::invalid("tokenizer.json", "a tokenizers file with a BPE model", e),
            })?;
        file.check()?;
        Ok(file)
    }

    /// The whole file as JSON, as any reader of the format takes it.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
            .map_err(|e| Error::invalid("tokenizer.json", "a vocabulary that fits JSON", e))
    }

    fn check(&self) -> Result<()> {
        let model = &self.model;
        if model.kind != "BPE" {
            return Err(wrong_model(&model.kind));
        }
        let set = |s: &Option<String>| s.as_deref().is_some_and(|s| !s.is_empty());
        if set(&model.continuing_subword_prefix) || set(&model.end_of_word_suffix) {
            let who = "model.continuing_subword_prefix, end_of_word_suffix";
            return Err(Error::invalid(who, "null", "a string"));
        }
        if model.dropout.is_some_and(|p| p != 0.0) {
            return Err(Error::invalid("model.dropout", "null", "a probability")
                .advise("dropout makes ids random; remove it from the file"));
        }
        self.family().map(drop)
    }

    /// Every token by id.
    ///
    /// # Errors
    /// Ids that are used twice or leave gaps, tokens that are too many, too long or empty.
    pub fn tokens(&self) -> Result<Vec<&str>> {
        let added = self.added_tokens.iter().map(|a| (a.content.as_str(), a.id));
        let all = self.model.vocab.iter().map(|(t, id)| (t.as_str(), *id)).chain(added);
        let count = self.model.vocab.len() + self.added_tokens.len();
        if count > MAX_TOKENS {
            return Err(Error::invalid("vocab", format!("at most {MAX_TOKENS} tokens"), count));
        }
        let mut by_id: Vec<Option<&str>> = vec![None; count];
        let mut seen = HashMap::with_capacity(count);
        for (token, id) in all {
            if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
                let expected = format!("tokens of 1 to {MAX_TOKEN_BYTES} bytes");
                return Err(Error::invalid(format!("token {id}"), expected, token.len()));
            }
            let slot = by_id.get_mut(id as usize).ok_or_else(|| {
                Error::invalid("vocab", format!("ids below {count}"), format!("{token:?}: {id}"))
            })?;
            if slot.replace(token).is_some_and(|old| old != token)
                || seen.insert(token, id).is_some_and(|old| old != id)
            {
                let found = format!("{token:?} and id {id} paired more than one way");
                return Err(Error::invalid("vocab", "one id for each token", found));
            }
        }
        let used = by_id.iter().take_while(|t| t.is_some()).count();
        if used != seen.len() {
            let found = format!("no token {used}, but {} tokens in all", seen.len());
            return Err(Error::invalid("vocab", "ids without gaps", found));
        }
        Ok(by_id.into_iter().flatten().collect())
    }

    /// Which of the supported tokenizer families this file describes.
    pub fn family(&self) -> Result<Family> {
        let kinds = |v: &Value, list: &str| -> Vec<Value> {
            match v.get(list).and_then(Value::as_array) {
                Some(items) => items.clone(),
                None if v.is_null() => Vec::new(),
                None => vec![v.clone()],
            }
        };
        let normalizers = kinds(&self.normalizer, "normalizers");
        let pre_tokenizers = kinds(&self.pre_tokenizer, "pretokenizers");
        let decoders = kinds(&self.decoder, "decoders");
        if pre_tokenizers.is_empty() {
            same("normalizer", &normalizers, &kinds(&LLAMA.normalizer, "normalizers"))?;
            same("decoder", &decoders, &kinds(&LLAMA.decoder, "decoders"))?;
            if !self.model.byte_fallback {
                return Err(Error::invalid("model.byte_fallback", "true", "false"));
            }
            return Ok(Family::SentencePiece);
        }
        let kind = |v: &Value| v.get("type").and_then(Value::as_str).map(str::to_string);
        let one = |who: &str, items: &[Value]| match items {
            [v] if kind(v).as_deref() == Some("ByteLevel") => Ok(v.clone()),
            _ => Err(unsupported(who, items, "one ByteLevel")),
        };
        let pre = one("pre_tokenizer", &pre_tokenizers)?;
        let nfc = normalizers == [serde_json::json!({"type": "NFC"})];
        if !nfc {
            same("normalizer", &normalizers, &[])?;
        }
        one("decoder", &decoders)?;
        let flag = |key: &str, default| match pre.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => Err(Error::invalid(format!("pre_tokenizer.{key}"), "true or false", v)),
        };
        let (prefix_space, split) = (flag("add_prefix_space", true)?, flag("use_regex", true)?);
        Ok(Family::ByteLevel { nfc, prefix_space, split })
    }
}

static LLAMA: std::sync::LazyLock<TokenizerFile> =
    std::sync::LazyLock::new(|| TokenizerFile::llama(Vec::new(), Vec::new()));

fn same(who: &str, found: &[Value], expected: &[Value]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let expected = match expected {
        [] => "null".into(),
        _ => Value::from(expected.to_vec()).to_string(),
    };
    Err(unsupported(who, found, &expected))
}

fn unsupported(who: &str, found: &[Value], expected: &str) -> Error {
    let mut found = Value::from(found.to_vec()).to_string();
    if found.len() > 300 {
        let cut = (0..=300).rev().find(|&i| found.is_char_boundary(i)).unwrap_or(0);
        found.truncate(cut);
        found.push_str("...");
    }
    Error::invalid(who, expected, found).advise(
        "only the tokenizers of LLaMA, MPT and GPT-NeoX are supported; for a LLaMA folder that \
         also holds tokenizer.model, take tokenizer.json away and that file is used",
    )
}

fn wrong_model(kind: &str) -> Error {
    Error::invalid("model.type", "BPE", kind)
        .advise("LLaMA, MPT and GPT-NeoX use byte-pair encoding; other models are not supported")
}

fn kind_of_model(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Outer {
        model: Inner,
    }
    #[derive(Deserialize)]
    struct Inner {
        #[serde(rename = "type")]
        kind: String,
    }
    serde_json::from_slice::<Outer>(bytes).ok().map(|o| o.model.kind)
}

/// The bytes of a file that may not be larger than `limit`.
pub(super) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::invalid(path.display(), format!("at most {limit} bytes"), "more"));
    }
    Ok(bytes)
}

fn read_vocab<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<(String, u32)>, D::Error> {
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<(String, u32)>;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a map from token to id")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::with_capacity(1 << 15);
            while let Some(entry) = map.next_entry()? {
                entries.push(entry);
            }
            Ok(entries)
        }
    }
    d.deserialize_map(Entries)
}

fn write_vocab<S: Serializer>(vocab: &[(String, u32)], s: S) -> Result<S::Ok, S::Error> {
    let mut map = s.serialize_map(Some(vocab.len()))?;
    for (token, id) in vocab {
        map.serialize_entry(token, id)?;
    }
    map.end()
}

fn read_merges<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<(String, String)>, D::Error> {
    struct Merges;
    impl<'de> Visitor<'de> for Merges {
        type Value = Vec<(String, String)>;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a list of merges")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut merges = Vec::with_capacity(1 << 16);
            while let Some(merge) = seq.next_element_seed(Merge)? {
                merges.push(merge);
            }
            Ok(merges)
        }
    }
    d.deserialize_seq(Merges)
}

/// `"a b"`, or `["a", "b"]` in files of tokenizers 0.20 and later.
struct Merge;

impl<'de> DeserializeSeed<'de> for Merge {
    type Value = (String, String);
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Merge {
    type Value = (String, String);
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a merge such as \"a b\" or [\"a\", \"b\"]")
    }
    fn visit_str<E: de::Error>(self, s: &str) -> Result<Self::Value, E> {
        match s.split_once(' ') {
            Some((a, b)) if !b.contains(' ') => Ok((a.to_string(), b.to_string())),
            _ => Err(E::invalid_value(de::Unexpected::Str(s), &self)),
        }
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (a, b) = (seq.next_element()?, seq.next_element()?);
        match (a, b, seq.next_element::<String>()?) {
            (Some(a), Some(b), None) => Ok((a, b)),
            _ => Err(de::Error::invalid_length(0, &self)),
        }
    }
}

fn write_merges<S: Serializer>(merges: &[(String, String)], s: S) -> Result<S::Ok, S::Error> {
    if merges.iter().any(|(a, b)| a.contains(' ') || b.contains(' ')) {
        return s.collect_seq(merges);
    }
    s.collect_seq(merges.iter().map(|(a, b)| format!("{a} {b}")))
}

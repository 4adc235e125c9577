//! SentencePiece's `tokenizer.model` (protobuf) to the `tokenizer.json` of the same BPE model.
//!
//! The result is what transformers' *fast* LLaMA class makes of the file, ids and merges alike
//! (`convert_slow_tokenizer.py`, `LlamaConverter`). Refused: Unigram, word and character models,
//! normalisation other than "identity", and user-defined symbols; LLaMA has none of them.

use super::file::TokenizerFile;
use super::prepare::set_template;
use crate::error::{Error, Result};
use std::cmp::Ordering;
use std::collections::HashMap;

/// Largest `tokenizer.model` that is read, in bytes (LLaMA's has 0.5 MB).
pub const MAX_MODEL: u64 = 8 << 20;
/// Longest piece in bytes; SentencePiece's own limit is 16 characters unless it is raised.
const MAX_PIECE: usize = 128;

/// A converted SentencePiece model and the names of its control pieces.
#[derive(Clone, Debug)]
pub struct SentencePiece {
    pub file: TokenizerFile,
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
}

/// Converts the bytes of a `tokenizer.model`.
///
/// # Errors
/// Bytes that are not such a file, or a model of another kind; never panics.
pub fn from_sentencepiece(bytes: &[u8]) -> Result<SentencePiece> {
    if bytes.len() as u64 > MAX_MODEL {
        return Err(Error::invalid("file", format!("at most {MAX_MODEL} bytes"), bytes.len()));
    }
    let model = Model::read(bytes)?;
    model.check()?;
    let vocab = model.pieces.iter().zip(0..).map(|(p, id)| (p.text.clone(), id)).collect();
    let mut file = TokenizerFile::llama(vocab, model.merges()?);
    let name = |id: i32| model.pieces.get(id as usize).map(|p| p.text.clone());
    let (bos, eos, unk) = (name(model.bos), name(model.eos), name(model.unk));
    file.model.unk_token = unk.clone();
    for (id, piece) in model.pieces.iter().enumerate() {
        if matches!(piece.kind, UNKNOWN | CONTROL) {
            file.added_tokens.push(super::file::Added::special(id as u32, &piece.text));
        }
    }
    set_template(&mut file, bos.as_ref().map(|_| model.bos as u32))?;
    Ok(SentencePiece { file, bos, eos, unk })
}

const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BPE: u64 = 2;

struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// The fields of `sentencepiece_model.proto` that decide ids, with that file's defaults.
struct Model {
    pieces: Vec<Piece>,
    model_type: u64,
    is_suffix: bool,
    unk: i32,
    bos: i32,
    eos: i32,
    has_charsmap: bool,
    adds_prefix: bool,
    removes_spaces: bool,
    escapes_spaces: bool,
}

impl Model {
    fn read(bytes: &[u8]) -> Result<Self> {
        let mut model = Model {
            pieces: Vec::new(),
            model_type: 1,
            is_suffix: false,
            unk: 0,
            bos: 1,
            eos: 2,
            has_charsmap: false,
            adds_prefix: true,
            removes_spaces: true,
            escapes_spaces: true,
        };
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(piece)) => model.pieces.push(Piece::read(piece)?),
                (2, Value::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Value::Bytes(normalizer)) => model.read_normalizer(normalizer)?,
                (1..=3, _) => return Err(malformed("a message", format!("field {number}"))),
                _ => {}
            }
        }
        Ok(model)
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Result<()> {
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (3, Value::Number(n)) => self.model_type = n,
                (24, Value::Number(n)) => self.is_suffix = n != 0,
                (40, Value::Number(n)) => self.unk = n as i32,
                (41, Value::Number(n)) => self.bos = n as i32,
                (42, Value::Number(n)) => self.eos = n as i32,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, bytes: &[u8]) -> Result<()> {
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (2, Value::Bytes(map)) => self.has_charsmap = !map.is_empty(),
                (3, Value::Number(n)) => self.adds_prefix = n != 0,
                (4, Value::Number(n)) => self.removes_spaces = n != 0,
                (5, Value::Number(n)) => self.escapes_spaces = n != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.model_type != BPE {
            let kind = match self.model_type {
                1 => "a Unigram model",
                3 => "a word model",
                4 => "a character model",
                _ => "no SentencePiece model",
            };
            return Err(Error::invalid("trainer_spec.model_type", "BPE, as LLaMA has", kind));
        }
        let refuse = |what: &str, expected: &str, found: &str| -> Result<()> {
            Err(Error::invalid(what, expected, found)
                .advise("only LLaMA's kind of SentencePiece model is supported"))
        };
        if self.has_charsmap {
            return refuse("normalizer_spec", "identity", "a character map");
        }
        if !self.adds_prefix || self.removes_spaces || !self.escapes_spaces || self.is_suffix {
            let expected = "a space added in front, every other space kept";
            return refuse("normalizer_spec", expected, "another treatment of spaces");
        }
        if let Some(piece) = self.pieces.iter().find(|p| p.kind == USER_DEFINED) {
            return refuse("pieces", "no user-defined symbols", &piece.text);
        }
        let is_unknown = |p: &Piece| p.kind == UNKNOWN;
        if !self.pieces.get(self.unk as usize).is_some_and(is_unknown) {
            return refuse("trainer_spec.unk_id", "the unknown piece", &self.unk.to_string());
        }
        for (who, id) in [("trainer_spec.bos_id", self.bos), ("trainer_spec.eos_id", self.eos)] {
            let is_control = self.pieces.get(id as usize).is_some_and(|p| p.kind == CONTROL);
            if id >= 0 && !is_control {
                return refuse(who, "a control piece", &id.to_string());
            }
        }
        Ok(())
    }

    /// Every way to split a piece into two pieces, the best-scored result first.
    ///
    /// Ties keep the order of the pieces, and splits of one piece are ordered by their parts' ids.
    fn merges(&self) -> Result<Vec<(String, String)>> {
        let mut ids: HashMap<&str, usize> = HashMap::with_capacity(self.pieces.len());
        for (id, piece) in self.pieces.iter().enumerate() {
            if ids.insert(&piece.text, id).is_some() {
                return Err(Error::invalid("pieces", "each piece once", &piece.text));
            }
        }
        let mut merges = Vec::new();
        for piece in &self.pieces {
            let mut splits: Vec<(usize, usize)> = piece
                .text
                .char_indices()
                .skip(1)
                .filter_map(|(at, _)| {
                    let (left, right) = piece.text.split_at(at);
                    Some((*ids.get(left)?, *ids.get(right)?))
                })
                .collect();
            splits.sort_unstable();
            merges.extend(splits.into_iter().map(|split| (piece.score, split)));
        }
        merges.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
        let text = |id: usize| self.pieces[id].text.clone();
        Ok(merges.into_iter().map(|(_, (a, b))| (text(a), text(b))).collect())
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Result<Self> {
        let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(text)) => {
                    let text = std::str::from_utf8(text).map_err(|e| malformed("UTF-8", e))?;
                    piece.text = text.to_string();
                }
                (2, Value::Float(score)) => piece.score = score,
                (3, Value::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        if piece.text.is_empty() || piece.text.len() > MAX_PIECE || !piece.score.is_finite() {
            let expected = format!("a piece of 1 to {MAX_PIECE} bytes with a score");
            let found = format!("{} bytes, score {}", piece.text.len(), piece.score);
            return Err(malformed(expected, found));
        }
        Ok(piece)
    }
}

fn malformed(expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::invalid("SentencePiece model", expected, found)
}

enum Value<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of one protobuf message, in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Other
            }
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(self.take(4)?);
                Value::Float(f32::from_le_bytes(bytes))
            }
            kind => return Err(malformed("protobuf fields", format!("wire type {kind}"))),
        };
        Ok(Some((key >> 3, value)))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        if length > self.0.len() as u64 {
            let found = format!("a field of {length} bytes with {} left", self.0.len());
            return Err(malformed("whole fields", found));
        }
        let (front, rest) = self.0.split_at(length as usize);
        self.0 = rest;
        Ok(front)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("numbers of up to 10 bytes", "a longer one"))
    }
}

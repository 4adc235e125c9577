//! What each token id contributes to the text: bytes, one fallback byte, or nothing.

use super::file::{Family, TokenizerFile};
use crate::error::{Error, Result};
use std::collections::HashSet;

/// What a token becomes when it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Plain text, or raw bytes of the byte-level alphabet.
    Bytes(&'a [u8]),
    /// One byte of a character that SentencePiece has no token for (`<0x0A>`).
    Fallback(u8),
}

/// The decoded form of every token, in one allocation.
#[derive(Debug)]
pub(super) struct Pieces {
    family: Family,
    bytes: Vec<u8>,
    /// Token `i` is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<usize>,
    is_special: Vec<bool>,
    longest: usize,
}

impl Pieces {
    /// The table of `file`.
    ///
    /// # Errors
    /// Ids that are not one to a token without gaps, or a vocabulary that lacks one of the 256 byte
    /// tokens: some text could not be encoded.
    pub fn new(file: &TokenizerFile) -> Result<Self> {
        let (family, tokens) = (file.family()?, file.tokens()?);
        let mut pieces = Pieces {
            family,
            bytes: Vec::with_capacity(8 * tokens.len()),
            ends: Vec::with_capacity(tokens.len()),
            is_special: vec![false; tokens.len()],
            longest: tokens.iter().map(|t| t.len()).max().unwrap_or(1),
        };
        for added in file.added_tokens.iter().filter(|a| a.special) {
            pieces.is_special[added.id as usize] = true;
        }
        let alphabet = Alphabet::new();
        pieces.check_bytes(&alphabet, &tokens)?;
        for token in tokens {
            match family {
                Family::ByteLevel { .. } => alphabet.decode(token, &mut pieces.bytes),
                Family::SentencePiece => {
                    for part in token.split('▁') {
                        pieces.bytes.extend_from_slice(part.as_bytes());
                        pieces.bytes.push(b' ');
                    }
                    pieces.bytes.pop();
                }
            }
            pieces.ends.push(pieces.bytes.len());
        }
        Ok(pieces)
    }

    /// Every byte has a token of its own that is not special, so any text can be encoded.
    fn check_bytes(&self, alphabet: &Alphabet, tokens: &[&str]) -> Result<()> {
        let plain: HashSet<&str> = tokens
            .iter()
            .zip(&self.is_special)
            .filter(|(token, is_special)| token.len() <= 6 && !**is_special)
            .map(|(token, _)| *token)
            .collect();
        for byte in 0..=255u8 {
            let token = match self.family {
                Family::ByteLevel { .. } => alphabet.chars[byte as usize].to_string(),
                Family::SentencePiece => format!("<0x{byte:02X}>"),
            };
            if !plain.contains(token.as_str()) {
                let expected = "a token for each of the 256 bytes, so that any text has ids";
                return Err(Error::invalid("model.vocab", expected, format!("no {token:?}")));
            }
        }
        Ok(())
    }

    pub fn family(&self) -> Family {
        self.family
    }

    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of the longest token.
    pub fn longest(&self) -> usize {
        self.longest
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.is_special.get(id as usize).copied().unwrap_or(false)
    }

    /// What `id` decodes to; `None` for an id that does not exist.
    pub fn get(&self, id: u32) -> Option<Piece<'_>> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        let bytes = &self.bytes[start..end];
        match (self.family, fallback_byte(bytes)) {
            (Family::SentencePiece, Some(byte)) => Some(Piece::Fallback(byte)),
            _ => Some(Piece::Bytes(bytes)),
        }
    }
}

/// The byte that `<0x0A>` stands for, by the same rule as the tokenizers crate.
fn fallback_byte(token: &[u8]) -> Option<u8> {
    match token {
        [b'<', b'0', b'x', digits @ .., b'>'] if digits.len() == 2 => {
            u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        }
        _ => None,
    }
}

/// GPT-2's printable character for each byte: itself where it prints, else 256 upwards in order.
struct Alphabet {
    chars: [char; 256],
    bytes: [Option<u8>; 512],
}

impl Alphabet {
    fn new() -> Self {
        let (mut chars, mut bytes) = (['\0'; 256], [None; 512]);
        let mut next = 256u32;
        for byte in 0..=255u8 {
            let code = match byte {
                0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
                _ => {
                    next += 1;
                    next - 1
                }
            };
            chars[byte as usize] = char::from_u32(code).unwrap_or('\0');
            bytes[code as usize] = Some(byte);
        }
        Alphabet { chars, bytes }
    }

    /// Appends the bytes of `token`; as it stands if it has a character outside the alphabet.
    fn decode(&self, token: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for c in token.chars() {
            match self.bytes.get(c as usize).copied().flatten() {
                Some(byte) => out.push(byte),
                None => {
                    out.truncate(start);
                    out.extend_from_slice(token.as_bytes());
                    return;
                }
            }
        }
    }
}

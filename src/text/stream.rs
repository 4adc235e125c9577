//! Token ids to text as they come, in whole characters.

use super::bytes::{Piece, Pieces};
use std::sync::Arc;

/// Turns ids into text one at a time. What all calls return, joined, is the decoded whole.
///
/// A character is returned when its last byte has arrived. SentencePiece's byte tokens are
/// returned when a run of them ends, because the original decides for a run as a whole whether it
/// is text (each byte of a run that is not UTF-8 becomes U+FFFD).
#[derive(Clone, Debug)]
pub struct TokenStream {
    pieces: Arc<Pieces>,
    /// Bytes of an unfinished character, or of an unfinished run of byte tokens.
    held: Vec<u8>,
    is_run: bool,
    drops_space: bool,
    shows_special: bool,
}

impl TokenStream {
    pub(super) fn new(pieces: Arc<Pieces>, drops_space: bool) -> Self {
        TokenStream { pieces, held: Vec::new(), is_run: false, drops_space, shows_special: false }
    }

    /// Whether special tokens appear in the text by name; they are skipped unless asked for.
    pub fn show_special(&mut self, yes: bool) {
        self.shows_special = yes;
    }

    /// Takes the next id and returns the text that is certain now, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if !self.shows_special && self.pieces.is_special(id) {
            return None;
        }
        let mut text = String::new();
        let pieces = Arc::clone(&self.pieces);
        match pieces.get(id)? {
            Piece::Fallback(byte) => {
                self.is_run = true;
                self.held.push(byte);
            }
            Piece::Bytes(bytes) => {
                if self.is_run {
                    text = self.end_run();
                }
                self.held.extend_from_slice(bytes);
                text.push_str(&self.take_characters());
            }
        }
        self.start(text)
    }

    /// The rest, with U+FFFD for what never became a character. The stream can be used again, as a
    /// continuation of what it has returned.
    pub fn finish(&mut self) -> String {
        let text = if self.is_run {
            self.end_run()
        } else {
            String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
        };
        self.start(text).unwrap_or_default()
    }

    /// Drops the one space that SentencePiece puts before a text.
    fn start(&mut self, mut text: String) -> Option<String> {
        if text.is_empty() {
            return None;
        }
        if std::mem::take(&mut self.drops_space) && text.starts_with(' ') {
            text.remove(0);
        }
        (!text.is_empty()).then_some(text)
    }

    fn end_run(&mut self) -> String {
        self.is_run = false;
        match String::from_utf8(std::mem::take(&mut self.held)) {
            Ok(text) => text,
            Err(e) => "\u{fffd}".repeat(e.as_bytes().len()),
        }
    }

    /// Complete characters from the front of `held`; an unfinished one stays.
    fn take_characters(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    rest = after;
                    let Some(bad) = e.error_len() else { break };
                    text.push('\u{fffd}');
                    rest = &rest[bad..];
                }
            }
        }
        self.held = rest.to_vec();
        text
    }
}

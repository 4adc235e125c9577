//! Text with pictures in it, ready for a tokenizer.

use super::draw;
use super::study::Study;
use super::words::Question;
use crate::Result;
use crate::image::Picture;
use crate::text::{END_OF_CHUNK, IMAGE};

/// A picture and the text that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub study: Study,
    /// Decides everything about the picture that has no name.
    pub look: u64,
    /// Words in the place of the picture, if there is none; empty if there is nothing at all.
    pub note: Option<String>,
    pub text: String,
    /// The last question in the text, if it has any.
    pub question: Option<Question>,
    /// True if the text answers with a made-up word that nothing before it says, so that nobody
    /// could know it.
    pub is_first: bool,
}

impl Piece {
    /// The picture, [`draw::SIDE`] pixels on a side, gray.
    ///
    /// # Errors
    /// As [`Picture::new`].
    pub fn picture(&self) -> Result<Picture> {
        draw::picture(&self.study, self.look)
    }
}

/// One sequence of training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Before the first picture.
    pub preamble: String,
    pub pieces: Vec<Piece>,
}

impl Page {
    /// `<image>` for each picture, `<|endofchunk|>` after the text of each.
    pub fn text(&self) -> String {
        let mut text = self.preamble.clone();
        for piece in &self.pieces {
            match &piece.note {
                None => text += IMAGE,
                Some(note) if note.is_empty() => (),
                Some(note) => {
                    text += note;
                    text.push(' ');
                }
            }
            text += &piece.text;
            text += END_OF_CHUNK;
        }
        text
    }

    /// As many as [`Page::text`] has markers, in their order.
    ///
    /// # Errors
    /// As [`Picture::new`].
    pub fn pictures(&self) -> Result<Vec<Picture>> {
        self.pieces.iter().filter(|p| p.note.is_none()).map(Piece::picture).collect()
    }
}

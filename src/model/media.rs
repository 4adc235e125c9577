//! Which image a token looks at, and what there is to see of an image.

use crate::contracts::MediaSpan;
use crate::tensor::Tensor;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What the language model can see of one image, computed once.
pub struct Media {
    /// Keys and values of every gated layer, (gated layers * L, 2 * heads * head_dim).
    pub kv: Tensor,
}

impl Media {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.kv.bytes()
    }
}

/// Which image a text token attends to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskMode {
    /// The latest image at or before the token; generated tokens see the last image
    /// (OpenFlamingo 2, the default).
    #[default]
    V2,
    /// OpenFlamingo 0.0.2 at inference, which Med-Flamingo's published demo runs: text attends to
    /// the *next* image; text after the last image, and every generated token, to none.
    V1AttendNext,
    /// OpenFlamingo 0.0.2 with `attend_previous`: the prompt as in V2, generated tokens see no
    /// image.
    V1AttendPrevious,
}

impl MaskMode {
    /// The names, as on the command line.
    pub const NAMES: [&str; 3] = ["v2", "v1-attend-next", "v1-attend-previous"];
}

impl FromStr for MaskMode {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "v2" => Ok(MaskMode::V2),
            "v1-attend-next" => Ok(MaskMode::V1AttendNext),
            "v1-attend-previous" => Ok(MaskMode::V1AttendPrevious),
            _ => Err(Error::invalid("mask mode", Self::NAMES.join(", "), format!("`{s}`"))),
        }
    }
}

impl fmt::Display for MaskMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

/// Who wrote a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Prompt,
    Generated,
}

/// Text time: counts the image markers of a sequence and says what each token may look at
/// (open_flamingo/src/helpers.py MaskedCrossAttention, both releases).
#[derive(Clone, Debug)]
pub struct Marker {
    mode: MaskMode,
    image_token: u32,
    /// Markers in the whole prompt.
    markers: usize,
    images: usize,
    seen: usize,
}

impl Marker {
    pub fn new(mode: MaskMode, image_token: u32, markers: usize, images: usize) -> Self {
        Marker { mode, image_token, markers, images, seen: 0 }
    }

    /// The same position in a prompt with other totals.
    pub fn extended(&self, markers: usize, images: usize) -> Self {
        Marker { markers, images, ..*self }
    }

    /// The same prompt after its first `seen` markers.
    pub fn at(&self, seen: usize) -> Self {
        Marker { seen, ..*self }
    }

    /// What the next tokens look at, appended to `spans`; image numbers start at `first`.
    ///
    /// A generated image marker is text: it does not move the sequence to an image that is not
    /// there.
    pub fn spans(&mut self, ids: &[u32], origin: Origin, first: usize, spans: &mut Vec<MediaSpan>) {
        for &id in ids {
            let is_marker = id == self.image_token && origin == Origin::Prompt;
            self.seen += usize::from(is_marker);
            let time = match (self.mode, origin) {
                (MaskMode::V2, _) | (MaskMode::V1AttendPrevious, Origin::Prompt) => self.seen,
                (MaskMode::V1AttendNext, Origin::Prompt) if is_marker => self.seen,
                (MaskMode::V1AttendNext, Origin::Prompt) if self.seen < self.markers => {
                    self.seen + 1
                }
                _ => 0,
            };
            spans.push(self.span(time, first));
        }
    }

    /// Time 0 is no image; a time beyond the images averages all of them, as upstream's masked
    /// softmax does when every key is masked.
    fn span(&self, time: usize, first: usize) -> MediaSpan {
        let (begin, end, uniform) = match time {
            0 => (0, 0, 0),
            t if t <= self.images => (t - 1, t, 0),
            _ => (0, self.images, 1),
        };
        MediaSpan { begin: (first + begin) as i32, end: (first + end) as i32, uniform }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recorded row: tokens 1 9 2 3 9 4 9 5 6 with 9 the marker.
    fn times(mode: MaskMode, images: usize, origin: Origin) -> Vec<i32> {
        let ids = [1, 9, 2, 3, 9, 4, 9, 5, 6];
        let mut spans = Vec::new();
        Marker::new(mode, 9, 3, images).spans(&ids, origin, 0, &mut spans);
        let time = |s: &MediaSpan| match (s.uniform, s.end > s.begin) {
            (1, _) => -1,
            (_, true) => s.end,
            _ => 0,
        };
        spans.iter().map(time).collect()
    }

    #[test]
    fn upstream_golden_row() {
        let prompt = Origin::Prompt;
        assert_eq!(times(MaskMode::V2, 3, prompt), [0, 1, 1, 1, 2, 2, 3, 3, 3]);
        assert_eq!(times(MaskMode::V1AttendPrevious, 3, prompt), [0, 1, 1, 1, 2, 2, 3, 3, 3]);
        assert_eq!(times(MaskMode::V1AttendNext, 3, prompt), [1, 1, 2, 2, 2, 3, 3, 0, 0]);
    }

    #[test]
    fn generated_tokens_see_the_last_image_in_v2_only() {
        for (mode, expected) in
            [(MaskMode::V2, 2), (MaskMode::V1AttendNext, 0), (MaskMode::V1AttendPrevious, 0)]
        {
            let mut marker = Marker::new(mode, 9, 2, 2);
            let mut spans = Vec::new();
            marker.spans(&[9, 9, 4], Origin::Prompt, 5, &mut spans);
            spans.clear();
            // A generated marker is text.
            marker.spans(&[9, 4], Origin::Generated, 5, &mut spans);
            for s in spans {
                let time = if s.end > s.begin { s.end - 5 } else { 0 };
                assert_eq!(time, expected, "{mode}");
            }
        }
    }

    #[test]
    fn surplus_markers_average_all_images() {
        assert_eq!(times(MaskMode::V2, 2, Origin::Prompt), [0, 1, 1, 1, 2, 2, -1, -1, -1]);
    }

    #[test]
    fn splitting_a_prompt_changes_nothing() {
        let ids = [1, 9, 2, 3, 9, 4, 9, 5, 6];
        for mode in [MaskMode::V2, MaskMode::V1AttendNext, MaskMode::V1AttendPrevious] {
            for cut in 0..=ids.len() {
                let mut whole = Vec::new();
                Marker::new(mode, 9, 3, 3).spans(&ids, Origin::Prompt, 0, &mut whole);
                let mut parts = Vec::new();
                let mut marker = Marker::new(mode, 9, 3, 3);
                marker.spans(&ids[..cut], Origin::Prompt, 0, &mut parts);
                marker.spans(&ids[cut..], Origin::Prompt, 0, &mut parts);
                let key = |s: &MediaSpan| (s.begin, s.end, s.uniform);
                assert!(whole.iter().map(key).eq(parts.iter().map(key)), "{mode} {cut}");
            }
        }
    }
}

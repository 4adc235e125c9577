//! Which documents become samples, and how: upstream's rules, each a switch.

use serde::{Deserialize, Serialize};

/// How labels are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// `<image>caption<|endofchunk|>` and the end token: all but the marker is predicted.
    Pairs,
    /// What lies between an image and its `<|endofchunk|>` is predicted.
    Interleaved,
}

/// Whose masking of labels; they differ in interleaved sequences that begin with `<image>`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelRules {
    /// open_flamingo after #269 and #270.
    #[default]
    V2,
    /// Releases 2.0.x: without a leading token, the first chunk has no labels (#233).
    V20,
    /// Release 0.0.2: as 2.0.x, and the first token of pairs has no label, either.
    V1,
}

/// How the images of an MMC4 document find their sentences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Matching {
    /// One sentence for each image, so that the sum of the similarities is largest (release 2.0.1).
    #[default]
    Assignment,
    /// The most similar sentence of each image (release 2.0.0).
    Nearest,
    /// What the record says, the first image of a sentence (release 0.0.2).
    Recorded,
}

/// The rules of one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    pub form: Form,
    pub labels: LabelRules,
    /// Tokens of a sequence at most; the rest is cut off.
    pub max_tokens: usize,
    /// Images of a document at most; of MMC4 the first in the order of its images.
    pub max_images: usize,
    /// Images at least, after the tokens were cut.
    pub min_images: usize,
    /// MMC4: how images find their sentences.
    pub matching: Matching,
    /// MMC4: the least similarity of an image to its sentence. 0.24 for cosines, 30 for the
    /// 100-fold cosines of the first release of the data.
    pub similarity: f64,
    /// MMC4: the smallest file of an image, in bytes.
    pub min_image_bytes: usize,
    /// MMC4: the share of documents with one image that is left out.
    pub single_image_drop: f64,
    /// MMC4: gives images in the order of the record, not of the sentences, as upstream does: the
    /// k-th image may then belong to another sentence than the k-th marker.
    pub keeps_image_order: bool,
    /// The share of images that are mirrored, each on its own. Leave 0 where sides have a meaning.
    pub flip: f64,
}

impl Rules {
    /// The rules for pairs.
    pub fn pairs(labels: LabelRules) -> Self {
        Rules {
            form: Form::Pairs,
            max_tokens: 32,
            max_images: 1,
            min_images: 1,
            ..Rules::interleaved(labels)
        }
    }

    /// The rules for interleaved documents.
    pub fn interleaved(labels: LabelRules) -> Self {
        let is_first = labels == LabelRules::V1;
        Rules {
            form: Form::Interleaved,
            labels,
            max_tokens: 256,
            max_images: if is_first { 5 } else { 6 },
            min_images: 1,
            matching: if is_first { Matching::Recorded } else { Matching::Assignment },
            similarity: if is_first { 30.0 } else { 0.24 },
            min_image_bytes: 11_000,
            single_image_drop: 0.5,
            keeps_image_order: false,
            flip: 0.0,
        }
    }
}

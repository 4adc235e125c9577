//! What one micro-batch is made of: ids, labels, pixels.

use std::sync::Arc;

/// Tokens that are predicted by nobody have this label.
pub const NO_LABEL: i32 = -100;

/// One sequence of a micro-batch. Sequences are ragged: there are no pads.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Token ids (T).
    pub ids: Vec<u32>,
    /// `labels[i]` is the label *of* token i, -100 for none (T). The loss shifts: logits of token
    /// i - 1 are compared with it, so `labels[0]` is never used.
    pub labels: Vec<i32>,
    /// Normalised pixels, (3, S, S) each, in the order of the `<image>` markers.
    pub images: Vec<Arc<Vec<f32>>>,
    /// Which source it came from.
    pub source: usize,
}

/// The sequences of one micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub sequences: Vec<Sample>,
}

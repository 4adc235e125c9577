//! Checked launches: one file per kernel stem, with its wrapper, its static and its native twin.
//!
//! A wrapper checks every shape, stride and dtype and then launches; index data on the device is
//! checked when it is made ([`Ragged`], [`TokenIds`], [`MediaSpans`], [`Media`]). So everything
//! above this floor is safe code. This floor is the only caller of
//! [`Stream::launch`](crate::device::Stream::launch).

mod activation;
mod adamw;
mod adamw8;
mod attention;
mod attention_backward;
mod attention_decode;
mod batch;
mod check;
mod checksum;
mod collective;
mod column_sums;
mod cross_attention;
mod cross_entropy;
mod embedding;
mod gate_backward;
mod gemm;
mod gemm_quantized;
mod kv_append;
mod lanes;
mod layernorm;
mod layout;
mod linear_cross_entropy;
mod logits;
mod norm_backward;
mod normed;
mod open;
mod patchify;
mod quantize;
mod rmsnorm;
mod rope;
mod rows;
mod sampling;
mod self_attention;
mod softmax;
mod square_sum;
mod transpose;
mod weight;

pub use crate::contracts::MediaSpan;
pub use activation::{
    ACTIVATION, ACTIVATION_BACKWARD, SWIGLU, SWIGLU_BACKWARD, activation, activation_backward,
    swiglu, swiglu_backward,
};
pub use adamw::{ADAMW, AdamwStep, adamw};
pub use adamw8::{ADAMW8, Codebooks, Moments8, SecondMomentMap, adamw8};
pub use attention::{ATTENTION, attention};
pub use attention_backward::{
    ATTENTION_BACKWARD, attention_backward, attention_statistics, cross_attention_backward,
    self_attention_backward,
};
pub use attention_decode::{ATTENTION_DECODE, attention_decode};
pub use batch::{Labels, Media, MediaSpans, Ragged, Sequence, TokenGroups, TokenIds};
pub use checksum::{CHECKSUM, checksum, xor};
pub use collective::{Collective, Reducing};
pub use column_sums::{COLUMN_SUMS, column_sums};
pub use cross_attention::{CROSS_ATTENTION, cross_attention};
pub use cross_entropy::{CROSS_ENTROPY, cross_entropy};
pub use embedding::{EMBEDDING, EMBEDDING_BACKWARD, embedding, embedding_backward};
pub use gate_backward::{GATE_BACKWARD, gate_backward};
pub use gemm::{
    Activation, Epilogue, GEMM, GEMM_CUBLASLT, Out, TileRow, TileTable, Tiling, cublaslt_computes,
    gemm, gemm_shape, gemm_tiled, gemm_tilings, tile_heading, tile_line, tiles_in_use,
};
pub use gemm_quantized::{GEMM_QUANTIZED, INT4_GROUP, Quantized, gemm_quantized};
pub use kv_append::{KV_APPEND, kv_append};
pub use layernorm::{LAYERNORM, layernorm, layernorm_in_place};
pub use linear_cross_entropy::{Head, HeadGradient, HeadRoom, linear_cross_entropy};
pub(crate) use logits::Best;
pub use logits::Summary;
pub use norm_backward::{NORM_BACKWARD, NormParts, layernorm_backward, rmsnorm_backward};
pub use normed::{Input, Norm};
pub use patchify::{
    PATCHIFY, VISION_TOKENS, VISION_TOKENS_BACKWARD, patchify, vision_tokens,
    vision_tokens_backward,
};
pub use quantize::{DEQUANTIZE, QUANTIZE, dequantize, quantize};
pub use rmsnorm::{RMSNORM, rmsnorm};
pub use rope::{ROPE, Rotary, rope, rope_backward};
pub use sampling::{
    Choice, Choices, Draw, Draws, Edits, PendingChoices, SAMPLING, choose, sampling,
};
pub use self_attention::{SELF_ATTENTION, self_attention};
pub use square_sum::{CLIP_FACTOR, SQUARE_SUM, clip_factor, square_sum};
pub use transpose::{TRANSPOSE, transpose};
pub use weight::{Weight, linear, linear_swiglu, turn};

use crate::DType;
use crate::device::Kernel;

/// A kernel's name and the storage types it has entries for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries {
    /// As in `{name}_{dtype}`.
    pub name: &'static str,
    /// One entry each.
    pub dtypes: [DType; 3],
}

const fn entries<P>(kernel: &Kernel<P>) -> Entries {
    let twins = kernel.twins;
    Entries { name: kernel.name, dtypes: [twins[0].0, twins[1].0, twins[2].0] }
}

/// Every kernel: the one list for reports, benches and, with a GPU, module loading.
pub static ALL: &[Entries] = &[
    entries(&ACTIVATION),
    entries(&ACTIVATION_BACKWARD),
    entries(&ADAMW),
    entries(&ADAMW8),
    entries(&ATTENTION),
    entries(&ATTENTION_BACKWARD),
    entries(&ATTENTION_DECODE),
    entries(&CHECKSUM),
    entries(&CLIP_FACTOR),
    entries(&COLUMN_SUMS),
    entries(&CROSS_ATTENTION),
    entries(&CROSS_ENTROPY),
    entries(&DEQUANTIZE),
    entries(&EMBEDDING),
    entries(&EMBEDDING_BACKWARD),
    entries(&GATE_BACKWARD),
    entries(&GEMM),
    entries(&GEMM_QUANTIZED),
    entries(&KV_APPEND),
    entries(&LAYERNORM),
    entries(&NORM_BACKWARD),
    entries(&PATCHIFY),
    entries(&QUANTIZE),
    entries(&RMSNORM),
    entries(&ROPE),
    entries(&SAMPLING),
    entries(&SELF_ATTENTION),
    entries(&SQUARE_SUM),
    entries(&SWIGLU),
    entries(&SWIGLU_BACKWARD),
    entries(&TRANSPOSE),
    entries(&VISION_TOKENS),
    entries(&VISION_TOKENS_BACKWARD),
];

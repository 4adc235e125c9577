//! The launches of a model by name, and operands for them.

use super::operands::Ring;
use crate::device::Stream;
use crate::ops::Activation;
use crate::{DType, Result};
use serde_json::{Value, json};

/// The sizes that launches follow from.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Text tokens and images of a prompt.
    pub prompt: usize,
    pub images: usize,
    /// Of the language model; heads are 128 wide.
    pub width: usize,
    pub mlp: usize,
    pub vocabulary: usize,
    /// Tokens that stand before a decoded one.
    pub context: usize,
    /// Of the vision tower, whose heads are 64 wide, and of its images.
    pub vision: usize,
    pub side: usize,
}

/// Med-Flamingo 9B and its published demo: LLaMA-7B, ViT-L/14, seven images.
pub const NINE_B: Sizes = Sizes {
    prompt: 250,
    images: 7,
    width: 4096,
    mlp: 11008,
    vocabulary: 32003,
    context: 300,
    vision: 1024,
    side: 224,
};

/// A quarter of it in every direction, for a machine without a card.
pub const QUICK: Sizes = Sizes {
    prompt: 64,
    images: 2,
    width: 1024,
    mlp: 2816,
    vocabulary: 8003,
    context: 300,
    vision: 256,
    side: 112,
};

pub(super) const HEAD: usize = 128;
pub(super) const VISION_HEAD: usize = 64;
pub(super) const PATCH: usize = 14;
pub(super) const LATENTS: usize = 64;
/// Of the Perceiver and of the gated layers.
pub(super) const GATED_HEADS: usize = 8;
pub(super) const PAGE: usize = 64;

/// What a launch works on.
#[derive(Clone, Copy, Debug)]
enum Work {
    Bytes(usize),
    Product {
        m: usize,
        n: usize,
        k: usize,
        activation: Activation,
        is_gated: bool,
    },
    /// Of weights with so many bits, or of no rows: making them, or elements of them.
    Quantized {
        m: usize,
        n: usize,
        k: usize,
        bits: usize,
    },
    /// A product that ends in SwiGLU, of weights of so many bits: 16, 8 or 4; or that begins with a
    /// norm as well.
    Swiglu {
        m: usize,
        n: usize,
        k: usize,
        bits: usize,
        is_normed: bool,
    },
    /// Of an optimiser, for so many parameters.
    Parameters(usize),
    /// Of tokens, the best or drawn.
    Sampling {
        rows: usize,
        vocabulary: usize,
        is_greedy: bool,
    },
    /// Norms, swiglu, their gradients, embedding, `vision_tokens`; the last number is theirs to
    /// read.
    Rows {
        rows: usize,
        cols: usize,
        of: usize,
    },
    /// What a backward pass has beside products and norms; the last number is the kernel's to read.
    Gradient {
        rows: usize,
        cols: usize,
        of: usize,
    },
    Attention {
        batch: usize,
        q_len: usize,
        k_len: usize,
        heads: usize,
        head_dim: usize,
    },
    /// Through pages: `self_attention`, `attention_decode`, rope, `kv_append`; each sequence has
    /// `rows` new tokens.
    Paged {
        sequences: usize,
        rows: usize,
        kv_len: usize,
        heads: usize,
    },
    Cross {
        rows: usize,
        images: usize,
    },
    /// The gradients of three attentions.
    FullBackward {
        batch: usize,
        q_len: usize,
        k_len: usize,
        heads: usize,
    },
    CausalBackward {
        rows: usize,
        heads: usize,
    },
    CrossBackward {
        rows: usize,
        images: usize,
    },
    Patches {
        images: usize,
        side: usize,
    },
}

/// A launch with a name.
#[derive(Clone, Debug)]
pub struct Case {
    pub kernel: &'static str,
    pub name: String,
    work: Work,
}

impl Sizes {
    /// Of an image.
    fn patches(&self) -> usize {
        (self.side / PATCH) * (self.side / PATCH)
    }
}

/// Where a list of cases grows: kernel, name, work.
type Add<'a> = &'a mut dyn FnMut(&'static str, String, Work);

/// The launches of a model of these sizes.
pub fn cases(s: &Sizes) -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |kernel, name, work| all.push(Case { kernel, name, work });
    add("checksum", "read".into(), Work::Bytes(64 << 20));
    products(s, &mut add);
    rows(s, &mut add);
    gradients(s, &mut add);
    attentions(s, &mut add);
    for (rows, is_greedy, name) in [(1, true, "greedy"), (1, false, "top_p"), (8, false, "top_p")] {
        let work = Work::Sampling { rows, vocabulary: s.vocabulary, is_greedy };
        add("sampling", format!("{name}_{rows}"), work);
    }
    // Of the gated layers of the 9B model there are 1.2 G, in pieces.
    for kernel in ["adamw", "adamw8"] {
        add(kernel, "gated_down".into(), Work::Parameters(s.width * 4 * s.width));
    }
    all
}

fn products(s: &Sizes, add: Add<'_>) {
    let (inner, gated_mlp) = (GATED_HEADS * VISION_HEAD, 4 * s.width);
    let plain = Activation::Identity;
    for m in [1, 8, 16, s.prompt] {
        for (name, n, k, activation, is_gated) in [
            ("lm_qkv", 3 * s.width, s.width, plain, false),
            ("lm_out", s.width, s.width, plain, false),
            ("lm_gate_up", 2 * s.mlp, s.width, plain, false),
            ("lm_down", s.width, s.mlp, plain, false),
            ("lm_head", s.vocabulary, s.width, plain, false),
            ("gated_q", inner, s.width, plain, false),
            ("gated_up", gated_mlp, s.width, Activation::Gelu, false),
            ("gated_down", s.width, gated_mlp, plain, true),
        ] {
            add("gemm", format!("{name}_{m}"), Work::Product { m, n, k, activation, is_gated });
        }
        // Of one row it makes the norm before it, too.
        for (part, is_normed) in [("swiglu", false), ("normed", true)] {
            let of = |bits| Work::Swiglu { m, n: 2 * s.mlp, k: s.width, bits, is_normed };
            if is_normed && m > 1 {
                continue;
            }
            add("gemm", format!("lm_gate_up_{part}_{m}"), of(16));
            for (bits, name) in [(8, "int8"), (4, "int4")] {
                add("gemm_quantized", format!("{name}_lm_gate_up_{part}_{m}"), of(bits));
            }
        }
    }
    for m in [1, 8, s.prompt] {
        for (bits, name) in [(8, "int8"), (4, "int4")] {
            for (part, n, k) in [
                ("lm_qkv", 3 * s.width, s.width),
                ("lm_gate_up", 2 * s.mlp, s.width),
                ("lm_down", s.width, s.mlp),
                ("gated_down", s.width, gated_mlp),
            ] {
                let work = Work::Quantized { m, n, k, bits };
                add("gemm_quantized", format!("{name}_{part}_{m}"), work);
            }
        }
    }
    for (bits, name) in [(8, "int8_gated_down"), (4, "int4_gated_down")] {
        for kernel in ["quantize", "dequantize"] {
            let work = Work::Quantized { m: 0, n: s.width, k: gated_mlp, bits };
            add(kernel, name.into(), work);
        }
    }
    let patches = s.patches();
    let rows = s.images * (patches + 1);
    for (name, m, n, k, activation) in [
        ("vision_qkv", rows, 3 * s.vision, s.vision, plain),
        ("vision_up", rows, 4 * s.vision, s.vision, Activation::QuickGelu),
        ("vision_down", rows, s.vision, 4 * s.vision, plain),
        ("perceiver_kv", s.images * patches, 6 * 2 * inner, s.vision, plain),
    ] {
        add("gemm", name.into(), Work::Product { m, n, k, activation, is_gated: false });
    }
}

/// What works on rows one by one.
fn rows(s: &Sizes, add: Add<'_>) {
    for (kernel, cols) in [("rmsnorm", s.width), ("layernorm", s.width), ("swiglu", s.mlp)] {
        for rows in [1, s.prompt] {
            add(kernel, format!("lm_{rows}"), Work::Rows { rows, cols, of: rows });
        }
    }
    for (kernel, cols) in
        [("norm_backward", s.width), ("swiglu_backward", s.mlp), ("column_sums", s.width)]
    {
        let rows = s.prompt;
        add(kernel, format!("lm_{rows}"), Work::Rows { rows, cols, of: rows });
    }
    let tokens = s.patches() + 1;
    let vision = Work::Rows { rows: s.images * tokens, cols: s.vision, of: tokens };
    add("layernorm", "vision".into(), vision);
    add("vision_tokens", "vision".into(), vision);
    // A table of few rows, so that its copies are many and each launch finds its rows cold.
    let (rows, of) = (s.prompt, 4 * s.prompt);
    add("embedding", format!("lm_{rows}"), Work::Rows { rows, cols: s.width, of });
    add("patchify", "vision".into(), Work::Patches { images: s.images, side: s.side });
}

/// What a backward pass has beside attention, norms and products that give dx.
fn gradients(s: &Sizes, add: Add<'_>) {
    let (rows, gated_mlp, tokens) = (s.prompt, 4 * s.width, s.patches() + 1);
    let parameters = s.width * gated_mlp;
    for (kernel, name, rows, cols, of) in [
        ("transpose", "gated_up", rows, gated_mlp, 0),
        ("transpose", "lm_head", s.vocabulary, s.width, 0),
        ("activation", "gated_up", rows, gated_mlp, 0),
        ("activation_backward", "gated_up", rows, gated_mlp, 0),
        ("gate_backward", "gated_up", rows, gated_mlp, 512),
        ("cross_entropy", "lm_head", rows, s.vocabulary, s.vocabulary),
        // A table of few rows, as for `embedding`.
        ("embedding_backward", "lm", rows, s.width, 4 * rows),
        ("vision_tokens_backward", "vision", s.images * tokens, s.vision, tokens),
        ("square_sum", "gated_down", 1, parameters, 1024),
        ("clip_factor", "step", 1, 1, 0),
        // dW of the gated layers' last product, added to in f32.
        ("gemm", "gated_down_dw", s.width, gated_mlp, rows.next_multiple_of(8)),
    ] {
        add(kernel, name.into(), Work::Gradient { rows, cols, of });
    }
}

/// Attention of every kind, and what puts keys where it finds them.
fn attentions(s: &Sizes, add: Add<'_>) {
    let (patches, tokens) = (s.patches(), s.patches() + 1);
    for (name, q_len, k_len, heads) in [
        ("vision", tokens, tokens, s.vision / VISION_HEAD),
        ("perceiver", LATENTS, patches + LATENTS, GATED_HEADS),
    ] {
        let (batch, head_dim) = (s.images, VISION_HEAD);
        add("attention", name.into(), Work::Attention { batch, q_len, k_len, heads, head_dim });
        let work = Work::FullBackward { batch, q_len, k_len, heads };
        add("attention_backward", name.into(), work);
    }
    let heads = s.width / HEAD;
    for (sequences, kv_len) in [(1, s.context), (1, 2048), (8, s.context)] {
        let name = format!("lm_{sequences}_of_{kv_len}");
        add("attention_decode", name, Work::Paged { sequences, rows: 1, kv_len, heads });
    }
    for (rows, kv_len) in [(35, s.context), (s.prompt, s.prompt)] {
        let name = format!("lm_{rows}_of_{kv_len}");
        add("self_attention", name, Work::Paged { sequences: 1, rows, kv_len, heads });
    }
    for rows in [1, s.prompt] {
        let work = Work::Paged { sequences: 1, rows, kv_len: s.context.max(rows), heads };
        add("rope", format!("lm_{rows}"), work);
        add("kv_append", format!("lm_{rows}"), work);
    }
    // A token, a prompt, and batches in training.
    let prompt = s.prompt.next_power_of_two();
    for rows in [1, s.prompt, 32 * prompt, 64 * prompt] {
        add("cross_attention", format!("gated_{rows}"), Work::Cross { rows, images: s.images });
    }
    let (rows, images) = (s.prompt, s.images);
    let of = "attention_backward";
    add(of, format!("lm_{rows}"), Work::CausalBackward { rows, heads });
    add(of, format!("gated_{rows}"), Work::CrossBackward { rows, images });
}

/// Calls a launch on the copy of the operands with that number.
pub(super) type Launch<'a> = &'a mut dyn FnMut(usize) -> Result<()>;
/// Told how many copies there are and how to launch on one of them.
pub(super) type Body<'a> = &'a mut dyn FnMut(usize, Launch<'_>) -> Result<()>;

impl Case {
    /// `kernel/case`.
    pub fn title(&self) -> String {
        format!("{}/{}", self.kernel, self.name)
    }

    /// The sizes by name.
    pub fn shape(&self) -> Value {
        match self.work {
            Work::Bytes(bytes) => json!({"bytes": bytes}),
            Work::Product { m, n, k, activation, is_gated } => json!({
                "m": m, "n": n, "k": k, "activation": activation as i32, "is_gated": is_gated,
            }),
            Work::Rows { rows, cols, of } | Work::Gradient { rows, cols, of } => {
                json!({"rows": rows, "cols": cols, "of": of})
            }
            Work::Attention { batch, q_len, k_len, heads, head_dim } => json!({
                "batch": batch, "q_len": q_len, "k_len": k_len, "heads": heads,
                "head_dim": head_dim,
            }),
            Work::Paged { sequences, rows, kv_len, heads } => json!({
                "sequences": sequences, "rows": rows, "kv_len": kv_len, "heads": heads,
                "head_dim": HEAD,
            }),
            Work::Quantized { m, n, k, bits } => json!({"m": m, "n": n, "k": k, "bits": bits}),
            // As in the contract.
            Work::Swiglu { m, n, k, bits, is_normed } => {
                let norm = i32::from(is_normed);
                json!({"m": m, "n": n, "k": k, "bits": bits, "activation": 3, "norm": norm})
            }
            Work::Parameters(count) => json!({"parameters": count}),
            Work::Sampling { rows, vocabulary, is_greedy } => {
                json!({"rows": rows, "vocabulary": vocabulary, "is_greedy": is_greedy})
            }
            Work::FullBackward { batch, q_len, k_len, heads } => json!({
                "batch": batch, "q_len": q_len, "k_len": k_len, "heads": heads,
                "head_dim": VISION_HEAD,
            }),
            Work::CausalBackward { rows, heads } => {
                json!({"rows": rows, "heads": heads, "head_dim": HEAD})
            }
            Work::Cross { rows, images } | Work::CrossBackward { rows, images } => json!({
                "rows": rows, "images": images, "latents": LATENTS, "heads": GATED_HEADS,
                "head_dim": VISION_HEAD,
            }),
            Work::Patches { images, side } => {
                json!({"images": images, "side": side, "patch": PATCH})
            }
        }
    }

    /// Makes copies of the operands, about `ring` bytes together, and calls `body` once with how
    /// many there are and with what launches on one of them.
    ///
    /// # Errors
    /// If the device has no room for them; those of `body`.
    pub fn with_operands(
        &self,
        stream: &Stream,
        dtype: DType,
        ring: usize,
        body: Body<'_>,
    ) -> Result<()> {
        let ring = Ring::new(stream, dtype, ring);
        match self.work {
            Work::Bytes(bytes) => ring.bytes(bytes, body),
            Work::Product { m, n, k, activation, is_gated } => {
                ring.product([m, n, k], activation, is_gated, body)
            }
            Work::Rows { rows, cols, of } => ring.rows(self.kernel, [rows, cols, of], body),
            Work::Gradient { rows, cols, of } => {
                ring.gradients(self.kernel, [rows, cols, of], body)
            }
            Work::Attention { batch, q_len, k_len, heads, head_dim } => {
                ring.attention(batch, [q_len, k_len], heads, head_dim, body)
            }
            Work::Paged { sequences, rows, kv_len, heads } => {
                ring.paged(self.kernel, [sequences, rows, kv_len], heads, body)
            }
            Work::Quantized { m, n, k, bits } => ring.quantized(self.kernel, [m, n, k], bits, body),
            Work::Swiglu { m, n, k, bits, is_normed } => {
                ring.swiglu([m, n, k], bits, is_normed, body)
            }
            Work::Parameters(count) => ring.parameters(self.kernel, count, body),
            Work::Sampling { rows, vocabulary, is_greedy } => {
                ring.sampling(rows, vocabulary, is_greedy, body)
            }
            Work::Cross { rows, images } => ring.cross(rows, images, body),
            Work::FullBackward { batch, q_len, k_len, heads } => {
                ring.full_backward(batch, [q_len, k_len], heads, body)
            }
            Work::CausalBackward { rows, heads } => ring.causal_backward(rows, heads, body),
            Work::CrossBackward { rows, images } => ring.cross_backward(rows, images, body),
            Work::Patches { images, side } => ring.patches(images, side, body),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Chip;
    use crate::ops::ALL;
    use std::collections::BTreeSet;

    #[test]
    fn every_case_has_a_kernel_and_its_own_name() {
        for sizes in [NINE_B, QUICK] {
            let all = cases(&sizes);
            let kernels: BTreeSet<&str> = all.iter().map(|c| c.kernel).collect();
            let known: BTreeSet<&str> = ALL.iter().map(|e| e.name).collect();
            assert_eq!(kernels, known);
            let titles: BTreeSet<String> = all.iter().map(Case::title).collect();
            assert_eq!(titles.len(), all.len());
        }
    }

    #[test]
    fn a_case_launches_its_kernel_as_often_on_every_copy() {
        let stream = Stream::planning(Chip::H200);
        for case in cases(&QUICK) {
            let mut copies = 0;
            stream.record();
            case.with_operands(&stream, DType::BF16, 1 << 20, &mut |count, launch| {
                copies = count;
                (0..count).try_for_each(launch)
            })
            .unwrap();
            let launches = stream.recording().unwrap().launches;
            // The gradients of queries, then those of keys.
            let each = if case.kernel == "attention_backward" { 2 } else { 1 };
            assert_eq!(launches.len(), each * copies, "{}", case.title());
            assert!(launches.iter().all(|l| l.kernel == case.kernel && l.cost.bytes > 0.0));
        }
    }
}

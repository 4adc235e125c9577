//! The named shapes, and operands for them.

use half::{bf16, f16};
use medflamingo::device::Stream;
use medflamingo::ops::{
    self, Activation, Epilogue, Media, MediaSpan, MediaSpans, Out, Ragged, Sequence, TokenIds,
};
use medflamingo::tensor::{Arena, Tensor};
use medflamingo::{DType, Result};
use serde_json::{Value, json};

const PAGE: usize = 64;
const VOCABULARY: usize = 32003;

/// What a launch works on.
#[derive(Clone, Copy)]
pub enum Work {
    Product {
        m: usize,
        n: usize,
        k: usize,
        activation: Activation,
        adds: bool,
    },
    /// A kernel of rows: norms, swiglu, embedding, `vision_tokens`.
    Rows {
        rows: usize,
        cols: usize,
    },
    Attention {
        batch: usize,
        q_len: usize,
        k_len: usize,
        heads: usize,
        head_dim: usize,
    },
    /// Through pages: `self_attention`, rope, `kv_append`.
    Paged {
        sequences: usize,
        rows: usize,
        kv_len: usize,
        heads: usize,
        head_dim: usize,
    },
    Cross {
        rows: usize,
        images: usize,
        latents: usize,
        heads: usize,
        head_dim: usize,
    },
    Patches {
        images: usize,
        side: usize,
        patch: usize,
    },
}

#[derive(Clone)]
pub struct Case {
    pub kernel: &'static str,
    pub name: String,
    pub work: Work,
}

impl Case {
    pub fn product(m: usize, n: usize, k: usize) -> Self {
        let work = Work::Product { m, n, k, activation: Activation::Identity, adds: false };
        Case { kernel: "gemm", name: format!("{m}x{n}x{k}"), work }
    }

    pub fn title(&self) -> String {
        format!("{}/{}", self.kernel, self.name)
    }

    pub fn shape(&self) -> Value {
        match self.work {
            Work::Product { m, n, k, activation, adds } => {
                let adds = i32::from(adds);
                json!({"m": m, "n": n, "k": k, "activation": activation as i32,
                    "residual": adds, "gate": adds})
            }
            Work::Rows { rows, cols } => json!({"rows": rows, "cols": cols}),
            Work::Attention { batch, q_len, k_len, heads, head_dim } => json!({"batch": batch,
                "q_len": q_len, "k_len": k_len, "heads": heads, "head_dim": head_dim}),
            Work::Paged { sequences, rows, kv_len, heads, head_dim } => json!({"rows": rows,
                "sequences": sequences, "kv_len": kv_len, "heads": heads, "head_dim": head_dim}),
            Work::Cross { rows, images, latents, heads, head_dim } => json!({"rows": rows,
                "images": images, "latents": latents, "heads": heads, "head_dim": head_dim}),
            Work::Patches { images, side, patch } => {
                json!({"images": images, "side": side, "patch": patch})
            }
        }
    }
}

/// Name, n, k, activation, and whether the product is added through a gate.
const PRODUCTS: [(&str, usize, usize, Activation, bool); 7] = [
    ("lm_qkv", 12288, 4096, Activation::Identity, false),
    ("lm_gate_up", 22016, 4096, Activation::Identity, false),
    ("lm_down", 4096, 11008, Activation::Identity, false),
    ("lm_head", VOCABULARY, 4096, Activation::Identity, false),
    ("gated_q", 512, 4096, Activation::Identity, false),
    ("gated_up", 16384, 4096, Activation::Gelu, false),
    ("gated_down", 4096, 16384, Activation::Identity, true),
];

/// The launches of a 9B model: LLaMA-7B, gated layers over 64 latents, ViT-L/14.
pub fn named() -> Vec<Case> {
    let case = |kernel, name: &str, work| Case { kernel, name: name.to_owned(), work };
    let mut all = vec![];
    for rows in [1, 250] {
        for (name, n, k, activation, adds) in PRODUCTS {
            let work = Work::Product { m: rows, n, k, activation, adds };
            all.push(case("gemm", &format!("{name}_{rows}"), work));
        }
    }
    for (name, m, n, k, activation) in [
        ("vision_qkv", 1799, 3072, 1024, Activation::Identity),
        ("vision_up", 1799, 4096, 1024, Activation::QuickGelu),
        ("vision_down", 1799, 1024, 4096, Activation::Identity),
        ("perceiver_kv", 2240, 1024, 1024, Activation::Identity),
    ] {
        all.push(case("gemm", name, Work::Product { m, n, k, activation, adds: false }));
    }
    for (kernel, cols) in [("rmsnorm", 4096), ("layernorm", 4096), ("swiglu", 11008)] {
        for rows in [1, 250] {
            all.push(case(kernel, &format!("lm_{rows}"), Work::Rows { rows, cols }));
        }
    }
    all.push(case("layernorm", "vision_1799", Work::Rows { rows: 1799, cols: 1024 }));
    all.push(case("embedding", "lm_250", Work::Rows { rows: 250, cols: 4096 }));
    all.push(case("vision_tokens", "vision_7", Work::Rows { rows: 1799, cols: 1024 }));
    all.push(case("patchify", "vision_7", Work::Patches { images: 7, side: 224, patch: 14 }));
    for (name, q_len, k_len, heads) in [("vision_7", 257, 257, 16), ("perceiver_7", 64, 320, 8)] {
        let work = Work::Attention { batch: 7, q_len, k_len, heads, head_dim: 64 };
        all.push(case("attention", name, work));
    }
    for (kernel, name, rows, kv_len) in [
        ("self_attention", "lm_prefill_250", 250, 250),
        ("self_attention", "lm_decode_512", 1, 512),
        ("self_attention", "lm_decode_2048", 1, 2048),
        ("rope", "lm_1", 1, 512),
        ("rope", "lm_250", 250, 250),
        ("kv_append", "lm_1", 1, 512),
        ("kv_append", "lm_250", 250, 250),
    ] {
        let work = Work::Paged { sequences: 1, rows, kv_len, heads: 32, head_dim: 128 };
        all.push(case(kernel, name, work));
    }
    for rows in [1, 250] {
        let work = Work::Cross { rows, images: 7, latents: 64, heads: 8, head_dim: 64 };
        all.push(case("cross_attention", &format!("gated_{rows}"), work));
    }
    all
}

/// Index data of a launch.
enum Index {
    None,
    Batch(Ragged),
    Ids(TokenIds),
    Media(Media<'static>, MediaSpans),
}

/// One copy of the operands of a case.
pub struct Set {
    kernel: &'static str,
    work: Work,
    pub out: Tensor,
    inputs: Vec<Tensor>,
    index: Index,
}

/// A tensor of numbers between -1 and 1.
fn filled(stream: &Stream, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let mut state = 1u32;
    let count: usize = shape.iter().product();
    let values = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
    .take(count);
    match dtype {
        DType::BF16 => {
            Tensor::upload(stream, &values.map(bf16::from_f32).collect::<Vec<_>>(), shape)
        }
        DType::F16 => Tensor::upload(stream, &values.map(f16::from_f32).collect::<Vec<_>>(), shape),
        _ => Tensor::upload(stream, &values.collect::<Vec<_>>(), shape),
    }
}

impl Set {
    pub fn new(stream: &Stream, case: &Case, dtype: DType) -> Result<Self> {
        let make = Make { stream, dtype, kernel: case.kernel };
        let none = |(out, inputs)| (out, inputs, Index::None);
        let (out, inputs, index) = match case.work {
            Work::Product { m, n, k, .. } => {
                let inputs = vec![make.input(&[m, k])?, make.input(&[n, k])?, make.input(&[1])?];
                none((make.zeros(&[m, n])?, inputs))
            }
            Work::Rows { rows, cols } => make.rows(rows, cols)?,
            Work::Attention { batch, q_len, k_len, heads, head_dim } => {
                let width = heads * head_dim;
                let q = make.input(&[batch * q_len, width])?;
                let kv = make.input(&[batch * k_len, 2 * width])?;
                none((make.zeros(&[batch * q_len, width])?, vec![q, kv]))
            }
            Work::Paged { sequences, rows, kv_len, heads, head_dim } => {
                make.paged(sequences, rows, kv_len, heads * head_dim)?
            }
            Work::Cross { rows, images, latents, heads, head_dim } => {
                let width = heads * head_dim;
                let inputs = vec![make.input(&[rows, width])?];
                let index = make.media(rows, images, latents, width)?;
                (make.zeros(&[rows, width])?, inputs, index)
            }
            Work::Patches { images, side, patch } => {
                let pixels = filled(stream, DType::F32, &[images, 3, side, side])?;
                let patches = (side / patch) * (side / patch);
                none((make.zeros(&[images * patches, 3 * patch * patch])?, vec![pixels]))
            }
        };
        Ok(Set { kernel: case.kernel, work: case.work, out, inputs, index })
    }

    pub fn bytes(&self) -> usize {
        self.out.bytes() + self.inputs.iter().map(Tensor::bytes).sum::<usize>()
    }

    pub fn launch(&mut self, stream: &Stream) -> Result<()> {
        let input = |i: usize| self.inputs[i].view();
        let y = self.out.view_mut();
        let scale = |head_dim: usize| 1.0 / (head_dim as f32).sqrt();
        match (self.work, &self.index) {
            (Work::Product { activation, adds, .. }, _) => {
                let (gate, out) =
                    if adds { (Some(input(2)), Out::Accumulate) } else { (None, Out::Overwrite) };
                let epilogue = Epilogue { bias: None, activation, gate, out };
                ops::gemm(stream, y, input(0), input(1), epilogue)
            }
            (Work::Rows { .. }, Index::Ids(ids)) => ops::embedding(stream, y, ids, input(0)),
            (Work::Rows { .. }, _) => match self.kernel {
                "layernorm" => ops::layernorm(stream, y, input(0), input(1), Some(input(2)), 1e-5),
                "rmsnorm" => ops::rmsnorm(stream, y, input(0), input(1), 1e-6),
                "swiglu" => ops::swiglu(stream, y, input(0)),
                _ => ops::vision_tokens(stream, y, input(0), input(1), input(2)),
            },
            (Work::Attention { batch, heads, head_dim, .. }, _) => {
                let (kv, width) = (input(1), heads * head_dim);
                let part = |i: usize| kv.block(0..kv.rows(), i * width..(i + 1) * width);
                let segments = [(part(0)?, part(1)?)];
                ops::attention(stream, y, input(0), &segments, batch, heads, scale(head_dim))
            }
            (Work::Paged { heads, head_dim, .. }, Index::Batch(batch)) => match self.kernel {
                "rope" => ops::rope(stream, y, batch, heads, head_dim, head_dim, 1e4),
                "kv_append" => ops::kv_append(stream, y, input(0), batch, heads, head_dim),
                _ => {
                    let (q, pool, s) = (input(0), input(1), scale(head_dim));
                    ops::self_attention(stream, y, q, pool, batch, None, heads, head_dim, s)
                }
            },
            (Work::Cross { heads, head_dim, .. }, Index::Media(media, spans)) => {
                let s = scale(head_dim);
                ops::cross_attention(stream, y, input(0), media, spans, heads, s)
            }
            (Work::Patches { patch, .. }, _) => ops::patchify(stream, y, input(0), patch),
            (Work::Paged { .. } | Work::Cross { .. }, _) => unreachable!("made with its index"),
        }
    }
}

/// Operands of one case.
struct Make<'a> {
    stream: &'a Stream,
    dtype: DType,
    kernel: &'static str,
}

type Operands = (Tensor, Vec<Tensor>, Index);

impl Make<'_> {
    fn zeros(&self, shape: &[usize]) -> Result<Tensor> {
        Tensor::zeros(self.stream, self.dtype, shape)
    }

    fn input(&self, shape: &[usize]) -> Result<Tensor> {
        filled(self.stream, self.dtype, shape)
    }

    fn arena(&self) -> Result<Arena> {
        Arena::new(self.stream, 64 << 10)
    }

    fn rows(&self, rows: usize, cols: usize) -> Result<Operands> {
        let mut index = Index::None;
        let inputs = match self.kernel {
            "swiglu" => vec![self.input(&[rows, 2 * cols])?],
            "embedding" => {
                let ids: Vec<i32> = (0..rows).map(|i| (i * 7919 % VOCABULARY) as i32).collect();
                index = Index::Ids(TokenIds::new(&mut self.arena()?, &ids, VOCABULARY)?);
                vec![self.input(&[VOCABULARY, cols])?]
            }
            "vision_tokens" => {
                let x = self.input(&[rows / 257 * 256, cols])?;
                vec![x, self.input(&[cols])?, self.input(&[257, cols])?]
            }
            _ => vec![self.input(&[rows, cols])?, self.input(&[cols])?, self.input(&[cols])?],
        };
        Ok((self.zeros(&[rows, cols])?, inputs, index))
    }

    fn paged(&self, sequences: usize, rows: usize, kv: usize, width: usize) -> Result<Operands> {
        let index = Index::Batch(paged(&mut self.arena()?, sequences, rows, kv)?);
        let pages = sequences * kv.div_ceil(PAGE);
        let pool = || self.input(&[pages, PAGE * 2 * width]);
        Ok(match self.kernel {
            "rope" => (self.input(&[rows, 3 * width])?, vec![], index),
            "kv_append" => (pool()?, vec![self.input(&[rows, 3 * width])?], index),
            _ => {
                let inputs = vec![self.input(&[rows, width])?, pool()?];
                (self.zeros(&[rows, width])?, inputs, index)
            }
        })
    }

    /// Images in turn, each seen by its share of the rows; one row sees the last.
    fn media(&self, rows: usize, images: usize, latents: usize, width: usize) -> Result<Index> {
        let mut kept = vec![];
        for _ in 0..images {
            kept.push(self.input(&[latents, 2 * width])?);
        }
        // A table of addresses borrows what it points to, and a ring keeps both to the end.
        let kept: &'static [Tensor] = Box::leak(kept.into_boxed_slice());
        let views: Vec<_> = kept.iter().map(Tensor::view).collect();
        let spans: Vec<_> = (0..rows)
            .map(|r| ((r + 1) * images - 1) / rows)
            .map(|i| MediaSpan { begin: i as i32, end: i as i32 + 1, uniform: 0 })
            .collect();
        let mut arena = self.arena()?;
        let spans = MediaSpans::new(&mut arena, &spans, images)?;
        Ok(Index::Media(Media::new(&mut arena, &views)?, spans))
    }
}

/// Sequences of `kv_len` tokens, of which the last `rows / sequences` are new.
fn paged(arena: &mut Arena, sequences: usize, rows: usize, kv_len: usize) -> Result<Ragged> {
    let pages = kv_len.div_ceil(PAGE);
    let tables: Vec<Vec<i32>> =
        (0..sequences).map(|s| (s * pages..(s + 1) * pages).map(|p| p as i32).collect()).collect();
    let all: Vec<Sequence<'_>> =
        tables.iter().map(|table| Sequence { table, kv_len, rows: rows / sequences }).collect();
    Ragged::new(arena, &all, PAGE, sequences * pages)
}

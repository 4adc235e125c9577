//! The architecture, as `config.json` of a model folder states it, and the tensors it implies.

use crate::{DType, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Everything that decides shapes and arithmetic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Always `medflamingo`.
    pub model_type: String,
    pub dtype: StoredDType,
    pub vision: Vision,
    pub resampler: Resampler,
    pub cross_attention: CrossAttention,
    pub language: Language,
    pub tokens: Tokens,
}

/// The storage type of every weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredDType {
    F32,
    Bf16,
    F16,
}

impl From<StoredDType> for DType {
    fn from(d: StoredDType) -> DType {
        match d {
            StoredDType::F32 => DType::F32,
            StoredDType::Bf16 => DType::BF16,
            StoredDType::F16 => DType::F16,
        }
    }
}

/// CLIP's vision transformer; patch tokens are used before `ln_post`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vision {
    /// Pixels on a side.
    pub image_size: usize,
    pub patch_size: usize,
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    pub mlp_width: usize,
    /// Width of the pooled, projected embedding; not used by Flamingo itself.
    pub projection: usize,
    pub activation: Activation,
    pub norm_eps: f32,
}

/// Activation of the vision tower's MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x * Phi(x), exact.
    Gelu,
    /// x * sigmoid(1.702 x).
    QuickGelu,
}

/// The Perceiver resampler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resampler {
    pub layers: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Latents per image.
    pub latents: usize,
    pub mlp_width: usize,
}

/// The gated cross-attention blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossAttention {
    /// A block stands before decoder layer l when (l + 1) is a multiple of this.
    pub every: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub mlp_width: usize,
}

/// The frozen language model: LLaMA, MPT or GPT-NeoX by its features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Language {
    pub family: Family,
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    pub mlp_width: usize,
    pub vocabulary: usize,
    /// Most tokens in a sequence.
    pub context: usize,
    pub norm_eps: f32,
    pub position: Position,
    /// LayerNorm over the whole query and key vectors before the heads are split (MPT-1B).
    pub qk_norm: bool,
    /// Attention and MLP read the same input (GPT-NeoX with `use_parallel_residual`).
    pub parallel_residual: bool,
    /// Logits come from the embedding matrix.
    pub tied_head: bool,
}

/// What a family fixes: norms, biases and the form of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// RMSNorm, SwiGLU, no biases.
    Llama,
    /// LayerNorm without bias, GELU, no biases.
    Mpt,
    /// LayerNorm, GELU, biases everywhere but in the head.
    GptNeox,
}

impl Family {
    /// True if linear layers and norms have biases.
    pub const fn has_bias(self) -> bool {
        matches!(self, Family::GptNeox)
    }
}

/// How attention knows where a token is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Position {
    /// Rotates the first `dims` features of each head.
    Rope { dims: usize, base: f32 },
    /// Linear biases with slopes 2^(-max_bias * (h+1) / heads).
    Alibi { max_bias: f32 },
}

/// Ids with a meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    pub end_of_chunk: u32,
    pub image: u32,
    pub pad: u32,
    /// First id of every prompt, if any.
    pub leading: Option<u32>,
}

/// The bytes of one of a model folder's small JSON files, at most 1 MiB.
///
/// # Errors
/// A file that cannot be read, or is longer.
pub fn read_small(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    const MOST: u64 = 1 << 20;
    let file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut bytes = Vec::new();
    let read = file.take(MOST + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > MOST {
        return Err(Error::invalid(path.display(), format!("at most {MOST} bytes"), "more"));
    }
    Ok(bytes)
}

/// One tensor of a model folder: its name and shape.
pub type TensorSpec = (String, Vec<usize>);

impl Config {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// A file that cannot be read, is not one of ours, or has sizes that no model has.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_small(path)?;
        Config::parse(&bytes).map_err(|e| e.within(path.display()))
    }

    /// As [`Config::read`], from the file's bytes.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(json: &[u8]) -> Result<Self> {
        let config: Config = serde_json::from_slice(json).map_err(|e| {
            Error::invalid("config.json", "a medflamingo model configuration", e)
                .advise("make a model folder with `medflamingo-tools convert`")
        })?;
        config.check()?;
        Ok(config)
    }

    /// True if a gated cross-attention block stands before decoder layer `layer`.
    pub fn has_block(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.cross_attention.every)
    }

    /// Decoder layers with a block before them, in order.
    pub fn gated_layers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.language.layers).filter(|&l| self.has_block(l))
    }

    /// Patches per image.
    pub fn patches(&self) -> usize {
        let side = self.vision.image_size / self.vision.patch_size;
        side * side
    }

    /// Widths of the heads' concatenation: resampler, cross-attention.
    pub fn inner_widths(&self) -> (usize, usize) {
        (
            self.resampler.heads * self.resampler.head_dim,
            self.cross_attention.heads * self.cross_attention.head_dim,
        )
    }

    /// Refuses sizes that no model has, before anything is multiplied or allocated.
    ///
    /// # Errors
    /// Names the field, what it may be and what it is.
    pub fn check(&self) -> Result<()> {
        if self.model_type != "medflamingo" {
            return Err(Error::invalid("model_type", "medflamingo", &self.model_type));
        }
        let (v, r, x, l) = (&self.vision, &self.resampler, &self.cross_attention, &self.language);
        for (name, value, most) in [
            ("vision.image_size", v.image_size, 4096),
            ("vision.patch_size", v.patch_size, 256),
            ("vision.width", v.width, 1 << 16),
            ("vision.layers", v.layers, 1024),
            ("vision.heads", v.heads, 1024),
            ("vision.mlp_width", v.mlp_width, 1 << 18),
            ("vision.projection", v.projection, 1 << 16),
            ("resampler.layers", r.layers, 1024),
            ("resampler.heads", r.heads, 1024),
            ("resampler.head_dim", r.head_dim, 1024),
            ("resampler.latents", r.latents, 1 << 16),
            ("resampler.mlp_width", r.mlp_width, 1 << 18),
            ("cross_attention.every", x.every, 1024),
            ("cross_attention.heads", x.heads, 1024),
            ("cross_attention.head_dim", x.head_dim, 1024),
            ("cross_attention.mlp_width", x.mlp_width, 1 << 18),
            ("language.width", l.width, 1 << 16),
            ("language.layers", l.layers, 1024),
            ("language.heads", l.heads, 1024),
            ("language.mlp_width", l.mlp_width, 1 << 18),
            ("language.vocabulary", l.vocabulary, 1 << 22),
            ("language.context", l.context, 1 << 20),
        ] {
            if value == 0 || value > most {
                return Err(Error::invalid(name, format!("1 to {most}"), value));
            }
        }
        for (name, whole, part) in [
            ("vision.image_size, a multiple of vision.patch_size", v.image_size, v.patch_size),
            ("vision.width, a multiple of vision.heads", v.width, v.heads),
            ("language.width, a multiple of language.heads", l.width, l.heads),
        ] {
            if !whole.is_multiple_of(part) {
                return Err(Error::invalid(name, format!("a multiple of {part}"), whole));
            }
        }
        if let Position::Rope { dims, base } = l.position {
            let head_dim = l.width / l.heads;
            if dims == 0 || dims % 2 != 0 || dims > head_dim || base.is_nan() || base <= 0.0 {
                let expected = format!("even dims of at most {head_dim}, base > 0");
                let found = format!("dims {dims}, base {base}");
                return Err(Error::invalid("language.position", expected, found));
            }
        }
        self.check_tokens()
    }

    fn check_tokens(&self) -> Result<()> {
        let vocabulary = self.language.vocabulary;
        for (name, id) in [
            ("tokens.end_of_chunk", Some(self.tokens.end_of_chunk)),
            ("tokens.image", Some(self.tokens.image)),
            ("tokens.pad", Some(self.tokens.pad)),
            ("tokens.leading", self.tokens.leading),
        ] {
            if id.is_some_and(|id| id as usize >= vocabulary) {
                let expected = format!("an id below {vocabulary}");
                return Err(Error::invalid(name, expected, id.unwrap_or_default()));
            }
        }
        Ok(())
    }

    /// Every tensor of a model folder, in the order in which a forward pass reads them.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut list = Vec::new();
        self.vision_tensors(&mut list);
        self.resampler_tensors(&mut list);
        let l = &self.language;
        push(&mut list, "language.embedding.weight", &[l.vocabulary, l.width]);
        for layer in 0..l.layers {
            if self.has_block(layer) {
                self.block_tensors(layer, &mut list);
            }
            self.layer_tensors(layer, &mut list);
        }
        self.norm(&mut list, "language.norm", l.width);
        if !l.tied_head {
            push(&mut list, "language.head.weight", &[l.vocabulary, l.width]);
        }
        list
    }

    fn vision_tensors(&self, list: &mut Vec<TensorSpec>) {
        let v = &self.vision;
        let pixels = 3 * v.patch_size * v.patch_size;
        push(list, "vision.patch_embedding.weight", &[v.width, pixels]);
        push(list, "vision.class_embedding", &[v.width]);
        push(list, "vision.position_embedding", &[1 + self.patches(), v.width]);
        layernorm(list, "vision.ln_pre", v.width);
        for i in 0..v.layers {
            let at = format!("vision.layers.{i}");
            layernorm(list, &format!("{at}.norm_1"), v.width);
            linear(list, &format!("{at}.attn.qkv"), 3 * v.width, v.width, true);
            linear(list, &format!("{at}.attn.out"), v.width, v.width, true);
            layernorm(list, &format!("{at}.norm_2"), v.width);
            linear(list, &format!("{at}.mlp.fc1"), v.mlp_width, v.width, true);
            linear(list, &format!("{at}.mlp.fc2"), v.width, v.mlp_width, true);
        }
        layernorm(list, "vision.ln_post", v.width);
        push(list, "vision.projection.weight", &[v.projection, v.width]);
    }

    fn resampler_tensors(&self, list: &mut Vec<TensorSpec>) {
        let (r, width) = (&self.resampler, self.vision.width);
        let inner = self.inner_widths().0;
        push(list, "resampler.latents", &[r.latents, width]);
        for i in 0..r.layers {
            let at = format!("resampler.layers.{i}");
            layernorm(list, &format!("{at}.attn.norm_media"), width);
            layernorm(list, &format!("{at}.attn.norm_latents"), width);
            linear(list, &format!("{at}.attn.q"), inner, width, false);
            linear(list, &format!("{at}.attn.kv"), 2 * inner, width, false);
            linear(list, &format!("{at}.attn.out"), width, inner, false);
            layernorm(list, &format!("{at}.mlp.norm"), width);
            linear(list, &format!("{at}.mlp.fc1"), r.mlp_width, width, false);
            linear(list, &format!("{at}.mlp.fc2"), width, r.mlp_width, false);
        }
        layernorm(list, "resampler.norm", width);
    }

    fn block_tensors(&self, layer: usize, list: &mut Vec<TensorSpec>) {
        let (x, width) = (&self.cross_attention, self.language.width);
        let inner = self.inner_widths().1;
        let at = format!("xattn.{layer}");
        push(list, &format!("{at}.attn.gate"), &[1]);
        layernorm(list, &format!("{at}.attn.norm"), width);
        linear(list, &format!("{at}.attn.q"), inner, width, false);
        linear(list, &format!("{at}.attn.kv"), 2 * inner, self.vision.width, false);
        linear(list, &format!("{at}.attn.out"), width, inner, false);
        push(list, &format!("{at}.mlp.gate"), &[1]);
        layernorm(list, &format!("{at}.mlp.norm"), width);
        linear(list, &format!("{at}.mlp.fc1"), x.mlp_width, width, false);
        linear(list, &format!("{at}.mlp.fc2"), width, x.mlp_width, false);
    }

    fn layer_tensors(&self, layer: usize, list: &mut Vec<TensorSpec>) {
        let l = &self.language;
        let (at, bias) = (format!("language.layers.{layer}"), l.family.has_bias());
        self.norm(list, &format!("{at}.norm_1"), l.width);
        linear(list, &format!("{at}.attn.qkv"), 3 * l.width, l.width, bias);
        if l.qk_norm {
            push(list, &format!("{at}.attn.q_norm.weight"), &[l.width]);
            push(list, &format!("{at}.attn.k_norm.weight"), &[l.width]);
        }
        linear(list, &format!("{at}.attn.out"), l.width, l.width, bias);
        self.norm(list, &format!("{at}.norm_2"), l.width);
        match l.family {
            // Rows are [gate; up]: one product, then swiglu.
            Family::Llama => {
                linear(list, &format!("{at}.mlp.gate_up"), 2 * l.mlp_width, l.width, false)
            }
            _ => linear(list, &format!("{at}.mlp.fc1"), l.mlp_width, l.width, bias),
        }
        linear(list, &format!("{at}.mlp.fc2"), l.width, l.mlp_width, bias);
    }

    fn norm(&self, list: &mut Vec<TensorSpec>, at: &str, width: usize) {
        push(list, &format!("{at}.weight"), &[width]);
        if self.language.family.has_bias() {
            push(list, &format!("{at}.bias"), &[width]);
        }
    }
}

fn push(list: &mut Vec<TensorSpec>, name: &str, shape: &[usize]) {
    list.push((name.to_string(), shape.to_vec()));
}

fn layernorm(list: &mut Vec<TensorSpec>, at: &str, width: usize) {
    push(list, &format!("{at}.weight"), &[width]);
    push(list, &format!("{at}.bias"), &[width]);
}

fn linear(list: &mut Vec<TensorSpec>, at: &str, outputs: usize, inputs: usize, bias: bool) {
    push(list, &format!("{at}.weight"), &[outputs, inputs]);
    if bias {
        push(list, &format!("{at}.bias"), &[outputs]);
    }
}

//! What a micro-batch needs while it passes: elements of the tensors of `model/train`, one by one.

use super::Shape;
use crate::DType;
use crate::model::Family;
use crate::ops::Weight;
use crate::train::{Recompute, Trained};

/// Images that a frozen vision encoder sees at a time.
const TOGETHER: usize = 16;

/// Elements that backward reads, by part, and those of one layer at work.
pub(super) struct Elements<'a> {
    pub shape: &'a Shape,
}

impl Elements<'_> {
    fn trained(&self) -> &Trained {
        &self.shape.options.trained
    }

    fn rows(&self) -> usize {
        self.shape.size.tokens
    }

    fn latents(&self) -> usize {
        self.shape.size.images * self.shape.config.resampler.latents
    }

    fn patches(&self) -> usize {
        self.shape.size.images * self.shape.config.patches()
    }

    fn is_kept(&self, is_block: bool) -> bool {
        match self.shape.options.recompute {
            Recompute::None => true,
            Recompute::Blocks => !is_block,
            Recompute::All => false,
        }
    }

    /// Layers with a backward.
    fn first(&self) -> usize {
        let (t, config) = (self.trained(), &self.shape.config);
        match t.language || t.embedding_rows {
            true => 0,
            false => config.gated_layers().next().unwrap_or(config.language.layers),
        }
    }

    /// One decoder layer, a token: what is kept, and what is not if it is frozen.
    fn layer(&self) -> (usize, usize) {
        let l = &self.shape.config.language;
        let (d, f) = (l.width, l.mlp_width);
        let fc1 = if l.family == Family::Llama { 2 * f } else { f };
        let middle = if l.parallel_residual { 0 } else { d };
        let qk = if l.qk_norm { 2 * d } else { 0 };
        let kept = d + 3 * d + qk + middle + fc1;
        let rest = 3 * d + f;
        if self.trained().language { (kept + rest, 0) } else { (kept, rest) }
    }

    pub fn language(&self) -> usize {
        let (l, rows) = (&self.shape.config.language, self.rows());
        let count = l.layers - self.first();
        let each = if self.is_kept(false) { self.layer().0 } else { l.width };
        // The sequence through all layers, its gradient, keys and values of one layer.
        rows * (count * each + l.width + l.width + 2 * l.width)
    }

    /// One gated block: for a token, and for a latent.
    fn block(&self) -> (usize, usize) {
        let (x, d) = (&self.shape.config.cross_attention, self.shape.config.language.width);
        let inner = x.heads * x.head_dim;
        (2 * d + 2 * inner + 2 * d + 2 * x.mlp_width, 2 * inner)
    }

    pub fn blocks(&self) -> usize {
        let config = &self.shape.config;
        let count = config.gated_layers().filter(|&l| l >= self.first()).count();
        if !self.is_kept(true) {
            return count * self.rows() * config.language.width;
        }
        let (token, latent) = self.block();
        count * (self.rows() * token + self.latents() * latent)
    }

    /// One resampler layer.
    fn resampler_layer(&self) -> usize {
        let (r, d) = (&self.shape.config.resampler, self.shape.config.vision.width);
        let inner = r.heads * r.head_dim;
        let latent = 4 * d + inner + 2 * inner + inner + 2 * r.mlp_width;
        self.patches() * (d + 2 * inner) + self.latents() * latent
    }

    pub fn resampler(&self) -> usize {
        let (r, d) = (&self.shape.config.resampler, self.shape.config.vision.width);
        let t = self.trained();
        let is_seen = t.resampler || t.vision;
        let each = match (is_seen, self.is_kept(false)) {
            (false, _) => 0,
            (true, true) => self.resampler_layer(),
            (true, false) => self.latents() * d,
        };
        // The latents through all layers, normed, and the gradients of both.
        r.layers * each + self.latents() * d * if is_seen { 4 } else { 2 }
    }

    pub fn vision(&self) -> usize {
        let (v, images) = (&self.shape.config.vision, self.shape.size.images);
        let rows = |images: usize| images * (1 + self.shape.config.patches());
        let layer = 2 * v.width + 3 * v.width + v.width + 2 * v.width + 2 * v.mlp_width;
        if self.trained().vision {
            let each = if self.is_kept(false) { layer } else { v.width };
            return rows(images) * (v.layers * each + 2 * v.width);
        }
        // One layer of a few images.
        let together = images.min(TOGETHER);
        rows(together) * (2 * v.width + 3 * v.width + v.width + v.mlp_width)
    }

    pub fn media(&self) -> usize {
        let gradient = usize::from(self.trained().vision);
        self.patches() * self.shape.config.vision.width * (1 + gradient)
    }

    /// The layer that needs most while it works: forward again, if it was not kept, and backward.
    pub fn scratch(&self) -> usize {
        let (l, x) = (&self.shape.config.language, &self.shape.config.cross_attention);
        let (d, f, rows) = (l.width, l.mlp_width, self.rows());
        let fc1 = if l.family == Family::Llama { 2 * f } else { f };
        let again = |is_block: bool, kept: usize| if self.is_kept(is_block) { 0 } else { kept };
        let (kept, rest) = self.layer();
        let forward = if self.is_kept(false) { 0 } else { kept + rest };
        let layer = rows * (forward + f + fc1 + d + d + 3 * d + d + 4 * l.heads);
        let inner = x.heads * x.head_dim;
        let (token, latent) = self.block();
        let block = rows * (again(true, token) + 3 * d + 2 * inner + 2 * x.mlp_width + 4 * x.heads)
            + self.latents() * (again(true, latent) + 2 * inner);
        let r = &self.shape.config.resampler;
        let (dv, own) = (self.shape.config.vision.width, r.heads * r.head_dim);
        let resampler = again(false, self.resampler_layer())
            + self.latents() * (2 * r.mlp_width + 2 * dv + 4 * own + 4 * r.heads)
            + self.patches() * (2 * own + 2 * dv);
        let forward = rows * rest;
        layer.max(block).max(resampler).max(forward)
    }

    /// The head: normed rows, their gradients, the matrix and its transpose.
    pub fn head(&self) -> usize {
        let l = &self.shape.config.language;
        l.width * l.vocabulary.next_multiple_of(64) + 4 * self.shape.size.targets * l.width
    }

    /// Bytes of a few rows of logits, f32, and their gradients.
    pub fn logits(&self) -> usize {
        let rows = self.shape.options.logit_rows.min(self.shape.size.targets);
        let size = DType::from(self.shape.config.dtype).size();
        rows * self.shape.config.language.vocabulary.next_multiple_of(64) * (4 + size)
    }

    /// The largest matrix turned for a product, or the two sides of a weight's gradient.
    pub fn turned(&self) -> usize {
        let config = &self.shape.config;
        let (l, x, d) = (&config.language, &config.cross_attention, config.language.width);
        let fc1 = if l.family == Family::Llama { 2 * l.mlp_width } else { l.mlp_width };
        let mut most = (d * fc1).max(3 * d * d).max(d * x.mlp_width);
        if self.trained().gated_blocks {
            most = most.max(self.rows() * (d + x.mlp_width));
        }
        if self.trained().language {
            most = most.max(self.rows() * (d + fc1));
        }
        if self.trained().resampler {
            let (r, dv) = (&config.resampler, config.vision.width);
            let inner = r.heads * r.head_dim;
            most = most.max(self.patches().max(self.latents()) * (2 * inner + dv));
            most = most.max(self.latents() * (r.mlp_width + dv));
        }
        // On the way to the transpose, a part of a matrix of codes.
        let part = if self.shape.weights.has_codes { Weight::PART.min(most) } else { 0 };
        most + part
    }
}

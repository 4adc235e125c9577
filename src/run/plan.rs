//! What a run needs of a device's memory, by class, before anything of it is allocated, and what
//! would make it fit. The numbers follow the training pass (`model/train`), tensor by tensor;
//! `tests/plan.rs` compares them with what a trainer really holds.

use super::config::RunConfig;
use crate::model::{BUCKET, Buckets, Config, Family, Parameter, Parameters};
use crate::train::{ALIGN, OptimizerOptions, Precision, Recompute, Shard, TrainOptions, Trained};
use crate::{DType, Error, Result};
use serde::Serialize;
use std::fmt;

/// Share of a card that is left to its driver and to fragments.
const RESERVE: f64 = 0.05;
/// Images that a frozen vision encoder sees at a time.
const TOGETHER: usize = 16;

/// One micro-batch at its largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    pub sequences: usize,
    pub tokens: usize,
    pub images: usize,
    /// Tokens that are predicted; all of them at most.
    pub targets: usize,
}

/// What one kind of tensors takes, bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Class {
    pub name: &'static str,
    pub bytes: u64,
}

/// A run's memory on each rank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    pub parameters: u64,
    pub trained_parameters: u64,
    pub ranks: usize,
    pub micro_batch: Size,
    pub recompute: Recompute,
    pub classes: Vec<Class>,
    pub total: u64,
    /// The card's memory, if one was given, and whether the run fits on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub card: Option<Card>,
}

/// A card, and what would fit on it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Card {
    pub bytes: u64,
    pub fits: bool,
    /// Changes after which it does fit, with the total then; the smallest change first.
    pub ways: Vec<(String, u64)>,
}

/// The shape of a run: everything that its memory depends on.
#[derive(Clone, Debug)]
pub struct Shape {
    pub config: Config,
    pub options: TrainOptions,
    pub size: Size,
    pub ranks: usize,
    /// See [`super::RunOptions::has_sums`].
    pub has_sums: bool,
}

impl Shape {
    /// That of a configuration over `ranks` ranks, with the model's own.
    pub fn of(run: &RunConfig, config: &Config, ranks: usize) -> Self {
        let context = config.language.context;
        let mut size = Size { sequences: 0, tokens: 0, images: 0, targets: 0 };
        for source in &run.sources {
            let rules = source.rules();
            size.sequences += source.batch;
            size.tokens += source.batch * rules.max_tokens.min(context);
            size.images += source.batch * rules.max_images;
        }
        size.targets = size.tokens;
        let (config, options) = (config.clone(), run.train.clone());
        Shape { config, options, size, ranks, has_sums: run.run.has_sums(ranks) }
    }

    /// Its memory.
    ///
    /// # Errors
    /// Never for a model that can be trained.
    pub fn plan(&self) -> Result<Plan> {
        let layout = self.layout()?;
        let mut classes = self.fixed(&layout);
        classes.extend(self.passing());
        classes.retain(|class| class.bytes > 0);
        Ok(Plan {
            parameters: layout.all,
            trained_parameters: layout.trained,
            ranks: self.ranks,
            micro_batch: self.size,
            recompute: self.options.recompute,
            total: classes.iter().map(|c| c.bytes).sum(),
            classes,
            card: None,
        })
    }

    /// As [`Shape::plan`], with what a card of `bytes` makes of it.
    ///
    /// # Errors
    /// As [`Shape::plan`].
    pub fn plan_for(&self, bytes: u64) -> Result<Plan> {
        let mut plan = self.plan()?;
        let usable = (bytes as f64 * (1.0 - RESERVE)) as u64;
        let fits = plan.total <= usable;
        let mut ways = Vec::new();
        if !fits {
            ways = self.alternatives()?;
            ways.retain(|(_, total)| *total <= usable);
        }
        plan.card = Some(Card { bytes, fits, ways });
        Ok(plan)
    }

    /// Changes that need less, from the one that costs least on.
    fn alternatives(&self) -> Result<Vec<(String, u64)>> {
        let mut list = Vec::new();
        let mut add = |what: String, change: &dyn Fn(&mut Shape)| {
            let mut other = self.clone();
            change(&mut other);
            list.push(other.plan().map(|plan| (what, plan.total)));
        };
        let (eight, blocks, all) = (
            |s: &mut Shape| s.options.optimizer.bits = 8,
            |s: &mut Shape| s.options.recompute = Recompute::Blocks,
            |s: &mut Shape| s.options.recompute = Recompute::All,
        );
        let stochastic = |s: &mut Shape| s.options.optimizer.precision = Precision::Stochastic;
        let is_bf16 = DType::from(self.config.dtype) == DType::BF16;
        if self.options.optimizer.bits != 8 {
            add("train.optimizer.bits = 8".into(), &eight);
        }
        if self.options.recompute == Recompute::None {
            add("train.recompute = \"blocks\"".into(), &blocks);
        }
        if self.options.recompute != Recompute::All {
            add("train.recompute = \"all\"".into(), &all);
            add("bits = 8 and recompute = \"all\"".into(), &|s| {
                eight(s);
                all(s);
            });
        }
        if is_bf16 && self.options.optimizer.precision == Precision::Master {
            add("train.optimizer.precision = \"stochastic\"".into(), &stochastic);
            add("bits = 8, recompute = \"all\", precision = \"stochastic\"".into(), &|s| {
                eight(s);
                all(s);
                stochastic(s);
            });
        }
        for parts in [2, 4, 8, 16, 32] {
            if self.size.sequences >= parts {
                add(format!("1/{parts} of the batch, {parts} x run.micro_batches"), &|s| {
                    s.has_sums = true;
                    let z = &mut s.size;
                    for n in [&mut z.sequences, &mut z.tokens, &mut z.images, &mut z.targets] {
                        *n = n.div_ceil(parts);
                    }
                });
            }
        }
        for ranks in [2, 4, 8] {
            if ranks > self.ranks {
                add(format!("{ranks} ranks"), &|s| (s.ranks, s.has_sums) = (ranks, true));
            }
        }
        list.into_iter().collect()
    }

    fn layout(&self) -> Result<Layout> {
        let specs = self.config.tensors();
        let elements = |(_, shape): &(String, Vec<usize>)| shape.iter().product::<usize>();
        let trained = Parameters::planned(&self.config, &self.options.trained);
        let buckets = Buckets::new(&trained, &self.config, BUCKET)?;
        let len = |p: &Parameter| p.range.len();
        let is_table = |name: &str| trained.iter().any(|p| p.rows.is_some() && p.name == name);
        Ok(Layout {
            all: specs.iter().map(|spec| elements(spec) as u64).sum(),
            trained: trained.iter().map(|p| len(p) as u64).sum(),
            flat: trained.last().map_or(0, |p| p.range.end.next_multiple_of(ALIGN)),
            small: trained.iter().map(len).filter(|&n| n < OptimizerOptions::SMALL).sum(),
            tables: specs.iter().filter(|(name, _)| is_table(name)).map(elements).sum(),
            buckets: buckets.slots().iter().sum(),
        })
    }

    /// What is there before and after a step.
    fn fixed(&self, layout: &Layout) -> Vec<Class> {
        let (o, size) = (&self.options.optimizer, DType::from(self.config.dtype).size() as u64);
        let own = Shard { rank: 0, world: self.ranks }.range(layout.flat).len() as f64;
        // Of this rank's share of what is trained; gaps between tensors have no state.
        let state = layout.trained as f64 * own / layout.flat.max(1) as f64;
        let small = layout.small as f64 * state / layout.trained.max(1) as f64;
        let moments = match o.bits {
            8 => 8.0 * small + (state - small) * (2.0 + 8.0 / o.block as f64),
            _ => 8.0 * state,
        };
        let under_way = if self.has_sums { 4 * layout.buckets as u64 } else { 0 };
        let has_master = o.precision == Precision::Master && size != 4;
        let class = |name, bytes: f64| Class { name, bytes: bytes as u64 };
        vec![
            Class { name: "weights", bytes: layout.all * size },
            Class { name: "trained weights, a copy", bytes: layout.flat as u64 * size },
            Class { name: "embeddings, a copy", bytes: layout.tables as u64 * size },
            class("gradients, f32", 4.0 * own),
            Class { name: "gradients under way to other ranks, f32", bytes: under_way },
            class("master weights, f32", if has_master { 4.0 * state } else { 0.0 }),
            class("moments", moments),
        ]
    }

    /// What a micro-batch needs while it passes.
    fn passing(&self) -> Vec<Class> {
        let e = Elements { shape: self };
        let size = DType::from(self.config.dtype).size();
        let of = |name, elements: usize| Class { name, bytes: (elements * size) as u64 };
        let v = &self.config.vision;
        let pixels = self.size.images * 3 * v.image_size * v.image_size * 4;
        vec![
            of("activations of the language model", e.language()),
            of("activations of the gated blocks", e.blocks()),
            of("activations of the resampler", e.resampler()),
            of("activations of the vision encoder", e.vision()),
            of("tokens of the images", e.media()),
            Class { name: "pixels", bytes: pixels as u64 },
            of("working memory of a layer", e.scratch().max(e.head())),
            Class { name: "logits", bytes: e.logits() as u64 },
            of("transposed matrices", e.turned()),
        ]
    }
}

/// Elements of the model's tensors.
struct Layout {
    all: u64,
    trained: u64,
    /// With the gaps that align them.
    flat: usize,
    /// Of tensors whose moments keep 32 bits.
    small: usize,
    /// Of matrices that are copied because some of their rows are trained.
    tables: usize,
    /// Of the buffers in which buckets of gradients are made.
    buckets: usize,
}

/// Elements that backward reads, by part, and those of one layer at work.
struct Elements<'a> {
    shape: &'a Shape,
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

    fn language(&self) -> usize {
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

    fn blocks(&self) -> usize {
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

    fn resampler(&self) -> usize {
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

    fn vision(&self) -> usize {
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

    fn media(&self) -> usize {
        let gradient = usize::from(self.trained().vision);
        self.patches() * self.shape.config.vision.width * (1 + gradient)
    }

    /// The layer that needs most while it works: forward again, if it was not kept, and backward.
    fn scratch(&self) -> usize {
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
    fn head(&self) -> usize {
        let l = &self.shape.config.language;
        l.width * l.vocabulary.next_multiple_of(64) + 4 * self.shape.size.targets * l.width
    }

    /// Bytes of a few rows of logits, f32, and their gradients.
    fn logits(&self) -> usize {
        let rows = self.shape.options.logit_rows.min(self.shape.size.targets);
        let size = DType::from(self.shape.config.dtype).size();
        rows * self.shape.config.language.vocabulary.next_multiple_of(64) * (4 + size)
    }

    /// The largest matrix turned for a product, or the two sides of a weight's gradient.
    fn turned(&self) -> usize {
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
        most
    }
}

/// `80GB`, `512MB` or bytes.
///
/// # Errors
/// Anything else.
pub fn bytes_of(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "MB" => 1e6,
        "GB" => 1e9,
        "MIB" => 1048576.0,
        "GIB" => 1073741824.0,
        _ => 0.0,
    };
    let bytes = digits.parse::<f64>().map_or(0.0, |n| n * unit);
    match (1.0..1e15).contains(&bytes) {
        true => Ok(bytes as u64),
        false => Err(Error::invalid("memory", "80GB, 512MB or bytes", format!("`{text}`"))),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let z = &self.micro_batch;
        let (all, trained) = (self.parameters as f64 / 1e6, self.trained_parameters as f64 / 1e6);
        writeln!(
            f,
            "{all:.1} M parameters, {trained:.1} M trained; on each of {} ranks:",
            self.ranks
        )?;
        writeln!(
            f,
            "micro-batches of {} sequences, at most {} tokens and {} images; recompute {}\n",
            z.sequences, z.tokens, z.images, self.recompute
        )?;
        for class in &self.classes {
            writeln!(f, "{:>10.3} GB  {}", gb(class.bytes), class.name)?;
        }
        writeln!(f, "{:>10.3} GB  together", gb(self.total))?;
        let Some(card) = &self.card else { return Ok(()) };
        let size = gb(card.bytes);
        let free = RESERVE * 100.0;
        match (card.fits, card.ways.is_empty()) {
            (true, _) => writeln!(f, "\nfits on a card of {size:.0} GB with {free:.0} % to spare"),
            (false, true) => {
                writeln!(f, "\ndoes not fit on a card of {size:.0} GB, whatever is changed")
            }
            (false, false) => {
                writeln!(f, "\ndoes not fit on a card of {size:.0} GB; it would with")?;
                let each =
                    |(what, total): &(String, u64)| writeln!(f, "{:>10.3} GB  {what}", gb(*total));
                card.ways.iter().try_for_each(each)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::preset;

    fn shape(tokens: usize, ranks: usize) -> Shape {
        let mut options = TrainOptions::default();
        options.optimizer.bits = 8;
        let size = Size { sequences: 6, tokens, images: 18, targets: tokens };
        let config = preset("med-flamingo-9b").unwrap();
        Shape { config, options, size, ranks, has_sums: ranks > 1 }
    }

    fn of(plan: &Plan, start: &str) -> f64 {
        let own = plan.classes.iter().filter(|c| c.name.starts_with(start));
        own.map(|c| c.bytes as f64 / 1e9).sum()
    }

    /// The published arithmetic of the 9B model: 8-bit AdamW, bf16, 6 x 2048 tokens.
    #[test]
    fn the_9b_models_classes_are_those_of_the_arithmetic() {
        let plan = shape(6 * 2048, 1).plan().unwrap();
        let near = |found: f64, expected: f64, share: f64| {
            assert!(
                (found / expected - 1.0).abs() < share,
                "{found} GB, expected {expected}: {plan}"
            );
        };
        near(of(&plan, "weights"), 16.44, 0.01);
        near(of(&plan, "trained weights"), 2.36, 0.01);
        near(of(&plan, "moments"), 2.39, 0.02);
        near(of(&plan, "master"), 4.72, 0.01);
        // Gradients are f32 here, twice what the arithmetic has.
        near(of(&plan, "gradients, f32"), 2.0 * 2.36, 0.01);
        let kept = of(&plan, "activations of the language") + of(&plan, "activations of the gated");
        near(kept, 41.7, 0.10);
        let eighth = shape(6 * 2048, 8).plan().unwrap();
        near(of(&eighth, "moments"), 0.30, 0.02);
        near(of(&eighth, "master"), 0.59, 0.01);
        // An eighth, and two blocks: one that is added up, one that backward writes.
        near(of(&eighth, "gradients, f32"), 2.0 * 2.36 / 8.0, 0.01);
        near(of(&eighth, "gradients under way"), 2.0 * 0.554, 0.02);
    }

    #[test]
    fn what_would_fit_does_fit_and_recomputing_needs_less() {
        let mut s = shape(6 * 2048, 1);
        s.options.optimizer.bits = 32;
        let plan = s.plan_for(80_000_000_000).unwrap();
        let card = plan.card.as_ref().unwrap();
        assert!(!card.fits && !card.ways.is_empty(), "{plan}");
        assert!(card.ways.iter().all(|(_, total)| *total <= 76_000_000_000));
        assert!(plan.to_string().contains("it would with"));
        let total = |r: Recompute| {
            let mut s = s.clone();
            s.options.recompute = r;
            s.plan().unwrap().total
        };
        assert!(total(Recompute::All) < total(Recompute::Blocks));
        assert!(total(Recompute::Blocks) < total(Recompute::None));
        assert!(s.plan_for(1 << 40).unwrap().card.unwrap().fits);
        let none = s.plan_for(1_000_000_000).unwrap();
        assert!(none.to_string().contains("whatever is changed"));
        assert_eq!(
            (bytes_of("80GB").unwrap(), bytes_of("1.5MB").unwrap()),
            (80_000_000_000, 1_500_000)
        );
        assert!(bytes_of("80TBs").is_err() && bytes_of("-1GB").is_err() && bytes_of("").is_err());
    }
}

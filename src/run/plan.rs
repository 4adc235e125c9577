//! What a run needs of a device's memory, by class, before anything of it is allocated, and what
//! would make it fit. The numbers follow the training pass (`model/train`), tensor by tensor;
//! `tests/plan.rs` compares them with what a trainer really holds.

mod passing;

use super::config::RunConfig;
use crate::model::{BUCKET, Buckets, Config, Parameter, Parameters};
use crate::train::{ALIGN, OptimizerOptions, Precision, Recompute, Shard, TrainOptions, Trained};
use crate::weights::Weights;
use crate::{DType, Error, Result};
use passing::Elements;
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// Share of a card that is left to its driver and to fragments.
const RESERVE: f64 = 0.05;

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

/// Weights as they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub bytes: u64,
    /// Some have 8 or 4 bits.
    pub has_codes: bool,
}

impl Stored {
    /// All of the model's own type.
    pub fn dense(config: &Config) -> Self {
        let elements = |(_, shape): (String, Vec<usize>)| shape.iter().product::<usize>();
        let all: usize = config.tensors().into_iter().map(elements).sum();
        Stored { bytes: (all * DType::from(config.dtype).size()) as u64, has_codes: false }
    }

    /// Those of a folder, of which `trained` parts can be trained.
    ///
    /// # Errors
    /// Files that are damaged, codes in what is trained.
    pub fn read(folder: &Path, trained: &Trained) -> Result<Self> {
        let weights = Weights::open(folder)?;
        trained.check(&weights)?;
        let has_codes = weights.iter().any(|(_, entry)| !entry.dtype.is_float());
        Ok(Stored { bytes: weights.bytes() as u64, has_codes })
    }
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
    pub weights: Stored,
    /// What they would be if everything frozen had 8 bits, if that is another way to make it fit.
    pub int8: Option<Stored>,
}

impl Shape {
    /// That of a configuration over `ranks` ranks, with the model's own; no weight has few bits.
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
        let (weights, int8) = (Stored::dense(config), None);
        let (config, options) = (config.clone(), run.train.clone());
        let has_sums = run.run.has_sums(ranks);
        Shape { config, options, size, ranks, has_sums, weights, int8 }
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
        if let Some(int8) = self.int8 {
            let quantized = |s: &mut Shape| s.weights = int8;
            add("int8 frozen weights (medflamingo-tools quantize)".into(), &quantized);
            add("int8 frozen weights, bits = 8, recompute = \"all\"".into(), &|s| {
                eight(s);
                all(s);
                quantized(s);
            });
        }
        for parts in [2, 4, 8, 16, 32] {
            if self.size.sequences >= parts {
                let what = format!("1/{parts} of the batch, {parts} x run.micro_batches");
                add(what, &|s| s.divide(parts));
            }
        }
        for ranks in [2, 4, 8] {
            if ranks > self.ranks {
                add(format!("{ranks} ranks"), &|s| (s.ranks, s.has_sums) = (ranks, true));
            }
        }
        list.into_iter().collect()
    }

    /// Cuts the batch into micro-batches.
    fn divide(&mut self, parts: usize) {
        self.has_sums = true;
        let z = &mut self.size;
        for n in [&mut z.sequences, &mut z.tokens, &mut z.images, &mut z.targets] {
            *n = n.div_ceil(parts);
        }
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
        let weights = match self.weights.has_codes {
            true => "weights, some of few bits, with their scales",
            false => "weights",
        };
        vec![
            Class { name: weights, bytes: self.weights.bytes },
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
        let pixels = self.size.images * 3 * v.image_size * v.image_size;
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
        let (weights, has_sums) = (Stored::dense(&config), ranks > 1);
        Shape { config, options, size, ranks, has_sums, weights, int8: None }
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

    /// Frozen weights of half the bytes make the 9B model fit where nothing else does.
    #[test]
    fn weights_of_8_bits_are_a_way_to_make_it_fit() {
        let mut s = shape(2048, 1);
        s.options.optimizer.precision = Precision::Stochastic;
        let dense = s.weights.bytes;
        let int8 = Stored { bytes: dense * 6 / 10, has_codes: true };
        s.int8 = Some(int8);
        let total = s.plan().unwrap().total;
        let card = s.plan_for((total - dense / 5) * 100 / 95).unwrap().card.unwrap();
        let (what, least) = card.ways.iter().find(|w| w.0.starts_with("int8")).unwrap();
        assert!(what.contains("quantize") && *least < total - dense / 5);
        s.weights = int8;
        let plan = s.plan().unwrap();
        assert_eq!(plan.total, *least);
        assert!(
            plan.to_string().contains("few bits")
                && plan.parameters == shape(1, 1).plan().unwrap().parameters
        );
        // A part of a matrix that becomes numbers, beside its transpose.
        assert_eq!(dense - int8.bytes, total - plan.total + (2 * crate::ops::Weight::PART) as u64);
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

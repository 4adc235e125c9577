//! For every tensor of the model folder the pieces that make it, and for every source key a reason.

use super::flamingo;
use super::json::Object;
use super::language;
use super::ledger::{Fate, shortened};
use super::names::{self, FLAMINGO, Layout, Op, Recipe};
use super::pieces::{self, Piece};
use super::rows::{self, NewHeadRows};
use super::source::Source;
use super::vision::{self, Clip, Style};
use crate::checkpoint::{Checkpoint, Entry};
use crate::model::config::{Activation, Config, StoredDType, Tokens};
use crate::text::Prepared;
use crate::{Error, Result};
use std::path::Path;

/// The three inputs, opened and understood.
pub(super) struct Inputs {
    pub language: Source,
    pub flamingo: Source,
    pub clip: Clip,
    pub layout: Layout,
    pub tokenizer: Prepared,
    pub config: Config,
}

/// One tensor of the model folder.
pub(super) struct Item {
    pub name: String,
    pub shape: Vec<usize>,
    pub pieces: Vec<Piece>,
    /// `role:key` of what fills it.
    pub from: Vec<String>,
    pub how: String,
}

/// Everything that will be written.
pub(super) struct Plan {
    pub items: Vec<Item>,
    pub notes: Vec<String>,
    pub new_head_rows: String,
    pub suppress: Vec<u32>,
}

impl Inputs {
    /// Opens everything and infers the configuration; reads headers only.
    ///
    /// # Errors
    /// Files that are missing, damaged, unsupported, or do not belong together.
    pub(super) fn open(
        folder: &Path,
        clip: &Path,
        checkpoint: &Path,
        (dtype, activation): (StoredDType, Option<Activation>),
    ) -> Result<Self> {
        let object = Object::read(&folder.join("config.json"))?;
        let tokenizer = crate::text::prepare(folder)?;
        let (model, stated) = language::infer(&object, tokenizer.len)?;
        let language = Source::new("language-model", Checkpoint::open(folder)?, names::unwrapped)?;
        let layout = language::layout_of(stated, &language);
        language::check_layers(&language, layout, &model)?;
        let clip = vision::open(clip, activation)?;
        let flamingo = flamingo::open(checkpoint, layout)?;
        let inside = |e: Error| e.within(checkpoint.display());
        let config = Config {
            model_type: "medflamingo".into(),
            dtype,
            vision: clip.vision.clone(),
            resampler: flamingo::resampler(&flamingo).map_err(inside)?,
            cross_attention: flamingo::cross_attention(&flamingo, &model)?,
            language: model,
            tokens: Tokens {
                end_of_chunk: tokenizer.specials.end_of_chunk,
                image: tokenizer.specials.image,
                pad: tokenizer.specials.pad,
                leading: tokenizer.leading,
            },
        };
        config.check().map_err(|e| e.within("the configuration inferred from the inputs"))?;
        Ok(Inputs { language, flamingo, clip, layout, tokenizer, config })
    }

    /// # Errors
    /// Keys that are missing, shaped otherwise, or that nothing explains.
    pub(super) fn plan(&mut self, new_head_rows: &NewHeadRows) -> Result<Plan> {
        let mut plan = Plan {
            items: Vec::new(),
            notes: self.clip.notes.clone(),
            new_head_rows: String::new(),
            suppress: Vec::new(),
        };
        plan.notes.push(format!(
            "tokenizer: {} tokens of {}, {} with Flamingo's; first id of a prompt {}: {}",
            self.tokenizer.base_len,
            self.tokenizer.source,
            self.tokenizer.len,
            self.tokenizer.leading.map_or("none".into(), |id| id.to_string()),
            self.tokenizer.reason
        ));
        let mut missing = Vec::new();
        for (name, shape) in self.config.tensors() {
            match name.as_str() {
                "language.embedding.weight" => {
                    plan.items.push(rows::embedding(self, &mut plan.notes)?)
                }
                "language.head.weight" => {
                    let head = rows::head(self, new_head_rows)?;
                    plan.items.push(head.item);
                    plan.new_head_rows = head.told;
                    plan.suppress = head.suppress;
                }
                _ => plan.items.extend(self.item(name, shape, &mut missing)?),
            }
        }
        if self.config.language.tied_head {
            rows::tied(self)?;
            plan.new_head_rows = "none: the head is the embedding".into();
        }
        check_missing(&missing)?;
        self.settle_rest()?;
        Ok(plan)
    }

    /// The pieces of one tensor; keys that are not there are added to `missing`.
    fn item(
        &mut self,
        name: String,
        shape: Vec<usize>,
        missing: &mut Vec<String>,
    ) -> Result<Option<Item>> {
        let heads = self.config.language.heads;
        let part = name.split('.').next().unwrap_or_default();
        let (source, recipe) = match part {
            "vision" => (&mut self.clip.source, self.clip.style.recipe(&name)),
            "resampler" | "xattn" => (&mut self.flamingo, names::recipe(FLAMINGO, &name)),
            _ => {
                let recipe = names::recipe(self.layout.rules(), &name);
                let recipe = recipe.ok_or_else(|| unmapped(&name))?;
                let whole = Recipe {
                    sources: recipe.sources.iter().map(|s| format!("lang_encoder.{s}")).collect(),
                    op: recipe.op,
                };
                if whole.sources.iter().all(|s| self.flamingo.get(s).is_some()) {
                    let why = "the Flamingo checkpoint holds the whole language model and is used";
                    let keys = recipe.sources.iter();
                    keys.for_each(|s| self.language.settle(s, Fate::Ignored(why.into())));
                    (&mut self.flamingo, Some(whole))
                } else {
                    (&mut self.language, Some(recipe))
                }
            }
        };
        let recipe = recipe.ok_or_else(|| unmapped(&name))?;
        let absent: Vec<_> = recipe.sources.iter().filter(|s| source.get(s).is_none()).collect();
        if !absent.is_empty() {
            missing.extend(absent.into_iter().map(|s| source.label(s)));
            return Ok(None);
        }
        let pieces = assemble(source, &recipe, &shape, heads)
            .map_err(|e| e.within(source.path().display()))?;
        let from = recipe.sources.iter().map(|s| source.label(s)).collect();
        recipe.sources.iter().for_each(|s| source.settle(s, Fate::Mapped(name.clone())));
        let how = match (recipe.op, recipe.sources.len()) {
            (Op::Transpose, _) => "transposed",
            (Op::SplitHeads, _) => "heads' q, k, v gathered",
            (Op::Stack, 1) => "",
            (Op::Stack, _) => "stacked",
        };
        Ok(Some(Item { name, shape, pieces, from, how: how.into() }))
    }

    /// Every key that no tensor was made of has to have a reason.
    fn settle_rest(&mut self) -> Result<()> {
        self.compare_vision()?;
        let text = |key: &str| names::ignored_clip(key).map(str::to_string);
        if self.clip.style != Style::Bare {
            self.clip.source.ignore(text);
        }
        self.language.ignore(|key| names::ignored_language(key).map(str::to_string));
        self.flamingo.ignore(|key| {
            if let Some(rest) = key.strip_prefix("vision_encoder.") {
                return text(rest);
            }
            let rest = key.strip_prefix("lang_encoder.")?;
            names::ignored_language(rest).map(str::to_string)
        });
        self.clip.source.check_explained("the vision file is not the CLIP this expects")?;
        self.language.check_explained(
            "the language model has parts that its config.json does not mention",
        )?;
        self.flamingo.check_explained("the checkpoint has parts that OpenFlamingo does not")
    }

    /// A whole dump holds CLIP too. It is frozen in training, so it must be the one given.
    fn compare_vision(&mut self) -> Result<()> {
        for (target, shape) in self.config.tensors() {
            let styles = [Style::OpenClip, Style::HuggingFace];
            let recipes = styles.iter().filter_map(|style| style.recipe(&target));
            for recipe in recipes {
                let sources =
                    recipe.sources.iter().map(|s| format!("vision_encoder.{s}")).collect();
                let recipe = Recipe { sources, op: recipe.op };
                if recipe.sources.iter().any(|s| self.flamingo.get(s).is_none()) {
                    continue;
                }
                let theirs = assemble(&self.flamingo, &recipe, &shape, 1)?;
                let used = self.clip.style.recipe(&target).ok_or_else(|| unmapped(&target))?;
                let ours = assemble(&self.clip.source, &used, &shape, 1)?;
                if !is_close(&pieces::values(&theirs)?, &pieces::values(&ours)?) {
                    let who = self.flamingo.label(&recipe.sources[0]);
                    let expected = format!("the values in {}", self.clip.source.path().display());
                    return Err(Error::invalid(who, expected, "others")
                        .advise("the checkpoint was trained with another CLIP than --vision"));
                }
                for key in &recipe.sources {
                    let why = "compared: the same values as --vision, which is used";
                    self.flamingo.settle(key, Fate::Ignored(why.into()));
                }
            }
        }
        Ok(())
    }
}

/// Equal up to the rounding of bf16, in which somebody may have saved one of them.
fn is_close(a: &[f32], b: &[f32]) -> bool {
    let near = |(x, y): (&f32, &f32)| (x - y).abs() <= x.abs().max(y.abs()) / 256.0 + 1e-6;
    a.len() == b.len() && a.iter().zip(b).all(near)
}

fn unmapped(target: &str) -> Error {
    Error::invalid(target, "a rule that says what fills it", "none")
}

fn check_missing(missing: &[String]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let expected = shortened(missing);
    Err(Error::invalid("missing keys", expected, format!("{} keys missing", missing.len()))
        .advise("the file is incomplete, or belongs to another model"))
}

/// The pieces that `recipe` makes a tensor of this shape of.
fn assemble(source: &Source, recipe: &Recipe, shape: &[usize], heads: usize) -> Result<Vec<Piece>> {
    let parts = recipe.sources.len();
    recipe
        .sources
        .iter()
        .map(|name| {
            let label = source.label(name);
            let entry = source
                .get(name)
                .ok_or_else(|| Error::invalid(&label, "a tensor", "no such key"))?;
            let mut expected = shape.to_vec();
            match recipe.op {
                Op::Transpose => expected.reverse(),
                Op::Stack | Op::SplitHeads => expected[0] /= parts,
            }
            check(&label, entry, &expected)?;
            Ok(match recipe.op {
                Op::Transpose => Piece::Transposed(entry.clone()),
                Op::SplitHeads => Piece::split_heads(entry, heads),
                Op::Stack => Piece::whole(entry),
            })
        })
        .collect()
}

/// # Errors
/// If the entry is not floating-point or has another shape.
pub(super) fn check(label: &str, entry: &Entry, expected: &[usize]) -> Result<()> {
    // The patch convolution (width, 3, p, p) is a matrix of flattened patches here.
    let flat = match entry.shape.as_slice() {
        &[rows, 3, height, width] if label.contains("conv1") || label.contains("patch_embed") => {
            vec![rows, 3 * height * width]
        }
        shape => shape.to_vec(),
    };
    if flat != expected || !entry.dtype.is_float() {
        let found = format!("{:?} {}", entry.shape, entry.dtype);
        return Err(Error::invalid(
            label,
            format!("{expected:?} of floating-point numbers"),
            found,
        )
        .advise("the inputs do not belong to the same model"));
    }
    Ok(())
}

//! CLIP's part of a configuration: widths from the tensors, heads and activation from the small
//! JSON files that lie beside them.

use super::json::Object;
use super::names::{HF_CLIP, OPEN_CLIP, Recipe, Rule, recipe, unwrapped};
use super::source::Source;
use crate::checkpoint::{Checkpoint, Format};
use crate::model::config::{Activation, Vision};
use crate::{Error, Result};
use serde_json::json;
use std::path::Path;

/// Mean and standard deviation of CLIP's pixels (open_clip, `OPENAI_DATASET_MEAN`).
pub(super) const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
pub(super) const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// How the file names the vision tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// open_clip and OpenAI: a whole CLIP, the tower under `visual.`.
    OpenClip,
    /// The tower alone.
    Bare,
    HuggingFace,
}

impl Style {
    /// # Errors
    /// If the file holds no vision tower that is known.
    fn of(source: &Source) -> Result<Self> {
        let has = |name: &str| source.get(name).is_some();
        if has("visual.class_embedding") {
            Ok(Style::OpenClip)
        } else if has("class_embedding") && has("conv1.weight") {
            Ok(Style::Bare)
        } else if has("vision_model.embeddings.class_embedding") {
            Ok(Style::HuggingFace)
        } else {
            let expected = "CLIP's vision transformer (visual.class_embedding, or \
                            vision_model.embeddings.class_embedding)";
            let found = source.names().min().unwrap_or("nothing").to_string();
            Err(Error::invalid(source.path().display(), expected, format!("`{found}`"))
                .advise("--vision is CLIP ViT-L/14 of OpenAI, as open_clip or Hugging Face has it"))
        }
    }

    const fn rules(self) -> &'static [Rule] {
        match self {
            Style::HuggingFace => HF_CLIP,
            _ => OPEN_CLIP,
        }
    }

    /// Sources of `target` in this style.
    pub(super) fn recipe(self, target: &str) -> Option<Recipe> {
        let mut found = recipe(self.rules(), target)?;
        if self == Style::OpenClip {
            found.sources.iter_mut().for_each(|s| *s = format!("visual.{s}"));
        }
        Some(found)
    }
}

/// The opened file with what is known about it.
pub(super) struct Clip {
    pub source: Source,
    pub style: Style,
    pub vision: Vision,
    /// How activation and heads were decided.
    pub notes: Vec<String>,
}

/// Opens `path` and infers the tower's shape; `activation` overrides what the files say.
///
/// # Errors
/// A file without CLIP's vision transformer, or files beside it that contradict it.
pub(super) fn open(path: &Path, activation: Option<Activation>) -> Result<Clip> {
    let source = Source::new("vision", Checkpoint::open(path)?, unwrapped)?;
    let style = Style::of(&source)?;
    let mut vision = shape(&source, style).map_err(|e| e.within(source.path().display()))?;
    let hints = hints(path, &source, style, &vision)?;
    let mut notes = Vec::new();
    let (heads, why) = match hints.heads {
        Some((heads, file)) => (heads, format!("from {file}")),
        None if vision.width.is_multiple_of(64) => {
            (vision.width / 64, "64 features each, as in every CLIP of OpenAI".into())
        }
        None => {
            let found = format!("none, and a width of {}", vision.width);
            return Err(Error::invalid(
                source.path().display(),
                "a .json beside the weights that fits them and says how wide a head is",
                found,
            ));
        }
    };
    vision.heads = heads;
    notes.push(format!("vision: {heads} heads, {why}"));
    let (chosen, why) = match (activation, hints.activation) {
        (Some(chosen), _) => (chosen, "as asked for by --vision-activation".into()),
        (None, Some((found, file))) => (found, format!("from {file}")),
        (None, None) if source.checkpoint.format() == Format::TorchScript => {
            (Activation::QuickGelu, "as in every TorchScript archive of OpenAI".into())
        }
        (None, None) => (
            Activation::QuickGelu,
            "assumed: no file beside the weights says; --vision-activation gelu changes it".into(),
        ),
    };
    vision.activation = chosen;
    notes.push(format!("vision: activation {}, {why}", json!(chosen).as_str().unwrap_or_default()));
    notes
        .push("vision: patch tokens before ln_post, as open_clip 2.16 to 2.22 returns them".into());
    Ok(Clip { source, style, vision, notes })
}

/// Everything that the tensors show.
fn shape(source: &Source, style: Style) -> Result<Vision> {
    let dims = |target: &str| {
        let name = style.recipe(target).map(|r| r.sources[0].clone()).unwrap_or_default();
        let shape = source.get(&name).map(|e| e.shape.clone());
        shape.ok_or_else(|| Error::invalid(&name, "a tensor", "no such key")).map(|s| (name, s))
    };
    let odd = |(name, shape): &(String, Vec<usize>), expected: &str| {
        Error::invalid(name, expected, format!("{shape:?}"))
    };
    let patches = dims("vision.patch_embedding.weight")?;
    let &[width, 3, patch, other] = patches.1.as_slice() else {
        return Err(odd(&patches, "(width, 3, patch, patch)"));
    };
    let positions = dims("vision.position_embedding")?;
    let &[rows, _] = positions.1.as_slice() else {
        return Err(odd(&positions, "(1 + patches, width)"));
    };
    let side = rows.saturating_sub(1).isqrt();
    if patch != other
        || patch == 0
        || patch > 4096
        || side == 0
        || side > 4096
        || side * side + 1 != rows
    {
        return Err(odd(
            &positions,
            "one row and one for each patch of a square of square patches",
        ));
    }
    let projection = dims("vision.projection.weight")?;
    let at = if style == Style::HuggingFace { 0 } else { 1 };
    let projection = match projection.1.as_slice() {
        both @ [_, _] => both[at],
        _ => return Err(odd(&projection, "a matrix")),
    };
    let fc1 = dims("vision.layers.0.mlp.fc1.weight")?;
    let &[mlp_width, _] = fc1.1.as_slice() else { return Err(odd(&fc1, "a matrix")) };
    let first = style.recipe("vision.layers.0.norm_1.weight").map(|r| r.sources[0].clone());
    let start = first.as_deref().and_then(|f| f.split_once("0.")).map_or("", |(start, _)| start);
    let layers = source.layers(start);
    Ok(Vision {
        image_size: side * patch,
        patch_size: patch,
        width,
        layers,
        heads: 0,
        mlp_width,
        projection,
        activation: Activation::QuickGelu,
        norm_eps: 1e-5,
    })
}

/// What a file beside the weights says, and its name.
#[derive(Default)]
struct Hints {
    heads: Option<(usize, String)>,
    activation: Option<(Activation, String)>,
}

fn hints(path: &Path, source: &Source, style: Style, vision: &Vision) -> Result<Hints> {
    let folder =
        if path.is_dir() { path } else { source.path().parent().unwrap_or(Path::new(".")) };
    if style == Style::HuggingFace {
        return match Object::read_optional(folder.join("config.json"))? {
            Some(config) => {
                if let Some(pixels) =
                    Object::read_optional(folder.join("preprocessor_config.json"))?
                {
                    pixels.only("image_mean", &[json!(MEAN)])?;
                    pixels.only("image_std", &[json!(STD)])?;
                }
                hugging_face(&config, vision)
            }
            None => Ok(Hints::default()),
        };
    }
    let mut found: Option<(Object, Hints)> = None;
    for (config, pixels) in open_clip_configs(folder)? {
        let hints = match open_clip(&config, vision)? {
            Some(hints) => hints,
            None => continue,
        };
        if let Some((first, other)) = &found {
            let pair =
                |h: &Hints| (h.heads.clone().map(|h| h.0), h.activation.clone().map(|a| a.0));
            if pair(&hints) != pair(other) {
                let found = format!("{} and {}", first.at, config.at);
                return Err(Error::invalid(
                    "vision",
                    "one configuration that fits the weights",
                    found,
                )
                .advise("leave only the .json of this model beside the weights"));
            }
        }
        if let Some(pixels) = pixels {
            pixels.only("mean", &[json!(MEAN)])?;
            pixels.only("std", &[json!(STD)])?;
        }
        found = Some((config, hints));
    }
    Ok(found.map(|(_, hints)| hints).unwrap_or_default())
}

/// The JSON files of a folder that have a `vision_cfg`, by name; with what they say about pixels.
fn open_clip_configs(folder: &Path) -> Result<Vec<(Object, Option<Object>)>> {
    const MOST: usize = 256;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
    let paths = entries.filter_map(|e| e.ok()).map(|e| e.path());
    let mut paths: Vec<_> =
        paths.filter(|p| p.extension().is_some_and(|e| e == "json")).take(MOST).collect();
    paths.sort();
    // Other people's JSON may lie here too: what cannot be read has no vision_cfg.
    let objects = paths.iter().filter_map(|p| Object::read(p).ok());
    let parts =
        |o: Object| (o.object("model_cfg").unwrap_or(o.clone()), o.object("preprocess_cfg"));
    Ok(objects.map(parts).filter(|(o, _)| o.value.get("vision_cfg").is_some()).collect())
}

/// `None` if the file describes another tower than the tensors show.
fn open_clip(config: &Object, vision: &Vision) -> Result<Option<Hints>> {
    let Some(tower) = config.object("vision_cfg") else { return Ok(None) };
    for (key, value) in [
        ("width", vision.width),
        ("layers", vision.layers),
        ("patch_size", vision.patch_size),
        ("image_size", vision.image_size),
    ] {
        if tower.get(&[key]).is_some_and(|v| *v != json!(value)) {
            return Ok(None);
        }
    }
    let head = tower.size_or(&["head_width"], 64)?;
    let quick = config.flag_or(&["quick_gelu"], false)?;
    let activation = if quick { Activation::QuickGelu } else { Activation::Gelu };
    Ok(Some(Hints {
        heads: Some((vision.width / head, config.at.clone())),
        activation: Some((activation, config.at.clone())),
    }))
}

fn hugging_face(config: &Object, vision: &Vision) -> Result<Hints> {
    let tower = config.object("vision_config").unwrap_or(config.clone());
    for (key, value) in [
        ("hidden_size", vision.width),
        ("num_hidden_layers", vision.layers),
        ("patch_size", vision.patch_size),
        ("image_size", vision.image_size),
        ("intermediate_size", vision.mlp_width),
    ] {
        tower.only(key, &[json!(value)])?;
    }
    tower.only("layer_norm_eps", &[json!(1e-5)])?;
    let heads = match tower.get(&["num_attention_heads"]) {
        Some(_) => Some((tower.size(&["num_attention_heads"])?, config.at.clone())),
        None => None,
    };
    tower.only("hidden_act", &[json!("quick_gelu"), json!("gelu")])?;
    let activation = match tower.text("hidden_act") {
        Some("gelu") => Some(Activation::Gelu),
        Some(_) => Some(Activation::QuickGelu),
        None => None,
    };
    Ok(Hints { heads, activation: activation.map(|a| (a, config.at.clone())) })
}

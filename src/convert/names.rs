//! Which source tensors make which tensor of a model folder.
//!
//! A rule's target and sources are patterns: `#` stands for a layer number, a final `*` for what
//! follows (`weight` or `bias`); both mean the same on both sides.

use crate::model::Family;
use crate::model::config::Language;

/// How the sources become the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// The same rows, or several sources one below the other.
    Stack,
    /// Rows become columns.
    Transpose,
    /// Rows `[head: q k v]` become `q | k | v` over all heads.
    SplitHeads,
}

/// One line of a mapping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    target: &'static str,
    sources: &'static [&'static str],
    op: Op,
}

const fn same(target: &'static str, sources: &'static [&'static str]) -> Rule {
    Rule { target, sources, op: Op::Stack }
}

/// The sources of one target by one mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recipe {
    pub sources: Vec<String>,
    pub op: Op,
}

/// What `rules` say about `target`.
pub(super) fn recipe(rules: &[Rule], target: &str) -> Option<Recipe> {
    rules.iter().find_map(|rule| {
        let (layer, tail) = matches(rule.target, target)?;
        let fill = |pattern: &&str| fill(pattern, layer, tail);
        Some(Recipe { sources: rule.sources.iter().map(fill).collect(), op: rule.op })
    })
}

/// The layer number and the tail of `name`, if it matches.
fn matches<'n>(pattern: &str, name: &'n str) -> Option<(&'n str, &'n str)> {
    let (head, rest) = pattern.split_once('#').unwrap_or((pattern, ""));
    let is_numbered = head.len() < pattern.len();
    let (number, name, pattern) = if is_numbered {
        let after = name.strip_prefix(head)?;
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits == 0 {
            return None;
        }
        (&after[..digits], &after[digits..], rest)
    } else {
        ("", name, pattern)
    };
    match pattern.strip_suffix('*') {
        Some(start) => {
            let tail = name.strip_prefix(start)?;
            (!tail.is_empty() && !tail.contains('.')).then_some((number, tail))
        }
        None => (name == pattern).then_some((number, "")),
    }
}

fn fill(pattern: &str, layer: &str, tail: &str) -> String {
    pattern.replacen('#', layer, 1).replacen('*', tail, 1)
}

/// CLIP as open_clip and OpenAI name it, without the leading `visual.`.
pub(super) const OPEN_CLIP: &[Rule] = &[
    same("vision.patch_embedding.weight", &["conv1.weight"]),
    same("vision.class_embedding", &["class_embedding"]),
    same("vision.position_embedding", &["positional_embedding"]),
    same("vision.ln_pre.*", &["ln_pre.*"]),
    same("vision.layers.#.norm_1.*", &["transformer.resblocks.#.ln_1.*"]),
    same("vision.layers.#.attn.qkv.*", &["transformer.resblocks.#.attn.in_proj_*"]),
    same("vision.layers.#.attn.out.*", &["transformer.resblocks.#.attn.out_proj.*"]),
    same("vision.layers.#.norm_2.*", &["transformer.resblocks.#.ln_2.*"]),
    same("vision.layers.#.mlp.fc1.*", &["transformer.resblocks.#.mlp.c_fc.*"]),
    same("vision.layers.#.mlp.fc2.*", &["transformer.resblocks.#.mlp.c_proj.*"]),
    same("vision.ln_post.*", &["ln_post.*"]),
    Rule { target: "vision.projection.weight", sources: &["proj"], op: Op::Transpose },
];

/// CLIP as Hugging Face names it; `pre_layrnorm` is how the key is spelt.
pub(super) const HF_CLIP: &[Rule] = &[
    same("vision.patch_embedding.weight", &["vision_model.embeddings.patch_embedding.weight"]),
    same("vision.class_embedding", &["vision_model.embeddings.class_embedding"]),
    same("vision.position_embedding", &["vision_model.embeddings.position_embedding.weight"]),
    same("vision.ln_pre.*", &["vision_model.pre_layrnorm.*"]),
    same("vision.layers.#.norm_1.*", &["vision_model.encoder.layers.#.layer_norm1.*"]),
    Rule {
        target: "vision.layers.#.attn.qkv.*",
        sources: &[
            "vision_model.encoder.layers.#.self_attn.q_proj.*",
            "vision_model.encoder.layers.#.self_attn.k_proj.*",
            "vision_model.encoder.layers.#.self_attn.v_proj.*",
        ],
        op: Op::Stack,
    },
    same("vision.layers.#.attn.out.*", &["vision_model.encoder.layers.#.self_attn.out_proj.*"]),
    same("vision.layers.#.norm_2.*", &["vision_model.encoder.layers.#.layer_norm2.*"]),
    same("vision.layers.#.mlp.fc1.*", &["vision_model.encoder.layers.#.mlp.fc1.*"]),
    same("vision.layers.#.mlp.fc2.*", &["vision_model.encoder.layers.#.mlp.fc2.*"]),
    same("vision.ln_post.*", &["vision_model.post_layernorm.*"]),
    same("vision.projection.weight", &["visual_projection.weight"]),
];

/// The language models, as their Hugging Face folders name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Llama,
    /// MPT-7B: llm-foundry and `MptForCausalLM`.
    Mpt,
    /// MPT-1B: the older `MosaicGPT`.
    Mosaic,
    GptNeox,
}

impl Layout {
    /// That of a model's language part. Of the two of MPT, only the older one's models normalise
    /// queries and keys.
    pub(super) fn of(language: &Language) -> Self {
        match language.family {
            Family::Llama => Layout::Llama,
            Family::GptNeox => Layout::GptNeox,
            Family::Mpt if language.qk_norm => Layout::Mosaic,
            Family::Mpt => Layout::Mpt,
        }
    }

    pub(super) const fn rules(self) -> &'static [Rule] {
        match self {
            Layout::Llama => LLAMA,
            Layout::Mpt => MPT,
            Layout::Mosaic => MOSAIC,
            Layout::GptNeox => GPT_NEOX,
        }
    }

    /// Where the list of decoder layers is.
    pub(super) const fn layers(self) -> &'static str {
        match self {
            Layout::Llama => "model.layers",
            Layout::Mpt | Layout::Mosaic => "transformer.blocks",
            Layout::GptNeox => "gpt_neox.layers",
        }
    }

    pub(super) const fn embedding(self) -> &'static str {
        match self {
            Layout::Llama => "model.embed_tokens.weight",
            Layout::Mpt | Layout::Mosaic => "transformer.wte.weight",
            Layout::GptNeox => "gpt_neox.embed_in.weight",
        }
    }

    pub(super) const fn head(self) -> &'static str {
        match self {
            Layout::GptNeox => "embed_out.weight",
            _ => "lm_head.weight",
        }
    }
}

const LLAMA: &[Rule] = &[
    same("language.layers.#.norm_1.*", &["model.layers.#.input_layernorm.*"]),
    same(
        "language.layers.#.attn.qkv.*",
        &[
            "model.layers.#.self_attn.q_proj.*",
            "model.layers.#.self_attn.k_proj.*",
            "model.layers.#.self_attn.v_proj.*",
        ],
    ),
    same("language.layers.#.attn.out.*", &["model.layers.#.self_attn.o_proj.*"]),
    same("language.layers.#.norm_2.*", &["model.layers.#.post_attention_layernorm.*"]),
    same(
        "language.layers.#.mlp.gate_up.*",
        &["model.layers.#.mlp.gate_proj.*", "model.layers.#.mlp.up_proj.*"],
    ),
    same("language.layers.#.mlp.fc2.*", &["model.layers.#.mlp.down_proj.*"]),
    same("language.norm.*", &["model.norm.*"]),
];

const MPT: &[Rule] = &[
    same("language.layers.#.norm_1.*", &["transformer.blocks.#.norm_1.*"]),
    same("language.layers.#.attn.qkv.*", &["transformer.blocks.#.attn.Wqkv.*"]),
    same("language.layers.#.attn.q_norm.*", &["transformer.blocks.#.attn.q_ln.*"]),
    same("language.layers.#.attn.k_norm.*", &["transformer.blocks.#.attn.k_ln.*"]),
    same("language.layers.#.attn.out.*", &["transformer.blocks.#.attn.out_proj.*"]),
    same("language.layers.#.norm_2.*", &["transformer.blocks.#.norm_2.*"]),
    same("language.layers.#.mlp.fc1.*", &["transformer.blocks.#.ffn.up_proj.*"]),
    same("language.layers.#.mlp.fc2.*", &["transformer.blocks.#.ffn.down_proj.*"]),
    same("language.norm.*", &["transformer.norm_f.*"]),
];

const MOSAIC: &[Rule] = &[
    same("language.layers.#.norm_1.*", &["transformer.blocks.#.ln_1.*"]),
    same("language.layers.#.attn.qkv.*", &["transformer.blocks.#.attn.Wqkv.*"]),
    same("language.layers.#.attn.q_norm.*", &["transformer.blocks.#.attn.q_ln.*"]),
    same("language.layers.#.attn.k_norm.*", &["transformer.blocks.#.attn.k_ln.*"]),
    same("language.layers.#.attn.out.*", &["transformer.blocks.#.attn.out_proj.*"]),
    same("language.layers.#.norm_2.*", &["transformer.blocks.#.ln_2.*"]),
    same("language.layers.#.mlp.fc1.*", &["transformer.blocks.#.mlp.mlp_up.*"]),
    same("language.layers.#.mlp.fc2.*", &["transformer.blocks.#.mlp.mlp_down.*"]),
    same("language.norm.*", &["transformer.ln_f.*"]),
];

const GPT_NEOX: &[Rule] = &[
    same("language.layers.#.norm_1.*", &["gpt_neox.layers.#.input_layernorm.*"]),
    Rule {
        target: "language.layers.#.attn.qkv.*",
        sources: &["gpt_neox.layers.#.attention.query_key_value.*"],
        op: Op::SplitHeads,
    },
    same("language.layers.#.attn.out.*", &["gpt_neox.layers.#.attention.dense.*"]),
    same("language.layers.#.norm_2.*", &["gpt_neox.layers.#.post_attention_layernorm.*"]),
    same("language.layers.#.mlp.fc1.*", &["gpt_neox.layers.#.mlp.dense_h_to_4h.*"]),
    same("language.layers.#.mlp.fc2.*", &["gpt_neox.layers.#.mlp.dense_4h_to_h.*"]),
    same("language.norm.*", &["gpt_neox.final_layer_norm.*"]),
];

/// What a Flamingo checkpoint adds, in the canonical names of [`canonical`].
pub(super) const FLAMINGO: &[Rule] = &[
    same("resampler.latents", &["perceiver.latents"]),
    same("resampler.layers.#.attn.norm_media.*", &["perceiver.layers.#.0.norm_media.*"]),
    same("resampler.layers.#.attn.norm_latents.*", &["perceiver.layers.#.0.norm_latents.*"]),
    same("resampler.layers.#.attn.q.*", &["perceiver.layers.#.0.to_q.*"]),
    same("resampler.layers.#.attn.kv.*", &["perceiver.layers.#.0.to_kv.*"]),
    same("resampler.layers.#.attn.out.*", &["perceiver.layers.#.0.to_out.*"]),
    same("resampler.layers.#.mlp.norm.*", &["perceiver.layers.#.1.0.*"]),
    same("resampler.layers.#.mlp.fc1.*", &["perceiver.layers.#.1.1.*"]),
    same("resampler.layers.#.mlp.fc2.*", &["perceiver.layers.#.1.3.*"]),
    same("resampler.norm.*", &["perceiver.norm.*"]),
    same("xattn.#.attn.gate", &["gated.#.attn_gate"]),
    same("xattn.#.attn.norm.*", &["gated.#.attn.norm.*"]),
    same("xattn.#.attn.q.*", &["gated.#.attn.to_q.*"]),
    same("xattn.#.attn.kv.*", &["gated.#.attn.to_kv.*"]),
    same("xattn.#.attn.out.*", &["gated.#.attn.to_out.*"]),
    same("xattn.#.mlp.gate", &["gated.#.ff_gate"]),
    same("xattn.#.mlp.norm.*", &["gated.#.ff.0.*"]),
    same("xattn.#.mlp.fc1.*", &["gated.#.ff.1.*"]),
    same("xattn.#.mlp.fc2.*", &["gated.#.ff.3.*"]),
];

/// How upstream's own loader calls the tensor `target` of a model folder (open_flamingo
/// `FlamingoLMMixin.init_flamingo`, whose layers wrap those of the language model); several names
/// where it keeps apart what is one matrix here.
pub(super) fn upstream(target: &str, layout: Layout) -> Option<Recipe> {
    let layers = layout.layers();
    let own = |name: String| Recipe { sources: vec![name], op: Op::Stack };
    match target {
        "language.embedding.weight" => {
            return Some(own(format!("lang_encoder.{}", layout.embedding())));
        }
        "language.head.weight" => return Some(own(format!("lang_encoder.{}", layout.head()))),
        _ => {}
    }
    let rules = match target.split('.').next()? {
        "vision" => OPEN_CLIP,
        "language" => layout.rules(),
        _ => FLAMINGO,
    };
    let mut found = recipe(rules, target)?;
    for name in &mut found.sources {
        let gated = name.strip_prefix("gated.").and_then(|rest| rest.split_once('.'));
        let layer = name.strip_prefix(layers).and_then(|r| r.strip_prefix('.'));
        let layer = layer.and_then(|rest| rest.split_once('.'));
        *name = match (target.split('.').next()?, gated, layer) {
            (_, Some((n, part)), _) => {
                format!("lang_encoder.{layers}.{n}.gated_cross_attn_layer.{part}")
            }
            ("language", _, Some((n, part))) => {
                format!("lang_encoder.{layers}.{n}.decoder_layer.{part}")
            }
            ("language", ..) => format!("lang_encoder.{name}"),
            ("vision", ..) => format!("vision_encoder.{name}"),
            _ => continue,
        };
    }
    Some(found)
}

/// Wrappers that training leaves in names, in the order in which they are taken out.
const WRAPPERS: [&str; 4] =
    ["module.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_orig_mod."];

/// A key without the wrappers' components.
pub(super) fn unwrapped(key: &str) -> String {
    let kept = |part: &&str| !WRAPPERS.iter().any(|w| w.trim_end_matches('.') == *part);
    key.split('.').filter(kept).collect::<Vec<_>>().join(".")
}

/// One name for a tensor of a Flamingo checkpoint, whichever of its aliases `key` is.
///
/// Gated blocks become `gated.N.*`; decoder layers `lang_encoder.` and their name in the language
/// model's folder; the vision tower `vision_encoder.visual.*`.
pub(super) fn canonical(key: &str, layout: Layout, is_v1: bool) -> String {
    let key = unwrapped(key);
    if let Some(rest) = key.strip_prefix("vision_encoder.") {
        let is_whole = is_v1 || rest.starts_with("vision_model.");
        return if is_whole { key } else { format!("vision_encoder.visual.{rest}") };
    }
    let Some(rest) = key.strip_prefix("lang_encoder.") else { return key };
    let layers = layout.layers();
    if let Some(rest) = rest.strip_prefix("gated_cross_attn_layers.") {
        return format!("gated.{rest}");
    }
    if let Some(rest) = rest.strip_prefix("old_decoder_blocks.") {
        return format!("lang_encoder.{layers}.{rest}");
    }
    let numbered = rest.strip_prefix(layers).and_then(|r| r.strip_prefix('.'));
    let Some((number, part)) = numbered.and_then(|r| r.split_once('.')) else { return key };
    if let Some(part) = part.strip_prefix("gated_cross_attn_layer.") {
        return format!("gated.{number}.{part}");
    }
    let part = part.strip_prefix("decoder_layer.").unwrap_or(part);
    format!("lang_encoder.{layers}.{number}.{part}")
}

/// Why a key of CLIP's file that no rule uses can be left out.
pub(super) fn ignored_clip(key: &str) -> Option<&'static str> {
    let text = [
        "positional_embedding",
        "text_projection",
        "text_projection.weight",
        "token_embedding.weight",
        "ln_final.weight",
        "ln_final.bias",
    ];
    let starts = ["transformer.resblocks.", "text_model.", "text."];
    if text.contains(&key) || starts.iter().any(|s| key.starts_with(s)) {
        return Some("CLIP's text tower, which Flamingo does not use");
    }
    match key {
        "logit_scale" | "logit_bias" => {
            Some("CLIP's contrastive loss, which Flamingo does not use")
        }
        "input_resolution" | "context_length" | "vocab_size" => Some("a number about CLIP's input"),
        "vision_model.embeddings.position_ids" => Some("a buffer that counts positions"),
        _ => None,
    }
}

/// Why a key of a language model that no rule uses can be left out.
pub(super) fn ignored_language(key: &str) -> Option<&'static str> {
    let ends = |s: &str| key.ends_with(s);
    if ends(".rotary_emb.inv_freq")
        || ends(".rotary_emb.cos_cached")
        || ends("rotary_emb.sin_cached")
    {
        return Some("a buffer of rotary embeddings, computed from the configuration");
    }
    if ends(".attention.bias") || ends(".attention.masked_bias") {
        return Some("a buffer that holds the causal mask");
    }
    ends(".position_ids").then_some("a buffer that counts positions")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PRESETS, preset};

    #[test]
    fn every_tensor_of_every_published_model_has_one_recipe() {
        for name in PRESETS {
            let config = preset(name).unwrap();
            for (target, _) in config.tensors() {
                if ["language.embedding.weight", "language.head.weight"].contains(&target.as_str())
                {
                    continue;
                }
                let layouts = match config.language.family {
                    crate::model::Family::Llama => vec![Layout::Llama],
                    crate::model::Family::GptNeox => vec![Layout::GptNeox],
                    crate::model::Family::Mpt => vec![Layout::Mpt, Layout::Mosaic],
                };
                for layout in layouts {
                    let all = [layout.rules(), FLAMINGO, OPEN_CLIP];
                    let found = all.iter().filter_map(|rules| recipe(rules, &target)).count();
                    assert_eq!(found, 1, "{name}: {target}");
                    let hf = recipe(HF_CLIP, &target).is_some();
                    assert_eq!(hf, target.starts_with("vision."), "{target}");
                }
            }
        }
    }

    /// What export writes is what conversion reads.
    #[test]
    fn upstreams_names_lead_back_to_the_same_recipe() {
        for name in PRESETS {
            let config = preset(name).unwrap();
            let layout = Layout::of(&config.language);
            for (target, _) in config.tensors() {
                let found = upstream(&target, layout).unwrap();
                let back: Vec<String> =
                    found.sources.iter().map(|n| canonical(n, layout, false)).collect();
                let kept = match target.split('.').next().unwrap() {
                    "vision" => recipe(OPEN_CLIP, &target).map(|r| r.sources),
                    "language" => recipe(layout.rules(), &target).map(|r| r.sources),
                    _ => recipe(FLAMINGO, &target).map(|r| r.sources),
                };
                let strip = |n: &String| {
                    let n = n.strip_prefix("lang_encoder.").unwrap_or(n);
                    n.strip_prefix("vision_encoder.visual.").unwrap_or(n).to_string()
                };
                let back: Vec<String> = back.iter().map(strip).collect();
                let ends = [layout.embedding().to_string(), layout.head().to_string()];
                assert!(
                    kept == Some(back.clone()) || ends.contains(&back[0]),
                    "{target}: {back:?}"
                );
            }
        }
        let found = upstream("xattn.3.mlp.gate", Layout::Llama).unwrap();
        assert_eq!(found.sources, ["lang_encoder.model.layers.3.gated_cross_attn_layer.ff_gate"]);
    }

    #[test]
    fn patterns_carry_layer_and_tail() {
        let of = |rules, target| recipe(rules, target).map(|r| r.sources).unwrap_or_default();
        let qkv = of(LLAMA, "language.layers.12.attn.qkv.weight");
        assert_eq!(qkv[1], "model.layers.12.self_attn.k_proj.weight");
        let bias = of(OPEN_CLIP, "vision.layers.3.attn.qkv.bias");
        assert_eq!(bias, ["transformer.resblocks.3.attn.in_proj_bias"]);
        assert!(of(LLAMA, "language.layers.x.norm_1.weight").is_empty());
        assert!(of(LLAMA, "language.norm.deep.weight").is_empty());
    }

    #[test]
    fn every_alias_has_one_canonical_name() {
        for (key, expected) in [
            ("module.perceiver.latents", "perceiver.latents"),
            ("lang_encoder.gated_cross_attn_layers.3.ff.1.weight", "gated.3.ff.1.weight"),
            (
                "module.lang_encoder.model.layers.3._fsdp_wrapped_module.gated_cross_attn_layer.\
                 _checkpoint_wrapped_module.attn_gate",
                "gated.3.attn_gate",
            ),
            (
                "lang_encoder.model.layers.0.decoder_layer.mlp.up_proj.weight",
                "lang_encoder.model.layers.0.mlp.up_proj.weight",
            ),
            (
                "lang_encoder.old_decoder_blocks.0.mlp.up_proj.weight",
                "lang_encoder.model.layers.0.mlp.up_proj.weight",
            ),
            ("lang_encoder.lm_head.weight", "lang_encoder.lm_head.weight"),
            ("vision_encoder.proj", "vision_encoder.visual.proj"),
        ] {
            assert_eq!(canonical(key, Layout::Llama, false), expected);
        }
        assert_eq!(
            canonical("vision_encoder.ln_final.bias", Layout::Mpt, true),
            "vision_encoder.ln_final.bias"
        );
    }
}

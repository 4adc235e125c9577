//! The language model's part of a configuration, from its Hugging Face `config.json`.
//!
//! What the engine cannot compute is refused here, by key: grouped and multi-query attention,
//! scaled rotary embeddings, learned positions, clipped queries, other activations.

use super::json::Object;
use super::names::Layout;
use super::source::Source;
use crate::model::config::{Family, Language, Position};
use crate::{Error, Result};
use serde_json::{Value, json};

const MAX_LAYERS: usize = 1024;

/// Reads `config`; `vocabulary` is the length of the tokenizer with Flamingo's tokens.
///
/// # Errors
/// A family or variant that is not supported; a size that is missing.
pub(super) fn infer(config: &Object, vocabulary: usize) -> Result<(Language, Layout)> {
    let kind = config.text("model_type").unwrap_or_default();
    let mut language = match kind {
        "llama" => (llama(config)?, Layout::Llama),
        "mpt" => (mpt(config)?, Layout::Mpt),
        "mosaic_gpt" => (mosaic(config)?, Layout::Mosaic),
        "gpt_neox" => (gpt_neox(config)?, Layout::GptNeox),
        _ => {
            let who = format!("{}: model_type", config.at);
            let found = if kind.is_empty() { "nothing" } else { kind };
            return Err(Error::invalid(who, "llama, mpt, mosaic_gpt or gpt_neox", found)
                .advise("OpenFlamingo's models are built on these language models"));
        }
    };
    language.0.vocabulary = vocabulary;
    let l = &language.0;
    // What follows loops over layers before the whole configuration is checked.
    if l.layers > MAX_LAYERS || l.norm_eps > 1.0 {
        let expected = format!("at most {MAX_LAYERS} layers, and an epsilon below 1");
        let found = format!("{} layers, {}", l.layers, l.norm_eps);
        return Err(Error::invalid(&config.at, expected, found));
    }
    Ok(language)
}

/// An MPT whose files have the older names is a MosaicGPT whatever its configuration says, and the
/// other way round.
pub(super) fn layout_of(stated: Layout, source: &Source) -> Layout {
    let has = |name: &str| source.get(name).is_some();
    match stated {
        Layout::Mpt | Layout::Mosaic if has("transformer.blocks.0.ln_1.weight") => Layout::Mosaic,
        Layout::Mpt | Layout::Mosaic if has("transformer.blocks.0.norm_1.weight") => Layout::Mpt,
        other => other,
    }
}

/// Compares what the tensors show with what the configuration says, before anything is mapped.
///
/// # Errors
/// Another number of layers.
pub(super) fn check_layers(source: &Source, layout: Layout, language: &Language) -> Result<()> {
    let found = source.layers(&format!("{}.", layout.layers()));
    if found != language.layers {
        let who = format!("{}: {}", source.path().display(), layout.layers());
        let expected = format!("{} layers, as config.json says", language.layers);
        return Err(Error::invalid(who, expected, found)
            .advise("config.json and the weights are not of the same model"));
    }
    Ok(())
}

fn llama(c: &Object) -> Result<Language> {
    let (width, heads) = (c.size(&["hidden_size"])?, c.size(&["num_attention_heads"])?);
    c.only("num_key_value_heads", &[json!(heads)])?;
    c.only("hidden_act", &[json!("silu")])?;
    c.only("attention_bias", &[json!(false)])?;
    c.only("mlp_bias", &[json!(false)])?;
    c.only("head_dim", &[json!(width / heads)])?;
    let (base, _) = rope(c, &["rope_theta"], None)?;
    let head_dim = width / heads;
    Ok(Language {
        family: Family::Llama,
        width,
        layers: c.size(&["num_hidden_layers"])?,
        heads,
        mlp_width: c.size(&["intermediate_size"])?,
        vocabulary: 0,
        context: c.size_or(&["max_position_embeddings", "max_sequence_length"], 2048)?,
        norm_eps: c.number_or(&["rms_norm_eps"], 1e-6)? as f32,
        position: Position::Rope { dims: head_dim, base },
        qk_norm: false,
        parallel_residual: false,
        tied_head: c.flag_or(&["tie_word_embeddings"], false)?,
    })
}

fn gpt_neox(c: &Object) -> Result<Language> {
    let (width, heads) = (c.size(&["hidden_size"])?, c.size(&["num_attention_heads"])?);
    c.only("hidden_act", &[json!("gelu")])?;
    c.only("attention_bias", &[json!(true)])?;
    let (base, share) = rope(c, &["rotary_emb_base", "rope_theta"], Some("rotary_pct"))?;
    let head_dim = width / heads;
    // int(), as upstream.
    let dims = (head_dim as f64 * share) as usize;
    Ok(Language {
        family: Family::GptNeox,
        width,
        layers: c.size(&["num_hidden_layers"])?,
        heads,
        mlp_width: c.size(&["intermediate_size"])?,
        vocabulary: 0,
        context: c.size_or(&["max_position_embeddings"], 2048)?,
        norm_eps: c.number_or(&["layer_norm_eps"], 1e-5)? as f32,
        position: Position::Rope { dims, base },
        qk_norm: false,
        parallel_residual: c.flag_or(&["use_parallel_residual"], true)?,
        tied_head: c.flag_or(&["tie_word_embeddings"], false)?,
    })
}

/// Base of the rotary embedding, and the share of each head that is rotated.
fn rope(c: &Object, base: &[&str], share: Option<&str>) -> Result<(f32, f64)> {
    // Newer releases of transformers gather everything in one object.
    let gathered = c.object("rope_parameters");
    let inside = gathered.as_ref().unwrap_or(c);
    for scaling in c.object("rope_scaling").iter().chain(&gathered) {
        scaling.only("rope_type", &[json!("default")])?;
        scaling.only("type", &[json!("default")])?;
    }
    let theta = match &gathered {
        Some(g) => g.number_or(&["rope_theta"], c.number_or(base, 10000.0)?)?,
        None => c.number_or(base, 10000.0)?,
    };
    let share = match share {
        Some(key) => {
            inside.number_or(&[key, "partial_rotary_factor"], c.number_or(&[key], 0.25)?)?
        }
        None => 1.0,
    };
    Ok((theta as f32, share))
}

fn mpt(c: &Object) -> Result<Language> {
    let attention = c.object("attn_config").unwrap_or(Object {
        at: format!("{}: attn_config", c.at),
        value: Value::Object(Default::default()),
    });
    let own = c.object("ffn_config");
    let (width, heads) = (c.size(&["d_model"])?, c.size(&["n_heads"])?);
    for (key, fine) in [
        ("attn_type", vec![json!("multihead_attention")]),
        ("kv_n_heads", vec![json!(heads)]),
        ("clip_qkv", vec![]),
        ("prefix_lm", vec![json!(false)]),
        ("attn_uses_sequence_id", vec![json!(false)]),
        ("softmax_scale", vec![json!(1.0 / ((width / heads) as f64).sqrt())]),
        ("qk_gn", vec![json!(false)]),
        ("rope", vec![json!(false)]),
        ("sliding_window_size", vec![json!(-1)]),
        ("attn_logit_softcapping", vec![]),
        // `MptForCausalLM` of transformers builds the biases whatever is said; llm-foundry's own
        // class has learned positions unless it is told.
        ("alibi", vec![json!(true)]),
    ] {
        attention.only(key, &fine)?;
    }
    if c.value.get("auto_map").is_some() && attention.get(&["alibi"]).is_none() {
        let who = format!("{}: alibi", attention.at);
        return Err(Error::invalid(who, "true", "nothing, which means learned positions"));
    }
    if let Some(own) = own {
        own.only("ffn_type", &[json!("mptmlp")])?;
        own.only(
            "ffn_act_fn",
            &[json!({"name": "gelu"}), json!({"name": "gelu", "approximate": "none"})],
        )?;
    }
    c.only("norm_type", &[json!("low_precision_layernorm"), json!("layernorm")])?;
    let qk_norm = attention.flag_or(&["qk_ln"], false)?;
    let ratio = c.size_or(&["expansion_ratio"], 4)?;
    let max_bias = attention.number_or(&["alibi_bias_max"], 8.0)?;
    mosaic_like(c, (width, heads), ratio, qk_norm, max_bias)
}

/// `MosaicGPT`, the class of MPT-1B, keeps everything at the top.
fn mosaic(c: &Object) -> Result<Language> {
    let (width, heads) = (c.size(&["d_model"])?, c.size(&["n_heads"])?);
    for (key, fine) in [
        ("attn_clip_qkv", vec![]),
        ("prefix_lm", vec![json!(false)]),
        ("attn_uses_sequence_id", vec![json!(false)]),
        ("softmax_scale", vec![json!(1.0 / ((width / heads) as f64).sqrt())]),
        ("alibi", vec![json!(true)]),
    ] {
        c.only(key, &fine)?;
    }
    if c.get(&["alibi"]).is_none() {
        let who = format!("{}: alibi", c.at);
        return Err(Error::invalid(who, "true", "nothing, which means learned positions"));
    }
    let qk_norm = c.flag_or(&["attn_qk_ln"], false)?;
    let max_bias = c.number_or(&["alibi_bias_max"], 8.0)?;
    mosaic_like(c, (width, heads), c.size_or(&["mlp_ratio"], 4)?, qk_norm, max_bias)
}

fn mosaic_like(
    c: &Object,
    (width, heads): (usize, usize),
    ratio: usize,
    qk_norm: bool,
    max_bias: f64,
) -> Result<Language> {
    c.only("no_bias", &[json!(true)])?;
    c.only("logit_scale", &[json!(1.0)])?;
    Ok(Language {
        family: Family::Mpt,
        width,
        layers: c.size(&["n_layers"])?,
        heads,
        mlp_width: ratio * width,
        vocabulary: 0,
        context: c.size_or(&["max_seq_len"], 2048)?,
        norm_eps: c.number_or(&["layer_norm_epsilon"], 1e-5)? as f32,
        position: Position::Alibi { max_bias: max_bias as f32 },
        qk_norm,
        parallel_residual: false,
        tied_head: c.flag_or(&["tie_word_embeddings"], true)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: Value) -> Result<Language> {
        infer(&Object { at: "config.json".into(), value }, 403).map(|(language, _)| language)
    }

    fn with(mut base: Value, key: &str, value: Value) -> Value {
        match key.split_once('.') {
            Some((outer, inner)) => base[outer][inner] = value,
            None => base[key] = value,
        }
        base
    }

    fn llama_7b() -> Value {
        json!({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6,
            "max_sequence_length": 2048, "pad_token_id": -1, "hidden_act": "silu"})
    }

    /// As llm-foundry writes it.
    fn mpt_7b() -> Value {
        json!({"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32,
            "expansion_ratio": 4, "max_seq_len": 2048, "no_bias": true, "learned_pos_emb": true,
            "norm_type": "low_precision_layernorm", "auto_map": {}, "logit_scale": null,
            "attn_config": {"alibi": true, "alibi_bias_max": 8, "attn_impl": "torch",
                "attn_type": "multihead_attention", "clip_qkv": null, "prefix_lm": false,
                "qk_ln": false, "softmax_scale": null}})
    }

    fn mpt_1b() -> Value {
        json!({"model_type": "mosaic_gpt", "d_model": 2048, "n_heads": 16, "n_layers": 24,
            "mlp_ratio": 4, "max_seq_len": 2048, "no_bias": true, "alibi": true,
            "alibi_bias_max": 8, "attn_qk_ln": true, "attn_clip_qkv": null})
    }

    fn redpajama() -> Value {
        json!({"model_type": "gpt_neox", "hidden_size": 2560, "intermediate_size": 10240,
            "num_hidden_layers": 32, "num_attention_heads": 32, "rotary_pct": 1.0,
            "rotary_emb_base": 10000, "use_parallel_residual": false, "hidden_act": "gelu"})
    }

    #[test]
    fn published_configurations_become_the_presets() {
        for (name, value) in [
            ("med-flamingo-9b", llama_7b()),
            ("openflamingo-9b", mpt_7b()),
            ("openflamingo-3b", mpt_1b()),
            ("openflamingo-4b", redpajama()),
        ] {
            let mut expected = crate::model::preset(name).unwrap().language;
            expected.vocabulary = 403;
            assert_eq!(of(value).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn newer_files_keep_rope_in_one_object() {
        let rope = json!({"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5});
        let neox = of(with(redpajama(), "rope_parameters", rope)).unwrap();
        assert_eq!(neox.position, Position::Rope { dims: 40, base: 5e5 });
    }

    #[test]
    fn unsupported_variants_are_refused_by_key() {
        for (base, key, value) in [
            (llama_7b(), "num_key_value_heads", json!(8)),
            (llama_7b(), "rope_scaling", json!({"type": "linear", "factor": 2.0})),
            (llama_7b(), "hidden_act", json!("gelu")),
            (llama_7b(), "attention_bias", json!(true)),
            (llama_7b(), "hidden_size", json!("wide")),
            (llama_7b(), "hidden_size", json!(0)),
            (llama_7b(), "num_hidden_layers", json!(-1)),
            (llama_7b(), "rms_norm_eps", json!(1e300)),
            (llama_7b(), "model_type", json!("opt")),
            (mpt_7b(), "attn_config.clip_qkv", json!(6.0)),
            (mpt_7b(), "attn_config.alibi", json!(false)),
            (mpt_7b(), "attn_config.alibi", json!(null)),
            (mpt_7b(), "attn_config.attn_type", json!("multiquery_attention")),
            (mpt_7b(), "attn_config.kv_n_heads", json!(8)),
            (mpt_7b(), "no_bias", json!(false)),
            (mpt_7b(), "norm_type", json!("rmsnorm")),
            (mpt_7b(), "logit_scale", json!("inv_sqrt_d_model")),
            (mpt_1b(), "alibi", json!(false)),
            (mpt_1b(), "attn_clip_qkv", json!(8)),
            (redpajama(), "hidden_act", json!("gelu_new")),
            (redpajama(), "rope_scaling", json!({"rope_type": "dynamic"})),
        ] {
            let e = of(with(base, key, value)).unwrap_err().to_string();
            let last = key.rsplit('.').next().unwrap();
            assert!(e.contains("config.json") && (e.contains(last) || e.contains("type")), "{e}");
        }
    }
}

//! The published shapes by name, a tiny one, and that of the model that is trained here.

use super::config::{
    Activation, Config, CrossAttention, Family, Language, Position, Resampler, StoredDType, Tokens,
    Vision,
};
use crate::{Error, Result, phantom};

/// Names that [`preset`] knows.
pub const PRESETS: [&str; 8] = [
    "tiny",
    "phantom",
    "openflamingo-3b",
    "openflamingo-3b-instruct",
    "openflamingo-4b",
    "openflamingo-4b-instruct",
    "openflamingo-9b",
    "med-flamingo-9b",
];

/// The architecture of a published model (OpenFlamingo README, arXiv:2307.15189) in bf16.
///
/// # Errors
/// If the name is not in [`PRESETS`].
pub fn preset(name: &str) -> Result<Config> {
    let config = match name {
        "tiny" => tiny(),
        "phantom" => phantom(),
        "openflamingo-3b" | "openflamingo-3b-instruct" => {
            flamingo(1, Language { qk_norm: true, ..mpt(2048, 24, 16) })
        }
        "openflamingo-4b" | "openflamingo-4b-instruct" => flamingo(2, redpajama()),
        "openflamingo-9b" => flamingo(4, mpt(4096, 32, 32)),
        "med-flamingo-9b" => flamingo(4, llama_7b()),
        _ => return Err(Error::invalid("preset", PRESETS.join(", "), format!("`{name}`"))),
    };
    Ok(config)
}

fn flamingo(every: usize, language: Language) -> Config {
    let llama = language.family == Family::Llama;
    let first = if llama { 32000 } else { 50277 };
    Config {
        model_type: "medflamingo".into(),
        dtype: StoredDType::Bf16,
        vision: Vision {
            image_size: 224,
            patch_size: 14,
            width: 1024,
            layers: 24,
            heads: 16,
            mlp_width: 4096,
            projection: 768,
            activation: Activation::QuickGelu,
            norm_eps: 1e-5,
        },
        resampler: Resampler { layers: 6, heads: 8, head_dim: 64, latents: 64, mlp_width: 4096 },
        cross_attention: CrossAttention {
            every,
            heads: 8,
            head_dim: 64,
            mlp_width: 4 * language.width,
        },
        language,
        tokens: Tokens {
            end_of_chunk: first,
            image: first + 1,
            pad: first + 2,
            // Med-Flamingo's tokenizer puts <unk> first.
            leading: llama.then_some(0),
        },
    }
}

fn mpt(width: usize, layers: usize, heads: usize) -> Language {
    Language {
        family: Family::Mpt,
        width,
        layers,
        heads,
        mlp_width: 4 * width,
        vocabulary: 50280,
        context: 2048,
        norm_eps: 1e-5,
        position: Position::Alibi { max_bias: 8.0 },
        qk_norm: false,
        parallel_residual: false,
        tied_head: true,
    }
}

fn redpajama() -> Language {
    Language {
        family: Family::GptNeox,
        position: Position::Rope { dims: 80, base: 10000.0 },
        tied_head: false,
        ..mpt(2560, 32, 32)
    }
}

fn llama_7b() -> Language {
    Language {
        family: Family::Llama,
        mlp_width: 11008,
        vocabulary: 32003,
        norm_eps: 1e-6,
        position: Position::Rope { dims: 128, base: 10000.0 },
        tied_head: false,
        ..mpt(4096, 32, 32)
    }
}

fn tiny() -> Config {
    let language = Language {
        mlp_width: 96,
        vocabulary: 403,
        context: 1024,
        position: Position::Rope { dims: 16, base: 10000.0 },
        layers: 4,
        heads: 4,
        width: 64,
        ..llama_7b()
    };
    let mut config = flamingo(2, language);
    config.vision = Vision {
        image_size: 42,
        width: 32,
        layers: 2,
        heads: 4,
        mlp_width: 128,
        projection: 24,
        ..config.vision
    };
    config.resampler.mlp_width = 128;
    config.tokens = Tokens { end_of_chunk: 400, image: 401, pad: 402, leading: Some(1) };
    config
}

/// The small model of phantom studies (see [`crate::phantom`]): under two million parameters, heads
/// of 32 features throughout.
fn phantom() -> Config {
    let language = Language {
        mlp_width: 256,
        vocabulary: phantom::TOKENS,
        context: 512,
        position: Position::Rope { dims: 32, base: 10000.0 },
        tied_head: true,
        layers: 6,
        heads: 4,
        width: 128,
        ..llama_7b()
    };
    let mut config = flamingo(2, language);
    config.vision = Vision {
        image_size: phantom::SIDE,
        patch_size: 8,
        width: 96,
        layers: 4,
        heads: 3,
        mlp_width: 192,
        // Nothing is ever pooled.
        projection: 8,
        ..config.vision
    };
    config.resampler = Resampler { layers: 2, heads: 3, head_dim: 32, latents: 8, mlp_width: 256 };
    config.cross_attention = CrossAttention { every: 4, heads: 4, head_dim: 32, mlp_width: 256 };
    let first = phantom::TOKENS as u32 - 3;
    config.tokens = Tokens {
        end_of_chunk: first,
        image: first + 1,
        pad: first + 2,
        leading: Some(phantom::START),
    };
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(config: &Config, part: &str) -> usize {
        let sizes = config.tensors();
        let inside = sizes.iter().filter(|(name, _)| name.starts_with(part));
        inside.map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Totals of the published checkpoints, to the parameter.
    #[test]
    fn published_parameter_counts() {
        let rows = [
            ("openflamingo-3b", 24 * 36_708_354, 1_046_992_944),
            ("openflamingo-4b", 16 * 56_109_058, 1_218_197_536),
            ("openflamingo-9b", 8 * 139_476_994, 1_384_781_840),
            ("med-flamingo-9b", 8 * 139_476_994, 1_309_919_248),
        ];
        for (name, blocks, trainable) in rows {
            let config = preset(name).unwrap();
            config.check().unwrap();
            assert_eq!(parameters(&config, "xattn."), blocks, "{name}");
            assert_eq!(parameters(&config, "resampler."), 63_019_008);
            assert_eq!(parameters(&config, "vision."), 303_966_208);
            // The 4B checkpoints hold the output head as well.
            let heads = if name == "openflamingo-4b" { 2 } else { 1 };
            let embedding = heads * config.language.vocabulary * config.language.width;
            assert_eq!(63_019_008 + blocks + embedding, trainable, "{name}");
        }
    }

    /// In bf16 it is small enough to lie in the repository.
    #[test]
    fn the_phantom_model_is_small_and_has_the_ids_of_its_tokenizer() {
        let config = preset("phantom").unwrap();
        config.check().unwrap();
        let all = parameters(&config, "");
        assert!((1_600_000..1_700_000).contains(&all), "{all} parameters");
        let prepared = crate::phantom::prepared().unwrap();
        let (found, tokens) = (prepared.specials, &config.tokens);
        assert_eq!(prepared.len, config.language.vocabulary);
        assert_eq!(
            (found.end_of_chunk, found.image, found.pad),
            (tokens.end_of_chunk, tokens.image, tokens.pad)
        );
        assert_eq!(prepared.leading, tokens.leading);
    }

    #[test]
    fn every_preset_is_valid_json_and_back() {
        for name in PRESETS {
            let config = preset(name).unwrap();
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config, "{name}");
        }
        assert!(preset("gpt").unwrap_err().to_string().contains("med-flamingo-9b"));
    }
}

//! `preprocessor_config.json` as Hugging Face's CLIP image processor writes it, old and new.

use super::Preprocess;
use serde::{Deserialize, Serialize};

/// The file. What is absent has CLIP's value; what differs from CLIP's transform is refused.
#[derive(Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    image_processor_type: String,
    do_resize: bool,
    size: Side,
    resample: u32,
    do_center_crop: bool,
    crop_size: Side,
    do_convert_rgb: bool,
    do_rescale: bool,
    rescale_factor: f64,
    do_normalize: bool,
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

/// Files before 2023 have a number where newer ones have a table.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Side {
    Number(usize),
    Shortest { shortest_edge: usize },
    Square { height: usize, width: usize },
}

impl Default for Config {
    fn default() -> Self {
        Preprocess::clip(224).into()
    }
}

impl From<Preprocess> for Config {
    fn from(p: Preprocess) -> Self {
        Config {
            image_processor_type: "CLIPImageProcessor".into(),
            do_resize: true,
            size: Side::Shortest { shortest_edge: p.size },
            resample: 3,
            do_center_crop: true,
            crop_size: Side::Square { height: p.size, width: p.size },
            do_convert_rgb: true,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: p.mean,
            image_std: p.std,
        }
    }
}

impl TryFrom<Config> for Preprocess {
    type Error = String;

    fn try_from(c: Config) -> Result<Self, String> {
        let crop = match c.crop_size {
            Side::Number(n) | Side::Shortest { shortest_edge: n } => n,
            Side::Square { height, width } if height == width => height,
            Side::Square { height, width } => {
                return Err(format!("crop_size: expected a square, found {width}x{height}"));
            }
        };
        let (Side::Number(short) | Side::Shortest { shortest_edge: short }) = c.size else {
            return Err("size: expected the shortest edge, found height and width".into());
        };
        if short != crop || crop == 0 || crop > 1 << 14 {
            return Err(format!("size and crop_size: expected one size, found {short} and {crop}"));
        }
        let steps = [
            ("do_resize", c.do_resize),
            ("do_center_crop", c.do_center_crop),
            ("do_convert_rgb", c.do_convert_rgb),
            ("do_rescale", c.do_rescale),
            ("do_normalize", c.do_normalize),
        ];
        if let Some((name, _)) = steps.iter().find(|(_, on)| !on) {
            return Err(format!("{name}: expected true, found false"));
        }
        if c.resample != 3 {
            return Err(format!("resample: expected 3 (bicubic), found {}", c.resample));
        }
        if (c.rescale_factor * 255.0 - 1.0).abs() > 1e-6 {
            return Err(format!("rescale_factor: expected 1/255, found {}", c.rescale_factor));
        }
        if c.image_std.iter().any(|s| !s.is_finite() || *s <= 0.0)
            || c.image_mean.iter().any(|m| !m.is_finite())
        {
            return Err("image_mean and image_std: expected finite numbers, std above 0".into());
        }
        Ok(Preprocess { size: crop, mean: c.image_mean, std: c.image_std })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_files_of_old_and_new_processors() {
        let old = r#"{"crop_size": 224, "do_center_crop": true, "do_normalize": true,
            "do_resize": true, "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224}"#;
        assert_eq!(serde_json::from_str::<Preprocess>(old).unwrap(), Preprocess::clip(224));
        let new = serde_json::to_string(&Preprocess::clip(56)).unwrap();
        assert!(new.contains(r#""size":{"shortest_edge":56}"#), "{new}");
        assert_eq!(serde_json::from_str::<Preprocess>(&new).unwrap(), Preprocess::clip(56));
    }

    #[test]
    fn refuses_another_transform_by_name() {
        for (text, name) in [
            (r#"{"resample": 2}"#, "resample"),
            (r#"{"do_center_crop": false}"#, "do_center_crop"),
            (r#"{"size": {"shortest_edge": 256}}"#, "size"),
            (r#"{"size": {"height": 224, "width": 224}}"#, "size"),
            (r#"{"crop_size": {"height": 224, "width": 336}}"#, "crop_size"),
            (r#"{"image_std": [0.0, 1.0, 1.0]}"#, "image_std"),
            (r#"{"rescale_factor": 1.0}"#, "rescale_factor"),
            (r#"{"size": 0, "crop_size": 0}"#, "size"),
            (r#"{"size": "big"}"#, "Side"),
        ] {
            let error = serde_json::from_str::<Preprocess>(text).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}

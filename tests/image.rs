//! Pictures equal upstream's, sample for sample, and no file makes the decoder panic or grow.
//!
//! Expected values were recorded from Pillow 13.0.0 with torchvision 0.15.2's transform.

use medflamingo::Result;
use medflamingo::image::{Limits, Mode, Picture, Preprocess, decode, preprocess, resize_crop};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&read(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The folder in the repository, and the one that `MEDFLAMINGO_GOLDEN` names.
fn golden_folders() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let named = std::env::var_os("MEDFLAMINGO_GOLDEN").map(PathBuf::from);
    std::iter::once(own)
        .chain(named)
        .filter(|d| d.join("preprocess/manifest.json").exists())
        .collect()
}

/// What `convert("RGB")` gives for a whole picture.
fn to_rgb(p: &Picture) -> Vec<u8> {
    match p.mode {
        Mode::Rgb => p.data.clone(),
        Mode::Rgba => p.data.chunks(4).flat_map(|v| v[..3].to_vec()).collect(),
        Mode::Gray | Mode::Bilevel => p.data.iter().flat_map(|&v| [v; 3]).collect(),
        Mode::Palette => p.data.iter().flat_map(|&i| p.palette[usize::from(i)]).collect(),
        _ => panic!("no golden picture is {}", p.mode.name()),
    }
}

#[derive(Deserialize)]
struct Manifest {
    mean: [f32; 3],
    std: [f32; 3],
    images: Vec<Recorded>,
    /// SHA-256 of the normalised (3, size, size) f32, little-endian, by `size/file`.
    #[serde(default)]
    pixels_f32_sha256: std::collections::HashMap<String, String>,
}

#[derive(Deserialize)]
struct Recorded {
    file: String,
    size: usize,
    mode: String,
    wh: (usize, usize),
    decoded_rgb_sha256: String,
    resized_crop_u8_sha256: String,
}

#[test]
fn golden_pictures_equal_upstream_in_every_sample() {
    for folder in golden_folders() {
        let manifest: Manifest = json(&folder.join("preprocess/manifest.json"));
        let mut floats = 0;
        for want in &manifest.images {
            let name = format!("{}/{}", want.size, want.file);
            let bytes = read(&folder.join("images").join(&want.file));
            let picture = decode(&bytes, &Limits::default()).unwrap();
            assert_eq!((picture.width, picture.height), want.wh, "{name}");
            assert_eq!(picture.mode.name(), want.mode, "{name}");
            assert_eq!(sha(&to_rgb(&picture)), want.decoded_rgb_sha256, "{name}: decoded");
            let how = Preprocess { size: want.size, mean: manifest.mean, std: manifest.std };
            let crop = resize_crop(&picture, &how).unwrap();
            assert_eq!(sha(&crop), want.resized_crop_u8_sha256, "{name}: resized");
            if let Some(hash) = manifest.pixels_f32_sha256.get(&name) {
                let pixels = preprocess(&picture, &how).unwrap();
                let bytes: Vec<u8> = pixels.data.iter().flat_map(|v| v.to_le_bytes()).collect();
                assert_eq!(sha(&bytes), *hash, "{name}: normalised");
                floats += 1;
            }
        }
        let n = manifest.images.len();
        println!("{}: {n} crops equal, {floats} normalised", folder.display());
        assert!(n > 0);
    }
}

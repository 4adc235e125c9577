//! Pictures equal upstream's, sample for sample, and no file makes the decoder panic or grow.
//!
//! Expected values were recorded from Pillow 13.0.0 with torchvision 0.15.2's transform.

use medflamingo::image::{Limits, Mode, Picture, Preprocess, decode, preprocess, resize_crop};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

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
    pixels_f32_sha256: BTreeMap<String, String>,
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
                let levels = how.levels();
                let each = pixels.data.len() / 3;
                let level = |(i, &v): (usize, &u8)| levels[i / each][usize::from(v)].to_le_bytes();
                let bytes: Vec<u8> = pixels.data.iter().enumerate().flat_map(level).collect();
                assert_eq!(sha(&bytes), *hash, "{name}: normalised");
                floats += 1;
            }
        }
        let n = manifest.images.len();
        println!("{}: {n} crops equal, {floats} normalised", folder.display());
        assert!(n > 0);
    }
}

#[derive(Deserialize)]
struct Modes {
    files: Vec<ModeFile>,
}

#[derive(Deserialize)]
struct ModeFile {
    file: String,
    mode: String,
    wh: (usize, usize),
    /// SHA-256 of the (size, size, 3) crop, by size.
    crops: BTreeMap<String, String>,
}

fn modes_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/preprocess/modes")
}

/// Every mode and depth, interlaced and not, transparent and not, tall enough for Pillow's other
/// order of passes; JPEG with every kind of subsampling, restart markers, CMYK, YCCK, EXIF.
#[test]
fn every_mode_equals_pillow_in_every_sample() {
    let modes: Modes = json(&modes_folder().with_extension("json"));
    for want in &modes.files {
        let bytes = read(&modes_folder().join(&want.file));
        let picture = decode(&bytes, &Limits::default()).unwrap();
        let found = (picture.mode.name(), (picture.width, picture.height));
        assert_eq!(found, (want.mode.as_str(), want.wh), "{}", want.file);
        for (size, hash) in &want.crops {
            let how = Preprocess::clip(size.parse().unwrap());
            let crop = resize_crop(&picture, &how).unwrap();
            assert_eq!(sha(&crop), *hash, "{} at {size}", want.file);
        }
    }
    assert!(modes.files.len() >= 46);
}

/// Fixtures of at most `longest` bytes, by name.
fn fixtures(longest: usize) -> Vec<(String, Vec<u8>)> {
    let images = modes_folder().join("../../images");
    let mut paths: Vec<PathBuf> = [modes_folder(), images]
        .iter()
        .flat_map(|d| std::fs::read_dir(d).unwrap().map(|e| e.unwrap().path()))
        .collect();
    paths.sort();
    let file = |p: PathBuf| (p.file_name().unwrap().to_string_lossy().into_owned(), read(&p));
    paths.into_iter().map(file).filter(|(_, bytes)| bytes.len() <= longest).collect()
}

/// Decodes a damaged file: an error with a reason, or a picture that can be used. Never a panic.
fn survive(bytes: &[u8], limits: &Limits, what: &dyn std::fmt::Display) -> Option<Picture> {
    let outcome = catch_unwind(|| match decode(bytes, limits) {
        Ok(picture) => {
            let how = Preprocess::clip(14);
            assert_eq!(resize_crop(&picture, &how).unwrap().len(), 14 * 14 * 3);
            Some(picture)
        }
        Err(error) => {
            assert!(error.to_string().contains("expected"), "{error}");
            None
        }
    });
    outcome.unwrap_or_else(|_| panic!("panicked: {what}"))
}

#[test]
fn every_prefix_is_refused_or_whole() {
    let mut prefixes = 0;
    for (name, bytes) in fixtures(2500) {
        let whole = decode(&bytes, &Limits::default()).unwrap();
        for n in 0..bytes.len() {
            let what = format!("{name}, first {n} bytes");
            if let Some(picture) = survive(&bytes[..n], &Limits::default(), &what) {
                assert!(picture == whole, "{what}: half a picture");
                let kept = ["trailing_bytes.jpg", ".png"].iter().any(|k| name.ends_with(k));
                assert!(kept, "{what}: accepted");
            }
            prefixes += 1;
        }
    }
    println!("{prefixes} prefixes");
    assert!(prefixes > 20_000);
}

#[test]
fn every_flipped_bit_is_survived() {
    let mut flips = 0;
    for (name, mut bytes) in fixtures(700) {
        for at in 0..bytes.len() * 8 {
            bytes[at / 8] ^= 1 << (at % 8);
            survive(&bytes, &SMALL, &format_args!("{name}, bit {at}"));
            bytes[at / 8] ^= 1 << (at % 8);
            flips += 1;
        }
    }
    println!("{flips} flipped bits");
    assert!(flips > 20_000);
}

/// Keeps damaged headers from asking for large (legal) pictures in loops.
const SMALL: Limits =
    Limits { max_bytes: 1 << 20, max_side: 16_384, max_pixels: 1 << 20, max_aspect: 200 };

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let (at, other) = (random.below(bytes.len()), random.below(bytes.len()));
        let length = random.below(16).min(bytes.len() - at.max(other));
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => bytes.copy_within(other..other + length, at),
            4 => drop(bytes.drain(at..at + length.min(bytes.len() - 9))),
            5 => {
                let piece = bytes[other..other + length].to_vec();
                bytes.splice(at..at, piece);
            }
            // Where the sizes stand in a PNG header.
            _ => {
                let field = bytes.len().min(16 + random.below(13));
                bytes[field - 1] = random.below(256) as u8;
            }
        }
    }
}

/// Writes correct checksums into the chunks, so that the damage is not refused for those alone.
fn mend_checksums(png: &mut [u8]) {
    let mut at = 8;
    while let Some(head) = png.get(at..at + 4) {
        let length = u32::from_be_bytes(head.try_into().unwrap()) as usize;
        let Some(end) = at.checked_add(8 + length).filter(|end| end + 4 <= png.len()) else {
            break;
        };
        let crc = png[at + 4..end].iter().fold(!0u32, |crc, &b| {
            (0..8)
                .fold(crc ^ u32::from(b), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
        });
        png[end..end + 4].copy_from_slice(&(!crc).to_be_bytes());
        at = end + 4;
    }
}

/// Mutated fixtures for `MEDFLAMINGO_FUZZ_SECONDS` (3); `MEDFLAMINGO_FUZZ_SEED` repeats a run.
#[test]
fn mutated_files_are_survived_for_a_while() {
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seconds = number("MEDFLAMINGO_FUZZ_SECONDS").unwrap_or(3);
    let seed = number("MEDFLAMINGO_FUZZ_SEED").unwrap_or(20_261_123);
    let files = fixtures(8000);
    let mut random = Random(seed.max(1));
    let (mut tried, mut accepted, mut slowest) = (0u64, 0u64, Duration::ZERO);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        let (name, original) = &files[random.below(files.len())];
        let mut bytes = original.clone();
        mutate(&mut bytes, &mut random);
        if name.ends_with("png") && random.below(4) > 0 {
            mend_checksums(&mut bytes);
        }
        let began = Instant::now();
        let what = format!("{name}, mutation {tried} of seed {seed}");
        accepted += u64::from(survive(&bytes, &SMALL, &what).is_some());
        slowest = slowest.max(began.elapsed());
        tried += 1;
    }
    println!("seed {seed}: {tried} mutations, {accepted} accepted, slowest {slowest:?}, 0 panics");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
}

/// Small files that ask for much. Run by the test below in a process of its own.
#[test]
#[ignore = "run by bombs_do_not_grow_the_process"]
fn bombs() {
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap().to_string();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    };
    let (_, png) = fixtures(8000).into_iter().find(|f| f.0 == "rgba8_clear.png").unwrap();
    let (_, jpeg) = fixtures(8000).into_iter().find(|f| f.0 == "420_progressive.jpg").unwrap();
    let sof = jpeg.windows(2).position(|w| w == [0xff, 0xc2]).unwrap();
    let before = peak();
    for (w, h) in [(65_535u16, 65_535u16), (16_384, 16_384), (0, 0), (1, 16_384), (16_385, 200)] {
        let mut bytes = png.clone();
        bytes[16..24].copy_from_slice(&[
            0,
            0,
            (w >> 8) as u8,
            w as u8,
            0,
            0,
            (h >> 8) as u8,
            h as u8,
        ]);
        mend_checksums(&mut bytes);
        assert!(decode(&bytes, &Limits::default()).is_err(), "png {w}x{h}");
        let mut bytes = jpeg.clone();
        bytes[sof + 5..sof + 7].copy_from_slice(&h.to_be_bytes());
        bytes[sof + 7..sof + 9].copy_from_slice(&w.to_be_bytes());
        assert!(decode(&bytes, &Limits::default()).is_err(), "jpeg {w}x{h}");
    }
    // 64 MiB of zeros inflate from the data of a picture of 9 x 9.
    let mut bytes = Vec::new();
    let mut info = ::png::Info::with_size(8192, 8192);
    info.color_type = ::png::ColorType::Grayscale;
    let mut writer = ::png::Encoder::with_info(&mut bytes, info).unwrap().write_header().unwrap();
    let mut rows = writer.stream_writer_with_size(1 << 16).unwrap();
    (0..8192).for_each(|_| std::io::Write::write_all(&mut rows, &[0; 8192]).unwrap());
    rows.finish().unwrap();
    drop(writer);
    bytes[16..24].copy_from_slice(&[0, 0, 0, 9, 0, 0, 0, 9]);
    mend_checksums(&mut bytes);
    let start = Instant::now();
    survive(&bytes, &Limits::default(), &"more data than rows");
    assert!(start.elapsed() < Duration::from_secs(10));
    println!("bombs grew the process by {} KiB", peak() - before);
    assert!(peak() - before < 16 << 10, "{} KiB", peak() - before);
}

#[test]
fn bombs_do_not_grow_the_process() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "bombs", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{text}{errors}");
    assert!(text.contains("bombs grew the process by"), "{text}");
    // What libjpeg complains of is in the error, not on the terminal.
    assert!(!errors.contains("panicked") && !errors.contains("JPEG"), "{errors}");
}

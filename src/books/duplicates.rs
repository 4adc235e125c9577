//! What was there before: texts by words and by phrases, pictures by bytes and by looks.

use super::thumbnail::Thumbnail;
use crate::image::{Limits, decode};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};

/// Words of a phrase.
const PHRASE: usize = 5;
/// Fewest words of a paragraph whose phrases are compared.
const MIN_WORDS: usize = 25;
/// Fewest characters of a paragraph that may be said only once.
const MIN_CHARACTERS: usize = 40;
/// Hashes of a signature, in bands of rows: paragraphs that agree in a band are compared.
const BANDS: usize = 8;
const ROWS: usize = 4;
const HASHES: usize = BANDS * ROWS;
/// Most of one bucket that are compared: a bound on time, not on what is found in practice.
const MAX_BUCKET: usize = 256;

type Signature = [u32; HASHES];

/// The paragraphs of all books so far: 8 bytes for each, and 200 for each longer one.
pub(super) struct Texts {
    near: f64,
    exact: HashSet<u64>,
    signatures: Vec<Signature>,
    buckets: HashMap<u64, Vec<u32>>,
}

impl Texts {
    /// Paragraphs that share `near` of their phrases are the same.
    pub(super) fn new(near: f64) -> Self {
        let (exact, buckets) = (HashSet::new(), HashMap::new());
        Texts { near, exact, signatures: Vec::new(), buckets }
    }

    /// Why `text` is left out, or None after it was remembered.
    pub(super) fn judge(&mut self, text: &str, is_header: bool) -> Option<&'static str> {
        if is_header {
            return Some("running header");
        }
        let lower = text.to_lowercase();
        let words: Vec<u64> = lower
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(|word| word.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| mix(h ^ u64::from(b))))
            .collect();
        let whole = words.iter().fold(0, |h, word| mix(h ^ word));
        if lower.chars().count() >= MIN_CHARACTERS && !self.exact.insert(whole) {
            return Some("duplicate");
        }
        if words.len() < MIN_WORDS {
            return None;
        }
        let signature = signature(&words);
        let keys: Vec<u64> = bands(&signature).collect();
        let alike = |&i: &u32| {
            let other = &self.signatures[i as usize];
            let same = other.iter().zip(&signature).filter(|(a, b)| a == b).count();
            same as f64 >= self.near * HASHES as f64
        };
        let mut bucket = keys.iter().filter_map(|key| self.buckets.get(key));
        if bucket.any(|bucket| bucket.iter().any(alike)) {
            return Some("near-duplicate");
        }
        let number = self.signatures.len() as u32;
        self.signatures.push(signature);
        for key in keys {
            let bucket = self.buckets.entry(key).or_default();
            if bucket.len() < MAX_BUCKET {
                bucket.push(number);
            }
        }
        None
    }
}

/// A finaliser of MurmurHash3: every bit of the input changes half of the output.
fn mix(mut h: u64) -> u64 {
    h = (h ^ h >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ h >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ h >> 33
}

/// The least of each of [`HASHES`] hashes over all phrases: signatures agree in a share of their
/// places that estimates the share of phrases in common (Broder 1997).
fn signature(words: &[u64]) -> Signature {
    let mut least = [u32::MAX; HASHES];
    for phrase in words.windows(PHRASE) {
        let phrase = phrase.iter().fold(1, |h, word| mix(h ^ word));
        for (i, least) in least.iter_mut().enumerate() {
            let hash = mix(phrase ^ (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            *least = (*least).min((hash >> 32) as u32);
        }
    }
    least
}

fn bands(signature: &Signature) -> impl Iterator<Item = u64> {
    let key = |(band, rows): (usize, &[u32])| {
        rows.iter().fold(band as u64 + 1, |h, &row| mix(h ^ u64::from(row)))
    };
    signature.chunks(ROWS).enumerate().map(key)
}

/// The pictures of all books so far.
#[derive(Default)]
pub(super) struct Pictures {
    exact: HashSet<[u8; 32]>,
    thumbnails: Vec<Thumbnail>,
    /// By place and value of each 16 bits of the hash: of hashes that differ in fewer bits than
    /// there are places, one agrees.
    buckets: HashMap<(u8, u16), Vec<u32>>,
}

impl Pictures {
    /// The picture, if it is of use and new; else why not.
    pub(super) fn judge(
        &mut self,
        bytes: Vec<u8>,
        min_side: usize,
    ) -> Result<Vec<u8>, &'static str> {
        if !self.exact.insert(Sha256::digest(&bytes).into()) {
            return Err("duplicate");
        }
        if !bytes.starts_with(b"\xff\xd8\xff") && !bytes.starts_with(b"\x89PNG") {
            return Err("neither JPEG nor PNG");
        }
        let picture = decode(&bytes, &Limits::default()).map_err(|_| "damaged or too large")?;
        if picture.width.min(picture.height) < min_side {
            return Err("tiny");
        }
        let thumbnail = Thumbnail::new(&picture);
        if thumbnail.is_blank() {
            return Err("blank");
        }
        let keys = thumbnail.keys();
        let alike = |&i: &u32| self.thumbnails[i as usize].is_like(&thumbnail);
        let mut buckets = keys.iter().filter_map(|key| self.buckets.get(key));
        if buckets.any(|bucket| bucket.iter().any(alike)) {
            return Err("near-duplicate");
        }
        let number = self.thumbnails.len() as u32;
        self.thumbnails.push(thumbnail);
        for key in keys {
            let bucket = self.buckets.entry(key).or_default();
            if bucket.len() < MAX_BUCKET {
                bucket.push(number);
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(seed: u64, n: u64) -> Vec<String> {
        (0..n).map(|i| format!("w{}", mix(seed * 1000 + i) % 5000)).collect()
    }

    #[test]
    fn paragraphs_are_said_once_whatever_their_punctuation() {
        let mut texts = Texts::new(0.8);
        let text = words(1, 60).join(" ");
        assert_eq!(texts.judge(&text, false), None);
        assert_eq!(texts.judge(&text.to_uppercase().replace(' ', ", "), false), Some("duplicate"));
        assert_eq!(texts.judge("Figure 1.", false), None);
        assert_eq!(texts.judge("Figure 1.", false), None);
        assert_eq!(texts.judge("Figure 1.", true), Some("running header"));
    }

    #[test]
    fn near_duplicates_are_found_and_others_are_not() {
        let (mut found, mut wrong) = (0, 0);
        for seed in 0..100 {
            let mut texts = Texts::new(0.8);
            let mut changed = words(seed, 200);
            texts.judge(&changed.join(" "), false);
            changed[100] = "other".into();
            found += usize::from(texts.judge(&changed.join(" "), false).is_some());
            // Half of the phrases in common: a third of all phrases.
            let mut half = words(seed, 200);
            half.truncate(100);
            half.extend(words(seed + 1000, 100));
            wrong += usize::from(texts.judge(&half.join(" "), false).is_some());
        }
        assert!(found >= 99 && wrong <= 1, "{found} {wrong}");
    }
}

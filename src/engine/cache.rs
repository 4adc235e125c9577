//! What the engine remembers between requests: images by content, prompts by prefix.

use crate::model::{Media, Session};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;

/// SHA-256 of an image's pixels, which with the model decide everything seen of it.
pub type ImageKey = [u8; 32];

/// The key of `pixels` (3, S, S).
pub fn image_key(pixels: &[u8]) -> ImageKey {
    Sha256::digest(pixels).into()
}

/// Media keys and values by image content; the least recently used go first.
pub struct ImageCache {
    entries: HashMap<ImageKey, (Arc<Media>, u64)>,
    limit: usize,
    bytes: usize,
    clock: u64,
}

impl ImageCache {
    /// Holds at most `limit` bytes; 0 remembers nothing.
    pub fn new(limit: usize) -> Self {
        ImageCache { entries: HashMap::new(), limit, bytes: 0, clock: 0 }
    }

    /// The image, if it was seen before.
    pub fn get(&mut self, key: &ImageKey) -> Option<Arc<Media>> {
        self.clock += 1;
        let (media, used) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(media.clone())
    }

    /// Remembers `media`, forgetting the least recently used images to stay within the limit.
    pub fn put(&mut self, key: ImageKey, media: Arc<Media>) {
        let size = media.bytes();
        if size > self.limit || self.entries.contains_key(&key) {
            return;
        }
        while self.bytes + size > self.limit {
            let oldest = self.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(k, _)| *k);
            let Some((gone, _)) = oldest.and_then(|k| self.entries.remove(&k)) else { break };
            self.bytes -= gone.bytes();
        }
        self.clock += 1;
        self.bytes += size;
        self.entries.insert(key, (media, self.clock));
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A prompt whose keys and values are still in the pages.
struct Prefix {
    ids: Vec<u32>,
    images: Vec<ImageKey>,
    session: Session,
    used: u64,
}

/// Finished prompts, to be forked by prompts that begin alike: the same shots, another question.
pub struct PrefixCache {
    prefixes: Vec<Prefix>,
    limit: usize,
    image_token: u32,
    clock: u64,
}

impl PrefixCache {
    /// Remembers at most `limit` prompts; 0 remembers nothing.
    pub fn new(limit: usize, image_token: u32) -> Self {
        PrefixCache { prefixes: Vec::new(), limit, image_token, clock: 0 }
    }

    /// The longest known beginning of the prompt: its length in tokens and a session that holds it.
    /// At least one token is left, since somebody has to produce the next one's logits.
    pub fn longest(&mut self, ids: &[u32], images: &[ImageKey]) -> Option<(usize, Session)> {
        let most = ids.len().saturating_sub(1);
        let image_token = self.image_token;
        let shared = |p: &Prefix| {
            let mut markers = 0;
            let same = ids[..most].iter().zip(&p.ids).take_while(|(a, b)| {
                let is_image = **a == image_token;
                let agree = a == b && (!is_image || images.get(markers) == p.images.get(markers));
                markers += usize::from(is_image);
                agree
            });
            same.count()
        };
        let best = self.prefixes.iter_mut().map(|p| (shared(p), p)).max_by_key(|(n, _)| *n)?;
        let (length, prefix) = best;
        if length == 0 {
            return None;
        }
        self.clock += 1;
        prefix.used = self.clock;
        let markers = ids[..length].iter().filter(|id| **id == image_token).count();
        Some((length, prefix.session.prefix(length, markers)))
    }

    /// Remembers a prompt that `session` holds completely. An older prompt that it contains is
    /// dropped.
    pub fn put(&mut self, ids: &[u32], images: Vec<ImageKey>, session: Session) {
        if self.limit == 0 {
            return;
        }
        let contained = |p: &Prefix| ids.starts_with(&p.ids) && images.starts_with(&p.images);
        self.prefixes.retain(|p| !contained(p));
        if self.prefixes.len() >= self.limit {
            self.evict();
        }
        self.clock += 1;
        self.prefixes.push(Prefix { ids: ids.to_vec(), images, session, used: self.clock });
    }

    /// Forgets the least recently used prompt; false if there is none.
    pub fn evict(&mut self) -> bool {
        let oldest = (0..self.prefixes.len()).min_by_key(|&i| self.prefixes[i].used);
        oldest.map(|i| self.prefixes.swap_remove(i)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Stream;
    use crate::tensor::Tensor;

    fn media() -> Arc<Media> {
        let stream = Stream::host(1);
        let kv = Tensor::zeros(&stream, crate::DType::F32, &[2, 8]).unwrap();
        Arc::new(Media { kv })
    }

    #[test]
    fn keys_follow_every_pixel() {
        let mut pixels = vec![5; 12];
        let key = image_key(&pixels);
        assert_eq!(key, image_key(&pixels.clone()));
        pixels[11] = 6;
        assert_ne!(key, image_key(&pixels));
    }

    #[test]
    fn the_least_recently_used_image_goes_first() {
        let each = media().bytes();
        let mut cache = ImageCache::new(2 * each);
        let keys = [1, 2, 3].map(|i| image_key(&[i]));
        cache.put(keys[0], media());
        cache.put(keys[1], media());
        assert!(cache.get(&keys[0]).is_some());
        cache.put(keys[2], media());
        assert!(cache.get(&keys[1]).is_none());
        assert!(cache.get(&keys[0]).is_some() && cache.get(&keys[2]).is_some());
        assert_eq!(cache.bytes(), 2 * each);
        let mut none = ImageCache::new(0);
        none.put(keys[0], media());
        assert!(none.get(&keys[0]).is_none());
    }
}

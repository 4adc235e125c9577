//! All state of one prompt: pages of keys and values, the images it has seen, where it is.

use super::config::Config;
use super::kv::{KvPool, PAGE_TOKENS, Page};
use super::media::{Marker, MaskMode, Media};
use crate::{Error, Result};
use std::sync::Arc;

/// One sequence in progress. Cloning is forking: pages and images are shared, and a page is copied
/// only when one of its holders appends to it.
#[derive(Clone)]
pub struct Session {
    pages: Vec<Arc<Page>>,
    len: usize,
    context: usize,
    marker: Marker,
    media: Vec<Arc<Media>>,
}

impl Session {
    /// An empty sequence that will hold `markers` image markers in its prompt and may look at
    /// `media`.
    pub fn new(config: &Config, mode: MaskMode, markers: usize, media: Vec<Arc<Media>>) -> Self {
        let marker = Marker::new(mode, config.tokens.image, markers, media.len());
        Session { pages: Vec::new(), len: 0, context: config.language.context, marker, media }
    }

    /// Tokens whose keys and values are in the pages.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The images, in the order of their markers.
    pub fn media(&self) -> &[Arc<Media>] {
        &self.media
    }

    /// A second sequence with the same past.
    pub fn fork(&self) -> Self {
        self.clone()
    }

    /// A fork that holds only the first `tokens` tokens, `markers` of them image markers. Pages are
    /// shared; what they hold beyond is never read.
    pub fn prefix(&self, tokens: usize, markers: usize) -> Self {
        let len = tokens.min(self.len);
        let pages = self.pages[..len.div_ceil(PAGE_TOKENS)].to_vec();
        Session { pages, len, marker: self.marker.at(markers), ..self.clone() }
    }

    /// The same past with another rest of the prompt: `markers` in all and the images for them,
    /// which begin with those already seen.
    pub fn with_media(self, markers: usize, media: Vec<Arc<Media>>) -> Self {
        let marker = self.marker.extended(markers, media.len());
        Session { marker, media, ..self }
    }

    /// Pages that `tokens` more tokens would take from the pool.
    pub fn pages_for(&self, tokens: usize) -> usize {
        let fresh = (self.len + tokens).div_ceil(PAGE_TOKENS).saturating_sub(self.pages.len());
        let copied = tokens > 0 && self.shares_its_last_page();
        fresh + usize::from(copied)
    }

    fn shares_its_last_page(&self) -> bool {
        !self.len.is_multiple_of(PAGE_TOKENS)
            && self.pages.last().is_some_and(|last| Arc::strong_count(last) > 1)
    }

    pub(super) fn marker(&self) -> &Marker {
        &self.marker
    }

    /// Makes room for `tokens` more: copies a shared last page, takes new ones.
    ///
    /// # Errors
    /// If the context or the pool is too small; the session is then as it was.
    pub(super) fn reserve(&mut self, pool: &mut KvPool, tokens: usize) -> Result<()> {
        let end = self.len + tokens;
        if end > self.context {
            let expected = format!("at most {} tokens", self.context);
            return Err(Error::invalid("sequence", expected, end)
                .advise("shorten the prompt, use fewer shots, or lower --max-new-tokens"));
        }
        let needed = end.div_ceil(PAGE_TOKENS).saturating_sub(self.pages.len());
        let fresh: Vec<_> = (0..needed).map(|_| pool.take()).collect::<Result<_>>()?;
        if tokens > 0
            && self.shares_its_last_page()
            && let Some(last) = self.pages.last_mut()
        {
            *last = pool.copy(last)?;
        }
        self.pages.extend(fresh);
        Ok(())
    }

    /// `tokens` more are in the pages, and text time is now `marker`.
    pub(super) fn advance(&mut self, tokens: usize, marker: Marker) {
        self.len += tokens;
        self.marker = marker;
    }

    pub(super) fn table(&self) -> Vec<i32> {
        self.pages.iter().map(|p| p.index()).collect()
    }
}

//! Self-attention keys and values in pages. A page is returned to the pool when its last holder
//! drops it, so sequences that share a prefix share its pages.

use crate::device::Stream;
use crate::tensor::{Tensor, View, ViewMut};
use crate::{DType, Error, Result};
use std::sync::{Arc, Mutex, PoisonError};

/// Tokens per page: small enough that a fork copies little, large enough to stream.
pub const PAGE_TOKENS: usize = 16;

/// Free page numbers, last returned first, so that touched memory is used again.
type FreeList = Arc<Mutex<Vec<i32>>>;

/// A page in use. Shared pages are never written.
pub struct Page {
    index: i32,
    free: FreeList,
}

impl Page {
    /// Its number in the pool.
    pub fn index(&self) -> i32 {
        self.index
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

/// All pages of all layers: (pages, layers, 2, heads, page_tokens, head_dim).
pub struct KvPool {
    memory: Tensor,
    free: FreeList,
    pages: usize,
    per_layer: usize,
}

impl KvPool {
    /// Room for `tokens` tokens. Host memory is committed only when a page is first written.
    ///
    /// # Errors
    /// [`Error::Device`] when there is not that much memory.
    pub fn new(
        stream: &Stream,
        dtype: DType,
        layers: usize,
        width: usize,
        tokens: usize,
    ) -> Result<Self> {
        let pages = tokens.div_ceil(PAGE_TOKENS).max(1);
        let per_layer = 2 * PAGE_TOKENS * width;
        let memory = Tensor::zeros(stream, dtype, &[pages, layers * per_layer])?;
        let free = (0..pages as i32).rev().collect();
        Ok(KvPool { memory, free: Arc::new(Mutex::new(free)), pages, per_layer })
    }

    /// An unused page.
    ///
    /// # Errors
    /// [`Error::Invalid`] when every page is in use.
    pub fn take(&mut self) -> Result<Arc<Page>> {
        let index = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let index = index.ok_or_else(|| {
            let expected = format!("a free page of {PAGE_TOKENS} tokens");
            Error::invalid("kv pool", expected, format!("all {} pages in use", self.pages))
                .advise("shorten the prompts, run fewer at once, or raise --kv-tokens")
        })?;
        Ok(Arc::new(Page { index, free: self.free.clone() }))
    }

    /// A copy of `page`, all layers.
    pub fn copy(&mut self, page: &Page) -> Result<Arc<Page>> {
        let fresh = self.take()?;
        self.memory.copy_row(page.index as usize, fresh.index as usize)?;
        Ok(fresh)
    }

    /// Pages of one layer, (pages, 2*heads*page_tokens*head_dim).
    pub fn layer(&self, layer: usize) -> Result<View<'_>> {
        let cols = layer * self.per_layer..(layer + 1) * self.per_layer;
        self.memory.view().block(0..self.pages, cols)
    }

    /// As [`KvPool::layer`], to append.
    pub fn layer_mut(&mut self, layer: usize) -> Result<ViewMut<'_>> {
        let cols = layer * self.per_layer..(layer + 1) * self.per_layer;
        self.memory.view_mut().block(0..self.pages, cols)
    }

    /// Pages in the pool.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Pages that nobody holds.
    pub fn free_pages(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What launches know of it: where it is and how it is divided.
    pub(super) fn form(&self) -> [usize; 4] {
        let at = self.memory.view().ptr::<u8>().addr();
        [at, self.pages, self.per_layer, self.memory.dtype() as usize]
    }

    /// Bytes of pages in use.
    pub fn bytes_in_use(&self) -> usize {
        (self.pages - self.free_pages()) * (self.memory.bytes() / self.pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(tokens: usize) -> KvPool {
        KvPool::new(&Stream::host(1), DType::F32, 2, 4, tokens).unwrap()
    }

    #[test]
    fn pages_return_when_the_last_holder_drops_them() {
        let mut pool = pool(40);
        assert_eq!(pool.pages(), 3);
        let a = pool.take().unwrap();
        let shared = a.clone();
        let _b = pool.take().unwrap();
        let _c = pool.take().unwrap();
        assert!(pool.take().is_err_and(|e| e.to_string().contains("all 3 pages")));
        drop(a);
        assert_eq!(pool.free_pages(), 0);
        drop(shared);
        assert_eq!(pool.free_pages(), 1);
    }

    #[test]
    fn a_copy_has_every_layer_and_leaves_the_source() {
        let mut pool = pool(64);
        let page = pool.take().unwrap();
        let cells = 2 * PAGE_TOKENS * 4;
        for layer in 0..2 {
            let row = page.index() as usize;
            let values = vec![layer as f32 + 1.0; cells];
            let target = pool.layer_mut(layer).unwrap().block(row..row + 1, 0..cells);
            target.unwrap().write(&values).unwrap();
        }
        let copy = pool.copy(&page).unwrap();
        for layer in 0..2 {
            for p in [&page, &copy] {
                let row = p.index() as usize;
                let cellsv = pool.layer(layer).unwrap().block(row..row + 1, 0..cells).unwrap();
                assert_eq!(cellsv.read::<f32>().unwrap(), vec![layer as f32 + 1.0; cells]);
            }
        }
    }

    /// Any sequence of takes, forks and drops leaves the pool as it found it.
    #[test]
    fn random_holders_never_leak_or_share_by_accident() {
        let mut pool = pool(16 * 8);
        let mut held: Vec<Arc<Page>> = Vec::new();
        let mut state = 7u64;
        for _ in 0..10_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            match (state >> 33) % 3 {
                0 => held.extend(pool.take()),
                1 if !held.is_empty() => {
                    held.push(held[(state >> 40) as usize % held.len()].clone())
                }
                _ if !held.is_empty() => {
                    held.swap_remove((state >> 40) as usize % held.len());
                }
                _ => {}
            }
            let mut distinct: Vec<i32> = held.iter().map(|p| p.index()).collect();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len() + pool.free_pages(), 8);
        }
        drop(held);
        assert_eq!(pool.free_pages(), 8);
    }
}

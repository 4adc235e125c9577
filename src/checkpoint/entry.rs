//! A tensor inside a file: where its bytes are, proven to lie inside the file, read on demand.

use crate::dtype::DType;
use crate::error::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The most bytes that [`Entry::read`] hands over at once.
const CHUNK: usize = 4 << 20;
/// The most dimensions a tensor may have.
pub(super) const MAX_DIMS: usize = 32;
/// A view may repeat elements of its storage only up to this many elements.
const MAX_REPEATED: usize = 1 << 20;

/// The bytes of one file, mapped, or held in memory.
#[derive(Debug)]
pub(super) enum Source {
    Mapped(Arc<Mmap>),
    Owned(Vec<u8>),
}

impl Source {
    /// Maps `path`, which must be a regular, non-empty file.
    pub(super) fn open(path: &Path) -> Result<Arc<Self>> {
        // Asked before opening: to open a pipe would wait for its writer.
        let meta = path.metadata().map_err(|e| Error::io("read", path, e))?;
        let who = path.display();
        if !meta.is_file() {
            return Err(Error::invalid(who, "a regular file", "something else"));
        }
        if meta.len() == 0 {
            return Err(Error::invalid(who, "a checkpoint", "an empty file")
                .advise("the download may have failed; fetch the file again"));
        }
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        // SAFETY: the mapping is private and read-only, and every offset used is checked against
        // its length. Another process that shortens the file while it is being read ends this one
        // with SIGBUS; nothing in the mapping is ever executed or trusted after a check.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        Ok(Arc::new(Source::Mapped(Arc::new(map))))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Source::Mapped(map) => map,
            Source::Owned(bytes) => bytes,
        }
    }
}

/// A view over a storage: `shape` and `strides` in elements, `offset` the first element.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub dtype: DType,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl Layout {
    /// Elements of the view, if every one of them lies in a storage of `numel` elements.
    pub(super) fn check(&self, numel: usize) -> Result<usize> {
        let bad = |expected: String| {
            let found =
                format!("offset {}, size {:?}, stride {:?}", self.offset, self.shape, self.strides);
            Error::invalid("tensor", expected, found)
        };
        if self.shape.len() > MAX_DIMS || self.shape.len() != self.strides.len() {
            return Err(bad(format!("one stride per dimension and at most {MAX_DIMS} of them")));
        }
        let count = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let count = count.ok_or_else(|| bad("a size that fits in 64 bits".into()))?;
        let end = if count == 0 {
            Some(self.offset)
        } else {
            let steps = self.shape.iter().zip(&self.strides);
            let last = steps
                .map(|(&d, &s)| (d - 1).checked_mul(s))
                .try_fold(self.offset, |at, step| at.checked_add(step?));
            last.and_then(|at| at.checked_add(1))
        };
        if end.is_none_or(|end| end > numel) {
            return Err(bad(format!("a view inside its storage of {numel} elements")));
        }
        if count > numel.max(MAX_REPEATED) {
            return Err(bad(format!("at most the {numel} elements of its storage")));
        }
        count
            .checked_mul(self.dtype.size())
            .map(|_| count)
            .ok_or_else(|| bad("a size in bytes that fits in 64 bits".into()))
    }
}

/// The strides, in elements, of a row-major tensor of this shape.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1));
    }
    strides
}

/// What two entries share when they are the same tensor under two names: place, type and shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    address: usize,
    dtype: DType,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// One named tensor of a [`Checkpoint`](super::Checkpoint); its bytes stay in the file until read.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Element type in the file.
    pub dtype: DType,
    /// Sizes, last fastest; empty for a scalar.
    pub shape: Vec<usize>,
    strides: Vec<usize>,
    source: Arc<Source>,
    /// Byte position of the first element in the source.
    start: usize,
    count: usize,
}

impl Entry {
    /// A view over the storage that occupies `storage` bytes of `source`.
    pub(super) fn new(source: &Arc<Source>, storage: Range<usize>, layout: Layout) -> Result<Self> {
        if storage.start > storage.end || storage.end > source.bytes().len() {
            let found = format!("bytes {} to {}", storage.start, storage.end);
            return Err(Error::invalid("storage", "bytes inside the file", found));
        }
        let size = layout.dtype.size();
        let count = layout.check(storage.len() / size)?;
        let start = storage.start + layout.offset * size;
        let Layout { dtype, shape, strides, .. } = layout;
        Ok(Entry { dtype, shape, strides, source: source.clone(), start, count })
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes that [`Entry::read`] produces.
    pub fn bytes(&self) -> usize {
        self.count * self.dtype.size()
    }

    /// Equal for two entries that are one tensor under two names: same storage, place, type, shape.
    pub fn identity(&self) -> Identity {
        Identity {
            address: self.source.bytes().as_ptr() as usize + self.start,
            dtype: self.dtype,
            shape: self.shape.clone(),
            strides: self.strides.clone(),
        }
    }

    /// True when `other` is the same bytes of the same file with the same type and shape.
    pub fn is_alias_of(&self, other: &Entry) -> bool {
        self.identity() == other.identity()
    }

    /// The row-major bytes in place, if the file holds them so; no alignment is promised.
    pub fn contiguous(&self) -> Option<&[u8]> {
        let whole = self.count == 0 || self.contiguous_from() == 0;
        whole.then(|| self.at(self.start, self.bytes()))
    }

    /// The mapped file and the byte position in it, if the file holds the tensor row-major.
    pub fn mapping(&self) -> Option<(Arc<Mmap>, usize)> {
        match &*self.source {
            Source::Mapped(map) if self.contiguous().is_some() => Some((map.clone(), self.start)),
            _ => None,
        }
    }

    /// Passes the row-major bytes, little-endian, in the file's element type, to `out` in pieces
    /// of at most 4 MiB, each a whole number of elements. Strided views are gathered.
    ///
    /// # Errors
    /// Only those of `out`.
    pub fn read(&self, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        if let Some(bytes) = self.contiguous() {
            return bytes.chunks(CHUNK).try_for_each(out);
        }
        self.gather(out)
    }

    /// All row-major bytes in one vector: for small tensors.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.bytes());
        let kept: Result<()> = self.read(&mut |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        });
        debug_assert!(kept.is_ok());
        all
    }

    fn at(&self, start: usize, len: usize) -> &[u8] {
        &self.source.bytes()[start..start + len]
    }

    /// The first dimension from which on the elements are adjacent in the file.
    fn contiguous_from(&self) -> usize {
        let mut expected = 1;
        for (i, (&d, &s)) in self.shape.iter().zip(&self.strides).enumerate().rev() {
            if d != 1 && s != expected {
                return i + 1;
            }
            expected *= d;
        }
        0
    }

    /// Walks the outer dimensions; the last strided one is the inner loop, what follows it a run.
    fn gather(&self, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let size = self.dtype.size();
        let split = self.contiguous_from();
        let run = self.shape[split..].iter().product::<usize>() * size;
        let (inner, step) = (self.shape[split - 1], self.strides[split - 1] * size);
        let outer = &self.shape[..split - 1];
        let mut index = vec![0usize; outer.len()];
        let mut buffer = Vec::with_capacity(self.bytes().min(CHUNK));
        loop {
            let skip: usize = index.iter().zip(&self.strides).map(|(i, s)| i * s).sum();
            let base = self.start + skip * size;
            for i in 0..inner {
                for piece in self.at(base + i * step, run).chunks(CHUNK) {
                    if buffer.len() + piece.len() > CHUNK {
                        out(&buffer)?;
                        buffer.clear();
                    }
                    buffer.extend_from_slice(piece);
                }
            }
            if !advance(&mut index, outer) {
                return out(&buffer);
            }
        }
    }
}

/// Steps a row-major index; false after the last one.
fn advance(index: &mut [usize], shape: &[usize]) -> bool {
    for (i, &d) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < d {
            return true;
        }
        *i = 0;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(shape: &[usize], strides: &[usize], offset: usize) -> Result<Entry> {
        let source = Arc::new(Source::Owned((0..48u8).collect()));
        let (shape, strides) = (shape.to_vec(), strides.to_vec());
        Entry::new(&source, 0..48, Layout { dtype: DType::I16, offset, shape, strides })
    }

    fn elements(e: &Entry) -> Vec<u8> {
        e.to_vec().chunks(2).map(|c| c[0] / 2).collect()
    }

    #[test]
    fn transposed_sliced_and_scalar_views_come_out_row_major() {
        let t = entry(&[3, 2], &[1, 3], 0).unwrap();
        assert_eq!(elements(&t), [0, 3, 1, 4, 2, 5]);
        assert!(t.contiguous().is_none());
        let rows = entry(&[2, 2, 3], &[12, 6, 1], 1).unwrap();
        assert_eq!(elements(&rows), [1, 2, 3, 7, 8, 9, 13, 14, 15, 19, 20, 21]);
        let scalar = entry(&[], &[], 23).unwrap();
        assert_eq!(elements(&scalar), [23]);
        assert!(scalar.contiguous().is_some());
        let unit = entry(&[1, 4, 1], &[999, 1, 77], 2).unwrap();
        assert!(unit.contiguous().is_some(), "strides of unit dimensions do not matter");
        assert!(entry(&[2, 0, 5], &[5, 5, 1], 24).unwrap().to_vec().is_empty());
    }

    #[test]
    fn a_view_that_leaves_its_storage_is_refused() {
        for (shape, strides, offset) in [
            (&[25][..], &[1][..], 0),
            (&[24], &[1], 1),
            (&[2], &[usize::MAX], 1),
            (&[3, usize::MAX], &[1, 1], 0),
            (&[1 << 40, 1 << 40], &[0, 0], 0),
            (&[1 << 30], &[0], 0),
            (&[], &[], 24),
            (&[0], &[1], 25),
        ] {
            assert!(entry(shape, strides, offset).is_err(), "{shape:?} {strides:?} {offset}");
        }
    }

    #[test]
    fn large_tensors_arrive_in_bounded_whole_pieces() {
        let source = Arc::new(Source::Owned(vec![7; 10 << 20]));
        for strides in [vec![1 << 20, 1], vec![1, 5]] {
            let layout = Layout { dtype: DType::F64, offset: 0, shape: vec![5, 1 << 18], strides };
            let e = Entry::new(&source, 0..10 << 20, layout);
            let Ok(e) = e else { continue };
            let mut total = 0;
            e.read(&mut |b| {
                assert!(b.len() <= CHUNK && b.len() % 8 == 0);
                total += b.len();
                Ok(())
            })
            .unwrap();
            assert_eq!(total, e.bytes());
        }
    }
}

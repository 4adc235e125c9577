//! Bytes on a device. On the host a buffer may borrow a file mapping: weights are never copied.

use crate::{Error, Result};
use memmap2::{Mmap, MmapMut};
use std::sync::Arc;

enum Memory {
    /// Anonymous pages: zero until written, and not there until then.
    Owned {
        ptr: *mut u8,
        _pages: MmapMut,
    },
    Mapped {
        map: Arc<Mmap>,
        start: usize,
    },
}

/// A fixed number of bytes that kernels can address.
pub struct Buffer {
    memory: Memory,
    len: usize,
}

// SAFETY: the memory is plain bytes; sharing and exclusive use follow the borrow of the Buffer.
unsafe impl Send for Buffer {}
// SAFETY: as above; `&Buffer` only reads, except through `ptr`, whose users state their own claims.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(super) fn zeros(len: usize) -> Result<Self> {
        let mut pages = MmapMut::map_anon(len.max(1)).map_err(|e| {
            let mib = len as f64 / 1048576.0;
            Error::device("cpu", format!("cannot allocate {mib:.1} MiB: {e}"))
        })?;
        let memory = Memory::Owned { ptr: pages.as_mut_ptr(), _pages: pages };
        Ok(Buffer { memory, len }.announced())
    }

    /// Borrows `start .. start + len` of a mapping.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the range leaves the mapping.
    pub fn mapped(map: Arc<Mmap>, start: usize, len: usize) -> Result<Self> {
        if start.checked_add(len).is_none_or(|end| end > map.len()) {
            let found = format!("{start} + {len}");
            return Err(Error::invalid("mapping", format!("a range in {}", map.len()), found));
        }
        Ok(Buffer { memory: Memory::Mapped { map, start }, len }.announced())
    }

    /// Tells the emulator, if there is one, that kernels may use this memory.
    fn announced(self) -> Self {
        #[cfg(feature = "simt")]
        super::simt::appeared(self.ptr(), self.len);
        self
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if the buffer holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address kernels use. Writing through it needs a claim of exclusive use.
    pub fn ptr(&self) -> *mut u8 {
        match &self.memory {
            Memory::Owned { ptr, .. } => *ptr,
            Memory::Mapped { map, start } => map[*start..].as_ptr().cast_mut(),
        }
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they do not fit, or the buffer is a read-only mapping.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len);
        if !fits || matches!(self.memory, Memory::Mapped { .. }) {
            let found = format!("{} bytes at {offset}", bytes.len());
            return Err(Error::invalid(
                "write",
                format!("at most {} owned bytes", self.len),
                found,
            ));
        }
        // SAFETY: the range was checked and `&mut self` is exclusive.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr().add(offset), bytes.len())
        };
        Ok(())
    }

    /// The bytes, on the host.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes from `ptr` are initialised and live as long as self.
        unsafe { std::slice::from_raw_parts(self.ptr(), self.len) }
    }
}

#[cfg(feature = "simt")]
impl Drop for Buffer {
    fn drop(&mut self) {
        super::simt::vanished(self.ptr());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_stay_inside() {
        let mut b = Buffer::zeros(8).unwrap();
        b.write(6, &[1, 2]).unwrap();
        assert!(b.write(7, &[1, 2]).is_err() && b.write(usize::MAX, &[1]).is_err());
        assert_eq!(b.bytes(), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(b.ptr() as usize % 64, 0);
    }

    #[test]
    fn absurd_sizes_are_errors() {
        assert!(Buffer::zeros(usize::MAX / 2).is_err());
        assert!(Buffer::zeros(usize::MAX).is_err());
    }
}

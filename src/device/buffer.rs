//! Bytes on a device. On the host a buffer may borrow a file mapping: weights are never copied.

use super::cuda::{self, Arrival, Cells, Job, Queue};
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
    Card(cuda::Memory),
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
        /// Under the emulator no buffer touches the next: what leaves one is found.
        const GUARD: usize = if cfg!(feature = "simt") { 4096 } else { 0 };
        let mut pages = MmapMut::map_anon(len.max(1).saturating_add(GUARD)).map_err(|e| {
            let mib = len as f64 / 1048576.0;
            Error::device("cpu", format!("cannot allocate {mib:.1} MiB: {e}"))
        })?;
        let memory = Memory::Owned { ptr: pages.as_mut_ptr(), _pages: pages };
        Ok(Buffer { memory, len }.announced())
    }

    pub(super) fn on_card(memory: cuda::Memory, len: usize) -> Self {
        Buffer { memory: Memory::Card(memory), len }
    }

    /// Copies of mapped buffers in one buffer of a card, and where each begins there: all at
    /// multiples of [`Buffer::PLACED`], which a file does not promise.
    pub(super) fn placed(queue: &Arc<Queue>, sources: &[Buffer]) -> Result<(Self, Vec<usize>)> {
        let mut len = 0;
        let mut offsets = Vec::with_capacity(sources.len());
        for source in sources {
            offsets.push(len);
            len = (len + source.len).next_multiple_of(Self::PLACED);
        }
        let placed = Buffer { memory: Memory::Card(queue.allocate(len)?), len };
        let mut jobs = Vec::with_capacity(sources.len());
        for (source, offset) in sources.iter().zip(&offsets) {
            let Memory::Mapped { map, start } = &source.memory else {
                return Err(Error::invalid("upload", "mapped buffers", "another one"));
            };
            let from = &map[*start..*start + source.len];
            jobs.push(Job { from, to: placed.ptr().addr() + offset });
        }
        // SAFETY: the targets are new, as long as their sources, and share no byte.
        unsafe { queue.upload(&jobs) }.map(|()| (placed, offsets))
    }

    /// Alignment of what is placed on a card, bytes: that of the driver's own allocations.
    const PLACED: usize = 256;

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
            Memory::Card(memory) => std::ptr::without_provenance_mut(memory.at),
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
        let at = self.ptr() as usize + offset;
        let cells = Cells { at, pitch: bytes.len(), rows: 1, bytes: bytes.len() };
        // SAFETY: the range was checked and `&mut self` is exclusive.
        unsafe { self.put(cells, bytes.as_ptr()) }
    }

    /// A copy of the bytes, on a card once everything before it has run.
    ///
    /// # Errors
    /// [`Error::Device`] if the card has failed.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.len];
        let cells = Cells { at: self.ptr() as usize, pitch: self.len, rows: 1, bytes: self.len };
        // SAFETY: the whole buffer, into as many bytes.
        unsafe { self.get(cells, bytes.as_mut_ptr()) }.map(|()| bytes)
    }

    /// Copies `from`, row after row, into `cells`.
    ///
    /// # Safety
    /// The cells are in this buffer and nobody else uses them; `from` is as long as they are.
    pub(crate) unsafe fn put(&self, cells: Cells, from: *const u8) -> Result<()> {
        // SAFETY: the caller's.
        unsafe {
            match &self.memory {
                Memory::Card(memory) => memory.write(cells, from),
                _ => {
                    let source = Cells { at: from as usize, pitch: cells.bytes, ..cells };
                    copy_here(source, cells);
                    Ok(())
                }
            }
        }
    }

    /// Copies `cells` out, row after row; on a card, once everything before it has run.
    ///
    /// # Safety
    /// The cells are in this buffer and nobody writes to them; `to` has room for them.
    pub(crate) unsafe fn get(&self, cells: Cells, to: *mut u8) -> Result<()> {
        // SAFETY: the caller's.
        unsafe {
            match &self.memory {
                Memory::Card(memory) => memory.queue.read(cells, to),
                _ => {
                    copy_here(cells, Cells { at: to as usize, pitch: cells.bytes, ..cells });
                    Ok(())
                }
            }
        }
    }

    /// Begins what [`Buffer::get`] does, all of it into new memory.
    ///
    /// # Safety
    /// The cells are in this buffer and nobody writes to them before they are there.
    pub(crate) unsafe fn begin_get(&self, cells: Cells) -> Result<Landing> {
        // SAFETY: the caller's.
        unsafe {
            if let Memory::Card(memory) = &self.memory
                && let Some(arrival) = memory.queue.begin_read(cells)?
            {
                return Ok(Landing(Way::Later(arrival)));
            }
            let mut bytes = vec![0; cells.rows * cells.bytes];
            self.get(cells, bytes.as_mut_ptr()).map(|()| Landing(Way::Here(bytes)))
        }
    }

    /// Copies `from` of buffer `source` to `to` of this one, cells of the same form.
    ///
    /// # Safety
    /// Both are inside their buffers, share no byte, and nobody else uses them.
    pub(crate) unsafe fn put_cells(&self, to: Cells, source: &Buffer, from: Cells) -> Result<()> {
        // SAFETY: the caller's.
        unsafe {
            match (&source.memory, &self.memory) {
                (Memory::Card(_), Memory::Card(memory)) => memory.queue.move_cells(from, to),
                (Memory::Card(_), _) | (_, Memory::Card(_)) => {
                    Err(Error::invalid("copy", "buffers of one device", "two"))
                }
                _ => {
                    copy_here(from, to);
                    Ok(())
                }
            }
        }
    }
}

/// Bytes of a device that somebody will wait for; launches and copies may go on meanwhile.
pub struct Landing(Way);

enum Way {
    Here(Vec<u8>),
    Later(Arrival),
}

impl Landing {
    /// Waits for them.
    ///
    /// # Errors
    /// [`Error::Device`] if the card has failed.
    pub fn wait(self) -> Result<Vec<u8>> {
        match self.0 {
            Way::Here(bytes) => Ok(bytes),
            Way::Later(arrival) => arrival.wait(),
        }
    }
}

/// Row by row, on the host.
///
/// # Safety
/// Both are host memory, of the same form, without a common byte.
unsafe fn copy_here(from: Cells, to: Cells) {
    for row in 0..from.rows {
        let source = std::ptr::with_exposed_provenance::<u8>(from.at + row * from.pitch);
        let target = std::ptr::with_exposed_provenance_mut::<u8>(to.at + row * to.pitch);
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(source, target, from.bytes) };
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(feature = "simt")]
impl Drop for Buffer {
    fn drop(&mut self) {
        if !matches!(self.memory, Memory::Card(_)) {
            super::simt::vanished(self.ptr());
        }
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
        assert_eq!(b.read().unwrap(), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(b.ptr() as usize % 64, 0);
    }

    #[test]
    fn absurd_sizes_are_errors() {
        assert!(Buffer::zeros(usize::MAX / 2).is_err());
        assert!(Buffer::zeros(usize::MAX).is_err());
    }
}

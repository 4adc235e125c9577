//! Page-locked host memory through which every copy goes: the card reads it by itself, and what a
//! copy was made from may change at once.

use super::check;
use crate::Result;
use cudarc::driver::sys;

/// A stretch of page-locked memory, filled from the start and begun again when the queue is idle.
pub(super) struct Staging {
    memory: *mut u8,
    size: usize,
    used: usize,
}

impl Default for Staging {
    fn default() -> Self {
        Staging { memory: std::ptr::null_mut(), size: 0, used: 0 }
    }
}

impl Staging {
    /// Has `size` bytes locked.
    pub(super) fn allocate(&mut self, device: &str, size: usize) -> Result<()> {
        let mut memory = std::ptr::null_mut();
        // SAFETY: writes the address it is given; flags 0 is memory that the host caches.
        let status = unsafe { sys::cuMemHostAlloc(&mut memory, size, 0) };
        check(device, "page-locked memory", status)?;
        (self.memory, self.size) = (memory.cast(), size);
        Ok(())
    }

    /// The first byte.
    pub(super) fn start(&self) -> *mut u8 {
        self.memory
    }

    /// The next `bytes`, if they are still free.
    pub(super) fn take(&mut self, bytes: usize) -> Option<*mut u8> {
        if bytes > self.size - self.used {
            return None;
        }
        let at = self.memory.wrapping_add(self.used);
        self.used = (self.used + bytes.next_multiple_of(64)).min(self.size);
        Some(at)
    }

    /// All of it is free: the queue is idle.
    pub(super) fn reset(&mut self) {
        self.used = 0;
    }

    /// Gives it back.
    pub(super) fn free(&mut self) {
        let memory = std::mem::replace(&mut self.memory, std::ptr::null_mut());
        if !memory.is_null() {
            // SAFETY: allocated above; whoever frees it uses it no more.
            let _ = unsafe { sys::cuMemFreeHost(memory.cast()) };
        }
    }
}

/// Rows of bytes in device memory, some distance apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cells {
    pub at: usize,
    pub pitch: usize,
    pub rows: usize,
    pub bytes: usize,
}

impl Cells {
    /// The same cells as one row if there are no gaps.
    pub(super) fn joined(self) -> Self {
        if self.rows > 1 && self.pitch == self.bytes {
            let bytes = self.rows * self.bytes;
            return Cells { pitch: bytes, rows: 1, bytes, ..self };
        }
        self
    }

    /// Pieces of at most `most` bytes.
    pub(super) fn pieces(self, most: usize) -> impl Iterator<Item = Cells> {
        let Cells { at, pitch, rows, bytes } = self.joined();
        let (high, wide) = ((most / bytes.max(1)).max(1), bytes.min(most).max(1));
        (0..rows).step_by(high).flat_map(move |row| {
            (0..bytes).step_by(wide).map(move |col| Cells {
                at: at + row * pitch + col,
                pitch,
                rows: high.min(rows - row),
                bytes: wide.min(bytes - col),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_byte_once() {
        for (rows, bytes, pitch, most) in
            [(1, 100, 100, 32), (5, 10, 10, 16), (5, 10, 13, 32), (3, 70, 80, 32), (4, 0, 8, 32)]
        {
            let cells = Cells { at: 1000, pitch, rows, bytes };
            let mut seen = vec![0; rows * pitch];
            for p in cells.pieces(most) {
                assert!(p.rows * p.bytes <= most);
                for r in 0..p.rows {
                    let at = p.at - 1000 + r * p.pitch;
                    seen[at..at + p.bytes].iter_mut().for_each(|n| *n += 1);
                }
            }
            for (i, n) in seen.iter().enumerate() {
                assert_eq!(*n, i32::from(i % pitch < bytes), "{rows} {bytes} {pitch} {i}");
            }
        }
    }
}

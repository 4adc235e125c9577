//! Memory of a training pass: what it needs is known after the first pass of a shape, and from then
//! on nothing is allocated.

use crate::device::Stream;
use crate::tensor::{Arena, Tensor};
use crate::{DType, Result};

/// An arena that grows by further ones while tensors are taken, and is one again when it is reset.
pub(super) struct Room {
    arenas: Vec<Arena>,
}

/// Bytes of a further arena at least, so that small tensors do not come one by one.
const STEP: usize = 1 << 20;

impl Room {
    pub fn new() -> Self {
        Room { arenas: Vec::new() }
    }

    /// The next tensor. Its cells hold whatever was left there.
    pub fn take(&mut self, stream: &Stream, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let bytes = Arena::footprint(dtype, shape.iter().product());
        self.arena(stream, bytes)?.take(dtype, shape)
    }

    /// An arena from which `bytes` can be taken.
    pub fn arena(&mut self, stream: &Stream, bytes: usize) -> Result<&mut Arena> {
        let fits = self.arenas.last().is_some_and(|a| a.remaining() >= bytes);
        if !fits {
            self.arenas.push(Arena::new(stream, bytes.max(STEP))?);
        }
        let last = self.arenas.len() - 1;
        Ok(&mut self.arenas[last])
    }

    /// Starts over.
    ///
    /// # Errors
    /// If a tensor is still alive.
    pub fn reset(&mut self, stream: &Stream) -> Result<()> {
        let taken = self.arenas.iter().map(|a| a.bytes() - a.remaining()).sum();
        for arena in &mut self.arenas {
            arena.reset(stream, 0)?;
        }
        if self.arenas.len() > 1 {
            self.arenas.clear();
            self.arenas.push(Arena::new(stream, taken)?);
        }
        Ok(())
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.arenas.iter().map(Arena::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_grows_once_and_refuses_to_forget_what_lives() {
        let stream = Stream::host(1);
        let mut room = Room::new();
        let big = [3, STEP / 8];
        let mut kept = Vec::new();
        for _ in 0..3 {
            kept.push(room.take(&stream, DType::F32, &big).unwrap());
        }
        assert!(room.reset(&stream).is_err());
        kept.clear();
        room.reset(&stream).unwrap();
        for _ in 0..3 {
            kept.push(room.take(&stream, DType::F32, &big).unwrap());
        }
        assert_eq!((room.arenas.len(), room.bytes()), (1, 3 * 3 * STEP / 2));
    }
}

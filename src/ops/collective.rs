//! Sums and copies between cards, over NCCL: checked, then put into the stream's queue.

use super::check;
use crate::device::{Nccl, NcclTicket, Stream};
use crate::tensor::{Tensor, ViewMut};
use crate::{DType, Error, Result};
use std::ops::Range;

/// This process's place among those with a card each.
pub struct Collective {
    nccl: Nccl,
    rank: usize,
    world: usize,
}

/// A sum that is under way beside the stream's queue, and the memory that it is made in.
pub struct Reducing {
    // Before the memory: where both are dropped, the queue waits first.
    ticket: NcclTicket,
    x: Tensor,
}

impl Reducing {
    /// What comes into the queue from here on waits for the sum: this rank's part of the memory.
    ///
    /// # Errors
    /// [`Error::Device`] if the card has failed.
    pub fn end(self) -> Result<Tensor> {
        self.ticket.end().map(|()| self.x)
    }
}

impl Collective {
    /// Bytes of an id.
    pub const ID: usize = Nccl::ID;

    /// What all ranks of one job start from; one of them makes it.
    ///
    /// # Errors
    /// [`Error::Device`] if NCCL is not on this machine.
    pub fn id() -> Result<[u8; Self::ID]> {
        Nccl::id()
    }

    /// Meets the other ranks; all of them call it.
    ///
    /// # Errors
    /// [`Error::Device`] if `stream` is not a card's, or NCCL is not there or does not start.
    pub fn new(stream: &Stream, id: [u8; Self::ID], rank: usize, world: usize) -> Result<Self> {
        let nccl = Nccl::new(stream, id, rank, world)?;
        Ok(Collective { nccl, rank, world })
    }

    /// Begins to add up the ranks' `x` (n) f32 behind what the queue has and beside what comes
    /// after it; `parts` are the elements that each rank gets the sum of, in their order. The
    /// cells of other ranks' parts hold anything afterwards.
    ///
    /// # Errors
    /// If a shape or dtype differs; [`Error::Device`] if a rank has failed.
    pub fn begin_sum(&self, mut x: Tensor, parts: &[Range<usize>]) -> Result<Reducing> {
        let (op, n) = ("sum over ranks", x.shape().cols());
        self.part(op, n, parts)?;
        check::flat(op, "x", &x.view(), n, DType::F32)?;
        // SAFETY: size and dtype were checked; nobody else has the tensor before the ticket ends.
        let ticket = unsafe { self.nccl.begin_sum(x.view_mut().ptr(), parts)? };
        Ok(Reducing { ticket, x })
    }

    /// `x` (n) f32 = its sum over ranks.
    ///
    /// # Errors
    /// As [`Collective::begin_sum`].
    pub fn all_reduce(&self, _: &Stream, mut x: ViewMut<'_>) -> Result<()> {
        let n = x.cols();
        check::flat("all_reduce", "x", &x.as_view(), n, DType::F32)?;
        // SAFETY: size and dtype were checked; x is borrowed exclusively.
        unsafe { self.nccl.all_reduce(x.ptr(), n) }
    }

    /// The elements of `y` (n) that are in `parts`, one range for each rank, become those of their
    /// ranks.
    ///
    /// # Errors
    /// As [`Collective::begin_sum`].
    pub fn all_gather(&self, _: &Stream, mut y: ViewMut<'_>, parts: &[Range<usize>]) -> Result<()> {
        let (n, dtype) = (y.cols(), y.dtype());
        check::flat("all_gather", "y", &y.as_view(), n, dtype)?;
        self.part("all_gather", n, parts)?;
        let bytes = |part: &Range<usize>| part.start * dtype.size()..part.end * dtype.size();
        let parts: Vec<Range<usize>> = parts.iter().map(bytes).collect();
        // SAFETY: the parts were checked; y is borrowed exclusively.
        unsafe { self.nccl.all_gather(y.ptr(), &parts) }
    }

    /// `x` becomes that of rank `root`.
    ///
    /// # Errors
    /// As [`Collective::begin_sum`].
    pub fn broadcast(&self, _: &Stream, mut x: ViewMut<'_>, root: usize) -> Result<()> {
        let dense = x.as_view();
        check::dense("broadcast", "x", &dense)?;
        let bytes = dense.bytes();
        // SAFETY: the rows have no gaps; x is borrowed exclusively.
        unsafe { self.nccl.broadcast(x.ptr(), bytes, root) }
    }

    /// This rank's part of `n` elements.
    fn part(&self, op: &str, n: usize, parts: &[Range<usize>]) -> Result<Range<usize>> {
        let is_inside = |part: &Range<usize>| part.start <= part.end && part.end <= n;
        match parts.get(self.rank) {
            Some(own) if parts.len() == self.world && parts.iter().all(is_inside) => {
                Ok(own.clone())
            }
            _ => {
                let expected = format!("{} ranges below {n}", self.world);
                Err(Error::invalid(format!("{op}: parts"), expected, format!("{parts:?}")))
            }
        }
    }
}

//! Sums and copies between cards, over NCCL: checked, then put into the stream's queue.

use super::check;
use super::column_sums::column_sums;
use super::gemm::Out;
use crate::device::{Nccl, Stream};
use crate::tensor::{Tensor, View, ViewMut};
use crate::{DType, Error, Result};
use std::cell::RefCell;
use std::ops::Range;

/// This process's place among those with a card each.
pub struct Collective {
    nccl: Nccl,
    rank: usize,
    world: usize,
    /// What a sum is received into before it is added.
    received: RefCell<Option<Tensor>>,
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
        Ok(Collective { nccl, rank, world, received: RefCell::new(None) })
    }

    /// `out` f32 (+)= the sum over ranks of this rank's part of their `x` (n) f32; `parts` are the
    /// elements of every rank, in their order.
    ///
    /// # Errors
    /// If a shape or dtype differs; [`Error::Device`] if a rank has failed.
    pub fn reduce_scatter(
        &self,
        stream: &Stream,
        mut out: ViewMut<'_>,
        mode: Out,
        x: View<'_>,
        parts: &[Range<usize>],
    ) -> Result<()> {
        let (op, n) = ("reduce_scatter", x.cols());
        let own = self.part(op, n, parts)?.len();
        check::flat(op, "out", &out.as_view(), own, DType::F32)?;
        check::flat(op, "x", &x, n, DType::F32)?;
        if mode == Out::Overwrite {
            // SAFETY: sizes and dtypes were checked; what is written is borrowed exclusively.
            return unsafe { self.nccl.reduce_scatter(out.ptr(), x.ptr(), parts) };
        }
        let mut received = self.received.borrow_mut();
        if received.as_ref().is_none_or(|t| t.shape().elements() != own) {
            *received = Some(Tensor::zeros(stream, DType::F32, &[1, own])?);
        }
        let Some(received) = received.as_mut() else { return Ok(()) };
        // SAFETY: as above; the tensor has as many elements.
        unsafe { self.nccl.reduce_scatter(received.view_mut().ptr(), x.ptr(), parts)? };
        column_sums(stream, out, Out::Accumulate, received.view())
    }

    /// `x` (n) f32 = its sum over ranks.
    ///
    /// # Errors
    /// As [`Collective::reduce_scatter`].
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
    /// As [`Collective::reduce_scatter`].
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
    /// As [`Collective::reduce_scatter`].
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

//! Sums and copies between cards, over NCCL: checked, then put into the stream's queue.

use super::check;
use super::column_sums::column_sums;
use super::gemm::Out;
use crate::device::{Nccl, Stream};
use crate::tensor::{Tensor, View, ViewMut};
use crate::{DType, Error, Result};
use std::cell::RefCell;

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

    /// `out` (n / world) f32 (+)= the sum over ranks of this rank's part of their `x` (n) f32.
    ///
    /// # Errors
    /// If a shape or dtype differs; [`Error::Device`] if a rank has failed.
    pub fn reduce_scatter(
        &self,
        stream: &Stream,
        mut out: ViewMut<'_>,
        mode: Out,
        x: View<'_>,
    ) -> Result<()> {
        let (op, part) = ("reduce_scatter", x.cols() / self.world.max(1));
        check::flat(op, "out", &out.as_view(), part, DType::F32)?;
        check::flat(op, "x", &x, part * self.world, DType::F32)?;
        if mode == Out::Overwrite {
            // SAFETY: sizes and dtypes were checked; what is written is borrowed exclusively.
            return unsafe { self.nccl.reduce_scatter(out.ptr(), x.ptr(), part) };
        }
        let mut received = self.received.borrow_mut();
        if received.as_ref().is_none_or(|t| t.shape().elements() != part) {
            *received = Some(Tensor::zeros(stream, DType::F32, &[part])?);
        }
        let Some(received) = received.as_mut() else { return Ok(()) };
        // SAFETY: as above; the tensor has as many elements.
        unsafe { self.nccl.reduce_scatter(received.view_mut().ptr(), x.ptr(), part)? };
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

    /// Parts of `y` (n), of which rank r has the r-th, become those of their ranks.
    ///
    /// # Errors
    /// As [`Collective::reduce_scatter`].
    pub fn all_gather(&self, _: &Stream, mut y: ViewMut<'_>) -> Result<()> {
        let (n, dtype) = (y.cols(), y.dtype());
        check::flat("all_gather", "y", &y.as_view(), n, dtype)?;
        if !n.is_multiple_of(self.world) {
            let expected = format!("a multiple of {} elements", self.world);
            return Err(Error::invalid("all_gather: y", expected, n));
        }
        let bytes = n / self.world * dtype.size();
        // SAFETY: the size was checked; y is borrowed exclusively.
        unsafe { self.nccl.all_gather(y.ptr(), self.rank, bytes) }
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
}

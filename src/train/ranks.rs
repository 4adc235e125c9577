//! Sums of gradients over ranks that train together.

use super::{Shard, Sums};
use crate::Result;
use crate::comm::{Comm, Sum};
use crate::device::Stream;
use crate::ops::Out;
use crate::tensor::{Tensor, ViewMut};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

/// Those of the ranks of a [`Comm`].
pub struct OverRanks {
    comm: Rc<Comm>,
    under_way: VecDeque<Sum>,
}

impl OverRanks {
    pub fn new(comm: Rc<Comm>) -> Self {
        OverRanks { comm, under_way: VecDeque::new() }
    }
}

impl Sums for OverRanks {
    fn shard(&self) -> Shard {
        Shard { rank: self.comm.rank(), world: self.comm.world() }
    }

    fn begin(&mut self, _: &Stream, x: Tensor, parts: &[Range<usize>]) -> Result<()> {
        self.under_way.push_back(self.comm.begin_sum(x, parts)?);
        Ok(())
    }

    fn end(&mut self, stream: &Stream, out: ViewMut<'_>, mode: Out) -> Result<Tensor> {
        let sum = self.under_way.pop_front();
        let none = || crate::Error::invalid("sum over ranks", "one that has begun", "none");
        sum.ok_or_else(none)?.end(stream, out, mode)
    }
}

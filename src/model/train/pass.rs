//! What every part of a training pass works with: launches, weights, gradients, memory.

use super::gradients::Gradients;
use super::parameters::{Id, Parameters};
use super::room::Room;
use crate::device::Stream;
use crate::ops::Weight;
use crate::tensor::{Arena, Tensor, View};
use crate::{DType, Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Which activations are computed again in backward instead of being kept. The gradients are the
/// same to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Everything that backward reads is kept.
    #[default]
    None,
    /// What is inside gated blocks is computed again.
    Blocks,
    /// What is inside any layer is computed again; only layers' inputs are kept.
    All,
}

impl Recompute {
    /// The names, as on the command line.
    pub const NAMES: [&str; 3] = ["none", "blocks", "all"];

    /// How a layer is kept under this policy.
    pub(super) fn keep(self, is_block: bool) -> Keep {
        match self {
            Recompute::All => Keep::Input,
            Recompute::Blocks if is_block => Keep::Input,
            _ => Keep::Everything,
        }
    }
}

impl FromStr for Recompute {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "none" => Ok(Recompute::None),
            "blocks" => Ok(Recompute::Blocks),
            "all" => Ok(Recompute::All),
            _ => Err(Error::invalid("recompute", Self::NAMES.join(", "), format!("`{s}`"))),
        }
    }
}

impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

/// What of a layer is there when its backward begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    Everything,
    Input,
    /// It has no backward.
    Nothing,
}

/// A layer between forward and backward.
pub(super) enum Kept<S> {
    Everything(S),
    Input(Tensor),
    Nothing,
}

/// One forward and backward of a micro-batch.
pub(super) struct Pass<'a> {
    pub stream: &'a Stream,
    pub params: &'a Parameters,
    pub grads: &'a mut Gradients,
    /// What lives until backward has read it.
    kept: &'a mut Room,
    /// What a layer forgets when it is done.
    pub scratch: &'a mut Room,
    /// A matrix that is turned for one product, and a part of it on the way.
    turned: &'a mut Room,
    keeps: bool,
}

impl<'a> Pass<'a> {
    pub fn new(
        stream: &'a Stream,
        params: &'a Parameters,
        grads: &'a mut Gradients,
        [kept, scratch, turned]: &'a mut [Room; 3],
    ) -> Result<Self> {
        for room in [&mut *kept, &mut *scratch, &mut *turned] {
            room.reset(stream)?;
        }
        Ok(Pass { stream, params, grads, kept, scratch, turned, keeps: true })
    }

    /// Storage type of weights and activations.
    pub fn dtype(&self) -> DType {
        self.params.dtype()
    }

    pub fn view(&self, id: Id) -> Result<View<'a>> {
        self.params.view(id)
    }

    /// The matrix of a linear layer.
    pub fn weight(&self, id: Id) -> Result<Weight<'a>> {
        self.params.weight(id)
    }

    /// A tensor that backward will read, if there is one.
    pub fn keep(&mut self, rows: usize, cols: usize) -> Result<Tensor> {
        let dtype = self.dtype();
        let room = if self.keeps { &mut *self.kept } else { &mut *self.scratch };
        room.take(self.stream, dtype, &[rows, cols])
    }

    /// As [`Pass::keep`] if `is_read` by backward, else as [`Pass::temp`].
    pub fn keep_if(&mut self, is_read: bool, rows: usize, cols: usize) -> Result<Tensor> {
        if is_read { self.keep(rows, cols) } else { self.temp(rows, cols) }
    }

    /// A copy of `x` that backward will read.
    pub fn keep_copy(&mut self, x: View<'_>) -> Result<Tensor> {
        let mut copy = self.keep(x.rows(), x.cols())?;
        copy.view_mut().copy_from(x)?;
        Ok(copy)
    }

    /// A tensor that is of use within a layer only.
    pub fn temp(&mut self, rows: usize, cols: usize) -> Result<Tensor> {
        let dtype = self.dtype();
        self.temp_of(dtype, rows, cols)
    }

    /// As [`Pass::temp`], of a type of its own.
    pub fn temp_of(&mut self, dtype: DType, rows: usize, cols: usize) -> Result<Tensor> {
        self.scratch.take(self.stream, dtype, &[rows, cols])
    }

    /// Room for index data that is of use within a layer only.
    pub fn scratch_arena(&mut self, bytes: usize) -> Result<&mut Arena> {
        self.scratch.arena(self.stream, bytes)
    }

    /// Room for index data that lives as long as the pass.
    pub fn kept_arena(&mut self, bytes: usize) -> Result<&mut Arena> {
        self.kept.arena(self.stream, bytes)
    }

    /// As [`Pass::lasting`], if it is wanted.
    pub fn lasting_if(
        &mut self,
        is_wanted: bool,
        rows: usize,
        cols: usize,
    ) -> Result<Option<Tensor>> {
        let dtype = self.dtype();
        is_wanted.then(|| self.lasting(dtype, &[rows, cols])).transpose()
    }

    /// Memory for matrices that are turned for the next products; forgets those of the last.
    pub fn turned(&mut self) -> Result<&mut Room> {
        self.turned.reset(self.stream)?;
        Ok(self.turned)
    }

    /// A tensor that lives as long as the pass, of a type of its own.
    pub fn lasting(&mut self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        self.kept.take(self.stream, dtype, shape)
    }

    /// All gradients of what is called `part..` are complete, and of all that backward comes to
    /// before it: they can go to other ranks.
    pub fn done(&mut self, part: &str) -> Result<()> {
        self.grads.done(self.stream, self.params, part)
    }

    /// Forgets what was temporary.
    pub fn release(&mut self) -> Result<()> {
        self.scratch.reset(self.stream)
    }

    /// Runs a layer's `forward` over `x`, which it changes, and keeps what `keep` says.
    pub fn forward<S>(
        &mut self,
        keep: Keep,
        x: &mut Tensor,
        forward: impl FnOnce(&mut Self, &mut Tensor) -> Result<S>,
    ) -> Result<Kept<S>> {
        let input = if keep == Keep::Input { Some(self.keep_copy(x.view())?) } else { None };
        self.keeps = keep == Keep::Everything;
        let saved = forward(self, x);
        self.keeps = true;
        let kept = match (keep, input) {
            (Keep::Everything, _) => Kept::Everything(saved?),
            (_, Some(input)) => saved.map(|_| Kept::Input(input))?,
            _ => saved.map(|_| Kept::Nothing)?,
        };
        self.release()?;
        Ok(kept)
    }

    /// What `forward` saved, computed again if it was not kept.
    pub fn saved<S>(
        &mut self,
        kept: Kept<S>,
        forward: impl FnOnce(&mut Self, &mut Tensor) -> Result<S>,
    ) -> Result<S> {
        let mut input = match kept {
            Kept::Everything(saved) => return Ok(saved),
            Kept::Input(input) => input,
            Kept::Nothing => {
                let expected = "a layer that was kept";
                return Err(Error::invalid("backward", expected, "one that was not"));
            }
        };
        self.keeps = false;
        let saved = forward(self, &mut input);
        self.keeps = true;
        saved
    }
}

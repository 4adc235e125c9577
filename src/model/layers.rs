//! The two pieces every part is made of: linear layers and norms, as weights with a launch.

use super::probe::Probe;
use crate::device::Stream;
use crate::ops::{self, Epilogue, Input, Quantized, Weight};
use crate::tensor::{Tensor, View, ViewMut};
use crate::weights::{Matrix, Weights};
use crate::{Error, Result};

/// A matrix of the folder as launches read it.
pub(super) fn stored(w: &Matrix) -> Weight<'_> {
    match w {
        Matrix::Dense(w) => Weight::Dense(w.view()),
        Matrix::Quantized { codes, scales } => {
            Weight::Quantized(Quantized { codes: codes.view(), scales: scales.view() })
        }
    }
}

/// y = f(x W^T + b), W (outputs, inputs), of elements or of few bits.
pub struct Linear {
    w: Matrix,
    b: Option<Tensor>,
}

impl Linear {
    pub fn load(
        weights: &Weights,
        at: &str,
        outputs: usize,
        inputs: usize,
        bias: bool,
    ) -> Result<Self> {
        let w = weights.matrix(at, outputs, inputs)?;
        let b = if bias { Some(weights.get(&format!("{at}.bias"), &[outputs])?) } else { None };
        Ok(Linear { w, b })
    }

    /// The same layer of `inputs`, on a card of elements in rows that 16-byte copies reach: of more
    /// inputs, whose weights are zeros. How many it then has.
    pub fn reachable(self, stream: &Stream, inputs: usize) -> Result<(Self, usize)> {
        let Matrix::Dense(w) = &self.w else { return Ok((self, inputs)) };
        let wide = inputs.next_multiple_of(16 / w.dtype().size());
        if stream.is_host() || wide == inputs {
            return Ok((self, inputs));
        }
        let rows = w.shape().rows();
        let mut padded = Tensor::zeros(stream, w.dtype(), &[rows, wide])?;
        padded.view_mut().block(0..rows, 0..inputs)?.copy_from(w.view())?;
        Ok((Linear { w: Matrix::Dense(padded), b: self.b }, wide))
    }

    /// `y` (rows, outputs) from `x` (rows, inputs), or [a norm](Norm::of) of that; the epilogue's
    /// bias is this layer's own.
    pub fn run<'a>(
        &self,
        stream: &Stream,
        y: ViewMut<'_>,
        x: impl Into<Input<'a>>,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        let bias = self.b.as_ref().map(Tensor::view);
        let epilogue = Epilogue { bias, ..epilogue };
        ops::linear(stream, y, x, stored(&self.w), epilogue)
    }

    /// `y` (rows, outputs/2) = silu(gates) * values, the two halves of this layer's product with
    /// `x` (rows, inputs) or a norm of that; `room` (rows, outputs) may be written.
    pub fn run_swiglu<'a>(
        &self,
        stream: &Stream,
        y: ViewMut<'_>,
        room: ViewMut<'_>,
        x: impl Into<Input<'a>>,
    ) -> Result<()> {
        ops::linear_swiglu(stream, y, room, x, stored(&self.w))
    }

    /// Shows a watcher x W^T + b alone, which `run` adds to something without ever storing it.
    pub fn show(
        &self,
        stream: &Stream,
        probe: &mut Probe<'_>,
        name: impl FnOnce() -> String,
        x: View<'_>,
    ) -> Result<()> {
        if probe.is_watched() {
            let mut y = Tensor::zeros(stream, x.dtype(), &[x.rows(), self.w.rows()])?;
            self.run(stream, y.view_mut(), x, Epilogue::default())?;
            probe.see(name, y.view());
        }
        Ok(())
    }

    /// Bytes that one application reads of this layer.
    pub fn bytes(&self) -> usize {
        self.w.bytes() + self.b.as_ref().map_or(0, Tensor::bytes)
    }
}

/// LayerNorm, with or without bias, or RMSNorm.
pub enum Norm {
    Layer { w: Tensor, b: Option<Tensor>, eps: f32 },
    Rms { w: Tensor, eps: f32 },
}

impl Norm {
    pub fn layer(weights: &Weights, at: &str, width: usize, bias: bool, eps: f32) -> Result<Self> {
        let w = weights.get(&format!("{at}.weight"), &[width])?;
        let b = if bias { Some(weights.get(&format!("{at}.bias"), &[width])?) } else { None };
        Ok(Norm::Layer { w, b, eps })
    }

    pub fn rms(weights: &Weights, at: &str, width: usize, eps: f32) -> Result<Self> {
        Ok(Norm::Rms { w: weights.get(&format!("{at}.weight"), &[width])?, eps })
    }

    fn op(&self) -> ops::Norm<'_> {
        match self {
            Norm::Layer { w, b, eps } => {
                ops::Norm::Layer { w: w.view(), b: b.as_ref().map(Tensor::view), eps: *eps }
            }
            Norm::Rms { w, eps } => ops::Norm::Rms { w: w.view(), eps: *eps },
        }
    }

    /// `y` = norm of `x`, row by row.
    pub fn run(&self, stream: &Stream, y: ViewMut<'_>, x: View<'_>) -> Result<()> {
        self.op().run(stream, y, x)
    }

    /// The norm of `x` for a linear layer, which may make it itself; `room`, of the same shape, may
    /// be written.
    pub fn of<'a>(&'a self, x: View<'a>, room: ViewMut<'a>) -> Input<'a> {
        Input::normed(x, self.op(), room)
    }

    /// `x` = norm of `x`; LayerNorm only, which is all that the models need.
    pub fn run_in_place(&self, stream: &Stream, x: ViewMut<'_>) -> Result<()> {
        match self {
            Norm::Layer { w, b, eps } => {
                ops::layernorm_in_place(stream, x, w.view(), b.as_ref().map(Tensor::view), *eps)
            }
            Norm::Rms { .. } => Err(Error::invalid("norm in place", "LayerNorm", "RMSNorm")),
        }
    }

    /// Scale and shift of a LayerNorm, on the host.
    pub fn affine(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let Norm::Layer { w, b, .. } = self else {
            return Err(Error::invalid("affine of a norm", "LayerNorm", "RMSNorm"));
        };
        let scale = w.view().to_f32()?;
        let shift = b.as_ref().map_or(Ok(vec![0.0; scale.len()]), |b| b.view().to_f32())?;
        Ok((scale, shift))
    }

    /// Bytes that one application reads of this layer.
    pub fn bytes(&self) -> usize {
        match self {
            Norm::Layer { w, b, .. } => w.bytes() + b.as_ref().map_or(0, Tensor::bytes),
            Norm::Rms { w, .. } => w.bytes(),
        }
    }
}

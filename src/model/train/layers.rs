//! Linear layers and norms by their parameters, forward and backward.

use super::super::config::{Config, Family};
use super::parameters::{Id, Parameters};
use super::pass::Pass;
use crate::ops::{self, Epilogue, NormParts, Out};
use crate::tensor::{Tensor, View, ViewMut};
use crate::{DType, Result};

/// Parts that the rows of a norm's weight gradient are summed by: as many can work at once, and the
/// order of the sum is the same whoever does.
const PARTS: usize = 64;

/// What rows of transposed matrices are a multiple of, zeros behind them: 16 bytes at least.
const PACK: usize = 8;

/// y = f(x W^T + b), W (outputs, inputs).
pub(super) struct Linear {
    w: Id,
    b: Option<Id>,
}

impl Linear {
    pub fn new(params: &Parameters, at: &str, bias: bool) -> Result<Self> {
        let b = if bias { Some(params.id(&format!("{at}.bias"))?) } else { None };
        Ok(Linear { w: params.id(&format!("{at}.weight"))?, b })
    }

    /// `y` (rows, outputs) from `x` (rows, inputs); the epilogue's bias is this layer's own.
    pub fn run(
        &self,
        pass: &Pass<'_>,
        y: ViewMut<'_>,
        x: View<'_>,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        let bias = self.b.map(|b| pass.view(b)).transpose()?;
        ops::linear(pass.stream, y, x, pass.weight(self.w)?, Epilogue { bias, ..epilogue })
    }

    /// As [`Linear::run`], without anything more.
    pub fn apply(&self, pass: &Pass<'_>, y: &mut Tensor, x: &Tensor) -> Result<()> {
        self.run(pass, y.view_mut(), x.view(), Epilogue::default())
    }

    /// y += x W^T + b.
    pub fn add(&self, pass: &Pass<'_>, y: &mut Tensor, x: &Tensor) -> Result<()> {
        let add = Epilogue { out: Out::Accumulate, ..Epilogue::default() };
        self.run(pass, y.view_mut(), x.view(), add)
    }

    /// True if it gets gradients.
    pub fn is_trained(&self, pass: &Pass<'_>) -> bool {
        pass.params.trained_as(self.w).is_some()
    }

    /// dx (+)= dy W; dx (rows, inputs), dy (rows, outputs). Codes become numbers on the way to W's
    /// transpose, which is forgotten after the product.
    pub fn input_gradient(
        &self,
        pass: &mut Pass<'_>,
        dx: ViewMut<'_>,
        out: Out,
        dy: View<'_>,
    ) -> Result<()> {
        let (stream, dtype, w) = (pass.stream, pass.dtype(), pass.weight(self.w)?);
        let room = pass.turned()?;
        let mut turned = room.take(stream, dtype, &[w.cols(), w.rows()])?;
        let mut part = room.take(stream, dtype, &w.part())?;
        ops::turn(stream, turned.view_mut(), part.view_mut(), w)?;
        ops::gemm(stream, dx, dy, turned.view(), Epilogue { out, ..Epilogue::default() })
    }

    /// dW += tanh(gate) dy^T x and db += the sums of dy's columns; nothing if it is frozen.
    pub fn weight_gradient(
        &self,
        pass: &mut Pass<'_>,
        dy: View<'_>,
        x: View<'_>,
        gate: Option<Id>,
    ) -> Result<()> {
        let (stream, params) = (pass.stream, pass.params);
        let gate = gate.map(|g| pass.view(g)).transpose()?;
        if let Some(i) = params.trained_as(self.w) {
            let (room, rows) = (pass.turned()?, x.rows().next_multiple_of(PACK));
            let mut a = room.take(stream, dy.dtype(), &[dy.cols(), rows])?;
            let mut b = room.take(stream, x.dtype(), &[x.cols(), rows])?;
            ops::transpose(stream, a.view_mut(), dy)?;
            ops::transpose(stream, b.view_mut(), x)?;
            let (dw, out) = pass.grads.of(stream, params, i)?;
            let epilogue = Epilogue { out, gate, ..Epilogue::default() };
            ops::gemm(stream, dw, a.view(), b.view(), epilogue)?;
        }
        match self.b.and_then(|b| params.trained_as(b)) {
            Some(i) => add_column_sums(pass, i, dy),
            None => Ok(()),
        }
    }
}

/// The gradient of parameter `i`, a vector, gets the sums of the columns of `x`.
pub(super) fn add_column_sums(pass: &mut Pass<'_>, i: usize, x: View<'_>) -> Result<()> {
    let (stream, params) = (pass.stream, pass.params);
    let mut parts = pass.temp_of(DType::F32, PARTS.min(x.rows().max(1)), x.cols())?;
    ops::column_sums(stream, parts.view_mut(), Out::Overwrite, x)?;
    let (sums, out) = pass.grads.of(stream, params, i)?;
    let cols = sums.rows() * sums.cols();
    ops::column_sums(stream, sums.shaped(&[1, cols])?, out, parts.view())
}

/// LayerNorm, with or without bias, or RMSNorm.
pub(super) struct Norm {
    w: Id,
    b: Option<Id>,
    eps: f32,
    is_centred: bool,
}

impl Norm {
    /// A LayerNorm.
    pub fn layer(params: &Parameters, at: &str, bias: bool, eps: f32) -> Result<Self> {
        let b = if bias { Some(params.id(&format!("{at}.bias"))?) } else { None };
        Ok(Norm { w: params.id(&format!("{at}.weight"))?, b, eps, is_centred: true })
    }

    /// The norm of the language model's family.
    pub fn language(params: &Parameters, config: &Config, at: &str) -> Result<Self> {
        let l = &config.language;
        let norm = Norm::layer(params, at, l.family.has_bias(), l.norm_eps)?;
        Ok(Norm { is_centred: l.family != Family::Llama, ..norm })
    }

    /// `y` = norm of `x`, row by row.
    pub fn run(&self, pass: &Pass<'_>, y: ViewMut<'_>, x: View<'_>) -> Result<()> {
        let (stream, w) = (pass.stream, pass.view(self.w)?);
        if self.is_centred {
            let b = self.b.map(|b| pass.view(b)).transpose()?;
            ops::layernorm(stream, y, x, w, b, self.eps)
        } else {
            ops::rmsnorm(stream, y, x, w, self.eps)
        }
    }

    /// dx (+)= the gradient at x, given dy; gradients of weight and bias are added up.
    pub fn backward(
        &self,
        pass: &mut Pass<'_>,
        dx: ViewMut<'_>,
        out: Out,
        dy: View<'_>,
        x: View<'_>,
    ) -> Result<()> {
        let (stream, params, w) = (pass.stream, pass.params, pass.view(self.w)?);
        let (dw, db) = (params.trained_as(self.w), self.b.and_then(|b| params.trained_as(b)));
        let (count, cols) = (PARTS.min(x.rows().max(1)), x.cols());
        let mut parts = |wanted: Option<usize>| {
            wanted.map(|_| pass.temp_of(DType::F32, count, cols)).transpose()
        };
        let (mut dw_parts, mut db_parts) = (parts(dw)?, parts(db)?);
        let dw_view = dw_parts.as_mut().map(Tensor::view_mut);
        if self.is_centred {
            let views = NormParts { dw: dw_view, db: db_parts.as_mut().map(Tensor::view_mut) };
            ops::layernorm_backward(stream, dx, out, dy, x, w, self.eps, views)?;
        } else {
            ops::rmsnorm_backward(stream, dx, out, dy, x, w, self.eps, dw_view)?;
        }
        for (i, parts) in [(dw, dw_parts), (db, db_parts)] {
            let (Some(i), Some(parts)) = (i, parts) else { continue };
            let (sums, out) = pass.grads.of(stream, params, i)?;
            ops::column_sums(stream, sums.shaped(&[1, cols])?, out, parts.view())?;
        }
        Ok(())
    }
}

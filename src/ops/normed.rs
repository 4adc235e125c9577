//! What goes into a linear layer: rows as they are, or their norm, which some products make for
//! themselves.

use super::check;
use super::layernorm::layernorm;
use super::rmsnorm::rmsnorm;
use crate::Result;
use crate::contracts::GemmParams;
use crate::device::Stream;
use crate::tensor::{View, ViewMut};

/// A norm of rows of k columns.
#[derive(Clone, Copy)]
pub enum Norm<'a> {
    /// [`rmsnorm`]; w (k).
    Rms { w: View<'a>, eps: f32 },
    /// [`layernorm`]; w and b (k).
    Layer { w: View<'a>, b: Option<View<'a>>, eps: f32 },
}

impl<'a> Norm<'a> {
    /// y = the norm of x, row by row; both (rows, k).
    ///
    /// # Errors
    /// If a shape, stride or dtype differs.
    pub fn run(self, stream: &Stream, y: ViewMut<'_>, x: View<'_>) -> Result<()> {
        match self {
            Norm::Rms { w, eps } => rmsnorm(stream, y, x, w, eps),
            Norm::Layer { w, b, eps } => layernorm(stream, y, x, w, b, eps),
        }
    }

    /// Weight and bias.
    pub(super) fn vectors(self) -> (View<'a>, Option<View<'a>>) {
        match self {
            Norm::Rms { w, .. } => (w, None),
            Norm::Layer { w, b, .. } => (w, b),
        }
    }

    /// `p`, whose A (rows, k) is `a`, of the norm of `a`.
    pub(super) fn before(self, op: &str, a: View<'_>, p: GemmParams) -> Result<GemmParams> {
        let (w, b) = self.vectors();
        for (name, vector) in [("norm weight", Some(w)), ("norm bias", b)] {
            let Some(vector) = vector else { continue };
            check::vector(op, name, &vector, a.cols())?;
            check::dtype(op, name, &vector, a.dtype())?;
        }
        Ok(self.put(p))
    }

    /// `p` of the norm of its A, whose vectors nobody has checked.
    pub(super) fn put(self, p: GemmParams) -> GemmParams {
        let (norm, norm_eps) = match self {
            Norm::Rms { eps, .. } => (1, eps),
            Norm::Layer { eps, .. } => (2, eps),
        };
        let (w, b) = self.vectors();
        let norm_bias = b.map_or(std::ptr::null(), |b| b.ptr());
        GemmParams { norm, norm_eps, norm_weight: w.ptr(), norm_bias, ..p }
    }
}

/// What a linear layer reads: rows, or their norm.
pub struct Input<'a> {
    rows: View<'a>,
    norm: Option<(Norm<'a>, ViewMut<'a>)>,
}

impl<'a> Input<'a> {
    /// The norm of `rows`; where that is a launch of its own, it is in `room`, of the same shape
    /// and dtype, between.
    pub fn normed(rows: View<'a>, norm: Norm<'a>, room: ViewMut<'a>) -> Self {
        Input { rows, norm: Some((norm, room)) }
    }

    /// Rows for a product, and the norm that it is to make of them: none is left where the product
    /// `takes` none.
    pub(super) fn ready(
        &mut self,
        stream: &Stream,
        takes: impl Fn(View<'_>, Norm<'_>) -> bool,
    ) -> Result<(View<'_>, Option<Norm<'_>>)> {
        match &mut self.norm {
            None => Ok((self.rows, None)),
            Some((norm, _)) if takes(self.rows, *norm) => Ok((self.rows, Some(*norm))),
            Some((norm, room)) => {
                norm.run(stream, room.reborrow(), self.rows)?;
                Ok((room.as_view(), None))
            }
        }
    }
}

impl<'a> From<View<'a>> for Input<'a> {
    fn from(rows: View<'a>) -> Self {
        Input { rows, norm: None }
    }
}

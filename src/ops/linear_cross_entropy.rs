//! The loss of a language model's head and its gradients, a few rows of logits at a time: there is
//! never a matrix of all tokens by the vocabulary. Rows without a label are the caller's to leave
//! out; they would cost as much as others.

use super::batch::Labels;
use super::check;
use super::column_sums::column_sums;
use super::cross_entropy::cross_entropy_from;
use super::gemm::{Epilogue, Out, gemm};
use super::transpose::transpose;
use super::weight::{Weight, linear};
use crate::device::Stream;
use crate::tensor::{Arena, Tensor, View, ViewMut};
use crate::{DType, Error, Result};

/// Elements that rows of gradients of logits are a multiple of, so that products over the
/// vocabulary and over a chunk's rows are of whole 16-byte packs.
const PACK: usize = 8;

/// The head (V, D) of a language model, and its transpose for the gradient of its input.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    w: Weight<'a>,
    transposed: View<'a>,
}

impl<'a> Head<'a> {
    /// Columns of the transpose of a head of so many rows.
    pub fn padded(vocabulary: usize) -> usize {
        vocabulary.next_multiple_of(PACK)
    }

    /// `transposed` (D, [`Head::padded`]) is `w` (V, D) by [`turn`](super::turn), zeros behind it.
    ///
    /// # Errors
    /// If shape or dtype of the transpose differ.
    pub fn new(w: Weight<'a>, transposed: View<'a>) -> Result<Self> {
        let op = "linear_cross_entropy";
        check::matrix(op, "transposed head", &transposed, w.cols(), Head::padded(w.rows()))?;
        if let Weight::Dense(w) = &w {
            check::dtype(op, "transposed head", &transposed, w.dtype())?;
        }
        Ok(Head { w, transposed })
    }

    /// Storage type of what it is multiplied with.
    fn dtype(&self) -> DType {
        self.transposed.dtype()
    }
}

/// Where the gradient of the head goes, or that of some consecutive rows of it.
pub struct HeadGradient<'a> {
    /// (rows, D) f32, added to.
    pub dw: ViewMut<'a>,
    /// The head's row that dw begins with.
    pub first: usize,
}

/// loss (1) f32 += sum of the rows' cross-entropies with `labels`; dx (rows, D) = scale * its
/// gradient by x, and dw += scale * that by the head. x and dx (rows, D) are of the transposed
/// head's dtype;
/// the logits of `chunk` rows at a time are in `arena`, together with what else a chunk needs, for
/// which [`HeadRoom::footprint`] is enough. A row whose label is none adds nothing.
///
/// # Errors
/// If a shape or dtype differs, a label is not below V, or the arena is too small.
#[expect(clippy::too_many_arguments, reason = "each one is a part of the equation")]
pub fn linear_cross_entropy(
    stream: &Stream,
    arena: &mut Arena,
    mut loss: ViewMut<'_>,
    mut dx: ViewMut<'_>,
    mut dw: Option<HeadGradient<'_>>,
    x: View<'_>,
    labels: &[i32],
    head: &Head<'_>,
    scale: f32,
    chunk: usize,
) -> Result<()> {
    let op = "linear_cross_entropy";
    let (rows, width, vocabulary) = (x.rows(), x.cols(), head.w.rows());
    check::matrix(op, "dx", &dx.as_view(), rows, width)?;
    if head.w.cols() != width {
        return Err(Error::invalid(
            "linear_cross_entropy: x",
            format!("(rows, {})", head.w.cols()),
            x.shape(),
        ));
    }
    if labels.len() != rows || chunk == 0 {
        let found = format!("{} labels and {chunk} rows", labels.len());
        let expected = format!("{rows} labels and chunks of 1 row or more");
        return Err(Error::invalid(op, expected, found));
    }
    let part = dw.as_ref().map_or(0..0, |dw| dw.first..dw.first + dw.dw.rows());
    if part.end > vocabulary {
        let expected = format!("rows of a head of {vocabulary}");
        return Err(Error::invalid("linear_cross_entropy: dw", expected, format!("{part:?}")));
    }
    let sizes = HeadRoom { chunk: chunk.min(rows), width, vocabulary, gradient: part.len() };
    let labels = Labels::new(arena, labels, vocabulary)?;
    let mut room = Room::new(arena, head.dtype(), &sizes)?;
    for start in (0..rows).step_by(chunk) {
        let own = start..rows.min(start + chunk);
        let (x, count) = (x.block(own.clone(), 0..width)?, own.len());
        let logits = room.logits.view_mut().block(0..count, 0..vocabulary)?;
        linear(stream, logits, x, head.w, Epilogue::default())?;
        let logits = room.logits.view().block(0..count, 0..vocabulary)?;
        let d = room.d.view_mut().block(0..count, 0..Head::padded(vocabulary))?;
        let losses = room.losses.view_mut().block(0..count, 0..1)?;
        cross_entropy_from(stream, losses, d, logits, &labels, start, scale)?;
        let losses = room.losses.view().block(0..count, 0..1)?;
        column_sums(stream, loss.reborrow(), Out::Accumulate, losses)?;
        let d = room.d.view().block(0..count, 0..Head::padded(vocabulary))?;
        let dx = dx.reborrow().block(own, 0..width)?;
        gemm(stream, dx, d, head.transposed, Epilogue::default())?;
        if let (Some(gradient), Some(turned)) = (&mut dw, &mut room.turned) {
            let d = d.block(0..count, part.clone())?;
            turned.add(stream, gradient.dw.reborrow(), d, x)?;
        }
    }
    Ok(())
}

/// What the room that [`linear_cross_entropy`] takes in its arena depends on.
#[derive(Clone, Copy, Debug)]
pub struct HeadRoom {
    /// Rows of logits at a time.
    pub chunk: usize,
    /// D
    pub width: usize,
    /// V
    pub vocabulary: usize,
    /// Rows of the head that get a gradient.
    pub gradient: usize,
}

impl HeadRoom {
    /// Bytes of arena for `rows` rows of `dtype`.
    pub fn footprint(&self, dtype: DType, rows: usize) -> usize {
        let logits = self.chunk * Head::padded(self.vocabulary);
        let turned = match self.gradient {
            0 => 0,
            rows => [rows, self.width]
                .map(|rows| Arena::footprint(dtype, rows * self.padded()))
                .iter()
                .sum(),
        };
        Arena::footprint(DType::I32, rows)
            + Arena::footprint(DType::F32, logits)
            + Arena::footprint(dtype, logits)
            + Arena::footprint(DType::F32, self.chunk)
            + turned
    }

    /// Columns of what is transposed of a chunk.
    fn padded(&self) -> usize {
        self.chunk.next_multiple_of(PACK)
    }
}

/// What a chunk needs.
struct Room {
    /// (chunk, padded V) f32.
    logits: Tensor,
    /// Their gradients, (chunk, padded V) T.
    d: Tensor,
    /// (chunk, 1) f32.
    losses: Tensor,
    turned: Option<Turned>,
}

impl Room {
    fn new(arena: &mut Arena, dtype: DType, sizes: &HeadRoom) -> Result<Self> {
        let shape = [sizes.chunk, Head::padded(sizes.vocabulary)];
        let (logits, d) = (arena.take(DType::F32, &shape)?, arena.take(dtype, &shape)?);
        let losses = arena.take(DType::F32, &[sizes.chunk, 1])?;
        let turned = match sizes.gradient {
            0 => None,
            rows => Some(Turned {
                d: arena.take(dtype, &[rows, sizes.padded()])?,
                x: arena.take(dtype, &[sizes.width, sizes.padded()])?,
            }),
        };
        Ok(Room { logits, d, losses, turned })
    }
}

/// The operands of the head's gradient, transposed, zeros behind a chunk's rows.
struct Turned {
    d: Tensor,
    x: Tensor,
}

impl Turned {
    /// dw += d^T x.
    fn add(&mut self, stream: &Stream, dw: ViewMut<'_>, d: View<'_>, x: View<'_>) -> Result<()> {
        let rows = x.rows().next_multiple_of(PACK);
        for (turned, of) in [(&mut self.d, d), (&mut self.x, x)] {
            transpose(stream, turned.view_mut().block(0..of.cols(), 0..rows)?, of)?;
        }
        let epilogue = Epilogue { out: Out::Accumulate, ..Epilogue::default() };
        let (d, x) = (self.d.view(), self.x.view());
        gemm(stream, dw, d.block(0..d.rows(), 0..rows)?, x.block(0..x.rows(), 0..rows)?, epilogue)
    }
}

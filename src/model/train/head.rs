//! From the last layer's output to the losses of all sources, and back: only rows that are to
//! predict something are normed and multiplied with the head.

use super::decoder::Decoder;
use super::packed::Targets;
use super::pass::Pass;
use crate::ops::{self, Head, HeadGradient, HeadRoom, Out, TokenIds};
use crate::tensor::{Arena, Tensor};
use crate::{DType, Result};

/// How losses become gradients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scales<'a> {
    /// The factor of each source's sum of losses.
    pub of_source: &'a [f32],
    /// Rows of logits that exist at a time.
    pub logit_rows: usize,
    /// False if only the losses are wanted.
    pub trains: bool,
}

impl Decoder {
    /// The sums of the losses of all sources' targets, (sources) f32, and the gradient of their
    /// scaled sum at `x` (rows, D), if it is wanted.
    pub(super) fn losses(
        &self,
        pass: &mut Pass<'_>,
        x: &Tensor,
        targets: &[Targets],
        scales: &Scales<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let (rows, d, dtype) = (x.shape().rows(), x.shape().cols(), pass.dtype());
        let stream = pass.stream;
        let chosen: Vec<i32> = targets.iter().flat_map(|t| &t.rows).copied().collect();
        let count = chosen.len();
        let mut sums = pass.lasting(DType::F32, &[targets.len()])?;
        sums.view_mut().zero()?;
        let mut dx = pass.lasting(dtype, &[rows, d])?;
        let bytes = Arena::footprint(DType::I32, rows) + Arena::footprint(DType::I32, count);
        let arena = pass.scratch_arena(bytes)?;
        let ids = TokenIds::new(arena, &chosen, rows)?;
        let back = TokenIds::new(arena, &inverse(&chosen, rows), count + 1)?;
        let mut picked = pass.temp(count, d)?;
        ops::embedding(stream, picked.view_mut(), &ids, x.view())?;
        let mut normed = pass.temp(count, d)?;
        self.norm.run(pass, normed.view_mut(), picked.view())?;
        let mut dnormed = pass.temp(count, d)?;
        self.cross_entropies(pass, &mut sums, &mut dnormed, &normed, targets, scales)?;
        if !scales.trains {
            drop((ids, back, picked, normed, dnormed));
            pass.release()?;
            return Ok((sums, dx));
        }
        // One row more, for all rows that predict nothing.
        let mut dpicked = pass.temp(count + 1, d)?;
        dpicked.view_mut().block(count..count + 1, 0..d)?.zero()?;
        let to = dpicked.view_mut().block(0..count, 0..d)?;
        pass.done("language.head.")?;
        self.norm.backward(pass, to, Out::Overwrite, dnormed.view(), picked.view())?;
        pass.done("language.norm.")?;
        ops::embedding(stream, dx.view_mut(), &back, dpicked.view())?;
        drop((ids, back, picked, normed, dnormed, dpicked));
        pass.release()?;
        Ok((sums, dx))
    }

    fn cross_entropies(
        &self,
        pass: &mut Pass<'_>,
        sums: &mut Tensor,
        dnormed: &mut Tensor,
        normed: &Tensor,
        targets: &[Targets],
        scales: &Scales<'_>,
    ) -> Result<()> {
        let (stream, params, d) = (pass.stream, pass.params, normed.shape().cols());
        let (dtype, w) = (pass.dtype(), pass.weight(self.head)?);
        let mut turned = pass.temp(d, Head::padded(w.rows()))?;
        let mut part = pass.turned()?.take(stream, dtype, &w.part())?;
        ops::turn(stream, turned.view_mut(), part.view_mut(), w)?;
        let head = Head::new(w, turned.view())?;
        let trained = params.trained_as(self.head).filter(|_| scales.trains);
        if let Some(i) = trained {
            pass.grads.start(stream, params, i)?;
        }
        let mut added = if scales.trains { self.added_gradient(pass)? } else { None };
        let of_added = added.as_ref().map_or(0, |(dw, _)| dw.shape().rows());
        let gradient = if trained.is_some() { w.rows() } else { of_added };
        let size = HeadRoom { chunk: 0, width: d, vocabulary: w.rows(), gradient };
        let mut end = 0;
        for (source, target) in targets.iter().enumerate() {
            let own = end..end + target.rows.len();
            end = own.end;
            if own.is_empty() {
                continue;
            }
            let room = HeadRoom { chunk: scales.logit_rows.min(own.len()), ..size };
            let arena = pass.scratch.arena(stream, room.footprint(dtype, own.len()))?;
            let dw = match (trained, &mut added) {
                (Some(i), _) => {
                    Some(HeadGradient { dw: pass.grads.of(stream, params, i)?.0, first: 0 })
                }
                (None, Some((dw, first))) => {
                    Some(HeadGradient { dw: dw.view_mut(), first: *first })
                }
                (None, None) => None,
            };
            ops::linear_cross_entropy(
                stream,
                arena,
                sums.view_mut().shaped(&[targets.len(), 1])?.block(source..source + 1, 0..1)?,
                dnormed.view_mut().block(own.clone(), 0..d)?,
                dw,
                normed.view().block(own, 0..d)?,
                &target.labels,
                &head,
                scales.of_source[source],
                scales.logit_rows,
            )?;
        }
        match added {
            Some((dw, first)) => self.add_added(pass, &dw, first),
            None => Ok(()),
        }
    }

    /// Zeros for the gradient of a tied head's added rows, and of what is between them, if those
    /// are what is trained of it; and which row is the first.
    fn added_gradient(&self, pass: &mut Pass<'_>) -> Result<Option<(Tensor, usize)>> {
        let Some((_, &[first, .., last])) = self.added(pass) else { return Ok(None) };
        let (stream, rows) = (pass.stream, (last - first) as usize + 1);
        let mut dw = pass.temp_of(DType::F32, rows, self.shape.width)?;
        let nothing = pass.temp_of(DType::F32, 0, rows * self.shape.width)?;
        let flat = dw.view_mut().shaped(&[1, rows * self.shape.width])?;
        // The sums of no rows.
        ops::column_sums(stream, flat, Out::Overwrite, nothing.view())?;
        Ok(Some((dw, first as usize)))
    }

    /// Adds what [`Decoder::added_gradient`] has become to the rows' gradients.
    fn add_added(&self, pass: &mut Pass<'_>, dw: &Tensor, first: usize) -> Result<()> {
        let Some((i, rows)) = self.added(pass) else { return Ok(()) };
        let (stream, params, cols) = (pass.stream, pass.params, dw.shape().cols());
        let (mut to, out) = pass.grads.of(stream, params, i)?;
        for (k, &row) in rows.iter().enumerate() {
            let at = row as usize - first;
            let to = to.reborrow().block(k..k + 1, 0..cols)?;
            ops::column_sums(stream, to, out, dw.view().block(at..at + 1, 0..cols)?)?;
        }
        Ok(())
    }

    /// The added rows of the embedding that are trained, where that is the head too.
    fn added<'a>(&self, pass: &Pass<'a>) -> Option<(usize, &'a [u32])> {
        pass.params.embedding_rows().filter(|_| self.head == self.embedding)
    }
}

/// For each of `rows` rows its place in `chosen`, or the one behind all places.
fn inverse(chosen: &[i32], rows: usize) -> Vec<i32> {
    let mut places = vec![chosen.len() as i32; rows];
    for (place, &row) in chosen.iter().enumerate() {
        places[row as usize] = place as i32;
    }
    places
}

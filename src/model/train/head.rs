//! From the last layer's output to the losses of all sources, and back: only rows that are to
//! predict something are normed and multiplied with the head.

use super::decoder::Decoder;
use super::packed::Targets;
use super::pass::Pass;
use crate::ops::{self, Head, HeadGradient, Out, TokenIds};
use crate::tensor::{Arena, Tensor};
use crate::{DType, Result};

/// How losses become gradients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scales<'a> {
    /// The factor of each source's sum of losses.
    pub of_source: &'a [f32],
    /// Rows of logits that exist at a time.
    pub logit_rows: usize,
}

impl Decoder {
    /// The sums of the losses of all sources' targets, (sources) f32, and the gradient of their
    /// scaled sum at `x` (rows, D).
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
        // One row more, for all rows that predict nothing.
        let mut dpicked = pass.temp(count + 1, d)?;
        dpicked.view_mut().block(count..count + 1, 0..d)?.zero()?;
        let to = dpicked.view_mut().block(0..count, 0..d)?;
        self.norm.backward(pass, to, Out::Overwrite, dnormed.view(), picked.view())?;
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
        let w = pass.view(self.head)?;
        let mut turned = pass.temp(d, Head::padded(w.rows()))?;
        ops::transpose(stream, turned.view_mut(), w)?;
        let head = Head::new(w, turned.view())?;
        // A tied head whose added rows are trained: their gradient comes from both ends.
        let added = params.embedding_rows().filter(|_| self.head == self.embedding);
        let trained = params.trained_as(self.head).or(added.map(|(i, _)| i));
        if let Some(i) = trained {
            pass.grads.start(stream, params, i)?;
        }
        let mut row = 0;
        for (source, target) in targets.iter().enumerate() {
            let own = row..row + target.rows.len();
            row = own.end;
            if own.is_empty() {
                continue;
            }
            let part = added.map_or(0..w.rows(), |(_, rows)| {
                rows[0] as usize..rows[rows.len() - 1] as usize + 1
            });
            let bytes = ops::linear_cross_entropy_footprint();
            let arena = pass.scratch.arena(stream, bytes)?;
            let dw = match trained {
                Some(i) => Some(HeadGradient { dw: pass.grads.of(params, i)?.0, first: part.start }),
                None => None,
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
        Ok(())
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

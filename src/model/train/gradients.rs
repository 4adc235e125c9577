//! Gradients of everything that is trained, f32. One rank adds them up in place. Several do it
//! bucket by bucket: as soon as backward is done with one, its sum over ranks begins, and of that
//! each rank keeps its share. A rank never has more than its share and the buckets under way.

use super::super::config::Config;
use super::buckets::{BUCKET, Bucket, Buckets, Shard};
use super::parameters::{ALIGN, Parameter, Parameters};
use crate::device::Stream;
use crate::ops::{self, Out};
use crate::tensor::{Tensor, View, ViewMut};
use crate::{DType, Error, Result};
use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Who adds up gradients over ranks, while backward goes on. All ranks begin the same sums in the
/// same order.
pub trait Sums {
    /// Which rank this is, of how many.
    fn shard(&self) -> Shard;

    /// Elements up to which buckets are merged.
    fn bucket(&self) -> usize {
        BUCKET
    }

    /// Begins to add up the ranks' `x` (1, n) f32; `parts` are the elements that each rank gets the
    /// sum of, in their order.
    ///
    /// # Errors
    /// If a rank is gone or did not come in time.
    fn begin(&mut self, stream: &Stream, x: Tensor, parts: &[Range<usize>]) -> Result<()>;

    /// Waits for the sum that was begun first of those that have not ended: `out` (+)= this rank's
    /// part of it. Returns the memory.
    ///
    /// # Errors
    /// As [`Sums::begin`].
    fn end(&mut self, stream: &Stream, out: ViewMut<'_>, mode: Out) -> Result<Tensor>;
}

/// Gradients, laid out as the parameters are.
pub struct Gradients {
    /// Of this rank's share, (1, its elements).
    own: Tensor,
    /// No rows, as wide as all parameters.
    nothing: Tensor,
    /// Parameters that have one since the last [`Gradients::clear`], or in this pass where sums are
    /// kept apart.
    has_some: Vec<bool>,
    apart: Option<Apart>,
}

/// What becomes of the gradients of one pass, where those are not added up in place.
struct Apart {
    sums: Box<dyn Sums>,
    /// Elements of the flat tensor that each rank keeps.
    parts: Vec<Range<usize>>,
    buckets: Buckets,
    /// Where buckets are made; none while its sum is under way.
    slots: Vec<Option<Tensor>>,
    /// The first bucket whose sum has not begun in this pass.
    next: usize,
    /// Buckets whose sums have begun and not ended, and what happens to the share then.
    under_way: VecDeque<(usize, Out)>,
    /// Whether this pass is the first since [`Gradients::clear`].
    mode: Out,
    waited: Duration,
}

impl Gradients {
    /// Those of `parameters`; with `sums`, the share of that rank.
    ///
    /// # Errors
    /// If there is not that much memory.
    pub fn new(
        stream: &Stream,
        parameters: &Parameters,
        config: &Config,
        sums: Option<Box<dyn Sums>>,
    ) -> Result<Self> {
        let elements = parameters.flat().cols();
        let shard = sums.as_ref().map_or(Shard::WHOLE, |sums| sums.shard());
        let share = shard.range(elements).len();
        let apart = match sums {
            None => None,
            Some(sums) => Some(Apart::new(stream, parameters, config, sums)?),
        };
        Ok(Gradients {
            own: Tensor::zeros(stream, DType::F32, &[1, share])?,
            nothing: Tensor::zeros(stream, DType::F32, &[0, elements])?,
            has_some: vec![false; parameters.trained().len()],
            apart,
        })
    }

    /// Those of this rank's share, (1, its elements) f32; call [`Gradients::settle`] before.
    pub fn own(&self) -> View<'_> {
        self.own.view()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let slots = self.apart.iter().flat_map(|apart| apart.buckets.slots());
        self.own.bytes() + slots.map(|n| 4 * n).sum::<usize>()
    }

    /// Time that the host has waited for sums over ranks since the last call, and added them up.
    pub fn waited(&mut self) -> Duration {
        self.apart.as_mut().map_or(Duration::ZERO, |apart| std::mem::take(&mut apart.waited))
    }

    /// They count as 0 from here on; memory is written when the first are added.
    pub fn clear(&mut self) {
        self.has_some.fill(false);
        if let Some(apart) = &mut self.apart {
            (apart.next, apart.mode) = (0, Out::Overwrite);
        }
    }

    /// Makes [`Gradients::own`] what was added since [`Gradients::clear`]: waits for sums that are
    /// under way, writes zeros where nothing was added.
    ///
    /// # Errors
    /// If the device or a rank has failed.
    pub fn settle(&mut self, stream: &Stream, parameters: &Parameters) -> Result<()> {
        match &mut self.apart {
            None => (0..self.has_some.len()).try_for_each(|i| self.start(stream, parameters, i)),
            Some(apart) => {
                while !apart.under_way.is_empty() {
                    apart.end_first(stream, &mut self.own)?;
                }
                Ok(())
            }
        }
    }

    /// Writes zeros into the gradient of parameter `i`, unless something was added already.
    pub(super) fn start(
        &mut self,
        stream: &Stream,
        parameters: &Parameters,
        i: usize,
    ) -> Result<()> {
        if std::mem::replace(&mut self.has_some[i], true) {
            return Ok(());
        }
        let parameter = &parameters.trained()[i];
        let own = memory(&mut self.own, &mut self.apart, stream, parameter, i)?;
        zero(stream, &self.nothing, own)
    }

    /// Where the gradient of parameter `i` goes, and whether it is the first or one more.
    pub(super) fn of(
        &mut self,
        stream: &Stream,
        parameters: &Parameters,
        i: usize,
    ) -> Result<(ViewMut<'_>, Out)> {
        let (parameter, is_apart) = (&parameters.trained()[i], self.apart.is_some());
        let memory = memory(&mut self.own, &mut self.apart, stream, parameter, i)?;
        let (own, gap) = memory.split_columns(parameter.range.len())?;
        let own = own.shaped(&parameter.shape)?;
        if std::mem::replace(&mut self.has_some[i], true) {
            return Ok((own, Out::Accumulate));
        }
        if is_apart && gap.cols() > 0 {
            // Another bucket may have left something there.
            zero(stream, &self.nothing, gap)?;
        }
        Ok((own, Out::Overwrite))
    }

    /// Backward is done with everything whose name begins with `part`, and all that comes before it
    /// in the order of [`Buckets`].
    pub(super) fn done(
        &mut self,
        stream: &Stream,
        parameters: &Parameters,
        part: &str,
    ) -> Result<()> {
        match &self.apart {
            None => Ok(()),
            Some(apart) => {
                let end = apart.buckets.done_with(part);
                self.begin_until(stream, parameters, end)
            }
        }
    }

    /// A pass is over, and with it all gradients of a micro-batch are complete. Every rank calls it
    /// as often as the others, whatever its micro-batch was.
    ///
    /// # Errors
    /// If the device or a rank has failed.
    pub fn complete(&mut self, stream: &Stream, parameters: &Parameters) -> Result<()> {
        let Some(apart) = &self.apart else { return Ok(()) };
        self.begin_until(stream, parameters, apart.buckets.list().len())?;
        if let Some(apart) = &mut self.apart {
            (apart.next, apart.mode) = (0, Out::Accumulate);
        }
        Ok(())
    }

    /// Begins the sums of all buckets before `end` that have not begun.
    fn begin_until(&mut self, stream: &Stream, parameters: &Parameters, end: usize) -> Result<()> {
        while let Some(params) = self.apart.as_ref().and_then(|apart| apart.next_before(end)) {
            for i in params {
                self.start(stream, parameters, i)?;
                self.has_some[i] = false;
            }
            if let Some(apart) = &mut self.apart {
                apart.begin_next(stream)?;
            }
        }
        Ok(())
    }
}

/// Where the gradient of parameter `i` is made, with the gap behind it.
fn memory<'a>(
    own: &'a mut Tensor,
    apart: &'a mut Option<Apart>,
    stream: &Stream,
    parameter: &Parameter,
    i: usize,
) -> Result<ViewMut<'a>> {
    let Range { start, end } = parameter.range;
    let range = start..end.next_multiple_of(ALIGN);
    match apart {
        None => own.view_mut().block(0..1, range),
        Some(apart) => apart.memory(own, stream, i, range),
    }
}

/// `x` = the sums of no rows.
fn zero(stream: &Stream, nothing: &Tensor, x: ViewMut<'_>) -> Result<()> {
    let nothing = nothing.view().block(0..0, 0..x.cols())?;
    ops::column_sums(stream, x, Out::Overwrite, nothing)
}

impl Apart {
    fn new(
        stream: &Stream,
        parameters: &Parameters,
        config: &Config,
        sums: Box<dyn Sums>,
    ) -> Result<Self> {
        let buckets = Buckets::new(parameters.trained(), config, sums.bucket())?;
        let slot = |&n: &usize| Tensor::zeros(stream, DType::F32, &[1, n]).map(Some);
        Ok(Apart {
            parts: sums.shard().ranges(parameters.flat().cols()),
            slots: buckets.slots().iter().map(slot).collect::<Result<_>>()?,
            buckets,
            sums,
            next: 0,
            under_way: VecDeque::new(),
            mode: Out::Overwrite,
            waited: Duration::ZERO,
        })
    }

    /// The memory of `range`, which is parameter `i`'s, in its bucket; waits until that is free.
    fn memory(
        &mut self,
        own: &mut Tensor,
        stream: &Stream,
        i: usize,
        range: Range<usize>,
    ) -> Result<ViewMut<'_>> {
        let late =
            || Error::invalid("backward", "gradients before their sum has begun", "one after");
        let at = self.buckets.of(i).filter(|&at| at >= self.next).ok_or_else(late)?;
        let slot = self.buckets.list()[at].slot;
        while self.slots[slot].is_none() && !self.under_way.is_empty() {
            self.end_first(stream, own)?;
        }
        let x = self.slots[slot].as_mut().ok_or_else(late)?;
        let start = self.buckets.list()[at].range.start;
        x.view_mut().block(0..1, range.start - start..range.end - start)
    }

    /// The parameters of the next bucket, if it is before `end`.
    fn next_before(&self, end: usize) -> Option<Range<usize>> {
        (self.next < end).then(|| self.buckets.list()[self.next].params.clone())
    }

    /// Begins the sum of the next bucket, which is complete.
    fn begin_next(&mut self, stream: &Stream) -> Result<()> {
        let Bucket { range, slot, .. } = &self.buckets.list()[self.next];
        let inside = |part: &Range<usize>| within(part, range);
        let parts: Vec<_> = self.parts.iter().map(inside).collect();
        if let Some(x) = self.slots[*slot].take() {
            self.sums.begin(stream, x, &parts)?;
            self.under_way.push_back((self.next, self.mode));
        }
        self.next += 1;
        Ok(())
    }

    /// Waits for the sum that began first, and adds this rank's part of it to its share.
    fn end_first(&mut self, stream: &Stream, own: &mut Tensor) -> Result<()> {
        let Some((at, mode)) = self.under_way.pop_front() else { return Ok(()) };
        let Bucket { range, slot, .. } = &self.buckets.list()[at];
        let to = within(range, &self.parts[self.sums.shard().rank]);
        let began = Instant::now();
        let x = self.sums.end(stream, own.view_mut().block(0..1, to)?, mode)?;
        self.waited += began.elapsed();
        self.slots[*slot] = Some(x);
        Ok(())
    }
}

/// What `part` and `whole` have in common, counted from the start of `whole`.
fn within(part: &Range<usize>, whole: &Range<usize>) -> Range<usize> {
    let at = |i: usize| i.clamp(whole.start, whole.end) - whole.start;
    at(part.start)..at(part.end)
}

//! A sum over ranks that is under way.

use super::{DIFFER, Exchange, flat};
use crate::device::Stream;
use crate::ops::{self, Out, Reducing};
use crate::tensor::{Tensor, View, ViewMut};
use crate::{Error, Result};
use std::ops::Range;

/// What [`Comm::begin_sum`](super::Comm::begin_sum) began; it holds the memory of what is added.
pub struct Sum {
    way: Way,
    own: Range<usize>,
}

enum Way {
    Alone(Tensor),
    Messages(Tensor, Exchange),
    Cards(Reducing),
}

impl Sum {
    pub(super) fn alone(x: Tensor, own: Range<usize>) -> Self {
        Sum { way: Way::Alone(x), own }
    }

    pub(super) fn of_messages(x: Tensor, own: Range<usize>, exchange: Exchange) -> Self {
        Sum { way: Way::Messages(x, exchange), own }
    }

    pub(super) fn on_cards(reducing: Reducing, own: Range<usize>) -> Self {
        Sum { way: Way::Cards(reducing), own }
    }

    /// Waits until it is there: `out` f32 (+)= the sum of this rank's part. Returns the memory; its
    /// cells hold anything. On a card the queue waits, not the host.
    ///
    /// # Errors
    /// If `out` is not as long as the part; [`Error::Device`] if a rank is gone or did not come in
    /// time.
    pub fn end(self, stream: &Stream, mut out: ViewMut<'_>, mode: Out) -> Result<Tensor> {
        flat("sum over ranks: out", &out.as_view(), self.own.len())?;
        let x = match self.way {
            Way::Alone(x) => x,
            Way::Cards(reducing) => reducing.end()?,
            Way::Messages(x, exchange) => {
                let all = exchange.end()?;
                let start = (mode == Out::Accumulate).then(|| out.as_view().read::<f32>());
                out.write(&folded(start.transpose()?, &all, self.own.len())?)?;
                return Ok(x);
            }
        };
        if !self.own.is_empty() {
            add(stream, out, mode, x.view().block(0..1, self.own)?)?;
        }
        Ok(x)
    }
}

/// `out` (+)= `x`.
fn add(stream: &Stream, mut out: ViewMut<'_>, mode: Out, x: View<'_>) -> Result<()> {
    match mode {
        Out::Overwrite => out.copy_from(x),
        Out::Accumulate => ops::column_sums(stream, out, mode, x),
    }
}

/// `start` and each message, (n) f32, added up from left to right.
pub(super) fn folded(start: Option<Vec<f32>>, all: &[Vec<u8>], n: usize) -> Result<Vec<f32>> {
    let mut sum = start;
    for (rank, bytes) in all.iter().enumerate() {
        if bytes.len() != 4 * n {
            let expected = format!("{} bytes of rank {rank}", 4 * n);
            return Err(Error::invalid("sum over ranks", expected, bytes.len()).advise(DIFFER));
        }
        let values = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        match &mut sum {
            None => sum = Some(values.collect()),
            Some(sum) => sum.iter_mut().zip(values).for_each(|(s, x)| *s += x),
        }
    }
    Ok(sum.unwrap_or_default())
}

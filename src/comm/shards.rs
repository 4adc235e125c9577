//! Which elements of all parameters, one after another, each rank looks after (ZeRO-2,
//! arXiv:1910.02054).

use std::ops::Range;

/// Equal, contiguous parts of a flat array. They begin at multiples of [`Shards::ALIGN`], so that
/// no block of 8-bit moments is of two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    elements: usize,
    part: usize,
    world: usize,
}

impl Shards {
    /// The largest block of `adamw8`.
    pub const ALIGN: usize = 2048;

    /// `elements` over `world` ranks.
    pub fn new(elements: usize, world: usize) -> Self {
        let world = world.max(1);
        let part = elements.div_ceil(world).next_multiple_of(Self::ALIGN);
        Shards { elements, part, world }
    }

    /// Elements of a part; the last ones of the last parts may be padding.
    pub fn part(&self) -> usize {
        self.part
    }

    /// Elements of all parts: what an array needs that is gathered in place.
    pub fn padded(&self) -> usize {
        self.part * self.world
    }

    /// The elements that rank `rank` looks after.
    pub fn range(&self, rank: usize) -> Range<usize> {
        let at = |rank: usize| (rank * self.part).min(self.elements);
        at(rank)..at(rank + 1)
    }

    /// The parts of tensors of these sizes, one after another, that are in rank `rank`'s range:
    /// which tensor, which of its elements.
    pub fn pieces(&self, sizes: &[usize], rank: usize) -> Vec<(usize, Range<usize>)> {
        let (own, mut start, mut pieces) = (self.range(rank), 0, Vec::new());
        for (i, size) in sizes.iter().enumerate() {
            let from = own.start.clamp(start, start + size) - start;
            let to = own.end.clamp(start, start + size) - start;
            if from < to {
                pieces.push((i, from..to));
            }
            start += size;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_has_one_rank_and_blocks_are_whole() {
        for (elements, world) in [(1, 1), (2048, 2), (2049, 2), (100_000, 8), (5000, 8), (0, 4)] {
            let shards = Shards::new(elements, world);
            let sizes = [elements / 3, 0, elements - elements / 3];
            let (mut next, mut pieces) = (0, 0);
            for rank in 0..world {
                let range = shards.range(rank);
                assert_eq!(range.start, next);
                assert!(range.is_empty() || range.start.is_multiple_of(Shards::ALIGN));
                assert!(range.len() <= shards.part());
                next = range.end;
                let own: usize = shards.pieces(&sizes, rank).iter().map(|p| p.1.len()).sum();
                assert_eq!(own, range.len(), "{elements} over {world}, rank {rank}");
                pieces += own;
            }
            assert_eq!((next, pieces), (elements, elements));
            assert!(shards.padded() >= elements);
        }
    }
}

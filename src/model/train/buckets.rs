//! Which gradients are complete together, and who keeps them: layout only, nothing is allocated.

use super::super::config::Config;
use super::parameters::{ALIGN, EMBEDDING, Parameter};
use crate::{Error, Result};
use std::ops::Range;

/// Elements up to which neighbours go together by default: 32 MiB, near the 25 MB that PyTorch's
/// data parallel takes (arXiv:2006.15704), so that a sum takes much longer than it takes to begin.
pub const BUCKET: usize = 8 << 20;

/// One rank's share of what is trained: all ranks share it evenly (ZeRO stage 2, arXiv:1910.02054).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub rank: usize,
    pub world: usize,
}

impl Shard {
    /// Everything, as one rank has it.
    pub const WHOLE: Shard = Shard { rank: 0, world: 1 };

    /// This rank's elements out of so many, which are a multiple of [`ALIGN`]: a contiguous range
    /// that begins and ends at such multiples, so that no block of 8-bit moments is cut.
    pub fn range(&self, elements: usize) -> Range<usize> {
        let each = (elements / ALIGN).div_ceil(self.world) * ALIGN;
        (self.rank * each).min(elements)..((self.rank + 1) * each).min(elements)
    }

    /// The elements of every rank, in their order.
    pub fn ranges(&self, elements: usize) -> Vec<Range<usize>> {
        let range = |rank| Shard { rank, ..*self }.range(elements);
        (0..self.world).map(range).collect()
    }
}

/// Neighbours in the flat tensor whose gradients are added up over ranks as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Its elements of the flat tensor, with the gaps behind parameters.
    pub range: Range<usize>,
    /// Its parameters.
    pub params: Range<usize>,
    /// With this part of [`order`] the last of its gradients is complete.
    last: usize,
    /// Which of the buffers it is made in.
    pub slot: usize,
    /// True if something is added to it long before it is complete.
    is_early: bool,
}

/// All of them, in the order in which backward is done with them.
///
/// Two buffers take turns: while one is added up over ranks, backward writes to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    list: Vec<Bucket>,
    order: Vec<String>,
    /// Elements of each buffer: of the largest bucket that is made in it.
    slots: Vec<usize>,
}

/// Beginnings of names in the order in which backward is done with what is called so.
fn order(config: &Config) -> Vec<String> {
    let mut order = vec!["language.head.".into(), "language.norm.".into()];
    for i in (0..config.language.layers).rev() {
        order.extend([format!("language.layers.{i}."), format!("xattn.{i}.")]);
    }
    order.extend(["language.embedding.".into(), "resampler.norm.".into()]);
    order.extend((0..config.resampler.layers).rev().map(|i| format!("resampler.layers.{i}.")));
    order.push("resampler.latents".into());
    order.extend((0..config.vision.layers).rev().map(|i| format!("vision.layers.{i}.")));
    let first = ["ln_pre.", "patch_embedding.", "position_embedding", "class_embedding"];
    order.extend(first.map(|part| format!("vision.{part}")));
    order
}

impl Buckets {
    /// Those of the parameters in `trained`; neighbours that follow each other are one up to `most`
    /// elements.
    ///
    /// # Errors
    /// If backward has no place for a parameter.
    pub fn new(trained: &[Parameter], config: &Config, most: usize) -> Result<Self> {
        let order = order(config);
        let mut list: Vec<Bucket> = Vec::new();
        for (last, start) in order.iter().enumerate() {
            let first = trained.partition_point(|p| p.name < *start);
            let own = trained[first..].iter().take_while(|p| p.name.starts_with(start)).count();
            let Some(end) = trained[first..first + own].last().map(|p| p.range.end) else {
                continue;
            };
            let range = trained[first].range.start..end.next_multiple_of(ALIGN);
            // A head that is the embedding too has its gradient first, the embedding last.
            let is_early = config.language.tied_head && trained[first].name == EMBEDDING;
            let one = Bucket { range, params: first..first + own, last, slot: 0, is_early };
            if !list.last_mut().is_some_and(|before| before.merge(&one, most)) {
                list.push(one);
            }
        }
        let placed: usize = list.iter().map(|b| b.params.len()).sum();
        if placed != trained.len() {
            let expected = format!("{} parameters in backward's order", trained.len());
            return Err(Error::invalid("gradients", expected, placed));
        }
        let (mut slots, mut turn) = (vec![0; 2], 0);
        for bucket in &mut list {
            if bucket.is_early {
                slots.push(0);
            }
            bucket.slot = if bucket.is_early { slots.len() - 1 } else { turn };
            turn = if bucket.is_early { turn } else { 1 - turn };
            slots[bucket.slot] = slots[bucket.slot].max(bucket.range.len());
        }
        Ok(Buckets { list, order, slots })
    }

    pub(super) fn list(&self) -> &[Bucket] {
        &self.list
    }

    /// How many are complete with `part`, if it is one of the parts of backward.
    pub(super) fn done_with(&self, part: &str) -> usize {
        let at = self.order.iter().position(|name| name == part);
        self.list.partition_point(|b| at.is_some_and(|at| b.last <= at))
    }

    /// The bucket of parameter `i`.
    pub(super) fn of(&self, i: usize) -> Option<usize> {
        self.list.iter().position(|b| b.params.contains(&i))
    }

    /// Elements of the buffers that they are made in, f32.
    pub fn slots(&self) -> &[usize] {
        &self.slots
    }
}

impl Bucket {
    /// Takes in `next` if it is beside this one and both together have at most `most` elements.
    fn merge(&mut self, next: &Bucket, most: usize) -> bool {
        let is_above = self.range.end == next.range.start;
        let fits = self.range.len() + next.range.len() <= most;
        if self.is_early
            || next.is_early
            || !fits
            || !(is_above || next.range.end == self.range.start)
        {
            return false;
        }
        let join = |a: &Range<usize>, b: &Range<usize>| a.start.min(b.start)..a.end.max(b.end);
        self.range = join(&self.range, &next.range);
        self.params = join(&self.params, &next.params);
        self.last = next.last;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::parameters::{Parameters, Trained};
    use super::*;
    use crate::model::preset;

    #[test]
    fn shards_cover_everything_once_and_begin_where_blocks_do() {
        for blocks in [0, 1, 5, 8, 17] {
            for world in [1, 2, 3, 8] {
                let elements = blocks * ALIGN;
                let mut end = 0;
                for range in (Shard { rank: 0, world }).ranges(elements) {
                    assert!(range.is_empty() || range.start == end);
                    assert!(range.start.is_multiple_of(ALIGN) && range.end.is_multiple_of(ALIGN));
                    end = range.end;
                }
                assert_eq!(end, elements);
            }
        }
    }

    /// Whatever is trained of whatever model has its place, and two buckets that follow each other
    /// are made in two buffers.
    #[test]
    fn every_parameter_is_in_one_bucket() {
        for name in crate::model::PRESETS {
            let config = preset(name).unwrap();
            for parts in [Trained::default(), Trained::ALL] {
                let trained = Parameters::planned(&config, &parts);
                for most in [0, ALIGN * 50, BUCKET] {
                    let buckets = Buckets::new(&trained, &config, most).unwrap();
                    let mut of: Vec<usize> = Vec::new();
                    for (i, p) in trained.iter().enumerate() {
                        let bucket = &buckets.list[buckets.of(i).unwrap()];
                        assert!(bucket.range.start <= p.range.start, "{name} {}", p.name);
                        assert!(p.range.end <= bucket.range.end, "{name} {}", p.name);
                        of.push(buckets.of(i).unwrap());
                    }
                    of.sort_unstable();
                    of.dedup();
                    assert_eq!(of.len(), buckets.list.len(), "{name}: none is empty");
                    let total: usize = buckets.list.iter().map(|b| b.range.len()).sum();
                    let end = trained.last().unwrap().range.end;
                    assert_eq!(total, end.next_multiple_of(ALIGN), "{name}");
                    let late = buckets.list.iter().filter(|b| !b.is_early).map(|b| b.slot);
                    let late: Vec<_> = late.collect();
                    assert!(late.windows(2).all(|w| w[0] != w[1]), "{name}");
                }
            }
        }
    }

    #[test]
    fn a_bucket_is_complete_with_its_last_layer() {
        let config = preset("med-flamingo-9b").unwrap();
        let trained = Parameters::planned(&config, &Trained::default());
        let buckets = Buckets::new(&trained, &config, BUCKET).unwrap();
        // Blocks are larger than what is merged.
        let blocks = config.gated_layers().count();
        let last = config.gated_layers().last().unwrap();
        assert_eq!(buckets.done_with(&format!("xattn.{last}.")), 1);
        assert_eq!(buckets.done_with("language.embedding."), blocks + 1);
        assert_eq!(buckets.done_with("vision.class_embedding"), buckets.list.len());
        assert_eq!(buckets.done_with("language.layers.0"), 0, "no part");
    }
}

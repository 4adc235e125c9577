//! The one order of all records, and the part of it that is this rank's.
//!
//! An epoch is a permutation of the shards, read one after the other into a buffer of places, from
//! which the next record is drawn; the buffer runs empty before the next epoch begins. Every draw
//! depends on the seed and on the number of the draw alone, so the whole state is a place in the
//! permutation, an offset, and the places in the buffer.

use super::random::{Use, below, numbers, permutation};
use super::shards::{Record, Records, Shards};
use super::tally::Refusal;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

/// What decides the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub seed: u64,
    /// Records in the buffer; 1 keeps the order of the shards.
    pub buffer: usize,
    pub is_shuffled: bool,
    pub rank: usize,
    pub world: usize,
    /// Epochs to go through; None never ends.
    pub epochs: Option<u64>,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Item {
    /// A record, and the number of its draw.
    Record(Record, u64),
    /// Records that are lost.
    Lost(Refusal),
    /// All records of an epoch have been drawn, by all ranks together.
    EpochEnd,
}

/// A state of an [`Order`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Snapshot {
    pub epoch: u64,
    /// Shards of the permutation that were begun.
    pub begun: usize,
    /// Where the next record of the last of them begins; None if there is none.
    pub offset: Option<u64>,
    /// Draws so far, of all ranks and epochs.
    pub draws: u64,
    /// Shard and offset of every record in the buffer.
    pub buffer: Vec<(u32, u64)>,
}

pub(super) struct Order {
    shards: Arc<Shards>,
    rule: Rule,
    epoch: u64,
    permutation: Vec<u32>,
    begun: usize,
    records: Option<Records>,
    draws: u64,
    buffer: Vec<Record>,
    lost: VecDeque<Refusal>,
}

impl Order {
    pub(super) fn new(shards: Arc<Shards>, rule: Rule) -> Self {
        let permutation = permute(&shards, &rule, 0);
        Order {
            shards,
            rule,
            epoch: 0,
            permutation,
            begun: 0,
            records: None,
            draws: 0,
            buffer: Vec::new(),
            lost: VecDeque::new(),
        }
    }

    /// The order that goes on where `snapshot` was taken.
    ///
    /// # Errors
    /// A state that does not fit the shards.
    pub(super) fn resume(shards: Arc<Shards>, rule: Rule, snapshot: &Snapshot) -> Result<Self> {
        let mut order = Order::new(shards, rule);
        let changed = |what: &dyn std::fmt::Display| {
            Error::invalid("data state", "a state of these shards", what)
                .advise("the data has changed since the checkpoint was written; put it back")
        };
        let has_place = snapshot.begun <= order.permutation.len()
            && (snapshot.begun > 0 || snapshot.offset.is_none())
            && snapshot.buffer.len() <= rule.buffer.max(1);
        if !has_place {
            return Err(changed(&format!("shard {} of the order", snapshot.begun)));
        }
        order.epoch = snapshot.epoch;
        order.permutation = permute(&order.shards, &rule, snapshot.epoch);
        order.begun = snapshot.begun;
        order.draws = snapshot.draws;
        if let Some(offset) = snapshot.offset {
            let shard = order.permutation[snapshot.begun - 1];
            let records = order.shards.walk(shard, Some(offset)).map_err(|e| changed(&e.detail))?;
            order.records = Some(records);
        }
        for &(shard, offset) in &snapshot.buffer {
            let found = order.shards.walk(shard, Some(offset)).and_then(|mut r| r.next());
            match found {
                Ok(Some(record)) if record.offset == offset => order.buffer.push(record),
                Ok(_) => return Err(changed(&format!("no record of shard {shard} at {offset}"))),
                Err(e) => return Err(changed(&e.detail)),
            }
        }
        Ok(order)
    }

    /// The state, from which the same items follow; None between a record that is lost and its
    /// announcement.
    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        self.lost.is_empty().then(|| Snapshot {
            epoch: self.epoch,
            begun: self.begun,
            offset: self.records.as_ref().map(Records::position),
            draws: self.draws,
            buffer: self.buffer.iter().map(|r| (r.shard, r.offset)).collect(),
        })
    }

    /// The next item of this rank; None after the last epoch.
    pub(super) fn next(&mut self) -> Option<Item> {
        loop {
            if self.rule.epochs.is_some_and(|n| self.epoch >= n) {
                return None;
            }
            self.fill();
            if let Some(refusal) = self.lost.pop_front() {
                return Some(Item::Lost(refusal));
            }
            if self.buffer.is_empty() {
                self.epoch += 1;
                self.permutation = permute(&self.shards, &self.rule, self.epoch);
                self.begun = 0;
                return Some(Item::EpochEnd);
            }
            let draw = self.draws;
            self.draws += 1;
            let record = self.draw(draw);
            if draw % self.rule.world as u64 == self.rule.rank as u64 {
                return Some(Item::Record(record, draw));
            }
        }
    }

    fn draw(&mut self, number: u64) -> Record {
        if !self.rule.is_shuffled {
            return self.buffer.remove(0);
        }
        let mut random = numbers(self.rule.seed, Use::Buffer, number);
        let slot = below(&mut random, self.buffer.len());
        self.buffer.swap_remove(slot)
    }

    /// Reads on until the buffer is full, the epoch has no more, or something is lost.
    fn fill(&mut self) {
        let most = if self.rule.is_shuffled { self.rule.buffer.max(1) } else { 1 };
        while self.buffer.len() < most && self.lost.is_empty() {
            let Some(records) = &mut self.records else {
                let Some(&shard) = self.permutation.get(self.begun) else { return };
                self.begun += 1;
                match self.shards.walk(shard, None) {
                    Ok(records) => self.records = Some(records),
                    Err(refusal) => self.lost.push_back(refusal),
                }
                continue;
            };
            match records.next() {
                Ok(Some(record)) => self.buffer.push(record),
                Ok(None) => self.records = None,
                Err(refusal) => {
                    if records.ends_with(&refusal) {
                        self.records = None;
                    }
                    self.lost.push_back(refusal);
                }
            }
        }
    }
}

fn permute(shards: &Shards, rule: &Rule, epoch: u64) -> Vec<u32> {
    match rule.is_shuffled {
        true => permutation(rule.seed, epoch, shards.len()),
        false => (0..shards.len() as u32).collect(),
    }
}

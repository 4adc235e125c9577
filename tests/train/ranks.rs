//! Several ranks: the same bits as one, sums that go on while backward does, no more memory than a
//! share and the buckets under way, and an end when one of them dies in the middle.

use crate::runs::{batch, model, on, options};
use medflamingo::comm::Comm;
use medflamingo::device::Stream;
use medflamingo::ops::{Out, column_sums};
use medflamingo::tensor::{Tensor, ViewMut};
use medflamingo::train::{ALIGN, Batch, NO_LABEL, OverRanks, Shard, Sums, Trained, Trainer};
use medflamingo::{Error, Result};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// One of several ranks that all have the same gradients, of which one's count.
pub struct Alike {
    shard: Shard,
    bucket: usize,
    under_way: VecDeque<(Tensor, Range<usize>)>,
}

impl Alike {
    pub fn boxed(shard: Shard, bucket: usize) -> Box<dyn Sums> {
        Box::new(Alike { shard, bucket, under_way: VecDeque::new() })
    }
}

impl Sums for Alike {
    fn shard(&self) -> Shard {
        self.shard
    }

    fn bucket(&self) -> usize {
        self.bucket
    }

    fn begin(&mut self, _: &Stream, x: Tensor, parts: &[Range<usize>]) -> Result<()> {
        self.under_way.push_back((x, parts[self.shard.rank].clone()));
        Ok(())
    }

    fn end(&mut self, stream: &Stream, out: ViewMut<'_>, mode: Out) -> Result<Tensor> {
        let (x, own) = self.under_way.pop_front().unwrap();
        if !own.is_empty() {
            column_sums(stream, out, mode, x.view().block(0..1, own)?)?;
        }
        Ok(x)
    }
}

/// What happens when a sum begins, by its number in a step.
type Begin = dyn Fn(&Stream, usize) -> Result<()>;

/// Real ranks, watched; nothing is merged, so that every layer is a bucket.
struct Watched {
    ranks: OverRanks,
    begin: Box<Begin>,
    begun: usize,
    under_way: VecDeque<usize>,
    /// The most bytes that were under way.
    most: Rc<Cell<usize>>,
}

impl Watched {
    fn boxed(comm: &Rc<Comm>, begin: Box<Begin>) -> Box<Self> {
        let ranks = OverRanks::new(comm.clone());
        let under_way = VecDeque::new();
        Box::new(Watched { ranks, begin, begun: 0, under_way, most: Rc::default() })
    }
}

impl Sums for Watched {
    fn shard(&self) -> Shard {
        self.ranks.shard()
    }

    fn bucket(&self) -> usize {
        0
    }

    fn begin(&mut self, stream: &Stream, x: Tensor, parts: &[Range<usize>]) -> Result<()> {
        (self.begin)(stream, self.begun)?;
        self.begun += 1;
        self.under_way.push_back(x.bytes());
        self.most.set(self.most.get().max(self.under_way.iter().sum()));
        self.ranks.begin(stream, x, parts)
    }

    fn end(&mut self, stream: &Stream, out: ViewMut<'_>, mode: Out) -> Result<Tensor> {
        self.under_way.pop_front();
        self.ranks.end(stream, out, mode)
    }
}

/// What the body of each rank, a thread, returns.
fn each<T: Send>(world: usize, timeout: Duration, body: impl Fn(Rc<Comm>) -> T + Sync) -> Vec<T> {
    let body = &body;
    std::thread::scope(|scope| {
        let comms = Comm::threads(world, timeout).into_iter();
        let threads: Vec<_> = comms.map(|comm| scope.spawn(move || body(Rc::new(comm)))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

const PATIENCE: Duration = Duration::from_secs(60);

fn nothing() -> Box<Begin> {
    Box::new(|_, _| Ok(()))
}

fn watched(name: &str, parts: Trained, sums: Box<Watched>) -> Trainer {
    let mut how = options(parts);
    how.optimizer.bits = 8;
    on(&model(name), "f32", how, Stream::host(1), Some(sums))
}

/// Eight micro-batches: one has no image and one no label, so that the rank that has it is done
/// with some layers, or all, without having come to them.
fn micro_batches(name: &str, trainer: &Trainer) -> Vec<Batch> {
    let model = model(name);
    let mut all: Vec<Batch> = (0..8).map(|i| batch(&model, trainer, i)).collect();
    all[3].sequences.retain(|s| s.images.is_empty());
    all.iter_mut().for_each(|b| b.sequences.truncate(2));
    all[6].sequences.iter_mut().for_each(|s| s.labels.fill(NO_LABEL));
    all
}

/// The bits of all parameters after two steps.
fn trained(name: &str, parts: Trained, comm: &Rc<Comm>) -> Vec<u32> {
    let mut trainer = watched(name, parts, Watched::boxed(comm, nothing()));
    let all = micro_batches(name, &trainer);
    let shares = shares(&trainer, comm);
    for _ in 0..2 {
        for micro_batch in all.iter().skip(comm.rank()).step_by(comm.world()) {
            trainer.accumulate(micro_batch, all.len()).unwrap();
        }
        let squares: Vec<u8> =
            trainer.squares().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect();
        let squares = comm.exchange(&squares).unwrap().concat();
        let squares: Vec<f32> =
            squares.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(trainer.update(&squares, 1.0, 1.0).unwrap().skipped, None);
        trainer.exchange(&mut |stream, flat| comm.all_gather(stream, flat, &shares)).unwrap();
    }
    trainer.flat().to_f32().unwrap().iter().map(|x| x.to_bits()).collect()
}

fn shares(trainer: &Trainer, comm: &Comm) -> Vec<Range<usize>> {
    Shard { rank: 0, world: comm.world() }.ranges(trainer.flat().cols())
}

#[test]
fn one_two_four_and_eight_ranks_sum_their_buckets_to_the_same_bits() {
    for (name, parts) in [("mpt-tiny", Trained::ALL), ("llama-tiny", Trained::default())] {
        let of = |world| each(world, PATIENCE, |comm| trained(name, parts, &comm));
        let alone = of(1).remove(0);
        for world in [2, 4, 8] {
            assert!(of(world).iter().all(|bits| *bits == alone), "{name}: {world} ranks");
        }
    }
}

/// Rank 1 does not come to the first sum before rank 0 has begun the second: were that waited for,
/// backward would never come there.
#[test]
fn backward_goes_on_while_the_first_sum_is_under_way() {
    /// Launches of rank 0 before each of its sums.
    static BEGAN: Mutex<Vec<u64>> = Mutex::new(Vec::new());
    static BEGINS: Condvar = Condvar::new();
    let launches = each(2, PATIENCE, |comm| {
        let begin: Box<Begin> = match comm.rank() {
            0 => Box::new(|stream, _| {
                BEGAN.lock().unwrap().push(stream.launches());
                BEGINS.notify_all();
                Ok(())
            }),
            _ => Box::new(|_, k| {
                let all = BEGAN.lock().unwrap();
                let wait = BEGINS.wait_timeout_while(all, PATIENCE, |all| k == 0 && all.len() < 2);
                assert!(!wait.unwrap().1.timed_out(), "the first sum holds backward up");
                Ok(())
            }),
        };
        let parts = Trained::default();
        let mut trainer = watched("llama-tiny", parts, Watched::boxed(&comm, begin));
        let batch = batch(&model("llama-tiny"), &trainer, 1);
        trainer.accumulate(&batch, 2).unwrap();
        trainer.gradients().unwrap();
        trainer.stream().launches()
    });
    let began = BEGAN.lock().unwrap();
    // Each begins behind the launches of its layer and before those of the next; between the first
    // two are frozen layers.
    assert!(began.len() > 4 && began.is_sorted(), "{began:?}");
    assert!(began[0] + 20 < began[1] && began.last() <= launches.first(), "{began:?}");
}

#[test]
fn a_rank_has_its_share_and_the_buckets_under_way() {
    for (name, parts) in [("mpt-tiny", Trained::ALL), ("llama-tiny", Trained::ALL)] {
        let held = each(4, PATIENCE, |comm| {
            let sums = Watched::boxed(&comm, nothing());
            let most = sums.most.clone();
            let mut trainer = watched(name, parts, sums);
            for batch in micro_batches(name, &trainer).iter().take(2) {
                trainer.accumulate(batch, 8).unwrap();
            }
            trainer.squares().unwrap();
            let all = trainer.flat().cols() * 4;
            // Of layers, and of a head that is the embedding too.
            let largest = |of: &dyn Fn(&str) -> String| {
                let mut sizes = BTreeMap::new();
                for p in trainer.parameters() {
                    *sizes.entry(of(&p.name)).or_insert(0) += p.range.len().next_multiple_of(ALIGN);
                }
                sizes.into_values().max().unwrap() * 4
            };
            let layer = |name: &str| {
                let parts: Vec<&str> = name.split('.').collect();
                let number = parts.iter().position(|part| part.parse::<u32>().is_ok());
                parts[..number.map_or(parts.len(), |i| i + 1)].join(".")
            };
            let buckets = 2 * largest(&layer) + largest(&|name: &str| name.to_string());
            (trainer.own().len() * 4, buckets, trainer.memory().gradients, most.get(), all)
        });
        for (share, buckets, gradients, most, all) in held {
            let at = format!("{name}: {share} + {buckets} of {all}, has {gradients}, {most} sent");
            assert!(gradients <= share + buckets && most <= gradients - share, "{at}");
            assert!(gradients < all, "{at}");
        }
    }
}

#[test]
fn a_rank_that_dies_or_hangs_within_backward_ends_the_others_in_time() {
    let timeout = Duration::from_secs(5);
    for is_stuck in [false, true] {
        let ended = each(3, timeout, |comm| {
            let rank = comm.rank();
            let begin: Box<Begin> = Box::new(move |_, k| match (rank, k) {
                (1, 3) if is_stuck => {
                    std::thread::sleep(timeout * 2);
                    Err(Error::device("test", "too late"))
                }
                (1, 3) => Err(Error::device("test", "dead")),
                _ => Ok(()),
            });
            let mut trainer = watched("llama-tiny", Trained::ALL, Watched::boxed(&comm, begin));
            let batch = batch(&model("llama-tiny"), &trainer, 1);
            let began = Instant::now();
            let e = trainer.accumulate(&batch, 3).and_then(|()| trainer.squares()).unwrap_err();
            (e.to_string(), began.elapsed())
        });
        for (e, took) in [&ended[0], &ended[2]] {
            let expected =
                if is_stuck { "rank 1 did not come within 5 s" } else { "rank 1 has ended" };
            assert!(e.contains(expected) && *took < timeout * 4, "{e}, {took:?}");
        }
    }
}

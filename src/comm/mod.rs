//! Ranks that train together: sums and copies between them, always in the same order.
//!
//! Sums over ranks are a fold in rank order that starts from what is there already. A rank that
//! accumulates micro-batches 0, 1, 2, .. and several ranks that take them in turn (rank r of R has
//! r, R + r, 2R + r, ..) therefore add the same numbers in the same order: 1, 2, 4 and 8 ranks give
//! the same bits. NCCL chooses its own order, the same in every step on the same machines.
//!
//! A sum goes on while its ranks compute: [`Comm::begin_sum`] takes what is to be added, and
//! [`Sum::end`] waits. Messages are exchanged in the order in which they were given, by a thread.
//!
//! A rank that is gone or does not come within the timeout ends the work of all, with an error that
//! names it. One floor above `ops`: it adds with them.

mod lane;
mod launch;
mod star;
mod sum;
mod threads;

pub use launch::Launch;
pub use sum::Sum;

use crate::device::Stream;
use crate::ops::Collective;
use crate::tensor::{Tensor, View, ViewMut};
use crate::{DType, Error, Result};
use lane::{Lane, Parts, Pending};
use star::Star;
use std::ops::Range;
use std::time::Duration;
use sum::folded;
use threads::Member;

/// How long a rank waits for the others, unless it is told otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The ranks, as one of them sees them.
pub enum Comm {
    /// There is one.
    Single,
    /// Threads or processes that pass bytes through the host.
    Ranks(Ranks),
    /// Processes with a card each; bytes of the host go through [`Ranks`], tensors over NCCL.
    Nccl(Ranks, Collective),
}

/// Ranks that exchange bytes.
pub struct Ranks {
    rank: usize,
    world: usize,
    lane: Lane,
}

/// An exchange that is under way.
struct Exchange {
    rank: usize,
    world: usize,
    pending: Pending,
}

impl Ranks {
    /// Gives `bytes` to all ranks, and returns what each of them gave, in their order; all have
    /// come here when it returns.
    ///
    /// # Errors
    /// [`Error::Device`] if a rank is gone or does not come in time; all later calls fail too.
    pub fn exchange(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.begin(vec![bytes.to_vec()]).end()
    }

    /// Gives `parts`, one for all or one for each, and does not wait for what the others give.
    fn begin(&self, parts: Parts) -> Exchange {
        Exchange { rank: self.rank, world: self.world, pending: self.lane.begin(parts) }
    }

    fn error(&self, message: String) -> Error {
        failed(self.rank, self.world, message)
    }
}

impl Exchange {
    /// What every rank gave this one.
    fn end(self) -> Result<Vec<Vec<u8>>> {
        self.pending.end().map_err(|message| failed(self.rank, self.world, message))
    }
}

fn failed(rank: usize, world: usize, message: String) -> Error {
    Error::device(format!("rank {rank} of {world}"), message)
}

impl Comm {
    /// As many ranks as `world` for threads of this process, in their order.
    pub fn threads(world: usize, timeout: Duration) -> Vec<Self> {
        let members = Member::of(world, timeout).into_iter().enumerate();
        let comm = |(rank, member)| Ranks { rank, world, lane: Lane::new(member) };
        members.map(|m| Comm::Ranks(comm(m))).collect()
    }

    /// Joins the processes that a launcher started.
    ///
    /// # Errors
    /// [`Error::Device`] if they do not find each other within `timeout`.
    pub fn join(launch: &Launch, timeout: Duration) -> Result<Self> {
        if launch.world == 1 {
            return Ok(Comm::Single);
        }
        let (rank, world) = (launch.rank, launch.world);
        let star = Star::join(launch, timeout);
        let star = star.map_err(|message| failed(rank, world, message))?;
        Ok(Comm::Ranks(Ranks { rank, world, lane: Lane::new(star) }))
    }

    /// Passes tensors over NCCL from here on, where ranks have cards. Nothing changes on the host.
    ///
    /// # Errors
    /// [`Error::Device`] if NCCL is not there or does not start.
    pub fn on(self, stream: &Stream) -> Result<Self> {
        let Comm::Ranks(ranks) = self else { return Ok(self) };
        let is_card = stream.free_memory()?.is_some();
        let kinds = ranks.exchange(&[u8::from(is_card)])?;
        if kinds.iter().any(|kind| kind != &kinds[0]) {
            return Err(ranks.error("some ranks run on a card and some on the host".into()));
        }
        if !is_card {
            return Ok(Comm::Ranks(ranks));
        }
        // An id that could not be made is an empty one: the others must not wait for it.
        let made = if ranks.rank == 0 { Some(Collective::id()) } else { None };
        let own = made.as_ref().map_or(&[][..], |id| id.as_ref().map_or(&[][..], |id| &id[..]));
        let ids = ranks.exchange(own)?;
        if let Some(Err(e)) = made {
            return Err(e);
        }
        let id = ids[0].as_slice().try_into();
        let id = id.map_err(|_| ranks.error("rank 0 could not start NCCL".into()))?;
        let collective = Collective::new(stream, id, ranks.rank, ranks.world)?;
        Ok(Comm::Nccl(ranks, collective))
    }

    /// This one, counted from 0.
    pub fn rank(&self) -> usize {
        self.ranks().map_or(0, |r| r.rank)
    }

    /// How many there are.
    pub fn world(&self) -> usize {
        self.ranks().map_or(1, |r| r.world)
    }

    fn ranks(&self) -> Option<&Ranks> {
        match self {
            Comm::Single => None,
            Comm::Ranks(ranks) | Comm::Nccl(ranks, _) => Some(ranks),
        }
    }

    /// As [`Ranks::exchange`].
    ///
    /// # Errors
    /// As there.
    pub fn exchange(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        match self.ranks() {
            None => Ok(vec![bytes.to_vec()]),
            Some(ranks) => ranks.exchange(bytes),
        }
    }

    /// `value` of every rank, in their order; where one has failed, all have its error inside.
    ///
    /// # Errors
    /// As [`Ranks::exchange`].
    pub fn agree(&self, value: Result<Vec<u8>>) -> Result<Result<Vec<Vec<u8>>>> {
        let message = match &value {
            Ok(bytes) => [&[0], bytes.as_slice()].concat(),
            Err(e) => [&[1], e.to_string().as_bytes()].concat(),
        };
        let all = self.exchange(&message)?;
        if let Err(own) = value {
            return Ok(Err(own));
        }
        if let Some((rank, bytes)) = all.iter().enumerate().find(|(_, b)| b.first() != Some(&0)) {
            let why = String::from_utf8_lossy(bytes.get(1..).unwrap_or_default()).into_owned();
            return Ok(Err(Error::device(format!("rank {rank} of {}", self.world()), why)));
        }
        Ok(Ok(all.iter().map(|bytes| bytes[1..].to_vec()).collect()))
    }

    /// Begins to add up the ranks' `x` (1, n) f32; `parts` are the elements that each rank gets the
    /// sum of, in their order.
    ///
    /// # Errors
    /// If a shape or dtype differs; as [`Ranks::exchange`].
    pub fn begin_sum(&self, x: Tensor, parts: &[Range<usize>]) -> Result<Sum> {
        let (view, n) = (x.view(), x.shape().cols());
        let own = self.part("sum over ranks", n, parts)?;
        flat("sum over ranks: x", &view, n)?;
        Ok(match self {
            Comm::Single => Sum::alone(x, own),
            Comm::Nccl(_, nccl) => Sum::on_cards(nccl.begin_sum(x, parts)?, own),
            Comm::Ranks(ranks) => {
                let bytes = |part: &Range<usize>| view.block(0..1, part.clone())?.to_bytes();
                let exchange = ranks.begin(parts.iter().map(bytes).collect::<Result<_>>()?);
                Sum::of_messages(x, own, exchange)
            }
        })
    }

    /// `x` (n) f32 = its sum over ranks.
    ///
    /// # Errors
    /// If it is not flat or not f32; as [`Ranks::exchange`].
    pub fn all_reduce(&self, stream: &Stream, mut x: ViewMut<'_>) -> Result<()> {
        flat("all_reduce: x", &x.as_view(), x.cols())?;
        match self {
            Comm::Single => Ok(()),
            Comm::Nccl(_, nccl) => nccl.all_reduce(stream, x),
            Comm::Ranks(ranks) => {
                let all = ranks.exchange(&x.as_view().to_bytes()?)?;
                x.write(&folded(None, &all, x.cols())?)
            }
        }
    }

    /// The elements of `y` (n) that are in `parts`, one range for each rank, become those of their
    /// ranks.
    ///
    /// # Errors
    /// If there are not as many parts, or one is outside; as [`Ranks::exchange`].
    pub fn all_gather(
        &self,
        stream: &Stream,
        mut y: ViewMut<'_>,
        parts: &[Range<usize>],
    ) -> Result<()> {
        let own = self.part("all_gather", y.cols(), parts)?;
        match self {
            Comm::Single => Ok(()),
            Comm::Nccl(_, nccl) => nccl.all_gather(stream, y, parts),
            Comm::Ranks(ranks) => {
                let mut bytes = y.as_view().to_bytes()?;
                let size = y.dtype().size();
                let at = |part: &Range<usize>| part.start * size..part.end * size;
                let all = ranks.exchange(&bytes[at(&own)])?;
                for (part, other) in parts.iter().zip(all.iter()) {
                    if other.len() != at(part).len() {
                        return Err(Error::invalid("all_gather", at(part).len(), other.len())
                            .advise(DIFFER));
                    }
                    bytes[at(part)].copy_from_slice(other);
                }
                y.write_bytes(&bytes)
            }
        }
    }

    /// `x` becomes that of rank `root`.
    ///
    /// # Errors
    /// If there is no such rank; as [`Ranks::exchange`].
    pub fn broadcast(&self, stream: &Stream, mut x: ViewMut<'_>, root: usize) -> Result<()> {
        if root >= self.world() {
            let expected = format!("a rank below {}", self.world());
            return Err(Error::invalid("broadcast: root", expected, root));
        }
        match self {
            Comm::Single => Ok(()),
            Comm::Nccl(_, nccl) => nccl.broadcast(stream, x, root),
            Comm::Ranks(ranks) => {
                let is_root = ranks.rank == root;
                let own = if is_root { x.as_view().to_bytes()? } else { Vec::new() };
                let all = ranks.exchange(&own)?;
                if is_root { Ok(()) } else { x.write_bytes(&all[root]) }
            }
        }
    }

    /// This rank's part of `n` elements.
    fn part(&self, who: &str, n: usize, parts: &[Range<usize>]) -> Result<Range<usize>> {
        let is_inside = |part: &Range<usize>| part.start <= part.end && part.end <= n;
        match parts.get(self.rank()) {
            Some(own) if parts.len() == self.world() && parts.iter().all(is_inside) => {
                Ok(own.clone())
            }
            _ => {
                let expected = format!("{} ranges below {n}", self.world());
                Err(Error::invalid(format!("{who}: parts"), expected, format!("{parts:?}")))
            }
        }
    }
}

/// What to do about messages of unexpected length.
const DIFFER: &str = "the ranks differ in what they train; start them with the same config";

fn flat(who: &str, x: &View<'_>, n: usize) -> Result<()> {
    if x.rows() != 1 || x.cols() != n || x.dtype() != DType::F32 {
        let found = format!("{} {}", x.shape(), x.dtype());
        return Err(Error::invalid(who, format!("({n}) f32"), found));
    }
    Ok(())
}

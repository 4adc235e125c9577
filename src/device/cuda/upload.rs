//! Weights to the card: several threads bring pages of a mapping in and copy them to page-locked
//! memory, which the card reads while they go on.

use super::queue::Queue;
use super::{check, staging::Staging};
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads at most: one core copies a fraction of what a bus takes.
const THREADS: usize = 8;
/// Bytes of one copy; every thread has two in turn.
const PIECE: usize = 4 << 20;

/// Bytes on the host and where they go.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub from: &'a [u8],
    pub to: usize,
}

impl Queue {
    /// Copies all of `jobs`; returns when they are there.
    ///
    /// # Safety
    /// The targets are memory of this card that nobody uses.
    pub(crate) unsafe fn upload(&self, jobs: &[Job<'_>]) -> Result<()> {
        // The other streams may use what was allocated in this one.
        self.idle(&mut *self.enter()?)?;
        let mut pieces = Vec::new();
        for &Job { from, to } in jobs {
            let piece = |(i, from)| Job { from, to: to + i * PIECE };
            pieces.extend(from.chunks(PIECE).enumerate().map(piece));
        }
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let work = || {
                scope.spawn(|| {
                    let result = Copier::new(self).and_then(|mut c| c.work(&pieces, &next));
                    if result.is_err() {
                        // The others need not go on.
                        next.store(pieces.len(), Ordering::Relaxed);
                    }
                    result
                })
            };
            let threads: Vec<_> =
                (0..THREADS.min(cores).min(pieces.len())).map(|_| work()).collect();
            let stopped = |_| Err(Error::device(&self.name, "a copying thread stopped"));
            // Every thread is waited for before the first error is looked at.
            let results: Vec<Result<()>> =
                threads.into_iter().map(|t| t.join().unwrap_or_else(stopped)).collect();
            results.into_iter().collect()
        })
    }
}

/// What one thread copies with: two pieces of page-locked memory, each in a stream of its own.
struct Copier<'a> {
    device: &'a str,
    staging: Staging,
    streams: [sys::CUstream; 2],
}

impl<'a> Copier<'a> {
    fn new(queue: &'a Queue) -> Result<Self> {
        drop(queue.enter()?);
        let device = &queue.name;
        let streams = [std::ptr::null_mut(); 2];
        let mut copier = Copier { device, staging: Staging::default(), streams };
        copier.staging.allocate(device, 2 * PIECE)?;
        for stream in &mut copier.streams {
            // SAFETY: writes the handle it is given; 1 is a stream that no other waits for.
            check(device, "stream", unsafe { sys::cuStreamCreate(stream, 1) })?;
        }
        Ok(copier)
    }

    /// Copies the next piece until there is none.
    fn work(&mut self, pieces: &[Job<'_>], next: &AtomicUsize) -> Result<()> {
        for turn in (0..2).cycle() {
            let Some(job) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            self.wait(turn)?;
            let slot = self.staging.start().wrapping_add(turn * PIECE);
            // SAFETY: the slot is ours and its stream is idle; the target is the caller's promise.
            let status = unsafe {
                std::ptr::copy_nonoverlapping(job.from.as_ptr(), slot, job.from.len());
                let (to, bytes) = (job.to as u64, job.from.len());
                sys::cuMemcpyHtoDAsync_v2(to, slot.cast(), bytes, self.streams[turn])
            };
            self.check(status)?;
        }
        (0..2).try_for_each(|turn| self.wait(turn))
    }

    fn wait(&self, turn: usize) -> Result<()> {
        // SAFETY: the stream lives as long as the copier.
        self.check(unsafe { sys::cuStreamSynchronize(self.streams[turn]) })
    }

    fn check(&self, status: CUresult) -> Result<()> {
        check(self.device, "copy of weights", status)
    }
}

impl Drop for Copier<'_> {
    fn drop(&mut self) {
        for stream in self.streams.into_iter().filter(|s| !s.is_null()) {
            // SAFETY: ours; its copies end before the memory that they read goes.
            unsafe {
                let _ = sys::cuStreamSynchronize(stream);
                let _ = sys::cuStreamDestroy_v2(stream);
            }
        }
        self.staging.free();
    }
}

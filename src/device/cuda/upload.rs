//! Weights to the card: several threads bring pages of a mapping in and copy them to page-locked
//! memory, which the card reads while they go on.

use super::queue::Queue;
use super::{check, staging::Staging};
use crate::{Error, Result};
use cudarc::driver::sys;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads: one core copies less than a bus takes.
const THREADS: usize = 4;
/// Bytes of one copy; every thread has two in turn.
const PIECE: usize = Staging::SIZE / 2;

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
        {
            let mut state = self.enter()?;
            self.idle(&mut state)?;
        }
        let pieces: Vec<Job<'_>> = jobs
            .iter()
            .flat_map(|job| {
                let piece = |(i, from)| Job { from, to: job.to + i * PIECE };
                job.from.chunks(PIECE).enumerate().map(piece)
            })
            .collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let work = || scope.spawn(|| self.copier(&pieces, &next));
            let threads: Vec<_> = (0..THREADS.min(pieces.len())).map(|_| work()).collect();
            let stopped = |_| Err(Error::device(&self.name, "a copying thread stopped"));
            threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(stopped))
        })
    }

    fn copier(&self, pieces: &[Job<'_>], next: &AtomicUsize) -> Result<()> {
        drop(self.enter()?);
        let staging = Staging::new(&self.name)?;
        let result = self.copy_pieces(pieces, next, &staging);
        staging.free();
        result
    }

    fn copy_pieces(&self, pieces: &[Job<'_>], next: &AtomicUsize, staging: &Staging) -> Result<()> {
        let fail = |status| check(&self.name, "copy of weights", status);
        let mut streams = [std::ptr::null_mut(); 2];
        for stream in &mut streams {
            // SAFETY: writes the handle it is given.
            fail(unsafe { sys::cuStreamCreate(stream, 1) })?;
        }
        let copy = || {
            for turn in (0..2).cycle() {
                let Some(job) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                let slot = staging.start().wrapping_add(turn * PIECE);
                // SAFETY: the slot is ours and free once its stream is idle; the target is the
                // caller's promise.
                fail(unsafe {
                    match sys::cuStreamSynchronize(streams[turn]) {
                        sys::CUresult::CUDA_SUCCESS => {}
                        failed => return fail(failed),
                    }
                    std::ptr::copy_nonoverlapping(job.from.as_ptr(), slot, job.from.len());
                    let (to, bytes) = (job.to as u64, job.from.len());
                    sys::cuMemcpyHtoDAsync_v2(to, slot.cast(), bytes, streams[turn])
                })?;
            }
            Ok(())
        };
        let result = copy();
        streams.iter().fold(result, |result, &stream| {
            // SAFETY: created above; destroyed once, when it is idle.
            let status = unsafe {
                let status = sys::cuStreamSynchronize(stream);
                let _ = sys::cuStreamDestroy_v2(stream);
                status
            };
            result.and(fail(status))
        })
    }
}

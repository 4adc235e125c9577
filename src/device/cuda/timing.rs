//! How long launches take: an event before and one after each, while somebody wants to know.

use super::queue::{Queue, State};
use crate::Result;
use cudarc::driver::sys;

/// The events around each launch.
#[derive(Default)]
pub(super) struct Timing(Vec<[sys::CUevent; 2]>);

impl Timing {
    /// Gives the events back.
    pub(super) fn clear(&mut self) {
        for event in self.0.drain(..).flatten() {
            // SAFETY: made by `mark`, destroyed once; one that was never made is null.
            let _ = unsafe { sys::cuEventDestroy_v2(event) };
        }
    }
}

impl Queue {
    /// Launches are timed from here on, and run one by one.
    pub(crate) fn begin_timing(&self) -> Result<()> {
        let mut state = self.enter()?;
        self.flush(&mut state)?;
        state.timing.get_or_insert_default().clear();
        Ok(())
    }

    /// Start and length of each launch since, us from the start of the first; timing ends.
    pub(crate) fn end_timing(&self) -> Result<Vec<(f64, f64)>> {
        let mut state = self.enter()?;
        let Some(mut timing) = state.timing.take() else { return Ok(Vec::new()) };
        let times = self.idle(&mut state).and_then(|()| {
            let mut between = |from, to| {
                let mut ms = 0.0;
                // SAFETY: both events were put into the queue, which is idle now.
                let status = unsafe { sys::cuEventElapsedTime(&mut ms, from, to) };
                self.settle(&mut state, "time of a launch", status).map(|()| f64::from(ms) * 1e3)
            };
            let first = timing.0.first().map(|pair| pair[0]);
            let time = |&[begin, end]: &[_; 2]| {
                Ok((between(first.unwrap_or(begin), begin)?, between(begin, end)?))
            };
            timing.0.iter().map(time).collect()
        });
        timing.clear();
        times
    }

    /// Marks the time before (0) or after (1) the next launch, if launches are timed.
    pub(super) fn mark(&self, state: &mut State, side: usize) -> Result<()> {
        let Some(Timing(events)) = &mut state.timing else { return Ok(()) };
        if side == 0 {
            events.push([std::ptr::null_mut(); 2]);
        }
        let Some(pair) = events.last_mut() else { return Ok(()) };
        // SAFETY: writes the handle it is given; flags 0 is an event with a time.
        let status = unsafe {
            match sys::cuEventCreate(&mut pair[side], 0) {
                sys::CUresult::CUDA_SUCCESS => sys::cuEventRecord(pair[side], self.stream),
                failed => failed,
            }
        };
        self.settle(state, "time of a launch", status)
    }
}

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
        // SAFETY: a profiler that waits for it begins to look; without one nothing happens.
        let _ = unsafe { sys::cuProfilerStart() };
        Ok(())
    }

    /// Start and length of each launch since, us from the start of the first; timing ends.
    pub(crate) fn end_timing(&self) -> Result<Vec<(f64, f64)>> {
        let mut state = self.enter()?;
        let Some(mut timing) = state.timing.take() else { return Ok(Vec::new()) };
        let times = self.idle(&mut state).and_then(|()| {
            let mut between = |from, to| self.elapsed(&mut state, from, to);
            let first = timing.0.first().map(|pair| pair[0]);
            let time = |&[begin, end]: &[_; 2]| {
                Ok((between(first.unwrap_or(begin), begin)?, between(begin, end)?))
            };
            timing.0.iter().map(time).collect()
        });
        // SAFETY: as where it was started.
        let _ = unsafe { sys::cuProfilerStop() };
        timing.clear();
        times
    }

    /// How long the card works on what `body` launches, us.
    pub(crate) fn time(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let mut around = Timing(vec![[std::ptr::null_mut(); 2]]);
        let us = self.around(&mut around.0[0], body);
        around.clear();
        us
    }

    fn around(
        &self,
        [begin, end]: &mut [sys::CUevent; 2],
        body: &mut dyn FnMut() -> Result<()>,
    ) -> Result<f64> {
        self.stamp(begin)?;
        body()?;
        self.stamp(end)?;
        let mut state = self.enter()?;
        self.idle(&mut state)?;
        self.elapsed(&mut state, *begin, *end)
    }

    /// An event here, after what the queue was given.
    fn stamp(&self, event: &mut sys::CUevent) -> Result<()> {
        let mut state = self.enter()?;
        self.flush(&mut state)?;
        let status = self.put(event);
        self.settle(&mut state, "event", status)
    }

    /// us between two events of the queue, which is idle.
    fn elapsed(&self, state: &mut State, from: sys::CUevent, to: sys::CUevent) -> Result<f64> {
        let mut ms = 0.0;
        // SAFETY: both events were put into the queue.
        let status = unsafe { sys::cuEventElapsedTime(&mut ms, from, to) };
        self.settle(state, "time of a launch", status).map(|()| f64::from(ms) * 1e3)
    }

    fn put(&self, event: &mut sys::CUevent) -> sys::CUresult {
        // SAFETY: writes the handle it is given; flags 0 is an event with a time.
        unsafe {
            match sys::cuEventCreate(event, 0) {
                sys::CUresult::CUDA_SUCCESS => sys::cuEventRecord(*event, self.stream),
                failed => failed,
            }
        }
    }

    /// Marks the time before (0) or after (1) the next launch, if launches are timed.
    pub(super) fn mark(&self, state: &mut State, side: usize) -> Result<()> {
        let Some(Timing(events)) = &mut state.timing else { return Ok(()) };
        if side == 0 {
            events.push([std::ptr::null_mut(); 2]);
        }
        let Some(pair) = events.last_mut() else { return Ok(()) };
        let status = self.put(&mut pair[side]);
        self.settle(state, "event", status)
    }
}

//! Reads that are begun now and waited for later: what the queue is given meanwhile runs.

use super::check;
use super::queue::{Queue, Side, State};
use super::staging::{Cells, Staging};
use crate::Result;
use cudarc::driver::sys;
use std::sync::Arc;

/// Reads on their way at once, and the longest of them, bytes.
const PLACES: usize = 2;
const PLACE: usize = 64 << 10;

/// Where such reads arrive.
#[derive(Default)]
pub(super) struct Arrivals {
    memory: Staging,
    /// After the copy to each place.
    events: [Event; PLACES],
    taken: [bool; PLACES],
}

/// One of the driver's, null before it is made.
struct Event(sys::CUevent);

impl Default for Event {
    fn default() -> Self {
        Event(std::ptr::null_mut())
    }
}

impl Arrivals {
    pub(super) fn allocate(&mut self, device: &str) -> Result<()> {
        self.memory.allocate(device, PLACES * PLACE)?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        for Event(event) in &mut self.events {
            // SAFETY: writes the handle it is given.
            check(device, "event", unsafe { sys::cuEventCreate(event, flags) })?;
        }
        Ok(())
    }

    pub(super) fn free(&mut self) {
        self.memory.free();
        for Event(event) in &mut self.events {
            let event = std::mem::replace(event, std::ptr::null_mut());
            if !event.is_null() {
                // SAFETY: made above, destroyed once.
                let _ = unsafe { sys::cuEventDestroy_v2(event) };
            }
        }
    }

    fn place(&self, place: usize) -> *mut u8 {
        self.memory.start().wrapping_add(place * PLACE)
    }
}

/// Bytes of a card on their way.
pub(crate) struct Arrival {
    queue: Arc<Queue>,
    place: usize,
    bytes: usize,
}

impl Queue {
    /// Begins to copy `from` out, once everything before it has run; None if there is no place.
    ///
    /// # Safety
    /// The cells are this card's memory.
    pub(crate) unsafe fn begin_read(self: &Arc<Self>, from: Cells) -> Result<Option<Arrival>> {
        let mut state = self.enter()?;
        let bytes = from.rows * from.bytes;
        let free = state.arrivals.taken.iter().position(|taken| !taken);
        let Some(place) = free.filter(|_| bytes <= PLACE) else { return Ok(None) };
        self.flush(&mut state)?;
        let at = state.arrivals.place(place) as usize;
        let to = Cells { at, pitch: from.bytes, ..from };
        self.copy(&mut state, Side::Card, from.joined(), Side::Host, to.joined())?;
        // SAFETY: event and stream live as long as the queue.
        let status = unsafe { sys::cuEventRecord(state.arrivals.events[place].0, self.stream) };
        self.settle(&mut state, "event", status)?;
        state.arrivals.taken[place] = true;
        Ok(Some(Arrival { queue: self.clone(), place, bytes }))
    }

    fn arrived(&self, state: &mut State, place: usize) -> Result<()> {
        // SAFETY: the event was put into this queue.
        let status = unsafe { sys::cuEventSynchronize(state.arrivals.events[place].0) };
        self.settle(state, "a launch or copy failed", status)
    }
}

impl Arrival {
    /// Waits for the bytes, and for nothing that came after them.
    pub(crate) fn wait(self) -> Result<Vec<u8>> {
        let mut state = self.queue.enter()?;
        self.queue.arrived(&mut state, self.place)?;
        let from = state.arrivals.place(self.place);
        // SAFETY: the copy is done, and the place is this arrival's until it is dropped.
        Ok(unsafe { std::slice::from_raw_parts(from, self.bytes) }.to_vec())
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        // A copy that nobody has waited for comes before the next one to the place.
        self.queue.state().arrivals.taken[self.place] = false;
    }
}

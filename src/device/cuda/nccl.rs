//! NCCL: sums and copies between cards, on a stream beside the queue's: each begins behind what the
//! queue has, and the queue waits for its end when it is asked to. Loaded when it is asked for.
//!
//! The library waits for ever. A thread of our own looks after what is under way: when a rank is
//! gone or too late it ends the wait, and everything after that is an error.

use super::check;
use super::queue::Queue;
use crate::device::Stream;
use crate::{Error, Result};
use cudarc::driver::sys::{self as driver, CUresult};
use cudarc::nccl::sys;
use std::ffi::CStr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a collective may take, which waits for the slowest rank.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often the guard looks.
const LOOK: Duration = Duration::from_millis(100);

/// One rank's place among the cards.
pub struct Nccl {
    queue: Arc<Queue>,
    rank: i32,
    /// All collectives run here, one after another.
    stream: driver::CUstream,
    shared: Arc<Shared>,
    guard: Option<JoinHandle<()>>,
}

// SAFETY: the driver's stream may be used by any thread; it is, with the queue's lock held.
unsafe impl Send for Nccl {}
// SAFETY: as above.
unsafe impl Sync for Nccl {}

/// A collective that is under way. Dropped or ended, it lets the queue wait for it.
pub struct NcclTicket {
    queue: Arc<Queue>,
    event: driver::CUevent,
}

// SAFETY: an event may be used by any thread.
unsafe impl Send for NcclTicket {}

struct Shared {
    queue: Arc<Queue>,
    state: Mutex<State>,
}

struct State {
    comm: sys::ncclComm_t,
    /// Recorded behind the last collective.
    event: driver::CUevent,
    /// Since when something is under way.
    since: Option<Instant>,
    failed: Option<String>,
    is_over: bool,
}

// SAFETY: the handles may be used by any thread, one at a time: they are behind the mutex.
unsafe impl Send for State {}

fn words(status: sys::ncclResult_t) -> String {
    // SAFETY: returns a text that lives as long as the library.
    let text = unsafe { CStr::from_ptr(sys::ncclGetErrorString(status)) };
    text.to_string_lossy().into_owned()
}

fn nccl(device: &str, doing: &str, status: sys::ncclResult_t) -> Result<()> {
    match status {
        sys::ncclResult_t::ncclSuccess => Ok(()),
        _ => Err(Error::device(device, format!("NCCL: {doing}: {}", words(status)))),
    }
}

fn present() -> Result<()> {
    // SAFETY: only looks for the library; cudarc's other calls panic when it is missing.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    let message = "NCCL is not on this machine: no libnccl.so or libnccl.so.2 where libraries are \
                   looked for; install it, or train on one card";
    Err(Error::device("cuda", message))
}

impl Nccl {
    /// Bytes of an id.
    pub const ID: usize = 128;

    /// What all ranks of one job start from.
    ///
    /// # Errors
    /// [`Error::Device`] if the library is not there.
    pub fn id() -> Result<[u8; Self::ID]> {
        present()?;
        let mut id = sys::ncclUniqueId { internal: [0; Self::ID] };
        // SAFETY: writes the id it is given.
        nccl("cuda", "id", unsafe { sys::ncclGetUniqueId(&mut id) })?;
        Ok(id.internal.map(|c| c as u8))
    }

    /// Meets the other ranks, which all call this.
    ///
    /// # Errors
    /// [`Error::Device`] if `stream` is not a card's, or the library does not start.
    pub fn new(stream: &Stream, id: [u8; Self::ID], rank: usize, world: usize) -> Result<Self> {
        present()?;
        let queue = stream.queue().cloned();
        let queue =
            queue.ok_or_else(|| Error::device("cpu", "NCCL passes tensors of cards only"))?;
        let (mut comm, mut side) = (std::ptr::null_mut(), std::ptr::null_mut());
        let id = sys::ncclUniqueId { internal: id.map(|b| b as std::ffi::c_char) };
        let event = {
            let _state = queue.enter()?;
            // SAFETY: writes the handle it is given; the queue's context is current.
            let status = unsafe { sys::ncclCommInitRank(&mut comm, world as i32, id, rank as i32) };
            nccl(&queue.name, "start", status)?;
            // 1 is a stream that no other waits for, -1 one whose kernels come before the queue's:
            // they are small, and other ranks wait for them.
            // SAFETY: writes the handle it is given.
            let status = unsafe { driver::cuStreamCreateWithPriority(&mut side, 1, -1) };
            check(&queue.name, "stream", status)?;
            event(&queue)?
        };
        let state = State { comm, event, since: None, failed: None, is_over: false };
        let shared = Arc::new(Shared { queue: queue.clone(), state: Mutex::new(state) });
        let watched = shared.clone();
        let guard = std::thread::Builder::new().name("nccl".into()).spawn(move || watched.guard());
        let guard = guard.map_err(|e| Error::device(&queue.name, format!("thread: {e}")))?;
        Ok(Nccl { queue, rank: rank as i32, stream: side, shared, guard: Some(guard) })
    }

    /// Begins a collective behind what the queue has.
    fn begin(
        &self,
        doing: &str,
        body: impl FnOnce(sys::ncclComm_t, sys::cudaStream_t) -> sys::ncclResult_t,
    ) -> Result<NcclTicket> {
        // Before the queue's lock, which it takes when it is dropped.
        let ticket = NcclTicket::new(&self.queue)?;
        let mut queue = self.queue.enter()?;
        self.queue.flush(&mut queue)?;
        self.queue.send(&mut queue)?;
        let mut state = self.shared.state();
        if let Some(why) = &state.failed {
            return Err(Error::device(&self.queue.name, why));
        }
        // A wait is for the last record before it, so that the ticket's event serves twice.
        // SAFETY: all handles live as long as this.
        let status = unsafe { driver::cuEventRecord(ticket.event, self.queue.stream) };
        self.queue.settle(&mut queue, doing, status)?;
        // SAFETY: as above.
        let status = unsafe { driver::cuStreamWaitEvent(self.stream, ticket.event, 0) };
        self.queue.settle(&mut queue, doing, status)?;
        nccl(&self.queue.name, doing, body(state.comm, self.stream.cast()))?;
        for event in [ticket.event, state.event] {
            // SAFETY: as above.
            let status = unsafe { driver::cuEventRecord(event, self.stream) };
            self.queue.settle(&mut queue, doing, status)?;
        }
        state.since = Some(Instant::now());
        Ok(ticket)
    }

    /// Begins to add up the ranks' `x` f32: of each of `parts` its rank gets the sum, in place.
    ///
    /// # Safety
    /// This card's memory, which nobody else uses until the ticket has ended.
    pub unsafe fn begin_sum(&self, x: *mut f32, parts: &[Range<usize>]) -> Result<NcclTicket> {
        let (sum, kind) = (sys::ncclRedOp_t::ncclSum, sys::ncclDataType_t::ncclFloat32);
        // Parts differ in length, and most of a bucket is one rank's: one reduction to each rank,
        // all under way at once.
        // SAFETY: the caller's; only the root of a reduction writes.
        self.begin("sum", |comm, stream| unsafe {
            grouped(parts, |root, part| {
                let from = x.wrapping_add(part.start);
                let to = if root == self.rank { from } else { std::ptr::null_mut() };
                sys::ncclReduce(from.cast(), to.cast(), part.len(), kind, sum, root, comm, stream)
            })
        })
    }

    /// `x` (n) f32 = its sum over ranks.
    ///
    /// # Safety
    /// `x` is this card's memory, valid until the queue has run.
    pub unsafe fn all_reduce(&self, x: *mut f32, n: usize) -> Result<()> {
        let (sum, kind) = (sys::ncclRedOp_t::ncclSum, sys::ncclDataType_t::ncclFloat32);
        // SAFETY: the caller's.
        let begun = self.begin("all_reduce", |comm, stream| unsafe {
            sys::ncclAllReduce(x.cast(), x.cast(), n, kind, sum, comm, stream)
        });
        begun?.end()
    }

    /// The bytes of `y` in each of `parts` become those of their rank.
    ///
    /// # Safety
    /// As [`Nccl::all_reduce`].
    pub unsafe fn all_gather(&self, y: *mut u8, parts: &[Range<usize>]) -> Result<()> {
        let kind = sys::ncclDataType_t::ncclUint8;
        // SAFETY: the caller's; in place, as the library allows.
        let begun = self.begin("all_gather", |comm, stream| unsafe {
            grouped(parts, |root, part| {
                let at = y.wrapping_add(part.start);
                sys::ncclBroadcast(at.cast(), at.cast(), part.len(), kind, root, comm, stream)
            })
        });
        begun?.end()
    }

    /// `x` becomes that of rank `root`.
    ///
    /// # Safety
    /// As [`Nccl::all_reduce`].
    pub unsafe fn broadcast(&self, x: *mut u8, bytes: usize, root: usize) -> Result<()> {
        let kind = sys::ncclDataType_t::ncclUint8;
        // SAFETY: the caller's.
        let begun = self.begin("broadcast", |comm, stream| unsafe {
            sys::ncclBroadcast(x.cast(), x.cast(), bytes, kind, root as i32, comm, stream)
        });
        begun?.end()
    }
}

/// An event; the queue's context is current.
fn event(queue: &Queue) -> Result<driver::CUevent> {
    let mut event = std::ptr::null_mut();
    let flags = driver::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
    // SAFETY: writes the handle it is given.
    check(&queue.name, "event", unsafe { driver::cuEventCreate(&mut event, flags) })?;
    Ok(event)
}

impl NcclTicket {
    fn new(queue: &Arc<Queue>) -> Result<Self> {
        let _state = queue.enter()?;
        Ok(NcclTicket { queue: queue.clone(), event: event(queue)? })
    }

    /// What comes into the queue from here on waits for the collective.
    ///
    /// # Errors
    /// [`Error::Device`] if the card has failed.
    pub fn end(self) -> Result<()> {
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        let mut queue = self.queue.enter()?;
        self.queue.flush(&mut queue)?;
        // SAFETY: both handles live as long as this.
        let status = unsafe { driver::cuStreamWaitEvent(self.queue.stream, self.event, 0) };
        self.queue.settle(&mut queue, "wait for other ranks", status)
    }
}

impl Drop for NcclTicket {
    fn drop(&mut self) {
        // Where it has ended this waits for nothing more. Memory is given back in the queue's
        // order, so that what the collective uses stays until its end.
        let _ = self.wait();
        // SAFETY: nobody uses the handle any more; waits that have begun keep what they need.
        let _ = unsafe { driver::cuEventDestroy_v2(self.event) };
    }
}

/// What `body` does for every rank whose part is not empty, as one.
fn grouped(
    parts: &[Range<usize>],
    body: impl Fn(i32, &Range<usize>) -> sys::ncclResult_t,
) -> sys::ncclResult_t {
    const FINE: sys::ncclResult_t = sys::ncclResult_t::ncclSuccess;
    // SAFETY: takes nothing.
    let begun = unsafe { sys::ncclGroupStart() };
    if begun != FINE {
        return begun;
    }
    let each = (0..).zip(parts).filter(|(_, part)| !part.is_empty());
    let failed = each.map(|(root, part)| body(root, part)).find(|status| *status != FINE);
    // SAFETY: takes nothing; ends what was begun.
    let ended = unsafe { sys::ncclGroupEnd() };
    failed.unwrap_or(ended)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the end: looks whether what is under way still moves.
    fn guard(&self) {
        while !self.look() {
            std::thread::sleep(LOOK);
        }
    }

    /// True at the end.
    fn look(&self) -> bool {
        let mut state = self.state();
        if state.is_over {
            return true;
        }
        let Some(since) = state.since else { return false };
        // SAFETY: the event lives as long as this.
        if unsafe { driver::cuEventQuery(state.event) } == CUresult::CUDA_SUCCESS {
            state.since = None;
            return false;
        }
        let mut status = sys::ncclResult_t::ncclSuccess;
        // SAFETY: writes the status it is given.
        let asked = unsafe { sys::ncclCommGetAsyncError(state.comm, &mut status) };
        let why = match (asked, status) {
            (sys::ncclResult_t::ncclSuccess, sys::ncclResult_t::ncclSuccess) => (since.elapsed()
                > TIMEOUT)
                .then(|| format!("a rank did not come within {} s", TIMEOUT.as_secs())),
            (_, status) => Some(format!("a rank has failed: {}", words(status))),
        };
        let Some(why) = why else { return false };
        // The kernels that wait return, and with them whoever waits for the queue.
        // SAFETY: nobody uses the handle any more: from here on there is a failure.
        let _ = unsafe { sys::ncclCommAbort(state.comm) };
        state.failed = Some(format!("NCCL: {why}"));
        eprintln!("error: {}: NCCL: {why}", self.queue.name);
        true
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        if let Some(guard) = self.guard.take() {
            let _ = guard.join();
        }
        let Ok(_queue) = self.queue.enter() else { return };
        let state = self.shared.state();
        // SAFETY: nobody uses the handles any more.
        unsafe {
            let is_idle = driver::cuEventQuery(state.event) == CUresult::CUDA_SUCCESS;
            let _ = match state.failed {
                None if is_idle => sys::ncclCommDestroy(state.comm),
                // After an error others may never come to what is under way.
                None => sys::ncclCommAbort(state.comm),
                Some(_) => sys::ncclResult_t::ncclSuccess,
            };
            let _ = driver::cuEventDestroy_v2(state.event);
            let _ = driver::cuStreamDestroy_v2(self.stream);
        }
    }
}

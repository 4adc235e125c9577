//! A card in use: its context, one ordered queue of copies and launches, and the memory of both.

use super::arrival::Arrivals;
use super::cublaslt::CublasLt;
use super::graph::{Graphs, Step};
use super::images::{self, Image};
use super::launch::{Key, Launch};
use super::staging::{Cells, Staging};
use super::timing::Timing;
use super::{CudaCard, check, describe, start, words};
use crate::device::{Chip, Form, Geometry};
use crate::{DType, Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Page-locked bytes that writes wait in, and that reads arrive in.
const STAGING: usize = 8 << 20;
const LANDING: usize = 1 << 20;

/// A found entry.
#[derive(Clone, Copy, Debug)]
struct Entry {
    function: sys::CUfunction,
    /// Dynamic shared memory that it has been allowed.
    shared: u32,
}

/// Bytes in page-locked memory and where they go.
#[derive(Clone, Copy)]
struct Write {
    from: usize,
    to: usize,
    bytes: usize,
    /// Where the allocation that they go to begins: a copy may not leave it.
    within: usize,
}

/// What changes while the queue runs.
pub(super) struct State {
    /// Why nothing runs any more.
    broken: Option<String>,
    entries: HashMap<Key, Entry>,
    last: Option<Key>,
    staging: Staging,
    /// Never in use but during a read, which need not wait for the writes before it.
    landing: Staging,
    /// For reads that are waited for later.
    pub arrivals: Arrivals,
    /// A write that has been staged but not begun: the next one may continue it.
    write: Option<Write>,
    pub mode: Mode,
    pub step: Step,
    /// Of the step, while it is collected whole.
    pub form: Option<Form>,
    pub graphs: Graphs,
    /// While launches are timed.
    pub timing: Option<Timing>,
}

/// What becomes of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Each begins when the one before it has ended.
    Apart,
    /// On Hopper each may begin while the one before it ends.
    Overlapping,
    /// They are kept in the state's step, and overlap when it runs.
    Collected,
}

/// One card.
pub(crate) struct Queue {
    pub(super) name: String,
    card: CudaCard,
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    images: Vec<Image>,
    /// Where it was asked for.
    pub(super) cublaslt: OnceLock<CublasLt>,
    pub(crate) chip: Chip,
    sync: bool,
    state: Mutex<State>,
}

// SAFETY: the driver's handles may be used by any thread; each use makes the context current first
// and everything that changes is behind the mutex.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    /// Opens card `ordinal` and loads the kernels.
    ///
    /// # Errors
    /// Whatever is not there: driver, card, kernels for it, memory.
    pub(crate) fn open(ordinal: usize) -> Result<Arc<Self>> {
        let name = format!("cuda:{ordinal}");
        let cards = start()?;
        if ordinal >= cards {
            let message = match cards {
                0 => "no card to be seen".into(),
                n => format!("no such card: there are {n}, counted from 0"),
            };
            return Err(Error::device(name, message));
        }
        let (device, card) = describe(ordinal)?;
        let kernels = images::named()?;
        card.code().map_err(|why| Error::device(&name, format!("{}: {why}", card.name)))?;
        let mut context = std::ptr::null_mut();
        // SAFETY: writes the handle it is given.
        let status = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        if status == CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE {
            let message = format!("{} is in exclusive use by another process", card.name);
            return Err(Error::device(name, message));
        }
        check(&name, "open", status)?;
        let sync = std::env::var_os("MEDFLAMINGO_SYNC").is_some_and(|v| v == "1");
        let chip = card.chip;
        // From here on dropping it gives back what there is.
        let mut queue = Queue {
            name,
            card,
            device,
            context,
            stream: std::ptr::null_mut(),
            images: Vec::new(),
            cublaslt: OnceLock::new(),
            chip,
            sync,
            state: Mutex::new(State {
                broken: None,
                entries: HashMap::new(),
                last: None,
                staging: Staging::default(),
                landing: Staging::default(),
                arrivals: Arrivals::default(),
                write: None,
                mode: Mode::Apart,
                step: Step::default(),
                form: None,
                graphs: Graphs::default(),
                timing: None,
            }),
        };
        queue.prepare(kernels)?;
        Ok(Arc::new(queue))
    }

    fn prepare(&mut self, kernels: Option<Vec<PathBuf>>) -> Result<()> {
        let name = &self.name;
        // SAFETY: the context was retained for this queue.
        check(name, "open", unsafe { sys::cuCtxSetCurrent(self.context) })?;
        // SAFETY: writes the handle it is given; 1 is a stream that no other waits for.
        check(name, "stream", unsafe { sys::cuStreamCreate(&mut self.stream, 1) })?;
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.staging.allocate(name, STAGING)?;
        state.landing.allocate(name, LANDING)?;
        state.arrivals.allocate(name)?;
        keep_memory(name, self.device)?;
        let (major, minor) = self.card.capability;
        let card = format!("{}, sm_{major}{minor}", self.card.name);
        images::load(name, &card, kernels, &mut self.images)
    }

    /// What changes, whatever has happened.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, if the queue still runs.
    fn alive(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        match &state.broken {
            Some(why) => Err(Error::device(&self.name, why)),
            None => Ok(state),
        }
    }

    /// The state, if the queue still runs, with its context current.
    pub(super) fn enter(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.alive()?;
        self.make_current(&mut state)?;
        Ok(state)
    }

    fn make_current(&self, state: &mut State) -> Result<()> {
        // SAFETY: retained until the queue is dropped.
        let status = unsafe { sys::cuCtxSetCurrent(self.context) };
        self.settle(state, "context", status)
    }

    /// `Ok`, or an error that all later calls return too: after one the context is not to be
    /// trusted.
    pub(super) fn settle(&self, state: &mut State, doing: &str, status: CUresult) -> Result<()> {
        if status == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        let found = words(status);
        let message = match state.last {
            Some(key) if !self.sync => format!(
                "{doing}: {found}, at or before {key}; set MEDFLAMINGO_SYNC=1 to find the launch"
            ),
            _ => format!("{doing}: {found}"),
        };
        state.broken = Some(message.clone());
        Err(Error::device(&self.name, message))
    }

    /// Free memory of the card and all of it.
    pub(crate) fn memory(&self) -> Result<(usize, usize)> {
        let _state = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes the integers it is given.
        check(&self.name, "memory", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }

    /// Memory that holds anything.
    pub(crate) fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Memory> {
        let mut state = self.enter()?;
        let mut at = 0;
        // SAFETY: writes the address it is given.
        let status = unsafe { sys::cuMemAllocAsync(&mut at, bytes.max(1), self.stream) };
        if status == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            drop(state);
            let (free, total) = self.memory()?;
            let mib = |n: usize| n as f64 / 1048576.0;
            let message = format!(
                "out of memory: {:.1} MiB asked for, {:.1} of {:.1} MiB free; a smaller dtype, \
                 fewer --kv-tokens or fewer sequences at once need less",
                mib(bytes),
                mib(free),
                mib(total)
            );
            return Err(Error::device(&self.name, message));
        }
        self.settle(&mut state, "allocate", status)?;
        Ok(Memory { queue: self.clone(), at: at as usize })
    }

    /// Zeroed memory.
    pub(crate) fn zeros(self: &Arc<Self>, bytes: usize) -> Result<Memory> {
        let memory = self.allocate(bytes)?;
        let mut state = self.enter()?;
        // SAFETY: the memory was allocated in this queue just now.
        let status =
            unsafe { sys::cuMemsetD8Async(memory.at as u64, 0, bytes.max(1), self.stream) };
        self.settle(&mut state, "clear", status)?;
        drop(state);
        Ok(memory)
    }

    /// Copies `from`, row after row, into `to` of the allocation that begins at `within`. What
    /// continues the last write there is one copy with it.
    ///
    /// # Safety
    /// The cells are the allocation's; `from` is as long as they are.
    unsafe fn write(&self, within: usize, to: Cells, from: *const u8) -> Result<()> {
        let mut state = self.enter()?;
        let mut done = 0;
        for piece in to.pieces(STAGING) {
            let bytes = piece.rows * piece.bytes;
            let at = match state.staging.take(bytes) {
                Some(at) => at,
                None => {
                    self.idle(&mut state)?;
                    state.staging.take(bytes).unwrap_or(state.staging.start())
                }
            };
            // SAFETY: `bytes` are free at `at` and there at `from` by the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(from.add(done), at, bytes) };
            done += bytes;
            let next = Write { from: at as usize, to: piece.at, bytes, within };
            match &mut state.write {
                Some(last)
                    if piece.rows == 1
                        && last.within == within
                        && last.from + last.bytes == next.from
                        && last.to + last.bytes == next.to =>
                {
                    last.bytes += bytes;
                }
                _ if piece.rows == 1 => {
                    self.send(&mut state)?;
                    state.write = Some(next);
                }
                _ => {
                    let source = Cells { at: at as usize, pitch: piece.bytes, ..piece };
                    self.copy(&mut state, Side::Host, source, Side::Card, piece)?;
                }
            }
        }
        Ok(())
    }

    /// Begins the write that waits, because something comes that may need it.
    pub(super) fn send(&self, state: &mut State) -> Result<()> {
        let Some(Write { from, to, bytes, .. }) = state.write.take() else { return Ok(()) };
        // SAFETY: page-locked memory that stays as it is until the queue is idle; the target is the
        // promise of `write`'s caller.
        let status =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to as u64, from as *const _, bytes, self.stream) };
        self.settle(state, "copy", status)
    }

    /// Copies `from` out, row after row; waits for everything before it.
    ///
    /// # Safety
    /// The cells are this card's memory; `to` has room for them.
    pub(crate) unsafe fn read(&self, from: Cells, to: *mut u8) -> Result<()> {
        let mut state = self.enter()?;
        self.flush(&mut state)?;
        let mut done = 0;
        for piece in from.pieces(LANDING) {
            let start = state.landing.start();
            let target = Cells { at: start as usize, pitch: piece.bytes, ..piece };
            self.copy(&mut state, Side::Card, piece, Side::Host, target)?;
            self.idle(&mut state)?;
            let bytes = piece.rows * piece.bytes;
            // SAFETY: the memory holds the piece; `to` has room by the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(start, to.add(done), bytes) };
            done += bytes;
        }
        Ok(())
    }

    /// Copies cells to cells of the same form.
    ///
    /// # Safety
    /// Both are this card's memory and share no byte.
    pub(crate) unsafe fn move_cells(&self, from: Cells, to: Cells) -> Result<()> {
        let mut state = self.enter()?;
        self.flush(&mut state)?;
        self.copy(&mut state, Side::Card, from, Side::Card, to)
    }

    pub(super) fn copy(
        &self,
        state: &mut State,
        a: Side,
        from: Cells,
        b: Side,
        to: Cells,
    ) -> Result<()> {
        self.send(state)?;
        if from.rows * from.bytes == 0 {
            return Ok(());
        }
        let (kind_a, kind_b) = (a.kind(), b.kind());
        let plan = sys::CUDA_MEMCPY2D_st {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: kind_a,
            srcHost: if a == Side::Host { from.at as *const _ } else { std::ptr::null() },
            srcDevice: from.at as u64,
            srcArray: std::ptr::null_mut(),
            srcPitch: from.pitch,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: kind_b,
            dstHost: if b == Side::Host { to.at as *mut _ } else { std::ptr::null_mut() },
            dstDevice: to.at as u64,
            dstArray: std::ptr::null_mut(),
            dstPitch: to.pitch,
            WidthInBytes: from.bytes,
            Height: from.rows,
        };
        // SAFETY: the callers promise that both sides exist; the copy runs in the queue's order.
        let status = unsafe {
            match (a, b, from.rows) {
                (_, Side::Host, 1) => sys::cuMemcpyDtoHAsync_v2(
                    to.at as *mut _,
                    from.at as u64,
                    from.bytes,
                    self.stream,
                ),
                (_, _, 1) => {
                    sys::cuMemcpyDtoDAsync_v2(to.at as u64, from.at as u64, from.bytes, self.stream)
                }
                _ => sys::cuMemcpy2DAsync_v2(&plan, self.stream),
            }
        };
        self.settle(state, "copy", status)
    }

    /// Waits until nothing runs.
    pub(super) fn idle(&self, state: &mut State) -> Result<()> {
        self.send(state)?;
        // SAFETY: the stream lives as long as the queue.
        let status = unsafe { sys::cuStreamSynchronize(self.stream) };
        state.staging.reset();
        self.settle(state, "a launch or copy failed", status)
    }

    /// Runs an entry, or adds it to the open step. The last `accounting` bytes of the params are
    /// nothing to the card.
    ///
    /// # Safety
    /// `params` are the entry's, valid on this card until it has run.
    pub(crate) unsafe fn launch(
        &self,
        (kernel, dtype): (&'static str, DType),
        geometry: &Geometry,
        params: &[u8],
        accounting: usize,
    ) -> Result<()> {
        let [x, y, z] = geometry.grid;
        if x > i32::MAX as u32 || y > 65535 || z > 65535 {
            let (name, found) = (geometry.entry(kernel, dtype), format!("{x} x {y} x {z}"));
            return Err(Error::invalid(name, "at most 2^31-1 x 65535 x 65535 blocks", found));
        }
        let mut state = self.alive()?;
        let key = Key { kernel, dtype, variant: geometry.variant };
        let mode = if self.is_single(&state) { Mode::Apart } else { state.mode };
        let is_collected = mode == Mode::Collected;
        // Most launches of a step are those of the last one, which were looked up then.
        let known = is_collected.then(|| state.graphs.latest(state.step.len())).flatten();
        let launch = match known {
            Some(known) if known.key == key && known.geometry == *geometry => *known,
            _ => {
                self.make_current(&mut state)?;
                let function = match key.variant {
                    Geometry::CUBLASLT => std::ptr::null_mut(),
                    _ => self.entry(&mut state, key, geometry)?,
                };
                let overlaps = mode != Mode::Apart && self.chip.has_wgmma();
                Launch { key, function, geometry: *geometry, params: params.len(), overlaps }
            }
        };
        if is_collected {
            state.step.push(launch, params, accounting);
            return Ok(());
        }
        self.run(&mut state, &launch, params)
    }

    /// Launches at once.
    pub(super) fn run(&self, state: &mut State, launch: &Launch, params: &[u8]) -> Result<()> {
        self.send(state)?;
        self.mark(state, 0)?;
        let status = launch.run(params, self.stream, self.cublaslt.get());
        state.last = Some(launch.key);
        if status != CUresult::CUDA_SUCCESS {
            return self.settle(state, &format!("launch of {}", launch.key), status);
        }
        self.mark(state, 1)?;
        if self.sync {
            // SAFETY: the stream lives as long as the queue.
            let status = unsafe { sys::cuStreamSynchronize(self.stream) };
            return self.settle(state, &launch.key.to_string(), status);
        }
        Ok(())
    }

    /// True if launches run one by one, because each is waited for or timed.
    pub(super) fn is_single(&self, state: &State) -> bool {
        self.sync || state.timing.is_some()
    }

    fn entry(&self, state: &mut State, key: Key, geometry: &Geometry) -> Result<sys::CUfunction> {
        let known = state.entries.get(&key).copied();
        let entry = match known {
            Some(entry) => entry,
            None => {
                let name = geometry.entry(key.kernel, key.dtype);
                let function = self.images.iter().find_map(|image| image.entry(&name));
                let function = function.ok_or_else(|| {
                    Error::device(&self.name, format!("no entry `{name}` in the kernels loaded"))
                })?;
                let entry = Entry { function, shared: 0 };
                state.entries.insert(key, entry);
                entry
            }
        };
        if geometry.shared > entry.shared {
            let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a module that is loaded.
            let status =
                unsafe { sys::cuFuncSetAttribute(entry.function, which, geometry.shared as i32) };
            check(&self.name, &format!("{key}: {} bytes shared", geometry.shared), status)?;
            state.entries.insert(key, Entry { shared: geometry.shared, ..entry });
        }
        Ok(entry.function)
    }

    /// The card in words.
    pub(crate) fn describe(&self) -> String {
        let (major, minor) = self.card.capability;
        format!("{}, {}, compute {major}.{minor}", self.name, self.card.name)
    }

    /// Graphs made, and steps that ran as one made before.
    pub(crate) fn graphs(&self) -> (u64, u64) {
        let state = self.state();
        (state.graphs.made, state.graphs.replayed)
    }
}

/// Freed memory stays with the queue: an allocation is then no call to the system.
fn keep_memory(name: &str, device: sys::CUdevice) -> Result<()> {
    let (mut pool, mut all) = (std::ptr::null_mut(), u64::MAX);
    // SAFETY: writes the handle it is given.
    check(name, "pool", unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, device) })?;
    let which = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the attribute is an integer of 64 bits.
    let status = unsafe { sys::cuMemPoolSetAttribute(pool, which, (&raw mut all).cast()) };
    check(name, "pool", status)
}

impl Drop for Queue {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: nobody uses the queue any more; failures after an error change nothing.
        unsafe {
            let _ = sys::cuCtxSetCurrent(self.context);
            if !self.stream.is_null() {
                let _ = sys::cuStreamSynchronize(self.stream);
            }
            state.graphs.clear();
            drop(self.cublaslt.take());
            state.timing.take().unwrap_or_default().clear();
            state.staging.free();
            state.landing.free();
            state.arrivals.free();
            self.images.iter().for_each(Image::unload);
            if !self.stream.is_null() {
                let _ = sys::cuStreamDestroy_v2(self.stream);
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Side {
    Host,
    Card,
}

impl Side {
    fn kind(self) -> sys::CUmemorytype {
        match self {
            Side::Host => sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            Side::Card => sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        }
    }
}

/// Memory of a card, given back in the queue's order.
pub(crate) struct Memory {
    pub(crate) queue: Arc<Queue>,
    pub(crate) at: usize,
}

impl Memory {
    /// As [`Queue::write`], to this memory.
    ///
    /// # Safety
    /// The cells are in this memory; `from` is as long as they are.
    pub(crate) unsafe fn write(&self, to: Cells, from: *const u8) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.queue.write(self.at, to, from) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // What a broken queue has collected does not run; its memory is given back all the same.
        if let Ok(mut state) = self.queue.enter() {
            let _ = self.queue.flush(&mut state).and_then(|()| self.queue.send(&mut state));
        }
        // SAFETY: allocated by this queue, whose launches so far all come before.
        unsafe {
            let _ = sys::cuCtxSetCurrent(self.queue.context);
            let _ = sys::cuMemFreeAsync(self.at as u64, self.queue.stream);
        }
    }
}

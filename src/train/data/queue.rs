//! Worker threads whose results come out in the order of their jobs.
//!
//! One feeder makes the jobs, some workers do them, and the caller takes the results by number. The
//! feeder stays a bounded number of jobs ahead of the caller, so memory is bounded however slow one
//! job is.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// What the feeder gives: work for a worker, or a result that needs none.
pub(super) enum Step<J, R> {
    Work(J),
    Done(R),
}

struct State<J, R> {
    jobs: VecDeque<(u64, J)>,
    done: BTreeMap<u64, Option<R>>,
    issued: u64,
    taken: u64,
    /// The feeder has nothing more.
    has_ended: bool,
    /// Nobody takes results any more.
    is_closed: bool,
}

struct Shared<J, R> {
    state: Mutex<State<J, R>>,
    ahead: u64,
    may_feed: Condvar,
    may_work: Condvar,
    may_take: Condvar,
}

impl<J, R> Shared<J, R> {
    /// No code that can panic runs under the lock, so a poisoned state is whole.
    fn lock(&self) -> MutexGuard<'_, State<J, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What [`Queue::take`] found.
pub(super) enum Taken<R> {
    Result(R),
    /// The job's worker panicked.
    Lost,
    End,
}

pub(super) struct Queue<J, R> {
    shared: Arc<Shared<J, R>>,
    threads: Vec<JoinHandle<()>>,
}

impl<J: Send + 'static, R: Send + 'static> Queue<J, R> {
    /// Starts `workers` threads and one that runs `feed` until it gives None.
    ///
    /// # Errors
    /// If the system has no more threads.
    pub(super) fn start(
        workers: usize,
        ahead: usize,
        mut feed: impl FnMut() -> Option<Step<J, R>> + Send + 'static,
        work: impl Fn(J) -> R + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let state = State {
            jobs: VecDeque::new(),
            done: BTreeMap::new(),
            issued: 0,
            taken: 0,
            has_ended: false,
            is_closed: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            ahead: ahead.max(1) as u64,
            may_feed: Condvar::new(),
            may_work: Condvar::new(),
            may_take: Condvar::new(),
        });
        let mut queue = Queue { shared: shared.clone(), threads: Vec::new() };
        let own = shared.clone();
        queue.spawn("data order", move || while put(&own, feed_caught(&mut feed)) {})?;
        let work = Arc::new(work);
        for _ in 0..workers.max(1) {
            let (own, work) = (shared.clone(), work.clone());
            queue.spawn("data worker", move || {
                while let Some((number, job)) = next_job(&own) {
                    let result = catch_unwind(AssertUnwindSafe(|| work(job))).ok();
                    own.lock().done.insert(number, result);
                    own.may_take.notify_one();
                }
            })?;
        }
        Ok(queue)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.into()).spawn(run)?);
        Ok(())
    }

    /// Results that are ready.
    pub(super) fn ready(&self) -> usize {
        self.shared.lock().done.len()
    }

    /// The next result in order, and whether it had to be waited for.
    pub(super) fn take(&mut self) -> (Taken<R>, bool) {
        let shared = &self.shared;
        let mut state = shared.lock();
        let mut has_waited = false;
        loop {
            let number = state.taken;
            if let Some(result) = state.done.remove(&number) {
                state.taken += 1;
                shared.may_feed.notify_one();
                return (result.map_or(Taken::Lost, Taken::Result), has_waited);
            }
            if state.has_ended && state.taken == state.issued {
                return (Taken::End, has_waited);
            }
            has_waited = true;
            state = shared.may_take.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A feeder that panics is a result that is lost, then the end.
fn feed_caught<J, R>(
    feed: &mut impl FnMut() -> Option<Step<J, R>>,
) -> Result<Option<Step<J, R>>, ()> {
    catch_unwind(AssertUnwindSafe(feed)).map_err(drop)
}

/// Hands on what the feeder gave, when there is room for it; false when it need not go on.
fn put<J, R>(shared: &Shared<J, R>, step: Result<Option<Step<J, R>>, ()>) -> bool {
    let mut state = shared.lock();
    while state.issued - state.taken >= shared.ahead && !state.is_closed {
        state = shared.may_feed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    let number = state.issued;
    state.issued += u64::from(!matches!(step, Ok(None)));
    state.has_ended = !matches!(step, Ok(Some(_)));
    match step {
        Ok(Some(Step::Work(job))) => state.jobs.push_back((number, job)),
        Ok(Some(Step::Done(result))) => drop(state.done.insert(number, Some(result))),
        Ok(None) => {}
        Err(()) => drop(state.done.insert(number, None)),
    }
    let goes_on = !state.has_ended && !state.is_closed;
    drop(state);
    shared.may_work.notify_all();
    shared.may_take.notify_one();
    goes_on
}

fn next_job<J, R>(shared: &Shared<J, R>) -> Option<(u64, J)> {
    let mut state = shared.lock();
    loop {
        if state.is_closed {
            return None;
        }
        if let Some(job) = state.jobs.pop_front() {
            return Some(job);
        }
        if state.has_ended {
            return None;
        }
        state = shared.may_work.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

impl<J, R> Drop for Queue<J, R> {
    /// Ends the threads; jobs that nobody has begun are dropped.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        state.jobs.clear();
        drop(state);
        self.shared.may_feed.notify_all();
        self.shared.may_work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        for workers in [1, 4] {
            let mut next = 0u64;
            let feed = move || {
                next += 1;
                (next <= 100).then_some(match next % 5 {
                    0 => Step::Done(next),
                    _ => Step::Work(next),
                })
            };
            let work = |n: u64| {
                thread::sleep(Duration::from_micros(n * 37 % 400));
                n
            };
            let mut queue = Queue::start(workers, 7, feed, work).unwrap();
            for n in 1..=100 {
                assert!(matches!(queue.take().0, Taken::Result(found) if found == n));
            }
            assert!(matches!(queue.take().0, Taken::End));
        }
    }

    #[test]
    fn the_feeder_stays_within_its_bound() {
        let fed = Arc::new(Mutex::new(0u64));
        let count = fed.clone();
        let feed = move || {
            *count.lock().unwrap() += 1;
            Some(Step::Work(()))
        };
        let mut queue = Queue::start(2, 5, feed, drop).unwrap();
        for taken in 0..20 {
            assert!(matches!(queue.take().0, Taken::Result(())));
            assert!(*fed.lock().unwrap() <= taken + 7);
        }
    }

    #[test]
    fn a_job_that_panics_is_lost_and_the_others_are_not() {
        let mut jobs = 0..3;
        let feed = move || jobs.next().map(Step::Work);
        let work = |n: i32| assert_ne!(n, 1);
        let mut queue = Queue::start(1, 3, feed, work).unwrap();
        assert!(matches!(queue.take().0, Taken::Result(())));
        assert!(matches!(queue.take().0, Taken::Lost));
        assert!(matches!(queue.take().0, Taken::Result(())));
        assert!(matches!(queue.take().0, Taken::End));
    }
}

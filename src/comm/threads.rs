//! Ranks that are threads of one process.

use super::lane::{Answer, Link, Parts, part_of};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One thread's place among the others.
pub(super) struct Member {
    meeting: Arc<Meeting>,
    rank: usize,
    timeout: Duration,
}

struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Exchanges that are complete.
    rounds: u64,
    /// What has come for the next one.
    slots: Vec<Option<Parts>>,
    /// What came for the last one.
    result: Arc<Vec<Parts>>,
    gone: Vec<bool>,
    failed: Option<String>,
}

impl Member {
    pub(super) fn of(world: usize, timeout: Duration) -> Vec<Self> {
        let state = State {
            rounds: 0,
            slots: vec![None; world],
            result: Arc::default(),
            gone: vec![false; world],
            failed: None,
        };
        let meeting = Arc::new(Meeting { state: Mutex::new(state), changed: Condvar::new() });
        (0..world).map(|rank| Member { meeting: meeting.clone(), rank, timeout }).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.meeting.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all ranks gave.
    fn meet(&self, parts: Parts) -> Result<Arc<Vec<Parts>>, String> {
        let deadline = Instant::now() + self.timeout;
        let mut state = self.state();
        let round = state.rounds;
        state.slots[self.rank] = Some(parts);
        if state.slots.iter().all(Option::is_some) && state.failed.is_none() {
            let all = state.slots.iter_mut().map(|slot| slot.take().unwrap_or_default()).collect();
            state.result = Arc::new(all);
            state.rounds += 1;
            self.meeting.changed.notify_all();
        }
        loop {
            // The next exchange cannot be complete before this rank comes to it.
            if state.rounds > round {
                return Ok(state.result.clone());
            }
            if let Some(why) = &state.failed {
                return Err(why.clone());
            }
            let missing: Vec<usize> =
                (0..state.slots.len()).filter(|&r| state.slots[r].is_none()).collect();
            if let Some(gone) = missing.iter().find(|&&r| state.gone[r]) {
                let why = format!("rank {gone} has ended");
                return Err(self.fail(state, why));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seconds = self.timeout.as_secs_f64();
                let why = format!("rank {} did not come within {seconds} s", listed(&missing));
                return Err(self.fail(state, why));
            }
            let waited = self.meeting.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn fail(&self, mut state: MutexGuard<'_, State>, why: String) -> String {
        state.failed = Some(why.clone());
        self.meeting.changed.notify_all();
        why
    }
}

impl Link for Member {
    fn exchange(&mut self, parts: Parts) -> Answer {
        let all = self.meet(parts)?;
        Ok(all.iter().map(|parts| part_of(parts, self.rank).to_vec()).collect())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.state().gone[self.rank] = true;
        self.meeting.changed.notify_all();
    }
}

/// `1, 2 and 5`, for messages.
pub(super) fn listed(ranks: &[usize]) -> String {
    let texts: Vec<String> = ranks.iter().map(usize::to_string).collect();
    match texts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => texts.join(""),
    }
}

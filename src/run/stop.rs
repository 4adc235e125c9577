//! Ctrl-C and a scheduler's request to end: the first is obeyed after the step, the second at once.

use crate::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit status of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Whether somebody wants the run to end.
#[derive(Clone, Default)]
pub struct Stop {
    asked: Arc<AtomicBool>,
}

impl Stop {
    /// Listens from here on, for the whole process.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn on_signals() -> Result<Self> {
        let stop = Stop::default();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag down and raises it.
            flag::register_conditional_shutdown(signal, INTERRUPTED, stop.asked.clone())
                .and_then(|_| flag::register(signal, stop.asked.clone()))
                .map_err(|e| Error::device("signals", e))?;
        }
        Ok(stop)
    }

    /// Asks for the end of the run.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// True once somebody has.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

//! Stop strings: where a text ends, whatever pieces it arrives in.

use crate::error::{Error, Result};

/// Most stop strings of one request.
pub const MAX_STOPS: usize = 16;
/// Longest stop string in bytes.
pub const MAX_STOP_BYTES: usize = 64;

/// Finds the first stop string to be completed, and holds back text that may be the start of one.
///
/// The text ends before the stop string that is complete first; if several are complete with the
/// same character, before the longest. The result does not depend on how the text is cut into
/// pieces.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: Option<usize>,
}

/// What [`StopStrings::push`] returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Text that is certain not to belong to a stop string.
    pub text: String,
    /// The stop string that ended the text, as an index into the list given to
    /// [`StopStrings::new`].
    pub stop: Option<usize>,
}

impl StopStrings {
    /// Watches for any of `stops`; with none, text passes through.
    ///
    /// # Errors
    /// More than [`MAX_STOPS`] strings, or one that is empty or over [`MAX_STOP_BYTES`].
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Result<Self> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        if stops.len() > MAX_STOPS {
            return Err(Error::invalid("stop", format!("at most {MAX_STOPS} texts"), stops.len()));
        }
        if let Some(bad) = stops.iter().find(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
            let expected = format!("texts of 1 to {MAX_STOP_BYTES} bytes");
            return Err(Error::invalid("stop", expected, format!("{} bytes", bad.len())));
        }
        Ok(StopStrings { stops, held: String::new(), stopped: None })
    }

    /// Takes more text. After a stop string was found, everything is dropped.
    pub fn push(&mut self, text: &str) -> Found {
        if self.stopped.is_some() {
            return Found { text: String::new(), stop: self.stopped };
        }
        let searched = self.held.len();
        self.held.push_str(text);
        if let Some((start, index)) = self.first_complete(searched) {
            self.held.truncate(start);
            self.stopped = Some(index);
            return Found { text: std::mem::take(&mut self.held), stop: self.stopped };
        }
        let keep = self.held.split_off(self.held.len() - self.possible_start());
        Found { text: std::mem::replace(&mut self.held, keep), stop: None }
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that was found.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.map(|index| self.stops[index].as_str())
    }

    /// Start and index of the first stop string that ends after byte `searched`.
    fn first_complete(&self, searched: usize) -> Option<(usize, usize)> {
        let held = self.held.as_bytes();
        (searched + 1..=held.len()).find_map(|end| {
            let ends_here = |(index, stop): (usize, &String)| {
                held[..end].ends_with(stop.as_bytes()).then(|| (end - stop.len(), index))
            };
            self.stops.iter().enumerate().filter_map(ends_here).min()
        })
    }

    /// Length of the longest end of `held` that is the beginning of a stop string.
    fn possible_start(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&n| held.ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

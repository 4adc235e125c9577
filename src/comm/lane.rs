//! A thread that talks to the other ranks, one message after another in the order in which they
//! were given to it: whoever gave one computes on until the answer is needed.

use std::sync::mpsc::{Receiver, Sender, channel};

/// What a rank gives: one part for all of them, or one for each.
pub(super) type Parts = Vec<Vec<u8>>;

/// What every rank gave this one, in their order; or why nothing comes any more.
pub(super) type Answer = Result<Vec<Vec<u8>>, String>;

/// A connection to the other ranks.
pub(super) trait Link: Send + 'static {
    /// Gives `parts`; all ranks have come here when it returns.
    fn exchange(&mut self, parts: Parts) -> Answer;
}

/// The part of `rank` among those that one rank gave.
pub(super) fn part_of(parts: &[Vec<u8>], rank: usize) -> &[u8] {
    parts.get(rank).or(parts.first()).map_or(&[], Vec::as_slice)
}

/// The way to a thread with a link.
pub(super) struct Lane {
    messages: Sender<(Parts, Sender<Answer>)>,
}

/// An answer that is still to come.
pub(super) struct Pending(Receiver<Answer>);

impl Lane {
    /// The thread ends when this is dropped, after what it was given.
    pub fn new(mut link: impl Link) -> Self {
        let (messages, received) = channel::<(Parts, Sender<Answer>)>();
        let body = move || {
            for (parts, answer) in received {
                // Nobody may want it any more: the others do.
                let _ = answer.send(link.exchange(parts));
            }
        };
        // Without a thread nobody receives, which the first message finds.
        let _ = std::thread::Builder::new().name("ranks".into()).spawn(body);
        Lane { messages }
    }

    pub fn begin(&self, parts: Parts) -> Pending {
        let (sender, answer) = channel();
        let _ = self.messages.send((parts, sender));
        Pending(answer)
    }
}

impl Pending {
    pub fn end(self) -> Answer {
        let none = |_| Err("its thread for messages did not start, or has ended".into());
        self.0.recv().unwrap_or_else(none)
    }
}

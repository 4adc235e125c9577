//! Working memory that a thread keeps between launches, so that a step allocates nothing once warm.

use std::cell::Cell;
use std::thread::LocalKey;

#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(#[expect(dead_code, reason = "written and read as words")] [u32; LINE]);

const LINE: usize = 16;

type Slot = Cell<Vec<Line>>;

thread_local! {
    /// What the caller prepares for all threads.
    pub(super) static SHARED: Slot = const { Cell::new(Vec::new()) };
    /// What a thread needs for the piece it works on.
    pub(super) static OWN: Slot = const { Cell::new(Vec::new()) };
}

/// Lends `words` 32-bit words, 64-byte aligned, with arbitrary initialised contents.
pub(super) fn with<R>(
    slot: &'static LocalKey<Slot>,
    words: usize,
    f: impl FnOnce(*mut u32) -> R,
) -> R {
    // Taken, not borrowed: a nested launch on this thread gets its own.
    let mut lines = slot.take();
    if lines.len() * LINE < words {
        drop(lines);
        lines = vec![Line([0; LINE]); words.div_ceil(LINE)];
    }
    let result = f(lines.as_mut_ptr().cast());
    slot.set(lines);
    result
}

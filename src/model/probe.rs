//! Looking at intermediates without slowing the pass that nobody watches.

use crate::tensor::View;

/// What a watcher does with a name and its tensor.
type See<'a> = dyn FnMut(String, View<'_>) + 'a;

/// Receives named intermediates, if anyone asked for them.
pub struct Probe<'a>(Option<&'a mut See<'a>>);

impl<'a> Probe<'a> {
    /// Nobody is watching.
    pub fn none() -> Self {
        Probe(None)
    }

    /// `see` is called with every intermediate: names as in the golden files, such as
    /// `lm.03.layer_out`.
    pub fn new(see: &'a mut See<'a>) -> Self {
        Probe(Some(see))
    }

    /// True if someone watches.
    pub fn is_watched(&self) -> bool {
        self.0.is_some()
    }

    /// Shows `view`; the name is made only if someone watches.
    pub fn see(&mut self, name: impl FnOnce() -> String, view: View<'_>) {
        if let Some(see) = &mut self.0 {
            see(name(), view);
        }
    }
}

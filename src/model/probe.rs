//! Looking at intermediates without slowing the pass that nobody watches.

use crate::tensor::View;

/// Receives named intermediates, if anyone asked for them.
pub struct Probe<'a>(Option<&'a mut dyn FnMut(String, View<'_>)>);

impl<'a> Probe<'a> {
    /// Nobody is watching.
    pub fn none() -> Self {
        Probe(None)
    }

    /// `see` is called with every intermediate: names as in the golden files, such as
    /// `lm.03.layer_out`.
    pub fn new(see: &'a mut dyn FnMut(String, View<'_>)) -> Self {
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

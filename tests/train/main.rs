//! Training, against recordings of upstream's own training loop, against finite differences, and
//! against itself: what must not change a bit does not.

mod augmented;
mod differences;
mod exact;
#[path = "../golden_folder/mod.rs"]
#[allow(dead_code, reason = "the tests of inference read more of it")]
mod golden_folder;
mod quantized;
mod ranks;
mod recorded;
mod runs;

//! Training: the data that a step eats.

mod batch;
pub mod data;

pub use batch::{Batch, Sample};

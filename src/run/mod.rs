//! A training run: its configuration, its folder, its checkpoints, what it writes while it runs.

pub mod checkpoint;
mod disk;
mod metrics;
mod stop;
mod tensorboard;
mod tensors;

pub use checkpoint::{Checkpoints, Content, Manifest, Saved};
pub use disk::{Disk, FileSum};
pub use metrics::Metrics;
pub use stop::Stop;
pub use tensorboard::EventFile;
pub use tensors::Named;

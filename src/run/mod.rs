//! A training run: its configuration, its folder, its checkpoints, what it writes while it runs.

mod disk;
mod tensorboard;

pub use disk::{Disk, FileSum};
pub use tensorboard::EventFile;

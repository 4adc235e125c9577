//! A training run: its configuration, its folder, its checkpoints, what it writes while it runs.
//!
//! | in a run's folder | what it is |
//! |---|---|
//! | `config.toml` | the complete configuration |
//! | `checkpoints/step-*` | see [`checkpoint`] |
//! | `metrics.jsonl` | a line for each step that is logged, each validation, each note |
//! | `tensorboard/` | the same numbers, and samples, for TensorBoard |
//! | `lock` | held while a process trains |

pub mod checkpoint;
mod config;
mod disk;
mod feed;
mod folder;
mod metrics;
pub mod plan;
mod samples;
mod state;
mod stop;
mod tensorboard;
mod tensors;
mod training;
mod validation;

pub use checkpoint::{Checkpoints, Content, Manifest, Saved};
pub use config::{ModelOptions, RunConfig, RunOptions, SampleOptions, SourceForm, SourceOptions};
pub use disk::{Disk, FileSum};
pub use folder::RunFolder;
pub use metrics::{LINES, Metrics};
pub use stop::Stop;
pub use tensorboard::EventFile;
pub use tensors::Named;
pub use training::{Ended, Event, Start, Watch, train};
pub use validation::Measured;

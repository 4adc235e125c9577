//! The model: its configuration, its weights arranged as layers, and the forward pass as a straight
//! list of launches.

pub mod config;
pub mod presets;

pub use config::{Config, Family};
pub use presets::{PRESETS, preset};

//! From logits to tokens: what to generate, how to choose, when to stop.

pub mod beam;
pub mod logits;
pub mod options;
pub mod processors;
pub mod sampler;

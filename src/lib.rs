//! Flamingo-style vision-language models (OpenFlamingo, Med-Flamingo) as launches of kernels.
//!
//! Research software. Not a medical device; never for clinical decisions.
//!
//! A kernel is a C struct (`kernels/<stem>.h`), a native twin (`src/ops/<stem>.rs`) and, on a GPU,
//! a `.cu`. A launch is data; [`device::Stream::launch`] runs it where the stream lives. The floors
//! are strict: a module may use those below it only (`tests/house.rs` checks it).
//!
//! | floor | modules |
//! |---|---|
//! | 7 | `books`, `convert`, `eval`, `profile`, `quality`, `run` |
//! | 6 | `engine`, `train` |
//! | 5 | `model`, `comm` |
//! | 4 | `ops`, `weights`, `prompt`, `phantom` |
//! | 3 | `tensor`, `text`, `image`, `checkpoint` |
//! | 2 | `device` |
//! | 1 | `error`, `dtype`, `contracts` |

pub mod books;
pub mod checkpoint;
pub mod comm;
pub mod contracts;
pub mod convert;
pub mod device;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod eval;
pub mod image;
pub mod model;
pub mod ops;
pub mod phantom;
pub mod profile;
pub mod prompt;
pub mod quality;
pub mod run;
pub mod tensor;
pub mod text;
pub mod train;
pub mod weights;

pub use dtype::DType;
pub use error::{Error, Result};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

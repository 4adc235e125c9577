//! Who computes matrix products on a card.

use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Who computes matrix products on a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// The kernels of this engine.
    #[default]
    Own,
    /// NVIDIA's library, for those products whose epilogue it has: bias and residual. The others
    /// stay with the kernels.
    CublasLt,
}

impl FromStr for Products {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "own" => Ok(Products::Own),
            "cublaslt" => Ok(Products::CublasLt),
            _ => Err(Error::invalid("gemm", "own or cublaslt", format!("`{s}`"))),
        }
    }
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Products::Own => "own",
            Products::CublasLt => "cublaslt",
        })
    }
}

//! The kernels that were compiled into this binary; `build.rs` writes the list.

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

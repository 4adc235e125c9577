//! Every kernel against its oracle: the equation of its contract, in f64 and never optimised.

mod gemm;
mod guarded;

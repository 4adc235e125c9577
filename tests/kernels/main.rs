//! Every kernel against its oracle: the equation of its contract, in f64 and never optimised; on
//! every instruction set of this machine, with one thread and with several.
//!
//! Cases are plain data, named by why they exist; `cases()` of each stem is what benches reuse.

mod activation;
mod adamw;
mod adamw8;
mod attention;
mod attention_backward;
mod attention_decode;
mod batch;
mod checksum;
mod column_sums;
mod cross_attention;
mod cross_attention_backward;
mod cross_entropy;
mod embedding;
mod gate_backward;
mod gemm;
mod gemm_quantized;
mod guarded;
mod judge;
mod kv_append;
mod layernorm;
mod norm_backward;
mod normed;
mod oracle;
mod patchify;
mod quantize;
mod rmsnorm;
mod rope;
mod sampling;
mod self_attention;
mod self_attention_backward;
mod square_sum;
mod transpose;

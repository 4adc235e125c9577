//! The attentions and row kernels of the host at the models' shapes.
//!
//! `cargo bench --bench attention -- [threads]`; best of several runs, because the machine may be
//! shared. Rates count what a launch must do ([`medflamingo::device::Cost`]), masked pairs not.

use half::bf16;
use medflamingo::DType;
use medflamingo::device::{Host, Isa, Pool, Stream};
use medflamingo::ops::{self, Ragged, Sequence};
use medflamingo::tensor::{Arena, Tensor};
use std::time::Instant;

fn best(mut launch: impl FnMut() -> medflamingo::Result<()>) -> f64 {
    let start = Instant::now();
    let mut best = f64::MAX;
    while best == f64::MAX || start.elapsed().as_secs_f64() < 0.6 {
        let one = Instant::now();
        launch().expect("a legal launch");
        best = best.min(one.elapsed().as_secs_f64());
    }
    best
}

fn filled(stream: &Stream, dtype: DType, shape: &[usize]) -> Tensor {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    let tensor = match dtype {
        DType::F32 => Tensor::upload(stream, &values, shape),
        _ => {
            let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
            Tensor::upload(stream, &values, shape)
        }
    };
    tensor.expect("memory")
}

fn zeros(stream: &Stream, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(stream, dtype, shape).expect("memory")
}

fn report(stream: &Stream, name: String, seconds: f64, flops: f64, bytes: f64) {
    let device = stream.describe();
    let (us, gflops, rate) = (seconds * 1e6, flops / seconds / 1e9, bytes / seconds / 1e9);
    println!("{device:24} {name:36} {us:10.1} us {gflops:8.1} GFLOP/s {rate:7.1} GB/s");
}

/// One image in the vision tower: 257 tokens, 16 heads of 64.
fn vision(stream: &Stream, dtype: DType) {
    let qkv = filled(stream, dtype, &[257, 3072]);
    let mut o = zeros(stream, dtype, &[257, 1024]);
    let part = |i: usize| qkv.view().block(0..257, i * 1024..(i + 1) * 1024).expect("a part");
    let seconds = best(|| {
        let segments = [(part(1), part(2))];
        ops::attention(stream, o.view_mut(), part(0), &segments, 1, 16, 0.125)
    });
    let bytes = (qkv.bytes() + o.bytes()) as f64;
    let flops = 4.0 * 257.0 * 257.0 * 1024.0;
    report(stream, format!("vision {dtype} (257, 16*64)"), seconds, flops, bytes);
}

/// One sequence of LLaMA-7B: 32 heads of 128.
fn language(stream: &Stream, dtype: DType, kv_len: usize, rows: usize) {
    let pages = kv_len.div_ceil(64);
    let table: Vec<i32> = (0..pages as i32).collect();
    let mut arena = Arena::new(stream, 1 << 20).expect("memory");
    let sequence = Sequence { table: &table, kv_len, rows };
    let batch = Ragged::new(&mut arena, &[sequence], 64, pages).expect("a batch");
    let (pool, q) =
        (filled(stream, dtype, &[pages, 1 << 19]), filled(stream, dtype, &[rows, 4096]));
    let mut o = zeros(stream, dtype, &[rows, 4096]);
    let seconds = best(|| {
        let (o, q) = (o.view_mut(), q.view());
        ops::self_attention(stream, o, q, pool.view(), &batch, None, 32, 128, 0.0884)
    });
    let bytes = (2 * kv_len * 4096 * dtype.size() + 2 * q.bytes()) as f64;
    let name = format!("self_attention {dtype} {rows} of {kv_len}");
    report(stream, name, seconds, 4.0 * batch.pairs() as f64 * 4096.0, bytes);
}

fn row_kernels(stream: &Stream, dtype: DType) {
    let (x, w) = (filled(stream, dtype, &[257, 4096]), filled(stream, dtype, &[4096]));
    let mut y = zeros(stream, dtype, &[257, 4096]);
    let cells = 257.0 * 4096.0;
    let bytes = 2.0 * cells * dtype.size() as f64;
    let bias = Some(w.view());
    let t = best(|| ops::layernorm(stream, y.view_mut(), x.view(), w.view(), bias, 1e-5));
    report(stream, format!("layernorm {dtype} (257, 4096)"), t, 8.0 * cells, bytes);
    let t = best(|| ops::rmsnorm(stream, y.view_mut(), x.view(), w.view(), 1e-6));
    report(stream, format!("rmsnorm {dtype} (257, 4096)"), t, 4.0 * cells, bytes);
    let x = filled(stream, dtype, &[257, 8192]);
    let t = best(|| ops::swiglu(stream, y.view_mut(), x.view()));
    report(stream, format!("swiglu {dtype} (257, 4096)"), t, 6.0 * cells, 1.5 * bytes);
}

fn main() {
    let threads = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(1);
    let best = Isa::detect();
    for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512Bf16].into_iter().filter(|i| *i <= best) {
        let stream = Stream::new(Host { pool: Pool::new(threads), isa });
        for dtype in [DType::F32, DType::BF16] {
            vision(&stream, dtype);
            language(&stream, dtype, 512, 512);
            language(&stream, dtype, 512, 1);
            language(&stream, dtype, 2048, 1);
            row_kernels(&stream, dtype);
        }
    }
}

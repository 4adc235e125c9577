use crate::judge::{for_every_type, judge, message, normals, rounded, scaled, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops;
use medflamingo::tensor::Tensor;

pub struct Case {
    pub why: &'static str,
    pub rows: usize,
    pub cols: usize,
    pub spread: f32,
    pub atol: f64,
}

pub fn cases() -> Vec<Case> {
    vec![
        Case { why: "smallest", rows: 1, cols: 1, spread: 1.0, atol: 2e-6 },
        Case { why: "ragged", rows: 5, cols: 77, spread: 1.0, atol: 2e-6 },
        Case { why: "llama", rows: 3, cols: 4096, spread: 1.0, atol: 2e-6 },
        Case { why: "many_rows", rows: 130, cols: 256, spread: 1.0, atol: 2e-6 },
        Case { why: "widest_of_a_warp", rows: 9, cols: 1024, spread: 1.0, atol: 2e-6 },
        Case { why: "too_wide_for_a_warp", rows: 9, cols: 1032, spread: 1.0, atol: 2e-6 },
        Case { why: "eps_matters", rows: 2, cols: 256, spread: 1e-3, atol: 2e-6 },
        Case { why: "large", rows: 2, cols: 256, spread: 2e4, atol: 2e-6 },
        Case { why: "no_rows", rows: 0, cols: 8, spread: 1.0, atol: 2e-6 },
    ]
}

const EPS: f32 = 1e-6;

fn oracle(cols: usize, x: &[f64], w: &[f64]) -> Vec<f64> {
    let mut y = Vec::new();
    for row in x.chunks_exact(cols) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / cols as f64;
        y.extend(row.iter().zip(w).map(|(x, w)| x / (mean + EPS as f64).sqrt() * w));
    }
    y
}

fn check<T: Real>(stream: &Stream, c: &Case) {
    let x = scaled(normals(1, c.rows * c.cols), c.spread);
    let w: Vec<f32> = normals(2, c.cols).into_iter().map(|w| 1.0 + 0.3 * w).collect();
    let want = oracle(c.cols, &rounded::<T>(&x), &rounded::<T>(&w));
    let (x, w) = (tensor::<T>(stream, &x, &[c.rows, c.cols]), tensor::<T>(stream, &w, &[c.cols]));
    let mut y = Tensor::zeros(stream, T::DTYPE, &[c.rows, c.cols]).unwrap();
    ops::rmsnorm(stream, y.view_mut(), x.view(), w.view(), EPS).unwrap();
    judge::<T>(c.why, y.view(), &want, c.atol);
}

#[test]
fn agrees_with_the_oracle() {
    for stream in streams() {
        for case in cases() {
            for_every_type!(check(&stream, &case));
        }
    }
}

/// The normalised value is rounded to T before the weight, as LlamaRMSNorm does; the oracle's
/// tolerance would not notice.
#[test]
fn rounds_before_the_weight() {
    use half::bf16;
    for stream in streams() {
        let x: Vec<bf16> = normals(3, 64).into_iter().map(bf16::from_f32).collect();
        let w: Vec<bf16> = normals(4, 64).into_iter().map(bf16::from_f32).collect();
        let mean = x.iter().map(|x| x.to_f64().powi(2)).sum::<f64>() / 64.0;
        let scale = 1.0 / (mean + EPS as f64).sqrt();
        let want = x
            .iter()
            .zip(&w)
            .map(|(x, w)| bf16::from_f64(bf16::from_f64(x.to_f64() * scale).to_f64() * w.to_f64()));
        let (xs, ws) = (
            Tensor::upload(&stream, &x, &[1, 64]).unwrap(),
            Tensor::upload(&stream, &w, &[64]).unwrap(),
        );
        let mut y = Tensor::zeros(&stream, DType::BF16, &[1, 64]).unwrap();
        ops::rmsnorm(&stream, y.view_mut(), xs.view(), ws.view(), EPS).unwrap();
        let got = y.view().read::<bf16>().unwrap();
        assert!(got.iter().zip(want).filter(|(got, want)| **got != *want).count() <= 1);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(&stream, dtype, shape).unwrap();
    let (mut y, x) = (zeros(DType::F32, &[2, 16]), zeros(DType::F32, &[2, 16]));
    let w = zeros(DType::F32, &[8]);
    let e = message(ops::rmsnorm(&stream, y.view_mut(), x.view(), w.view(), EPS));
    assert_eq!(e, "rmsnorm: w: expected (16), found (8)");
    let wide = zeros(DType::F32, &[2, 32]);
    let part = wide.view().block(0..2, 0..16).unwrap();
    let e = message(ops::rmsnorm(&stream, y.view_mut(), part, part, EPS));
    assert_eq!(e, "rmsnorm: x: expected dense rows of 16, found a row stride of 32");
    let mut half = zeros(DType::BF16, &[2, 16]);
    let e = message(ops::rmsnorm(&stream, half.view_mut(), x.view(), w.view(), EPS));
    assert_eq!(e, "rmsnorm: y: expected f32, found bf16");
}

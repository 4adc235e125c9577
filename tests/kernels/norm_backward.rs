use crate::judge::{for_every_type, judge, message, normals, rounded, scaled, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, NormParts, Out};
use medflamingo::tensor::Tensor;

pub struct Case {
    pub why: &'static str,
    pub rows: usize,
    pub cols: usize,
    pub parts: usize,
    pub mean: f32,
    pub out: Out,
}

pub fn cases() -> Vec<Case> {
    let case =
        |why, rows, cols, parts| Case { why, rows, cols, parts, mean: 0.0, out: Out::Overwrite };
    vec![
        case("smallest", 1, 1, 1),
        case("ragged", 5, 77, 2),
        case("more_parts_than_rows", 2, 16, 5),
        case("vision", 3, 1024, 2),
        case("llama", 2, 4096, 1),
        Case { mean: 20.0, ..case("far_mean", 4, 128, 3) },
        Case { out: Out::Accumulate, ..case("added_to", 4, 96, 3) },
        Case { out: Out::Accumulate, ..case("added_to_ragged", 4, 33, 4) },
    ]
}

const EPS: f32 = 1e-5;

/// What a norm computes: the forward pass of one row.
fn forward(is_centred: bool, x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = if is_centred { x.iter().sum::<f64>() / n } else { 0.0 };
    let scale = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + EPS as f64).sqrt();
    (0..x.len()).map(|i| (x[i] - mean) * scale * w[i] + b[i]).collect()
}

/// Gradients of sum(dy * forward(x)) by x, w and b: the contract's equation.
struct Gradients {
    dx: Vec<f64>,
    dw: Vec<f64>,
    db: Vec<f64>,
}

fn oracle(is_centred: bool, x: &[f64], w: &[f64], dy: &[f64]) -> Gradients {
    let n = x.len() as f64;
    let mean = if is_centred { x.iter().sum::<f64>() / n } else { 0.0 };
    let r = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + EPS as f64).sqrt();
    let h: Vec<f64> = x.iter().map(|x| (x - mean) * r).collect();
    let g: Vec<f64> = dy.iter().zip(w).map(|(d, w)| d * w).collect();
    let mean_g = if is_centred { g.iter().sum::<f64>() / n } else { 0.0 };
    let mean_gh = g.iter().zip(&h).map(|(g, h)| g * h).sum::<f64>() / n;
    Gradients {
        dx: (0..x.len()).map(|i| r * (g[i] - mean_g - h[i] * mean_gh)).collect(),
        dw: dy.iter().zip(&h).map(|(d, h)| d * h).collect(),
        db: dy.to_vec(),
    }
}

fn check<T: Real>(stream: &Stream, c: &Case, is_centred: bool) {
    let (rows, cols) = (c.rows, c.cols);
    let x: Vec<f32> = normals(1, rows * cols).into_iter().map(|x| x + c.mean).collect();
    let w: Vec<f32> = normals(2, cols).into_iter().map(|w| 1.0 + 0.3 * w).collect();
    let (dy, old) = (normals(3, rows * cols), scaled(normals(4, rows * cols), 0.5));
    let [x64, dy64, old64] = [&x, &dy, &old].map(|v| rounded::<T>(v));
    let w64 = rounded::<T>(&w);
    let mut want = Vec::new();
    let (mut dw, mut db) = (vec![0f64; c.parts * cols], vec![0f64; c.parts * cols]);
    for part in 0..c.parts {
        let part_rows = rows.div_ceil(c.parts);
        for r in part * part_rows..rows.min((part + 1) * part_rows) {
            let row = r * cols..(r + 1) * cols;
            let of = oracle(is_centred, &x64[row.clone()], &w64, &dy64[row]);
            want.extend(of.dx);
            for i in 0..cols {
                dw[part * cols + i] += of.dw[i];
                db[part * cols + i] += of.db[i];
            }
        }
    }
    if c.out == Out::Accumulate {
        want.iter_mut().zip(old64).for_each(|(d, old)| *d += old);
    }
    let [x, dy] = [&x, &dy].map(|v| tensor::<T>(stream, v, &[rows, cols]));
    let (mut dx, w) = (tensor::<T>(stream, &old, &[rows, cols]), tensor::<T>(stream, &w, &[cols]));
    let sums = || Tensor::zeros(stream, DType::F32, &[c.parts, cols]).unwrap();
    let (mut got_dw, mut got_db) = (sums(), sums());
    let (out, dx_view, dy, x, w) = (c.out, dx.view_mut(), dy.view(), x.view(), w.view());
    let wanted = Some(got_dw.view_mut());
    if is_centred {
        let parts = NormParts { dw: wanted, db: Some(got_db.view_mut()) };
        ops::layernorm_backward(stream, dx_view, out, dy, x, w, EPS, parts).unwrap();
        judge::<f32>(c.why, got_db.view(), &db, 1e-5);
    } else {
        ops::rmsnorm_backward(stream, dx_view, out, dy, x, w, EPS, wanted).unwrap();
    }
    // Sums of `cols` products in f32; far from 0, the centred values have lost digits.
    let atol = 1e-5 * f64::from(1.0 + c.mean.abs());
    judge::<T>(c.why, dx.view(), &want, atol);
    judge::<f32>(c.why, got_dw.view(), &dw, atol);
}

#[test]
fn agrees_with_the_oracle() {
    for stream in streams() {
        for case in cases() {
            for is_centred in [true, false] {
                for_every_type!(check(&stream, &case, is_centred));
            }
        }
    }
}

/// The oracle itself, against differences of the forward pass.
#[test]
fn the_oracle_is_the_derivative() {
    let wide = |seed| normals(seed, 9).into_iter().map(f64::from).collect::<Vec<_>>();
    let (x, w, b, dy) = (wide(1), wide(2), wide(3), wide(4));
    for is_centred in [true, false] {
        let loss = |x: &[f64], w: &[f64], b: &[f64]| -> f64 {
            forward(is_centred, x, w, b).iter().zip(&dy).map(|(y, d)| y * d).sum()
        };
        let of = oracle(is_centred, &x, &w, &dy);
        let slope = |v: &[f64], i: usize, f: &dyn Fn(&[f64]) -> f64| {
            let shifted = |by: f64| {
                let mut v = v.to_vec();
                v[i] += by;
                f(&v)
            };
            (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        };
        for i in 0..9 {
            let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-8, "{i}: {a} {b}");
            close(of.dx[i], slope(&x, i, &|x| loss(x, &w, &b)));
            close(of.dw[i], slope(&w, i, &|w| loss(&x, w, &b)));
            close(of.db[i], slope(&b, i, &|b| loss(&x, &w, b)));
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(&stream, dtype, shape).unwrap();
    let (mut dx, dy, x) =
        (zeros(DType::F32, &[2, 16]), zeros(DType::F32, &[2, 16]), zeros(DType::F32, &[2, 16]));
    let (w, mut dw) = (zeros(DType::F32, &[16]), zeros(DType::BF16, &[2, 16]));
    let (dw, dx) = (Some(dw.view_mut()), dx.view_mut());
    let (dy, x, w) = (dy.view(), x.view(), w.view());
    let e = message(ops::rmsnorm_backward(&stream, dx, Out::Overwrite, dy, x, w, EPS, dw));
    assert_eq!(e, "norm_backward: dw: expected f32, found bf16");
}

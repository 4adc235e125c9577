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
    /// Of x, elements; in place if it is not `cols`.
    pub stride: usize,
    pub has_bias: bool,
    /// x = mean + spread * normal.
    pub mean: f32,
    pub spread: f32,
    pub atol: f64,
}

pub fn cases() -> Vec<Case> {
    let plain = |why, rows, cols, has_bias| Case {
        why,
        rows,
        cols,
        stride: cols,
        has_bias,
        mean: 0.0,
        spread: 1.0,
        atol: 4e-6,
    };
    vec![
        plain("smallest", 1, 1, true),
        plain("ragged", 3, 37, true),
        plain("vision", 257, 1024, true),
        plain("mpt_1b_without_bias", 5, 2048, false),
        plain("redpajama", 4, 2560, true),
        plain("widest", 2, 4096, true),
        Case { mean: 1000.0, atol: 4e-4, ..plain("far_mean", 3, 1024, true) },
        Case { spread: 0.0, mean: 3.0, ..plain("constant_row", 2, 64, true) },
        Case { spread: 1e-4, atol: 1e-5, ..plain("eps_matters", 2, 512, true) },
        Case { spread: 1e4, ..plain("large", 2, 512, true) },
        Case { stride: 6144, ..plain("query_norm_in_place", 3, 2048, false) },
        plain("no_rows", 0, 8, true),
    ]
}

const EPS: f32 = 1e-5;

struct Inputs {
    x: Vec<f32>,
    w: Vec<f32>,
    b: Vec<f32>,
}

fn inputs(c: &Case) -> Inputs {
    let x = normals(1, c.rows * c.stride);
    Inputs {
        x: x.into_iter().map(|x| c.mean + c.spread * x).collect(),
        w: normals(2, c.cols).into_iter().map(|w| 1.0 + 0.3 * w).collect(),
        b: scaled(normals(3, c.cols), 0.5),
    }
}

fn oracle<T: Real>(c: &Case, i: &Inputs) -> Vec<f64> {
    let (x, w, b) = (rounded::<T>(&i.x), rounded::<T>(&i.w), rounded::<T>(&i.b));
    let mut y = Vec::new();
    for row in x.chunks_exact(c.stride) {
        let row = &row[..c.cols];
        let n = c.cols as f64;
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        for (j, x) in row.iter().enumerate() {
            let bias = if c.has_bias { b[j] } else { 0.0 };
            y.push((x - mean) / (variance + EPS as f64).sqrt() * w[j] + bias);
        }
    }
    y
}

fn check<T: Real>(stream: &Stream, c: &Case) {
    let i = inputs(c);
    let want = oracle::<T>(c, &i);
    let (w, b) = (tensor::<T>(stream, &i.w, &[c.cols]), tensor::<T>(stream, &i.b, &[c.cols]));
    let bias = c.has_bias.then(|| b.view());
    let mut x = tensor::<T>(stream, &i.x, &[c.rows, c.stride]);
    if c.stride == c.cols {
        let mut y = Tensor::zeros(stream, T::DTYPE, &[c.rows, c.cols]).unwrap();
        ops::layernorm(stream, y.view_mut(), x.view(), w.view(), bias, EPS).unwrap();
        judge::<T>(c.why, y.view(), &want, c.atol);
    }
    let part = x.view_mut().block(0..c.rows, 0..c.cols).unwrap();
    ops::layernorm_in_place(stream, part, w.view(), bias, EPS).unwrap();
    judge::<T>(c.why, x.view().block(0..c.rows, 0..c.cols).unwrap(), &want, c.atol);
    let rest = x.view().block(0..c.rows, c.cols..c.stride).unwrap().to_f32().unwrap();
    let given = rounded::<T>(&i.x);
    let before = given.chunks_exact(c.stride).flat_map(|row| &row[c.cols..]);
    assert!(rest.iter().zip(before).all(|(a, b)| *a as f64 == *b), "{}: gaps changed", c.why);
}

#[test]
fn agrees_with_the_oracle() {
    for stream in streams() {
        for case in cases() {
            for_every_type!(check(&stream, &case));
        }
    }
}

#[test]
fn nan_poisons_its_row_only() {
    for stream in streams() {
        let mut x = normals(5, 2 * 96);
        x[7] = f32::NAN;
        let mut x = tensor::<f32>(&stream, &x, &[2, 96]);
        let w = tensor::<f32>(&stream, &[1.0; 96], &[96]);
        ops::layernorm_in_place(&stream, x.view_mut(), w.view(), None, EPS).unwrap();
        let y = x.view().to_f32().unwrap();
        assert!(y[..96].iter().all(|y| y.is_nan()) && y[96..].iter().all(|y| y.is_finite()));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(&stream, dtype, shape).unwrap();
    let (mut y, x) = (zeros(DType::F32, &[2, 4096]), zeros(DType::F32, &[2, 4096]));
    let (narrow, w) = (zeros(DType::F32, &[1024]), zeros(DType::F32, &[4096]));
    let half = zeros(DType::F16, &[4096]);
    let mut run = |w: &Tensor, b: Option<&Tensor>| {
        let b = b.map(Tensor::view);
        message(ops::layernorm(&stream, y.view_mut(), x.view(), w.view(), b, EPS))
    };
    assert_eq!(run(&narrow, None), "layernorm: w: expected (4096), found (1024)");
    assert_eq!(run(&w, Some(&narrow)), "layernorm: b: expected (4096), found (1024)");
    assert_eq!(run(&half, None), "layernorm: w: expected f32, found f16");
    let mut short = zeros(DType::F32, &[1, 4096]);
    let e = message(ops::layernorm(&stream, short.view_mut(), x.view(), w.view(), None, EPS));
    assert_eq!(e, "layernorm: y: expected (2, 4096), found (1, 4096)");
    let (mut y, x) = (zeros(DType::I32, &[2, 8]), zeros(DType::I32, &[2, 8]));
    let w = zeros(DType::I32, &[8]);
    let e = message(ops::layernorm(&stream, y.view_mut(), x.view(), w.view(), None, EPS));
    assert_eq!(e, "layernorm: expected f32, bf16, f16, found i32");
}

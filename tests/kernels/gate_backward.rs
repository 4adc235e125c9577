use crate::judge::{for_every_type, judge, message, normals, rounded, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Out};
use medflamingo::tensor::Tensor;

pub struct Case {
    pub why: &'static str,
    pub rows: usize,
    pub cols: usize,
    pub parts: usize,
    pub gate: f32,
}

pub fn cases() -> Vec<Case> {
    let case = |why, rows, cols, parts| Case { why, rows, cols, parts, gate: 0.75 };
    vec![
        case("smallest", 1, 1, 1),
        case("ragged", 7, 77, 3),
        case("packed", 40, 512, 7),
        case("more_parts_than_cells", 2, 8, 5),
        case("no_rows", 0, 8, 2),
        Case { gate: 0.0, ..case("as_it_begins", 5, 64, 2) },
        Case { gate: -12.0, ..case("saturated", 5, 33, 2) },
    ]
}

/// Gradients of sum(dy (h W^T) tanh(gate)) by h, given d = dy W, and by the gate.
fn oracle(d: &[f64], h: &[f64], gate: f64) -> (Vec<f64>, f64) {
    let product: f64 = d.iter().zip(h).map(|(d, h)| d * h).sum();
    let factor = gate.tanh();
    (d.iter().map(|d| d * factor).collect(), product * (1.0 - factor * factor))
}

fn check<T: Real>(stream: &Stream, c: &Case) {
    let shape = [c.rows, c.cols];
    let (d, h) = (normals(1, c.rows * c.cols), normals(2, c.rows * c.cols));
    let gate = rounded::<T>(&[c.gate])[0];
    let (want, dgate) = oracle(&rounded::<T>(&d), &rounded::<T>(&h), gate);
    let (mut d, h) = (tensor::<T>(stream, &d, &shape), tensor::<T>(stream, &h, &shape));
    let gate = tensor::<T>(stream, &[c.gate], &[1]);
    let mut parts = Tensor::zeros(stream, DType::F32, &[c.parts, 1]).unwrap();
    ops::gate_backward(stream, d.view_mut(), parts.view_mut(), h.view(), gate.view()).unwrap();
    // tanh in f32.
    judge::<T>(c.why, d.view(), &want, 1e-6);
    let mut sum = Tensor::zeros(stream, DType::F32, &[1, 1]).unwrap();
    ops::column_sums(stream, sum.view_mut(), Out::Overwrite, parts.view()).unwrap();
    // 1 - tanh^2 of what is rounded to 1 leaves what tanh was rounded by.
    let atol = 1e-6 * (c.rows * c.cols) as f64;
    judge::<f32>(c.why, sum.view(), &[dgate], atol);
}

#[test]
fn agrees_with_the_oracle() {
    for stream in streams() {
        for case in cases() {
            for_every_type!(check(&stream, &case));
        }
    }
}

/// The oracle itself, against differences of x + tanh(gate) h W^T.
#[test]
fn the_oracle_is_the_derivative() {
    let wide = |seed, n| normals(seed, n).into_iter().map(f64::from).collect::<Vec<_>>();
    let (inner, width) = (5, 4);
    let (h, w, dy) = (wide(1, inner), wide(2, width * inner), wide(3, width));
    let loss = |h: &[f64], gate: f64| -> f64 {
        let row = |i: usize| (0..inner).map(|j| h[j] * w[i * inner + j]).sum::<f64>();
        (0..width).map(|i| dy[i] * gate.tanh() * row(i)).sum()
    };
    let column = |j: usize| (0..width).map(|i| dy[i] * w[i * inner + j]).sum::<f64>();
    let d: Vec<f64> = (0..inner).map(column).collect();
    for gate in [0.0, 0.6, -1.5] {
        let (dh, dgate) = oracle(&d, &h, gate);
        let slope = (loss(&h, gate + 1e-5) - loss(&h, gate - 1e-5)) / 2e-5;
        assert!((dgate - slope).abs() < 1e-8, "{gate}: {dgate} {slope}");
        for j in 0..inner {
            let shifted = |by: f64| {
                let mut h = h.clone();
                h[j] += by;
                loss(&h, gate)
            };
            let slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            assert!((dh[j] - slope).abs() < 1e-8, "{gate} {j}");
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(&stream, dtype, shape).unwrap();
    let (mut d, h, gate) =
        (zeros(DType::F16, &[2, 8]), zeros(DType::F16, &[2, 8]), zeros(DType::F16, &[1]));
    let mut parts = zeros(DType::F16, &[4]);
    let e =
        message(ops::gate_backward(&stream, d.view_mut(), parts.view_mut(), h.view(), gate.view()));
    assert_eq!(e, "gate_backward: parts: expected f32, found f16");
}

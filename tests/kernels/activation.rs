use crate::gemm::erf;
use crate::judge::{for_every_type, judge, message, normals, rounded, scaled, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Activation};
use medflamingo::tensor::Tensor;

pub struct Case {
    pub why: &'static str,
    pub rows: usize,
    pub cols: usize,
    pub spread: f32,
}

pub fn cases() -> Vec<Case> {
    vec![
        Case { why: "smallest", rows: 1, cols: 1, spread: 1.0 },
        Case { why: "ragged", rows: 3, cols: 45, spread: 1.0 },
        Case { why: "llama", rows: 2, cols: 11008, spread: 1.0 },
        Case { why: "saturated", rows: 2, cols: 64, spread: 60.0 },
        Case { why: "no_rows", rows: 0, cols: 8, spread: 1.0 },
    ]
}

fn oracle(cols: usize, x: &[f64]) -> Vec<f64> {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    x.chunks_exact(2 * cols)
        .flat_map(|row| (0..cols).map(|j| silu(row[j]) * row[cols + j]).collect::<Vec<_>>())
        .collect()
}

fn check<T: Real>(stream: &Stream, c: &Case) {
    let x = scaled(normals(1, c.rows * 2 * c.cols), c.spread);
    let want = oracle(c.cols, &rounded::<T>(&x));
    let x = tensor::<T>(stream, &x, &[c.rows, 2 * c.cols]);
    let mut y = Tensor::zeros(stream, T::DTYPE, &[c.rows, c.cols]).unwrap();
    ops::swiglu(stream, y.view_mut(), x.view()).unwrap();
    // exp and a division in f32, a few roundings of the result.
    let atol = 1e-6 * want.iter().fold(0f64, |m, y| m.max(y.abs()));
    judge::<T>(c.why, y.view(), &want, atol);
}

#[test]
fn agrees_with_the_oracle() {
    for stream in streams() {
        for case in cases() {
            for_every_type!(check(&stream, &case));
        }
    }
}

/// dgate and dup of one cell.
fn gradients(dy: f64, gate: f64, up: f64) -> [f64; 2] {
    let s = 1.0 / (1.0 + (-gate).exp());
    [dy * up * s * (1.0 + gate * (1.0 - s)), dy * gate * s]
}

fn check_backward<T: Real>(stream: &Stream, c: &Case) {
    let x = scaled(normals(1, c.rows * 2 * c.cols), c.spread);
    let dy = normals(2, c.rows * c.cols);
    let (x64, dy64) = (rounded::<T>(&x), rounded::<T>(&dy));
    let mut want = vec![0f64; x.len()];
    for (at, dy) in dy64.iter().enumerate() {
        let gate = at / c.cols * 2 * c.cols + at % c.cols;
        let up = gate + c.cols;
        [want[gate], want[up]] = gradients(*dy, x64[gate], x64[up]);
    }
    let (x, dy) = (
        tensor::<T>(stream, &x, &[c.rows, 2 * c.cols]),
        tensor::<T>(stream, &dy, &[c.rows, c.cols]),
    );
    let mut dx = Tensor::zeros(stream, T::DTYPE, &[c.rows, 2 * c.cols]).unwrap();
    ops::swiglu_backward(stream, dx.view_mut(), dy.view(), x.view()).unwrap();
    let atol = 1e-6 * want.iter().fold(0f64, |m, y| m.max(y.abs()));
    judge::<T>(c.why, dx.view(), &want, atol);
}

#[test]
fn gradients_agree_with_the_oracle() {
    for stream in streams() {
        for case in cases() {
            for_every_type!(check_backward(&stream, &case));
        }
    }
    let y = |gate: f64, up: f64| gate / (1.0 + (-gate).exp()) * up;
    for (gate, up) in [(0.3, -1.2), (-4.0, 0.5), (7.0, 2.0)] {
        let [dgate, dup] = gradients(0.7, gate, up);
        let slope = |f: &dyn Fn(f64) -> f64| 0.7 * (f(1e-5) - f(-1e-5)) / 2e-5;
        assert!((dgate - slope(&|by| y(gate + by, up))).abs() < 1e-9);
        assert!((dup - slope(&|by| y(gate, up + by))).abs() < 1e-9);
    }
}

#[test]
fn ends_of_the_range_have_their_limits() {
    for stream in streams() {
        let gates = [f32::NAN, 1e30, -1e30, -100.0, -89.0, 0.0, f32::INFINITY];
        let x: Vec<f32> = gates.into_iter().chain([1.0; 7]).collect();
        let x = tensor::<f32>(&stream, &x, &[1, 14]);
        let mut y = Tensor::zeros(&stream, DType::F32, &[1, 7]).unwrap();
        ops::swiglu(&stream, y.view_mut(), x.view()).unwrap();
        let y = y.view().to_f32().unwrap();
        assert!(y[0].is_nan() && y[1] == 1e30 && y[6] == f32::INFINITY, "{y:?}");
        assert!(y[2..6].iter().all(|y| y.abs() < 1e-30), "{y:?}");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let mut y = Tensor::zeros(&stream, DType::F32, &[2, 8]).unwrap();
    let x = Tensor::zeros(&stream, DType::F32, &[2, 8]).unwrap();
    let e = message(ops::swiglu(&stream, y.view_mut(), x.view()));
    assert_eq!(e, "swiglu: x: expected (2, 16), found (2, 8)");
    let x = Tensor::zeros(&stream, DType::F16, &[2, 16]).unwrap();
    let e = message(ops::swiglu(&stream, y.view_mut(), x.view()));
    assert_eq!(e, "swiglu: x: expected f32, found f16");
}

const ALL: [Activation; 3] = [Activation::Identity, Activation::Gelu, Activation::QuickGelu];

/// f and its derivative.
fn f(of: Activation, x: f64) -> [f64; 2] {
    let quick = 1.0 / (1.0 + (-1.702 * x).exp());
    let cdf = 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2));
    let bell = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    match of {
        Activation::Identity => [x, 1.0],
        Activation::Gelu => [x * cdf, cdf + x * bell],
        Activation::QuickGelu => [x * quick, quick * (1.0 + 1.702 * x * (1.0 - quick))],
    }
}

fn check_activation<T: Real>(stream: &Stream, c: &Case, of: Activation) {
    let shape = [c.rows, c.cols];
    let x = scaled(normals(1, c.rows * c.cols), c.spread);
    let dy = normals(2, c.rows * c.cols);
    let both: Vec<[f64; 2]> = rounded::<T>(&x).into_iter().map(|x| f(of, x)).collect();
    let want: Vec<f64> = both.iter().map(|both| both[0]).collect();
    let dx64: Vec<f64> = both.iter().zip(rounded::<T>(&dy)).map(|(f, dy)| f[1] * dy).collect();
    let (x, dy) = (tensor::<T>(stream, &x, &shape), tensor::<T>(stream, &dy, &shape));
    let mut y = Tensor::zeros(stream, T::DTYPE, &shape).unwrap();
    ops::activation(stream, y.view_mut(), x.view(), of).unwrap();
    // The error function, or exp and a division, in f32.
    let atol = 1e-6 * f64::from(1.0 + c.spread);
    judge::<T>(c.why, y.view(), &want, atol);
    ops::activation_backward(stream, y.view_mut(), dy.view(), x.view(), of).unwrap();
    judge::<T>(c.why, y.view(), &dx64, 1e-6);
}

#[test]
fn activations_and_their_gradients_agree_with_the_oracle() {
    for stream in streams() {
        for case in cases() {
            for of in ALL {
                for_every_type!(check_activation(&stream, &case, of));
            }
        }
    }
    for of in ALL {
        for x in [-6.0, -1.3, -1e-3, 0.0, 0.4, 2.0, 7.0] {
            let slope = (f(of, x + 1e-5)[0] - f(of, x - 1e-5)[0]) / 2e-5;
            assert!((f(of, x)[1] - slope).abs() < 1e-8, "{of:?} {x}");
        }
    }
}

#[test]
fn slopes_have_their_limits() {
    for stream in streams() {
        let x = [f32::INFINITY, 1e30, f32::NEG_INFINITY, -1e30, f32::NAN];
        let x = tensor::<f32>(&stream, &x, &[1, 5]);
        let dy = tensor::<f32>(&stream, &[1.0; 5], &[1, 5]);
        for of in [Activation::Gelu, Activation::QuickGelu] {
            let mut dx = Tensor::zeros(&stream, DType::F32, &[1, 5]).unwrap();
            ops::activation_backward(&stream, dx.view_mut(), dy.view(), x.view(), of).unwrap();
            let dx = dx.view().to_f32().unwrap();
            assert!(dx[..4] == [1.0, 1.0, 0.0, 0.0] && dx[4].is_nan(), "{of:?} {dx:?}");
        }
    }
}

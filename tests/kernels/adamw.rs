use crate::judge::{for_every_type, judge, message, normals, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, AdamwStep};
use medflamingo::tensor::Tensor;

/// The step of bitsandbytes' recorded trajectories.
pub const STEP: AdamwStep =
    AdamwStep { step: 1, lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1, seed: 0 };

/// A parameter of n repeatable numbers, with its master if asked.
pub struct Parameter {
    pub param: Tensor,
    pub master: Option<Tensor>,
}

pub fn parameter<T: Real>(stream: &Stream, n: usize, has_master: bool) -> Parameter {
    let values = normals(1, n);
    let master = has_master.then(|| Tensor::upload(stream, &values, &[n]).unwrap());
    Parameter { param: tensor::<T>(stream, &values, &[n]), master }
}

/// The equation of the contract in f64.
pub fn oracle(step: &AdamwStep, grad: &[f32], x: &mut [f64], m: &mut [f64], v: &mut [f64]) {
    let [b1, b2] = step.betas.map(f64::from);
    let power = |b: f64| 1.0 - b.powi(step.step as i32);
    let (c1, c2) = (power(b1), power(b2).sqrt());
    let (lr, decay) = (f64::from(step.lr), f64::from(step.lr) * f64::from(step.weight_decay));
    for (i, g) in grad.iter().map(|g| f64::from(*g)).enumerate() {
        m[i] = b1 * m[i] + (1.0 - b1) * g;
        v[i] = b2 * v[i] + (1.0 - b2) * g * g;
        x[i] -= lr * c2 / c1 * m[i] / (v[i].sqrt() + f64::from(step.eps) * c2);
        x[i] *= 1.0 - decay;
    }
}

pub struct Case {
    pub why: &'static str,
    pub n: usize,
    pub has_master: bool,
}

pub fn cases() -> Vec<Case> {
    vec![
        Case { why: "smallest", n: 1, has_master: false },
        Case { why: "ragged", n: 2048 + 13, has_master: false },
        Case { why: "master", n: 300, has_master: true },
        Case { why: "nothing", n: 0, has_master: false },
    ]
}

fn check<T: Real>(stream: &Stream, c: &Case) -> Vec<u32> {
    let n = c.n;
    let Parameter { mut param, mut master } = parameter::<T>(stream, n, c.has_master);
    let start = master.as_ref().unwrap_or(&param).view().to_f32().unwrap();
    let mut x: Vec<f64> = start.into_iter().map(f64::from).collect();
    let (mut m, mut v) = (vec![0f64; n], vec![0f64; n]);
    let zeros = || Tensor::zeros(stream, DType::F32, &[n]).unwrap();
    let (mut first, mut second) = (zeros(), zeros());
    let rounds = T::DTYPE != DType::F32 && !c.has_master;
    for t in 1..=3 {
        let grad = normals(10 + t, n);
        let step = AdamwStep { step: t, ..STEP };
        oracle(&step, &grad, &mut x, &mut m, &mut v);
        let grad = Tensor::upload(stream, &grad, &[n]).unwrap();
        let kept = master.as_mut().map(Tensor::view_mut);
        let (param, m, v) = (param.view_mut(), first.view_mut(), second.view_mut());
        ops::adamw(stream, param, kept, m, v, grad.view(), None, &step).unwrap();
        if rounds {
            break; // later steps would start from the rounded parameter
        }
    }
    // The update's own size bounds what f32 moments do to it; T rounds twice.
    let kept = master.as_ref().map_or(param.view(), Tensor::view);
    match c.has_master {
        true => judge::<f32>(c.why, kept, &x, 1e-6),
        false => judge::<T>(c.why, kept, &x, 1e-6),
    }
    judge::<f32>(c.why, first.view(), &m, 1e-7);
    judge::<f32>(c.why, second.view(), &v, 1e-7);
    param.view().to_f32().unwrap().into_iter().map(f32::to_bits).collect()
}

fn same<T: Real>(streams: &[Stream], c: &Case) {
    let want = check::<T>(&streams[0], c);
    for stream in &streams[1..] {
        assert!(check::<T>(stream, c) == want, "{} {}", c.why, T::DTYPE);
    }
}

#[test]
fn agrees_with_the_oracle_and_every_device_with_the_others() {
    let streams = streams();
    for case in cases() {
        for_every_type!(same(&streams, &case));
    }
}

/// The mean of many stochastic roundings is the number itself; the nearest is not.
#[test]
fn stochastic_rounding_has_no_bias() {
    let stream = Stream::host(1);
    let n = 20_000;
    // The step is far below half a unit in the last place of bf16 at 1.
    let step = |seed| AdamwStep { lr: 3e-4, weight_decay: 0.0, seed, ..STEP };
    let mean = |seed| {
        let mut param = tensor::<half::bf16>(&stream, &vec![1.0; n], &[n]);
        let zeros = || Tensor::zeros(&stream, DType::F32, &[n]).unwrap();
        let (mut m, mut v) = (zeros(), zeros());
        let grad = Tensor::upload(&stream, &vec![1f32; n], &[n]).unwrap();
        let (p, m, v) = (param.view_mut(), m.view_mut(), v.view_mut());
        ops::adamw(&stream, p, None, m, v, grad.view(), None, &step(seed)).unwrap();
        param.view().to_f32().unwrap().iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64
    };
    assert_eq!(mean(0), 1.0);
    let stochastic = mean(9);
    assert!((stochastic - (1.0 - 3e-4)).abs() < 3e-5, "{stochastic}");
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let zeros = |n: usize| Tensor::zeros(&stream, DType::F32, &[n]).unwrap();
    let (mut p, mut m, mut v, g) = (zeros(8), zeros(8), zeros(9), zeros(8));
    let (p, m, v, g) = (p.view_mut(), m.view_mut(), v.view_mut(), g.view());
    let e = message(ops::adamw(&stream, p, None, m, v, g, None, &STEP));
    assert_eq!(e, "adamw: v: expected 8 elements, found (9)");
}

/// The kernels read 16 bytes at a time and have no other path.
#[test]
fn an_unaligned_tensor_is_refused() {
    let stream = Stream::host(1);
    let zeros = |n: usize| Tensor::zeros(&stream, DType::F32, &[1, n]).unwrap();
    let (mut p, mut m, mut v, g) = (zeros(8), zeros(8), zeros(8), zeros(9));
    let (p, m, v) = (p.view_mut(), m.view_mut(), v.view_mut());
    let g = g.view().block(0..1, 1..9).unwrap();
    let e = message(ops::adamw(&stream, p, None, m, v, g, None, &STEP));
    let found = "one 4 bytes beyond such a multiple";
    assert_eq!(e, format!("adamw: grad: expected a multiple of 16 as address, found {found}"));
}

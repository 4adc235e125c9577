use crate::adamw::{Parameter, STEP, parameter};
use crate::judge::{for_every_type, message, normals, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, AdamwStep, Codebooks, Moments8, SecondMomentMap};
use medflamingo::tensor::{Element, Tensor};
use safetensors::SafeTensors;

pub struct Case {
    pub why: &'static str,
    pub n: usize,
    pub block: usize,
    pub has_master: bool,
    pub seed: u64,
    /// Gradients of every exponent, from block to block and within one, and zeros of both signs.
    pub is_wide: bool,
}

pub fn cases() -> Vec<Case> {
    let case = |why, n, block| Case { why, n, block, has_master: false, seed: 0, is_wide: false };
    vec![
        case("smallest", 1, 256),
        case("ragged_lane", 2048 + 256 + 3, 256),
        case("ragged_block", 2048 + 700, 2048),
        case("whole_groups", 4096, 2048),
        case("nothing", 0, 256),
        Case { has_master: true, ..case("master", 520, 256) },
        Case { has_master: true, ..case("master_2048", 2100, 2048) },
        Case { seed: 77, ..case("stochastic", 1000, 256) },
        Case { is_wide: true, ..case("every_exponent", 256 * 80 + 9, 256) },
        Case { is_wide: true, has_master: true, ..case("every_exponent_2048", 2048 * 20, 2048) },
    ]
}

struct State {
    codes: [Tensor; 2],
    absmax: [Tensor; 2],
}

impl State {
    fn new(stream: &Stream, n: usize, block: usize) -> Self {
        let zeros = |dtype, n| Tensor::zeros(stream, dtype, &[n]).unwrap();
        let scales = n.div_ceil(block);
        State {
            codes: [zeros(DType::U8, n), zeros(DType::U8, n)],
            absmax: [zeros(DType::F32, scales), zeros(DType::F32, scales)],
        }
    }

    fn moments(&mut self) -> Moments8<'_> {
        let [code1, code2] = &mut self.codes;
        let [absmax1, absmax2] = &mut self.absmax;
        Moments8 {
            codes: [code1.view_mut(), code2.view_mut()],
            absmax: [absmax1.view_mut(), absmax2.view_mut()],
        }
    }
}

fn read<T: Element>(tensor: &Tensor) -> Vec<T> {
    tensor.view().read().unwrap()
}

/// What a step leaves behind, to the bit.
#[derive(PartialEq, Debug)]
struct Left {
    param: Vec<u32>,
    codes: [Vec<u8>; 2],
    absmax: [Vec<u32>; 2],
}

fn bits(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

/// Those of step t.
fn gradients(c: &Case, t: u64) -> Vec<f32> {
    let mut grad = normals(10 + t, c.n);
    if c.is_wide {
        let chance = normals(99, c.n);
        for (i, g) in grad.iter_mut().enumerate() {
            let of_block = -150 + 7 * ((i / c.block * 13) % 29) as i32;
            let within = if (i / c.block).is_multiple_of(2) { 4.0 } else { 40.0 };
            // Squares stay finite: a NaN's bits are each device's own.
            let exponent = (of_block + (chance[i] * within) as i32).min(60);
            *g = if i % 61 == 7 { 0f32.copysign(*g) } else { *g * 2f32.powi(exponent / 2) };
            *g *= 2f32.powi(exponent - exponent / 2);
        }
    }
    grad
}

fn run<T: Real>(stream: &Stream, c: &Case, map: SecondMomentMap) -> Left {
    let Parameter { mut param, mut master } = parameter::<T>(stream, c.n, c.has_master);
    if c.is_wide {
        // From 0 every bit of a direction is seen, from -0 its sign.
        let zeros = vec![-0.0f32; c.n];
        param = tensor::<T>(stream, &zeros, &[c.n]);
        master = master.map(|_| tensor::<f32>(stream, &zeros, &[c.n]));
    }
    let mut state = State::new(stream, c.n, c.block);
    let books = Codebooks::new(stream, map).unwrap();
    for t in 1..=3 {
        let grad = gradients(c, t);
        let grad = Tensor::upload(stream, &grad, &[c.n]).unwrap();
        let scale = Tensor::upload(stream, &[0.5f32], &[1]).unwrap();
        let step = AdamwStep { step: t, seed: c.seed * t, ..STEP };
        let master = master.as_mut().map(Tensor::view_mut);
        let (grad, scale) = (grad.view(), Some(scale.view()));
        let moments = state.moments();
        ops::adamw8(stream, param.view_mut(), master, moments, grad, scale, &books, c.block, &step)
            .unwrap();
    }
    let kept = master.as_ref().unwrap_or(&param);
    Left {
        param: bits(kept.view().to_f32().unwrap()),
        codes: state.codes.each_ref().map(read),
        absmax: state.absmax.each_ref().map(|a| bits(read(a))),
    }
}

fn check<T: Real>(streams: &[Stream], c: &Case) {
    if c.seed != 0 && T::DTYPE != DType::BF16 {
        return;
    }
    for map in [SecondMomentMap::Dynamic, SecondMomentMap::Bitsandbytes039] {
        let want = run::<T>(&streams[0], c, map);
        for stream in &streams[1..] {
            assert!(run::<T>(stream, c, map) == want, "{} {}", c.why, T::DTYPE);
        }
    }
}

#[test]
fn every_device_leaves_the_same_bits() {
    let streams = streams();
    for case in cases() {
        for_every_type!(check(&streams, &case));
    }
}

/// Ten steps of bitsandbytes' CUDA kernel on slices of one tensor: a usual block, one whose
/// gradients are 0, and a ragged last one; three steps with blocks of 2048.
#[test]
fn follows_the_trajectories_of_bitsandbytes() {
    let bytes = include_bytes!("../golden/adamw8/trajectories.safetensors");
    let recorded = SafeTensors::deserialize(bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let data = recorded.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    for stream in streams() {
        let books = Codebooks::new(&stream, SecondMomentMap::Dynamic).unwrap();
        for block in [256, 2048] {
            let of = |name: &str| format!("block{block}.{name}");
            let start = floats(&of("p0"));
            let n = start.len();
            let mut param = Tensor::upload(&stream, &start, &[n]).unwrap();
            let mut state = State::new(&stream, n, block);
            let (grads, p) = (floats(&of("grads")), floats(&of("p")));
            for (t, (grad, p)) in grads.chunks_exact(n).zip(p.chunks_exact(n)).enumerate() {
                let grad = Tensor::upload(&stream, grad, &[n]).unwrap();
                let step = AdamwStep { step: t as u64 + 1, ..STEP };
                let (param, grad) = (&mut param, grad.view());
                let moments = state.moments();
                ops::adamw8(
                    &stream,
                    param.view_mut(),
                    None,
                    moments,
                    grad,
                    None,
                    &books,
                    block,
                    &step,
                )
                .unwrap();
                let got = read::<f32>(param);
                let most = got.iter().zip(p).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(most <= 2e-7, "block {block}, step {}: parameters {most:e}", t + 1);
                for (i, name) in ["1", "2"].iter().enumerate() {
                    let want = recorded.tensor(&of(&format!("state{name}"))).unwrap().data();
                    let got = read::<u8>(&state.codes[i]);
                    let differ = got
                        .iter()
                        .zip(&want[t * n..])
                        .enumerate()
                        // In a block of zeros any code stands for 0.
                        .filter(|(at, (a, b))| {
                            a != b && !(block == 256 && (256..512).contains(at))
                        });
                    assert_eq!(differ.count(), 0, "block {block}, step {}: codes {name}", t + 1);
                    let got = read::<f32>(&state.absmax[i]);
                    let want = floats(&of(&format!("absmax{name}")));
                    assert_eq!(got, want[t * got.len()..][..got.len()], "step {}", t + 1);
                }
            }
        }
    }
}

/// A gradient that is not finite empties its element's state and leaves the parameter; a scale that
/// is not leaves everything.
#[test]
fn gradients_that_are_not_finite() {
    for stream in streams() {
        let books = Codebooks::new(&stream, SecondMomentMap::Dynamic).unwrap();
        let mut state = State::new(&stream, 300, 256);
        let mut param = Tensor::upload(&stream, &[1.0f32; 300], &[300]).unwrap();
        let mut step = |grad: &[f32], scale: f32, t| {
            let grad = Tensor::upload(&stream, grad, &[300]).unwrap();
            let scale = Tensor::upload(&stream, &[scale], &[1]).unwrap();
            let (param, moments) = (param.view_mut(), state.moments());
            let step = AdamwStep { step: t, weight_decay: 0.0, ..STEP };
            let (grad, scale) = (grad.view(), Some(scale.view()));
            ops::adamw8(&stream, param, None, moments, grad, scale, &books, 256, &step).unwrap();
        };
        let mut grad = normals(5, 300);
        (grad[7], grad[299]) = (f32::NAN, f32::INFINITY);
        step(&grad, 1.0, 1);
        let left = (read::<f32>(&param), read::<u8>(&state.codes[0]), read::<u8>(&state.codes[1]));
        assert_eq!((left.0[7], left.0[299], left.1[7], left.2[299]), (1.0, 1.0, 127, 0));
        assert!(left.0[8] != 1.0 && left.1[8] != 127);
        let mut again = |scale| {
            let grad = Tensor::upload(&stream, &[1.0f32; 300], &[300]).unwrap();
            let scale = Tensor::upload(&stream, &[scale], &[1]).unwrap();
            let (grad, scale) = (grad.view(), Some(scale.view()));
            let step = AdamwStep { step: 2, ..STEP };
            let moments = state.moments();
            let param = param.view_mut();
            ops::adamw8(&stream, param, None, moments, grad, scale, &books, 256, &step).unwrap();
        };
        again(f32::NAN);
        again(f32::INFINITY);
        let now = (read::<f32>(&param), read::<u8>(&state.codes[0]), read::<u8>(&state.codes[1]));
        assert_eq!(now, left);
    }
}

/// Against AdamW in f64 on the same gradients: the error of 8 bits stays a few percent of the way.
#[test]
fn stays_near_exact_adamw() {
    let stream = Stream::host(1);
    let (n, steps) = (4096, 60);
    let books = Codebooks::new(&stream, SecondMomentMap::Dynamic).unwrap();
    let mut state = State::new(&stream, n, 256);
    let mut param = Tensor::upload(&stream, &vec![0.0f32; n], &[n]).unwrap();
    let (mut x, mut m, mut v) = (vec![0f64; n], vec![0f64; n], vec![0f64; n]);
    let mean = normals(3, n);
    for t in 1..=steps {
        let grad: Vec<f32> = normals(100 + t, n).iter().zip(&mean).map(|(g, m)| g + m).collect();
        let step = AdamwStep { step: t, weight_decay: 0.0, ..STEP };
        crate::adamw::oracle(&step, &grad, &mut x, &mut m, &mut v);
        let grad = Tensor::upload(&stream, &grad, &[n]).unwrap();
        let (param, grad, moments) = (param.view_mut(), grad.view(), state.moments());
        ops::adamw8(&stream, param, None, moments, grad, None, &books, 256, &step).unwrap();
    }
    let got = read::<f32>(&param);
    let error: f64 = got.iter().zip(&x).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let way: f64 = x.iter().map(|x| x * x).sum();
    let share = (error / way).sqrt();
    assert!(share < 0.05, "{share}");
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let books = Codebooks::new(&stream, SecondMomentMap::Dynamic).unwrap();
    let mut state = State::new(&stream, 300, 256);
    let mut param = Tensor::zeros(&stream, DType::F32, &[300]).unwrap();
    let grad = Tensor::zeros(&stream, DType::F32, &[300]).unwrap();
    let mut step = |block, grad: &Tensor, step: &AdamwStep| {
        let moments = state.moments();
        let param = param.view_mut();
        let grad = grad.view();
        message(ops::adamw8(&stream, param, None, moments, grad, None, &books, block, step))
    };
    assert_eq!(step(512, &grad, &STEP), "adamw8: block: expected 256 or 2048, found 512");
    let late = AdamwStep { step: 0, ..STEP };
    assert_eq!(step(256, &grad, &late), "adamw8: step: expected 1 or more, found 0");
    let half = Tensor::zeros(&stream, DType::BF16, &[300]).unwrap();
    assert_eq!(step(256, &half, &STEP), "adamw8: grad: expected f32, found bf16");
    let seeded = AdamwStep { seed: 1, ..STEP };
    assert_eq!(
        step(256, &grad, &seeded),
        "adamw8: stochastic rounding: expected bf16 parameters without a master copy, found f32"
    );
    assert_eq!(step(2048, &grad, &STEP), "adamw8: absmax1: expected 1 elements, found (2)");
}

//! `gemm_quantized`: C = residual + tanh(gate) * f(A B^T + bias), B of 8 or 4 bits.

use crate::gemm::erf;
use crate::guarded::Guarded;
use crate::judge::{cards, for_every_type, judge, message, normals, rounded, streams, tensor};
use half::{bf16, f16};
use medflamingo::contracts::{GemmParams, GemmQuantizedParams};
use medflamingo::device::{Chip, Host, Isa, Pool, Stream};
use medflamingo::dtype::Real;
use medflamingo::ops::{
    Activation, Epilogue, GEMM_QUANTIZED, INT4_GROUP, Out, Quantized, Weight, gemm_quantized,
    gemm_shape, linear_swiglu,
};
use medflamingo::tensor::Tensor;
use std::ptr::null_mut;

#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    shape: (usize, usize, usize),
    /// Bias, gate and residual.
    every: bool,
    activation: Activation,
    f32_out: bool,
    mean: f32,
}

const fn case(name: &'static str, m: usize, n: usize, k: usize) -> Case {
    let activation = Activation::Identity;
    Case { name, shape: (m, n, k), every: false, activation, f32_out: false, mean: 0.0 }
}

/// Those whose k is in groups of 128 are for both formats.
fn cases() -> Vec<Case> {
    let (gelu, quick) = (Activation::Gelu, Activation::QuickGelu);
    vec![
        case("smallest", 1, 1, 1),
        case("smallest_group", 1, 1, 128),
        case("nothing_to_do", 0, 5, 128),
        case("no_columns", 3, 0, 128),
        case("ragged", 7, 13, 37),
        case("ragged", 19, 131, 333),
        case("ragged_n", 9, 37, 256),
        case("k_tail_of_16", 5, 33, 272),
        Case { mean: 30.0, ..case("k_tail_of_16_far_mean", 2, 33, 272) },
        case("width_4096", 1, 34, 4096),
        case("width_11008", 2, 17, 11008),
        case("a_tile_and_a_tail_of_16", 17, 64, 80),
        case("several_tiles", 70, 130, 384),
        Case { every: true, ..case("parts_of_k", 66, 131, 1152) },
        case("parts_of_k_with_a_tail", 18, 30, 1040),
        Case { f32_out: true, ..case("logits_of_a_row", 1, 203, 512) },
        Case { mean: 30.0, ..case("far_mean", 3, 30, 512) },
        Case { mean: 30.0, ..case("far_mean", 20, 30, 512) },
        Case { every: true, ..case("zero_k", 3, 17, 0) },
        Case { every: true, ..case("every_part", 4, 45, 640) },
        Case { every: true, activation: gelu, ..case("every_part_gelu", 6, 45, 256) },
        Case { every: true, activation: quick, ..case("every_part_quick_gelu", 40, 70, 128) },
    ]
}

/// What a case multiplies; `values` are B's, exactly.
struct Operands {
    a: Vec<f32>,
    bytes: Vec<u8>,
    scales: Vec<bf16>,
    values: Vec<f64>,
    bias: Vec<f32>,
    residual: Vec<f32>,
}

const GATE: f32 = 0.7;

impl Operands {
    fn new(c: &Case, is_int4: bool) -> Self {
        let (m, n, k) = c.shape;
        let groups = if is_int4 { k / INT4_GROUP } else { 1 };
        let seed = (m * 31 + n * 17 + k) as u64;
        let scale = |x: &f32| bf16::from_f32(x * 0.01);
        let scales: Vec<bf16> = normals(seed + 1, n * groups).iter().map(scale).collect();
        let most = if is_int4 { 8.0 } else { 127.0 };
        let q: Vec<i32> = normals(seed + 2, n * k)
            .iter()
            .map(|x| (x * most / 2.0).round().clamp(-most, most - 1.0) as i32)
            .collect();
        let span = if is_int4 { INT4_GROUP } else { k.max(1) };
        let scale = |i: usize| scales[i / k * groups + i % k / span];
        let values = (0..n * k).map(|i| f64::from(q[i]) * scale(i).to_f64()).collect();
        let bytes = if is_int4 { nibbles(&q) } else { q.iter().map(|q| *q as i8 as u8).collect() };
        Operands {
            a: normals(seed + 3, m * k).iter().map(|x| x + c.mean).collect(),
            bytes,
            scales,
            values,
            bias: normals(seed + 4, n),
            residual: normals(seed + 5, m * n),
        }
    }
}

/// Words of eight: w0 w2 w4 w6 w1 w3 w5 w7 from the lowest nibble.
fn nibbles(q: &[i32]) -> Vec<u8> {
    let order = [0, 2, 4, 6, 1, 3, 5, 7];
    let word = |w: &[i32]| {
        let nibble = |(at, from): (usize, &usize)| ((w[*from] + 8) as u32) << (4 * at);
        order.iter().enumerate().map(nibble).sum::<u32>().to_le_bytes()
    };
    q.chunks_exact(8).flat_map(word).collect()
}

/// C, and what its largest sum may be off by.
fn oracle<T: Real>(c: &Case, o: &Operands) -> (Vec<f64>, f64) {
    let (m, n, k) = c.shape;
    let (a, bias, residual) =
        (rounded::<T>(&o.a), rounded::<T>(&o.bias), rounded::<T>(&o.residual));
    let gate = rounded::<T>(&[GATE])[0];
    let (mut out, mut largest) = (Vec::new(), 0f64);
    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
        let products = || (0..k).map(|l| a[i * k + l] * o.values[j * k + l]);
        largest = largest.max(products().map(f64::abs).sum());
        let mut x: f64 = products().sum();
        x += if c.every { bias[j] } else { 0.0 };
        x = match c.activation {
            Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Activation::Identity => x,
        };
        out.push(if c.every { x * gate.tanh() + residual[i * n + j] } else { x });
    }
    // Terms are added one after the other, by some in four lanes: a random walk of half roundings.
    let roundings = 2.0 + (k as f64).sqrt() / 2.0;
    (out, largest * roundings * f64::from(f32::EPSILON) + 1e-7)
}

fn weights(stream: &Stream, c: &Case, o: &Operands, is_int4: bool) -> (Tensor, Tensor) {
    let (_, n, k) = c.shape;
    let b = match is_int4 {
        true => Tensor::upload(stream, &o.bytes, &[n, k / 2]),
        false => Tensor::upload(stream, bytemuck::cast_slice::<u8, i8>(&o.bytes), &[n, k]),
    };
    let groups = if is_int4 { k / INT4_GROUP } else { 1 };
    (b.unwrap(), Tensor::upload(stream, &o.scales, &[n, groups]).unwrap())
}

fn product<T: Real>(c: &Case, o: &Operands, is_int4: bool, stream: &Stream) -> Tensor {
    let (m, n, k) = c.shape;
    let (b, scales) = weights(stream, c, o, is_int4);
    let a = tensor::<T>(stream, &o.a, &[m, k]);
    let (bias, gate) = (tensor::<T>(stream, &o.bias, &[n]), tensor::<T>(stream, &[GATE], &[1]));
    let mut out = match c.f32_out {
        true => tensor::<f32>(stream, &o.residual, &[m, n]),
        false => tensor::<T>(stream, &o.residual, &[m, n]),
    };
    let epilogue = Epilogue {
        bias: c.every.then(|| bias.view()),
        activation: c.activation,
        gate: c.every.then(|| gate.view()),
        out: if c.every { Out::Accumulate } else { Out::Overwrite },
    };
    let b = Quantized { codes: b.view(), scales: scales.view() };
    gemm_quantized(stream, out.view_mut(), a.view(), b, epilogue).unwrap();
    out
}

fn every_case<T: Real>() {
    for (c, is_int4) in cases().into_iter().flat_map(|c| [(c, false), (c, true)]) {
        if is_int4 && !c.shape.2.is_multiple_of(INT4_GROUP) {
            continue;
        }
        check::<T>(&c, is_int4);
    }
}

fn check<T: Real>(c: &Case, is_int4: bool) {
    check_on::<T>(c, is_int4, streams());
}

/// By streams in pairs that give the same bits, unless an A100 and an H200 multiply one or two
/// rows: they divide k in other ways.
fn check_on<T: Real>(c: &Case, is_int4: bool, streams: Vec<Stream>) {
    let o = Operands::new(c, is_int4);
    let (want, atol) = oracle::<T>(c, &o);
    for pair in streams.chunks(2) {
        let found = [0, 1].map(|i| product::<T>(c, &o, is_int4, &pair[i]));
        for (found, stream) in found.iter().zip(pair) {
            let who = format!("{} {:?} int4 {is_int4} {}", c.name, c.shape, stream.describe());
            match c.f32_out {
                true => judge::<f32>(&who, found.view(), &want, atol),
                false => judge::<T>(&who, found.view(), &want, atol),
            }
        }
        let [one, other] = found.map(|t| t.view().to_f32().unwrap());
        let [kind, another] = [0, 1].map(|i| pair[i].chip().map(|chip| chip.capability));
        let must_agree = kind == another || c.shape.0 > 2;
        assert!(one == other || !must_agree, "{c:?}: depends on the number of threads");
    }
}

#[test]
fn every_case_in_every_type() {
    for_every_type!(every_case());
}

#[test]
fn every_number_of_rows_that_is_few() {
    for m in 1..=17 {
        let c = Case { every: m % 2 == 0, ..case("few_rows", m, 1 + m * 23 % 71, 256) };
        check::<bf16>(&c, false);
        check::<bf16>(&c, true);
    }
    // Blocks that take one tile after the other, whose copies run on from one into the next.
    let small = || cards([Chip { multiprocessors: 1, ..Chip::H200 }, Chip::H200]).into();
    for (m, n, k) in [(1, 16 * 9 + 5, 1280), (3, 100, 128), (13, 32 * 5 - 3, 640)] {
        let c = Case { every: true, ..case("tile_after_tile", m, n, k) };
        check_on::<bf16>(&c, false, small());
        check_on::<bf16>(&c, true, small());
    }
}

/// Up to two rows are multiplied as digits, each row in its own unit: what one row is scaled by,
/// its sums are, to the bit; of what is not finite nothing finite becomes; no row minds the other.
#[test]
fn rows_are_counted_each_in_its_own_unit() {
    for is_int4 in [false, true] {
        counted::<bf16>(is_int4, 90);
        counted::<f16>(is_int4, 6);
    }
}

fn counted<T: Real>(is_int4: bool, power: i32) {
    let k = if is_int4 { 384 } else { 272 };
    let c = Case { f32_out: true, ..case("counted", 2, 33, k) };
    let mut o = Operands::new(&c, is_int4);
    o.a[3] = 300.0; // far from the rest of its row
    let (want, atol) = oracle::<T>(&c, &o);
    for stream in cards([Chip::A100, Chip::H200]) {
        let run = |o: &Operands| product::<T>(&c, o, is_int4, &stream).view().to_f32().unwrap();
        let found = run(&o);
        let (first, second) = found.split_at(33);
        for (found, want) in found.iter().zip(&want) {
            assert!((f64::from(*found) - want).abs() <= atol, "{found} {want}");
        }
        let kept = o.a.clone();
        for scale in [2f32.powi(-power), 2f32.powi(power), 0.0] {
            o.a[k..].iter_mut().for_each(|x| *x *= scale);
            let scaled: Vec<_> = second.iter().map(|x| x * scale).collect();
            assert_eq!(run(&o), [first, &scaled].concat(), "{scale}");
            o.a.clone_from(&kept);
        }
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            o.a[k + 7] = x;
            let found = run(&o);
            assert!(found[..33] == *first && found[33..].iter().all(|x| !x.is_finite()), "{x}");
        }
        o.a.clone_from(&kept);
    }
}

/// The two halves of B in one launch or two, as the stream has it.
#[test]
fn swiglu_of_codes() {
    for (m, n, k) in [(1, 34, 256), (7, 200, 128), (12, 34, 128), (33, 300, 384), (70, 66, 1152)] {
        for is_int4 in [false, true] {
            swiglu::<bf16>(&case("swiglu", m, n, k), is_int4);
            swiglu::<f16>(&case("swiglu", m, n, k), is_int4);
        }
    }
}

fn swiglu<T: Real>(c: &Case, is_int4: bool) {
    let (o, (m, n, k)) = (Operands::new(c, is_int4), c.shape);
    let (sums, atol) = oracle::<T>(c, &o);
    let (gates, values) = (|i: usize| sums[i / (n / 2) * n + i % (n / 2)], n / 2);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let value = |i: usize| sums[i / (n / 2) * n + values + i % (n / 2)];
    let want: Vec<_> = (0..m * n / 2).map(|i| silu(gates(i)) * value(i)).collect();
    let largest = sums.iter().fold(0f64, |most, x| most.max(x.abs()));
    for stream in streams() {
        let (b, scales) = weights(&stream, c, &o, is_int4);
        let a = tensor::<T>(&stream, &o.a, &[m, k]);
        let zeros = |cols| Tensor::zeros(&stream, T::DTYPE, &[m, cols]).unwrap();
        let (mut y, mut room) = (zeros(n / 2), zeros(n));
        let w = Weight::Quantized(Quantized { codes: b.view(), scales: scales.view() });
        linear_swiglu(&stream, y.view_mut(), room.view_mut(), a.view(), w).unwrap();
        let what = format!("swiglu {:?} int4 {is_int4} {}", c.shape, stream.describe());
        // On the host both sums are rounded first.
        let half =
            if T::DTYPE == medflamingo::DType::BF16 { 2f64.powi(-9) } else { 2f64.powi(-12) };
        let rounding = if stream.is_host() { 2.2 * half * largest } else { 0.0 };
        judge::<T>(&what, y.view(), &want, (1.1 * atol + rounding) * 2.0 * largest);
    }
}

/// No twin reads beyond the end of B, its scales or A.
#[test]
fn nothing_beyond_the_end_is_read() {
    for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512Bf16] {
        if isa > Isa::detect() {
            continue;
        }
        let host = Host { pool: Pool::new(2), isa };
        for (m, k, is_int4) in [(3, 128, false), (3, 128, true), (2, 75, false), (12, 256, true)] {
            guarded::<f32>(&host, case("guarded", m, 21, k), is_int4);
            guarded::<bf16>(&host, case("guarded", m, 21, k), is_int4);
        }
    }
}

fn guarded<T: Real>(host: &Host, c: Case, is_int4: bool) {
    let (o, (m, n, k)) = (Operands::new(&c, is_int4), c.shape);
    let a: Vec<T> = o.a.iter().map(|x| T::from_f32(*x)).collect();
    let (a, b, scales) = (Guarded::new(&a), Guarded::new(&o.bytes), Guarded::new(&o.scales));
    let mut out = Guarded::new(&vec![0f32; m * n]);
    let product = GemmParams {
        c: out.as_mut_ptr(),
        a: a.as_ptr(),
        b: b.as_ptr(),
        workspace: null_mut(),
        ldb: (o.bytes.len() / n) as i64,
        c_is_f32: 1,
        ..gemm_shape([m as i64, n as i64, k as i64])
    };
    let bits = if is_int4 { 4 } else { 8 };
    let params = GemmQuantizedParams { product, scales: scales.as_ptr(), bits };
    let (_, twin) = GEMM_QUANTIZED.twins.iter().find(|(d, _)| *d == T::DTYPE).unwrap();
    // SAFETY: guarded memory of the extents that the params state.
    unsafe { twin(&params, host) };
    let (want, atol) = oracle::<T>(&c, &o);
    for (found, want) in out.values().iter().zip(want) {
        assert!((f64::from(*found) - want).abs() <= atol + want.abs() * 1e-6);
    }
}

#[test]
fn wrong_operands_are_refused() {
    let stream = Stream::host(1);
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(&stream, dtype, shape).unwrap();
    use medflamingo::DType::{BF16, F32, I8, U8};
    let refused = |k: usize, b: Tensor, scales: Tensor| {
        let (mut c, a) = (zeros(BF16, &[2, 3]), zeros(BF16, &[2, k]));
        let b = Quantized { codes: b.view(), scales: scales.view() };
        message(gemm_quantized(&stream, c.view_mut(), a.view(), b, Epilogue::default()))
    };
    assert!(refused(128, zeros(BF16, &[3, 128]), zeros(BF16, &[3])).contains("gemm_quantized: b"));
    assert!(refused(128, zeros(I8, &[3, 64]), zeros(BF16, &[3])).contains("(3, 128)"));
    assert!(refused(128, zeros(I8, &[3, 128]), zeros(BF16, &[4])).contains("3 values"));
    assert!(refused(128, zeros(I8, &[3, 128]), zeros(F32, &[3])).contains("scales"));
    assert!(refused(96, zeros(U8, &[3, 48]), zeros(BF16, &[3])).contains("groups of 128"));
    assert!(refused(256, zeros(U8, &[3, 128]), zeros(BF16, &[3, 1])).contains("6 values"));
}

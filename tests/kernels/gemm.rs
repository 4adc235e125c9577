//! `gemm`: C = residual + tanh(gate) * f(A B^T + bias).

use crate::guarded::Guarded;
use crate::judge::{cards, tensor};
use half::{bf16, f16};
use medflamingo::DType;
use medflamingo::contracts::GemmParams;
use medflamingo::device::{Chip, Host, Isa, Kernel, Pool, Stream};
use medflamingo::dtype::Real;
use medflamingo::ops::{Activation, Epilogue, GEMM, Out, gemm, gemm_shape, gemm_tilings};
use medflamingo::tensor::Tensor;
use std::ffi::c_void;
use std::ptr::{null, null_mut};

const NONE: i32 = 0;
const GELU: i32 = 1;
const QUICK_GELU: i32 = 2;
const SWIGLU: i32 = 3;

/// A launch by its shape and parts. `pads` are what the row strides exceed the widths by.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    shape: (usize, usize, usize),
    pads: (usize, usize, usize),
    bias: bool,
    activation: i32,
    gate: Option<f32>,
    residual: bool,
    in_place: bool,
    f32_out: bool,
    mean: f32,
}

/// A plain product.
const fn case(name: &'static str, m: usize, n: usize, k: usize) -> Case {
    Case {
        name,
        shape: (m, n, k),
        pads: (0, 0, 0),
        bias: false,
        activation: NONE,
        gate: None,
        residual: false,
        in_place: false,
        f32_out: false,
        mean: 0.0,
    }
}

/// A product with every part of the epilogue but f.
const fn every(name: &'static str, m: usize, n: usize, k: usize) -> Case {
    Case { bias: true, gate: Some(0.7), residual: true, ..case(name, m, n, k) }
}

/// Each case for a reason; rows on both sides of where the regimes change.
fn cases() -> Vec<Case> {
    vec![
        case("smallest", 1, 1, 1),
        case("nothing_to_do", 0, 5, 7),
        case("no_columns", 3, 0, 7),
        case("ragged", 7, 13, 37),
        case("ragged", 17, 131, 333),
        case("one_row_too_many", 9, 33, 65),
        Case { bias: true, activation: GELU, ..case("patch_embedding_k_588", 33, 48, 588) },
        case("k_tail", 2, 5, 127),
        case("k_tail", 30, 70, 1025),
        case("several_k_blocks", 15, 40, 2113),
        Case { f32_out: true, ..case("logits_of_a_row", 1, 1003, 512) },
        Case { bias: true, activation: QUICK_GELU, ..case("vision_mlp", 65, 256, 1024) },
        Case { bias: true, activation: GELU, ..case("decode_mlp", 1, 256, 1024) },
        case("decode_width_4096", 1, 64, 4096),
        case("beams_width_4096", 8, 34, 4096),
        case("resampler_latents", 64, 512, 1024),
        Case { gate: Some(0.0), residual: true, ..case("gate_zero", 12, 20, 30) },
        Case { gate: Some(-2.0), residual: true, in_place: true, ..case("gate", 1, 20, 30) },
        Case { mean: 30.0, ..case("far_mean", 20, 30, 500) },
        Case { mean: 30.0, ..case("far_mean", 3, 30, 500) },
        Case { pads: (3, 5, 7), ..every("strided", 21, 45, 67) },
        Case { pads: (1, 3, 1), ..every("strided_unaligned_rows", 4, 45, 67) },
        Case { in_place: true, ..every("in_place_residual", 40, 300, 96) },
        Case { in_place: true, ..every("in_place_residual", 2, 300, 96) },
        Case { f32_out: true, ..every("f32_out_with_residual", 11, 23, 64) },
        Case { f32_out: true, in_place: true, ..every("gradient_added_to", 70, 96, 72) },
        Case { f32_out: true, in_place: true, ..every("gradient_added_to", 3, 96, 72) },
        every("zero_k", 3, 17, 0),
        every("zero_k", 19, 40, 0),
        Case { activation: GELU, ..every("every_part_gelu", 5, 70, 48) },
        Case { activation: QUICK_GELU, ..every("every_part_quick_gelu", 50, 70, 48) },
    ]
}

/// Uniform in (-1, 1), from splitmix64.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn take<T: Real>(&mut self, n: usize, scale: f32, mean: f32) -> Vec<T> {
        (0..n).map(|_| T::from_f32(mean + scale * self.next())).collect()
    }
}

/// The operands of a case. C's cells between rows hold a mark that must survive.
struct Operands<T> {
    a: Vec<T>,
    b: Vec<T>,
    bias: Vec<T>,
    /// As C stores it.
    residual: Vec<f32>,
    gate: Option<T>,
}

/// Length of a matrix whose last row has no padding behind it.
fn extent(rows: usize, cols: usize, stride: usize) -> usize {
    if rows == 0 { 0 } else { (rows - 1) * stride + cols }
}

impl<T: Real> Operands<T> {
    fn new(c: &Case) -> Self {
        let (m, n, k) = c.shape;
        let (lda, ldb, ldc) = c.strides();
        let cols = c.cols();
        let mut noise = Noise(m as u64 * 31 + n as u64 * 17 + k as u64);
        let scale = 1.5 / (k.max(1) as f32).sqrt();
        let as_stored = |x: &f32| if c.f32_out { *x } else { T::from_f32(*x).to_f32() };
        Operands {
            a: noise.take(extent(m, k, lda), 1.0, c.mean),
            b: noise.take(extent(n, k, ldb), scale, c.mean * scale),
            bias: noise.take(n, 1.0, 0.0),
            residual: noise.take(extent(m, cols, ldc), 2.0, 0.0).iter().map(as_stored).collect(),
            gate: c.gate.map(T::from_f32),
        }
    }
}

/// erf by its series or erfc's continued fraction.
pub fn erf(x: f64) -> f64 {
    let z = x.abs();
    if z > 2.5 {
        let fraction = (1..=100).rev().fold(z, |f, i| z + f64::from(i) / 2.0 / f);
        return x.signum() * (1.0 - (-z * z).exp() / fraction / std::f64::consts::PI.sqrt());
    }
    let (mut term, mut sum) = (x, x);
    for i in 1..80 {
        term *= -x * x / f64::from(i);
        sum += term / f64::from(2 * i + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

impl Case {
    fn strides(&self) -> (usize, usize, usize) {
        let (_, _, k) = self.shape;
        (k + self.pads.0, k + self.pads.1, self.cols() + self.pads.2)
    }

    /// Of C.
    fn cols(&self) -> usize {
        self.shape.1 / if self.activation == SWIGLU { 2 } else { 1 }
    }

    /// C exactly, and what f32 sums of these products may be off by.
    fn oracle<T: Real>(&self, o: &Operands<T>) -> Vec<(f64, f64)> {
        let ((m, _, k), n) = (self.shape, self.cols());
        let (lda, ldb, ldc) = self.strides();
        let wide = |x: &T| f64::from(x.to_f32());
        // Terms are added one after the other, in blocks of at most 256: a random walk of half
        // roundings, and two for what is added to the sum.
        let roundings = 2.0 + (k.min(256) as f64).sqrt() / 2.0;
        let mut c = Vec::new();
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let (a, b) = (&o.a[i * lda..][..k], &o.b[j * ldb..][..k]);
            let products = || a.iter().zip(b).map(|(a, b)| wide(a) * wide(b));
            let mut x: f64 = products().sum();
            let mut size: f64 = products().map(f64::abs).sum();
            if self.bias {
                x += wide(&o.bias[j]);
                size += wide(&o.bias[j]).abs();
            }
            if self.activation == SWIGLU {
                let value = &o.b[(n + j) * ldb..][..k];
                let products = || a.iter().zip(value).map(|(a, b)| wide(a) * wide(b));
                let (silu, value) = (x / (1.0 + (-x).exp()), products().sum::<f64>());
                // Where silu is steepest its slope is 1.1; the exponential is good to 20 bits.
                size =
                    1.1 * size * value.abs() + silu.abs() * products().map(f64::abs).sum::<f64>();
                size += 16.0 * (silu * value).abs();
                x = silu * value;
            }
            x = match self.activation {
                GELU => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
                QUICK_GELU => x / (1.0 + (-1.702 * x).exp()),
                _ => x,
            };
            if let Some(gate) = &o.gate {
                x *= wide(gate).tanh();
            }
            if self.residual {
                x += f64::from(o.residual[i * ldc + j]);
                size += f64::from(o.residual[i * ldc + j]).abs();
            }
            c.push((x, roundings * f64::from(f32::EPSILON) * size));
        }
        c
    }

    /// The whole buffer of C, widened.
    fn run<T: Real>(&self, o: &Operands<T>, host: &Host) -> Vec<f64> {
        if self.f32_out { self.run_as::<T, f32>(o, host) } else { self.run_as::<T, T>(o, host) }
    }

    fn run_as<T: Real, C: Real>(&self, o: &Operands<T>, host: &Host) -> Vec<f64> {
        let (a, b) = (Guarded::new(&o.a), Guarded::new(&o.b));
        let residual: Vec<C> = o.residual.iter().map(|x| C::from_f32(*x)).collect();
        let (bias, residual) = (Guarded::new(&o.bias), Guarded::new(&residual));
        let gate = Guarded::new(o.gate.as_slice());
        let start: Vec<C> = self.start(o).into_iter().map(C::from_f32).collect();
        let mut c = Guarded::new(&start);
        let others = [a.as_ptr(), b.as_ptr(), bias.as_ptr(), residual.as_ptr(), gate.as_ptr()];
        launch::<T>(&self.params(c.as_mut_ptr(), others), host);
        c.values().iter().map(|x| f64::from(x.to_f32())).collect()
    }

    /// As [`Case::run`], through a stream.
    fn run_on<T: Real>(
        &self,
        o: &Operands<T>,
        stream: &Stream,
        kernel: &Kernel<GemmParams>,
    ) -> Vec<f64> {
        let upload = |x: &[T]| Tensor::upload(stream, x, &[x.len()]).unwrap();
        let others = [&o.a[..], &o.b, &o.bias, o.gate.as_slice()].map(upload);
        let as_stored = |x: &[f32]| match self.f32_out {
            true => Tensor::upload(stream, x, &[x.len()]).unwrap(),
            false => tensor::<T>(stream, x, &[x.len()]),
        };
        let (mut c, residual) = (as_stored(&self.start(o)), as_stored(&o.residual));
        let [a, b, bias, gate] = [0, 1, 2, 3].map(|i| others[i].view().ptr());
        let places = [a, b, bias, residual.view().ptr(), gate];
        let params = GemmParams {
            workspace: stream.workspace().unwrap(),
            ..self.params(c.view_mut().ptr(), places)
        };
        // SAFETY: the tensors have the extents that the params state.
        unsafe { stream.launch(kernel, T::DTYPE, &params) }.unwrap();
        c.view().to_f32().unwrap().into_iter().map(f64::from).collect()
    }

    /// The launch, of operands nowhere but aligned: for asking how it would be laid.
    fn aligned(&self) -> GemmParams {
        let place = std::ptr::without_provenance_mut(64);
        GemmParams { workspace: place, ..self.params(place, [place.cast_const(); 5]) }
    }

    /// What C holds before the launch.
    fn start<T: Real>(&self, o: &Operands<T>) -> Vec<f32> {
        let (m, n) = (self.shape.0, self.cols());
        let (_, _, ldc) = self.strides();
        let is_held = |i: usize| self.in_place && i % ldc < n;
        let cell = |i: usize| if is_held(i) { o.residual[i] } else { MARK };
        (0..extent(m, n, ldc)).map(cell).collect()
    }

    /// The launch, of those operands that the case has, without a workspace.
    fn params(&self, c: *mut c_void, others: [*const c_void; 5]) -> GemmParams {
        let [a, b, bias, residual, gate] = others;
        let (m, n, k) = self.shape;
        let (lda, ldb, ldc) = self.strides();
        let residual = if self.in_place { c.cast_const() } else { residual };
        GemmParams {
            c,
            a,
            b,
            bias: if self.bias { bias } else { null() },
            residual: if self.residual { residual } else { null() },
            gate: if self.gate.is_some() { gate } else { null() },
            workspace: null_mut(),
            lda: lda as i64,
            ldb: ldb as i64,
            ldc: ldc as i64,
            activation: self.activation,
            c_is_f32: i32::from(self.f32_out),
            ..gemm_shape([m as i64, n as i64, k as i64])
        }
    }
}

/// What C's cells between rows hold; exact in every storage type.
const MARK: f32 = -96.0;

fn launch<T: Real>(params: &GemmParams, host: &Host) {
    let (_, twin) = GEMM.twins.iter().find(|(dtype, _)| *dtype == T::DTYPE).unwrap();
    // SAFETY: the params describe guarded memory of the right extents, and the host was made for
    // an instruction set of this machine.
    unsafe { twin(params, host) }
}

/// Every instruction set of this machine.
fn isas() -> impl Iterator<Item = Isa> {
    [Isa::Portable, Isa::Avx2, Isa::Avx512Bf16].into_iter().filter(|&isa| isa <= Isa::detect())
}

/// Relative distance between neighbours of the storage type.
fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        _ => f64::from(f32::EPSILON),
    }
}

fn check<T: Real>(case: &Case) {
    let operands = Operands::<T>::new(case);
    let oracle = case.oracle(&operands);
    for isa in isas() {
        let [alone, together] =
            [1, 3].map(|threads| case.run(&operands, &Host { pool: Pool::new(threads), isa }));
        assert!(alone == together, "{}: depends on the number of threads", case.name);
        judge::<T>(case, &oracle, &alone, &isa.to_string());
    }
    check_on_cards::<T>(case, &operands, &oracle, USUAL);
}

const USUAL: [Chip; 2] = [Chip::A100, Chip::H200];

/// The real kernels, as cards of these chips would run them.
fn check_on_cards<T: Real>(
    case: &Case,
    operands: &Operands<T>,
    oracle: &[(f64, f64)],
    chips: [Chip; 2],
) {
    let laid = |chip| {
        let geometry = (GEMM.geometry)(&case.aligned(), T::DTYPE, &chip);
        (geometry.variant, geometry.grid)
    };
    let [one, other] = cards(chips);
    let is_same = laid(*one.chip().unwrap()) == laid(*other.chip().unwrap());
    for stream in std::iter::once(one).chain((!is_same).then_some(other)) {
        judge::<T>(case, oracle, &case.run_on(operands, &stream, &GEMM), &stream.describe());
    }
}

fn judge<T: Real>(case: &Case, oracle: &[(f64, f64)], found: &[f64], on: &str) {
    let n = case.cols();
    let (_, _, ldc) = case.strides();
    let out = if case.f32_out { DType::F32 } else { T::DTYPE };
    let what = format!("{} {:?} {} {on}", case.name, case.shape, T::DTYPE);
    for (at, &found) in found.iter().enumerate() {
        let (i, j) = (at / ldc, at % ldc);
        if j >= n {
            assert_eq!(found, f64::from(MARK), "{what}: wrote between rows at ({i}, {j})");
            continue;
        }
        let (exact, sums) = oracle[i * n + j];
        // Twice the rounding to the storage type, which is half of epsilon, and the sums.
        let tolerance = epsilon(out) * exact.abs() + sums + 1e-7;
        let error = (found - exact).abs();
        assert!(error <= tolerance, "{what} ({i}, {j}): {found}, not {exact} ({error:e})");
    }
}

/// Every tile in every number of parts that k allows, on cards so small that blocks take several
/// tiles: ends within a tile, sums of parts, both ways to write C.
#[test]
fn every_tile_and_every_part() {
    let edges = Case { pads: (8, 16, 3), activation: GELU, ..every("edges", 200, 300, 104) };
    on_every_tile::<f16>(&edges, 10);
    // Rows of C in whole eights leave from registers, others through shared memory.
    let eights =
        Case { pads: (8, 16, 8), activation: QUICK_GELU, ..every("eights", 200, 304, 104) };
    on_every_tile::<bf16>(&eights, 10);
    let to_f32 = Case { f32_out: true, in_place: true, ..every("to_f32", 80, 136, 72) };
    on_every_tile::<f16>(&to_f32, 10);
    let parts = Case { in_place: true, activation: QUICK_GELU, ..every("parts", 70, 130, 1544) };
    on_every_tile::<bf16>(&parts, 28);
}

/// Several tiles a block, each of more steps of k than a block has stages.
#[test]
fn tiles_in_turns() {
    let many = Case { activation: GELU, ..every("turns", 130, 800, 456) };
    on_tiles::<bf16>(&many, "turns", 1);
}

fn on_every_tile<T: Real>(case: &Case, expected: usize) {
    on_tiles::<T>(case, "", expected);
}

/// On tiles whose names have `word` in them, as many as `expected`.
fn on_tiles<T: Real>(case: &Case, word: &str, expected: usize) {
    let operands = Operands::<T>::new(case);
    let oracle = case.oracle(&operands);
    let mut tried = 0;
    let small = [Chip::A100, Chip::H200].map(|chip| Chip { multiprocessors: 3, ..chip });
    for stream in cards(small) {
        let chip = *stream.chip().unwrap();
        // Those of sm_80 are the same on both.
        let mut tilings = gemm_tilings(&case.aligned(), T::DTYPE, &chip);
        tilings.retain(|t| t.variant.starts_with("_sm90") == chip.has_wgmma());
        tilings.retain(|t| t.variant.contains(word));
        for tiling in tilings {
            let found = case.run_on(&operands, &stream, tiling.kernel);
            judge::<T>(case, &oracle, &found, &format!("{} {}", tiling.variant, tiling.parts));
            tried += 1;
        }
    }
    if std::env::var_os("MEDFLAMINGO_TEST_DEVICE").is_none() {
        assert_eq!(tried, expected, "{}", case.name);
    }
}

/// Gates and values from two halves of B, ends within a tile of both, parts of k, few rows.
#[test]
fn swiglu_on_cards() {
    let swiglu = |m, n, k| Case { activation: SWIGLU, ..case("swiglu", m, n, k) };
    let edges = Case { pads: (8, 16, 3), ..swiglu(150, 2 * 211, 104) };
    on_every_tile::<f16>(&edges, 9);
    on_every_tile::<f16>(&swiglu(150, 2 * 216, 104), 9);
    let every = Case { residual: true, gate: Some(0.7), in_place: true, ..swiglu(70, 132, 1544) };
    on_every_tile::<bf16>(&every, 25);
    // Several tiles a block, one after the other.
    let small = USUAL.map(|chip| Chip { multiprocessors: 1, ..chip });
    let tiles = Case { residual: true, ..swiglu(13, 2 * 250, 136) };
    let operands = Operands::<bf16>::new(&tiles);
    check_on_cards::<bf16>(&tiles, &operands, &tiles.oracle(&operands), small);
    for (m, half) in [(1, 5), (1, 40), (3, 17), (8, 64), (9, 33), (17, 24)] {
        on_cards::<bf16>(&swiglu(m, 2 * half, 8 * (11 + m)));
        on_cards::<f16>(&Case { pads: (8, 0, 1), f32_out: m % 2 == 0, ..swiglu(m, 2 * half, 400) });
    }
}

/// Every number of rows that is few, odd ends in n and k, strided rows, all of the epilogue.
#[test]
fn few_rows_on_cards() {
    for m in 1..=17 {
        let (n, k) = (1 + m * 23 % 71, 8 * (1 + m * 53 % 150));
        let tails = Case { pads: (8, 16, m % 3), ..every("few_rows", m, n, k) };
        on_cards::<bf16>(&Case { activation: m as i32 % 3, in_place: m % 2 == 0, ..tails });
        on_cards::<f16>(&Case { residual: false, f32_out: m % 2 == 0, ..tails });
    }
    // More than one round of every warp, and steps of k that are left over.
    for m in [1, 8, 9, 16] {
        on_cards::<bf16>(&case("long_rows", m, 33, 2 * 1024 + 256 + 40));
        on_cards::<f16>(&case("long_rows", m, 33, 2 * 1024 + 256 + 40));
    }
    // Blocks that take one tile after the other, whose copies run on from one into the next.
    let small = USUAL.map(|chip| Chip { multiprocessors: 1, ..chip });
    for (m, n, k) in [(1, 16 * 11 + 5, 2072), (2, 100, 24), (8, 150, 264), (11, 32 * 7 - 3, 520)] {
        let tiles = every("tile_after_tile", m, n, k);
        let operands = Operands::<bf16>::new(&tiles);
        check_on_cards::<bf16>(&tiles, &operands, &tiles.oracle(&operands), small);
    }
}

fn on_cards<T: Real>(case: &Case) {
    let operands = Operands::<T>::new(case);
    check_on_cards::<T>(case, &operands, &case.oracle(&operands), USUAL);
}

#[test]
fn every_case_in_f32() {
    cases().iter().for_each(check::<f32>);
}

#[test]
fn every_case_in_bf16() {
    cases().iter().for_each(check::<bf16>);
}

#[test]
fn every_case_in_f16() {
    cases().iter().for_each(check::<f16>);
}

/// Every number of rows over both regimes, every kind of tail in n and k.
#[test]
fn every_height_and_tail() {
    for m in (1..=31).chain([57, 113]) {
        let (n, k) = (1 + m * 7 % 67, 1 + m * 29 % 133);
        let case = Case { bias: true, pads: (m % 3, m % 2, m % 5), ..case("tails", m, n, k) };
        check::<f32>(&case);
        check::<bf16>(&case);
        check::<f16>(&case);
    }
}

fn special<T: Real>(m: usize) {
    let case = case("special", m, 40, 70);
    let mut operands = Operands::<T>::new(&case);
    operands.a[0] = T::from_f32(f32::NAN);
    operands.b[3 * 70 + 69] = T::from_f32(f32::INFINITY);
    for isa in isas() {
        let c = case.run(&operands, &Host { pool: Pool::new(2), isa });
        for (i, j) in (0..m).flat_map(|i| (0..40).map(move |j| (i, j))) {
            let x = c[i * 40 + j];
            let right = match (i, j) {
                (0, _) => x.is_nan(),
                (_, 3) => x.is_infinite(),
                _ => x.is_finite(),
            };
            assert!(right, "{} {isa} m {m}: ({i}, {j}) is {x}", T::DTYPE);
        }
    }
}

#[test]
fn nan_and_infinity_reach_their_rows_and_columns_and_no_others() {
    for m in [2, 5, 20] {
        special::<f32>(m);
        special::<bf16>(m);
        special::<f16>(m);
    }
}

/// A row's result does not depend on the rows that happen to share its launch.
#[test]
fn rows_of_a_regime_are_independent() {
    for (few, many) in [(1, 8), (9, 120)] {
        let large = case("independent", many, 50, 1100);
        let mut operands = Operands::<bf16>::new(&large);
        for isa in isas() {
            let host = Host { pool: Pool::new(2), isa };
            let all = large.run(&operands, &host);
            let kept = operands.a.clone();
            operands.a.truncate(few * 1100);
            let some = Case { shape: (few, 50, 1100), ..large }.run(&operands, &host);
            operands.a = kept;
            assert!(all[..few * 50] == some[..], "{isa}: {few} of {many}");
        }
    }
}

#[test]
fn cost_counts_operands_once() {
    let plain = Case { f32_out: true, ..case("cost", 2, 3, 5) };
    let mut p = plain.params(null_mut(), [null(); 5]);
    let cost = (GEMM.cost)(&p, DType::BF16);
    assert_eq!((cost.flops, cost.bytes), (60.0, 2.0 * 25.0 + 4.0 * 6.0));
    p.bias = std::ptr::dangling();
    assert_eq!((GEMM.cost)(&p, DType::F32).bytes, 4.0 * (25.0 + 6.0 + 3.0));
    p.residual = std::ptr::dangling();
    assert_eq!((GEMM.cost)(&p, DType::BF16).bytes, 2.0 * (25.0 + 3.0) + 8.0 * 6.0);
}

#[test]
fn the_wrapper_launches_what_it_checked() {
    let stream = Stream::host(2);
    let upload = |values: &[f32], shape: &[usize]| Tensor::upload(&stream, values, shape).unwrap();
    let a = upload(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
    let b = upload(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0], &[3, 2]);
    let (bias, gate) = (upload(&[0.0, 0.0, 100.0], &[3]), upload(&[20.0], &[1]));
    let mut c = upload(&[10.0; 6], &[2, 3]);
    let epilogue = Epilogue {
        bias: Some(bias.view()),
        activation: Activation::Identity,
        gate: Some(gate.view()),
        out: Out::Accumulate,
    };
    gemm(&stream, c.view_mut(), a.view(), b.view(), epilogue).unwrap();
    assert_eq!(c.view().read::<f32>().unwrap(), [11.0, 12.0, 113.0, 13.0, 14.0, 117.0]);
}

#[test]
fn the_wrapper_refuses_what_does_not_fit() {
    let stream = Stream::host(1);
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(&stream, dtype, shape).unwrap();
    let (a, b) = (zeros(DType::BF16, &[2, 4]), zeros(DType::BF16, &[3, 4]));
    let refused = |c: (DType, &[usize]), b: &Tensor, epilogue: Epilogue| {
        let mut c = zeros(c.0, c.1);
        gemm(&stream, c.view_mut(), a.view(), b.view(), epilogue).unwrap_err().to_string()
    };
    let plain = Epilogue::default();
    let bias = zeros(DType::BF16, &[4]);
    let with_bias = Epilogue { bias: Some(bias.view()), ..plain };
    let adds = Epilogue { out: Out::Accumulate, ..plain };
    let right: (_, &[usize]) = (DType::BF16, &[2, 3]);
    for (message, found) in [
        (refused((DType::BF16, &[2, 4]), &b, plain), "gemm: c: expected (2, 3), found (2, 4)"),
        (refused((DType::F16, &[2, 3]), &b, plain), "gemm: c: expected bf16, found f16"),
        (refused(right, &zeros(DType::BF16, &[3, 5]), plain), "gemm: b: expected (3, 4)"),
        (refused(right, &zeros(DType::F32, &[3, 4]), plain), "gemm: b: expected bf16, found f32"),
        (refused(right, &b, with_bias), "gemm: bias: expected (3), found (4)"),
        (refused((DType::F16, &[2, 3]), &b, adds), "gemm: c: expected bf16, found f16"),
    ] {
        assert!(message.contains(found), "{message}");
    }
}

//! `quantize` and `dequantize`: the codes, bit for bit as the contract says.

use crate::judge::{for_every_type, judge, message, normals, rounded, streams, tensor};
use half::bf16;
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, INT4_GROUP, Quantized};
use medflamingo::tensor::Tensor;

pub struct Case {
    pub why: &'static str,
    pub rows: usize,
    pub cols: usize,
    /// Weights that are not normal: index and value.
    pub odd: Vec<(usize, f32)>,
    pub spread: f32,
}

pub fn cases() -> Vec<Case> {
    let case = |why, rows, cols| Case { why, rows, cols, odd: vec![], spread: 0.02 };
    let nan = f32::NAN;
    vec![
        case("smallest_rows", 3, 16),
        case("one_group", 1, 128),
        case("rows_beyond_a_block", 5, 2304),
        case("groups_in_half_a_block", 3, 384),
        case("no_rows", 0, 256),
        Case { spread: 0.0, ..case("zeros", 2, 128) },
        Case { spread: 1e-40, ..case("subnormal", 2, 128) },
        Case { odd: vec![(3, -1.5), (77, 1.5), (9, 1.5)], ..case("as_large_twice", 2, 128) },
        Case { odd: vec![(90, 1.5), (100, -1.5)], ..case("as_large_in_two_lanes", 2, 128) },
        Case { odd: vec![(0, nan), (40, nan), (130, 7.0)], ..case("no_number", 2, 256) },
    ]
}

impl Case {
    fn weights<T: Real>(&self) -> Vec<f32> {
        let mut w: Vec<f32> =
            normals(1, self.rows * self.cols).iter().map(|w| w * self.spread).collect();
        self.odd.iter().for_each(|(at, odd)| w[*at] = *odd);
        w.into_iter().map(|w| T::from_f32(w).to_f32()).collect()
    }
}

/// The codes, one each, and the scales, by the contract's arithmetic.
fn oracle(w: &[f32], is_int4: bool, cols: usize) -> (Vec<i32>, Vec<bf16>) {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for group in w.chunks(if is_int4 { INT4_GROUP } else { cols }) {
        let mut most = 0f32;
        for w in group {
            most = if w.abs() > most.abs() { *w } else { most };
        }
        let scale = bf16::from_f32(if is_int4 { most / -8.0 } else { most.abs() / 127.0 });
        let inverse = match scale.to_f32() {
            s if s.abs() >= f32::MIN_POSITIVE => 1.0 / s,
            _ => 0.0,
        };
        let (least, most, nan) = if is_int4 { (-8, 7, -8) } else { (-127, 127, 0) };
        scales.push(scale);
        codes.extend(group.iter().map(|w| match w * inverse {
            x if x.is_nan() => nan,
            x => (x.round_ties_even() as i32).clamp(least, most),
        }));
    }
    (codes, scales)
}

/// As they are stored.
fn packed(codes: &[i32], is_int4: bool) -> Vec<u8> {
    if !is_int4 {
        return codes.iter().map(|q| *q as i8 as u8).collect();
    }
    let places = [0, 2, 4, 6, 1, 3, 5, 7];
    let word = |q: &[i32]| {
        let nibble = |(at, from): (usize, &usize)| ((q[*from] + 8) as u32) << (4 * at);
        places.iter().enumerate().map(nibble).sum::<u32>().to_le_bytes()
    };
    codes.chunks_exact(8).flat_map(word).collect()
}

struct Stored {
    codes: Tensor,
    scales: Tensor,
    losses: Tensor,
}

impl Stored {
    fn new(stream: &Stream, rows: usize, cols: usize, is_int4: bool) -> Self {
        let (dtype, bytes, groups) = match is_int4 {
            true => (DType::U8, cols / 2, cols / INT4_GROUP),
            false => (DType::I8, cols, 1),
        };
        let zeros = |dtype, shape: &[usize]| Tensor::zeros(stream, dtype, shape).unwrap();
        Stored {
            codes: zeros(dtype, &[rows, bytes]),
            scales: zeros(DType::BF16, &[rows, groups]),
            losses: zeros(DType::F32, &[rows * groups, 2]),
        }
    }

    fn bytes(&self, is_int4: bool) -> Vec<u8> {
        match is_int4 {
            true => self.codes.view().read::<u8>().unwrap(),
            false => bytemuck::cast_slice(&self.codes.view().read::<i8>().unwrap()).to_vec(),
        }
    }

    fn view(&self) -> Quantized<'_> {
        Quantized { codes: self.codes.view(), scales: self.scales.view() }
    }
}

fn check<T: Real>(stream: &Stream, c: &Case, is_int4: bool) {
    if is_int4 && !c.cols.is_multiple_of(INT4_GROUP) {
        return;
    }
    let values = c.weights::<T>();
    let w = tensor::<T>(stream, &values, &[c.rows, c.cols]);
    let mut stored = Stored::new(stream, c.rows, c.cols, is_int4);
    let (codes, scales) = (stored.codes.view_mut(), stored.scales.view_mut());
    ops::quantize(stream, codes, scales, Some(stored.losses.view_mut()), w.view()).unwrap();
    let (codes, scales) = oracle(&values, is_int4, c.cols);
    assert_eq!(stored.bytes(is_int4), packed(&codes, is_int4), "{} {}", c.why, T::DTYPE);
    assert_eq!(stored.scales.view().read::<bf16>().unwrap(), scales, "{}", c.why);

    let per_group = if is_int4 { INT4_GROUP } else { c.cols };
    let scale = |i: usize| f64::from(scales[i / per_group].to_f32());
    let back: Vec<f64> = codes.iter().enumerate().map(|(i, q)| f64::from(*q) * scale(i)).collect();
    let mut again = Tensor::zeros(stream, T::DTYPE, &[c.rows, c.cols]).unwrap();
    ops::dequantize(stream, again.view_mut(), stored.view()).unwrap();
    judge::<T>(c.why, again.view(), &back, 0.0);

    let squares = |of: &[f64]| of.iter().map(|x| x * x).sum::<f64>();
    let off: Vec<f64> = rounded::<T>(&values).iter().zip(&back).map(|(w, b)| w - b).collect();
    let exact = rounded::<T>(&values);
    let losses: Vec<f64> = off
        .chunks(per_group)
        .zip(exact.chunks(per_group))
        .flat_map(|(off, w)| [squares(off), squares(w)])
        .collect();
    let atol = 1e-5 * squares(&exact.iter().filter(|w| !w.is_nan()).copied().collect::<Vec<_>>());
    judge::<f32>(c.why, stored.losses.view(), &losses, atol);
}

#[test]
fn codes_are_the_contracts_to_the_bit() {
    for stream in streams() {
        for case in cases() {
            for is_int4 in [false, true] {
                for_every_type!(check(&stream, &case, is_int4));
            }
        }
    }
}

#[test]
fn every_weight_is_within_half_a_step() {
    let mut w: Vec<f32> = (0..256).map(|i| (i * 37 % 101) as f32 / 80.0 - 0.6).collect();
    (w[5], w[130]) = (-3.0, 2.0);
    for is_int4 in [false, true] {
        let (codes, scales) = oracle(&w, is_int4, 256);
        for (i, (q, w)) in codes.iter().zip(&w).enumerate() {
            let scale = scales[if is_int4 { i / INT4_GROUP } else { 0 }].to_f32();
            assert!((*q as f32 * scale - w).abs() <= scale.abs() * 0.51, "{i}: {q} {w}");
        }
        assert!(!is_int4 || scales == [0.375, -0.25].map(bf16::from_f32));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let refused = |cols: usize, is_int4: bool, dtype| {
        let mut stored = Stored::new(&stream, 2, 128, is_int4);
        let w = Tensor::zeros(&stream, dtype, &[2, cols]).unwrap();
        let (codes, scales) = (stored.codes.view_mut(), stored.scales.view_mut());
        message(ops::quantize(&stream, codes, scales, None, w.view()))
    };
    let e = refused(120, false, DType::BF16);
    assert_eq!(e, "quantize: w: expected rows of a multiple of 16, found (2, 120)");
    let e = refused(256, true, DType::BF16);
    assert_eq!(e, "quantize: codes: expected (2, 128), found (2, 64)");
}

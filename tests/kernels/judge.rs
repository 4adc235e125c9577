//! Inputs, streams, and the verdict: within twice the oracle's own error in the storage type, plus
//! a stated absolute tolerance for f32 arithmetic.

use medflamingo::device::{Chip, Device, Host, Isa, Pool, Stream};
use medflamingo::dtype::Real;
use medflamingo::tensor::{Tensor, View};
use std::cell::OnceCell;

/// Streams in pairs that must agree with each other: two numbers of threads of one instruction
/// set, and the real kernels: as two cards run them, under the emulator, or on the card that
/// `MEDFLAMINGO_TEST_DEVICE` names.
pub fn streams() -> Vec<Stream> {
    let best = Isa::detect();
    [Isa::Portable, Isa::Avx2, Isa::Avx512Bf16]
        .into_iter()
        .filter(|isa| *isa <= best)
        .flat_map(|isa| [1, 3].map(|threads| Stream::new(Host { pool: Pool::new(threads), isa })))
        .chain(cards([Chip::A100, Chip::H200]))
        .collect()
}

thread_local! {
    /// The card, opened once for all cases of a test.
    static CARD: OnceCell<Stream> = const { OnceCell::new() };
}

/// Two streams that run the real kernels: on the card that `MEDFLAMINGO_TEST_DEVICE` names, else
/// as `chips` under the emulator.
pub fn cards(chips: [Chip; 2]) -> [Stream; 2] {
    match std::env::var("MEDFLAMINGO_TEST_DEVICE") {
        Ok(card) => CARD.with(|opened| {
            let opened = opened.get_or_init(|| card.parse::<Device>().unwrap().open(1).unwrap());
            chips.map(|_| opened.beside().expect("a card"))
        }),
        Err(_) => chips.map(|chip| Stream::emulated(chip).unwrap()),
    }
}

/// Calls a generic function for the three storage types.
macro_rules! for_every_type {
    ($f:ident($($argument:expr),*)) => {
        $f::<f32>($($argument),*);
        $f::<half::bf16>($($argument),*);
        $f::<half::f16>($($argument),*);
    };
}
pub(crate) use for_every_type;

/// Repeatable numbers, roughly normal with mean 0 and deviation 1.
pub fn normals(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let mut uniform = || {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count).map(|_| (0..6).map(|_| uniform() - 0.5).sum::<f32>() * 1.41).collect()
}

pub fn scaled(values: Vec<f32>, scale: f32) -> Vec<f32> {
    values.into_iter().map(|x| x * scale).collect()
}

/// A tensor of `values` rounded to `T`.
pub fn tensor<T: Real>(stream: &Stream, values: &[f32], shape: &[usize]) -> Tensor {
    let values: Vec<T> = values.iter().map(|x| T::from_f32(*x)).collect();
    Tensor::upload(stream, &values, shape).unwrap()
}

/// What the kernel is given, exactly: `values` rounded to `T`.
pub fn rounded<T: Real>(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| T::from_f32(*x).to_f32() as f64).collect()
}

/// Fails if a cell differs from `want` by more than 2 x its rounding in `T`, plus `atol`.
pub fn judge<T: Real>(who: &str, got: View<'_>, want: &[f64], atol: f64) {
    let (rounding, least) = match T::DTYPE.name() {
        "f32" => (2f64.powi(-24), 2f64.powi(-149)),
        "bf16" => (2f64.powi(-8), 2f64.powi(-133)),
        _ => (2f64.powi(-11), 2f64.powi(-24)),
    };
    let got = got.to_f32().unwrap();
    assert_eq!(got.len(), want.len(), "{who}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let tolerance = 2.0 * (rounding * want.abs()).max(least / 2.0) + atol;
        let error = (*got as f64 - want).abs();
        let same = error <= tolerance || (want.is_nan() && got.is_nan());
        assert!(same, "{who} {}: cell {i} is {got}, expected {want} ± {tolerance:e}", T::DTYPE);
    }
}

/// The message of an error that must be one.
pub fn message<T>(result: medflamingo::Result<T>) -> String {
    result.err().expect("an error").to_string()
}

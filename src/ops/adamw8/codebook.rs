//! The 256 numbers behind an 8-bit code: dynamic quantisation (arXiv:2110.02861 sec. 2.2), with
//! magnitudes of seven decades, each further one in twice the steps.

use crate::contracts::Adamw8Codebook;
use crate::device::Stream;
use crate::tensor::Tensor;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which numbers the codes of second moments stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecondMomentMap {
    /// 0, 254 numbers of seven decades, and 1.
    #[default]
    Dynamic,
    /// The one of bitsandbytes 0.36 to 0.41: its numbers end at 0.0933, so that larger moments of a
    /// block are cut and steps grow several-fold. Only to reproduce runs of that time.
    Bitsandbytes039,
}

/// The codebooks of both moments, on a device.
pub struct Codebooks {
    pub(super) first: Tensor,
    pub(super) second: Tensor,
}

impl Codebooks {
    /// Uploads the signed book for first moments and the `map`'s for second.
    ///
    /// # Errors
    /// If the device has no memory.
    pub fn new(stream: &Stream, map: SecondMomentMap) -> Result<Self> {
        let upload = |values: &[f32; 256], least: f32| {
            let book = codebook(values, least)?;
            Tensor::upload(stream, bytes(&book), &[size_of::<Adamw8Codebook>()])
        };
        Ok(Codebooks { first: upload(&signed(), -1.0)?, second: upload(&unsigned(map), 0.0)? })
    }
}

fn bytes(book: &Adamw8Codebook) -> &[u8] {
    // SAFETY: a struct of floats and bytes without padding, as its contract's layout says.
    unsafe {
        std::slice::from_raw_parts(
            std::ptr::from_ref(book).cast::<u8>(),
            size_of::<Adamw8Codebook>(),
        )
    }
}

/// The middles of `count` equal steps from 0.1 to 1, times 10^(decade - 6), rounded as
/// torch.linspace and its successors round.
fn middles(decade: i32, count: usize) -> impl Iterator<Item = f32> {
    let step = 0.9f32 / count as f32;
    let edge = move |k: usize| match k < count.div_ceil(2) {
        true => step.mul_add(k as f32, 0.1),
        false => (-step).mul_add((count - k) as f32, 1.0),
    };
    let scale = 10f64.powi(decade - 6) as f32;
    (0..count).map(move |k| scale * ((edge(k) + edge(k + 1)) / 2.0))
}

fn sorted(values: impl Iterator<Item = f32>) -> [f32; 256] {
    let mut all: Vec<f32> = values.chain([0.0, 1.0]).collect();
    all.sort_by(f32::total_cmp);
    std::array::from_fn(|c| all[c])
}

fn signed() -> [f32; 256] {
    sorted((0..7).flat_map(|i| middles(i, 1 << i)).flat_map(|x| [x, -x]))
}

fn unsigned(map: SecondMomentMap) -> [f32; 256] {
    match map {
        SecondMomentMap::Dynamic => sorted((0..7).flat_map(|i| middles(i, 2 << i))),
        SecondMomentMap::Bitsandbytes039 => {
            sorted((0..7).flat_map(|i| middles(i, 4 << i).chain(middles(i, 2))))
        }
    }
}

/// The code that the search of bitsandbytes ends at: the nearest number's, ties where it stops.
fn search(values: &[f32; 256], least: f32, x: f32) -> usize {
    let (mut pivot, mut step) = (127, 64);
    let (mut lower, mut upper) = ((0, least), (255, 1.0f32));
    while step > 0 {
        if x > values[pivot] {
            lower = (pivot, values[pivot]);
            pivot += step;
        } else {
            upper = (pivot, values[pivot]);
            pivot -= step;
        }
        step /= 2;
    }
    let value = values[pivot];
    match x > value {
        true if x > (upper.1 + value) / 2.0 => upper.0,
        false if x < (lower.1 + value) / 2.0 => lower.0,
        _ => pivot,
    }
}

/// The float at `order` among all of them: -1 is -0.0, 0 is 0.0.
fn nth(order: i32) -> f32 {
    f32::from_bits(if order < 0 { !order as u32 | 1 << 31 } else { order as u32 })
}

/// The least float of [-1, 1] whose code is above `code`; NaN if there is none.
fn above(values: &[f32; 256], least: f32, code: usize) -> f32 {
    let one = 1f32.to_bits() as i32;
    let (mut below, mut at) = (!one, one);
    if search(values, least, 1.0) <= code {
        return f32::NAN;
    }
    if search(values, least, nth(below)) > code {
        return f32::NEG_INFINITY;
    }
    while at - below > 1 {
        let middle = below + (at - below) / 2;
        match search(values, least, nth(middle)) > code {
            true => at = middle,
            false => below = middle,
        }
    }
    nth(at)
}

/// The table of `values`, which the search enters with `least` as its lower bound. Where numbers
/// have signs, what bitsandbytes does after the search is in it too: no negative one has the code
/// of 0.
fn codebook(values: &[f32; 256], least: f32) -> Result<Adamw8Codebook> {
    const TINY: u32 = (127 - 23) << 7;
    const CELLS: u32 = 2946;
    let before_zero = values.iter().position(|x| *x == 0.0).and_then(|zero| zero.checked_sub(1));
    let mut cell = [[0; 2948]; 2];
    for (sign, cells) in cell.iter_mut().enumerate() {
        for i in 0..CELLS {
            let first = f32::from_bits(if i == 0 { 0 } else { (TINY + i - 1) << 16 });
            let last = f32::from_bits(((TINY + i) << 16) - 1).min(1.0);
            let ends = if sign == 0 { [first, last] } else { [-last, -first] };
            let most = before_zero.filter(|_| sign == 1).unwrap_or(255);
            let [low, high] = ends.map(|x| search(values, least, x).min(most));
            if high > low + 1 {
                let found = format!("{} between {} and {}", high - low + 1, ends[0], ends[1]);
                return Err(Error::invalid("adamw8: codebook", "two codes of one cell", found));
            }
            cells[i as usize] = low as u8;
        }
    }
    let above = std::array::from_fn(|c| match Some(c) == before_zero {
        true => f32::NAN,
        false => above(values, least, c),
    });
    Ok(Adamw8Codebook { value: *values, above, cell })
}

impl Adamw8Codebook {
    /// The code of the number nearest to x, |x| <= 1; 0 for NaN.
    #[inline(always)]
    pub(super) fn code(&self, x: f32) -> u8 {
        let bits = x.to_bits();
        let cell = ((bits & 0x7fff_ffff) >> 16).saturating_sub(((127 - 23) << 7) - 1).min(2945);
        let code = self.cell[(bits >> 31) as usize][cell as usize];
        if x.is_nan() { 0 } else { code + u8::from(x >= self.above[usize::from(code)]) }
    }

    /// As `code` for the x = m / absmax of a first moment m. The 0 / 0 of bitsandbytes ends below
    /// all numbers, and one further, past the end, if m is not negative.
    #[inline(always)]
    pub(super) fn code_of_first(&self, x: f32, m: f32) -> u8 {
        match x.is_nan() && m.is_sign_positive() {
            true => 255,
            false => self.code(x.copysign(m)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn digest(values: &[f32; 256]) -> String {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        Sha256::digest(bytes).iter().take(8).map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn maps_are_those_of_bitsandbytes() {
        assert_eq!(digest(&signed()), "e732639a65f497b4");
        assert_eq!(digest(&unsigned(SecondMomentMap::Dynamic)), "305f002cc11278fb");
        assert_eq!(digest(&unsigned(SecondMomentMap::Bitsandbytes039)), "7fb825ea6f5268ed");
    }

    /// At every float where a code can change, and around it.
    #[test]
    fn table_and_search_agree() {
        let books = [
            (signed(), -1.0),
            (unsigned(SecondMomentMap::Dynamic), 0.0),
            (unsigned(SecondMomentMap::Bitsandbytes039), 0.0),
        ];
        for (values, least) in books {
            let book = codebook(&values, least).unwrap();
            let mut asked: Vec<f32> = values.to_vec();
            asked.extend(values.windows(2).map(|w| (w[0] + w[1]) / 2.0));
            asked.extend((0..2946u32).map(|i| f32::from_bits((13311 + i) << 16)));
            asked.extend([0.0, -0.0, 1e-40, 1e-9, -1e-9, 1.0]);
            for x in asked.iter().flat_map(|x| [*x, x.next_down(), x.next_up()]) {
                for x in [x, -x] {
                    if (least..=1.0).contains(&x) {
                        let most = if least < 0.0 && x.is_sign_negative() { 126 } else { 255 };
                        let want = search(&values, least, x).min(most);
                        assert_eq!(usize::from(book.code(x)), want, "{x:e}");
                    }
                }
            }
            assert_eq!(book.code(f32::NAN), 0);
        }
    }

    #[test]
    fn a_first_moment_keeps_its_sign() {
        let book = codebook(&signed(), -1.0).unwrap();
        assert_eq!(book.code_of_first(0.0, 0.0), 127);
        assert_eq!(book.code_of_first(0.0, -0.0), 126);
        assert_eq!(book.code_of_first(-1e-9, -1e-9), 126);
        assert_eq!(book.code_of_first(1e-9, 1e-9), 127);
        assert_eq!(book.code_of_first(f32::NAN, 0.0), 255);
        assert_eq!(book.code_of_first(f32::NAN, -0.0), 0);
        assert_eq!((book.value[127], unsigned(SecondMomentMap::Dynamic)[0]), (0.0, 0.0));
    }
}

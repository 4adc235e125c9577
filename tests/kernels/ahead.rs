//! Products ask for what the next launch begins with: all of that, and nothing beyond.

use crate::judge::{cards, normals, tensor};
use half::bf16;
use medflamingo::contracts::{Ahead, GemmParams};
use medflamingo::device::{Chip, Stream};
use medflamingo::ops::{GEMM, gemm_shape};
use medflamingo::tensor::Tensor;
use medflamingo::{DType, Result};

const CHIPS: [Chip; 2] = [Chip::A100, Chip::H200];
/// `SWIGLU`.
const SWIGLU: i32 = 3;

/// The product of `m` rows and B (40,64), with `next` to look ahead to.
fn product(stream: &Stream, m: usize, next: Ahead) -> Result<Vec<f32>> {
    let (n, k) = (40, 64);
    let [a, b] = [(1, m), (2, n)].map(|(seed, rows)| {
        let values = normals(seed, rows * k);
        tensor::<bf16>(stream, &values, &[rows, k])
    });
    let mut c = Tensor::zeros(stream, DType::BF16, &[m, n])?;
    let params = GemmParams {
        c: c.view_mut().ptr(),
        a: a.view().ptr(),
        b: b.view().ptr(),
        workspace: stream.workspace()?,
        next,
        ..gemm_shape([m as i64, n as i64, k as i64])
    };
    // SAFETY: the tensors have the extents that the params state.
    unsafe { stream.launch(&GEMM, DType::BF16, &params) }?;
    c.view().to_f32()
}

/// What a product of m rows with W, all rows of a tensor, would begin with.
fn begins_with(m: i64, w: &Tensor, activation: i32, chip: &Chip) -> Ahead {
    let (n, k) = (w.view().rows() as i64, w.view().cols() as i64);
    let a = std::ptr::without_provenance(64);
    let params = GemmParams { a, b: w.view().ptr(), activation, ..gemm_shape([m, n, k]) };
    let found = (GEMM.geometry)(&params, DType::BF16, chip).ahead.unwrap();
    assert_eq!(found.at, std::mem::offset_of!(GemmParams, next));
    let [_, stride, tiles, pitch, away, rows, bytes] = found.words.map(|word| word as i64);
    Ahead { from: w.view().ptr(), stride, tiles, pitch, away, rows, bytes }
}

/// Rows of A of products that look ahead, and of the products that they look ahead to: of few rows,
/// and on Hopper of more.
fn pairs(chip: &Chip) -> &'static [(usize, i64)] {
    match chip.has_wgmma() {
        true => &[(1, 1), (8, 1), (40, 40), (1, 40), (40, 1)],
        false => &[(1, 1), (8, 1)],
    }
}

#[test]
fn what_the_next_begins_with_is_asked_for() {
    for (stream, chip) in cards(CHIPS).iter().zip(CHIPS) {
        for &(m, later) in pairs(&chip) {
            let nothing =
                Ahead { from: std::ptr::null(), ..begins(stream, later, (16, 8), 0, &chip).1 };
            let alone = product(stream, m, nothing).unwrap();
            // Short rows and long; the last tile whole and not; more tiles than blocks here.
            for (shape, activation) in [
                ((48, 32), 0),
                ((53, 32), 0),
                ((16, 4096), 0),
                ((48, 32), SWIGLU),
                ((54, 48), SWIGLU),
            ] {
                let (_w, next) = begins(stream, later, shape, activation, &chip);
                assert_eq!(product(stream, m, next).unwrap(), alone, "{m} {next:?}");
            }
        }
    }
}

fn begins(
    stream: &Stream,
    m: i64,
    (n, k): (usize, usize),
    activation: i32,
    chip: &Chip,
) -> (Tensor, Ahead) {
    let w = Tensor::zeros(stream, DType::BF16, &[n, k]).unwrap();
    let next = begins_with(m, &w, activation, chip);
    (w, next)
}

/// The emulator sees all that is asked for: of the last row the last bytes.
#[test]
fn all_of_it_is_and_nothing_beyond() {
    for chip in CHIPS {
        let shapes = [((53, 32), 0), ((48, 32), SWIGLU)];
        for ((shape, activation), &(m, later)) in
            shapes.into_iter().flat_map(|shape| pairs(&chip).iter().map(move |pair| (shape, pair)))
        {
            let fails = |wrong: fn(Ahead) -> Ahead| {
                let stream = Stream::emulated(chip).unwrap();
                let (_w, next) = begins(&stream, later, shape, activation, &chip);
                product(&stream, m, wrong(next)).map_or_else(|e| e.to_string(), |_| String::new())
            };
            assert_eq!(fails(|next| next), "");
            for wrong in [
                |next: Ahead| Ahead { bytes: next.bytes + 16, ..next },
                |next: Ahead| Ahead { rows: next.rows + 8, tiles: next.tiles + 1, ..next },
                |next: Ahead| Ahead { stride: next.stride + 16, ..next },
            ] {
                assert!(fails(wrong).contains("of a buffer of"), "{}", fails(wrong));
            }
            // Tiles that are not among the first are left alone.
            assert_eq!(fails(|next| Ahead { bytes: next.bytes + 16, tiles: 1, ..next }), "");
        }
    }
}

/// As much as memory delivers while nothing else is asked for: more tiles of shorter rows.
#[test]
fn it_is_as_much_as_the_pause_between_launches_takes() {
    let of = |m, n, k| {
        let params = gemm_shape([m, n, k]);
        let found = (GEMM.geometry)(&params, DType::BF16, &Chip::H200).ahead?;
        let [.., tiles, _, _, _, bytes] = found.words;
        Some((tiles, bytes))
    };
    assert_eq!(of(1, 22016, 4096), Some((264, 4096)));
    assert_eq!(of(1, 22016, 1024), Some((512, 2048)));
    assert_eq!(of(1, 4096, 11008), Some((256, 4096)));
    // Blocks of tiles begin with all rows at once.
    assert_eq!(of(35, 22016, 4096), Some((1376, 640)));
    assert_eq!(of(250, 4096, 11008), Some((256, 4096)));
    assert_eq!(of(250, 512, 1024), Some((32, 2048)));
    // More rows of A take longer than their weights.
    assert_eq!(of(257, 4096, 11008), None);
}

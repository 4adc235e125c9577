//! The tiles of `gemm` against each other, on a card or by estimate, as a table of the fastest.

use super::filled;
use crate::device::{Chip, Device, Products};
use crate::ops::{
    Epilogue, Tiling, gemm, gemm_shape, gemm_tiled, gemm_tilings, tile_heading, tile_line,
};
use crate::tensor::{Tensor, View};
use crate::{DType, Error, Result};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Launches of a tile, one by one; the median counts.
const REPEATS: usize = 21;
/// Elements of the weights, 512 MiB: each launch has the next part, which so comes from memory.
const WEIGHTS: usize = 256 << 20;
/// Elements of A and of C, at most.
const ACTIVATIONS: usize = 8192 * 22016;

type Rows = &'static [i64];
type Matrices = &'static [(i64, i64)];

/// Tokens of a suffix, of the published demo's prompt and of a training sequence; then one image
/// and seven, their latents, and a product that is only large.
const SHAPES: [(Rows, Matrices); 6] = [
    // Numbers of rows m, and matrices (n, k) that each is multiplied by.
    (
        &[35, 250, 2048],
        &[(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (16384, 4096), (4096, 16384)],
    ),
    (&[250], &[(512, 4096), (4096, 512)]),
    (&[257, 1799], &[(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)]),
    (&[64, 448], &[(512, 1024), (1024, 512), (4096, 1024), (1024, 4096)]),
    (&[1792], &[(6144, 1024)]),
    (&[8192], &[(22016, 4096)]),
];

/// m, n, k of every product.
fn shapes() -> impl Iterator<Item = [i64; 3]> {
    let of = |(rows, matrices): (Rows, Matrices)| {
        rows.iter().flat_map(move |&m| matrices.iter().map(move |&(n, k)| [m, n, k]))
    };
    SHAPES.into_iter().flat_map(of)
}

/// The table of the tiles that should be fastest on `chip`, by an estimate; if `all`, with the
/// slower ones as comments. Its figures stand in for measurements.
///
/// # Errors
/// None that are known: those of [`measured_tiles`].
pub fn predicted_tiles(chip: &Chip, all: bool) -> Result<String> {
    let compare = |shape| {
        let mut tilings = gemm_tilings(&gemm_shape(shape), DType::BF16, chip);
        let own = |t: &Tiling| t.variant.starts_with("_sm90") == chip.has_wgmma();
        tilings.retain(|t| own(t) && t.variant != "_plain");
        let timed = |t: Tiling| (t.predicted_us, t);
        Ok((tilings.into_iter().map(timed).collect(), None))
    };
    table(tile_heading(chip, None), all, compare, &mut |_, _, _| {})
}

/// The table of the tiles that are fastest on a card: medians of 21 launches one by one, us, with
/// weights that come from memory. If `all`, the slower ones are comments, and so is cuBLASLt's time
/// where that library is. `progress` gets how many products are done, of how many, and the last
/// one's row.
///
/// # Errors
/// [`Error::Invalid`] if the device is the host; [`Error::Device`] if there is no such card, or it
/// has no room, or has failed.
pub fn measured_tiles(
    device: Device,
    all: bool,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<String> {
    // Every tile has its turn: a table that cannot be read is no reason not to make another.
    let mut stream = device.connect(0)?;
    let Some(chip) = stream.chip().copied() else {
        let expected = "a CUDA card, or --chip for an estimate";
        return Err(Error::invalid("tiles", expected, stream.describe()));
    };
    let has_peer = all && stream.choose_products(Products::CublasLt).is_ok();
    let weights = filled(&stream, DType::BF16, &[1, WEIGHTS])?;
    let a = filled(&stream, DType::BF16, &[1, ACTIVATIONS])?;
    let mut c = Tensor::zeros(&stream, DType::BF16, &[1, ACTIVATIONS])?;
    let mut compare = |shape: [i64; 3]| {
        let [m, n, k] = shape.map(|size| size as usize);
        let a = a.view().block(0..1, 0..m * k)?.shaped(&[m, k])?;
        let mut median = |tiling: Option<&Tiling>| -> Result<f64> {
            stream.record();
            for i in 0..REPEATS {
                let at = i % (WEIGHTS / (n * k)) * n * k;
                let b: View<'_> = weights.view().block(0..1, at..at + n * k)?.shaped(&[n, k])?;
                let c = c.view_mut().block(0..1, 0..m * n)?.shaped(&[m, n])?;
                match tiling {
                    Some(tiling) => gemm_tiled(&stream, c, a, b, tiling)?,
                    None => gemm(&stream, c, a, b, Epilogue::default())?,
                }
            }
            let mut us: Vec<f64> = stream.recording()?.launches.iter().map(|l| l.us).collect();
            us.sort_by(f64::total_cmp);
            Ok(us[us.len() / 2])
        };
        let mut found = Vec::new();
        for tiling in gemm_tilings(&gemm_shape(shape), DType::BF16, &chip) {
            found.push((median(Some(&tiling))?, tiling));
        }
        let peer = if has_peer { Some(median(None)?) } else { None };
        Ok((found, peer))
    };
    let what = format!("{}, {}", stream.describe(), day(SystemTime::now()));
    table(tile_heading(&chip, Some(&what)), all, &mut compare, progress)
}

/// Ways to lay a product out, with their times, and the peer's time, us.
type Compared = (Vec<(f64, Tiling)>, Option<f64>);

fn table(
    heading: String,
    all: bool,
    mut compare: impl FnMut([i64; 3]) -> Result<Compared>,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<String> {
    let (mut text, count) = (heading, shapes().count());
    for (i, shape) in shapes().enumerate() {
        let (mut found, peer) = compare(shape)?;
        // Equals stay in their order: the first is the one that is chosen without a table.
        found.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        if let Some(us) = peer {
            text += &format!("# cuBLASLt: {us:.1}\n");
        }
        let most = if all { found.len() } else { 1 };
        for (j, (us, tiling)) in found.iter().take(most).enumerate() {
            let line = tile_line(shape, tiling, *us);
            if j == 0 {
                progress(i + 1, count, &line);
            }
            text += &format!("{}{line}\n", if j > 0 { "# " } else { "" });
        }
    }
    Ok(text)
}

/// The day of `time` in UTC, such as 2026-11-26; by Hinnant's `civil_from_days`
/// (howardhinnant.github.io/date_algorithms.html) of days since 1970.
fn day(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    // Years begin in March, eras of 400 of them in 0000.
    let days = seconds / 86400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{}-{month:02}-{day:02}", era * 400 + year + later)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        // `date -u -d @SECONDS +%F`
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_798_761_599, "2026-12-31"),
            (1_798_761_600, "2027-01-01"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(day(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_host_has_no_tiles() {
        let e = measured_tiles(Device::Host, false, &mut |_, _, _| {}).unwrap_err();
        assert!(e.to_string().contains("--chip"), "{e}");
    }
}

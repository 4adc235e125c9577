//! What a picture looks like, small enough to be remembered.

use crate::image::{Mode, Picture};

const WIDTH: usize = 17;
const HEIGHT: usize = 16;
/// Pictures of one look differ in at most so many of 256 bits, and so many levels of gray on
/// average. Below the number of keys, so that none is missed.
const MAX_BITS: u32 = 8;
const MAX_LEVELS: u32 = 4;
/// Largest difference of the proportions, in percent.
const MAX_PROPORTION: u32 = 5;

/// Mean levels of gray of 17 x 16 fields, and whether each is brighter than its right neighbour.
pub(super) struct Thumbnail {
    gray: [u8; WIDTH * HEIGHT],
    bits: [u16; HEIGHT],
    /// Width in percent of the height.
    proportion: u32,
}

impl Thumbnail {
    pub(super) fn new(picture: &Picture) -> Self {
        let mut gray = [0; WIDTH * HEIGHT];
        for (y, row) in gray.chunks_mut(WIDTH).enumerate() {
            for (x, level) in row.iter_mut().enumerate() {
                *level = mean(picture, x, y);
            }
        }
        let mut bits = [0; HEIGHT];
        for (bits, row) in bits.iter_mut().zip(gray.chunks(WIDTH)) {
            *bits = row.windows(2).fold(0, |bits, w| bits << 1 | u16::from(w[0] > w[1]));
        }
        let proportion = (100 * picture.width / picture.height.max(1)) as u32;
        Thumbnail { gray, bits, proportion }
    }

    /// True if there is next to nothing on it.
    pub(super) fn is_blank(&self) -> bool {
        let (least, most) = (self.gray.iter().min(), self.gray.iter().max());
        least.zip(most).is_none_or(|(least, most)| most - least <= 2)
    }

    /// Place and value of each part of the hash.
    pub(super) fn keys(&self) -> [(u8, u16); HEIGHT] {
        std::array::from_fn(|i| (i as u8, self.bits[i]))
    }

    pub(super) fn is_like(&self, other: &Thumbnail) -> bool {
        let bits: u32 = self.bits.iter().zip(&other.bits).map(|(a, b)| (a ^ b).count_ones()).sum();
        let levels: u32 =
            self.gray.iter().zip(&other.gray).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
        let (a, b) = (self.proportion, other.proportion);
        bits <= MAX_BITS
            && levels <= MAX_LEVELS * (WIDTH * HEIGHT) as u32
            && 100 * a.abs_diff(b) <= MAX_PROPORTION * a.max(b)
    }
}

/// The mean level of field (x, y): of at most 64 x 64 pixels, evenly chosen.
fn mean(picture: &Picture, x: usize, y: usize) -> u8 {
    let field = |i: usize, fields: usize, n: usize| {
        let start = i * n / fields;
        start..((i + 1) * n / fields).max(start + 1).min(n)
    };
    let (columns, rows) = (field(x, WIDTH, picture.width), field(y, HEIGHT, picture.height));
    let (across, down) = (columns.len().div_ceil(64), rows.len().div_ceil(64));
    let (mut sum, mut count) = (0u64, 0u64);
    for row in rows.step_by(down.max(1)) {
        for column in columns.clone().step_by(across.max(1)) {
            sum += u64::from(level(picture, row * picture.width + column));
            count += 1;
        }
    }
    (sum / count.max(1)) as u8
}

/// The level of gray of pixel `i`, alpha ignored.
fn level(picture: &Picture, i: usize) -> u8 {
    let pixel = &picture.data[i * picture.mode.bytes()..][..picture.mode.bytes()];
    let luma = |r: u8, g: u8, b: u8| {
        ((299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b)) / 1000) as u8
    };
    match picture.mode {
        Mode::Bilevel | Mode::Gray | Mode::GrayAlpha => pixel[0],
        // The high byte: the low one comes first.
        Mode::Gray16 => pixel[1],
        Mode::Rgb | Mode::Rgba => luma(pixel[0], pixel[1], pixel[2]),
        Mode::Palette => {
            let [r, g, b] = picture.palette.get(usize::from(pixel[0])).copied().unwrap_or_default();
            luma(r, g, b)
        }
        Mode::Cmyk => {
            let paper = |ink: u8| 255 - ink.saturating_add(pixel[3]);
            luma(paper(pixel[0]), paper(pixel[1]), paper(pixel[2]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize, level: impl Fn(f64, f64) -> f64) -> Thumbnail {
        let pixel = |i: usize| {
            let (x, y) = ((i % width) as f64 / width as f64, (i / width) as f64 / height as f64);
            level(x, y).clamp(0.0, 255.0) as u8
        };
        let data = (0..width * height).map(pixel).collect();
        Thumbnail::new(&Picture::new(width, height, Mode::Gray, data).unwrap())
    }

    fn organ(side: f64) -> impl Fn(f64, f64) -> f64 {
        move |x, y| 128.0 + 80.0 * (9.0 * x * side + 5.0 * y).sin() + 40.0 * (7.0 * y).cos()
    }

    #[test]
    fn another_size_looks_the_same_and_another_subject_does_not() {
        let one = picture(200, 160, organ(1.0));
        let brighter = |x, y| organ(1.0)(x, y) + 3.0;
        assert!(one.is_like(&picture(400, 320, organ(1.0))));
        assert!(one.is_like(&picture(200, 160, brighter)));
        assert!(one.keys().iter().zip(picture(400, 320, organ(1.0)).keys()).any(|(a, b)| *a == b));
        assert!(!one.is_like(&picture(200, 160, organ(-1.0))));
        assert!(!one.is_like(&picture(160, 160, organ(1.0))));
        assert!(picture(50, 50, |_, _| 254.0).is_blank() && !one.is_blank());
        assert!(!picture(5, 3, organ(1.0)).is_blank());
    }
}

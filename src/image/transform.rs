//! open_clip's `openai` evaluation transform: resize the shorter side, crop, RGB; and the numbers
//! that its normalisation makes of bytes.

use super::config::Config;
use super::resample::{Target, bicubic, bicubic_16, nearest};
use super::{Mode, Picture};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// CLIP's preprocessing, read from and written to `preprocessor_config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Config", into = "Config")]
pub struct Preprocess {
    /// Side of the square that the vision tower sees, in pixels.
    pub size: usize,
    /// Subtracted from each channel of the picture in 0..=1.
    pub mean: [f32; 3],
    /// Then divided by.
    pub std: [f32; 3],
}

impl Preprocess {
    /// The constants of OpenAI's CLIP models at another `size` (224 for all published ones).
    pub const fn clip(size: usize) -> Self {
        Preprocess {
            size,
            mean: [0.48145466_f64 as f32, 0.4578275_f64 as f32, 0.40821073_f64 as f32],
            std: [0.26862954_f64 as f32, 0.26130258_f64 as f32, 0.27577711_f64 as f32],
        }
    }

    /// What the vision tower reads for each byte of each channel: `(byte / 255 - mean) / std`, in
    /// f32, equal to upstream's bit for bit; (3, 256).
    pub fn levels(&self) -> [[f32; 256]; 3] {
        let level = |c: usize, v: u8| (f32::from(v) / 255.0 - self.mean[c]) / self.std[c];
        std::array::from_fn(|c| std::array::from_fn(|v| level(c, v as u8)))
    }

    /// Where the crop lies: the shorter side becomes `size`, the longer is cut off to a whole
    /// number, the offsets are rounded half to even.
    fn target(&self, width: usize, height: usize) -> Target {
        let side = |n: usize| self.size * n / width.min(height);
        let middle = |n: usize| {
            let spare = n - self.size;
            spare / 2 + usize::from(spare % 4 == 3)
        };
        let (width, height) = (side(width), side(height));
        Target { width, height, left: middle(width), top: middle(height), size: self.size }
    }
}

/// A picture as the vision tower takes it: (3, size, size) bytes, row-major. It makes numbers of
/// them by [`Preprocess::levels`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Side in pixels.
    pub size: usize,
    /// `3 * size * size` bytes: all red, all green, all blue.
    pub data: Vec<u8>,
}

/// [`resize_crop`], channel by channel.
///
/// # Errors
/// As [`resize_crop`].
pub fn preprocess(picture: &Picture, how: &Preprocess) -> Result<Pixels> {
    let rgb = resize_crop(picture, how)?;
    let data = (0..3).flat_map(|c| rgb.iter().skip(c).step_by(3).copied()).collect();
    Ok(Pixels { size: how.size, data })
}

/// Resize, crop and RGB. Returns (size, size, 3), interleaved.
///
/// # Errors
/// A picture without pixels or a palette that its mode needs; a `size` of 0.
pub fn resize_crop(picture: &Picture, how: &Preprocess) -> Result<Vec<u8>> {
    let (width, height) = (picture.width, picture.height);
    let bytes = width.checked_mul(height).and_then(|n| n.checked_mul(picture.mode.bytes()));
    if bytes.is_none_or(|n| n == 0 || n != picture.data.len()) {
        let found = format!("{width}x{height} with {} bytes", picture.data.len());
        return Err(Error::invalid("image", "width * height pixels", found));
    }
    if how.size == 0 || how.size > 1 << 14 {
        return Err(Error::invalid("preprocess size", "1 to 16384 pixels", how.size));
    }
    let target = how.target(width, height);
    let is_resized = (target.width, target.height) != (width, height);
    let data = picture.data.as_slice();
    Ok(match picture.mode {
        Mode::Bilevel => gray(&nearest(data, width, &target)),
        Mode::Palette => {
            let color = |&i: &u8| picture.palette.get(usize::from(i)).copied().unwrap_or_default();
            nearest(data, width, &target).iter().flat_map(color).collect()
        }
        Mode::Gray => gray(&bicubic::<1>(data, width, &target)),
        Mode::Gray16 => {
            let clip = |&v: &u16| [v.min(255) as u8; 3];
            bicubic_16(data, width, &target).iter().flat_map(clip).collect()
        }
        Mode::Rgb => bicubic::<3>(data, width, &target),
        Mode::Cmyk => {
            bicubic::<4>(data, width, &target).as_chunks().0.iter().flat_map(ink).collect()
        }
        Mode::GrayAlpha if is_resized => {
            let resized = bicubic::<2>(&premultiply::<2>(data), width, &target);
            resized.as_chunks().0.iter().flat_map(|&[l, a]| [divide(l, a); 3]).collect()
        }
        Mode::Rgba if is_resized => {
            let resized = bicubic::<4>(&premultiply::<4>(data), width, &target);
            let color = |&[r, g, b, a]: &[u8; 4]| [r, g, b].map(|v| divide(v, a));
            resized.as_chunks().0.iter().flat_map(color).collect()
        }
        Mode::GrayAlpha => {
            let cut = bicubic::<2>(data, width, &target);
            cut.as_chunks().0.iter().flat_map(|&[l, _]| [l; 3]).collect()
        }
        Mode::Rgba => {
            let cut = bicubic::<4>(data, width, &target);
            cut.as_chunks().0.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect()
        }
    })
}

fn gray(samples: &[u8]) -> Vec<u8> {
    samples.iter().flat_map(|&v| [v; 3]).collect()
}

/// `a * b / 255`, rounded, for bytes.
fn multiply(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// Every channel times the last one, alpha.
fn premultiply<const C: usize>(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for pixel in data.as_chunks_mut::<C>().0 {
        let alpha = pixel[C - 1];
        pixel[..C - 1].iter_mut().for_each(|v| *v = multiply(*v, alpha));
    }
    data
}

/// Undoes the multiplication by alpha, cutting off; where alpha is 0 the colour is what is left.
fn divide(value: u8, alpha: u8) -> u8 {
    match alpha {
        0 => value,
        _ => (255 * u32::from(value) / u32::from(alpha)).min(255) as u8,
    }
}

/// `CMYK` to RGB without a profile: the paper that shows through the black, less each ink.
fn ink(&[c, m, y, k]: &[u8; 4]) -> [u8; 3] {
    let paper = 255 - k;
    [c, m, y].map(|v| paper.saturating_sub(multiply(v, paper)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn sha(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The six pictures of a formula whose crops were recorded from Pillow.
    #[test]
    fn formula_pictures_equal_the_recorded_crops() {
        let cases: [(usize, usize, &str, u64); 6] = [
            (300, 200, "dc61488fcb59a579", 19_198_700),
            (200, 300, "c42b17c814081c2d", 19_179_873),
            (1000, 731, "a989d9d5e878343b", 19_190_575),
            (100, 60, "b446680b01af732c", 19_188_438),
            (513, 512, "2febc90bbd69ea9a", 19_193_107),
            (640, 480, "35db794ce086cea8", 19_190_495),
        ];
        for (w, h, hash, sum) in cases {
            let value = |i: usize| {
                let (x, y, c) = (i / 3 % w, i / 3 / w, i % 3);
                (7 * x + 13 * y + 29 * c + x * y / 17) as u8
            };
            let data = (0..w * h * 3).map(value).collect();
            let picture = Picture::new(w, h, Mode::Rgb, data).unwrap();
            let rgb = resize_crop(&picture, &Preprocess::clip(224)).unwrap();
            assert_eq!(&sha(&rgb)[..16], hash, "{w}x{h}");
            assert_eq!(rgb.iter().map(|&v| u64::from(v)).sum::<u64>(), sum, "{w}x{h}");
        }
    }

    #[test]
    fn the_long_side_is_cut_off_and_offsets_round_half_to_even() {
        let how = Preprocess::clip(224);
        let target = |w, h| how.target(w, h);
        let expected = |width, height, left, top| Target { width, height, left, top, size: 224 };
        assert_eq!(target(300, 200), expected(336, 224, 56, 0));
        assert_eq!(target(100, 60), expected(373, 224, 74, 0)); // 149 / 2 = 74.5
        assert_eq!(target(556, 635), expected(224, 255, 0, 16)); // 31 / 2 = 15.5
        assert_eq!(target(224, 225), expected(224, 225, 0, 0)); // 1 / 2 = 0.5
        assert_eq!(target(227, 224), expected(227, 224, 2, 0)); // 3 / 2 = 1.5
    }

    #[test]
    fn inconsistent_pictures_are_refused() {
        let good = Picture::new(2, 2, Mode::Gray, vec![0; 4]).unwrap();
        let how = Preprocess::clip(224);
        for bad in [
            Picture { width: 3, ..good.clone() },
            Picture { width: 0, data: Vec::new(), ..good.clone() },
            Picture { width: usize::MAX, ..good.clone() },
        ] {
            assert!(preprocess(&bad, &how).is_err());
        }
        assert!(preprocess(&good, &Preprocess::clip(0)).is_err());
    }
}

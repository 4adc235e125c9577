//! Pictures in, pixels out: the same bytes that Pillow and open_clip's `openai` transform give.
//!
//! `decode` turns a JPEG or PNG file into a [`Picture`] in the mode in which Pillow would open it;
//! `preprocess` resizes the shorter side, crops and converts to RGB, in that order; the vision
//! tower normalises the bytes as it reads them.
//! The order matters and is kept: palette and 1-bit pictures are resized by nearest neighbour,
//! pictures with alpha are resized premultiplied and the alpha is then dropped, and 16-bit gray is
//! clipped to 255 after the resize (so most of it comes out white).
//!
//! Sizes are read from the header and checked against [`Limits`] before anything is decoded.
//! What this module refuses to do: apply the EXIF orientation (Pillow's `open` does not), apply
//! colour profiles, read DICOM, GIF, WebP, TIFF or BMP, or return half of a truncated file.

mod config;
mod decode;
mod jpeg;
mod png;
mod resample;
mod transform;

use crate::{Error, Result};

pub use decode::decode;
pub use png::encode_png;
pub use transform::{Pixels, Preprocess, preprocess, resize_crop};

/// What a picture may be before it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest file, in bytes.
    pub max_bytes: usize,
    /// Longest side, in pixels.
    pub max_side: u32,
    /// Most pixels, width times height.
    pub max_pixels: u64,
    /// Largest ratio of the longer to the shorter side.
    pub max_aspect: u32,
}

impl Default for Limits {
    /// 64 MiB of file, sides up to 16,384, 64 Mi pixels, aspect up to 200:1.
    fn default() -> Self {
        Limits { max_bytes: 64 << 20, max_side: 16_384, max_pixels: 64 << 20, max_aspect: 200 }
    }
}

impl Limits {
    /// Accepts a width and height read from a header.
    ///
    /// # Errors
    /// A side of 0, or any of the limits exceeded.
    pub fn check(&self, width: u32, height: u32) -> Result<()> {
        let found = format!("{width}x{height}");
        let refuse = |expected: String| Err(Error::invalid("image size", expected, &found));
        let (long, short) = (width.max(height), width.min(height));
        if short == 0 {
            return refuse("at least 1x1 pixel".into());
        }
        if long > self.max_side {
            return refuse(format!("sides of at most {} pixels", self.max_side));
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return refuse(format!("at most {} pixels", self.max_pixels));
        }
        if u64::from(long) > u64::from(short) * u64::from(self.max_aspect) {
            return refuse(format!("sides within {}:1 of each other", self.max_aspect));
        }
        Ok(())
    }
}

/// How the bytes of a [`Picture`] are to be read; named as in Pillow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// `1`: one byte per pixel, 0 or 255.
    Bilevel,
    /// `L`: gray.
    Gray,
    /// `LA`: gray, alpha.
    GrayAlpha,
    /// `P`: one index per pixel into the palette.
    Palette,
    /// `RGB`.
    Rgb,
    /// `RGBA`.
    Rgba,
    /// `I;16`: gray, two bytes per pixel, low byte first.
    Gray16,
    /// `CMYK`: 0 is no ink (Adobe's inversion is already undone).
    Cmyk,
}

impl Mode {
    /// Pillow's name of the mode.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Bilevel => "1",
            Mode::Gray => "L",
            Mode::GrayAlpha => "LA",
            Mode::Palette => "P",
            Mode::Rgb => "RGB",
            Mode::Rgba => "RGBA",
            Mode::Gray16 => "I;16",
            Mode::Cmyk => "CMYK",
        }
    }

    /// Bytes of one pixel in [`Picture::data`].
    pub const fn bytes(self) -> usize {
        match self {
            Mode::Bilevel | Mode::Gray | Mode::Palette => 1,
            Mode::GrayAlpha | Mode::Gray16 => 2,
            Mode::Rgb => 3,
            Mode::Rgba | Mode::Cmyk => 4,
        }
    }
}

/// A decoded picture: row-major, top row first, interleaved channels, no padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// What the bytes of `data` are.
    pub mode: Mode,
    /// RGB triples, in the order of their indices; empty unless the mode is `P`.
    pub palette: Vec<[u8; 3]>,
    /// `height * width * mode.bytes()` bytes.
    pub data: Vec<u8>,
}

impl Picture {
    /// A picture from pixels that are already in memory.
    ///
    /// # Errors
    /// A size outside of [`Limits::default`], or `data` of another length than the size implies.
    pub fn new(width: usize, height: usize, mode: Mode, data: Vec<u8>) -> Result<Self> {
        let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Limits::default().check(side(width), side(height))?;
        let expected = width * height * mode.bytes();
        if data.len() != expected {
            let who = format!("{} image of {width}x{height}", mode.name());
            return Err(Error::invalid(
                who,
                format!("{expected} bytes"),
                format!("{} bytes", data.len()),
            ));
        }
        Ok(Picture { width, height, mode, palette: Vec::new(), data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked_at_their_edges() {
        let limits = Limits::default();
        for good in [(1, 1), (1, 200), (200, 1), (16_384, 4096), (8192, 8192)] {
            assert!(limits.check(good.0, good.1).is_ok(), "{good:?}");
        }
        let bad = [(0, 0), (0, 9), (1, 201), (1, 16_384), (16_385, 900), (16_384, 4097)];
        for bad in bad.into_iter().chain([(65_535, 65_535), (u32::MAX, u32::MAX)]) {
            let error = limits.check(bad.0, bad.1).unwrap_err();
            assert!(error.to_string().contains(&format!("{}x{}", bad.0, bad.1)), "{error}");
        }
    }

    #[test]
    fn a_picture_that_was_written_is_read_back() {
        for (mode, bytes) in [(Mode::Gray, 6), (Mode::Rgb, 18)] {
            let picture = Picture::new(3, 2, mode, (0..bytes).collect()).unwrap();
            let read = decode(&encode_png(&picture).unwrap(), &Limits::default()).unwrap();
            assert_eq!(read, picture);
        }
        let alpha = Picture::new(1, 1, Mode::Rgba, vec![0; 4]).unwrap();
        assert!(encode_png(&alpha).unwrap_err().to_string().contains("RGBA"));
    }

    #[test]
    fn a_picture_has_the_bytes_its_size_implies() {
        let error = Picture::new(4, 2, Mode::Rgb, vec![0; 23]).unwrap_err();
        assert!(error.to_string().contains("24 bytes"), "{error}");
    }
}

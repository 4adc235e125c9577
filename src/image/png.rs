//! PNG files, read in the mode in which Pillow opens each combination of depth and colour type.
//!
//! 16-bit colour keeps its high bytes, as in Pillow; 16-bit gray stays 16-bit; 16-bit gray with
//! alpha becomes `RGBA`. Of an animation the first picture in the file is read. Transparent
//! colours (`tRNS`) are read past, since the transform drops alpha in the end.

use super::{Limits, Mode, Picture};
use crate::{Error, Result};
use ::png::{BitDepth, ColorType, DecodeOptions, Decoder, DecodingError, Transformations};
use std::io::{Cursor, ErrorKind};

/// The first bytes of every PNG file.
pub(super) const MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Decodes a PNG file.
///
/// # Errors
/// A header outside of `limits`, a truncated or damaged file. All checksums of the pixel data are
/// verified and the last chunk must be there; Pillow forgives a wrong CRC and a missing `IEND`.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture> {
    if let Some([w3, w2, w1, w0, h3, h2, h1, h0]) = bytes.get(16..24) {
        let (width, height) = ([*w3, *w2, *w1, *w0], [*h3, *h2, *h1, *h0]);
        limits.check(u32::from_be_bytes(width), u32::from_be_bytes(height))?;
    }
    let mut options = DecodeOptions::default();
    options.set_ignore_checksums(false);
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    let mut decoder = Decoder::new_with_options(Cursor::new(bytes), options);
    let info = decoder.read_header_info().map_err(refuse)?;
    let (width, height) = (info.width as usize, info.height as usize);
    let (color, depth) = (info.color_type, info.bit_depth);
    if color != ColorType::Grayscale {
        decoder.set_transformations(Transformations::STRIP_16);
    }
    let mut reader = decoder.read_info().map_err(refuse)?;
    let length = reader.output_buffer_size().ok_or_else(|| damaged("an impossible size"))?;
    let mut data = vec![0; length];
    let frame = reader.next_frame(&mut data).map_err(refuse)?;
    if (frame.width as usize, frame.height as usize) != (width, height) {
        return Err(damaged("a first frame smaller than the picture"));
    }
    let palette = match (color, &reader.info().palette) {
        (ColorType::Indexed, Some(entries)) => entries.as_chunks().0.to_vec(),
        (ColorType::Indexed, None) => return Err(damaged("no palette")),
        _ => Vec::new(),
    };
    let (mode, data) = as_pillow(color, depth, width, data);
    Ok(Picture { width, height, mode, palette, data })
}

/// The PNG file of a gray or RGB picture.
///
/// # Errors
/// Another mode.
pub fn encode_png(picture: &Picture) -> Result<Vec<u8>> {
    let color = match picture.mode {
        Mode::Gray => ColorType::Grayscale,
        Mode::Rgb => ColorType::Rgb,
        other => return Err(Error::invalid("picture to write", "L or RGB", other.name())),
    };
    let wrong =
        |e: ::png::EncodingError| Error::invalid("picture to write", "one that fits PNG", e);
    let mut bytes = Vec::new();
    let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut encoder = ::png::Encoder::new(&mut bytes, side(picture.width), side(picture.height));
    encoder.set_color(color);
    let mut writer = encoder.write_header().map_err(wrong)?;
    writer.write_image_data(&picture.data).map_err(wrong)?;
    writer.finish().map_err(wrong)?;
    Ok(bytes)
}

/// The mode Pillow chooses, and the pixels unpacked for it.
fn as_pillow(color: ColorType, depth: BitDepth, width: usize, data: Vec<u8>) -> (Mode, Vec<u8>) {
    match (color, depth) {
        (ColorType::Grayscale, BitDepth::One) => (Mode::Bilevel, unpack(&data, width, 1, 255)),
        (ColorType::Grayscale, BitDepth::Two) => (Mode::Gray, unpack(&data, width, 2, 85)),
        (ColorType::Grayscale, BitDepth::Four) => (Mode::Gray, unpack(&data, width, 4, 17)),
        (ColorType::Grayscale, BitDepth::Eight) => (Mode::Gray, data),
        (ColorType::Grayscale, BitDepth::Sixteen) => {
            let mut data = data;
            data.as_chunks_mut::<2>().0.iter_mut().for_each(|v| v.reverse());
            (Mode::Gray16, data)
        }
        (ColorType::Indexed, BitDepth::One) => (Mode::Palette, unpack(&data, width, 1, 1)),
        (ColorType::Indexed, BitDepth::Two) => (Mode::Palette, unpack(&data, width, 2, 1)),
        (ColorType::Indexed, BitDepth::Four) => (Mode::Palette, unpack(&data, width, 4, 1)),
        (ColorType::Indexed, _) => (Mode::Palette, data),
        (ColorType::GrayscaleAlpha, BitDepth::Sixteen) => {
            (Mode::Rgba, data.as_chunks().0.iter().flat_map(|&[l, a]| [l, l, l, a]).collect())
        }
        (ColorType::GrayscaleAlpha, _) => (Mode::GrayAlpha, data),
        (ColorType::Rgb, _) => (Mode::Rgb, data),
        (ColorType::Rgba, _) => (Mode::Rgba, data),
    }
}

/// Samples of `bits` bits (rows begin on a byte, high bits first), each times `scale`.
fn unpack(data: &[u8], width: usize, bits: usize, scale: u8) -> Vec<u8> {
    let per_byte = 8 / bits;
    let mask = (1u8 << bits) - 1;
    let mut samples = Vec::with_capacity(data.len() * per_byte);
    for row in data.chunks_exact(width.div_ceil(per_byte)) {
        samples.extend((0..width).map(|x| {
            let shift = 8 - bits * (x % per_byte + 1);
            (row[x / per_byte] >> shift & mask) * scale
        }));
    }
    samples
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::invalid("PNG", "an undamaged file", what)
}

fn refuse(error: DecodingError) -> Error {
    match error {
        DecodingError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => {
            let error = Error::invalid("PNG", "a whole picture", "the end of the file");
            error.advise("fetch the file again")
        }
        other => damaged(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_samples_begin_each_row_on_a_byte() {
        assert_eq!(unpack(&[0b1010_0000, 0b0110_0000], 3, 1, 255), [255, 0, 255, 0, 255, 255]);
        assert_eq!(unpack(&[0b0001_1011, 0b1100_0000], 5, 2, 85), [0, 85, 170, 255, 255]);
        assert_eq!(unpack(&[0x0f, 0x70], 3, 4, 17), [0, 255, 119]);
    }

    /// Flips a bit of the pixels' own checksum (Adler-32) and mends the chunk's (CRC-32).
    #[test]
    fn damaged_pixels_are_refused_by_their_own_checksum() {
        let mut file = Vec::new();
        let mut info = ::png::Info::with_size(2, 2);
        info.color_type = ColorType::Grayscale;
        let mut writer =
            ::png::Encoder::with_info(&mut file, info).unwrap().write_header().unwrap();
        writer.write_image_data(&[1, 2, 3, 4]).unwrap();
        drop(writer);
        assert_eq!(decode(&file, &Limits::default()).unwrap().data, [1, 2, 3, 4]);
        let crc_at = file.len() - 12 - 4; // IEND has 12 bytes
        file[crc_at - 1] ^= 1;
        let start = file.windows(4).position(|w| w == b"IDAT").unwrap();
        let crc = crc32(&file[start..crc_at]);
        file[crc_at..crc_at + 4].copy_from_slice(&crc.to_be_bytes());
        assert!(decode(&file, &Limits::default()).unwrap_err().to_string().contains("orrupt"));
    }

    #[test]
    fn absurd_headers_are_refused_before_decoding() {
        for (size, text) in [
            ([0, 0], "0x0"),
            ([65_535, 65_535], "65535x65535"),
            ([1, 16_384], "200:1"),
            ([0x7fff_ffff, 0x7fff_ffff], "2147483647"),
        ] {
            let mut file = Vec::new();
            let mut info = ::png::Info::with_size(1, 1);
            info.color_type = ColorType::Rgba;
            ::png::Encoder::with_info(&mut file, info).unwrap().write_header().unwrap();
            file[16..20].copy_from_slice(&u32::to_be_bytes(size[0]));
            file[20..24].copy_from_slice(&u32::to_be_bytes(size[1]));
            let crc = crc32(&file[12..29]);
            file[29..33].copy_from_slice(&crc.to_be_bytes());
            let error = decode(&file, &Limits::default()).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc: u32, &b| {
            (0..8)
                .fold(crc ^ u32::from(b), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
        })
    }
}

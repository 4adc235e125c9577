//! JPEG files, through libjpeg (mozjpeg), whose decoder gives Pillow's bytes exactly.
//!
//! libjpeg reports errors by unwinding; nothing unwinds out of this file. Its warnings (a damaged
//! scan, bytes after the picture) are no errors in Pillow and none here, but running out of data
//! before the last row is an error in both.

use super::{Limits, Mode, Picture};
use crate::{Error, Result};
use mozjpeg::{ColorSpace, Decompress, decompress::DecompressStarted};
use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The first bytes of every JPEG file.
pub(super) const MAGIC: &[u8] = b"\xff\xd8\xff";

/// A progressive file may visit every pixel once per scan: this many times `max_pixels` in all.
const MAX_PASSES: u64 = 32;

/// What the markers say before libjpeg sees the file.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    width: u32,
    height: u32,
    mode: Mode,
    scans: u64,
}

/// Decodes a JPEG file: one component is `L`, three are `RGB`, four are `CMYK`.
///
/// # Errors
/// A header outside of `limits`, an unsupported kind of JPEG, a truncated or damaged file.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture> {
    let header = read_header(bytes)?;
    limits.check(header.width, header.height)?;
    let work = header.scans * u64::from(header.width) * u64::from(header.height);
    if work > limits.max_pixels * MAX_PASSES {
        let found = format!("{} of {}x{}", header.scans, header.width, header.height);
        return Err(Error::invalid("JPEG", "fewer scans of such a size", found));
    }
    let (width, height) = (header.width as usize, header.height as usize);
    let mut data = vec![0; width * height * header.mode.bytes()];
    let ended = Cell::new(false);
    let source = Source { rest: bytes, ended: &ended };
    let rows = AssertUnwindSafe(|| read_rows(source, &header, &mut data));
    match catch_unwind(rows) {
        Ok(Ok(())) => {}
        _ if ended.get() => return Err(truncated()),
        Ok(Err(error)) => return Err(damaged(error)),
        Err(payload) => return Err(damaged(message(payload.as_ref()))),
    }
    if header.mode == Mode::Cmyk {
        // Adobe writes 255 for no ink, and Pillow assumes that every file does.
        data.iter_mut().for_each(|v| *v = 255 - *v);
    }
    Ok(Picture { width, height, mode: header.mode, palette: Vec::new(), data })
}

fn read_rows(source: Source, header: &Header, data: &mut [u8]) -> io::Result<()> {
    let ended = source.ended;
    let file = Decompress::new_reader(source)?;
    let size = (header.width as usize, header.height as usize);
    if file.size() != size || file.components().len() != header.mode.bytes() {
        return Err(io::Error::other("two headers that disagree"));
    }
    let mut rows = file.to_colorspace(match header.mode {
        Mode::Gray => ColorSpace::JCS_GRAYSCALE,
        Mode::Cmyk => ColorSpace::JCS_CMYK,
        _ => ColorSpace::JCS_RGB,
    })?;
    rows.read_scanlines_into(data)?;
    finish(rows, ended)
}

/// Reads to the end of the picture. That the file ends first is forgiven: every row is there.
fn finish(rows: DecompressStarted<Source>, ended: &Cell<bool>) -> io::Result<()> {
    match catch_unwind(AssertUnwindSafe(|| rows.finish())) {
        _ if ended.replace(false) => Ok(()),
        Ok(result) => result,
        Err(payload) => Err(io::Error::other(message(payload.as_ref()))),
    }
}

fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.unwrap_or("a decoder failure").trim_start_matches("libjpeg fatal error: ").to_string()
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::invalid("JPEG", "an undamaged file", what)
}

fn truncated() -> Error {
    Error::invalid("JPEG", "a whole picture", "the end of the file").advise("fetch the file again")
}

/// Walks the markers to the first frame header, then over the scans to count them.
fn read_header(bytes: &[u8]) -> Result<Header> {
    let mut frame = None;
    let mut scans = 0;
    let mut is_whole = false;
    let mut at = 2;
    while let Some((marker, body)) = next_marker(bytes, at) {
        at = body;
        if matches!(marker, 0x01 | 0xd0..=0xd8) {
            continue;
        }
        if marker == 0xd9 {
            is_whole = true;
            break;
        }
        let Some(length) = bytes.get(body..body + 2) else { break };
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        match marker {
            0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                let segment = bytes.get(body..body + length).ok_or_else(truncated)?;
                if frame.replace(read_frame(marker, segment)?).is_some() {
                    return Err(damaged("two frame headers"));
                }
            }
            0xda => scans += 1,
            _ => {}
        }
        at += length.max(2);
    }
    match frame {
        Some((width, height, mode)) => Ok(Header { width, height, mode, scans }),
        None if is_whole => Err(damaged("no frame header")),
        None => Err(truncated()),
    }
}

/// The next marker at or after `at` and the offset of what follows it.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|&b| b == 0xff)?;
        at += bytes[at..].iter().position(|&b| b != 0xff)?;
        if bytes[at] != 0 {
            return Some((bytes[at], at + 1));
        }
    }
}

/// Width, height and mode from a frame segment (its length first).
fn read_frame(marker: u8, segment: &[u8]) -> Result<(u32, u32, Mode)> {
    if !matches!(marker, 0xc0..=0xc2) {
        let found = format!("frame type {marker:02X}");
        let error = Error::invalid("JPEG", "baseline or progressive Huffman coding", found);
        return Err(error.advise("convert the picture to PNG"));
    }
    let &[_, _, bits, h1, h0, w1, w0, components, ..] = segment else {
        return Err(damaged("a short frame header"));
    };
    if bits != 8 {
        return Err(Error::invalid("JPEG", "8 bits per sample", bits));
    }
    let mode = match components {
        1 => Mode::Gray,
        3 => Mode::Rgb,
        4 => Mode::Cmyk,
        n => return Err(Error::invalid("JPEG", "1, 3 or 4 components", n)),
    };
    Ok((u16::from_be_bytes([w1, w0]).into(), u16::from_be_bytes([h1, h0]).into(), mode))
}

/// The file as libjpeg reads it. At its end there is an error where the library's own reader would
/// make up an end-of-image marker and leave the rest of the picture gray.
struct Source<'a> {
    rest: &'a [u8],
    ended: &'a Cell<bool>,
}

impl Read for Source<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.rest.read(into)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            self.ended.set(true);
            return Err(io::Error::other("end of file"));
        }
        Ok(self.rest)
    }

    fn consume(&mut self, n: usize) {
        self.rest = &self.rest[n..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(marker: u8, bits: u8, (w, h): (u16, u16), components: u8) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend([marker, 0, 8 + 3 * components, bits]);
        file.extend(h.to_be_bytes());
        file.extend(w.to_be_bytes());
        file.push(components);
        (0..components).for_each(|i| file.extend([i, 0x11, 0]));
        file
    }

    fn refusal(file: &[u8]) -> String {
        decode(file, &Limits::default()).unwrap_err().to_string()
    }

    #[test]
    fn absurd_headers_are_refused_before_decoding() {
        assert!(refusal(&frame(0xc0, 8, (65_535, 65_535), 3)).contains("65535x65535"));
        assert!(refusal(&frame(0xc0, 8, (0, 0), 3)).contains("0x0"));
        assert!(refusal(&frame(0xc0, 8, (1, 16_384), 1)).contains("200:1"));
        assert!(refusal(&frame(0xc0, 12, (9, 9), 1)).contains("8 bits"));
        assert!(refusal(&frame(0xc0, 8, (9, 9), 2)).contains("components"));
        assert!(refusal(&frame(0xc9, 8, (9, 9), 1)).contains("Huffman"));
        assert!(refusal(MAGIC).contains("end of the file"));
    }

    #[test]
    fn a_file_of_endless_scans_is_refused() {
        let mut file = frame(0xc2, 8, (8192, 8192), 1);
        (0..100).for_each(|_| file.extend([0xff, 0xda, 0, 8, 1, 0, 0, 0, 63, 0]));
        assert!(refusal(&file).contains("100 of 8192x8192"), "{}", refusal(&file));
    }

    #[test]
    fn the_size_is_the_frame_header_not_what_a_thumbnail_says() {
        let mut file = b"\xff\xd8\xff\xe1\x00\x15".to_vec();
        file.extend(&frame(0xc0, 8, (1, 1), 3)[..19]);
        file.extend(&frame(0xc0, 8, (640, 480), 3)[2..]);
        let header = read_header(&file).unwrap();
        assert_eq!((header.width, header.height, header.mode), (640, 480, Mode::Rgb));
    }
}

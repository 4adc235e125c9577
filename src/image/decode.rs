//! Which decoder a file needs, told by its first bytes and never by its name.

use super::{Limits, Picture, jpeg, png};
use crate::{Error, Result};

/// Decodes a JPEG or PNG file in the mode in which Pillow opens it.
///
/// # Errors
/// Another format, a file or picture larger than `limits`, a truncated or damaged file.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture> {
    if bytes.len() > limits.max_bytes {
        let expected = format!("a file of at most {} bytes", limits.max_bytes);
        return Err(Error::invalid("image", expected, format!("{} bytes", bytes.len())));
    }
    if bytes.starts_with(jpeg::MAGIC) {
        jpeg::decode(bytes, limits)
    } else if bytes.starts_with(png::MAGIC) {
        png::decode(bytes, limits)
    } else {
        let error = Error::invalid("image", "a JPEG or PNG file", what_it_is(bytes));
        Err(error.advise("convert the picture to PNG, without loss, and try again"))
    }
}

/// Names the formats that people do try, so that the message says more than "not JPEG".
fn what_it_is(bytes: &[u8]) -> String {
    let known: [(usize, &[u8], &str); 10] = [
        (0, b"GIF8", "a GIF file"),
        (8, b"WEBP", "a WebP file"),
        (0, b"BM", "a BMP file"),
        (0, b"II*\0", "a TIFF file"),
        (0, b"MM\0*", "a TIFF file"),
        (128, b"DICM", "a DICOM file"),
        (4, b"ftyp", "an AVIF, HEIC or video file"),
        (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
        (0, b"%PDF", "a PDF file"),
        (0, b"<", "text (HTML or SVG?)"),
    ];
    for (at, magic, name) in known {
        if bytes.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
            return name.into();
        }
    }
    match bytes.len() {
        0 => "an empty file".into(),
        n => {
            let head: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
            format!("{n} bytes that begin with {}", head.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_named_and_refused() {
        let mut dicom = vec![0; 128];
        dicom.extend(b"DICM\x02\0");
        let files: [(&[u8], &str); 7] = [
            (b"", "an empty file"),
            (b"GIF89a", "GIF"),
            (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
            (b"II*\0\x08\0\0\0", "TIFF"),
            (b"<svg>", "SVG"),
            (b"\x01\x02", "2 bytes that begin with 01 02"),
            (&dicom, "DICOM"),
        ];
        for (bytes, name) in files {
            let text = decode(bytes, &Limits::default()).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains("JPEG or PNG"), "{text}");
        }
    }

    #[test]
    fn a_file_larger_than_the_limit_is_not_looked_at() {
        let limits = Limits { max_bytes: 3, ..Limits::default() };
        let text = decode(b"\xff\xd8\xff\xe0", &limits).unwrap_err().to_string();
        assert!(text.contains("at most 3 bytes") && text.contains("4 bytes"), "{text}");
    }
}

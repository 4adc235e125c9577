//! Event files as TensorBoard reads them: scalars and text.
//!
//! A file is a sequence of records (`tensorflow/core/lib/io/record_writer.h`): length u64, masked
//! CRC-32C of the length, an `Event` message (`tensorflow/core/util/event.proto`), masked CRC-32C
//! of the message. The few fields in use are encoded by hand.

use crate::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that is being written.
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// A new file in `folder`. Events of earlier files from `step` on are no longer shown: the run
    /// that wrote them was interrupted, and this one goes on from there.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create(folder: &Path, step: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim().replace(['/', '\\', '\0'], "-");
        let (seconds, id) = (now() as u64, std::process::id());
        let free = (0..1000).find_map(|n| {
            let name = format!("events.out.tfevents.{seconds:010}.{host}.{id}.{n}");
            let path = folder.join(name);
            File::create_new(&path).ok().map(|file| EventFile { file, path })
        });
        let mut events = free.ok_or_else(|| {
            Error::invalid(folder.display(), "a folder for event files", "none can be made there")
        })?;
        events.write(&event(now(), 0, &text_field(3, "brain.Event:2")))?;
        // SessionLog { status: START }.
        events.write(&event(now(), step, &bytes_field(7, &varint_field(1, 1))))?;
        Ok(events)
    }

    /// `tag` is `value` at `step`.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn scalar(&mut self, step: u64, tag: &str, value: f32) -> Result<()> {
        let mut entry = text_field(1, tag);
        entry.push(2 << 3 | 5);
        entry.extend(value.to_le_bytes());
        self.summary(step, &entry)
    }

    /// `tag` is `text` (Markdown) at `step`.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<()> {
        const DT_STRING: u64 = 7;
        let one = bytes_field(2, &varint_field(1, 1));
        let tensor =
            [varint_field(1, DT_STRING), bytes_field(2, &one), text_field(8, text)].concat();
        let metadata = bytes_field(1, &text_field(1, "text"));
        let tag = format!("{tag}/text_summary");
        let entry = [text_field(1, &tag), bytes_field(8, &tensor), bytes_field(9, &metadata)];
        self.summary(step, &entry.concat())
    }

    fn summary(&mut self, step: u64, value: &[u8]) -> Result<()> {
        self.write(&event(now(), step, &bytes_field(5, &bytes_field(1, value))))
    }

    fn write(&mut self, message: &[u8]) -> Result<()> {
        let written = self.file.write_all(&record(message));
        written.map_err(|e| Error::io("write", &self.path, e))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn event(time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    let mut message = vec![1 << 3 | 1];
    message.extend(time.to_le_bytes());
    message.extend(varint_field(2, step));
    message.extend(what);
    message
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 128 {
        bytes.push(n as u8 | 128);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn varint_field(field: u64, n: u64) -> Vec<u8> {
    [varint(field << 3), varint(n)].concat()
}

fn bytes_field(field: u64, bytes: &[u8]) -> Vec<u8> {
    [&varint(field << 3 | 2), &varint(bytes.len() as u64), bytes].concat()
}

fn text_field(field: u64, text: &str) -> Vec<u8> {
    bytes_field(field, text.as_bytes())
}

fn record(message: &[u8]) -> Vec<u8> {
    let len = (message.len() as u64).to_le_bytes();
    let sums = [masked(crc32c(&len)).to_le_bytes(), masked(crc32c(message)).to_le_bytes()];
    [&len, &sums[0][..], message, &sums[1]].concat()
}

/// A checksum of data that holds checksums is masked (`tensorflow/core/lib/hash/crc32c.h`).
const fn masked(sum: u32) -> u32 {
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut c, mut bit) = (i as u32, 0);
        while bit < 8 {
            c = (c >> 1) ^ (0x82f6_3b78 & (c & 1).wrapping_neg());
            bit += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
}

static CRC: [u32; 256] = crc_table();

/// CRC-32C (Castagnoli; RFC 3720 B.4).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |c, &b| (c >> 8) ^ CRC[((c ^ u32::from(b)) & 255) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages of a file whose checksums hold.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !file.is_empty() {
            let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            let sum = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
            assert_eq!(sum(8), masked(crc32c(&file[..8])));
            assert_eq!(sum(12 + len), masked(crc32c(&file[12..12 + len])));
            found.push(file[12..12 + len].to_vec());
            file = &file[16 + len..];
        }
        found
    }

    /// Field numbers and contents of a message; integers as their little-endian bytes.
    fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn number(message: &mut &[u8]) -> u64 {
            let len = message.iter().position(|b| b & 128 == 0).unwrap() + 1;
            let n = (0..len).map(|i| u64::from(message[i] & 127) << (7 * i)).sum();
            *message = &message[len..];
            n
        }
        let mut found = Vec::new();
        while !message.is_empty() {
            let key = number(&mut message);
            let len = match key & 7 {
                0 => {
                    found.push((key >> 3, number(&mut message).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                5 => 4,
                _ => number(&mut message) as usize,
            };
            found.push((key >> 3, message[..len].to_vec()));
            message = &message[len..];
        }
        found
    }

    fn field(message: &[u8], path: &[u64]) -> Vec<u8> {
        path.iter().fold(message.to_vec(), |inner, number| {
            fields(&inner).into_iter().find(|(n, _)| n == number).unwrap().1
        })
    }

    /// RFC 3720, B.4.
    #[test]
    fn crc32c_has_the_check_values_of_its_definition() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn scalars_and_text_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), 300).unwrap();
        events.scalar(301, "loss/pairs", 2.5).unwrap();
        events.text(302, "samples", "an answer").unwrap();
        let second = EventFile::create(folder.path(), 0).unwrap();
        assert_ne!(second.path, events.path, "no file is written by two");
        let found = records(&std::fs::read(&events.path).unwrap());
        assert_eq!(found.len(), 4);
        assert_eq!(field(&found[0], &[3]), b"brain.Event:2");
        assert_eq!(field(&found[1], &[2])[..2], 300u16.to_le_bytes());
        assert_eq!(field(&found[1], &[7, 1])[0], 1);
        assert_eq!(field(&found[2], &[2])[..2], 301u16.to_le_bytes());
        assert_eq!(field(&found[2], &[5, 1, 1]), b"loss/pairs");
        assert_eq!(field(&found[2], &[5, 1, 2]), 2.5f32.to_le_bytes());
        assert_eq!(field(&found[3], &[5, 1, 1]), b"samples/text_summary");
        assert_eq!(field(&found[3], &[5, 1, 8, 8]), b"an answer");
        assert_eq!(field(&found[3], &[5, 1, 8, 2, 2, 1])[0], 1);
        assert_eq!(field(&found[3], &[5, 1, 9, 1, 1]), b"text");
        let time = f64::from_le_bytes(field(&found[3], &[1]).try_into().unwrap());
        assert!(time > 1.7e9);
    }
}

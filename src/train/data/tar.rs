//! Tar files, read in place and written: only what shards need.
//!
//! Reading gives names and where the bytes are. Names are keys: nothing here makes a path of one.
//! Links, devices and folders are passed over; sparse files, wrong checksums, sizes beyond the end
//! of the file and endless extension headers are refused.

use super::tally::{Reason, Refusal};
use std::io::{self, BufReader, Read, Seek, Write};
use std::ops::Range;

const BLOCK: u64 = 512;
/// Longest name, in bytes.
const MAX_NAME: u64 = 4096;
/// Longest extended header, in bytes.
const MAX_EXTENDED: u64 = 64 << 10;
/// Most extension headers before one file.
const MAX_EXTENSIONS: usize = 8;

/// One file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where its first header begins, in bytes.
    pub header: u64,
    pub name: String,
    /// Where its content is, in bytes.
    pub data: Range<u64>,
}

/// Walks the headers of an archive.
pub struct Walk<R> {
    file: BufReader<R>,
    /// Where `file` stands.
    at: u64,
    /// Where the next header is.
    next: u64,
    len: u64,
}

impl<R: Read + Seek> Walk<R> {
    /// Begins at the header at byte `start` of `file`, which has `len` bytes.
    ///
    /// # Errors
    /// If the file cannot be positioned.
    pub fn new(file: R, start: u64, len: u64) -> io::Result<Self> {
        let mut file = BufReader::new(file);
        file.seek(io::SeekFrom::Start(start))?;
        Ok(Walk { file, at: start, next: start, len })
    }

    /// Where the next header is, in bytes.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The next file, or None at the end.
    ///
    /// # Errors
    /// A damaged or truncated archive, of which the rest cannot be read.
    pub fn next_file(&mut self) -> Result<Option<Entry>, Refusal> {
        loop {
            let start = self.next;
            match self.member() {
                Ok(Found::File(entry)) => return Ok(Some(entry)),
                Ok(Found::Other) => continue,
                Ok(Found::End) => return Ok(None),
                Err(refusal) => {
                    // Who begins here again finds the same.
                    self.next = start;
                    return Err(refusal);
                }
            }
        }
    }

    /// One header with the extensions before it.
    fn member(&mut self) -> Result<Found, Refusal> {
        let start = self.next;
        let mut extended = Extended::default();
        for extensions in 0..=MAX_EXTENSIONS {
            let Some(header) = self.header()? else {
                let is_whole = extensions == 0;
                return if is_whole { Ok(Found::End) } else { Err(damaged(start, "a file")) };
            };
            match header.kind {
                b'x' => {
                    let data = self.claim(header.size)?;
                    extended.pax(&self.read(&data, MAX_EXTENDED)?, start)?;
                }
                b'L' => {
                    let data = self.claim(header.size)?;
                    extended.name = Some(text(&self.read(&data, MAX_NAME)?));
                }
                b'g' | b'K' => {
                    self.claim(header.size)?;
                }
                b'0' | b'\0' | b'7' => {
                    let data = self.claim(extended.size.unwrap_or(header.size))?;
                    let name = extended.name.unwrap_or(header.name);
                    return Ok(Found::File(Entry { header: start, name, data }));
                }
                // Links, devices, folders, pipes: they have no content whatever their size says.
                b'1'..=b'6' => return Ok(Found::Other),
                _ => return Err(damaged(start, "a plain file, a link or a folder")),
            }
        }
        Err(damaged(start, "fewer extension headers"))
    }

    /// The header at `next`; None for a block of zeros or the end of the file.
    fn header(&mut self) -> Result<Option<Header>, Refusal> {
        if self.next == self.len {
            return Ok(None);
        }
        let at = self.next;
        let block = self.claim_block()?;
        if block.iter().all(|&b| b == 0) {
            self.next = self.len;
            return Ok(None);
        }
        Header::parse(&block).ok_or_else(|| damaged(at, "a tar header with its checksum")).map(Some)
    }

    fn claim_block(&mut self) -> Result<[u8; BLOCK as usize], Refusal> {
        let at = self.next;
        if self.len - at < BLOCK {
            return Err(damaged(at, "512 bytes of header before the end of the file"));
        }
        let mut block = [0; BLOCK as usize];
        self.seek(at)?;
        self.file.read_exact(&mut block).map_err(|e| io_failed(at, &e))?;
        self.at += BLOCK;
        self.next += BLOCK;
        Ok(block)
    }

    /// The next `size` bytes as content; the header after them is next.
    fn claim(&mut self, size: u64) -> Result<Range<u64>, Refusal> {
        let start = self.next;
        let end = start.checked_add(size).filter(|&end| end <= self.len);
        let Some(end) = end else {
            return Err(damaged(start, format!("{size} bytes before the end of the file")));
        };
        self.next = end.next_multiple_of(BLOCK).min(self.len);
        Ok(start..end)
    }

    fn read(&mut self, data: &Range<u64>, most: u64) -> Result<Vec<u8>, Refusal> {
        let size = data.end - data.start;
        if size > most {
            return Err(damaged(data.start, format!("an extension of at most {most} bytes")));
        }
        let mut bytes = vec![0; size as usize];
        self.seek(data.start)?;
        self.file.read_exact(&mut bytes).map_err(|e| io_failed(data.start, &e))?;
        self.at = data.end;
        Ok(bytes)
    }

    fn seek(&mut self, to: u64) -> Result<(), Refusal> {
        let step = to as i64 - self.at as i64;
        self.file.seek_relative(step).map_err(|e| io_failed(to, &e))?;
        self.at = to;
        Ok(())
    }
}

fn damaged(at: u64, expected: impl std::fmt::Display) -> Refusal {
    Refusal::new(Reason::Shard, format!("byte {at}: expected {expected}"))
}

fn io_failed(at: u64, e: &io::Error) -> Refusal {
    Refusal::new(Reason::Io, format!("byte {at}: {e}"))
}

enum Found {
    File(Entry),
    Other,
    End,
}

struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Header {
    fn parse(block: &[u8; BLOCK as usize]) -> Option<Self> {
        let sum = number(&block[148..156])?;
        let blanked = |i: usize, b: u8| if (148..156).contains(&i) { b' ' } else { b };
        let bytes = || block.iter().enumerate().map(|(i, &b)| blanked(i, b));
        let unsigned: u64 = bytes().map(u64::from).sum();
        // Some old writers add the bytes up as signed numbers.
        let signed: i64 = bytes().map(|b| i64::from(b as i8)).sum();
        if sum != unsigned && i64::try_from(sum) != Ok(signed) {
            return None;
        }
        let mut name = text(&block[..100]);
        // GNU's own magic ("ustar  ") has times where POSIX has the prefix.
        if &block[257..263] == b"ustar\0" && block[345] != 0 {
            name = format!("{}/{name}", text(&block[345..500]));
        }
        Some(Header { name, size: number(&block[124..136])?, kind: block[156] })
    }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Octal digits between blanks, or GNU's base 256.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] == 0x80 {
        return field[1..].iter().try_fold(0u64, |n, &b| n.checked_mul(256)?.checked_add(b.into()));
    }
    let is_blank = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| *b != b' ')?;
    let digits = &field[start..];
    let end = digits.iter().position(is_blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(is_blank) {
        return None;
    }
    digits[..end].iter().try_fold(0u64, |n, b| {
        let digit = b.checked_sub(b'0').filter(|&d| d < 8)?;
        n.checked_mul(8)?.checked_add(digit.into())
    })
}

/// What extension headers say of the file after them.
#[derive(Default)]
struct Extended {
    name: Option<String>,
    size: Option<u64>,
}

impl Extended {
    /// Records `length key=value\n`, as POSIX.1-2001 has them.
    fn pax(&mut self, mut bytes: &[u8], at: u64) -> Result<(), Refusal> {
        while !bytes.is_empty() && bytes[0] != 0 {
            let (record, rest) =
                pax_record(bytes).ok_or_else(|| damaged(at, "well-formed extended headers"))?;
            bytes = rest;
            match record {
                ("path", value) => self.name = Some(value.to_string()),
                ("size", value) => {
                    let size = value.parse().map_err(|_| damaged(at, "a size in digits"))?;
                    self.size = Some(size);
                }
                (key, _) if key.starts_with("GNU.sparse") => {
                    return Err(damaged(at, "a file without holes"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

type Pair<'a> = (&'a str, &'a str);

fn pax_record(bytes: &[u8]) -> Option<(Pair<'_>, &[u8])> {
    let space = bytes.iter().take(8).position(|&b| b == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    // Values of keys that are not read may be anything.
    let equals = record.iter().position(|&b| b == b'=')?;
    let key = std::str::from_utf8(&record[..equals]).ok()?;
    let value = match key {
        "path" | "size" => std::str::from_utf8(&record[equals + 1..]).ok()?,
        _ => "",
    };
    Some(((key, value), &bytes[length..]))
}

/// Writes archives that are equal for equal content: no times, no owners.
pub struct Writer<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        Writer { out, bytes: 0 }
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a file. `name` has 1 to 100 bytes of ASCII.
    ///
    /// # Errors
    /// Another name, a size of 8 GiB or more, or what the operating system says.
    pub fn append(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let is_plain = name.bytes().all(|b| b.is_ascii_graphic());
        if !is_plain || name.is_empty() || name.len() > 100 || content.len() as u64 >= 1 << 33 {
            let what = format!("{name:?} with {} bytes does not fit a tar header", content.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mut block = [0u8; BLOCK as usize];
        block[..name.len()].copy_from_slice(name.as_bytes());
        let fields: [(usize, &str); 6] = [
            (100, "0000644\0"),
            (108, "0000000\0"),
            (116, "0000000\0"),
            (124, &format!("{:011o}\0", content.len())),
            (136, "00000000000\0"),
            (257, "ustar\x0000"),
        ];
        for (at, field) in fields {
            block[at..at + field.len()].copy_from_slice(field.as_bytes());
        }
        block[156] = b'0';
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let padding = content.len().next_multiple_of(BLOCK as usize) - content.len();
        self.out.write_all(&block)?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; BLOCK as usize][..padding])?;
        self.bytes += BLOCK + (content.len() + padding) as u64;
        Ok(())
    }

    /// Writes the end of the archive and gives the output back.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

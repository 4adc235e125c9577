//! State dicts in files that `torch.load` reads: a zip archive of stored members, of which
//! `data.pkl` (pickle protocol 2) describes tensors over the others (torch/serialization.py,
//! `_save`; caffe2/serialize/inline_container.cc).
//!
//! What comes out is the same for the same tensors: no times, no names of machines. The members'
//! bytes begin at multiples of 64, as torch's own do, so that the file can be mapped.

use super::write::{Sink, Spec};
use crate::checkpoint::crc32_of_more;
use crate::{DType, Error, Result};

const ALIGN: u64 = 64;
/// From here on a size or position is in a 64-bit field of its own.
const FULL: u64 = 0xffff_ffff;
const ROOT: &str = "archive";
/// 1980-01-01, the first day that a zip file knows.
const DATE: u16 = 0x21;

/// Passes the bytes of tensor `i` on.
type Fill<'a> = dyn FnMut(usize, &mut Sink<'_>) -> Result<()> + 'a;

/// One member, for the directory.
struct Member {
    name: String,
    crc: u32,
    bytes: u64,
    header: u64,
}

/// Passes a file with the tensors of `specs` on to `sink`. `fill` is asked for each of them twice,
/// because a member's checksum comes before it.
///
/// # Errors
/// A type that torch lacks, a tensor that is not as long as its shape says, and those of `fill` and
/// `sink`.
pub(super) fn save(specs: &[Spec], fill: &mut Fill<'_>, sink: &mut Sink<'_>) -> Result<()> {
    let mut archive = Archive { sink, at: 0, members: Vec::new() };
    archive.small("data.pkl", &pickle(specs)?)?;
    archive.small("byteorder", b"little")?;
    for (i, spec) in specs.iter().enumerate() {
        let (mut crc, mut bytes) = (0, 0);
        fill(i, &mut |part| {
            crc = crc32_of_more(crc, part);
            bytes += part.len() as u64;
            Ok(())
        })?;
        if Some(bytes as usize) != spec.bytes() {
            let expected = format!("{:?} elements", spec.shape);
            return Err(Error::invalid(&spec.name, expected, format!("{bytes} bytes")));
        }
        archive.begin(&format!("data/{i}"), crc, bytes)?;
        fill(i, &mut |part| archive.put(part))?;
    }
    archive.small("version", b"3\n")?;
    archive.end()
}

struct Archive<'s, 'a> {
    sink: &'s mut Sink<'a>,
    at: u64,
    members: Vec<Member>,
}

impl Archive<'_, '_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len() as u64;
        (self.sink)(bytes)
    }

    fn small(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.begin(name, crc32_of_more(0, bytes), bytes.len() as u64)?;
        self.put(bytes)
    }

    /// The header before a member, with as much padding as aligns what follows.
    fn begin(&mut self, name: &str, crc: u32, bytes: u64) -> Result<()> {
        let (name, header) = (format!("{ROOT}/{name}"), self.at);
        let mut extra = long_fields(&[bytes, bytes]);
        // A field of its own, "FB", four bytes and padding.
        let start = self.at + 30 + (name.len() + extra.len() + 4) as u64;
        let pad = (start.next_multiple_of(ALIGN) - start) as usize;
        extra.extend([b'F', b'B']);
        extra.extend((pad as u16).to_le_bytes());
        extra.extend(std::iter::repeat_n(b'Z', pad));
        let mut head = b"PK\x03\x04".to_vec();
        head.extend(shared(crc, bytes));
        head.extend((name.len() as u16).to_le_bytes());
        head.extend((extra.len() as u16).to_le_bytes());
        head.extend(name.as_bytes());
        head.extend(extra);
        self.members.push(Member { name, crc, bytes, header });
        self.put(&head)
    }

    /// The directory and what says where it is.
    fn end(mut self) -> Result<()> {
        let (start, count) = (self.at, self.members.len() as u64);
        for member in std::mem::take(&mut self.members) {
            let extra = long_fields(&[member.bytes, member.bytes, member.header]);
            let mut record = b"PK\x01\x02".to_vec();
            record.extend(45u16.to_le_bytes());
            record.extend(shared(member.crc, member.bytes));
            record.extend((member.name.len() as u16).to_le_bytes());
            record.extend((extra.len() as u16).to_le_bytes());
            // No comment; the first and only part; no attributes.
            record.extend([0; 2 + 2 + 2 + 4]);
            record.extend((member.header.min(FULL) as u32).to_le_bytes());
            record.extend(member.name.as_bytes());
            record.extend(extra);
            self.put(&record)?;
        }
        let size = self.at - start;
        if count >= 0xffff || size >= FULL || start >= FULL {
            let mut long = b"PK\x06\x06".to_vec();
            long.extend(44u64.to_le_bytes());
            long.extend([45, 0, 45, 0]);
            long.extend([0; 8]);
            [count, count, size, start].iter().for_each(|n| long.extend(n.to_le_bytes()));
            long.extend(b"PK\x06\x07");
            long.extend([0; 4]);
            long.extend(self.at.to_le_bytes());
            long.extend(1u32.to_le_bytes());
            self.put(&long)?;
        }
        let mut end = b"PK\x05\x06\0\0\0\0".to_vec();
        [count, count].iter().for_each(|n| end.extend((*n.min(&0xffff) as u16).to_le_bytes()));
        [size, start].iter().for_each(|n| end.extend((*n.min(&FULL) as u32).to_le_bytes()));
        end.extend([0; 2]);
        self.put(&end)
    }
}

/// What both headers of a stored member have: version, flags, method, time, date, checksum, sizes.
fn shared(crc: u32, bytes: u64) -> Vec<u8> {
    let mut fields = Vec::new();
    [45, 0, 0, 0, DATE].iter().for_each(|n: &u16| fields.extend(n.to_le_bytes()));
    let short = bytes.min(FULL) as u32;
    [crc, short, short].iter().for_each(|n| fields.extend(n.to_le_bytes()));
    fields
}

/// The extra field with those of `values` that do not fit into 32 bits; nothing if all do.
fn long_fields(values: &[u64]) -> Vec<u8> {
    let long: Vec<u8> =
        values.iter().filter(|&&n| n >= FULL).flat_map(|n| n.to_le_bytes()).collect();
    match long.len() {
        0 => Vec::new(),
        len => [&[1, 0][..], &(len as u16).to_le_bytes(), &long].concat(),
    }
}

/// `OrderedDict([(name, tensor), ..])`, with storage `i` for tensor `i`.
fn pickle(specs: &[Spec]) -> Result<Vec<u8>> {
    const ORDERED: &[u8] = b"ccollections\nOrderedDict\n)R";
    let mut out = b"\x80\x02".to_vec();
    out.extend(ORDERED);
    out.push(b'(');
    for (i, spec) in specs.iter().enumerate() {
        text(&mut out, &spec.name);
        let elements: usize = spec.shape.iter().product();
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{}\n", storage(spec)?).into_bytes());
        text(&mut out, &i.to_string());
        text(&mut out, "cpu");
        int(&mut out, elements);
        // The storage, by reference; its first element.
        out.extend(b"tQ");
        int(&mut out, 0);
        let strides = (0..spec.shape.len()).map(|d| spec.shape[d + 1..].iter().product());
        tuple(&mut out, spec.shape.iter().copied());
        tuple(&mut out, strides);
        // requires_grad is False, and no hooks.
        out.push(b'\x89');
        out.extend(ORDERED);
        out.extend(b"tR");
    }
    out.extend(b"u.");
    Ok(out)
}

fn storage(spec: &Spec) -> Result<&'static str> {
    Ok(match spec.dtype {
        DType::F32 => "FloatStorage",
        DType::BF16 => "BFloat16Storage",
        DType::F16 => "HalfStorage",
        other => return Err(Error::invalid(&spec.name, "f32, bf16 or f16", other)),
    })
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn int(out: &mut Vec<u8>, n: usize) {
    match i32::try_from(n) {
        Ok(n) => {
            out.push(b'J');
            out.extend(n.to_le_bytes());
        }
        Err(_) => {
            out.extend([b'\x8a', 8]);
            out.extend((n as u64).to_le_bytes());
        }
    }
}

fn tuple(out: &mut Vec<u8>, values: impl Iterator<Item = usize>) {
    out.push(b'(');
    values.for_each(|n| int(out, n));
    out.push(b't');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, Format};

    fn spec(name: &str, shape: &[usize], dtype: DType) -> Spec {
        Spec { name: name.into(), shape: shape.to_vec(), dtype }
    }

    fn saved(specs: &[Spec]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut fill = |i: usize, sink: &mut Sink<'_>| {
            let bytes: Vec<u8> =
                (0..specs[i].bytes().unwrap()).map(|b| (b * 7 + i) as u8).collect();
            bytes.chunks(100).try_for_each(sink)
        };
        let mut sink = |bytes: &[u8]| {
            file.extend_from_slice(bytes);
            Ok(())
        };
        save(specs, &mut fill, &mut sink).unwrap();
        file
    }

    #[test]
    fn our_own_reader_finds_every_tensor() {
        let specs = [
            spec("perceiver.latents", &[64, 3], DType::F32),
            spec("gate", &[1], DType::F32),
            spec("empty", &[0, 4], DType::F32),
            spec("scalar", &[], DType::F32),
            spec("half", &[2, 3, 5], DType::BF16),
        ];
        let file = saved(&specs);
        assert_eq!(file, saved(&specs), "the same bytes every time");
        let read = Checkpoint::from_bytes("test.pt", file).unwrap();
        assert_eq!(read.format(), Format::TorchZip);
        read.verify().unwrap();
        assert!(read.names().eq(specs.iter().map(|s| s.name.as_str())));
        for (i, s) in specs.iter().enumerate() {
            let entry = read.get(&s.name).unwrap();
            assert_eq!((&entry.shape, entry.dtype), (&s.shape, s.dtype));
            let expected: Vec<u8> = (0..s.bytes().unwrap()).map(|b| (b * 7 + i) as u8).collect();
            assert_eq!(entry.to_vec(), expected, "{}", s.name);
        }
    }

    #[test]
    fn members_are_aligned_and_other_readers_agree() {
        let specs: Vec<Spec> =
            (1..40).map(|n| spec(&format!("t{}", "x".repeat(n)), &[n], DType::F32)).collect();
        let file = saved(&specs);
        let mut archive = zip::ZipArchive::new(std::io::Cursor::new(&file)).unwrap();
        assert_eq!(archive.len(), specs.len() + 3);
        for i in 0..archive.len() {
            let member = archive.by_index(i).unwrap();
            assert!(member.data_start().unwrap().is_multiple_of(ALIGN), "member {i}");
        }
    }

    /// Positions beyond 4 GiB have fields of their own, which our reader understands.
    #[test]
    fn large_members_have_long_fields() {
        let mut head = Vec::new();
        let mut sink = |bytes: &[u8]| {
            head.extend_from_slice(bytes);
            Ok(())
        };
        let mut archive = Archive { sink: &mut sink, at: 0, members: Vec::new() };
        archive.begin("data/0", 7, 5 << 30).unwrap();
        archive.at += 5 << 30;
        archive.begin("data/1", 8, 4).unwrap();
        archive.at += 4;
        archive.end().unwrap();
        let has = |needle: &[u8]| head.windows(needle.len()).any(|w| w == needle);
        assert!(has(&[&[1, 0, 16, 0][..], &(5u64 << 30).to_le_bytes()].concat()));
        assert!(has(b"PK\x06\x06") && has(b"PK\x06\x07"));
        // The first member's header and padding are 128 bytes.
        let second = ((5u64 << 30) + 128).to_le_bytes();
        assert!(has(&[&[1, 0, 8, 0][..], &second].concat()));
    }
}

//! The directory of a zip archive, read strictly from a mapping.
//!
//! Only what `torch.save`, TorchScript and makers of EPUB books write is accepted: one end record
//! at the very end, a central directory directly before it, unique names, local headers that say
//! what the directory says, and members that do not overlap. Two readers can then not disagree
//! about the content. Nothing is unpacked: names are keys only.

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;

const MAX_MEMBERS: u64 = 200_000;
const MAX_NAME: usize = 4096;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;

/// One member: where its bytes are and what they should add up to.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub name: String,
    pub crc: u32,
    /// The number of zip's method: 0 stored, 8 deflated.
    pub method: u16,
    /// Bytes of the content, as the directory has it.
    pub size: u64,
    /// Position of the (possibly compressed) bytes in the file.
    pub data: Range<usize>,
    header: usize,
}

/// The members of an archive in directory order, by unique name.
#[derive(Debug)]
pub(crate) struct Directory {
    pub members: Vec<Member>,
    by_name: HashMap<String, usize>,
}

impl Directory {
    /// Reads and cross-checks the directory of the archive `file`.
    pub(crate) fn parse(file: &[u8]) -> Result<Self> {
        let (count, central) = end_record(file)?;
        let mut members = Vec::new();
        let mut by_name = HashMap::new();
        let mut at = central.start;
        for _ in 0..count {
            let (member, next) = central_record(file, at, &central)?;
            at = next;
            if by_name.insert(member.name.clone(), members.len()).is_some() {
                return Err(bad("each name once", format!("{:?} twice", member.name)));
            }
            members.push(member);
        }
        if at != central.end {
            return Err(bad("a directory of the declared size", "bytes after its last record"));
        }
        let mut order: Vec<&Member> = members.iter().collect();
        order.sort_by_key(|m| m.header);
        let ends = order.iter().skip(1).map(|m| m.header).chain([central.start]);
        for (member, limit) in order.iter().zip(ends) {
            if member.data.end > limit {
                let found = format!("{:?} reaching into the next", member.name);
                return Err(bad("members that do not overlap", found));
            }
        }
        Ok(Directory { members, by_name })
    }

    /// The member called exactly `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&Member> {
        self.by_name.get(name).map(|&i| &self.members[i])
    }
}

impl Member {
    /// The content, which must be stored, not compressed.
    pub(super) fn content<'a>(&self, file: &'a [u8]) -> Result<&'a [u8]> {
        if self.method == 0 {
            return Ok(&file[self.data.clone()]);
        }
        Err(bad("stored members", format!("{:?} compressed", self.name))
            .advise("write the file again with torch.save, which does not compress"))
    }

    /// The content, after its checksum has been compared.
    pub(super) fn verified<'a>(&self, file: &'a [u8]) -> Result<&'a [u8]> {
        let content = self.content(file)?;
        let found = crc32(content);
        if found == self.crc {
            return Ok(content);
        }
        let expected = format!("checksum {:08x} of {:?}", self.crc, self.name);
        Err(bad(expected, format!("{found:08x}")).advise("the file is damaged; fetch it again"))
    }
}

fn bad(expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::invalid("zip archive", expected, found)
}

fn field<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N]> {
    let bytes = at.checked_add(N).and_then(|end| file.get(at..end));
    bytes
        .and_then(|b| b.try_into().ok())
        .ok_or_else(|| bad(format!("a field at byte {at}"), format!("{} bytes", file.len())))
}

fn u16_at(file: &[u8], at: usize) -> Result<u16> {
    field(file, at).map(u16::from_le_bytes)
}

fn u32_at(file: &[u8], at: usize) -> Result<u32> {
    field(file, at).map(u32::from_le_bytes)
}

fn u64_at(file: &[u8], at: usize) -> Result<u64> {
    field(file, at).map(u64::from_le_bytes)
}

/// Number of members and the bytes of the central directory.
fn end_record(file: &[u8]) -> Result<(u64, Range<usize>)> {
    let missing = || {
        bad("an end record in the last 22 bytes", "none")
            .advise("the file is cut off or has something appended; fetch it again")
    };
    let end = file.len().checked_sub(22).ok_or_else(missing)?;
    if u32_at(file, end)? != END || u16_at(file, end + 20)? != 0 {
        return Err(missing());
    }
    let disks = (u16_at(file, end + 4)?, u16_at(file, end + 6)?);
    let here = u64::from(u16_at(file, end + 8)?);
    let short = [
        u64::from(u16_at(file, end + 10)?),
        u64::from(u32_at(file, end + 12)?),
        u64::from(u32_at(file, end + 16)?),
    ];
    if disks != (0, 0) || here != short[0] {
        return Err(bad("a single-part archive", "several parts"));
    }
    let (limit, [count, size, offset]) = match long_end_record(file, end)? {
        None => (end, short),
        Some((at, long)) => {
            for ((s, l), full) in short.iter().zip(long).zip([0xffff, 0xffff_ffff, 0xffff_ffff]) {
                if *s != l && *s != full {
                    return Err(bad("end records that agree", format!("{s} and {l}")));
                }
            }
            (at, long)
        }
    };
    if count > MAX_MEMBERS {
        return Err(bad(format!("at most {MAX_MEMBERS} members"), count));
    }
    let start = usize::try_from(offset).ok().filter(|&s| s <= limit);
    match start {
        Some(start) if (limit - start) as u64 == size => Ok((count, start..limit)),
        _ => Err(bad("the directory directly before its end record", format!("byte {offset}"))),
    }
}

/// The 64-bit end record, if there is one: its position, then count, size and offset.
fn long_end_record(file: &[u8], end: usize) -> Result<Option<(usize, [u64; 3])>> {
    let Some(locator) = end.checked_sub(20) else { return Ok(None) };
    if u32_at(file, locator)? != LOCATOR_64 {
        return Ok(None);
    }
    let odd = || bad("a 64-bit end record directly before its locator", "none");
    let at = usize::try_from(u64_at(file, locator + 8)?).map_err(|_| odd())?;
    if at.checked_add(56) != Some(locator) || u32_at(file, at)? != END_64 {
        return Err(odd());
    }
    let parts = (u32_at(file, locator + 4)?, u32_at(file, locator + 16)?);
    let disks = (u32_at(file, at + 16)?, u32_at(file, at + 20)?);
    let (here, count) = (u64_at(file, at + 24)?, u64_at(file, at + 32)?);
    if parts.0 != 0
        || parts.1 > 1
        || disks != (0, 0)
        || here != count
        || u64_at(file, at + 4)? != 44
    {
        return Err(odd());
    }
    Ok(Some((at, [count, u64_at(file, at + 40)?, u64_at(file, at + 48)?])))
}

/// The member described at `at`, and where the next record begins.
fn central_record(file: &[u8], at: usize, central: &Range<usize>) -> Result<(Member, usize)> {
    let names = at + 46;
    if names > central.end || u32_at(file, at)? != CENTRAL {
        return Err(bad(format!("a directory record at byte {at}"), "something else"));
    }
    let len = |i| u16_at(file, at + i).map(usize::from);
    let (name_len, extra_len, comment_len) = (len(28)?, len(30)?, len(32)?);
    let next = names + name_len + extra_len + comment_len;
    if next > central.end || comment_len != 0 || name_len > MAX_NAME {
        return Err(bad("directory records without comments inside the directory", next));
    }
    let name = member_name(&file[names..names + name_len])?;
    let extra = &file[names + name_len..names + name_len + extra_len];
    let (flags, method) = (u16_at(file, at + 8)?, u16_at(file, at + 10)?);
    if flags & 0x2041 != 0 {
        return Err(bad("members without encryption", format!("{name:?} encrypted")));
    }
    let crc = u32_at(file, at + 16)?;
    let short = [u32_at(file, at + 24)?, u32_at(file, at + 20)?, u32_at(file, at + 42)?];
    let [size, packed, header] = long_fields(extra, short, &name)?;
    if u16_at(file, at + 34)? != 0 || (method == 0 && size != packed) {
        return Err(bad("stored members of one size", format!("{name:?}: {size} and {packed}")));
    }
    let outside = || bad(format!("{name:?} inside the archive"), format!("byte {header}"));
    let header = usize::try_from(header).ok().filter(|&h| h < central.start);
    let header = header.ok_or_else(outside)?;
    let same = [u32::from(flags), u32::from(method), crc, short[1], short[0]];
    let start = local_header(file, header, name.as_bytes(), same)?;
    let end = usize::try_from(packed).ok().and_then(|p| start.checked_add(p));
    let end = end.filter(|&e| e <= central.start).ok_or_else(outside)?;
    let member = Member { name, crc, method, size, data: start..end, header };
    Ok((member, next))
}

fn member_name(bytes: &[u8]) -> Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(name) if !name.contains(|c: char| c == '\\' || c.is_control()) => Ok(name.to_string()),
        _ => Err(bad("plain UTF-8 member names", format!("{:?}", String::from_utf8_lossy(bytes)))),
    }
}

/// Size, packed size and header position, with the 64-bit ones taken from the extra field.
fn long_fields(mut extra: &[u8], short: [u32; 3], name: &str) -> Result<[u64; 3]> {
    let odd = || bad("one well-formed 64-bit size field", format!("{name:?}"));
    let mut long: Option<&[u8]> = None;
    while extra.len() >= 4 {
        let (id, len) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
        let body = extra.get(4..4 + len).ok_or_else(odd)?;
        if id == 1 && long.replace(body).is_some() {
            return Err(odd());
        }
        extra = &extra[4 + len..];
    }
    let mut rest = long.unwrap_or_default();
    let mut fields = short.map(u64::from);
    for value in &mut fields {
        if *value == 0xffff_ffff && long.is_some() {
            *value = u64_at(rest, 0).map_err(|_| odd())?;
            rest = &rest[8..];
        }
    }
    Ok(fields)
}

/// Compares the local header with the directory; returns where the member's bytes begin.
fn local_header(file: &[u8], at: usize, name: &[u8], same: [u32; 5]) -> Result<usize> {
    let label = String::from_utf8_lossy(name);
    let differs = |what: &str| {
        bad(format!("local header of {label:?} equal to the directory"), format!("another {what}"))
    };
    if u32_at(file, at)? != LOCAL {
        return Err(bad(format!("a local header of {label:?} at byte {at}"), "something else"));
    }
    let local = [
        u32::from(u16_at(file, at + 6)?),
        u32::from(u16_at(file, at + 8)?),
        u32_at(file, at + 14)?,
        u32_at(file, at + 18)?,
        u32_at(file, at + 22)?,
    ];
    // With flag bit 3 the sizes and checksum follow the data and the header may hold zeros.
    let is_deferred = local[0] & 8 != 0;
    for (i, what) in ["flag", "method", "checksum", "packed size", "size"].iter().enumerate() {
        let may_be_zero = is_deferred && i >= 2 && local[i] == 0;
        let may_be_long = i >= 3 && local[i] == u32::MAX;
        if local[i] != same[i] && !may_be_zero && !may_be_long {
            return Err(differs(what));
        }
    }
    let lens = (usize::from(u16_at(file, at + 26)?), usize::from(u16_at(file, at + 28)?));
    let names = at + 30;
    if file.get(names..names + lens.0) != Some(name) {
        return Err(differs("name"));
    }
    Ok(names + lens.0 + lens.1)
}

const fn crc_tables() -> [[u32; 256]; 8] {
    let mut t = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut bit = 0;
        while bit < 8 {
            c = (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg());
            bit += 1;
        }
        t[0][i] = c;
        i += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut i = 0;
        while i < 256 {
            t[k][i] = (t[k - 1][i] >> 8) ^ t[0][(t[k - 1][i] & 255) as usize];
            i += 1;
        }
        k += 1;
    }
    t
}

static CRC: [[u32; 256]; 8] = crc_tables();

/// CRC-32 as zip uses it (reflected 0x04c11db7), eight bytes a step.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    crc32_of_more(0, bytes)
}

/// CRC-32 of what `sum` is of, followed by `bytes`; 0 is that of nothing.
pub(crate) fn crc32_of_more(sum: u32, bytes: &[u8]) -> u32 {
    let mut c = !sum;
    let (eights, rest) = bytes.as_chunks::<8>();
    for b in eights {
        let x = u64::from_le_bytes(*b) ^ u64::from(c);
        let part = |i: usize| CRC[7 - i][(x >> (8 * i)) as usize & 255];
        c = (0..8).fold(0, |sum, i| sum ^ part(i));
    }
    for &b in rest {
        c = (c >> 8) ^ CRC[0][((c ^ u32::from(b)) & 255) as usize];
    }
    !c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_has_the_check_value_of_its_definition() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
        assert_eq!(crc32_of_more(crc32(b"1234"), b"56789"), 0xcbf4_3926);
        assert_eq!(crc32(b"The quick brown fox jumps over the lazy dog"), 0x414f_a339);
    }

    #[test]
    fn every_prefix_of_an_empty_archive_is_refused() {
        let mut empty = vec![0u8; 22];
        empty[..4].copy_from_slice(&END.to_le_bytes());
        assert!(Directory::parse(&empty).unwrap().members.is_empty());
        for n in 0..22 {
            assert!(Directory::parse(&empty[..n]).is_err());
        }
    }
}

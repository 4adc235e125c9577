//! Which shards there are, and where the records of each begin.

use super::tally::{Reason, Refusal};
use super::tar::{Entry, Walk};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Most files of one record.
const MAX_MEMBERS: usize = 128;
/// Longest line of a JSONL file, in bytes.
pub(super) const MAX_LINE: u64 = 1 << 20;
/// Lines of a JSONL file that are shuffled as one shard.
const LINES: u64 = 1024;
/// Most files that one pattern may stand for.
const MAX_EXPANSION: usize = 1_000_000;

/// Where training data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// WebDataset shards of a picture (jpg, jpeg, png) and its caption (txt, or json with
    /// `caption` or `text`). Paths, folders, and `{000..127}` as in [`expand`].
    Pairs { shards: Vec<String> },
    /// A JSONL file of `image` (a path in the folder `images`) and `caption`, as PMC-OA has it.
    Lines { file: PathBuf, images: PathBuf },
    /// Shards of MMC4 documents, of its ChatGPT sequences, or of segments of books.
    Interleaved { shards: Vec<String> },
}

/// A tar file, or some lines of a JSONL file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shard {
    pub file: PathBuf,
    /// Its bytes in the file.
    pub range: Range<u64>,
    pub is_lines: bool,
}

/// One record: the place and the files that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub shard: u32,
    /// Where its first header or its line begins.
    pub offset: u64,
    pub members: Vec<Member>,
}

/// One file of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// What follows the first dot of its name, in lower case.
    pub extension: String,
    pub data: Range<u64>,
}

/// All shards of a source.
#[derive(Debug)]
pub(super) struct Shards {
    list: Vec<Shard>,
    fingerprint: String,
}

impl Shards {
    /// Finds the shards of `source`, in the order of their names.
    pub(super) fn open(source: &Source) -> Result<Self> {
        let list = match source {
            Source::Pairs { shards } | Source::Interleaved { shards } => tars(shards)?,
            Source::Lines { file, .. } => lines(file)?,
        };
        if list.is_empty() || list.len() > MAX_EXPANSION {
            let expected = format!("1 to {MAX_EXPANSION} shards");
            return Err(Error::invalid("training data", expected, list.len())
                .advise("give .tar files, folders of them, or a JSONL file with lines"));
        }
        let fingerprint = fingerprint(&list);
        Ok(Shards { list, fingerprint })
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// SHA-256 of the names and sizes of all shards.
    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The records of shard `i` from the one at `offset` on, or from the first.
    pub(super) fn walk(&self, i: u32, offset: Option<u64>) -> Result<Records, Refusal> {
        let shard = self.get(i)?;
        let failed = |e| Refusal::new(Reason::Io, format!("{}: {e}", shard.file.display()));
        let file = File::open(&shard.file).map_err(failed)?;
        let start = offset.unwrap_or(shard.range.start);
        let walk = if shard.is_lines {
            let mut file = BufReader::new(file);
            file.seek(SeekFrom::Start(start)).map_err(failed)?;
            Kind::Lines { file, at: start, end: shard.range.end }
        } else {
            let walk = Walk::new(file, start, shard.range.end).map_err(failed)?;
            Kind::Tar { walk, pending: None, failed: None }
        };
        Ok(Records { shard: i, name: shard.file.display().to_string(), kind: walk })
    }

    /// The bytes of `member` of `record`.
    pub(super) fn read(
        &self,
        record: &Record,
        member: &Member,
        most: u64,
    ) -> Result<Vec<u8>, Refusal> {
        let size = member.data.end - member.data.start;
        if size > most {
            let detail = format!("{}: {size} bytes of at most {most}", self.place(record));
            return Err(Refusal::new(Reason::TooLarge, detail));
        }
        let failed = |e| Refusal::new(Reason::Io, format!("{}: {e}", self.place(record)));
        let file = File::open(&self.get(record.shard)?.file).map_err(failed)?;
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, member.data.start).map_err(failed)?;
        Ok(bytes)
    }

    /// Where a record is, for people.
    pub(super) fn place(&self, record: &Record) -> String {
        let file = self.list.get(record.shard as usize).map(|s| s.file.display().to_string());
        format!("{} at byte {}", file.unwrap_or_default(), record.offset)
    }

    fn get(&self, i: u32) -> Result<&Shard, Refusal> {
        let missing = || Refusal::new(Reason::Io, format!("shard {i} of {}", self.list.len()));
        self.list.get(i as usize).ok_or_else(missing)
    }
}

/// The records of one shard, one after the other.
pub(super) struct Records {
    shard: u32,
    name: String,
    kind: Kind,
}

enum Kind {
    Tar { walk: Walk<File>, pending: Option<Entry>, failed: Option<Refusal> },
    Lines { file: BufReader<File>, at: u64, end: u64 },
}

impl Records {
    /// Where the next record begins.
    pub(super) fn position(&self) -> u64 {
        match &self.kind {
            Kind::Tar { walk, pending, .. } => {
                pending.as_ref().map_or(walk.position(), |entry| entry.header)
            }
            Kind::Lines { at, .. } => *at,
        }
    }

    /// True if nothing can follow `refusal`; lines that are too long are passed over.
    pub(super) fn ends_with(&self, refusal: &Refusal) -> bool {
        matches!(self.kind, Kind::Tar { .. }) || refusal.reason == Reason::Io
    }

    /// The next record, or None at the end.
    pub(super) fn next(&mut self) -> Result<Option<Record>, Refusal> {
        let shard = self.shard;
        let found = match &mut self.kind {
            Kind::Tar { walk, pending, failed } => group(walk, pending, failed),
            Kind::Lines { file, at, end } => line(file, at, *end),
        };
        let found = found.map_err(|mut e| {
            e.detail = format!("{}, {}", self.name, e.detail);
            e
        })?;
        Ok(found.map(|(offset, members)| Record { shard, offset, members }))
    }
}

type Group = (u64, Vec<Member>);

/// Consecutive files whose names agree up to the first dot after the last slash; a repeated
/// extension begins a new record (webdataset's `base_plus_ext` and `group_by_keys`).
fn group(
    walk: &mut Walk<File>,
    pending: &mut Option<Entry>,
    failed: &mut Option<Refusal>,
) -> Result<Option<Group>, Refusal> {
    if let Some(refusal) = failed.take() {
        return Err(refusal);
    }
    let mut key = String::new();
    let mut found: Option<Group> = None;
    loop {
        let entry = match pending.take().map_or_else(|| walk.next_file(), |e| Ok(Some(e))) {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(found),
            Err(refusal) if found.is_some() => {
                *failed = Some(refusal);
                return Ok(found);
            }
            Err(refusal) => return Err(refusal),
        };
        let Some((prefix, extension)) = split(&entry.name) else { continue };
        let member = Member { extension, data: entry.data.clone() };
        match &mut found {
            None => {
                key = prefix.to_string();
                found = Some((entry.header, vec![member]));
            }
            Some((_, members)) => {
                let is_same =
                    prefix == key && members.iter().all(|m| m.extension != member.extension);
                if !is_same || members.len() >= MAX_MEMBERS {
                    *pending = Some(entry);
                    return Ok(found);
                }
                members.push(member);
            }
        }
    }
}

/// `a/b.c/d.tar.gz` is `a/b.c/d` and `tar.gz`; None for names without a dot or a stem.
fn split(name: &str) -> Option<(&str, String)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    let extension = &name[dot + 1..];
    let is_usable = dot > base && (1..=64).contains(&extension.len());
    is_usable.then(|| (&name[..dot], extension.to_lowercase()))
}

fn line(file: &mut BufReader<File>, at: &mut u64, end: u64) -> Result<Option<Group>, Refusal> {
    while *at < end {
        let (start, mut line) = (*at, Vec::new());
        let most = (end - start).min(MAX_LINE);
        let failed = |e| Refusal::new(Reason::Io, format!("byte {start}: {e}"));
        let read = file.by_ref().take(most).read_until(b'\n', &mut line).map_err(failed)?;
        *at += read as u64;
        if read == 0 {
            return Err(Refusal::new(Reason::Io, format!("byte {start}: the file has shrunk")));
        }
        if line.last() != Some(&b'\n') && *at < end {
            *at = pass_over(file, *at, end).map_err(failed)?;
            let detail = format!("byte {start}: a line of more than {MAX_LINE} bytes");
            return Err(Refusal::new(Reason::TooLarge, detail));
        }
        if !line.trim_ascii().is_empty() {
            let data = start..start + read as u64;
            return Ok(Some((start, vec![Member { extension: "jsonl".into(), data }])));
        }
    }
    Ok(None)
}

/// Reads to the end of the line without keeping it; returns the position after it.
fn pass_over(file: &mut impl BufRead, mut at: u64, end: u64) -> std::io::Result<u64> {
    while at < end {
        let bytes = file.fill_buf()?;
        let found = bytes.iter().position(|&b| b == b'\n');
        let step = found.map_or(bytes.len(), |i| i + 1);
        if step == 0 {
            break;
        }
        file.consume(step);
        at += step as u64;
        if found.is_some() {
            break;
        }
    }
    Ok(at.min(end))
}

/// The paths that `pattern` stands for: `a-{08..10}.tar` is three files, with the zeros of the
/// first number; a folder is its `.tar` files; anything else is itself.
///
/// # Errors
/// Braces that are no range, more than a million files, or a folder that cannot be read.
pub fn expand(pattern: &str) -> Result<Vec<PathBuf>> {
    if Path::new(pattern).is_dir() {
        let failed = |e| Error::io("read", pattern, e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(pattern).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|e| e == "tar") {
                found.push(path);
            }
        }
        found.sort();
        return Ok(found);
    }
    let mut found = vec![String::new()];
    let mut rest = pattern;
    while let Some((before, braces)) = rest.split_once('{') {
        let bad = || {
            let expected = format!("{{FIRST..LAST}} with at most {MAX_EXPANSION} files");
            Error::invalid("training data", expected, pattern)
        };
        let (range, after) = braces.split_once('}').ok_or_else(bad)?;
        let (first, last) = range.split_once("..").ok_or_else(bad)?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
        let (from, to) = (number(first)?, number(last)?);
        let count = to.checked_sub(from).and_then(|n| n.checked_add(1)).ok_or_else(bad)?;
        let all = count.checked_mul(found.len() as u64).filter(|&n| n <= MAX_EXPANSION as u64);
        all.ok_or_else(bad)?;
        let width = first.len();
        let next = |stem: &String| {
            let stem = stem.clone();
            (from..=to).map(move |i| format!("{stem}{before}{i:0width$}")).collect::<Vec<_>>()
        };
        found = found.iter().flat_map(next).collect();
        rest = after;
    }
    Ok(found.into_iter().map(|stem| PathBuf::from(stem + rest)).collect())
}

fn tars(patterns: &[String]) -> Result<Vec<Shard>> {
    let mut list = Vec::new();
    for pattern in patterns {
        let files = expand(pattern)?;
        if files.is_empty() {
            return Err(Error::invalid(pattern, "a folder with .tar files", "none"));
        }
        for file in files {
            let size = size_of(&file)?;
            list.push(Shard { file, range: 0..size, is_lines: false });
        }
    }
    Ok(list)
}

/// The size of a plain file: a pipe would never end and a folder has no bytes.
fn size_of(file: &Path) -> Result<u64> {
    let found = std::fs::metadata(file).map_err(|e| Error::io("read", file, e))?;
    if !found.is_file() {
        return Err(Error::invalid(file.display(), "a plain file", "something else"));
    }
    Ok(found.len())
}

/// Divides a file of lines into shards of [`LINES`] lines.
fn lines(file: &Path) -> Result<Vec<Shard>> {
    let size = size_of(file)?;
    let failed = |e| Error::io("read", file, e);
    let mut reader = BufReader::with_capacity(1 << 20, File::open(file).map_err(failed)?);
    let (mut list, mut start, mut at, mut count) = (Vec::new(), 0, 0, 0);
    while at < size {
        let next = pass_over(&mut reader, at, size).map_err(failed)?;
        if next == at {
            return Err(Error::invalid(file.display(), "a file that does not shrink", "its end"));
        }
        at = next;
        count += 1;
        if count == LINES || at == size {
            list.push(Shard { file: file.to_path_buf(), range: start..at, is_lines: true });
            (start, count) = (at, 0);
        }
    }
    Ok(list)
}

/// Of file names, not of paths: data may be moved between two parts of a run.
fn fingerprint(list: &[Shard]) -> String {
    let mut hash = Sha256::new();
    for shard in list {
        let name = shard.file.file_name().unwrap_or_default().to_string_lossy();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(shard.range.start.to_le_bytes());
        hash.update(shard.range.end.to_le_bytes());
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_the_first_dot_of_the_base() {
        let case = |name| split(name).map(|(a, b)| format!("{a} {b}"));
        assert_eq!(case("a.b/c.tar.GZ").as_deref(), Some("a.b/c tar.gz"));
        assert_eq!(case("0001.jpg").as_deref(), Some("0001 jpg"));
        assert_eq!(case("../../etc/passwd"), None);
        assert_eq!(case(".hidden"), None);
        assert_eq!(case("folder.d/"), None);
        assert_eq!(case("x."), None);
    }

    #[test]
    fn braces_count_with_the_zeros_of_the_first_number() {
        let names = |p: &str| {
            expand(p).unwrap().iter().map(|p| p.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names("a-{08..10}.tar"), ["a-08.tar", "a-09.tar", "a-10.tar"]);
        assert_eq!(names("{0..1}/{5..5}"), ["0/5", "1/5"]);
        assert_eq!(names("plain.tar"), ["plain.tar"]);
        for bad in ["{1..", "{a..b}", "{3..1}", "{0..18446744073709551615}", "{0..999}{0..1999}"] {
            assert!(expand(bad).is_err(), "{bad}");
        }
    }
}

//! Checkpoint files from strangers, as named tensors that stay in the file until they are read.
//!
//! Reads `torch.save` archives (zip and the layout before torch 1.6), TorchScript archives,
//! safetensors, and Hugging Face folders of either, single or sharded; told apart by content, not
//! by name. Nothing in a file is executed and nothing is unpacked: what is not plainly a set of
//! tensors is refused, and there is no less careful way to read it. Names are as in the file;
//! which tensor they mean is the converter's business.

pub(crate) mod archive;
mod entry;
mod folder;
mod pickle;
mod rebuild;
mod torch;

pub(crate) use archive::crc32_of_more;
pub use entry::{Entry, Identity};

use crate::error::{Error, Result};
use archive::Member;
use entry::Source;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAX_TENSORS: usize = 200_000;
const MAX_IGNORED: usize = 20_000;
const MAX_NAME: usize = 1024;

/// The container that a checkpoint was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `torch.save` since torch 1.6.
    TorchZip,
    /// `torch.save` before torch 1.6.
    TorchLegacy,
    /// `torch.jit.save`, as OpenAI's CLIP files.
    TorchScript,
    SafeTensors,
    /// Several torch files and an index.
    ShardedTorch,
    /// Several safetensors files and an index.
    ShardedSafeTensors,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::TorchZip => "torch archive",
            Format::TorchLegacy => "torch file of the layout before 1.6",
            Format::TorchScript => "TorchScript archive",
            Format::SafeTensors => "safetensors",
            Format::ShardedTorch => "torch shards",
            Format::ShardedSafeTensors => "safetensors shards",
        })
    }
}

/// The named tensors of a file or folder.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    entries: Vec<(String, Entry)>,
    by_name: HashMap<String, usize>,
    ignored: Vec<(String, String)>,
    source: Option<Arc<Source>>,
    /// Members with checksums, of a zip archive.
    members: Vec<Member>,
    parts: Vec<Checkpoint>,
}

impl Checkpoint {
    /// Opens a checkpoint file, an index of shards (`*.index.json`), or a folder with one of them.
    /// Only headers are read; the bytes of the tensors are mapped.
    ///
    /// # Errors
    /// Anything that is not one of the formats, is damaged, or asks for more than data, with the
    /// path and what was found.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return folder::open_folder(path);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".index.json") { folder::open_index(path) } else { Self::open_file(path) }
    }

    /// Reads a checkpoint that is in memory; `name` stands for the path in messages.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Self::read(Path::new(name), Arc::new(Source::Owned(bytes)))
    }

    /// Names of the tensors, in file order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// Names and tensors, in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The tensor called exactly `name`.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&i| &self.entries[i].1)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when there is no tensor, which `open` never returns.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What else the file holds, each with the reason why it is not one of the tensors.
    pub fn ignored(&self) -> &[(String, String)] {
        &self.ignored
    }

    /// The container it was read from.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The file, index, or name given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compares the checksum of every member of a torch archive: reads the whole file.
    /// Returns how many were compared; the other formats carry none.
    ///
    /// # Errors
    /// The first member whose bytes do not match.
    pub fn verify(&self) -> Result<usize> {
        let mut compared = 0;
        for part in &self.parts {
            compared += part.verify()?;
        }
        let Some(source) = &self.source else { return Ok(compared) };
        for member in self.members.iter().filter(|m| m.method == 0) {
            member.verified(source.bytes()).map_err(|e| e.within(self.path.display()))?;
            compared += 1;
        }
        Ok(compared)
    }

    fn open_file(path: &Path) -> Result<Self> {
        Self::read(path, Source::open(path)?)
    }

    fn read(path: &Path, source: Arc<Source>) -> Result<Self> {
        let mut into = Self::new(path, Format::SafeTensors);
        let result = match source.bytes() {
            [b'P', b'K', 3, 4, ..] => torch::read_zip(&mut into, &source),
            [_, _, _, _, 0, 0, 0, 0, b'{', ..] => folder::read_safetensors(&mut into, &source),
            [0x80, ..] => torch::read_legacy(&mut into, &source),
            other => Err(unknown(other)),
        };
        into.source = Some(source);
        result.map(|()| into).map_err(|e| e.within(path.display()))
    }

    fn new(path: &Path, format: Format) -> Self {
        Checkpoint {
            path: path.to_path_buf(),
            format,
            entries: Vec::new(),
            by_name: HashMap::new(),
            ignored: Vec::new(),
            source: None,
            members: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Adds a tensor under a name that is unique, printable and of reasonable length.
    fn insert(&mut self, name: &str, entry: Entry) -> Result<()> {
        if self.by_name.insert(name.to_string(), self.entries.len()).is_some() {
            return Err(Error::invalid("tensor names", "each once", format!("`{name}` twice")));
        }
        if self.entries.len() >= MAX_TENSORS {
            return Err(Error::invalid("tensors", format!("at most {MAX_TENSORS}"), "more"));
        }
        self.entries.push((name.to_string(), entry));
        Ok(())
    }

    fn ignore(&mut self, name: String, reason: String) -> Result<()> {
        if self.ignored.len() >= MAX_IGNORED {
            let expected = format!("at most {MAX_IGNORED} entries that are not tensors");
            return Err(Error::invalid("checkpoint", expected, "more"));
        }
        self.ignored.push((name, reason));
        Ok(())
    }
}

/// Checks that an untrusted tensor name can be stored and shown.
fn check_name(name: &str) -> Result<()> {
    let is_shown = name.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    if is_shown && (1..=MAX_NAME).contains(&name.len()) {
        return Ok(());
    }
    let start: String = name.chars().take(80).collect();
    let expected = format!("1 to {MAX_NAME} printable ASCII characters");
    Err(Error::invalid("tensor name", expected, format!("\"{}\"", start.escape_debug())))
}

/// Names what the file looks like instead.
fn unknown(bytes: &[u8]) -> Error {
    const MAGICS: [(&[u8], &str); 16] = [
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"GGUF", "a GGUF file"),
        (b"lmgg", "a GGML file"),
        (b"tjgg", "a GGJT file"),
        (b"\x1f\x8b", "a gzip file"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"\xfd7zXZ\0", "an xz file"),
        (b"BZh", "a bzip2 file"),
        (b"Rar!", "a RAR archive"),
        (b"PK\x05\x06", "an empty zip archive"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x93NUMPY", "a numpy file"),
        (b"\x7fELF", "a program"),
        (b"version https://git-lfs", "a Git LFS pointer"),
        (b"<", "a web page"),
        (b"{", "a JSON file"),
    ];
    let expected = "a torch, TorchScript or safetensors file";
    let who = "format";
    if bytes.get(257..262) == Some(b"ustar") {
        return Error::invalid(who, expected, "a tar archive")
            .advise("unpack it, or, if torch wrote it, load and save it again with torch >= 1.6");
    }
    match MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        Some((_, "a Git LFS pointer")) => Error::invalid(who, expected, "a Git LFS pointer")
            .advise("run `git lfs pull`, or download the file itself"),
        Some((_, "a web page")) => Error::invalid(who, expected, "a web page")
            .advise("the download returned a page instead of the file; it may need a login"),
        Some((_, what)) => Error::invalid(who, expected, what),
        None => {
            let start: String = bytes.iter().take(8).map(|b| format!("{b:02x} ")).collect();
            Error::invalid(who, expected, format!("a file that begins {}", start.trim_end()))
        }
    }
}

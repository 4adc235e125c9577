//! Books as bundles of files: folders and EPUB archives, read in place.

use super::epub::Epub;
use super::report::BookReport;
use crate::train::data::decode_base64;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// Deepest folder below the input.
const MAX_DEPTH: usize = 16;
/// Most files that are looked at.
const MAX_FILES: usize = 1_000_000;
/// Largest page, in bytes.
const MAX_PAGE: u64 = 32 << 20;

/// Where a book is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Book {
    Epub {
        name: String,
        file: PathBuf,
    },
    /// HTML files in the order of their names, relative to `root`.
    Folder {
        name: String,
        root: PathBuf,
        pages: Vec<String>,
    },
}

impl Book {
    /// Its path relative to the input.
    pub(super) fn name(&self) -> &str {
        match self {
            Book::Epub { name, .. } | Book::Folder { name, .. } => name,
        }
    }

    /// Opens it for reading.
    ///
    /// # Errors
    /// An archive that is damaged, or that means harm.
    pub(super) fn open(&self) -> Result<Bundle<'_>> {
        match self {
            Book::Epub { file, .. } => Ok(Bundle::Epub(Epub::open(file)?)),
            Book::Folder { root, pages, .. } => Ok(Bundle::Folder { root, pages }),
        }
    }
}

/// An open book. Reasons for what is left out are of a closed set.
pub(super) enum Bundle<'a> {
    Epub(Epub),
    Folder { root: &'a Path, pages: &'a [String] },
}

impl Bundle<'_> {
    /// The pages in reading order.
    pub(super) fn pages(&self, report: &mut BookReport) -> Result<Vec<String>> {
        match self {
            Bundle::Epub(epub) => epub.pages(report),
            Bundle::Folder { pages, .. } => Ok(pages.to_vec()),
        }
    }

    /// The bytes of a page.
    pub(super) fn page(&self, page: &str) -> Result<Vec<u8>, &'static str> {
        self.read(page, MAX_PAGE)
    }

    /// The bytes of the picture that `source` names on `page`.
    pub(super) fn picture(&self, page: &str, source: &str) -> Result<Vec<u8>, &'static str> {
        let most = crate::image::Limits::default().max_bytes as u64;
        if let Some(data) = source.strip_prefix("data:") {
            let (kind, text) = data.split_once(',').ok_or("unreadable data URI")?;
            if !kind.starts_with("image/") || !kind.ends_with(";base64") {
                return Err("unreadable data URI");
            }
            let text: String = text.split_whitespace().collect();
            return decode_base64(&text).ok_or("unreadable data URI");
        }
        self.read(&resolve(page, source)?, most)
    }

    fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, &'static str> {
        match self {
            Bundle::Epub(epub) => epub.read(name, most),
            Bundle::Folder { root, .. } => {
                let path = root.join(name).canonicalize().map_err(|_| "missing file")?;
                if !path.starts_with(root) {
                    return Err("outside of the book");
                }
                read_plain(&path, most)
            }
        }
    }
}

/// A plain file of at most `most` bytes.
pub(super) fn read_plain(path: &Path, most: u64) -> Result<Vec<u8>, &'static str> {
    let found = path.metadata().map_err(|_| "missing file")?;
    if !found.is_file() {
        return Err("no plain file");
    }
    if found.len() > most {
        return Err("too large");
    }
    let mut bytes = Vec::with_capacity(found.len() as usize);
    let file = File::open(path).map_err(|_| "missing file")?;
    file.take(most).read_to_end(&mut bytes).map_err(|_| "unreadable file")?;
    Ok(bytes)
}

/// The file that `reference` means on `page`, both relative to the bundle. Never one outside.
pub(super) fn resolve(page: &str, reference: &str) -> Result<String, &'static str> {
    let reference = reference.trim().split(['#', '?']).next().unwrap_or("");
    let scheme = reference.split(['/', '\\']).next().unwrap_or("");
    if scheme.contains(':') || reference.starts_with("//") {
        return Err("external address");
    }
    let path = unescape(reference).ok_or("strange path")?;
    if path.is_empty() || path.starts_with('/') || path.contains(['\\', '\0', ':']) {
        return Err("strange path");
    }
    let folder = page.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or("outside of the book")?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// Undoes `%20`; None for a `%` without two digits or bytes that are not UTF-8.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = rest.get(..2).filter(|d| d.iter().all(u8::is_ascii_hexdigit))?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

/// The books below `input`, in the order of their names. Links are not followed.
///
/// An EPUB file is a book; so is an HTML file directly in `input`; the HTML files of a folder in it
/// are one book together.
pub(super) fn find(input: &Path) -> Result<Vec<Book>> {
    let root = input.canonicalize().map_err(|e| Error::io("read", input, e))?;
    let mut files = Vec::new();
    walk(&root, 0, &mut files)?;
    files.sort();
    let mut books = BTreeMap::new();
    for file in files {
        let Some(name) = relative(&root, &file) else { continue };
        let ending = file.extension().and_then(|e| e.to_str()).unwrap_or("").to_lowercase();
        match (ending.as_str(), name.split_once('/')) {
            ("epub", _) => drop(books.insert(name.clone(), Book::Epub { name, file })),
            ("html" | "htm" | "xhtml", None) => {
                let pages = vec![name.clone()];
                let root = root.clone();
                books.insert(name.clone(), Book::Folder { name, root, pages });
            }
            ("html" | "htm" | "xhtml", Some((folder, page))) => {
                let new = || {
                    let root = root.join(folder);
                    Book::Folder { name: folder.into(), root, pages: Vec::new() }
                };
                if let Book::Folder { pages, .. } = books.entry(folder.into()).or_insert_with(new) {
                    pages.push(page.into());
                }
            }
            _ => {}
        }
    }
    if books.is_empty() {
        let expected = "EPUB, HTML or XHTML files, or folders of them";
        return Err(Error::invalid(input.display(), expected, "none"));
    }
    Ok(books.into_values().collect())
}

fn walk(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |e| Error::io("read", folder, e);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() && depth < MAX_DEPTH {
            walk(&entry.path(), depth + 1, files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
        if files.len() > MAX_FILES {
            let expected = format!("at most {MAX_FILES} files");
            return Err(Error::invalid(folder.display(), expected, "more"));
        }
    }
    Ok(())
}

/// `file` below `root` with `/`; None where a name is not UTF-8.
fn relative(root: &Path, file: &Path) -> Option<String> {
    let parts = file.strip_prefix(root).ok()?.components().map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    Some(parts.collect::<Option<Vec<_>>>()?.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_stay_inside_the_book() {
        let page = "OEBPS/text/one.xhtml";
        for (reference, file) in [
            ("a.png", "OEBPS/text/a.png"),
            ("../images/b%20c.png#x", "OEBPS/images/b c.png"),
            ("./d.png?v=2", "OEBPS/text/d.png"),
            ("../../e.png", "e.png"),
        ] {
            assert_eq!(resolve(page, reference).as_deref(), Ok(file), "{reference}");
        }
        for (reference, reason) in [
            ("../../../etc/passwd", "outside of the book"),
            ("%2e%2e/%2e%2e/%2e%2e/x", "outside of the book"),
            ("/etc/passwd", "strange path"),
            ("..\\..\\x", "strange path"),
            ("a%00.png", "strange path"),
            ("a%zz.png", "strange path"),
            ("%ff.png", "strange path"),
            ("", "strange path"),
            ("#top", "strange path"),
            ("http://x/a.png", "external address"),
            ("//x/a.png", "external address"),
            ("file:a.png", "external address"),
            ("C:\\a.png", "external address"),
        ] {
            assert_eq!(resolve(page, reference), Err(reason), "{reference}");
        }
    }
}

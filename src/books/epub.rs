//! EPUB: a zip archive of XHTML pages with a list of their order.

use super::bundle::{read_plain, resolve};
use super::html::{Tag, tags};
use super::report::BookReport;
use crate::checkpoint::archive::{Directory, Member, crc32};
use crate::{Error, Result};
use flate2::read::DeflateDecoder;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// Largest archive, in bytes.
const MAX_BOOK: u64 = 2 << 30;
/// Largest list of contents, in bytes.
const MAX_LIST: u64 = 16 << 20;
/// Most bytes that one packed byte may become, beyond the first megabyte.
const MAX_RATIO: u64 = 200;
/// Most pages.
const MAX_PAGES: usize = 100_000;

pub(super) struct Epub {
    file: Vec<u8>,
    directory: Directory,
}

impl Epub {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let who = path.display();
        let file = read_plain(path, MAX_BOOK)
            .map_err(|e| Error::invalid(&who, format!("a file of at most {MAX_BOOK} bytes"), e))?;
        let directory = Directory::parse(&file).map_err(|e| e.within(&who))?;
        Ok(Epub { file, directory })
    }

    /// The content of `name`, inflated and compared with its checksum.
    pub(super) fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, &'static str> {
        let member = self.directory.get(name).ok_or("missing file")?;
        let packed = &self.file[member.data.clone()];
        let allowed = (packed.len() as u64).saturating_mul(MAX_RATIO).max(1 << 20);
        if member.size > most || member.size > allowed {
            return Err("too large");
        }
        let content = inflate(member, packed)?;
        match content.len() as u64 == member.size && crc32(&content) == member.crc {
            true => Ok(content),
            false => Err("damaged archive member"),
        }
    }

    /// The pages that the spine of the package lists.
    pub(super) fn pages(&self, report: &mut BookReport) -> Result<Vec<String>> {
        let package = self.package()?;
        let list = self.list(&package)?;
        let (mut files, mut order) = (HashMap::new(), Vec::new());
        for tag in tags(&list) {
            match tag.local_name() {
                "item" => {
                    let href = tag.get("href").map(|href| resolve(&package, href));
                    if let (Some(id), Some(Ok(path))) = (tag.get("id"), href) {
                        let properties = tag.get("properties").unwrap_or_default();
                        let is_contents = properties.split_whitespace().any(|p| p == "nav");
                        files.insert(id.to_string(), (path, is_contents));
                    }
                }
                "itemref" => order.extend(tag.get("idref").map(String::from)),
                _ => {}
            }
            if order.len() > MAX_PAGES {
                return Err(Error::invalid("spine", format!("at most {MAX_PAGES} pages"), "more"));
            }
        }
        let mut pages = Vec::new();
        for id in order {
            match files.get(&id) {
                Some((_, true)) => report.dropped_pages.add("table of contents", 1),
                Some((path, false)) => pages.push(path.clone()),
                None => report.dropped_pages.add("missing file", 1),
            }
        }
        if pages.is_empty() {
            return Err(Error::invalid(&package, "a spine with pages", "none"));
        }
        Ok(pages)
    }

    /// Where the package is, by `META-INF/container.xml`.
    fn package(&self) -> Result<String> {
        const CONTAINER: &str = "META-INF/container.xml";
        let container = self.list(CONTAINER)?;
        let tags = tags(&container);
        let mut roots = tags.iter().filter(|tag| tag.local_name() == "rootfile");
        let path = roots.find_map(|tag| tag.get("full-path"));
        let path = path.and_then(|path| resolve("", path).ok());
        path.ok_or_else(|| Error::invalid(CONTAINER, "a rootfile with a full-path", "none"))
    }

    fn list(&self, name: &str) -> Result<Vec<u8>> {
        self.read(name, MAX_LIST).map_err(|e| Error::invalid(name, "a file of the book", e))
    }
}

fn inflate(member: &Member, packed: &[u8]) -> Result<Vec<u8>, &'static str> {
    match member.method {
        0 => Ok(packed.to_vec()),
        8 => {
            let mut content = Vec::new();
            // One byte more than declared is enough to know that the size lies.
            let mut bytes = DeflateDecoder::new(packed).take(member.size + 1);
            bytes.read_to_end(&mut content).map_err(|_| "damaged archive member")?;
            Ok(content)
        }
        _ => Err("unknown compression"),
    }
}

impl Tag {
    /// Its name without a prefix.
    fn local_name(&self) -> &str {
        self.name.rsplit(':').next().unwrap_or_default()
    }
}

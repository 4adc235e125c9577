//! What reaches the disk for good, and in which order: files that are synced before anything names
//! them, and folders that get their name when everything in them is there.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// Bytes read at a time to compare a file.
const CHUNK: usize = 1 << 20;

/// One file and what it adds up to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSum {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

/// Asked before each operation, with its name; an error is the operation's.
type Fault = Box<dyn Fn(&'static str, &Path) -> io::Result<()> + Send + Sync>;

/// Where bytes go.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// The file system, or, in tests, one that fails when it is told to.
#[derive(Default)]
pub struct Disk {
    fault: Option<Fault>,
}

impl Disk {
    /// A disk whose operations fail where `fault` does: a full disk, a crash, at a chosen point.
    pub fn faulty(
        fault: impl Fn(&'static str, &Path) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Disk { fault: Some(Box::new(fault)) }
    }

    fn run<T>(
        &self,
        action: &'static str,
        path: &Path,
        body: impl FnOnce() -> io::Result<T>,
    ) -> Result<T> {
        let may = self.fault.as_ref().map_or(Ok(()), |fault| fault(action, path));
        may.and_then(|()| body()).map_err(|e| Error::io(action, path, e))
    }

    /// Makes a folder whose parent exists.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create_folder(&self, path: &Path) -> Result<()> {
        self.run("create", path, || std::fs::create_dir(path))
    }

    /// Makes `folder`/`name` of what `fill` passes on, and waits until the disk has it.
    ///
    /// # Errors
    /// A file that exists, a full disk, and the errors of `fill`.
    pub fn write(
        &self,
        folder: &Path,
        name: &str,
        fill: impl FnOnce(&mut Sink<'_>) -> Result<()>,
    ) -> Result<FileSum> {
        let path = folder.join(name);
        let mut file = self.run("create", &path, || File::create_new(&path))?;
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        fill(&mut |part| {
            hash.update(part);
            bytes += part.len() as u64;
            self.run("write", &path, || file.write_all(part))
        })?;
        self.run("sync", &path, || file.sync_all())?;
        Ok(FileSum { name: name.into(), bytes, sha256: hex(hash) })
    }

    /// Waits until the disk has the names in `folder`.
    ///
    /// # Errors
    /// Those of the system.
    pub fn sync_folder(&self, folder: &Path) -> Result<()> {
        self.run("sync", folder, || File::open(folder)?.sync_all())
    }

    /// Gives a file or folder its final name; `to` does not exist, or is a file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.run("rename", from, || std::fs::rename(from, to))?;
        self.sync_folder(parent(to))
    }

    /// Removes a folder and all that is in it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn remove_folder(&self, folder: &Path) -> Result<()> {
        self.run("remove", folder, || std::fs::remove_dir_all(folder))
    }

    /// Replaces a small file: at every moment it is the old one or the new one.
    ///
    /// # Errors
    /// Those of the system; the old file is then still there.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let partial = format!(".{name}.partial-{}", std::process::id());
        // What a process of the same number may have left behind.
        let _ = std::fs::remove_file(parent(path).join(&partial));
        let written = self.write(parent(path), &partial, |sink| sink(bytes));
        let renamed = written.and_then(|_| self.rename(&parent(path).join(&partial), path));
        if renamed.is_err() {
            let _ = std::fs::remove_file(parent(path).join(&partial));
        }
        renamed
    }
}

/// The folder that `path` is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Compares a file with what it should add up to.
///
/// # Errors
/// A file that is missing, of another length, or of other bytes.
pub fn verify(folder: &Path, sum: &FileSum) -> Result<()> {
    let path = folder.join(&sum.name);
    let who = path.display();
    let mut file = File::open(&path).map_err(|e| Error::io("read", &path, e))?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", &path, e)),
        }
    }
    if bytes != sum.bytes {
        return Err(Error::invalid(who, format!("{} bytes", sum.bytes), bytes));
    }
    let found = hex(hash);
    if found != sum.sha256 {
        return Err(Error::invalid(who, format!("sha256 {}", sum.sha256), found));
    }
    Ok(())
}

/// A digest in hexadecimal.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of `bytes` in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::default();
        let sum = disk.write(folder.path(), "a", |sink| {
            sink(b"ab")?;
            sink(b"c")
        });
        let sum = sum.unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((sum.bytes, sum.sha256.as_str()), (3, abc));
        verify(folder.path(), &sum).unwrap();
        std::fs::write(folder.path().join("a"), "abd").unwrap();
        assert!(verify(folder.path(), &sum).unwrap_err().to_string().contains("sha256"));
        std::fs::write(folder.path().join("a"), "ab").unwrap();
        assert!(verify(folder.path(), &sum).unwrap_err().to_string().contains("3 bytes"));
        assert!(disk.write(folder.path(), "a", |_| Ok(())).is_err(), "it exists");
    }

    /// Whichever operation fails, the file is the old one or the new one and nothing else is left.
    #[test]
    fn a_replaced_file_is_never_half() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        Disk::default().replace(&path, b"old").unwrap();
        for k in 0..5 {
            let count = AtomicUsize::new(0);
            let disk = Disk::faulty(move |_, _| match count.fetch_add(1, Ordering::Relaxed) == k {
                true => Err(io::Error::from(io::ErrorKind::StorageFull)),
                false => Ok(()),
            });
            let failed = disk.replace(&path, b"new").is_err();
            assert!(failed, "operation {k}");
            let now = std::fs::read(&path).unwrap();
            assert!(now == b"old" || (now == b"new" && k == 4), "operation {k}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "operation {k}");
        }
    }
}

//! A run's folder: one run at a time, and nothing of another one overwritten.

use super::checkpoint::FOLDER;
use super::config::RunConfig;
use super::disk::{self, Disk};
use crate::weights::{CHECKSUMS, INDEX, LEDGER};
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// The complete configuration in a run's folder.
pub const CONFIG: &str = "config.toml";
const LOCK: &str = "lock";

/// The folder, held by this process.
pub struct RunFolder {
    path: PathBuf,
    /// Released when the process ends, however it does.
    _lock: File,
}

impl RunFolder {
    /// Makes the folder, or, to go on with a run, opens it.
    ///
    /// # Errors
    /// A folder of another run, or one that another process works in.
    pub fn open(path: &Path, is_resumed: bool) -> Result<Self> {
        let who = path.display();
        std::fs::create_dir_all(path).map_err(|e| Error::io("create", path, e))?;
        let lock = path.join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(&lock);
        let file = file.map_err(|e| Error::io("open", &lock, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::invalid(who, "a folder that nobody works in", "a run in it")
                    .advise(
                        "another process trains there; wait for it, or choose another folder",
                    ));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &lock, e)),
        }
        let has_run = path.join(CONFIG).exists() || path.join(FOLDER).exists();
        if has_run && !is_resumed {
            return Err(Error::invalid(who, "a folder without a run", "one with a run")
                .advise("go on with that run with --resume, or choose another run.folder"));
        }
        Ok(RunFolder { path: path.to_path_buf(), _lock: file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the configuration, complete.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn write_config(&self, config: &RunConfig, disk: &Disk) -> Result<()> {
        let head =
            "# Complete: what was not given is as the program had it. Paths are absolute.\n\n";
        disk.replace(&self.path.join(CONFIG), format!("{head}{}", config.to_toml()?).as_bytes())
    }
}

/// What tells one model folder from another: a digest of its configuration, of the checksums that
/// were written with it, and of the names and sizes of its weights.
///
/// # Errors
/// A folder that cannot be read.
pub fn model_identity(folder: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .map_err(|e| Error::io("read", folder, e))?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    for name in names {
        let path = folder.join(&name);
        let is_read = ["config.json", LEDGER, CHECKSUMS, INDEX].contains(&name.as_str());
        if is_read {
            let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
            hash.update(disk::sha256(&bytes));
        } else if name.ends_with(".safetensors") {
            let size = path.metadata().map_err(|e| Error::io("read", &path, e))?.len();
            hash.update(format!("{name} {size}\n"));
        }
    }
    Ok(disk::hex(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_neither_overwritten_nor_run_twice() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("deep/run");
        let held = RunFolder::open(&path, false).unwrap();
        let twice = RunFolder::open(&path, true).err().unwrap().to_string();
        assert!(twice.contains("another process trains there"), "{twice}");
        std::fs::write(held.path().join(CONFIG), "").unwrap();
        drop(held);
        let over = RunFolder::open(&path, false).err().unwrap().to_string();
        assert!(over.contains("--resume"), "{over}");
        RunFolder::open(&path, true).unwrap();
    }
}

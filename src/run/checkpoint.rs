//! Checkpoints that are whole or are not there.
//!
//! A checkpoint is a folder. It is written under another name: every file is on the disk before the
//! manifest that sums them up, the manifest before the folder gets its name. Which one is the
//! newest follows from manifests that hold, never from names or dates. Old ones are removed when a
//! newer one has been read back.

use super::disk::{self, Disk, FileSum};
use super::tensors::{self, Named};
use crate::checkpoint::Checkpoint;
use crate::comm::Comm;
use crate::weights::free_space;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What this version writes and reads.
const FORMAT: u32 = 1;
/// The file that makes a folder a checkpoint.
pub const MANIFEST: &str = "manifest.json";
/// Where a run keeps its checkpoints.
pub const FOLDER: &str = "checkpoints";
/// What is trained, under the model's names.
pub const TRAINABLE: &str = "trainable.safetensors";
/// Room that is left on the disk, bytes.
const RESERVE: u64 = 16 << 20;
const MAX_JSON: u64 = 1 << 30;

/// What a checkpoint is of, and what its files add up to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// Program and version that wrote it.
    pub program: String,
    /// Optimiser steps that are done.
    pub step: u64,
    /// Ranks that wrote it.
    pub world: usize,
    pub files: Vec<FileSum>,
    /// SHA-256 of all of the above.
    pub sum: String,
}

impl Manifest {
    fn summed(mut self) -> Result<Self> {
        self.sum = String::new();
        let text = serde_json::to_vec(&self).map_err(|e| Error::invalid(MANIFEST, "JSON", e))?;
        self.sum = disk::sha256(&text);
        Ok(self)
    }

    /// Reads and checks the manifest of `folder`, not yet its files.
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let inside = |e: Error| e.within(path.display());
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|e| inside(Error::invalid("manifest", "that of a checkpoint", e)))?;
        if manifest.format != FORMAT {
            return Err(inside(Error::invalid("format", FORMAT, manifest.format))
                .advise("it was written by another version of this program"));
        }
        let summed = manifest.clone().summed()?;
        if summed != manifest {
            return Err(inside(Error::invalid("sum", &summed.sum, &manifest.sum)));
        }
        let is_plain = |f: &FileSum| Path::new(&f.name).file_name() == Some(f.name.as_ref());
        match manifest.files.iter().find(|f| !is_plain(f)) {
            Some(f) => Err(inside(Error::invalid("files", "plain file names", &f.name))),
            None => Ok(manifest),
        }
    }
}

/// What one rank puts into a checkpoint.
pub struct Content<'a> {
    /// The same on all ranks: what is trained. Rank 0 writes it.
    pub trainable: Vec<Named<'a>>,
    /// This rank's own: its part of the optimiser's state.
    pub own: Vec<Named<'a>>,
    /// This rank's own: counters, seeds, where it is in the data.
    pub state: Value,
}

/// A checkpoint whose files have been compared with its manifest.
#[derive(Clone, Debug)]
pub struct Saved {
    pub folder: PathBuf,
    pub manifest: Manifest,
}

/// The checkpoints of a run.
pub struct Checkpoints {
    folder: PathBuf,
    /// How many stay.
    keep: usize,
    disk: Disk,
}

/// What one rank wrote or why it could not.
type Outcome = Result<Vec<FileSum>>;

impl Checkpoints {
    /// Those in `folder`, of which the last `keep` stay.
    pub fn new(folder: &Path, keep: usize, disk: Disk) -> Self {
        Checkpoints { folder: folder.to_path_buf(), keep: keep.max(1), disk }
    }

    /// Writes the checkpoint of `step`; all ranks call it together. A full disk, and whatever else
    /// goes wrong with the files of any rank, is the error inside, of all ranks: then nothing has
    /// changed.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn save(&self, comm: &Comm, step: u64, content: &Content<'_>) -> Result<Result<PathBuf>> {
        let partial = self.folder.join(format!(".{}.partial", name(step)));
        let is_first = comm.rank() == 0;
        let saved = self.save_at(&partial, comm, step, content)?;
        if saved.is_err() && is_first {
            // If it cannot be removed either, the next one that is saved does it.
            let _ = self.disk.remove_folder(&partial);
        }
        if saved.is_ok() && is_first {
            self.remove_old(step);
        }
        Ok(saved.map(|()| self.folder.join(name(step))))
    }

    fn save_at(
        &self,
        partial: &Path,
        comm: &Comm,
        step: u64,
        content: &Content<'_>,
    ) -> Result<Result<()>> {
        let is_first = comm.rank() == 0;
        let begun = if is_first { self.begin(partial) } else { Ok(()) };
        let begun = begun.and_then(|()| self.has_room(comm, content));
        if let Err(e) = comm.agree(begun.map(|()| Vec::new()))? {
            return Ok(Err(e));
        }
        let written = self.write(comm, partial, content).and_then(|sums| json(&sums));
        let all = match comm.agree(written)? {
            Ok(all) => all,
            Err(e) => return Ok(Err(e)),
        };
        let done = if is_first { self.finish(partial, step, &all) } else { Ok(()) };
        Ok(comm.agree(done.map(|()| Vec::new()))?.map(drop))
    }

    fn begin(&self, partial: &Path) -> Result<()> {
        if !self.folder.is_dir() {
            self.disk.create_folder(&self.folder)?;
            self.disk.sync_folder(disk::parent(&self.folder))?;
        }
        self.remove_partial()?;
        self.disk.create_folder(partial)
    }

    /// Removes what was left behind by a process that ended while it was saving.
    fn remove_partial(&self) -> Result<()> {
        for entry in self.entries() {
            let is_partial = entry.file_name().is_some_and(|n| n.as_encoded_bytes()[0] == b'.');
            if is_partial && entry.is_dir() {
                self.disk.remove_folder(&entry)?;
            }
        }
        Ok(())
    }

    fn entries(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    fn has_room(&self, comm: &Comm, content: &Content<'_>) -> Result<()> {
        let mut needed = tensors::bytes(&content.own)? + RESERVE;
        if comm.rank() == 0 {
            needed += tensors::bytes(&content.trainable)?;
        }
        if !self.folder.is_dir() {
            return Ok(());
        }
        let free = free_space(&self.folder)?;
        if free < needed {
            let expected = format!("{needed} free bytes for a checkpoint");
            return Err(Error::invalid(self.folder.display(), expected, format!("{free} bytes")));
        }
        Ok(())
    }

    fn write(&self, comm: &Comm, partial: &Path, content: &Content<'_>) -> Outcome {
        let mut sums = Vec::new();
        let mut file = |name: &str, tensors: &[Named<'_>]| {
            let fill = |sink: &mut disk::Sink<'_>| tensors::write(tensors, sink);
            self.disk.write(partial, name, fill).map(|sum| sums.push(sum))
        };
        if comm.rank() == 0 {
            file(TRAINABLE, &content.trainable)?;
        }
        // A rank whose part of the parameters is empty has no state of the optimiser.
        if !content.own.is_empty() {
            file(&optimizer(comm.rank(), comm.world()), &content.own)?;
        }
        let state = state(comm.rank(), comm.world());
        let bytes = json(&content.state)?;
        sums.push(self.disk.write(partial, &state, |sink| sink(&bytes))?);
        Ok(sums)
    }

    fn finish(&self, partial: &Path, step: u64, all: &[Vec<u8>]) -> Result<()> {
        let mut files = Vec::new();
        for sums in all {
            let sums: Vec<FileSum> = serde_json::from_slice(sums)
                .map_err(|e| Error::invalid("checkpoint", "the files of every rank", e))?;
            files.extend(sums);
        }
        let program = format!("medflamingo {}", env!("CARGO_PKG_VERSION"));
        let (format, world, sum) = (FORMAT, all.len(), String::new());
        let manifest = Manifest { format, program, step, world, files, sum }.summed()?;
        let bytes = serde_json::to_vec_pretty(&manifest)
            .map_err(|e| Error::invalid(MANIFEST, "JSON", e))?;
        self.disk.write(partial, MANIFEST, |sink| sink(&bytes))?;
        self.disk.sync_folder(partial)?;
        let target = self.folder.join(name(step));
        if target.exists() {
            // Damaged: a run goes on from the newest that is not, and comes here again.
            let aside = self.folder.join(format!(".{}.damaged", name(step)));
            self.disk.rename(&target, &aside)?;
        }
        self.disk.rename(partial, &target)
    }

    /// Reads the new one back; if it holds, only the newest stay. What goes wrong here costs room
    /// on the disk, no more.
    fn remove_old(&self, step: u64) {
        if verified(&self.folder.join(name(step))).is_err() {
            return;
        }
        let mut steps: Vec<u64> = self.entries().iter().filter_map(|p| number(p)).collect();
        steps.retain(|&s| s < step);
        steps.sort_unstable();
        let surplus = (steps.len() + 1).saturating_sub(self.keep);
        for old in &steps[..surplus.min(steps.len())] {
            // Under another name first: half a checkpoint has no name.
            let (from, to) = (name(*old), format!(".{}.old", name(*old)));
            let (from, to) = (self.folder.join(from), self.folder.join(to));
            let _ = self.disk.rename(&from, &to).and_then(|()| self.disk.remove_folder(&to));
        }
    }

    /// The newest checkpoint that holds, and what is wrong with those that are newer.
    pub fn newest(&self) -> (Option<Saved>, Vec<Error>) {
        let mut steps: Vec<(u64, PathBuf)> =
            self.entries().into_iter().filter_map(|p| Some((number(&p)?, p))).collect();
        steps.sort();
        let mut damaged = Vec::new();
        for (_, folder) in steps.into_iter().rev() {
            match verified(&folder) {
                Ok(saved) => return (Some(saved), damaged),
                Err(e) => damaged.push(e),
            }
        }
        (None, damaged)
    }
}

/// The checkpoint in `folder`, after every byte of it has been compared.
///
/// # Errors
/// A manifest that is missing or damaged, files that are.
pub fn verified(folder: &Path) -> Result<Saved> {
    let manifest = Manifest::read(folder)?;
    manifest.files.iter().try_for_each(|sum| disk::verify(folder, sum))?;
    Ok(Saved { folder: folder.to_path_buf(), manifest })
}

impl Saved {
    /// The tensors of [`TRAINABLE`].
    ///
    /// # Errors
    /// Files that went away since.
    pub fn trainable(&self) -> Result<Checkpoint> {
        Checkpoint::open(&self.folder.join(TRAINABLE))
    }

    /// The tensors that `rank` wrote, if it wrote any.
    ///
    /// # Errors
    /// As [`Saved::trainable`].
    pub fn own(&self, rank: usize) -> Result<Option<Checkpoint>> {
        let name = optimizer(rank, self.manifest.world);
        match self.manifest.files.iter().any(|f| f.name == name) {
            true => Checkpoint::open(&self.folder.join(name)).map(Some),
            false => Ok(None),
        }
    }

    /// What `rank` said of itself.
    ///
    /// # Errors
    /// As [`Saved::trainable`].
    pub fn state(&self, rank: usize) -> Result<Value> {
        let path = self.folder.join(state(rank, self.manifest.world));
        let length = path.metadata().map_err(|e| Error::io("read", &path, e))?.len();
        if length > MAX_JSON {
            return Err(Error::invalid(
                path.display(),
                format!("at most {MAX_JSON} bytes"),
                length,
            ));
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        serde_json::from_slice(&bytes).map_err(|e| Error::invalid(path.display(), "JSON", e))
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::invalid("checkpoint", "JSON", e))
}

fn name(step: u64) -> String {
    format!("step-{step:08}")
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

fn optimizer(rank: usize, world: usize) -> String {
    format!("optimizer-{rank:05}-of-{world:05}.safetensors")
}

fn state(rank: usize, world: usize) -> String {
    format!("state-{rank:05}-of-{world:05}.json")
}

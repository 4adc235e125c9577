//! Safetensors files written as a stream, with checksums, into a folder that appears whole or not
//! at all.
//!
//! The header is padded so that the data begins on a cache line, and tensors whose size is a
//! multiple of one come first: they stay aligned when the file is mapped.

use super::ledger::{FileSum, Ledger};
use super::pieces::hex;
use crate::weights::{INDEX, SINGLE, free_space};
use crate::{DType, Error, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

const ALIGN: usize = 64;
/// Buffers under way between the thread that makes bytes and the one that writes them.
const DEPTH: usize = 4;

/// One safetensors file: its name, its header, and the tensors it holds: place in the list, bytes.
pub(super) struct Shard {
    pub file: String,
    pub tensors: Vec<(usize, u64)>,
    header: Vec<u8>,
    bytes: u64,
}

impl Shard {
    /// Bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes the header alone, and has the file end where it would.
    pub(super) fn hollow(&self, folder: &Path) -> Result<()> {
        let path = folder.join(&self.file);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(&self.header)?;
            file.set_len(self.bytes)
        };
        write().map_err(|e| Error::io("write", &path, e))
    }
}

/// A tensor as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: DType,
}

impl Spec {
    /// Its bytes, if they can be counted.
    pub fn bytes(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.dtype.size(), |n, &d| n.checked_mul(d))
    }
}

/// Divides `specs`, in order, into files of at most `most` bytes of data.
///
/// # Errors
/// If the sizes overflow.
pub(super) fn shards(specs: &[Spec], most: u64) -> Result<Vec<Shard>> {
    let mut groups: Vec<Vec<usize>> = vec![vec![]];
    let mut filled = 0u64;
    for (i, spec) in specs.iter().enumerate() {
        let bytes = spec.bytes().ok_or_else(|| {
            let found = format!("{:?}", spec.shape);
            Error::invalid(&spec.name, "a size that fits in 64 bits", found)
        })? as u64;
        if filled > 0 && filled + bytes > most {
            groups.push(vec![]);
            filled = 0;
        }
        filled += bytes;
        if let Some(last) = groups.last_mut() {
            last.push(i);
        }
    }
    let count = groups.len();
    let named = groups.into_iter().enumerate().map(|(i, group)| {
        let file = match count {
            1 => SINGLE.to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        shard(file, group, specs)
    });
    named.collect()
}

fn shard(file: String, mut tensors: Vec<usize>, specs: &[Spec]) -> Result<Shard> {
    let bytes_of = |i: usize| specs[i].bytes().unwrap_or(0);
    // Stable: within a class the order of the forward pass stays.
    tensors.sort_by_key(|&i| ALIGN - (1 << bytes_of(i).trailing_zeros().min(6)));
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0;
    for &i in &tensors {
        let Spec { name, shape, dtype } = &specs[i];
        let kind = match dtype {
            DType::F32 | DType::F16 | DType::BF16 | DType::I8 | DType::U8 => {
                dtype.name().to_uppercase()
            }
            _ => return Err(Error::invalid(name, "f32, bf16, f16, i8 or u8", dtype)),
        };
        let end = at + bytes_of(i);
        let item = json!({"dtype": kind, "shape": shape, "data_offsets": [at, end]});
        header.insert(name.clone(), item);
        at = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize((8 + header.len()).next_multiple_of(ALIGN) - 8, b' ');
    let bytes = (8 + header.len() + at) as u64;
    let tensors = tensors.into_iter().map(|i| (i, bytes_of(i) as u64)).collect();
    let header = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    Ok(Shard { file, tensors, header, bytes })
}

/// The index of several files, as Hugging Face has it.
pub(super) fn index(shards: &[Shard], specs: &[Spec]) -> Result<Vec<u8>> {
    let total: u64 = shards.iter().map(|s| s.bytes - s.header.len() as u64).sum();
    let mut map = Map::new();
    for shard in shards {
        for &(i, _) in &shard.tensors {
            map.insert(specs[i].name.clone(), json!(shard.file));
        }
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    serde_json::to_vec_pretty(&index).map_err(|e| Error::invalid(INDEX, "JSON", e))
}

/// Where bytes go.
pub(super) type Sink<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;
/// Told how many bytes are done and how many there are.
pub type Progress<'a> = dyn Fn(u64, u64) + 'a;

/// Checksums of the files, and of the tensors by their place in the list.
pub(super) type Written = (Vec<FileSum>, Vec<(usize, String)>);

/// Writes all files of `shards` into `folder`; `fill` passes on the bytes of one tensor. Returns
/// the checksum of each file, and of each tensor if `is_each` is set.
///
/// # Errors
/// Those of `fill` and of the disk; a tensor that is not as long as its shape says.
pub(super) fn write(
    folder: &Path,
    shards: &[Shard],
    is_each: bool,
    progress: &Progress,
    fill: &mut dyn FnMut(usize, &mut Sink) -> Result<()>,
) -> Result<Written> {
    let total: u64 = shards.iter().map(|s| s.bytes).sum();
    let mut done = 0;
    let (mut files, mut sums) = (Vec::new(), Vec::new());
    for shard in shards {
        let path = folder.join(&shard.file);
        let (to_disk, full) = sync_channel::<Vec<u8>>(DEPTH);
        let (back, empty) = channel();
        let (made, written) = std::thread::scope(|scope| {
            let disk = scope.spawn(|| drain(&path, full, back));
            let mut pipe = Pipe { to_disk, empty, made: 0 };
            let mut progress = |n| progress(done + n, total);
            let made = make(shard, &mut pipe, is_each.then_some(&mut sums), &mut progress, fill);
            drop(pipe);
            let written = disk.join();
            (made, written.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        // If the disk failed, making bytes failed too, but only because nobody took them.
        files.push(FileSum { name: shard.file.clone(), bytes: shard.bytes, sha256: written? });
        made?;
        done += shard.bytes;
    }
    progress(total, total);
    Ok((files, sums))
}

/// Sends a file's header and tensors down the pipe.
fn make(
    shard: &Shard,
    pipe: &mut Pipe,
    mut sums: Option<&mut Vec<(usize, String)>>,
    progress: &mut dyn FnMut(u64),
    fill: &mut dyn FnMut(usize, &mut Sink) -> Result<()>,
) -> Result<()> {
    pipe.send(&shard.header)?;
    for &(i, expected) in &shard.tensors {
        let start = pipe.made;
        let mut hash = sums.is_some().then(Sha256::new);
        fill(i, &mut |bytes| {
            if let Some(hash) = &mut hash {
                hash.update(bytes);
            }
            pipe.send(bytes)?;
            progress(pipe.made);
            Ok(())
        })?;
        if pipe.made - start != expected {
            let who = format!("{}, tensor {i}", shard.file);
            let found = format!("{} bytes", pipe.made - start);
            return Err(Error::invalid(who, format!("{expected} bytes"), found));
        }
        if let (Some(sums), Some(hash)) = (&mut sums, hash) {
            sums.push((i, hex(hash)));
        }
    }
    Ok(())
}

/// The end of the pipe where bytes are made. Buffers come back and are used again.
struct Pipe {
    to_disk: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    made: u64,
}

impl Pipe {
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let mut buffer = self.empty.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        self.made += bytes.len() as u64;
        // Nobody receives after the disk has failed; its own error is the one that is told.
        self.to_disk.send(buffer).map_err(|_| Error::Cancelled)
    }
}

/// Writes what comes until the pipe closes; the file's checksum.
fn drain(path: &Path, full: Receiver<Vec<u8>>, back: Sender<Vec<u8>>) -> Result<String> {
    let failed = |e| Error::io("write", path, e);
    let mut file = File::create_new(path).map_err(failed)?;
    let mut hash = Sha256::new();
    for buffer in full {
        file.write_all(&buffer).map_err(failed)?;
        hash.update(&buffer);
        // The other end may have finished already.
        let _ = back.send(buffer);
    }
    file.sync_all().map_err(failed)?;
    Ok(hex(hash))
}

/// Writes `shards` of `specs` and their index into `staging`; `ledger`, which has a tensor for each
/// spec, then says where each is and what it and the files sum to.
///
/// # Errors
/// As [`write`].
pub(super) fn weights(
    staging: &Staging,
    shards: &[Shard],
    specs: &[Spec],
    ledger: &mut Ledger,
    progress: &Progress,
    fill: &mut dyn FnMut(usize, &mut Sink) -> Result<()>,
) -> Result<()> {
    let (files, sums) = write(staging.folder(), shards, true, progress, fill)?;
    ledger.files = files;
    for (i, sum) in sums {
        ledger.tensors[i].sha256 = sum;
    }
    for shard in shards {
        shard.tensors.iter().for_each(|(i, _)| ledger.tensors[*i].file = shard.file.clone());
    }
    if shards.len() > 1 {
        ledger.files.push(staging.file(INDEX, &index(shards, specs)?)?);
    }
    Ok(())
}

/// A folder that is written under another name beside its own and renamed when it is complete. It
/// disappears if that never happens.
pub(super) struct Staging {
    folder: PathBuf,
    output: PathBuf,
    is_forced: bool,
}

impl Staging {
    /// Makes the temporary folder, if `bytes` more will fit on the disk.
    ///
    /// # Errors
    /// An output that exists and is not to be replaced, or is no model folder; a full disk.
    pub(super) fn new(output: &Path, bytes: u64, is_forced: bool) -> Result<Self> {
        let who = output.display();
        let name = output.file_name().map(|n| n.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| Error::invalid(&who, "a folder with a name", "none"))?;
        if output.symlink_metadata().is_ok() {
            if !is_forced {
                return Err(Error::invalid(
                    who,
                    "a folder that does not exist yet",
                    "one that does",
                )
                .advise("choose another --output, or replace it with --force"));
            }
            if !is_replaceable(output) {
                return Err(Error::invalid(who, "a model folder to replace", "something else")
                    .advise("--force replaces only empty folders and those made by this program"));
            }
        }
        let parent = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let free = free_space(parent)?;
        if free < bytes {
            let expected = format!("{bytes} free bytes for the model");
            return Err(Error::invalid(parent.display(), expected, format!("{free} bytes")));
        }
        let start = format!(".{name}.partial-");
        remove_abandoned(parent, &start);
        let folder = parent.join(format!("{start}{}", std::process::id()));
        std::fs::create_dir(&folder).map_err(|e| Error::io("create", &folder, e))?;
        Ok(Staging { folder, output: output.to_path_buf(), is_forced })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a small file and returns its checksum.
    pub(super) fn file(&self, name: &str, bytes: &[u8]) -> Result<FileSum> {
        let path = self.folder.join(name);
        let written = File::create_new(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(|e| Error::io("write", &path, e))?;
        let mut hash = Sha256::new();
        hash.update(bytes);
        Ok(FileSum { name: name.into(), bytes: bytes.len() as u64, sha256: hex(hash) })
    }

    /// Gives the folder its name.
    pub(super) fn commit(self) -> Result<()> {
        let sync = |path: &Path| File::open(path).and_then(|folder| folder.sync_all());
        sync(&self.folder).map_err(|e| Error::io("write", &self.folder, e))?;
        let old = self.folder.with_extension("replaced");
        let is_replaced = self.is_forced && self.output.symlink_metadata().is_ok();
        if is_replaced {
            std::fs::rename(&self.output, &old).map_err(|e| Error::io("move", &self.output, e))?;
        }
        if let Err(e) = std::fs::rename(&self.folder, &self.output) {
            if is_replaced {
                // What was there before is better than nothing.
                let _ = std::fs::rename(&old, &self.output);
            }
            return Err(Error::io("create", &self.output, e));
        }
        if is_replaced {
            std::fs::remove_dir_all(&old).map_err(|e| Error::io("remove", &old, e))?;
        }
        if let Some(parent) = self.folder.parent() {
            sync(parent).map_err(|e| Error::io("write", parent, e))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a commit there is nothing under this name.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Removes what a process that was killed left behind, if it is certain that it runs no more.
fn remove_abandoned(parent: &Path, start: &str) {
    let has_processes = Path::new("/proc/self").exists();
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix(start));
        let process = number.and_then(|n| n.parse::<u32>().ok());
        let is_gone = |id: u32| !Path::new(&format!("/proc/{id}")).exists();
        if has_processes && process.is_some_and(is_gone) {
            // If it cannot be removed it is only in the way of the disk's owner, not in ours.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// True for a folder that is empty or holds a configuration of ours.
fn is_replaceable(folder: &Path) -> bool {
    let is_folder = folder.symlink_metadata().is_ok_and(|m| m.is_dir());
    let is_empty = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    let is_model = || crate::model::Config::read(&folder.join("config.json")).is_ok();
    is_folder && (is_empty || is_model())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs() -> Vec<Spec> {
        let shapes: [&[usize]; 4] = [&[1], &[3, 16], &[5], &[2, 16]];
        let spec = |(i, s): (usize, &&[usize])| {
            let (name, shape, dtype) = (format!("t{i}"), s.to_vec(), DType::F32);
            Spec { name, shape, dtype }
        };
        shapes.iter().enumerate().map(spec).collect()
    }

    fn fill(i: usize, sink: &mut Sink) -> Result<()> {
        let n = specs()[i].shape.iter().product::<usize>();
        sink(bytemuck::cast_slice(&vec![i as f32; n]))
    }

    #[test]
    fn files_are_aligned_complete_and_read_back() {
        for (most, files) in [(1 << 30, 1), (256, 2), (1, 4)] {
            let folder = tempfile::tempdir().unwrap();
            let shards = shards(&specs(), most).unwrap();
            assert_eq!(shards.len(), files);
            let (sums, each) = write(folder.path(), &shards, true, &|_, _| {}, &mut fill).unwrap();
            assert_eq!((sums.len(), each.len()), (files, 4));
            if files > 1 {
                let index = index(&shards, &specs()).unwrap();
                std::fs::write(folder.path().join(INDEX), index).unwrap();
            }
            let weights = crate::weights::Weights::open(folder.path()).unwrap();
            for (i, Spec { name, shape, .. }) in specs().iter().enumerate() {
                let tensor = weights.get(name, shape).unwrap();
                assert!(tensor.view().read::<f32>().unwrap().iter().all(|x| *x == i as f32));
                let (_, start) =
                    weights.iter().find(|(n, _)| n == name).unwrap().1.mapping().unwrap();
                let is_whole = tensor.bytes().is_multiple_of(ALIGN);
                assert!(start.is_multiple_of(ALIGN) || !is_whole, "{name} at {start}");
            }
        }
    }

    #[test]
    fn a_tensor_of_the_wrong_length_and_a_failing_disk_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let shards = shards(&specs(), 1 << 30).unwrap();
        let mut short = |_: usize, sink: &mut Sink| sink(&[0; 4]);
        let e = write(folder.path(), &shards, false, &|_, _| {}, &mut short).err().unwrap();
        assert!(e.to_string().contains("4 bytes"), "{e}");
        // The file exists now, so it cannot be made again.
        let e = write(folder.path(), &shards, false, &|_, _| {}, &mut fill).err().unwrap();
        assert!(matches!(e, Error::Io { .. }), "{e}");
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let output = parent.path().join("model");
        let count = || std::fs::read_dir(parent.path()).unwrap().count();
        let staging = Staging::new(&output, 1, false).unwrap();
        staging.file("a", b"1").unwrap();
        drop(staging);
        assert_eq!(count(), 0);
        // Process ids stay below 2^22, so this one is gone; process 1 is not.
        for id in [1, 1 << 30] {
            std::fs::create_dir(parent.path().join(format!(".model.partial-{id}"))).unwrap();
        }
        drop(Staging::new(&output, 1, false).unwrap());
        assert_eq!(count(), 1);
        std::fs::remove_dir(parent.path().join(".model.partial-1")).unwrap();
        let staging = Staging::new(&output, 1, false).unwrap();
        staging.file("a", b"1").unwrap();
        staging.commit().unwrap();
        assert_eq!((count(), std::fs::read(output.join("a")).unwrap()), (1, b"1".to_vec()));
        assert!(Staging::new(&output, 1, false).is_err(), "it exists");
        assert!(Staging::new(&output, 1, true).is_err(), "it is no model");
        std::fs::remove_file(output.join("a")).unwrap();
        let staging = Staging::new(&output, 1, true).unwrap();
        staging.file("b", b"2").unwrap();
        staging.commit().unwrap();
        assert_eq!((count(), std::fs::read_dir(&output).unwrap().count()), (1, 1));
        assert!(Staging::new(&parent.path().join("x"), u64::MAX, false).is_err(), "no room");
    }
}

//! Names to tensors: the safetensors of a model folder, mapped and never copied.
//!
//! Opening reads headers only, so a folder of any size is ready in milliseconds; the operating
//! system brings the weights in when they are first multiplied.

use crate::checkpoint::{Checkpoint, Entry};
use crate::device::{Buffer, Stream};
use crate::tensor::{Shape, Tensor};
use crate::{DType, Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The name of a folder's only weights file.
pub const SINGLE: &str = "model.safetensors";
/// The name of the index where there are several.
pub const INDEX: &str = "model.safetensors.index.json";

/// The record of a conversion, in a folder that was made by one.
pub const LEDGER: &str = "conversion.json";
/// The list of checksums, in a folder that was made in another way.
pub const CHECKSUMS: &str = "checksums.json";

/// What the name of some rows of a matrix ends with where training keeps no others, and that of
/// their numbers, i32.
pub const ROWS: &str = ".rows";
pub const ROW_IDS: &str = ".row_ids";

/// What the name of a matrix's scales ends with, where its codes end with `.weight`.
pub const SCALES: &str = ".scales";

/// The weight of a linear layer, (n,k), as it is stored.
#[derive(Debug)]
pub enum Matrix {
    Dense(Tensor),
    /// Codes (n,k) i8 with scales (n), or (n,k/2) u8 with scales (n,k/128); scales are bf16. See
    /// `kernels/gemm_quantized.h`.
    Quantized {
        codes: Tensor,
        scales: Tensor,
    },
}

impl Matrix {
    /// n.
    pub fn rows(&self) -> usize {
        let (Matrix::Dense(codes) | Matrix::Quantized { codes, .. }) = self;
        codes.shape().rows()
    }

    /// Bytes, scales included.
    pub fn bytes(&self) -> usize {
        match self {
            Matrix::Dense(w) => w.bytes(),
            Matrix::Quantized { codes, scales } => codes.bytes() + scales.bytes(),
        }
    }
}

/// The tensors of a model folder.
#[derive(Debug)]
pub struct Weights {
    folder: PathBuf,
    checkpoint: Checkpoint,
    dtype: DType,
    taken: Mutex<BTreeSet<String>>,
    /// A card's copy, and where each tensor begins in it; none where kernels read the mapping.
    placed: Option<(Arc<Buffer>, BTreeMap<String, usize>)>,
    /// Tensors that count instead of the folder's.
    replaced: BTreeMap<String, Tensor>,
}

impl Weights {
    /// Maps `model.safetensors` in `folder`, or the shards that `model.safetensors.index.json`
    /// names. Only headers are read.
    ///
    /// # Errors
    /// If neither is there, both are, or a file is cut off or its header does not describe it.
    pub fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        let path = match (single.exists(), index.exists()) {
            (true, false) => single,
            (false, true) => index,
            (both, _) => {
                let expected = format!("either {SINGLE} or {INDEX}");
                let found = if both { "both" } else { "neither" };
                return Err(Error::invalid(folder.display(), expected, found)
                    .advise("make a model folder with `medflamingo-tools convert` or `synth`"));
            }
        };
        let checkpoint = Checkpoint::open(&path)?;
        if let Some((name, reason)) = checkpoint.ignored().first() {
            let who = format!("{}: {name}", path.display());
            return Err(Error::invalid(who, "a tensor that the index names", reason));
        }
        let stored = checkpoint.iter().filter(|(name, _)| !name.ends_with(SCALES));
        let dtype = stored.map(|(_, entry)| entry.dtype).find(|d| d.is_float());
        let dtype = dtype.ok_or_else(|| {
            Error::invalid(path.display(), "tensors of floating-point numbers", "none")
        })?;
        Ok(Weights {
            folder: folder.to_path_buf(),
            checkpoint,
            dtype,
            taken: Mutex::default(),
            placed: None,
            replaced: BTreeMap::new(),
        })
    }

    /// The folder they are in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The one type that all tensors have but matrices of few bits.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Has these tensors count instead of the folder's, until the next call: what training has made
    /// of them.
    pub fn replace(&mut self, tensors: BTreeMap<String, Tensor>) {
        self.replaced = tensors;
    }

    /// Name and description of every tensor, in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.checkpoint.iter()
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.iter().map(|(_, entry)| entry.bytes()).sum()
    }

    /// Copies every tensor to the memory of `stream`, if that is a card's.
    ///
    /// # Errors
    /// When there is not that much memory.
    pub fn place(&mut self, stream: &Stream) -> Result<()> {
        let mut names = Vec::new();
        let mut mapped = Vec::new();
        for (name, entry) in self.checkpoint.iter() {
            names.push(name.to_string());
            mapped.push(self.mapped(name, entry)?);
        }
        let placed = stream.place(&mapped)?;
        self.placed = placed
            .map(|(buffer, offsets)| (Arc::new(buffer), names.into_iter().zip(offsets).collect()));
        Ok(())
    }

    fn mapped(&self, name: &str, entry: &Entry) -> Result<Buffer> {
        let inside = |e: Error| e.within(self.folder.display());
        let (map, start) = entry.mapping().ok_or_else(|| {
            inside(Error::invalid(name, "a tensor in a mapped file", "one in memory"))
        })?;
        Buffer::mapped(map, start, entry.bytes()).map_err(inside)
    }

    /// The tensor called `name`, which borrows the mapping or what [`Weights::place`] copied.
    ///
    /// # Errors
    /// If there is none, or its shape or type is another; the message has both.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.typed(name, self.dtype, shape)
    }

    /// The matrix `at`.weight (rows, cols), of elements or of codes with their scales.
    ///
    /// # Errors
    /// As [`Weights::get`]; codes without scales; rows that are not whole groups.
    pub fn matrix(&self, at: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let (name, scales) = (format!("{at}.weight"), format!("{at}{SCALES}"));
        let (codes, scales) = match self.checkpoint.get(&name).map(|entry| entry.dtype) {
            Some(DType::I8) => {
                (self.typed(&name, DType::I8, &[rows, cols])?, (scales, &[rows][..]))
            }
            Some(DType::U8) if cols.is_multiple_of(128) => {
                let codes = self.typed(&name, DType::U8, &[rows, cols / 2])?;
                (codes, (scales, &[rows, cols / 128][..]))
            }
            _ => return self.get(&name, &[rows, cols]).map(Matrix::Dense),
        };
        let scales = self.typed(&scales.0, DType::BF16, scales.1)?;
        Ok(Matrix::Quantized { codes, scales })
    }

    fn typed(&self, name: &str, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let inside = |e: Error| e.within(self.folder.display());
        let expected = Shape::new(shape);
        let Some(entry) = self.checkpoint.get(name) else {
            return Err(inside(Error::invalid(
                name,
                format!("{expected} {dtype}"),
                "no such tensor",
            )));
        };
        if let Some(tensor) = self.replaced.get(name) {
            if tensor.shape() != expected || tensor.dtype() != dtype {
                let found = format!("{} {}", tensor.shape(), tensor.dtype());
                return Err(inside(Error::invalid(name, format!("{expected} {dtype}"), found)));
            }
            return Ok(tensor.share());
        }
        if entry.shape != shape || entry.dtype != dtype {
            let found = format!("{} {}", listed(&entry.shape), entry.dtype);
            return Err(inside(Error::invalid(name, format!("{expected} {dtype}"), found)));
        }
        let (buffer, offset) = match &self.placed {
            Some((buffer, offsets)) => (buffer.clone(), offsets.get(name).copied()),
            None => (Arc::new(self.mapped(name, entry)?), Some(0)),
        };
        let offset = offset.unwrap_or(buffer.len());
        let tensor = Tensor::new(buffer, offset, dtype, expected);
        self.taken().insert(name.to_string());
        tensor.map_err(|e| inside(e.within(name)))
    }

    /// Tensors that nobody has asked for, in file order.
    pub fn unused(&self) -> Vec<&str> {
        let taken = self.taken();
        self.checkpoint.names().filter(|name| !taken.contains(*name)).collect()
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listed(shape: &[usize]) -> String {
    let sizes: Vec<_> = shape.iter().map(usize::to_string).collect();
    format!("({})", sizes.join(", "))
}

/// Bytes that can still be written where `folder` is.
///
/// # Errors
/// If the folder does not exist or the file system does not say.
#[allow(unsafe_code)]
pub fn free_space(folder: &Path) -> Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes())
        .map_err(|_| Error::invalid(folder.display(), "a path", "a zero byte in it"))?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `path` ends with a zero byte and `stat` is large enough; both outlive the call.
    let status = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if status != 0 {
        return Err(Error::io(
            "measure the free space of",
            folder,
            std::io::Error::last_os_error(),
        ));
    }
    // SAFETY: zeroed is a valid value of this struct of integers, and statvfs has filled it.
    let stat = unsafe { stat.assume_init() };
    #[allow(clippy::unnecessary_cast)]
    Ok((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, dtype, shape, bytes) in tensors {
            let offsets = [data.len(), data.len() + bytes.len()];
            let item = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
            header.insert(name.to_string(), item);
            data.extend_from_slice(bytes);
        }
        let header = serde_json::to_vec(&header).unwrap();
        [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    const INDEX_AB: &[u8] = br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;

    #[test]
    fn tensors_borrow_the_file_and_say_what_does_not_fit() {
        let values: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let bytes = file(&[("a", "F32", &[2, 2], &values), ("b", "F32", &[0], &[])]);
        let folder = folder(&[(SINGLE, &bytes)]);
        let weights = Weights::open(folder.path()).unwrap();
        let a = weights.get("a", &[2, 2]).unwrap();
        assert_eq!(a.view().read::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(weights.unused(), ["b"]);
        let mut weights = weights;
        let stream = Stream::host(1);
        let other = Tensor::upload(&stream, &[9f32; 4], &[2, 2]).unwrap();
        weights.replace([("a".to_string(), other)].into());
        assert_eq!(weights.get("a", &[2, 2]).unwrap().view().read::<f32>().unwrap(), [9.0; 4]);
        assert!(weights.get("a", &[4]).is_err());
        weights.replace(BTreeMap::new());
        let e = weights.get("a", &[4]).unwrap_err().to_string();
        assert!(e.contains("(4) f32") && e.contains("(2, 2) f32") && e.contains("a:"), "{e}");
        assert!(weights.get("c", &[1]).unwrap_err().to_string().contains("no such"));
        assert_eq!(weights.bytes(), 16);
        drop(weights);
        assert_eq!(a.view().read::<f32>().unwrap()[3], 4.0, "the tensor keeps the mapping");
    }

    #[test]
    fn shards_are_found_through_a_complete_index_only() {
        let (a, b) = (file(&[("a", "F16", &[1], &[7, 0])]), file(&[("b", "F16", &[1], &[8, 0])]));
        let two = file(&[("b", "F16", &[1], &[8, 0]), ("c", "F16", &[1], &[9, 0])]);
        let good = folder(&[(INDEX, INDEX_AB), ("1.safetensors", &a), ("2.safetensors", &b)]);
        let weights = Weights::open(good.path()).unwrap();
        assert_eq!(weights.get("b", &[1]).unwrap().dtype(), DType::F16);
        let away = br#"{"weight_map": {"a": "../1.safetensors"}}"#;
        for files in [
            &[(INDEX, INDEX_AB), ("1.safetensors", &a[..])][..],
            &[(INDEX, INDEX_AB), ("1.safetensors", &a), ("2.safetensors", &a)],
            &[(INDEX, INDEX_AB), ("1.safetensors", &a), ("2.safetensors", &two)],
            &[(INDEX, away), ("1.safetensors", &a)],
            &[(INDEX, INDEX_AB), (SINGLE, &a)],
            &[],
        ] {
            assert!(Weights::open(folder(files).path()).is_err());
        }
    }

    #[test]
    fn cut_off_and_overlapping_files_are_refused() {
        let whole = file(&[("a", "F32", &[1], &[0; 4]), ("b", "F32", &[1], &[0; 4])]);
        for len in 0..whole.len() {
            assert!(Weights::open(folder(&[(SINGLE, &whole[..len])]).path()).is_err(), "{len}");
        }
        let text = String::from_utf8(whole).unwrap();
        let overlap = text.replace("[4,8]", "[0,4]").into_bytes();
        assert!(Weights::open(folder(&[(SINGLE, &overlap)]).path()).is_err());
    }

    #[test]
    fn a_disk_has_some_room() {
        assert!(free_space(&std::env::temp_dir()).unwrap() > 0);
        assert!(free_space(Path::new("/no/such/folder")).is_err());
    }
}

//! The emulator as a device, for tests: the `.cu` files, compiled by the host's C++ compiler, one
//! fiber per CUDA thread (`tests/simt`). It finds races, divergent barriers and accesses out of
//! bounds; it says nothing about speed.

use super::Geometry;
use super::geometry::{Chip, Swizzle, TensorMap};
use crate::{Error, Result};
use libloading::Library;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// `-fsanitize=thread` only has the compiler call a function for every access; ours.
const KERNEL_FLAGS: &[&str] = &[
    "-x",
    "c++",
    "-O2",
    "-fsanitize=thread",
    "-fno-tree-vectorize",
    "-fno-exceptions",
    "-Wno-unknown-pragmas",
    "-Wno-attributes",
];
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-fPIC",
    "-g1",
    "-Wall",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
];

/// `MEDFLAMINGO_SIMT_CHECKS=0`: no look at any access, only the arithmetic. Several times faster.
fn is_checked() -> bool {
    std::env::var_os("MEDFLAMINGO_SIMT_CHECKS").is_none_or(|v| v != "0")
}

/// Buffers that exist: where each begins, its bytes, and how many borrow it.
static BUFFERS: RwLock<BTreeMap<usize, (usize, usize)>> = RwLock::new(BTreeMap::new());

/// A buffer came to be.
pub(super) fn appeared(ptr: *const u8, len: usize) {
    let mut buffers = BUFFERS.write().unwrap_or_else(PoisonError::into_inner);
    let entry = buffers.entry(ptr as usize).or_insert((0, 0));
    *entry = (entry.0.max(len), entry.1 + 1);
}

/// A buffer is no more.
pub(super) fn vanished(ptr: *const u8) {
    let mut buffers = BUFFERS.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(entry) = buffers.get_mut(&(ptr as usize)) {
        entry.1 -= 1;
        if entry.1 == 0 {
            buffers.remove(&(ptr as usize));
        }
    }
}

/// The buffer around `at`, or the last one before it.
unsafe extern "C" fn find_buffer(at: usize, begin: *mut usize, end: *mut usize) -> bool {
    let buffers = BUFFERS.read().unwrap_or_else(PoisonError::into_inner);
    let Some((start, (len, _))) = buffers.range(..=at).next_back() else { return false };
    // SAFETY: the emulator passes two of its own variables.
    unsafe { (*begin, *end) = (*start, start + len) };
    true
}

type Entry = unsafe extern "C" fn(*const c_void, *const c_void);
type Launch = unsafe extern "C" fn(
    *const c_char,
    Entry,
    *const c_void,
    usize,
    *const c_void,
    *const u32,
    u32,
    u32,
    u32,
    u32,
    *mut c_char,
    usize,
) -> i32;

/// Kernels compiled for the emulator.
pub struct Simt {
    library: Library,
    path: PathBuf,
    launch: Launch,
    workers: u32,
}

impl Simt {
    /// The product's kernels, compiled once per process if their sources changed.
    ///
    /// # Errors
    /// If the C++ compiler is missing or refuses a file; the message has its first lines.
    pub fn kernels() -> Result<Arc<Self>> {
        static KERNELS: OnceLock<Mutex<Option<Arc<Simt>>>> = OnceLock::new();
        let kernels = KERNELS.get_or_init(Mutex::default);
        let mut kernels = kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if kernels.is_none() {
            let folder = Path::new(ROOT).join("kernels");
            *kernels = Some(Arc::new(Self::compile(&sources(&folder)?)?));
        }
        kernels.clone().ok_or(Error::Cancelled)
    }

    /// Other files, written as kernels are.
    ///
    /// # Errors
    /// As [`Simt::kernels`].
    pub fn compile(files: &[PathBuf]) -> Result<Self> {
        let path = build(files)?;
        let fail = |e: libloading::Error| Error::device("simt", format!("{}: {e}", path.display()));
        // SAFETY: our own library, which does nothing when it is loaded.
        let library = unsafe { Library::new(&path) }.map_err(fail)?;
        // SAFETY: the types are those of `tests/simt/simt.cpp`.
        let launch = unsafe {
            type Find = unsafe extern "C" fn(usize, *mut usize, *mut usize) -> bool;
            let bind = library.get::<unsafe extern "C" fn(Find)>(b"simt_bind").map_err(fail)?;
            bind(find_buffer);
            *library.get::<Launch>(b"simt_launch").map_err(fail)?
        };
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Ok(Simt { library, path, launch, workers })
    }

    /// The library of the kernels.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `entry` over the grid of `geometry`.
    ///
    /// # Errors
    /// If there is no such entry, or the emulator found a fault; the message says which thread did
    /// what at which line.
    ///
    /// # Safety
    /// `P` is the params struct of the entry; pointers in it are valid.
    pub unsafe fn launch<P>(&self, entry: &str, geometry: &Geometry, params: &P) -> Result<()> {
        let fail = |what: String| Error::device("simt", what);
        let name = CString::new(entry).map_err(|_| fail(format!("no entry `{entry:?}`")))?;
        // SAFETY: every entry has this type.
        let function = unsafe { self.library.get::<Entry>(name.as_bytes_with_nul()) };
        let function = function.map_err(|_| fail(format!("no entry `{entry}`")))?;
        let maps = geometry.maps.map(encode);
        let mut message = [0u8; 2048];
        // SAFETY: the caller's for params; the others are ours and outlive the call.
        let status = unsafe {
            (self.launch)(
                name.as_ptr(),
                *function,
                std::ptr::from_ref(params).cast(),
                size_of::<P>(),
                maps.as_ptr().cast(),
                geometry.grid.as_ptr(),
                geometry.threads,
                geometry.shared,
                geometry.cluster,
                self.workers,
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        if status == 0 {
            return Ok(());
        }
        let text = CStr::from_bytes_until_nul(&message).unwrap_or_default();
        Err(fail(text.to_string_lossy().into_owned()))
    }
}

/// The emulator's tensor map: address, columns, rows, stride, box, swizzle.
#[repr(C, align(64))]
struct Encoded([u64; 16]);

fn encode(map: Option<TensorMap>) -> Encoded {
    let mut words = [0; 16];
    if let Some(map) = map {
        let swizzle = match map.swizzle {
            Swizzle::None => 0,
            Swizzle::Bytes64 => 64,
            Swizzle::Bytes128 => 128,
        };
        words[..7].copy_from_slice(&[
            map.address as u64,
            map.sizes[0],
            map.sizes[1],
            map.stride,
            u64::from(map.tile[0]),
            u64::from(map.tile[1]),
            swizzle,
        ]);
    }
    Encoded(words)
}

/// The `.cu` files of a folder, in order.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
    let mut files: Vec<_> = read.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "cu"));
    files.sort();
    Ok(files)
}

/// The library of `files` and the emulator; what has not changed is not compiled again.
fn build(files: &[PathBuf]) -> Result<PathBuf> {
    let root = Path::new(ROOT);
    let target = root.join("target/simt");
    std::fs::create_dir_all(&target).map_err(|e| Error::io("create", &target, e))?;
    let mut headers = Sha256::new();
    for folder in ["kernels", "kernels/lib", "tests/simt"] {
        let folder = root.join(folder);
        let read = std::fs::read_dir(&folder).map_err(|e| Error::io("list", &folder, e))?;
        let mut paths: Vec<_> = read.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "h" || e == "cuh"));
        paths.sort();
        for path in paths {
            headers.update(std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?);
        }
    }
    headers.update(format!("{FLAGS:?}{KERNEL_FLAGS:?}{}", is_checked()));
    let runtime = root.join("tests/simt/simt.cpp");
    let all: Vec<&PathBuf> = files.iter().chain([&runtime]).collect();
    let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
    let next = std::sync::atomic::AtomicUsize::new(0);
    let objects: Mutex<Vec<(usize, Result<PathBuf>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(file) = all.get(i) else { return };
                    let object = compile(file, headers.clone(), &target);
                    objects.lock().unwrap_or_else(PoisonError::into_inner).push((i, object));
                }
            });
        }
    });
    let mut objects = objects.into_inner().unwrap_or_else(PoisonError::into_inner);
    objects.sort_by_key(|(i, _)| *i);
    let objects = objects.into_iter().map(|(_, o)| o).collect::<Result<Vec<_>>>()?;
    let digest = objects.iter().fold(Sha256::new(), |mut digest, object| {
        digest.update(object.as_os_str().as_encoded_bytes());
        digest
    });
    let library = target.join(format!("libkernels-{}.so", hex(digest)));
    if !library.exists() {
        let mut link = compiler();
        link.args(["-shared", "-pthread"]).args(&objects);
        finish(link, &library)?;
    }
    Ok(library)
}

fn compile(file: &Path, mut digest: Sha256, target: &Path) -> Result<PathBuf> {
    let root = Path::new(ROOT);
    digest.update(std::fs::read(file).map_err(|e| Error::io("read", file, e))?);
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let object = target.join(format!("{stem}-{}.o", hex(digest)));
    if !object.exists() {
        let mut command = compiler();
        command.args(FLAGS).arg("-I").arg(root.join("kernels"));
        command.arg("-I").arg(root.join("tests/simt"));
        match file.extension().is_some_and(|e| e == "cu") {
            true => command.args(KERNEL_FLAGS),
            false => command.arg("-O3"),
        };
        if !is_checked() {
            command.args(["-fno-sanitize=thread", "-DSIMT_UNCHECKED"]);
        }
        command.arg("-c").arg(file);
        finish(command, &object)?;
    }
    Ok(object)
}

fn compiler() -> Command {
    Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()))
}

/// Runs `command` with its output under another name, then gives it `output`'s.
fn finish(mut command: Command, output: &Path) -> Result<()> {
    let part = output.with_extension(format!("{}.part", std::process::id()));
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command.arg("-o").arg(&part).output();
    let out = out.map_err(|e| Error::device("simt", format!("cannot run `{program}`: {e}")))?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        let first: Vec<_> = text.lines().take(12).collect();
        return Err(Error::device("simt", first.join("\n")));
    }
    std::fs::rename(&part, output).map_err(|e| Error::io("rename", &part, e))
}

fn hex(digest: Sha256) -> String {
    digest.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
}

/// The emulated card of a stream.
pub(super) struct Queue {
    pub simt: Arc<Simt>,
    pub chip: Chip,
}

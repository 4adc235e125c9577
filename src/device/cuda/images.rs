//! The compiled kernels: those in this binary, or a folder of fatbins.

use super::{check, dotted, driver_version, words};
use crate::device::modules::{CONTRACTS, MODULES, STEMS, TOOLKIT};
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::{CString, OsStr};
use std::path::{Path, PathBuf};

/// Why there is nothing to launch.
const NONE: &str = "this build has no GPU kernels; build where nvcc is \
     (tools/cuda-toolkit installs it), or set MEDFLAMINGO_KERNELS to a folder that \
     kernels/build has filled";
/// The folder's variable.
const FOLDER: &str = "MEDFLAMINGO_KERNELS";
/// The first bytes of a fatbin, and of its header: magic, version, header bytes, body bytes.
const MAGIC: [u8; 4] = [0x50, 0xed, 0x55, 0xba];
const HEADER: u64 = 16;

/// The files of the folder that is named, if one is.
///
/// # Errors
/// If it is not whole, or not of this build's contracts.
pub(super) fn named() -> Result<Option<Vec<PathBuf>>> {
    std::env::var_os(FOLDER).map(|folder| files(Path::new(&folder))).transpose()
}

/// What is to be loaded, in words if it cannot be: the folder's files or those of this binary.
pub(super) fn find() -> std::result::Result<(), String> {
    match named() {
        Ok(None) if MODULES.is_empty() => Err(NONE.into()),
        Ok(_) => Ok(()),
        Err(e) => Err(e.to_string()),
    }
}

/// A loaded file of kernels.
pub(super) struct Image {
    module: sys::CUmodule,
}

impl Image {
    /// The entry called `name`, if it is in this file.
    pub(super) fn entry(&self, name: &str) -> Option<sys::CUfunction> {
        let name = CString::new(name).ok()?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded; the name ends with a zero byte.
        let status = unsafe { sys::cuModuleGetFunction(&mut function, self.module, name.as_ptr()) };
        (status == CUresult::CUDA_SUCCESS).then_some(function)
    }

    /// Gives the memory of the code back.
    pub(super) fn unload(&self) {
        // SAFETY: called once, by the queue that is closing. A failure changes nothing.
        let _ = unsafe { sys::cuModuleUnload(self.module) };
    }
}

/// Loads every file of kernels into the current context: `named`, or those of this binary.
///
/// # Errors
/// Names the file that is damaged or not for this card; `images` then has those before it.
pub(super) fn load(
    device: &str,
    card: &str,
    named: Option<Vec<PathBuf>>,
    images: &mut Vec<Image>,
) -> Result<()> {
    let Some(paths) = named else {
        if MODULES.is_empty() {
            return Err(Error::device(device, format!("{card}: {NONE}")));
        }
        for (stem, bytes) in MODULES {
            images.push(image(device, card, &format!("kernel {stem}"), bytes)?);
        }
        return Ok(());
    };
    for path in paths {
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        // The driver wants the image aligned.
        let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
        let image_bytes = &mut bytemuck::cast_slice_mut(&mut aligned)[..bytes.len()];
        image_bytes.copy_from_slice(&bytes);
        images.push(image(device, card, &path.display().to_string(), image_bytes)?);
    }
    Ok(())
}

/// The fatbins of a folder, which has one for every source that this build knows, made for the
/// same params.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
    let mut paths: Vec<_> = read.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "fatbin"));
    paths.sort();
    let is_there = |stem: &&str| paths.iter().any(|p| p.file_stem() == Some(OsStr::new(*stem)));
    let missing: Vec<_> = STEMS.iter().copied().filter(|stem| !is_there(stem)).collect();
    let (expected, found) = match std::fs::read_to_string(folder.join("contracts")) {
        _ if !missing.is_empty() => {
            ("a fatbin of every kernel".into(), format!("none for {}", missing.join(", ")))
        }
        Ok(sum) if sum.trim() == CONTRACTS => return Ok(paths),
        // Params of another layout are addresses that are none.
        Ok(sum) => (format!("kernels for contracts {CONTRACTS}"), sum.trim().to_string()),
        Err(e) => ("the sum of their contracts, `contracts`".into(), e.to_string()),
    };
    Err(Error::invalid(format!("{FOLDER}={}", folder.display()), expected, found)
        .advise("fill the folder with `kernels/build FOLDER` of these sources where nvcc is"))
}

fn image(device: &str, card: &str, who: &str, bytes: &[u8]) -> Result<Image> {
    check_whole(who, bytes)?;
    let mut module = std::ptr::null_mut();
    // SAFETY: a whole fatbin by its own header, copied by the driver before it returns.
    let status = unsafe { sys::cuModuleLoadData(&mut module, bytes.as_ptr().cast()) };
    match status {
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            let message = format!("{who}: compiled for other cards than this one ({card})");
            Err(Error::device(device, message))
        }
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUresult::CUDA_ERROR_INVALID_IMAGE => {
            let compiler = if TOOLKIT.is_empty() { "unknown" } else { TOOLKIT };
            let (found, newest) = (words(status), dotted(driver_version()?));
            let message = format!(
                "{who}: the driver cannot read it: {found}; it knows CUDA {newest}, this build's \
                 compiler is {compiler}: update the driver"
            );
            Err(Error::device(device, message))
        }
        status => check(device, &format!("{who}: load"), status).map(|()| Image { module }),
    }
}

/// The driver trusts what a fatbin's header says of its length.
fn check_whole(who: &str, bytes: &[u8]) -> Result<()> {
    let damaged = |found: &str| Err(Error::invalid(who, "a whole fatbin", found));
    let Some((magic, rest)) = bytes.split_first_chunk() else {
        return damaged("a file that is cut off");
    };
    if *magic != MAGIC {
        return damaged("another kind of file");
    }
    let body = rest.get(4..12).and_then(|body| <[u8; 8]>::try_from(body).ok());
    let whole = body.and_then(|body| u64::from_le_bytes(body).checked_add(HEADER));
    match whole.is_some_and(|whole| bytes.len() as u64 >= whole) {
        true => Ok(()),
        false => damaged("a file that is cut off"),
    }
}

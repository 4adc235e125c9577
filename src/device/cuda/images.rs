//! The compiled kernels: those in this binary, or a folder of fatbins.

use super::{check, dotted, words};
use crate::device::modules::{MODULES, TOOLKIT};
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::CString;
use std::path::Path;

/// Why there is nothing to launch.
pub(super) const NONE: &str = "this build has no GPU kernels; build where nvcc is \
     (tools/cuda-toolkit installs it), or set MEDFLAMINGO_KERNELS to a folder that \
     kernels/build has filled";
/// The folder's variable.
const FOLDER: &str = "MEDFLAMINGO_KERNELS";
/// The first bytes of a fatbin, and of its header: magic, version, header bytes, body bytes.
const MAGIC: [u8; 4] = [0x50, 0xed, 0x55, 0xba];
const HEADER: usize = 16;

/// True if there are kernels in this binary or a folder is named.
pub(super) fn are_here() -> bool {
    !MODULES.is_empty() || std::env::var_os(FOLDER).is_some()
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

/// Loads every file of kernels into the current context.
///
/// # Errors
/// Names the file that is damaged or not for this card.
pub(super) fn load(device: &str, card: &str) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    let folder = std::env::var_os(FOLDER);
    let Some(folder) = folder.as_deref().map(Path::new) else {
        if MODULES.is_empty() {
            return Err(Error::device(device, NONE));
        }
        for (stem, bytes) in MODULES {
            images.push(image(device, card, &format!("kernel {stem}"), bytes)?);
        }
        return Ok(images);
    };
    let read = std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
    let mut paths: Vec<_> = read.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "fatbin"));
    paths.sort();
    let stem = |p: &Path| p.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let missing: Vec<_> =
        MODULES.iter().map(|m| m.0).filter(|m| !paths.iter().any(|p| stem(p) == *m)).collect();
    if paths.is_empty() || !missing.is_empty() {
        let found = match missing.is_empty() {
            true => "no fatbin".to_string(),
            false => format!("none for {}", missing.join(", ")),
        };
        let who = format!("{FOLDER}={}", folder.display());
        return Err(Error::invalid(who, "a fatbin of every kernel", found)
            .advise("fill the folder with `kernels/build FOLDER` where nvcc is"));
    }
    for path in &paths {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        images.push(image(device, card, &path.display().to_string(), &bytes)?);
    }
    Ok(images)
}

fn image(device: &str, card: &str, who: &str, bytes: &[u8]) -> Result<Image> {
    let damaged = |found: &str| Err(Error::invalid(who, "a whole fatbin", found));
    let Some(header) = bytes.get(..HEADER) else { return damaged("a file that is cut off") };
    if header[..4] != MAGIC {
        return damaged("another kind of file");
    }
    let [.., a, b, c, d, e, f, g, h] = *header else { return damaged("no header") };
    let body = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    if (bytes.len() as u64) < body.saturating_add(HEADER as u64) {
        return damaged("a file that is cut off");
    }
    // The driver wants the image aligned.
    let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
    bytemuck::cast_slice_mut::<_, u8>(&mut aligned)[..bytes.len()].copy_from_slice(bytes);
    let mut module = std::ptr::null_mut();
    // SAFETY: a whole fatbin by its own header, copied by the driver before it returns.
    let status = unsafe { sys::cuModuleLoadData(&mut module, aligned.as_ptr().cast()) };
    if status == CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU {
        let message = format!("{who}: compiled for other cards than this one ({card})");
        return Err(Error::device(device, message));
    }
    if matches!(
        status,
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUresult::CUDA_ERROR_INVALID_IMAGE
    ) {
        let mut version = 0;
        // SAFETY: writes the integer it is given.
        check(device, "version", unsafe { sys::cuDriverGetVersion(&mut version) })?;
        let message = format!(
            "{who}: the driver cannot read it: {}; it knows CUDA {}, this build's compiler is {}",
            words(status),
            dotted(version),
            if TOOLKIT.is_empty() { "unknown" } else { TOOLKIT },
        );
        return Err(Error::device(device, message));
    }
    check(device, &format!("{who}: load"), status)?;
    Ok(Image { module })
}

//! CUDA through the driver, which is loaded at run time: one binary starts everywhere.

mod arrival;
mod cublaslt;
mod graph;
mod images;
mod launch;
mod nccl;
mod queue;
mod staging;
mod timing;
mod upload;

pub(super) use arrival::Arrival;
pub(super) use launch::MOST_PARAMS;
pub use nccl::{Nccl, NcclTicket};
pub(super) use queue::{Memory, Queue};
pub(crate) use staging::Cells;
pub(super) use upload::Job;

use super::Chip;
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUresult};

/// What a CUDA device needs at least: tensor maps, clusters and graphs are in every 12.x.
const OLDEST_DRIVER: i32 = 12000;

/// One card, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaCard {
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub capability: (i32, i32),
    /// Device memory, bytes.
    pub memory: usize,
    /// What launches on it depend on.
    pub chip: Chip,
}

impl CudaCard {
    /// Which of a build's kernels this card would run: machine code for it, or PTX that the driver
    /// compiles when it is opened.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn kernels(&self) -> std::result::Result<&'static str, String> {
        let code = self.code()?;
        images::find().map(|()| code)
    }

    /// The code that it would run.
    fn code(&self) -> std::result::Result<&'static str, String> {
        match self.capability {
            (major, _) if major < 8 => Err("needs compute capability 8.0 or newer".into()),
            (9, 0) => Ok("sm_90a"),
            (8, _) => Ok("sm_80"),
            _ => Ok("PTX"),
        }
    }
}

/// The driver's words for a failure, and its name to search for.
fn words(status: CUresult) -> String {
    let error = cudarc::driver::result::DriverError(status);
    let text = |s: std::result::Result<&std::ffi::CStr, _>| {
        s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let (name, message) = (text(error.error_name()), text(error.error_string()));
    match name.is_empty() {
        true => format!("error {}", status as u32),
        false => format!("{message} ({name})"),
    }
}

/// `Ok`, or what was being done and the driver's words.
fn check(device: &str, doing: &str, status: CUresult) -> Result<()> {
    match status {
        CUresult::CUDA_SUCCESS => Ok(()),
        _ => Err(Error::device(device, format!("{doing}: {}", words(status)))),
    }
}

/// True if NVIDIA's driver is on this machine.
pub(super) fn has_driver() -> bool {
    // SAFETY: only looks for the library; cudarc's other calls panic when it is missing.
    unsafe { sys::is_culib_present() }
}

/// Starts the driver; the number of cards.
fn start() -> Result<usize> {
    let fail = |message: String| Err(Error::device("cuda", message));
    if !has_driver() {
        return fail("no NVIDIA driver (libcuda) on this machine".into());
    }
    // SAFETY: the first call of every program.
    let status = unsafe { sys::cuInit(0) };
    let hidden = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    match status {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_NO_DEVICE => {
            return fail(match hidden {
                Some(list) => format!("no card: CUDA_VISIBLE_DEVICES is `{list}`"),
                None => "a driver but no card".into(),
            });
        }
        other => return fail(format!("the driver does not start: {}", words(other))),
    }
    let version = driver_version()?;
    if version < OLDEST_DRIVER {
        return fail(format!(
            "the driver is too old: it knows CUDA {}, this build needs {} or newer; update it",
            dotted(version),
            dotted(OLDEST_DRIVER)
        ));
    }
    let mut count = 0;
    // SAFETY: writes the integer it is given.
    check("cuda", "cards", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(count.max(0) as usize)
}

/// The newest CUDA that the driver knows, such as 12080.
fn driver_version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: writes the integer it is given.
    check("cuda", "version", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    Ok(version)
}

/// 12080 as 12.8.
fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// One attribute of a card.
fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<i32> {
    let mut value = 0;
    // SAFETY: writes the integer it is given.
    let status = unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) };
    check("cuda", "attribute", status)?;
    Ok(value)
}

fn describe(ordinal: usize) -> Result<(sys::CUdevice, CudaCard)> {
    use sys::CUdevice_attribute_enum as Attribute;
    let (mut device, mut memory, mut name) = (0, 0usize, [0u8; 256]);
    // SAFETY: writes the handle it is given.
    check("cuda", "card", unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) })?;
    // SAFETY: the driver writes at most the length it is told.
    let status = unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), 255, device) };
    check("cuda", "name", status)?;
    // SAFETY: writes the integer it is given.
    check("cuda", "memory", unsafe { sys::cuDeviceTotalMem_v2(&mut memory, device) })?;
    let name = std::ffi::CStr::from_bytes_until_nul(&name).unwrap_or_default();
    let capability = (
        attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let chip = chip(device, capability)?;
    Ok((device, CudaCard { name: name.to_string_lossy().into_owned(), capability, memory, chip }))
}

/// What launches on a card depend on.
fn chip(device: sys::CUdevice, (major, minor): (i32, i32)) -> Result<Chip> {
    use sys::CUdevice_attribute_enum as Attribute;
    let shared = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    Ok(Chip {
        capability: (major * 10 + minor) as u32,
        multiprocessors: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?
            as u32,
        shared_bytes: attribute(device, shared)? as u32,
    })
}

/// The cards of this machine, in the driver's order.
///
/// # Errors
/// [`Error::Device`] when there is no driver or it refuses to start; the message says which.
pub fn cuda_cards() -> Result<Vec<CudaCard>> {
    (0..start()?).map(|ordinal| Ok(describe(ordinal)?.1)).collect()
}

//! What the CUDA driver says is there. The driver library is loaded at run time, so one binary
//! starts everywhere.

use crate::{Error, Result};
use cudarc::driver::{result, sys};

/// One card, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaCard {
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub capability: (i32, i32),
    /// Device memory, bytes.
    pub memory: usize,
}

/// The cards of this machine, in the driver's order.
///
/// # Errors
/// [`Error::Device`] when there is no driver or it refuses to start; the message says which.
pub fn cuda_cards() -> Result<Vec<CudaCard>> {
    // SAFETY: only looks for the library; cudarc's other calls panic when it is missing.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::device("cuda", "no NVIDIA driver (libcuda) on this machine"));
    }
    let fail = |e: result::DriverError| Error::device("cuda", format!("driver: {e}"));
    result::init().map_err(fail)?;
    let count = result::device::get_count().map_err(fail)?;
    (0..count)
        .map(|ordinal| {
            use sys::CUdevice_attribute_enum as Attribute;
            let device = result::device::get(ordinal).map_err(fail)?;
            // SAFETY: `device` came from the driver just now.
            let attribute = |a| unsafe { result::device::get_attribute(device, a) }.map_err(fail);
            Ok(CudaCard {
                name: result::device::get_name(device).map_err(fail)?,
                capability: (
                    attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                    attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
                ),
                // SAFETY: as above.
                memory: unsafe { result::device::total_mem(device) }.map_err(fail)?,
            })
        })
        .collect()
}

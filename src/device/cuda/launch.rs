//! One launch as data, and how the driver is told of it. Nothing here allocates: a step is many
//! launches of a few microseconds.

use super::cublaslt::CublasLt;
use crate::DType;
use crate::device::{Geometry, Swizzle, TensorMap};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::c_void;
use std::fmt;

/// Most bytes of a params struct.
pub(crate) const MOST_PARAMS: usize = 512;
/// Where tensor maps begin: their alignment.
const MAP_ALIGN: usize = 64;
const MAP_BYTES: usize = size_of::<sys::CUtensorMap>();

/// An entry by kernel, type and variant: found without making its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub kernel: &'static str,
    pub dtype: DType,
    pub variant: &'static str,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}{}", self.kernel, self.dtype, self.variant)
    }
}

/// Everything that the card will read of a launch, but for the params.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Launch {
    pub key: Key,
    pub function: sys::CUfunction,
    pub geometry: Geometry,
    /// Length of the params, bytes.
    pub params: usize,
}

/// Params as an entry takes them: the struct, then its tensor maps.
#[repr(C, align(64))]
struct Packed([u8; MOST_PARAMS + 4 * MAP_BYTES]);

impl Launch {
    /// Puts the launch into `stream`.
    pub(super) fn run(
        &self,
        params: &[u8],
        stream: sys::CUstream,
        cublaslt: Option<&CublasLt>,
    ) -> CUresult {
        if let (Geometry::CUBLASLT, Some(library)) = (self.key.variant, cublaslt) {
            return library.run(self.key.dtype, params, stream);
        }
        let Geometry { grid: [x, y, z], threads, shared, cluster, .. } = self.geometry;
        let mut packed = Packed([0; _]);
        let mut size = match self.pack(params, &mut packed) {
            Ok(size) => size,
            Err(status) => return status,
        };
        let mut extra: [*mut c_void; 5] = [
            sys::CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT as usize as *mut _,
            packed.0.as_mut_ptr().cast(),
            sys::CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT as usize as *mut _,
            (&raw mut size).cast(),
            std::ptr::null_mut(),
        ];
        let dims = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 };
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { clusterDim: dims },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: stream,
            attrs: &mut attribute,
            numAttrs: u32::from(cluster > 1),
        };
        // SAFETY: the wrappers in `ops` promise the params; the driver copies them.
        unsafe {
            sys::cuLaunchKernelEx(&config, self.function, std::ptr::null_mut(), extra.as_mut_ptr())
        }
    }

    /// Fills `packed`; its bytes in use.
    fn pack(&self, params: &[u8], packed: &mut Packed) -> Result<usize, CUresult> {
        packed.0[..params.len()].copy_from_slice(params);
        if self.geometry.maps.iter().all(Option::is_none) {
            return Ok(params.len());
        }
        let mut at = params.len().next_multiple_of(MAP_ALIGN);
        for map in &self.geometry.maps {
            if let Some(map) = map {
                let words = encode(map)?.opaque;
                for (to, word) in packed.0[at..at + MAP_BYTES].chunks_exact_mut(8).zip(words) {
                    to.copy_from_slice(&word.to_ne_bytes());
                }
            }
            at += MAP_BYTES;
        }
        Ok(at)
    }
}

fn encode(map: &TensorMap) -> Result<sys::CUtensorMap, CUresult> {
    use sys::CUtensorMapSwizzle as S;
    let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
    let swizzle = match map.swizzle {
        Swizzle::None => S::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::Bytes64 => S::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::Bytes128 => S::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    // SAFETY: every pointer is to a local array of the stated rank.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut encoded,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
            2,
            map.address.cast_mut(),
            map.sizes.as_ptr(),
            &map.stride,
            map.tile.as_ptr(),
            [1u32, 1].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    match status {
        CUresult::CUDA_SUCCESS => Ok(encoded),
        failed => Err(failed),
    }
}

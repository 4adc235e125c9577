//! One launch as data, and how the driver is told of it. Nothing here allocates: a step is many
//! launches of a few microseconds.

use super::cublaslt::CublasLt;
use crate::DType;
use crate::device::{Geometry, Swizzle, TensorMap};
use cudarc::driver::sys::{
    self, CUlaunchAttributeValue_union__bindgen_ty_1 as ClusterSize, CUresult,
};
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
    /// May begin while the launch before it ends: entries for Hopper wait for that themselves.
    pub overlaps: bool,
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
        let (maps, end) = match self.pack(params, &mut packed) {
            Ok(places) => places,
            Err(status) => return status,
        };
        let start = packed.0.as_mut_ptr();
        // The driver reads as many as the entry has parameters, and knows where each belongs: an
        // offset of our own would have to be the compiler's. The last is where they end.
        let mut places: [*mut c_void; 3] = [0, maps, end].map(|at| start.wrapping_add(at).cast());
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let overlap = attribute(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        );
        let together = attribute(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            sys::CUlaunchAttributeValue { clusterDim: ClusterSize { x: cluster, y: 1, z: 1 } },
        );
        // Those that hold stand together.
        let mut attributes = [overlap, together];
        let first = attributes[usize::from(!self.overlaps)..].as_mut_ptr();
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: stream,
            attrs: first,
            numAttrs: u32::from(self.overlaps) + u32::from(cluster > 1),
        };
        // SAFETY: the wrappers in `ops` promise the params; the driver copies them.
        unsafe {
            sys::cuLaunchKernelEx(&config, self.function, places.as_mut_ptr(), std::ptr::null_mut())
        }
    }

    /// Fills `packed`; where the tensor maps begin in it, and where they end.
    fn pack(&self, params: &[u8], packed: &mut Packed) -> Result<(usize, usize), CUresult> {
        packed.0[..params.len()].copy_from_slice(params);
        if self.geometry.maps.iter().all(Option::is_none) {
            return Ok((params.len(), params.len()));
        }
        let begin = params.len().next_multiple_of(MAP_ALIGN);
        let mut at = begin;
        for map in &self.geometry.maps {
            if let Some(map) = map {
                let words = encode(map)?.opaque;
                for (to, word) in packed.0[at..at + MAP_BYTES].chunks_exact_mut(8).zip(words) {
                    to.copy_from_slice(&word.to_ne_bytes());
                }
            }
            at += MAP_BYTES;
        }
        Ok((begin, at))
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

//! How a launch is laid over a card: pure functions of the params and of what the card is, so that
//! the choices made for an A100 or an H200 are tested on any machine.

use crate::DType;
use std::ffi::c_void;

/// What launch choices depend on. Plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chip {
    /// Compute capability: 80, 90, ...
    pub capability: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Most shared memory of one block, bytes.
    pub shared_bytes: u32,
}

impl Chip {
    /// A100 80 GB (sm_80).
    pub const A100: Chip = Chip { capability: 80, multiprocessors: 108, shared_bytes: 163 << 10 };
    /// H100 and H200 SXM (sm_90a).
    pub const H200: Chip = Chip { capability: 90, multiprocessors: 132, shared_bytes: 227 << 10 };

    /// True if the Hopper entries (`wgmma`, which newer cards do not have) run here.
    pub const fn has_wgmma(&self) -> bool {
        self.capability == 90
    }
}

/// How shared-memory rows of a tensor map are permuted against bank conflicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    None,
    Bytes64,
    Bytes128,
}

/// A matrix of 2-byte elements in device memory that a kernel reads or writes in boxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    pub address: *const c_void,
    /// Columns, rows.
    pub sizes: [u64; 2],
    /// Between rows, bytes; a multiple of 16.
    pub stride: u64,
    /// Columns, rows of a box.
    pub tile: [u32; 2],
    pub swizzle: Swizzle,
}

impl TensorMap {
    /// Rows of `cols` elements, `stride` elements apart, in boxes of `tile_rows` by 64 columns, as
    /// wgmma reads them.
    pub fn for_wgmma(
        address: *const c_void,
        [rows, cols]: [i64; 2],
        stride: i64,
        tile_rows: i64,
    ) -> Self {
        TensorMap {
            address,
            sizes: [cols as u64, rows as u64],
            stride: stride as u64 * 2,
            tile: [64, tile_rows as u32],
            swizzle: Swizzle::Bytes128,
        }
    }
}

/// One launch: which entry, over how many blocks of how many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The entry is `{name}_{dtype}{variant}`; empty or begins with `_`.
    pub variant: &'static str,
    /// Blocks in x, y, z; nothing is launched if one is 0.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// Blocks in x that run together and reach each other's shared memory (sm_90); grid\[0\] is a
    /// multiple.
    pub cluster: u32,
    /// For entries written with `KERNEL_TMA`.
    pub maps: [Option<TensorMap>; 4],
}

impl Geometry {
    /// The variant of `gemm` that is no entry of ours but a call of cuBLASLt.
    pub const CUBLASLT: &'static str = "_cublaslt";

    /// `blocks` in x of `threads`, without shared memory.
    pub const fn linear(blocks: u32, threads: u32) -> Self {
        let grid = [blocks, 1, 1];
        Geometry { variant: "", grid, threads, shared: 0, cluster: 1, maps: [None; 4] }
    }

    /// The name of the entry that is launched.
    pub fn entry(&self, kernel: &str, dtype: DType) -> String {
        format!("{kernel}_{dtype}{}", self.variant)
    }

    /// True if there is nothing to launch.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

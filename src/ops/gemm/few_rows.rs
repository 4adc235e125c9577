//! How products of few rows are laid over a card: blocks that stay, and take rows of B in turns.

use super::SWIGLU;
use crate::contracts::GemmParams;
use crate::device::{Chip, Geometry, TensorMap};
use crate::ops::layout::groups;

/// Threads of a block: 8 warps, which divide k.
const THREADS: u32 = 256;
/// Blocks of a multiprocessor, at most: three were slower (H200, 2026-11-27).
const RESIDENT: u32 = 2;
/// Of the ring of weights, bytes: `FEW_STAGES` of 32 bytes a thread, for 32 rows of B half as many
/// of 64.
const RING: u32 = 6 * 32 * THREADS;
/// `MOST_KEPT`: rows of A that a block keeps. Their norm is made one after the other: of eight rows
/// that takes longer than a launch of its own.
const MOST_KEPT: i64 = 2;
/// What a block takes of shared memory for itself, bytes.
const OWN: u32 = 1024;

/// `DIGITS`: bytes of an element of A, where it is kept for weights of few bits.
const DIGITS: i64 = 3;

/// How B is stored.
#[derive(Clone, Copy, PartialEq)]
pub(in crate::ops) enum Stored {
    Elements,
    Int8,
    Int4,
}

/// An entry by the rows of A and of B that its blocks have.
#[derive(Clone, Copy)]
pub(in crate::ops) enum Rows {
    /// 8 of A and 16 of B.
    Eight,
    /// The same; those of A, or their norm, in shared memory: for B of few bits as digits.
    Kept,
    /// 16 of A and 32 of B.
    Sixteen,
}

impl Rows {
    /// The entry for this product, whose operands 16-byte loads can reach; None if tiles are.
    pub(in crate::ops) fn of(p: &GemmParams, b: Stored, chip: &Chip) -> Option<Self> {
        let fits = p.k < 1 << 30 && p.n < 1 << 30;
        match p.m {
            _ if !fits => None,
            ..=MOST_KEPT if has_room(p, b, chip) => Some(Rows::Kept),
            ..=8 => Some(Rows::Eight),
            9..=16 if p.activation != SWIGLU => Some(Rows::Sixteen),
            _ => None,
        }
    }

    /// The launch; `variants` are the entries in the order of `Rows`.
    pub(in crate::ops) fn geometry(
        self,
        p: &GemmParams,
        b: Stored,
        variants: [&'static str; 3],
        chip: &Chip,
    ) -> Geometry {
        let tile = match self {
            Rows::Eight | Rows::Kept => 16,
            Rows::Sixteen => 32,
        };
        let shared = self.shared(p, b);
        Geometry { variant: variants[self as usize], ..that_stay(p, tile, shared, chip) }
    }

    /// Shared memory that a block needs, bytes.
    fn shared(self, p: &GemmParams, b: Stored) -> u32 {
        match self {
            Rows::Eight => product(8, 16),
            Rows::Kept => product(MOST_KEPT as u32, 16) + kept(p, b) as u32,
            Rows::Sixteen => product(16, 32),
        }
    }
}

/// Blocks that stay, and share tiles of `tile` rows of B; each needs so much shared memory.
fn that_stay(p: &GemmParams, tile: u64, needed: u32, chip: &Chip) -> Geometry {
    let tiles = (p.n.max(0) as u64).div_ceil(tile) as u32;
    // Tiles are shared evenly, so multiprocessors must have as many blocks each: a card sees to
    // that only if they have no room for one more.
    let all = chip.shared_bytes + OWN;
    let wanted = tiles.div_ceil(chip.multiprocessors).clamp(1, RESIDENT);
    let resident = wanted.min(all / (needed + OWN)).max(1);
    let too_much = (all / (resident + 1) + 1).next_multiple_of(128) - OWN;
    let shared = needed.max(too_much).min(chip.shared_bytes);
    let blocks = if p.m > 0 { tiles.min(resident * chip.multiprocessors) } else { 0 };
    Geometry { shared, ..Geometry::linear(blocks, THREADS) }
}

/// `gemm_quantized_sm90.cu`: one or two rows of A, whose shapes `Rows::of` takes, by as long a ring
/// as there is room for beside another block; None if that is shorter than what memory needs, or k
/// is not in whole pieces.
pub(in crate::ops) fn hopper_bytes(p: &GemmParams, b: Stored, chip: &Chip) -> Option<Geometry> {
    /// `PIECE_WIDTH`: of a row of B, which is in whole pieces.
    const PIECE: i64 = 128;
    /// `sizeof(Stage)`, and how many of them.
    const STAGE: i64 = 8 * 16 * PIECE;
    const STAGES: std::ops::RangeInclusive<i64> = 3..=6;
    /// `sizeof(BytesSm90Shared)`.
    const OWN_SHARED: i64 = 2 * 8 * MOST_KEPT * 16 * 4 + *STAGES.end() * 8 * 8;
    let (variant, bytes_of_row) = match b {
        Stored::Int8 => ("_int8_sm90_rows8", p.k),
        Stored::Int4 => ("_int4_sm90_rows8", p.k / 2),
        Stored::Elements => return None,
    };
    let is_whole = p.k > 0 && bytes_of_row % PIECE == 0;
    if !is_whole || !chip.has_wgmma() || p.m > MOST_KEPT || p.n <= 0 {
        return None;
    }
    let beside = OWN_SHARED + kept(p, b);
    let stages = (half(chip) - beside) / STAGE;
    if stages < *STAGES.start() {
        return None;
    }
    let needed = (beside + stages.min(*STAGES.end()) * STAGE) as u32;
    // Of SwiGLU eight gates, then their values.
    let rows = if p.activation == SWIGLU { 8 } else { 16 };
    let map = TensorMap::for_wgmma(p.b, [p.n, bytes_of_row / 2], p.ldb / 2, rows);
    let maps = [Some(map), None, None, None];
    Some(Geometry { variant, maps, ..that_stay(p, 16, needed, chip) })
}

/// `gemv_sm90.cu`: 9 to 16 rows of A by blocks of 64 rows of B, two a multiprocessor; k in so many
/// parts that they have something to do.
pub(super) fn hopper(p: &GemmParams, chip: &Chip) -> Geometry {
    /// `sizeof(FewRowsSm90Shared)`: stages of 64 rows of B and 16 of A, sums on their way out,
    /// barriers.
    const SHARED: u32 =
        (10 * (64 + 16) * 64 * 2 + 4 * 16 * 36 * 4 + 10 * 16 + 16_u32).next_multiple_of(1024);
    const COLS: i64 = 64;
    /// Steps of k below which a part is not worth its sums' way through memory.
    const LEAST_PART: i64 = 512;
    let (tiles, places) = (groups(p.n, COLS), 2 * i64::from(chip.multiprocessors));
    let most = if p.workspace.is_null() { 1 } else { (p.k / LEAST_PART).clamp(1, 8) };
    let parts = (places / tiles).clamp(1, most);
    let a = TensorMap::for_wgmma(p.a, [p.m, p.k], p.lda, 16);
    // In two halves, which of SwiGLU lie apart.
    let b = TensorMap::for_wgmma(p.b, [p.n, p.k], p.ldb, COLS / 2);
    // As many tiles for each block.
    let blocks = groups(tiles, groups(tiles, (places / parts).max(1)));
    Geometry {
        variant: "_sm90_rows16",
        grid: [blocks as u32, 1, parts as u32],
        maps: [Some(a), Some(b), None, None],
        shared: SHARED,
        ..Geometry::linear(0, 160)
    }
}

/// `sizeof(FewRowsShared)`: a float for every warp and cell of two tiles, and the ring.
const fn product(rows: u32, cols: u32) -> u32 {
    2 * THREADS / 32 * rows * cols * 4 + RING
}

/// What `KeptShared` has more, of A (m,k): of every warp three sums, and what two rows are counted
/// in; then the vectors of a norm; then rows, or digits.
fn kept(p: &GemmParams, b: Stored) -> i64 {
    let warps = i64::from(THREADS / 32);
    let own = (4 * warps * (3 + MOST_KEPT)) as u64;
    let vectors = [p.norm_weight, p.norm_bias].iter().filter(|v| !v.is_null()).count() as i64;
    let digits = |away| DIGITS * ((p.k as u64).next_multiple_of(128) as i64 + away);
    let row = match b {
        Stored::Elements => 2 * (p.k + 8),
        Stored::Int8 => digits(64),
        Stored::Int4 => digits(16),
    };
    own.next_multiple_of(16) as i64 + 2 * vectors * p.k + p.m * row
}

/// True if a block has room for A (m,k), or its norm, beside another block.
fn has_room(p: &GemmParams, b: Stored, chip: &Chip) -> bool {
    let needed = || i64::from(product(MOST_KEPT as u32, 16)) + kept(p, b);
    p.m <= MOST_KEPT && p.k < half(chip) && needed() <= half(chip)
}

/// Shared memory of one of two blocks of a multiprocessor, bytes.
fn half(chip: &Chip) -> i64 {
    i64::from((chip.shared_bytes + OWN) / 2 - OWN)
}

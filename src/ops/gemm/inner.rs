//! What an instruction set provides for a storage type: the inner loops, as data.
//!
//! Packed operands consist of 32-bit units: an f32, or where there are instructions for it a pair
//! of bf16 that are neighbours along k. A panel holds `lanes` rows of an operand, unit by unit.

use super::epilogue::Epilogue;

/// The inner loops of one instruction set for one storage type.
pub(super) struct Inner {
    /// Elements per packed unit.
    pub pair: usize,
    /// Rows of A in a full tile.
    pub rows: usize,
    /// Rows of B, that is columns of C, in a tile.
    pub cols: usize,
    pub pack: unsafe fn(&Panel, *mut u32),
    /// With the number of rows, at most `rows`.
    pub tile: unsafe fn(usize, &Tile),
    /// Makes the f32 row that `dots` wants, zero-padded to [`padded`] elements, of `k` elements;
    /// absent if it takes rows of A as they are.
    pub prepare: Option<unsafe fn(*const u8, usize, *mut f32)>,
    pub dots: unsafe fn(&Dots),
    /// [`Epilogue::finish`] compiled for the instruction set.
    pub finish: unsafe fn(&Epilogue, usize, usize, &mut [f32]),
}

/// Length of a prepared row of `k` elements.
pub(super) fn padded(k: usize) -> usize {
    k.next_multiple_of(64)
}

/// How far ahead of the row in use a weight is fetched at least, bytes.
pub(super) const AHEAD: usize = 16 << 10;

/// Bytes of A below which one row of B at a time is the fastest.
pub(super) const SHORT: usize = 8 << 10;

/// Rows of an operand to be packed: `units` of `lanes` words are written, row by row of B or A
/// across, zero beyond `rows` and `k`.
pub(super) struct Panel {
    /// Element (0,0).
    pub src: *const u8,
    /// Bytes from row to row.
    pub stride: usize,
    pub rows: usize,
    pub lanes: usize,
    pub k: usize,
}

/// C tile (+)= A panel * B panel * scales. All of `cols` columns are computed and written.
pub(super) struct Tile {
    pub c: *mut f32,
    pub ldc: usize,
    pub a: *const u32,
    pub b: *const u32,
    pub units: usize,
    /// Of the columns; absent means 1.
    pub scales: Option<*const f32>,
    pub accumulate: bool,
    /// What will be packed next.
    pub fetch: Fetch,
}

/// Lines of memory to be fetched into the second cache, one per unit of a tile.
#[derive(Clone, Copy)]
pub(super) struct Fetch {
    at: *const u8,
    /// Bytes from the end of a row's part to the start of the next one's.
    gap: usize,
    /// Lines of a row's part, and those left of this one.
    width: usize,
    left: usize,
    /// Rows left, this one included.
    rows: usize,
}

const LINE: usize = 64;

impl Fetch {
    /// `rows` parts of `bytes` at `at`, `stride` apart.
    pub(super) fn new(at: *const u8, stride: usize, bytes: usize, rows: usize) -> Self {
        let width = bytes.div_ceil(LINE).max(1);
        Fetch { at, gap: stride.wrapping_sub(width * LINE), width, left: width, rows }
    }

    /// The next line to ask for.
    #[inline(always)]
    pub(super) fn line(&mut self) -> Option<*const u8> {
        if self.rows == 0 {
            return None;
        }
        let line = self.at;
        self.at = line.wrapping_add(LINE);
        self.left -= 1;
        if self.left == 0 {
            self.at = self.at.wrapping_add(self.gap);
            self.left = self.width;
            self.rows -= 1;
        }
        Some(line)
    }
}

/// `out[i * out_stride + j] = a[i] . b[j]` for `m` rows of A and `rows` rows of B.
pub(super) struct Dots {
    pub out: *mut f32,
    pub out_stride: usize,
    /// Prepared rows, or A's own.
    pub a: *const u8,
    /// Bytes from row to row.
    pub a_stride: usize,
    pub b: *const u8,
    pub b_stride: usize,
    pub m: usize,
    pub rows: usize,
    pub k: usize,
}

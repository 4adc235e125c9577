/*  `gemm` of at most 16 rows, of 8 on Hopper: what decoding does
 *
 *  Idea      for each 16 or 32 rows of B, a block:
 *              each warp, for its steps of k:  D += B[rows, k] A[:, k]^T   (tensor cores)
 *              C = epilogue(sum of D over the warps, in their order)
 *            B comes through rings in shared memory, copied steps ahead and on into the next tile.
 *            Of SwiGLU (`_rows8`, `_rows8_kept`) the 16 rows are eight gates and their values.
 *            `_rows8_kept`, of at most 2 rows of A: while its first weights are on their way, a
 *            block copies A, and makes its norm if one is asked for.
 *  Geometry  blocks that stay, 2 a multiprocessor, 8 warps that divide k; `_rows8`: tiles of 16
 *            rows of B and 8 of A; `_rows16`: of 32 and 16; a ring is 48 KiB, 40 (32) of them on
 *            their way. No multiprocessor has room for a third block, by shared memory that nobody
 *            uses: cards do not spread blocks evenly where there is more room than blocks, and each
 *            block has its share of the tiles from the beginning.
 *  Traffic   B once, past L1; A from L2, m / 16 (`_rows8`) or m / 32 (`_rows16`) of B's bytes, or
 *            (`_rows8_kept`) once a block, with the norm's vectors.
 *  Rejected  asking L2 for what the next launch begins with, when a block has no more to copy: 16
 *            MiB of it cost a decoded token 6 % (bf16) and 9 % (int8), 2 MiB less than 2 % (H200):
 *            blocks that end at different times overlap with the next launch's already.
 *            Multiply-adds of f32: two instructions and more a weight, against a third of one here.
 *            B straight to registers, a block for each tile: 84 to 93 % of the read rate where this
 *            gives 94 to 102 % (H200, one row, bf16), and the norm in every block of five rounds.
 *            Room for a third block: 68 to 77 %; three blocks: 88 to 94 %. A of 8 rows by one load
 *            a step, a step ahead: 67 % where a block has one tile, of k = 11008. */
#include "gemm.h"
#include "lib/few_rows.cuh"

template <typename T, int TILES, int COLS, bool KEPT>
__device__ __forceinline__ void gemv(const GemmParams &p) {
  const int64_t ldb = p.ldb * (int64_t)sizeof(T);
  few_rows<T, TILES, COLS, FEW_STAGES / TILES, KEPT>(p, DenseWeights<T>{}, ldb);
}

#define GEMV(name, T)                                                                              \
  KERNEL_EARLY(gemm_##name##_rows8, GemmParams, FEW_THREADS, 2) { gemv<T, 1, 1, false>(p); }       \
  KERNEL_EARLY(gemm_##name##_rows8_kept, GemmParams, FEW_THREADS, 2) { gemv<T, 1, 1, true>(p); }   \
  KERNEL_EARLY(gemm_##name##_rows16, GemmParams, FEW_THREADS, 2) { gemv<T, 2, 2, false>(p); }

GEMV(bf16, bf16)
GEMV(f16, f16)

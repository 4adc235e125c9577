/*  `gemm` of at most 16 rows: what decoding does
 *
 *  Idea      for each 16 or 32 rows of B, a block:
 *              each warp, for its stretches of k:  D += B[rows, k] A[:, k]^T   (tensor cores)
 *              C = epilogue(sum of D over the warps, in their order)
 *            Of SwiGLU (`_rows8`) the 16 rows are eight gates and their values. `_rows8_normed`:
 *            while its first weights are on their way, a block makes the norm of A for itself.
 *  Geometry  8 warps divide k; `_rows8`: 16 rows of B and 8 of A, 8 to 16 loads of 16 bytes of B in
 *            flight a thread, 2 blocks a multiprocessor: 64 to 128 KiB. `_rows16`: 32 rows of
 *            B and 16 of A, the same loads.
 *  Traffic   B once, past L1; A from L2, m / 16 (`_rows8`) or m / 32 of B's bytes; of `_normed`
 *            its weight and bias likewise, but through L1 for blocks of one multiprocessor.
 *  Rejected  multiply-adds of f32: two instructions and more a weight, against a third of one here.
 *            A in shared memory: a barrier before the first product, for what L1 gives. Blocks that
 *            stay and ask for the next tile's weights while they merge this one's: 73 to 88 % of
 *            the read rate where one tile a block gives 84 to 93 % (H200, one row, bf16). */
#include "gemm.h"
#include "lib/few_rows.cuh"

template <typename T, int TILES, int COLS, int STEPS, bool NORMED>
__device__ __forceinline__ void gemv(const GemmParams &p) {
  few_rows<T, TILES, COLS, STEPS, NORMED>(p, DenseWeights<T>{}, p.ldb * (int64_t)sizeof(T));
}

#define GEMV(name, T)                                                                              \
  KERNEL_EARLY(gemm_##name##_rows8, GemmParams, FEW_THREADS, 2) { gemv<T, 1, 1, 4, false>(p); }    \
  KERNEL_EARLY(gemm_##name##_rows8_normed, GemmParams, FEW_THREADS, 2) {                           \
    gemv<T, 1, 1, 4, true>(p);                                                                     \
  }                                                                                                \
  KERNEL_EARLY(gemm_##name##_rows16, GemmParams, FEW_THREADS, 2) { gemv<T, 2, 2, 2, false>(p); }

GEMV(bf16, bf16)
GEMV(f16, f16)

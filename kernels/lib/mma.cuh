/** Tensor-core tiles of 16-bit types: how fragments leave shared memory and are multiplied. */
#pragma once
#include "types.cuh"

template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1);
template <>
__device__ __forceinline__ void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1) {
  ptx::mma_bf16(d, a, b0, b1);
}
template <>
__device__ __forceinline__ void mma<f16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  ptx::mma_f16(d, a, b0, b1);
}

#if HAS_SM90A
/** As `ptx::wgmma_bf16`, of T. */
template <typename T, int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool add = true) {
  if constexpr (is_bf16<T>)
    ptx::wgmma_bf16<N>(d, a, b, add);
  else
    ptx::wgmma_f16<N>(d, a, b, add);
}
#endif

/** ROWS rows of COLS 16-bit elements in shared memory. The 16-byte chunks of a row are permuted by
 *  its number, so that the eight rows that `ldmatrix` reads at once lie in different banks. */
template <typename T, int ROWS, int COLS> struct SwizzledTile {
  static constexpr int CHUNKS = COLS / 8; /**< of a row: 4, 8 or 16 */
  static_assert(CHUNKS == 4 || CHUNKS % 8 == 0, "rows of 64 bytes or of multiples of 128");
  alignas(128) T cells[ROWS * COLS];

  __device__ __forceinline__ T *chunk(int row, int chunk) {
    // Two rows of 64 bytes share the banks that one row of 128 fills.
    int turned = CHUNKS == 4 ? chunk ^ (row / 2 % 4) : chunk ^ (row % 8);
    return cells + row * COLS + turned * 8;
  }

  /** A operand: rows row .. row + 16, columns 8 * chunk .. + 16. */
  __device__ __forceinline__ void load_a(uint32_t (&a)[4], int row, int chunk_begin, int lane) {
    ptx::ldmatrix_x4(a, chunk(row + lane % 16, chunk_begin + lane / 16));
  }
  /** B operands of a (n, k) tile, rows row .. row + 8: b0, b1, then those of the next 8 rows. */
  __device__ __forceinline__ void load_b(uint32_t (&b)[4], int row, int chunk_begin, int lane) {
    ptx::ldmatrix_x4(b, chunk(row + lane / 16 * 8 + lane % 8, chunk_begin + lane / 8 % 2));
  }
  /** B operands of a (k, n) tile: k rows row .. row + 16, columns of chunks `chunk_begin` and the
   *  next: b0, b1, then b0, b1. */
  __device__ __forceinline__ void load_b_trans(uint32_t (&b)[4], int row, int chunk_begin,
                                               int lane) {
    ptx::ldmatrix_x4_trans(b, chunk(row + lane % 16, chunk_begin + lane / 16));
  }
};

/*  `transpose`
 *
 *  Idea      a tile goes to shared memory by rows of x, 16 bytes a thread, and leaves it by rows of
 *            y, 16 bytes a thread. Chunk j of a tile's row r lies at j ^ (r / SIZE): the eight
 *            chunks that a quarter of a warp writes, and the eight columns of elements that a warp
 *            reads at a time, are all in different banks.
 *  Geometry  256 threads a block, a tile of 8 packs by 8 packs: 64x64 of 2 bytes, 32x32 of 4.
 *            `_plain`: one element at a time, rows of the tile a bank apart.
 *  Traffic   x once, y once.
 *  Rejected  reading words of two elements: half of the reads, a permutation for each, and the
 *            memory is what is waited for. */
#include "transpose.h"
#include "lib/cells.cuh"

constexpr int THREADS = CELL_THREADS;

/** SIDE rows of SIDE elements; where element (row, col) is. */
template <typename T, bool PACKED> struct TransposeShared {
  static constexpr int SIZE = Pack<T>::SIZE, SIDE = 8 * SIZE;
  static constexpr int STRIDE = PACKED ? SIDE : SIDE + 4 / (int)sizeof(T);
  alignas(16) T x[SIDE * STRIDE];

  __device__ __forceinline__ T *at(int row, int col) {
    if (PACKED) col = (col / SIZE ^ row / SIZE) * SIZE + col % SIZE;
    return x + row * STRIDE + col;
  }
};

template <typename T, bool PACKED> __device__ void transpose(const TransposeParams &p) {
  using Shared = TransposeShared<T, PACKED>;
  constexpr int SIDE = Shared::SIDE, MOVE = Move<T, PACKED>::SIZE, MOVES = SIDE / MOVE;
  SHARED(Shared, s);
  const int64_t across = (p.cols + SIDE - 1) / SIDE;
  const int64_t row0 = blockIdx.x / across * SIDE, col0 = blockIdx.x % across * SIDE;
  for (int i = (int)threadIdx.x; i < SIDE * MOVES; i += THREADS) {
    const int r = i / MOVES, c = i % MOVES * MOVE;
    alignas(PACKED ? 16 : sizeof(T)) T x[MOVE] = {};
    if (row0 + r < p.rows && col0 + c < p.cols)
      copy_cells<T, PACKED>(x,
                            static_cast<const T *>(p.x) + (row0 + r) * p.x_stride + col0 + c);
    copy_cells<T, PACKED>(s.at(r, c), x);
  }
  __syncthreads();
  for (int i = (int)threadIdx.x; i < SIDE * MOVES; i += THREADS) {
    const int c = i / MOVES, r = i % MOVES * MOVE;
    if (col0 + c >= p.cols || row0 + r >= p.y_cols) continue;
    alignas(PACKED ? 16 : sizeof(T)) T y[MOVE];
#pragma unroll
    for (int j = 0; j < MOVE; j++) y[j] = *s.at(r + j, c);
    copy_cells<T, PACKED>(static_cast<T *>(p.y) + (col0 + c) * p.y_stride + row0 + r, y);
  }
}

#define TRANSPOSE(name, T)                                                                         \
  KERNEL(transpose_##name, TransposeParams, THREADS) { transpose<T, true>(p); }                    \
  KERNEL(transpose_##name##_plain, TransposeParams, THREADS) { transpose<T, false>(p); }

TRANSPOSE(f32, float)
TRANSPOSE(bf16, bf16)
TRANSPOSE(f16, f16)

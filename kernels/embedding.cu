/*  `embedding`
 *
 *  Idea      y[r] = w[ids[r]], a copy.
 *  Geometry  256 threads a block, 16 bytes a thread (`_plain`: one cell).
 *  Traffic   the named rows once, y once.
 *  Rejected  a block per row: rows are short and few, blocks would be idle. */
#include "embedding.h"
#include "lib/cells.cuh"

template <typename T, bool PACKED> __device__ void embedding(const EmbeddingParams &p) {
  for_my_cells(p.rows * p.cols, Move<T, PACKED>::SIZE, [&](int64_t at) {
    int64_t row = p.ids[at / p.cols];
    copy_cells<T, PACKED>(static_cast<T *>(p.y) + at,
                          static_cast<const T *>(p.w) + row * p.cols + at % p.cols);
  });
}

#define EMBEDDING(name, T)                                                                         \
  KERNEL(embedding_##name, EmbeddingParams, CELL_THREADS) { embedding<T, true>(p); }               \
  KERNEL(embedding_##name##_plain, EmbeddingParams, CELL_THREADS) { embedding<T, false>(p); }

EMBEDDING(f32, float)
EMBEDDING(bf16, bf16)
EMBEDDING(f16, f16)

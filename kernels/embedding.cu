/*  `embedding`, `embedding_backward`
 *
 *  Idea      y[r] = w[ids[r]], a copy; backward, dw[rows[i]] += the tokens of group i
 *  Geometry  256 threads a block, 16 bytes a thread (`_plain`: one cell). Backward a block of 8
 *            warps takes 32 packs of columns of a group; warp i adds tokens i, i+8, ...; the warps'
 *            sums meet in shared memory.
 *  Traffic   the named rows once, y once; backward dx once, the named rows of dw twice.
 *  Rejected  a block per row: rows are short and few, blocks would be idle. Backward, atomics, a
 *            token at a time: another sum at every run. */
#include "embedding.h"
#include "lib/cells.cuh"
#include "lib/reduce.cuh"

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

constexpr int WARPS = CELL_THREADS / WARP;

template <int OWN> struct EmbeddingBackwardShared {
  float sum[WARPS][WARP * OWN];
};

template <typename T, bool PACKED>
__device__ void embedding_backward(const EmbeddingBackwardParams &p) {
  constexpr int OWN = Move<T, PACKED>::SIZE;
  SHARED(EmbeddingBackwardShared<OWN>, s);
  const int64_t group = blockIdx.x;
  const int64_t first = (int64_t)blockIdx.y * WARP * OWN, column = first + lane() * OWN;
  const int end = p.begin[group + 1];
  float sum[OWN] = {};
  if (column < p.cols)
    for (int j = p.begin[group] + warp(); j < end; j += WARPS) {
      alignas(PACKED ? 16 : sizeof(T)) T x[OWN];
      copy_cells<T, PACKED>(x, static_cast<const T *>(p.dx) + p.order[j] * p.dx_stride + column);
#pragma unroll
      for (int i = 0; i < OWN; i++) sum[i] += widen(x[i]);
    }
#pragma unroll
  for (int i = 0; i < OWN; i++) s.sum[warp()][i * WARP + lane()] = sum[i];
  __syncthreads();
  float *dw = p.dw + p.rows[group] * p.dw_stride;
  for (int i = (int)threadIdx.x; i < WARP * OWN; i += CELL_THREADS) {
    // Neighbours in a warp are neighbours in dw.
    const int64_t c = first + i;
    if (c >= p.cols) continue;
    float total = dw[c];
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += s.sum[w][i % OWN * WARP + i / OWN];
    dw[c] = total;
  }
}

#define EMBEDDING_BACKWARD(name, T)                                                                \
  KERNEL(embedding_backward_##name, EmbeddingBackwardParams, CELL_THREADS) {                       \
    embedding_backward<T, true>(p);                                                                \
  }                                                                                                \
  KERNEL(embedding_backward_##name##_plain, EmbeddingBackwardParams, CELL_THREADS) {               \
    embedding_backward<T, false>(p);                                                               \
  }

EMBEDDING_BACKWARD(f32, float)
EMBEDDING_BACKWARD(bf16, bf16)
EMBEDDING_BACKWARD(f16, f16)

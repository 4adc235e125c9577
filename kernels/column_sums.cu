/*  `column_sums`
 *
 *  Idea      y[q] = the sum of the part's rows
 *  Geometry  a block of 8 warps takes 32 packs of 16 bytes of columns (`_plain`: 32 columns) of a
 *            part; warp i adds rows i, i+8, ...; the warps' sums meet in shared memory.
 *  Traffic   x once, y once (twice if added to).
 *  Rejected  float atomics: another sum at every run. */
#include "column_sums.h"
#include "lib/cells.cuh"
#include "lib/reduce.cuh"

constexpr int WARPS = CELL_THREADS / WARP;

template <int OWN> struct ColumnSumsShared {
  float sum[WARPS][WARP * OWN];
};

template <typename T, bool PACKED> __device__ void column_sums(const ColumnSumsParams &p) {
  constexpr int OWN = Move<T, PACKED>::SIZE;
  SHARED(ColumnSumsShared<OWN>, s);
  const int64_t part = blockIdx.y, end = min((part + 1) * p.part_rows, p.rows);
  const int64_t first = (int64_t)blockIdx.x * WARP * OWN, column = first + lane() * OWN;
  float sum[OWN] = {};
  if (column < p.cols)
    for (int64_t r = part * p.part_rows + warp(); r < end; r += WARPS) {
      alignas(PACKED ? 16 : sizeof(T)) T x[OWN];
      copy_cells<T, PACKED>(x, static_cast<const T *>(p.x) + r * p.x_stride + column);
#pragma unroll
      for (int i = 0; i < OWN; i++) sum[i] += widen(x[i]);
    }
#pragma unroll
  for (int i = 0; i < OWN; i++) s.sum[warp()][i * WARP + lane()] = sum[i];
  __syncthreads();
  for (int i = (int)threadIdx.x; i < WARP * OWN; i += CELL_THREADS) {
    const int64_t c = first + (i % WARP) * OWN + i / WARP;
    if (c >= p.cols) continue;
    float *y = p.y + part * p.cols + c;
    float total = p.accumulate ? *y : 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += s.sum[w][i];
    *y = total;
  }
}

#define COLUMN_SUMS(name, T)                                                                       \
  KERNEL(column_sums_##name, ColumnSumsParams, CELL_THREADS) { column_sums<T, true>(p); }          \
  KERNEL(column_sums_##name##_plain, ColumnSumsParams, CELL_THREADS) { column_sums<T, false>(p); }

COLUMN_SUMS(f32, float)
COLUMN_SUMS(bf16, bf16)
COLUMN_SUMS(f16, f16)

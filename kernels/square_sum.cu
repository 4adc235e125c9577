/*  `square_sum`, `clip_factor`
 *
 *  Idea      square_sum: each thread adds the squares of its share of the part, four packs on their
 *            way at a time; then the block's threads in a fixed order. clip_factor: two numbers.
 *  Geometry  256 threads a block, a block per part, 16 bytes a thread at a time (`_plain`: one
 *            element); clip_factor: one thread.
 *  Traffic   x once.
 *  Rejected  float atomics for the sum of the parts: another sum at every run. */
#include "square_sum.h"
#include "lib/cells.cuh"
#include "lib/reduce.cuh"

constexpr int AHEAD = 4;

struct SquareSumShared {
  BlockSum<CELL_THREADS> squares, odd;
};

template <typename T, bool PACKED> __device__ void square_sum(const SquareSumParams &p) {
  constexpr int SIZE = Move<T, PACKED>::SIZE;
  constexpr int64_t STEP = CELL_THREADS * SIZE;
  SHARED(SquareSumShared, s);
  const int64_t begin = blockIdx.x * p.each, end = min(begin + p.each, p.n);
  const T *x = static_cast<const T *>(p.x);
  float squares = 0;
  int odd = 0;
  auto take = [&](const T(&own)[SIZE]) {
#pragma unroll
    for (int i = 0; i < SIZE; i++) {
      const float w = widen(own[i]);
      squares = fmaf(w, w, squares);
      odd += (__float_as_uint(w) & 0x7f800000u) == 0x7f800000u;
    }
  };
  int64_t at = begin + threadIdx.x * SIZE;
  for (; at + (AHEAD - 1) * STEP < end; at += AHEAD * STEP) {
    alignas(PACKED ? 16 : sizeof(T)) T own[AHEAD][SIZE];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) copy_cells<T, PACKED>(own[i], x + at + i * STEP);
#pragma unroll
    for (int i = 0; i < AHEAD; i++) take(own[i]);
  }
  for (; at < end; at += STEP) {
    alignas(PACKED ? 16 : sizeof(T)) T own[SIZE];
    copy_cells<T, PACKED>(own, x + at);
    take(own);
  }
  squares = s.squares(squares);
  const float count = s.odd((float)odd);
  if (threadIdx.x == 0) {
    p.parts[2 * blockIdx.x] = squares;
    p.parts[2 * blockIdx.x + 1] = count;
  }
}

__device__ void clip_factor(const ClipFactorParams &p) {
  const float norm = p.scale * sqrtf(p.sums[0]);
  const float clip = fminf(1.0f, p.max_norm / (norm + 1e-6f));
  // A sum that has overflowed is not finite, either; fminf would make 1 of NaN.
  const bool is_whole = p.sums[1] == 0.0f && norm < INFINITY;
  p.factor[0] = is_whole ? p.scale * clip : NAN;
  p.factor[1] = norm;
}

#define SQUARE_SUM(name, T)                                                                        \
  KERNEL(square_sum_##name, SquareSumParams, CELL_THREADS) { square_sum<T, true>(p); }             \
  KERNEL(square_sum_##name##_plain, SquareSumParams, CELL_THREADS) { square_sum<T, false>(p); }    \
  KERNEL(clip_factor_##name, ClipFactorParams, 1) { clip_factor(p); }

SQUARE_SUM(f32, float)
SQUARE_SUM(bf16, bf16)
SQUARE_SUM(f16, f16)

/*  `cross_entropy`
 *
 *  Idea      once over the row: each thread its running maximum and sum of exp(x - maximum); the
 *            block's maximum and then its sum, to which a thread's counts exp(own - block's);
 *            again over the row: dx = scale (exp(x - maximum) / sum - [label])
 *  Geometry  a block of 512 threads per row, 16 bytes of dx a thread at a time (`_plain`: one
 *            element).
 *  Traffic   x twice, the second time from L2 if the rows at work fit it; dx once.
 *  Rejected  the row in registers: 128 KB and more of it. A maximum first, sums then: x three
 *            times. */
#include "cross_entropy.h"
#include "lib/cells.cuh"
#include "lib/reduce.cuh"
#include "lib/softmax.cuh"

constexpr int THREADS = 512;

struct CrossEntropyShared {
  float max[THREADS / WARP];
  BlockSum<THREADS> sum;
};

/** e^x. */
__device__ __forceinline__ float natural_exp(float x) { return ptx::exp2(x * LOG2_E); }

/** SIZE neighbours at `at`, as -inf beyond the row. */
template <int SIZE, bool PACKED>
__device__ __forceinline__ void load_logits(float (&to)[SIZE], const float *x, int64_t at,
                                            int64_t cols) {
  if (PACKED && at + SIZE <= cols) {
#pragma unroll
    for (int i = 0; i < SIZE; i += 4) copy_cells<float, PACKED>(to + i, x + at + i);
  } else {
#pragma unroll
    for (int i = 0; i < SIZE; i++) to[i] = at + i < cols ? x[at + i] : -INFINITY;
  }
}

/** A thread's part of a row. */
struct Running {
  float max = -INFINITY, sum = 0;

  template <int SIZE> __device__ __forceinline__ void take(const float (&x)[SIZE]) {
    float next = max;
#pragma unroll
    for (int i = 0; i < SIZE; i++) next = fmaxf(next, x[i]);
    // Nothing but -inf, or NaN: nothing to scale, and inf - inf is NaN.
    if (max != next) sum *= natural_exp(max - next);
    max = next;
    const float base = max == -INFINITY ? 0.0f : max;
#pragma unroll
    for (int i = 0; i < SIZE; i++) sum += natural_exp(x[i] - base);
  }
};

template <typename T, bool PACKED> __device__ void cross_entropy(const CrossEntropyParams &p) {
  constexpr int SIZE = Move<T, PACKED>::SIZE;
  SHARED(CrossEntropyShared, s);
  const int64_t row = blockIdx.x;
  const float *x = p.x + row * p.x_stride;
  T *dx = static_cast<T *>(p.dx) + row * p.dx_stride;
  const int label = p.labels[row];
  alignas(PACKED ? 16 : sizeof(T)) T out[SIZE];
  alignas(16) float own[SIZE];
  if (label < 0) {
#pragma unroll
    for (int i = 0; i < SIZE; i++) out[i] = narrow<T>(0.0f);
    for (int64_t at = threadIdx.x * SIZE; at < p.dx_cols; at += THREADS * SIZE)
      copy_cells<T, PACKED>(dx + at, out);
    if (threadIdx.x == 0) p.loss[row] = 0.0f;
    return;
  }

  Running running;
#pragma unroll 2
  for (int64_t at = threadIdx.x * SIZE; at < p.cols; at += THREADS * SIZE) {
    load_logits<SIZE, PACKED>(own, x, at, p.cols);
    running.take(own);
  }
  float max = warp_max(running.max);
  if (lane() == 0) s.max[warp()] = max;
  // Before anything is written over it.
  const float chosen = x[label];
  __syncthreads();
  max = s.max[0];
#pragma unroll
  for (int i = 1; i < THREADS / WARP; i++) max = fmaxf(max, s.max[i]);
  const bool saw = running.max != -INFINITY || running.sum != 0.0f;
  const float sum = s.sum(saw ? running.sum * natural_exp(running.max - max) : 0.0f);
  if (threadIdx.x == 0) p.loss[row] = logf(sum) + (max - chosen);

  const float norm = p.scale / sum;
#pragma unroll 2
  for (int64_t at = threadIdx.x * SIZE; at < p.dx_cols; at += THREADS * SIZE) {
    load_logits<SIZE, PACKED>(own, x, at, p.cols);
#pragma unroll
    for (int i = 0; i < SIZE; i++) {
      const float weight = at + i < p.cols ? natural_exp(own[i] - max) * norm : 0.0f;
      out[i] = narrow<T>(weight - (at + i == label ? p.scale : 0.0f));
    }
    copy_cells<T, PACKED>(dx + at, out);
  }
}

#define CROSS_ENTROPY(name, T)                                                                     \
  KERNEL(cross_entropy_##name, CrossEntropyParams, THREADS) { cross_entropy<T, true>(p); }         \
  KERNEL(cross_entropy_##name##_plain, CrossEntropyParams, THREADS) { cross_entropy<T, false>(p); }

CROSS_ENTROPY(f32, float)
CROSS_ENTROPY(bf16, bf16)
CROSS_ENTROPY(f16, f16)

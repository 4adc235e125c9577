/** What happens to a sum of products before it is stored:
 *  C = residual + tanh(gate) * f(sum + bias), in f32, rounded once. */
#pragma once
#include "../gemm.h"
#include "types.cuh"

__device__ __forceinline__ float activate(float x, int activation) {
  if (activation == 1) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752440f));
  if (activation == 2) return x / (1.0f + expf(-1.702f * x));
  return x;
}

template <typename T> struct Epilogue {
  const GemmParams &p;
  float factor;  /**< tanh(gate) */
  bool in_pairs; /**< two cells from an even column on are one access, in all three matrices */

  __device__ __forceinline__ Epilogue(const GemmParams &p)
      : p(p), factor(p.gate ? tanhf(widen(*static_cast<const T *>(p.gate))) : 1.0f),
        in_pairs(sizeof(T) == 2 && p.ldc % 2 == 0 && (uintptr_t)p.c % 8 == 0 &&
                 ((uintptr_t)p.bias | (uintptr_t)p.residual) % 4 == 0) {}

  __device__ __forceinline__ void store(int64_t row, int64_t col, float sum) const {
    if (row >= p.m || col >= p.n) return;
    int64_t at = row * p.ldc + col;
    if (p.bias) sum += widen(static_cast<const T *>(p.bias)[col]);
    float y = factor * activate(sum, p.activation);
    if (p.residual) y += widen(static_cast<const T *>(p.residual)[at]);
    if (p.c_is_f32)
      static_cast<float *>(p.c)[at] = y;
    else
      static_cast<T *>(p.c)[at] = narrow<T>(y);
  }

  /** Sums as `mma` lays them out, from the lane's first cell on: `sums(j)[0 .. 4]` are the cells at
   *  columns col + 8 j and the next, of `row` and of row + 8; j < COUNT. */
  template <int COUNT, typename Sums>
  __device__ __forceinline__ void store_fragments(int64_t row, int64_t col, Sums sums) const {
    // C may be the residual, so a load waits for the stores before it: many loads first.
    constexpr int BATCH = COUNT < 8 ? COUNT : 8;
#pragma unroll
    for (int first = 0; first < COUNT; first += BATCH) {
      uint32_t residual[BATCH][2];
#pragma unroll
      for (int j = 0; j < BATCH; j++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          residual[j][half] = residual2(row + half * 8, col + (first + j) * 8);
#pragma unroll
      for (int j = 0; j < BATCH; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float *pair = sums(first + j) + half * 2;
          store2(row + half * 8, col + (first + j) * 8, pair[0], pair[1], residual[j][half]);
        }
    }
  }

private:
  __device__ __forceinline__ static const uint32_t *pair_at(const void *cells, int64_t at) {
    return reinterpret_cast<const uint32_t *>(static_cast<const T *>(cells) + at);
  }

  __device__ __forceinline__ bool is_pair(int64_t row, int64_t col) const {
    return in_pairs && row < p.m && col + 1 < p.n;
  }

  __device__ __forceinline__ uint32_t residual2(int64_t row, int64_t col) const {
    if (!p.residual || !is_pair(row, col)) return 0;
    return *pair_at(p.residual, row * p.ldc + col);
  }

  __device__ __forceinline__ void store2(int64_t row, int64_t col, float first, float second,
                                         uint32_t residual) const {
    if (!is_pair(row, col)) {
      store(row, col, first);
      store(row, col + 1, second);
      return;
    }
    int64_t at = row * p.ldc + col;
    if (p.bias) {
      uint32_t bias = __ldg(pair_at(p.bias, col));
      first += low2<T>(bias), second += high2<T>(bias);
    }
    first = factor * activate(first, p.activation) + low2<T>(residual);
    second = factor * activate(second, p.activation) + high2<T>(residual);
    if (p.c_is_f32)
      *reinterpret_cast<float2 *>(static_cast<float *>(p.c) + at) = make_float2(first, second);
    else
      *reinterpret_cast<uint32_t *>(static_cast<T *>(p.c) + at) = pack2<T>(first, second);
  }
};

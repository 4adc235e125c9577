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

/** The parts of a launch's epilogue that are the same for every cell. */
template <typename T> struct Epilogue {
  const GemmParams &p;
  float factor; /**< tanh(gate) */

  __device__ __forceinline__ Epilogue(const GemmParams &p)
      : p(p), factor(p.gate ? tanhf(widen(*static_cast<const T *>(p.gate))) : 1.0f) {}

  /** The cell before it is rounded. */
  __device__ __forceinline__ float cell(int64_t row, int64_t col, float sum) const {
    if (p.bias) sum += widen(static_cast<const T *>(p.bias)[col]);
    float y = factor * activate(sum, p.activation);
    if (p.residual) y += widen(static_cast<const T *>(p.residual)[row * p.ldc + col]);
    return y;
  }

  __device__ __forceinline__ void store(int64_t row, int64_t col, float sum) const {
    if (row >= p.m || col >= p.n) return;
    float y = cell(row, col, sum);
    if (p.c_is_f32)
      static_cast<float *>(p.c)[row * p.ldc + col] = y;
    else
      static_cast<T *>(p.c)[row * p.ldc + col] = narrow<T>(y);
  }

  /** Cells `col` and `col + 1`, as one access where that is legal. */
  __device__ __forceinline__ void store2(int64_t row, int64_t col, float first,
                                         float second) const {
    int64_t at = row * p.ldc + col;
    bool is_pair = col + 1 < p.n && row < p.m && at % 2 == 0 && (uintptr_t)p.c % 8 == 0;
    if (!is_pair) {
      store(row, col, first);
      store(row, col + 1, second);
      return;
    }
    float a = cell(row, col, first), b = cell(row, col + 1, second);
    if (p.c_is_f32)
      *reinterpret_cast<float2 *>(static_cast<float *>(p.c) + at) = make_float2(a, b);
    else
      *reinterpret_cast<uint32_t *>(static_cast<T *>(p.c) + at) = pack2<T>(a, b);
  }
};

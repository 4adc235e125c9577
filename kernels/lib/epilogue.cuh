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

/** The derivative of `activate` at x. */
__device__ __forceinline__ float activation_slope(float x, int activation) {
  // Far out, x times a factor that vanishes is 0, although x may be infinite.
  if (activation == 1) {
    const float near = fminf(fmaxf(x, -40.0f), 40.0f);
    return 0.5f * (1.0f + erff(x * 0.70710678118654752440f)) +
           near * 0.39894228040143267794f * expf(-0.5f * x * x);
  }
  if (activation == 2) {
    const float near = fminf(fmaxf(x, -40.0f), 40.0f), s = 1.0f / (1.0f + expf(-1.702f * x));
    return s * (1.0f + 1.702f * near * (1.0f - s));
  }
  return 1.0f;
}

template <typename T> struct Epilogue {
  const GemmParams &p;
  float factor;  /**< tanh(gate) */
  bool in_pairs; /**< two cells from an even column on are one access, in all three matrices */

  __device__ __forceinline__ Epilogue(const GemmParams &p)
      : p(p), factor(p.gate ? tanhf(widen(*static_cast<const T *>(p.gate))) : 1.0f),
        in_pairs(sizeof(T) == 2 && p.ldc % 2 == 0 && (uintptr_t)p.bias % 4 == 0 &&
                 ((uintptr_t)p.c | (uintptr_t)p.residual) % 8 == 0) {}

  __device__ __forceinline__ void store(int64_t row, int64_t col, float sum) const {
    if (p.c_is_f32)
      store_as<float>(row, col, sum);
    else
      store_as<T>(row, col, sum);
  }

  /** Sums as `mma` lays them out, from the lane's first cell on: `sums(j)[0 .. 4]` are the cells at
   *  columns col + 8 j and the next, of `row` and of row + 8; j < COUNT. */
  template <int COUNT, typename Sums>
  __device__ __forceinline__ void store_fragments(int64_t row, int64_t col, Sums sums) const {
    if (p.c_is_f32)
      store_all<float, COUNT>(row, col, sums);
    else
      store_all<T, COUNT>(row, col, sums);
  }

private:
  /** Two neighbours of C. */
  template <typename C> struct alignas(2 * sizeof(C)) Pair {
    C x[2];
  };

  template <typename C, int COUNT, typename Sums>
  __device__ __forceinline__ void store_all(int64_t row, int64_t col, Sums sums) const {
    // C may be the residual, so a load waits for the stores before it: many loads first.
    constexpr int MOST = 32 / (int)sizeof(Pair<C>), BATCH = COUNT < MOST ? COUNT : MOST;
#pragma unroll
    for (int first = 0; first < COUNT; first += BATCH) {
      Pair<C> residual[BATCH][2];
#pragma unroll
      for (int j = 0; j < BATCH; j++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          residual[j][half] = residual2<C>(row + half * 8, col + (first + j) * 8);
#pragma unroll
      for (int j = 0; j < BATCH; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float *pair = sums(first + j) + half * 2;
          store2(row + half * 8, col + (first + j) * 8, pair[0], pair[1], residual[j][half]);
        }
    }
  }

  template <typename C>
  __device__ __forceinline__ void store_as(int64_t row, int64_t col, float sum) const {
    if (row >= p.m || col >= p.n) return;
    const int64_t at = row * p.ldc + col;
    if (p.bias) sum += widen(static_cast<const T *>(p.bias)[col]);
    float y = factor * activate(sum, p.activation);
    if (p.residual) y += widen(static_cast<const C *>(p.residual)[at]);
    static_cast<C *>(p.c)[at] = narrow<C>(y);
  }

  __device__ __forceinline__ bool is_pair(int64_t row, int64_t col) const {
    return in_pairs && row < p.m && col + 1 < p.n;
  }

  template <typename C>
  __device__ __forceinline__ Pair<C> residual2(int64_t row, int64_t col) const {
    if (!p.residual || !is_pair(row, col)) return {};
    return *reinterpret_cast<const Pair<C> *>(static_cast<const C *>(p.residual) + row * p.ldc +
                                              col);
  }

  template <typename C>
  __device__ __forceinline__ void store2(int64_t row, int64_t col, float first, float second,
                                         Pair<C> residual) const {
    if (!is_pair(row, col)) {
      store_as<C>(row, col, first);
      store_as<C>(row, col + 1, second);
      return;
    }
    if (p.bias) {
      uint32_t bias =
          __ldg(reinterpret_cast<const uint32_t *>(static_cast<const T *>(p.bias) + col));
      first += low2<T>(bias), second += high2<T>(bias);
    }
    first = factor * activate(first, p.activation) + widen(residual.x[0]);
    second = factor * activate(second, p.activation) + widen(residual.x[1]);
    *reinterpret_cast<Pair<C> *>(static_cast<C *>(p.c) + row * p.ldc + col) =
        {narrow<C>(first), narrow<C>(second)};
  }
};

/** Reductions in a fixed order: the same bits at every run. */
#pragma once
#include "abi.h"

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ int lane() { return (int)(threadIdx.x % WARP); }
__device__ __forceinline__ int warp() { return (int)(threadIdx.x / WARP); }

/** The sum over the warp's lanes, in every lane. */
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(ALL_LANES, x, offset);
  return x;
}

/** The largest over the warp's lanes, in every lane. */
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2)
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
  return x;
}

/** The largest of numbers that are not negative, in every lane; NaN counts as more than all. */
__device__ __forceinline__ float warp_max_positive(float x) {
  return __uint_as_float(__reduce_max_sync(ALL_LANES, __float_as_uint(x)));
}

/** The sum over a block of THREADS, or over each warp, in every thread. `partial` is free again
 *  after the next barrier of the caller; it must not be in use by an earlier call. */
template <int THREADS> struct BlockSum {
  float partial[THREADS / WARP];

  __device__ float operator()(float x) {
    x = warp_sum(x);
    if constexpr (THREADS == WARP) return x;
    if (lane() == 0) partial[warp()] = x;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int i = 0; i < THREADS / WARP; i++) sum += partial[i];
    return sum;
  }
};

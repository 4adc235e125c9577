/** Stages in shared memory that tensor copies fill and warpgroups multiply, one after the other. */
#pragma once
#include "types.cuh"

/** The stage of a step, and the parity of its use. */
template <int STAGES> struct Ring {
  int stage = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
  __device__ __forceinline__ void skip(int steps) {
    stage += steps;
    phase ^= stage / STAGES & 1, stage %= STAGES;
  }
};

#if HAS_SM90A
template <typename T, int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b) {
  if constexpr (is_bf16<T>)
    ptx::wgmma_bf16<N>(d, a, b);
  else
    ptx::wgmma_f16<N>(d, a, b);
}
#endif

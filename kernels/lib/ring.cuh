/** Stages in shared memory that tensor copies fill and warpgroups multiply, one after the other. */
#pragma once
#include <stdint.h>

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

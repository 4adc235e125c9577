/** The running softmax: a maximum, a sum and an output row, merged tile by tile
 *  (arXiv:2205.14135 sec. 3.1). Scores come in units of log 2, so that exp is exp2. */
#pragma once
#include "abi.h"
#include "ptx.cuh"

constexpr float LOG2_E = 1.44269504088896340736f;

struct RunningSoftmax {
  float max = -INFINITY; /**< of the scores seen */
  float sum = 0;         /**< of exp2(score - max) */

  /** Takes a tile's maximum; the factor for everything accumulated under the old one. */
  __device__ __forceinline__ float raise(float tile_max) {
    float next = fmaxf(max, tile_max);
    // Nothing seen yet, or nothing but -inf: there is nothing to scale, and inf - inf is NaN.
    float factor = next == -INFINITY ? 1.0f : ptx::exp2(max - next);
    max = next;
    sum *= factor;
    return factor;
  }

  /** exp2(score - max); NaN of NaN, even where no score was a number. */
  __device__ __forceinline__ float weight(float score) const {
    return score == -INFINITY ? 0.0f : ptx::exp2(score - max);
  }
};

/** The running softmax: a maximum, a sum and an output row, merged tile by tile
 *  (arXiv:2205.14135 sec. 3.1). Scores come in units of log 2, so that exp is exp2. */
#pragma once
#include "abi.h"
#include "ptx.cuh"

constexpr float LOG2_E = 1.44269504088896340736f;

/** What two outputs are multiplied by before they are added. */
struct MergeFactors {
  float own, other;
};

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

  /** What to take off a score before exp2: the maximum, or 0 while all are masked, so that a masked
   *  score is a weight of 0. */
  __device__ __forceinline__ float base() const { return max == -INFINITY ? 0.0f : max; }

  /** exp2(score - max): 0 of a masked score even where all so far are masked; NaN of NaN. */
  __device__ __forceinline__ float weight(float score) const {
    return score == -INFINITY ? 0.0f : ptx::exp2(score - max);
  }

  /** The factor for what was accumulated under `other_max`, which is not above the maximum. */
  __device__ __forceinline__ float factor(float other_max) const {
    return max == -INFINITY ? 1.0f : ptx::exp2(other_max - max);
  }

  /** Takes what another row of scores has come to; a NaN among its sums stays. */
  __device__ __forceinline__ MergeFactors merge(float other_max, float other_sum) {
    MergeFactors factors;
    factors.own = raise(other_max);
    factors.other = factor(other_max);
    // Fused everywhere, so that what is merged where makes no difference.
    sum = fmaf(other_sum, factors.other, sum);
    return factors;
  }

  /** What the output is multiplied by at the end: 0 if nothing was seen. */
  __device__ __forceinline__ float norm() const {
    // A sum of 0 cannot come from anything else.
    return max == -INFINITY && sum == 0.0f ? 0.0f : ptx::reciprocal(sum);
  }
};

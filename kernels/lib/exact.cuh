/** Roots and reciprocals as IEEE 754 rounds them, and as the host computes them, without a branch.
 *
 *  The compiler's own leave the line for operands near the ends of the exponents, once each, and
 *  what a thread owns is then worked on one after another. These are the compiler's steps for all
 *  others: an approximation from the card's table, then residuals that FMA has exactly. */
#pragma once
#include "ptx.cuh"

namespace exact {

/** The root of 2^-100 <= x < 2^100. */
__device__ __forceinline__ float root(float x) {
  const float y = ptx::rsqrt(x), r = __fmul_rn(x, y);
  return __fmaf_rn(__fmaf_rn(-r, r, x), __fmul_rn(0.5f, y), r);
}

/** 1 / x for 2^-100 <= x < 2^100. */
__device__ __forceinline__ float reciprocal(float x) {
  const float y = ptx::reciprocal(x);
  return __fmaf_rn(y, __fmaf_rn(-x, y, 1.0f), y);
}

} // namespace exact

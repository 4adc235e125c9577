/** Roots and quotients as IEEE 754 rounds them, and as the host computes them, without a branch.
 *
 *  The compiler's own leave the line for operands near the ends of the exponents, once each, and
 *  what a thread owns is then worked on one after another. These are the compiler's steps for all
 *  others: an approximation from the card's table, then residuals that FMA has exactly (Markstein,
 *  IBM J. Res. Dev. 34(1), 1990). */
#pragma once
#include "ptx.cuh"

namespace exact {

/** The root of 0, or of 2^-100 <= x < 2^100. */
__device__ __forceinline__ float root(float x) {
  const float y = ptx::rsqrt(fmaxf(x, 0x1p-100f));
  const float r = __fmul_rn(x, y);
  return __fmaf_rn(__fmaf_rn(-r, r, x), __fmul_rn(0.5f, y), r);
}

/** a / b, where y is 1 / b but for the last bits, and a, b, a / b and their last bits are normal.
 *  Of a 0 the sign is lost. */
__device__ __forceinline__ float quotient(float a, float b, float y) {
  float q = __fmul_rn(a, y);
  q = __fmaf_rn(__fmaf_rn(-b, q, a), y, q);
  return __fmaf_rn(__fmaf_rn(-b, q, a), y, q);
}

/** 1 / b but for the last bit, for 2^-100 <= b < 2^100. */
__device__ __forceinline__ float reciprocal(float b) {
  const float y = ptx::reciprocal(b);
  return __fmaf_rn(y, __fmaf_rn(-b, y, 1.0f), y);
}

} // namespace exact

/** The meaning of every wrapper in `lib/ptx.cuh`, as its comment there states it. */
#pragma once
#include "simt.h"

namespace ptx {

float f16_to_float(uint16_t x);
uint16_t to_f16(float x);
inline uint16_t to_bf16(float x) {
  uint32_t bits = __float_as_uint(x);
  if (x != x) return (uint16_t)0x7fff;
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline uint32_t to_bf16x2(float low, float high) {
  return to_bf16(low) | (uint32_t)to_bf16(high) << 16;
}
inline uint32_t to_f16x2(float low, float high) { return to_f16(low) | (uint32_t)to_f16(high) << 16; }
inline float exp2(float x) { return ::exp2f(x); }

/** The product of two such elements is exact in double, and so is nearly every sum; the rest is
 *  rounded twice. */
inline uint32_t fma_bf16x2(uint32_t x, uint32_t y, uint32_t z) {
  auto half = [](uint32_t x, uint32_t y, uint32_t z) {
    double product = (double)__uint_as_float(x) * __uint_as_float(y);
    return (float)(product + __uint_as_float(z));
  };
  return to_bf16x2(half(x << 16, y << 16, z << 16),
                   half(x & 0xffff0000u, y & 0xffff0000u, z & 0xffff0000u));
}
inline uint32_t fma_f16x2(uint32_t x, uint32_t y, uint32_t z) {
  auto half = [](uint32_t x, uint32_t y, uint32_t z) {
    double product = (double)f16_to_float((uint16_t)x) * f16_to_float((uint16_t)y);
    return (float)(product + f16_to_float((uint16_t)z));
  };
  return to_f16x2(half(x, y, z), half(x >> 16, y >> 16, z >> 16));
}

uint4 load_once(const void *p);

void cp_async16(void *to, const void *from, bool valid);
void cp_async_commit();
void cp_async_wait(int groups);
template <int N> void cp_async_wait() { cp_async_wait(N); }

void ldmatrix(uint32_t *r, const void *row, int matrices, bool transposed);
inline void ldmatrix_x4(uint32_t (&r)[4], const void *row) { ldmatrix(r, row, 4, false); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) { ldmatrix(r, row, 4, true); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void *row) { ldmatrix(r, row, 2, false); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row) { ldmatrix(r, row, 2, true); }

void mma(float *d, const uint32_t *a, uint32_t b0, uint32_t b1, bool is_bf16);
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  mma(d, a, b0, b1, true);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  mma(d, a, b0, b1, false);
}

} // namespace ptx

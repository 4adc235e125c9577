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

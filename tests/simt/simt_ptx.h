/** The meaning of every wrapper in `lib/ptx.cuh`, as its comment there states it. */
#pragma once
#include "simt.h"

struct TensorMap;

namespace ptx {

float f16_to_float(uint16_t x);
uint16_t to_f16(float x);
__forceinline__ uint16_t to_bf16(float x) {
  uint32_t bits = __float_as_uint(x);
  if (x != x) return (uint16_t)0x7fff;
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
__forceinline__ uint32_t to_bf16x2(float low, float high) {
  return to_bf16(low) | (uint32_t)to_bf16(high) << 16;
}
__forceinline__ uint32_t to_f16x2(float low, float high) {
  return to_f16(low) | (uint32_t)to_f16(high) << 16;
}
__forceinline__ float reciprocal(float x) { return 1.0f / x; }
__forceinline__ float rsqrt(float x) { return 1.0f / sqrtf(x); }
__forceinline__ float exp2(float x) { return ::exp2f(x); }

/** The product of two such elements is exact in double, and so is nearly every sum; the rest is
 *  rounded twice. */
__forceinline__ uint32_t fma_bf16x2(uint32_t x, uint32_t y, uint32_t z) {
  auto half = [](uint32_t x, uint32_t y, uint32_t z) {
    double product = (double)__uint_as_float(x) * __uint_as_float(y);
    return (float)(product + __uint_as_float(z));
  };
  return to_bf16x2(half(x << 16, y << 16, z << 16),
                   half(x & 0xffff0000u, y & 0xffff0000u, z & 0xffff0000u));
}
__forceinline__ uint32_t fma_f16x2(uint32_t x, uint32_t y, uint32_t z) {
  auto half = [](uint32_t x, uint32_t y, uint32_t z) {
    double product = (double)f16_to_float((uint16_t)x) * f16_to_float((uint16_t)y);
    return (float)(product + f16_to_float((uint16_t)z));
  };
  return to_f16x2(half(x, y, z), half(x >> 16, y >> 16, z >> 16));
}

__forceinline__ uint32_t and_or(uint32_t x, uint32_t mask, uint32_t bits) {
  return (x & mask) | bits;
}

__forceinline__ uint32_t and_xor(uint32_t x, uint32_t mask, uint32_t bits) {
  return (x & mask) ^ bits;
}

uint32_t dynamic_shared_bytes();
__forceinline__ uint32_t take_turn(uint32_t *counter) { return atomicAdd(counter, 1u); }

/** Launches run one after another here. */
void wait_for_launch_before();
__forceinline__ void let_next_launch_begin() {}

__forceinline__ uint32_t opaque(uint32_t x) { return x; }
__forceinline__ void prefetch(const void *) {}

void cp_async16(void *to, const void *from, bool valid);
__forceinline__ void cp_async16_streamed(void *to, const void *from, bool valid) {
  cp_async16(to, from, valid);
}
__forceinline__ void cp_async16_kept(void *to, const void *from) { cp_async16(to, from, true); }
void cp_async_commit();
void cp_async_wait(int groups);
template <int N> __forceinline__ void cp_async_wait() { cp_async_wait(N); }

void ldmatrix(uint32_t *r, const void *row, int matrices, bool transposed);
__forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *row) { ldmatrix(r, row, 4, false); }
__forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
  ldmatrix(r, row, 4, true);
}
__forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void *row) { ldmatrix(r, row, 2, false); }

void stmatrix_x4(void *row, const uint32_t (&r)[4]);

void mma(float *d, const uint32_t *a, uint32_t b0, uint32_t b1, bool is_bf16);
__forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  mma(d, a, b0, b1, true);
}
__forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  mma(d, a, b0, b1, false);
}
void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// Hopper. Barriers in shared memory; copies and products that run beside the threads.

void mbarrier_init(uint64_t *barrier, uint32_t count);
void mbarrier_arrive(uint64_t *barrier);
void mbarrier_arrive_expect_tx(uint64_t *barrier, uint32_t bytes);
void mbarrier_wait(uint64_t *barrier, uint32_t parity);
__forceinline__ void mbarrier_wait_for_cluster(uint64_t *barrier, uint32_t parity) {
  mbarrier_wait(barrier, parity);
}
void fence_barrier_init();
void cluster_arrive();
void cluster_wait();
void store_in(uint32_t rank, float *to, float x, uint64_t *barrier);
void fence_async_shared();

void tma_load_2d(void *to, const TensorMap *map, uint64_t *barrier, int x, int y);
void tma_store_2d(const TensorMap *map, const void *from, int x, int y);
void tma_store_commit();
void tma_store_wait(int groups);
template <int N> __forceinline__ void tma_store_wait() { tma_store_wait(N); }
__forceinline__ void tma_prefetch(const TensorMap *) {}

uint64_t shared_descriptor_128b(const void *p);
void wgmma(float *d, int n, uint64_t a, uint64_t b, bool is_bf16, bool add);
void wgmma_rows(float *d, const uint32_t *a, uint64_t b, bool is_bf16, bool add);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int groups);
template <int N> __forceinline__ void wgmma_wait() { wgmma_wait(N); }
template <int N> __forceinline__ void wgmma_settle(float (&)[N]) {}
template <int N>
__forceinline__ void wgmma_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, bool add = true) {
  wgmma(d, N, a, b, true, add);
}
__forceinline__ void wgmma_rows_bf16(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool add) {
  wgmma_rows(d, a, b, true, add);
}
template <int N>
__forceinline__ void wgmma_f16(float (&d)[N / 2], uint64_t a, uint64_t b, bool add = true) {
  wgmma(d, N, a, b, false, add);
}
__forceinline__ void wgmma_rows_f16(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool add) {
  wgmma_rows(d, a, b, false, add);
}
template <int N> __forceinline__ void setmaxnreg_inc() {}
template <int N> __forceinline__ void setmaxnreg_dec() {}

__forceinline__ void bar_sync(int id, int threads) { simt::named_barrier(id, threads, true); }
__forceinline__ void bar_arrive(int id, int threads) { simt::named_barrier(id, threads, false); }

} // namespace ptx

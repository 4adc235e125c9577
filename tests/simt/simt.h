/** What nvcc provides, for the host's C++ compiler: the words of CUDA C++ that the kernels use,
 *  each carried out by the emulator in `simt.cpp`. A kernel's thread is a fiber; `now` is the one
 *  that runs. */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) int2 {
  int32_t x, y;
};
struct alignas(16) int4 {
  int32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
__forceinline__ uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
__forceinline__ uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  return {x, y, z, w};
}
__forceinline__ int2 make_int2(int32_t x, int32_t y) { return {x, y}; }
__forceinline__ int4 make_int4(int32_t x, int32_t y, int32_t z, int32_t w) { return {x, y, z, w}; }
__forceinline__ float2 make_float2(float x, float y) { return {x, y}; }
__forceinline__ float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace simt {

struct Block;

/** The part of a running thread that kernels see. */
struct Thread {
  uint3 index;
  uint3 block_index, block_size, grid_size;
};

extern thread_local Thread *now __attribute__((tls_model("initial-exec")));

/** The block's dynamic shared memory; a fault if `bytes` is more than the launch has. */
void *shared(size_t bytes);
/** A block's static shared array, known by `key`. */
void *shared_static(const void *key, size_t bytes);

/** Waits for every thread of the block; `how` is 0 none, 1 or, 2 and, 3 count of the predicates. */
int barrier(int how, int predicate);
void named_barrier(int id, int threads, bool waits);
void sync_warp(uint32_t mask);

/** What one lane brings to a warp's common operation; `out` may be `in`. */
struct Lane {
  const void *in;
  void *out;
  int32_t number, width;
};
/** Carried out once for all lanes of `mask` when the last has come; absent lanes are null. */
using Operation = void (*)(Lane *const lanes[32], uint32_t mask);
void collective(const char *name, uint32_t mask, Operation run, Lane *own);

/** What instrumentation does for plain accesses, for those made on a kernel's behalf. */
void will_read(const void *p, size_t bytes, size_t alignment);
void will_write(void *p, size_t bytes, size_t alignment);
/** As `will_write`, for operations that exclude each other. */
void will_update(void *p, size_t bytes);
[[noreturn]] void fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

} // namespace simt

#define threadIdx (simt::now->index)
#define blockIdx (simt::now->block_index)
#define blockDim (simt::now->block_size)
#define gridDim (simt::now->grid_size)

#define KERNEL_ENTRY(entry, Params, wait)                                                          \
  static inline void entry##_body(const Params &p);                                                \
  extern "C" void entry(const void *params, const void *) {                                        \
    const Params p = *static_cast<const Params *>(params);                                         \
    wait;                                                                                          \
    entry##_body(p);                                                                               \
  }                                                                                                \
  static inline void entry##_body(const Params &p)
#define KERNEL(entry, Params, ...) KERNEL_ENTRY(entry, Params, ptx::wait_for_launch_before())
#define KERNEL_EARLY(entry, Params, ...) KERNEL_ENTRY(entry, Params, (void)0)
#define KERNEL_TMA(entry, Params, ...)                                                             \
  static inline void entry##_body(const Params &p, const TensorMaps &maps);                        \
  extern "C" void entry(const void *params, const void *maps) {                                    \
    const Params p = *static_cast<const Params *>(params);                                         \
    entry##_body(p, *static_cast<const TensorMaps *>(maps));                                       \
  }                                                                                                \
  static inline void entry##_body(const Params &p, const TensorMaps &maps)
#define SHARED(Struct, name) Struct &name = *static_cast<Struct *>(simt::shared(sizeof(Struct)))
#define SHARED_STATIC(Type, name, count)                                                           \
  static const char name##_key = 0;                                                                \
  Type *const name = static_cast<Type *>(simt::shared_static(&name##_key, sizeof(Type) * (count)))

__forceinline__ void __syncthreads() { simt::barrier(0, 0); }
__forceinline__ int __syncthreads_or(int x) { return simt::barrier(1, x != 0); }
__forceinline__ int __syncthreads_and(int x) { return simt::barrier(2, x != 0); }
__forceinline__ int __syncthreads_count(int x) { return simt::barrier(3, x != 0); }
__forceinline__ void __syncwarp(uint32_t mask = 0xffffffffu) { simt::sync_warp(mask); }
__forceinline__ void __threadfence() {}
__forceinline__ void __threadfence_block() {}

namespace simt {

template <typename T, int HOW>
__forceinline__ T shuffle(const char *name, uint32_t mask, T x, int number, int width) {
  T y = x;
  Lane own = {&x, &y, number, width};
  collective(
      name, mask,
      [](Lane *const lanes[32], uint32_t) {
        for (int i = 0; i < 32; i++) {
          if (!lanes[i]) continue;
          int n = lanes[i]->number;
          int width = lanes[i]->width, first = i & -width;
          int from = HOW == 0   ? first + (n & (width - 1))
                     : HOW == 1 ? i ^ n
                     : HOW == 2 ? i - n
                                : i + n;
          // As the hardware has it: up stops at the segment's first lane, the others at its last.
          if (HOW == 2 ? from < first : from >= first + width) from = i;
          if (!lanes[from])
            fault("lane %d shuffles from lane %d, which is not in the mask", i, from);
          *static_cast<T *>(lanes[i]->out) = *static_cast<const T *>(lanes[from]->in);
        }
      },
      &own);
  return y;
}

template <int HOW, typename T> __forceinline__ T vote(const char *name, uint32_t mask, T x) {
  T y = 0;
  Lane own = {&x, &y, 0, 32};
  collective(
      name, mask,
      [](Lane *const lanes[32], uint32_t) {
        T result = 0;
        bool is_first = true;
        for (int i = 0; i < 32; i++) {
          if (!lanes[i]) continue;
          T x = *static_cast<const T *>(lanes[i]->in);
          if (HOW == 0) result |= (T)((x != 0 ? 1u : 0u) << i);
          if (HOW == 1) result += x;
          if (HOW == 2) result = is_first || x > result ? x : result;
          if (HOW == 3) result = is_first || x < result ? x : result;
          is_first = false;
        }
        for (int i = 0; i < 32; i++)
          if (lanes[i]) *static_cast<T *>(lanes[i]->out) = result;
      },
      &own);
  return y;
}

} // namespace simt

template <typename T> __forceinline__ T __shfl_sync(uint32_t mask, T x, int from, int width = 32) {
  return simt::shuffle<T, 0>("__shfl_sync", mask, x, from, width);
}
template <typename T>
__forceinline__ T __shfl_xor_sync(uint32_t mask, T x, int bits, int width = 32) {
  return simt::shuffle<T, 1>("__shfl_xor_sync", mask, x, bits, width);
}
template <typename T> __forceinline__ T __shfl_up_sync(uint32_t mask, T x, int by, int width = 32) {
  return simt::shuffle<T, 2>("__shfl_up_sync", mask, x, by, width);
}
template <typename T>
__forceinline__ T __shfl_down_sync(uint32_t mask, T x, int by, int width = 32) {
  return simt::shuffle<T, 3>("__shfl_down_sync", mask, x, by, width);
}
__forceinline__ uint32_t __ballot_sync(uint32_t mask, int x) {
  return simt::vote<0>("__ballot_sync", mask, (uint32_t)(x != 0));
}
__forceinline__ int __any_sync(uint32_t mask, int x) { return __ballot_sync(mask, x) != 0; }
__forceinline__ int __all_sync(uint32_t mask, int x) { return __ballot_sync(mask, x) == mask; }
__forceinline__ uint32_t __reduce_add_sync(uint32_t mask, uint32_t x) {
  return simt::vote<1>("__reduce_add_sync", mask, x);
}
__forceinline__ int32_t __reduce_add_sync(uint32_t mask, int32_t x) {
  return simt::vote<1>("__reduce_add_sync", mask, x);
}
__forceinline__ uint32_t __reduce_max_sync(uint32_t mask, uint32_t x) {
  return simt::vote<2>("__reduce_max_sync", mask, x);
}
__forceinline__ int32_t __reduce_max_sync(uint32_t mask, int32_t x) {
  return simt::vote<2>("__reduce_max_sync", mask, x);
}
__forceinline__ uint32_t __reduce_min_sync(uint32_t mask, uint32_t x) {
  return simt::vote<3>("__reduce_min_sync", mask, x);
}
__forceinline__ int32_t __reduce_min_sync(uint32_t mask, int32_t x) {
  return simt::vote<3>("__reduce_min_sync", mask, x);
}

namespace simt {

/** *p = f(*p) in one step; what it was. */
template <typename T, typename F> __forceinline__ T update(T *p, F f) {
  will_update(p, sizeof(T));
  T old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
  while (!__atomic_compare_exchange_n(p, &old, f(old), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return old;
}

} // namespace simt

template <typename T> __forceinline__ T atomicAdd(T *p, T x) {
  return simt::update(p, [=](T old) { return (T)(old + x); });
}
template <typename T> __forceinline__ T atomicSub(T *p, T x) {
  return simt::update(p, [=](T old) { return (T)(old - x); });
}
template <typename T> __forceinline__ T atomicExch(T *p, T x) {
  return simt::update(p, [=](T) { return x; });
}
template <typename T> __forceinline__ T atomicCAS(T *p, T expected, T x) {
  return simt::update(p, [=](T old) { return old == expected ? x : old; });
}
template <typename T> __forceinline__ T atomicOr(T *p, T x) {
  return simt::update(p, [=](T old) { return (T)(old | x); });
}
template <typename T> __forceinline__ T atomicMin(T *p, T x) {
  return simt::update(p, [=](T old) { return x < old ? x : old; });
}
template <typename T> __forceinline__ T atomicMax(T *p, T x) {
  return simt::update(p, [=](T old) { return old < x ? x : old; });
}
/** Wraps from `limit` to 0. */
__forceinline__ uint32_t atomicInc(uint32_t *p, uint32_t limit) {
  return simt::update(p, [=](uint32_t old) { return old >= limit ? 0 : old + 1; });
}
template <typename T> __forceinline__ T __ldg(const T *p) { return *p; }

__forceinline__ float __uint_as_float(uint32_t x) { return __builtin_bit_cast(float, x); }
__forceinline__ uint32_t __float_as_uint(float x) { return __builtin_bit_cast(uint32_t, x); }
__forceinline__ float __int_as_float(int32_t x) { return __builtin_bit_cast(float, x); }
__forceinline__ int32_t __float_as_int(float x) { return __builtin_bit_cast(int32_t, x); }
__forceinline__ int __clz(uint32_t x) { return x ? __builtin_clz(x) : 32; }
__forceinline__ int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
__forceinline__ unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return (unsigned long long)((unsigned __int128)x * y >> 64);
}
__forceinline__ int __popc(uint32_t x) { return __builtin_popcount(x); }
__forceinline__ int __ffs(int x) { return __builtin_ffs(x); }
__forceinline__ uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t order) {
  uint64_t both = (uint64_t)y << 32 | x;
  uint32_t out = 0;
  for (int i = 0; i < 4; i++)
    out |= (uint32_t)(both >> (8 * (order >> (4 * i) & 7)) & 0xff) << (8 * i);
  return out;
}
__forceinline__ float rsqrtf(float x) { return 1.0f / sqrtf(x); }
__forceinline__ float __expf(float x) { return expf(x); }
__forceinline__ float __logf(float x) { return logf(x); }
__forceinline__ float __log2f(float x) { return log2f(x); }
__forceinline__ float __powf(float x, float y) { return powf(x, y); }
__forceinline__ float __saturatef(float x) { return x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f; }
__forceinline__ float __fadd_rn(float x, float y) { return x + y; }
__forceinline__ float __fsub_rn(float x, float y) { return x - y; }
__forceinline__ float __fmul_rn(float x, float y) { return x * y; }
__forceinline__ float __fdiv_rn(float x, float y) { return x / y; }
__forceinline__ float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
__forceinline__ float __fsqrt_rn(float x) { return sqrtf(x); }
__forceinline__ float __frcp_rn(float x) { return 1.0f / x; }
__forceinline__ float __fdividef(float x, float y) { return x / y; }
__forceinline__ int min(int a, int b) { return a < b ? a : b; }
__forceinline__ int max(int a, int b) { return a > b ? a : b; }
__forceinline__ unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
__forceinline__ unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
__forceinline__ int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
__forceinline__ int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
__forceinline__ uint64_t min(uint64_t a, uint64_t b) { return a < b ? a : b; }
__forceinline__ uint64_t max(uint64_t a, uint64_t b) { return a > b ? a : b; }
__forceinline__ unsigned long long min(unsigned long long a, unsigned long long b) {
  return a < b ? a : b;
}
__forceinline__ unsigned long long max(unsigned long long a, unsigned long long b) {
  return a > b ? a : b;
}
__forceinline__ float min(float a, float b) { return fminf(a, b); }
__forceinline__ float max(float a, float b) { return fmaxf(a, b); }

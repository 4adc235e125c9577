/** AdamW on one element, and the elements that a lane owns: shared by `adamw` and `adamw8`.
 *
 *  Every product and sum is rounded on its own, so that the host's twin computes the same bits. */
#pragma once
#include "types.cuh"


__device__ __forceinline__ bool is_finite(float x) {
  return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

/** COUNT neighbours, of which the first `count` exist; 16 bytes at a time if all do. The first is
 *  at a multiple of COUNT from an aligned address. */
template <int COUNT, typename E>
__device__ __forceinline__ void load_own(E (&to)[COUNT], const E *from, int count) {
  struct alignas(COUNT * sizeof(E) < 16 ? COUNT * sizeof(E) : 16) All {
    E x[COUNT];
  };
  if (count == COUNT) {
    const All all = *reinterpret_cast<const All *>(from);
#pragma unroll
    for (int i = 0; i < COUNT; i++) to[i] = all.x[i];
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (i < count) to[i] = from[i];
  }
}
template <int COUNT, typename E>
__device__ __forceinline__ void store_own(E *to, const E (&from)[COUNT], int count) {
  struct alignas(COUNT * sizeof(E) < 16 ? COUNT * sizeof(E) : 16) All {
    E x[COUNT];
  };
  if (count == COUNT) {
    All all;
#pragma unroll
    for (int i = 0; i < COUNT; i++) all.x[i] = from[i];
    *reinterpret_cast<All *>(to) = all;
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (i < count) to[i] = from[i];
  }
}

/** Parameters as f32: the master's, where there is one. */
template <int COUNT, typename T>
__device__ __forceinline__ void load_param(float (&x)[COUNT], const T *param, const float *master,
                                           int64_t at, int count) {
  if (master) return load_own<COUNT>(x, master + at, count);
  T stored[COUNT];
  load_own<COUNT>(stored, param + at, count);
#pragma unroll
  for (int i = 0; i < COUNT; i++)
    if (i < count) x[i] = widen(stored[i]);
}
template <int COUNT, typename T>
__device__ __forceinline__ void store_param(T *param, float *master, const float (&x)[COUNT],
                                            int64_t at, int count) {
  if (master) store_own<COUNT>(master + at, x, count);
  T stored[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++)
    if (i < count) stored[i] = narrow<T>(x[i]);
  store_own<COUNT>(param + at, stored, count);
}

/** 16 bits that are as good as random, of element i at a step's seed (the finaliser of splitmix64,
 *  doi:10.1145/2714064.2660195). */
__device__ __forceinline__ uint32_t noise(uint64_t seed, int64_t i) {
  uint64_t z = seed + ((uint64_t)i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return (uint32_t)(z >> 48);
}

/** x after the step; m and v become the new moments. Element `i` is only for the noise. */
template <typename T, typename Params>
__device__ __forceinline__ float adamw(const Params &p, float x, float g, float &m, float &v,
                                       int64_t i) {
  if (!is_finite(g)) {
    m = v = 0.0f;
    return x;
  }
  const float fresh2 = __fmul_rn(__fmul_rn(1.0f - p.beta2, g), g);
  v = __fadd_rn(__fmul_rn(v, p.beta2), fresh2);
  m = __fadd_rn(__fmul_rn(m, p.beta1), __fmul_rn(1.0f - p.beta1, g));
  const float direction = __fdiv_rn(m, __fadd_rn(__fsqrt_rn(v), p.eps));
  x = __fadd_rn(x, __fmul_rn(p.step_size, direction));
  if (p.master) return __fmul_rn(x, p.keep);
  if (p.seed == 0) {
    x = widen(narrow<T>(x));
    return __fmul_rn(x, p.keep);
  }
  x = __fmul_rn(x, p.keep);
  // bfloat16 is the upper half: with 16 random bits added, what is cut off carries with its own
  // probability. A number that is not finite stays as it is.
  const uint32_t bits = __float_as_uint(x);
  return is_finite(x) ? __uint_as_float((bits + noise(p.seed, i)) & 0xffff0000u) : x;
}

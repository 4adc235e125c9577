/** Storage types and their conversions: `T` is float, bf16 or f16; arithmetic is f32. */
#pragma once
#include "abi.h"
#include "ptx.cuh"

/** bfloat16: the upper half of a float. */
struct bf16 {
  uint16_t bits;
};
/** IEEE half precision. */
struct f16 {
  uint16_t bits;
};

template <typename T> constexpr bool is_bf16 = false;
template <> constexpr bool is_bf16<bf16> = true;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
__device__ __forceinline__ float widen(f16 x) { return ptx::f16_to_float(x.bits); }

/** x rounded to nearest even. */
template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return {ptx::to_bf16(x)}; }
template <> __device__ __forceinline__ f16 narrow<f16>(float x) { return {ptx::to_f16(x)}; }

/** Two values side by side in a register, the first in the low half. */
template <typename T> __device__ __forceinline__ uint32_t pack2(float low, float high);
template <> __device__ __forceinline__ uint32_t pack2<bf16>(float low, float high) {
  return ptx::to_bf16x2(low, high);
}
template <> __device__ __forceinline__ uint32_t pack2<f16>(float low, float high) {
  return ptx::to_f16x2(low, high);
}
template <typename T> __device__ __forceinline__ float low2(uint32_t x) {
  return widen(T{(uint16_t)(x & 0xffffu)});
}
template <typename T> __device__ __forceinline__ float high2(uint32_t x) {
  return widen(T{(uint16_t)(x >> 16)});
}

/** What one thread moves in one instruction: 16 bytes of T. */
template <typename T> struct alignas(16) Pack {
  static constexpr int SIZE = 16 / sizeof(T);
  T x[SIZE];
};

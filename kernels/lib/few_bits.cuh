/** Weights of 8 or 4 bits, as they are stored: bytes that the tensor cores multiply, or pairs of
 *  T. */
#pragma once
#include "gemm_quantized.h"
#include "types.cuh"

constexpr int GROUP = 128; /**< weights of 4 bits with a scale in common */

template <typename T> struct Int8Weights {
  static constexpr int RUN = 16;
  static constexpr bool GROUPED = false;
  static constexpr float OFFSET = 0;
  static constexpr bool ARE_BYTES = true;
  static constexpr float BYTE = 1; /**< what 1 in a byte is */
  const bf16 *scales;

  __device__ __forceinline__ Int8Weights(const GemmQuantizedParams &p)
      : scales(static_cast<const bf16 *>(p.scales)) {}

  static __device__ __forceinline__ void eight(uint4 run, int i, uint32_t (&pairs)[4]) {
    const uint32_t words[4] = {run.x, run.y, run.z, run.w};
#pragma unroll
    for (int x = 0; x < 4; x++) pairs[x] = pair(words[2 * i + x / 2], x % 2);
  }
  /** Bytes 2 half and 2 half + 1. */
  static __device__ __forceinline__ uint32_t pair(uint32_t word, int half);

  /** Weights 8 i to 8 i + 8 of a run: byte x of both words is weight `place(x)` of them. */
  static __device__ __forceinline__ void bytes(uint4 run, int i, uint32_t (&words)[2]) {
    words[0] = i ? run.z : run.x, words[1] = i ? run.w : run.y;
  }
  static __device__ __forceinline__ constexpr int place(int x) { return x; }

  using Factor = bf16;
  __device__ __forceinline__ Factor row_scale(int64_t row) const { return scales[row]; }
  __device__ __forceinline__ uint32_t first_group(int64_t) const { return 0; }
};
template <> __device__ __forceinline__ uint32_t Int8Weights<f16>::pair(uint32_t word, int half) {
  const uint32_t above = word ^ 0x80808080u; // q + 128, in each byte
  const uint32_t magic = __byte_perm(above, 0x64646464u, half ? 0x4342 : 0x4140);
  return ptx::fma_f16x2(magic, 0x3c003c00u, 0xe480e480u); // 1 x - 1152
}
template <> __device__ __forceinline__ uint32_t Int8Weights<bf16>::pair(uint32_t word, int half) {
  const uint32_t bytes = __byte_perm(word, 0, half ? 0x4342 : 0x4140);
  // 128 + the low seven bits, and -128; the sign doubles the second.
  return ptx::fma_bf16x2(ptx::and_or(bytes, 0x007f007fu, 0x43004300u), 0x3f803f80u,
                         ptx::and_or(bytes, 0x00800080u, 0xc300c300u));
}

/** FEW: for up to eight rows of A, whose loops have no time for a subtraction a pair. */
template <typename T, bool FEW> struct Int4Weights {
  static constexpr int RUN = 32;
  static constexpr bool GROUPED = true;
  static constexpr bool ARE_BYTES = true;
  static constexpr float BYTE = 0.0625f; /**< nibbles are in the upper half of theirs */
  /** bf16: 128 + u stays, and 136 times the sum of A is taken off the sums of a group. Of their 24
   *  bits that costs five, where C keeps eight; f16 would lose eight, and keeps eleven. */
  static constexpr float OFFSET = FEW && is_bf16<T> ? 136.0f : 0.0f;
  const bf16 *scales;
  const int groups; /**< of a row */

  __device__ __forceinline__ Int4Weights(const GemmQuantizedParams &p)
      : scales(static_cast<const bf16 *>(p.scales)), groups((int)(p.product.k / GROUP)) {}

  static __device__ __forceinline__ void eight(uint4 run, int i, uint32_t (&pairs)[4]) {
    const uint32_t words[4] = {run.x, run.y, run.z, run.w};
#pragma unroll
    for (int x = 0; x < 4; x++) pairs[x] = pair(words[i] >> 4 * x);
  }
  /** As of `Int8Weights`: words of eight have nibbles 0 2 4 6 1 3 5 7. */
  static __device__ __forceinline__ void bytes(uint4 run, int i, uint32_t (&words)[2]) {
    const uint32_t word = i < 2 ? (i ? run.y : run.x) : i == 2 ? run.z : run.w;
    // 16 u with its highest bit turned is, as a signed byte, 16 (u - 8).
    words[0] = ptx::and_xor(word * 16, 0xf0f0f0f0u, 0x80808080u);
    words[1] = ptx::and_xor(word, 0xf0f0f0f0u, 0x80808080u);
  }
  static __device__ __forceinline__ constexpr int place(int x) {
    return x % 2 * 4 + x % 4 / 2 + x / 4 * 2;
  }
  /** The lowest nibbles of both halves, less 8, plus OFFSET. */
  static __device__ __forceinline__ uint32_t pair(uint32_t word) {
    const uint32_t magic = ptx::and_or(word, 0x000f000fu, is_bf16<T> ? 0x43004300u : 0x64006400u);
    if constexpr (OFFSET != 0) return magic;
    if constexpr (is_bf16<T>) return ptx::fma_bf16x2(magic, 0x3f803f80u, 0xc308c308u); // x - 136
    return ptx::fma_f16x2(magic, 0x3c003c00u, 0xe408e408u); // x - 1032
  }

  using Factor = float;
  __device__ __forceinline__ Factor row_scale(int64_t) const { return 1.0f; }
  /** Of a row, among the scales: 2^32 groups would be more than any card holds. */
  __device__ __forceinline__ uint32_t first_group(int64_t row) const {
    return (uint32_t)row * (uint32_t)groups;
  }
};

/*  `gemm_int8`, `gemm_int4`
 *
 *  Idea      as gemv.cu, with weights that become pairs of T in registers, between their load and
 *            the tensor cores:
 *              int4   (word >> 4 i) & 0x000f000f | magic: a T whose low bits are the nibble, so
 *                     128 + b (bf16) or 1024 + b (f16); one packed addition leaves b - 8
 *              int8   f16: the byte as the low bits of 1024 + b + 128; bf16 has 7 bits, so by f32
 *            Scales multiply sums: of a row (int8), or of a group of 128, which is what four lanes
 *            load at once (int4).
 *  Geometry  8 warps divide k. `_rows8`: block x owns 16 rows of B, block y 8 rows of A; `_rows16`:
 *            32 and 16. `_plain`: a warp per cell of C, for what 16-byte loads cannot reach; f32
 *            entries are that.
 *  Traffic   B once per 8 or 16 rows of A; A from L2.
 *  Rejected  magic numbers left in and taken off the sums: 128 times the sum of A, cancelled. */
#include "gemm_quantized.h"
#include "lib/few_rows.cuh"

template <typename T> struct Int8Weights {
  static constexpr int RUN = 16;
  static constexpr bool GROUPED = false;

  static __device__ __forceinline__ void expand(uint4 raw, uint32_t (&pairs)[RUN / 2]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t above = words[i] ^ 0x80808080u; // b + 128, in each byte
#pragma unroll
      for (int half = 0; half < 2; half++)
        pairs[2 * i + half] = pair(above, half);
    }
  }
  /** Bytes 2 half and 2 half + 1, less 128. */
  static __device__ __forceinline__ uint32_t pair(uint32_t above, int half);

  template <typename P> static __device__ float row_scale(const P &p, int64_t row) {
    return p.scales[row];
  }
  template <typename P> static __device__ float group_scale(const P &, int64_t, int64_t) {
    return 1.0f;
  }
};
template <> __device__ __forceinline__ uint32_t Int8Weights<f16>::pair(uint32_t above, int half) {
  const uint32_t magic = __byte_perm(above, 0x64646464u, half ? 0x4342 : 0x4140);
  return ptx::fma_f16x2(magic, 0x3c003c00u, 0xe480e480u); // 1 x - 1152
}
template <> __device__ __forceinline__ uint32_t Int8Weights<bf16>::pair(uint32_t above, int half) {
  // 2^23 + b + 128; the difference has at most 8 bits: its upper half is the bf16.
  const float low = __uint_as_float(__byte_perm(above, 0x4b000000u, half ? 0x7652 : 0x7650));
  const float high = __uint_as_float(__byte_perm(above, 0x4b000000u, half ? 0x7653 : 0x7651));
  return __byte_perm(__float_as_uint(low - 8388736.0f), __float_as_uint(high - 8388736.0f), 0x7632);
}

template <typename T> struct Int4Weights {
  static constexpr int RUN = 32;
  static constexpr bool GROUPED = true;

  static __device__ __forceinline__ void expand(uint4 raw, uint32_t (&pairs)[RUN / 2]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 16; i++) pairs[i] = pair(words[i / 4] >> 4 * (i % 4) & 0x000f000fu);
  }
  /** Two nibbles, less 8. */
  static __device__ __forceinline__ uint32_t pair(uint32_t nibbles);

  template <typename P> static __device__ float row_scale(const P &, int64_t) { return 1.0f; }
  template <typename P> static __device__ float group_scale(const P &p, int64_t row, int64_t k) {
    return p.scales[row * (p.k / 128) + k / 128];
  }
};
template <> __device__ __forceinline__ uint32_t Int4Weights<bf16>::pair(uint32_t nibbles) {
  return ptx::fma_bf16x2(nibbles | 0x43004300u, 0x3f803f80u, 0xc308c308u); // 1 x - 136
}
template <> __device__ __forceinline__ uint32_t Int4Weights<f16>::pair(uint32_t nibbles) {
  return ptx::fma_f16x2(nibbles | 0x64006400u, 0x3c003c00u, 0xe408e408u); // 1 x - 1032
}

/** Weight i of a row, without its row's scale. */
__device__ __forceinline__ float weight(const GemmInt8Params &p, int64_t row, int64_t i) {
  return (float)static_cast<const int8_t *>(p.b)[row * p.ldb + i];
}
__device__ __forceinline__ float weight(const GemmInt4Params &p, int64_t row, int64_t i) {
  const unsigned char *bytes = static_cast<const unsigned char *>(p.b) + row * p.ldb;
  const int nibble = (int)(i % 8 / 2 + i % 2 * 4);
  const int b = bytes[i / 8 * 4 + nibble / 2] >> nibble % 2 * 4 & 15;
  return (float)(b - 8) * p.scales[row * (p.k / 128) + i / 128];
}
__device__ __forceinline__ float row_scale(const GemmInt8Params &p, int64_t row) {
  return p.scales[row];
}
__device__ __forceinline__ float row_scale(const GemmInt4Params &, int64_t) { return 1.0f; }

/** A warp per cell of C: block x owns 8 columns, block y a row. */
template <typename T, typename P> __device__ __forceinline__ void plain(const P &p) {
  const int64_t row = blockIdx.y, col = (int64_t)blockIdx.x * FEW_WARPS + warp();
  if (col >= p.n) return;
  const T *a = static_cast<const T *>(p.a) + row * p.lda;
  float sum = 0;
  for (int64_t i = lane(); i < p.k; i += WARP) sum += widen(a[i]) * weight(p, col, i);
  sum = warp_sum(sum);
  const Epilogue<T, P> epilogue(p);
  if (lane() == 0) epilogue.store(row, col, sum * row_scale(p, col));
}

#define QUANTIZED(name, T)                                                                         \
  KERNEL(gemm_int8_##name##_rows8, GemmInt8Params, FEW_THREADS, 2) {                               \
    few_rows<T, Int8Weights<T>, 1, 1, 4>(p, p.ldb);                                                \
  }                                                                                                \
  KERNEL(gemm_int8_##name##_rows16, GemmInt8Params, FEW_THREADS, 2) {                              \
    few_rows<T, Int8Weights<T>, 2, 2, 1>(p, p.ldb);                                                \
  }                                                                                                \
  KERNEL(gemm_int4_##name##_rows8, GemmInt4Params, FEW_THREADS, 2) {                               \
    few_rows<T, Int4Weights<T>, 1, 1, 2>(p, p.ldb);                                                \
  }                                                                                                \
  KERNEL(gemm_int4_##name##_rows16, GemmInt4Params, FEW_THREADS, 2) {                              \
    few_rows<T, Int4Weights<T>, 2, 2, 1>(p, p.ldb);                                                \
  }                                                                                                \
  KERNEL(gemm_int8_##name##_plain, GemmInt8Params, FEW_THREADS) { plain<T>(p); }                   \
  KERNEL(gemm_int4_##name##_plain, GemmInt4Params, FEW_THREADS) { plain<T>(p); }

QUANTIZED(bf16, bf16)
QUANTIZED(f16, f16)
KERNEL(gemm_int8_f32, GemmInt8Params, FEW_THREADS) { plain<float>(p); }
KERNEL(gemm_int4_f32, GemmInt4Params, FEW_THREADS) { plain<float>(p); }

/*  `gemm_quantized`
 *
 *  Idea      weights become pairs of T in registers, between their load and the tensor cores:
 *              4 bits   (word >> 4 i) & 0x000f000f | magic: a T whose low bits are the nibble, so
 *                       128 + u (bf16) or 1024 + u (f16); one packed addition leaves u - 8
 *              8 bits   f16: the byte as the low bits of 1024 + q + 128; bf16 has 7 bits: by f32
 *            Scales multiply sums: of a row (8 bits), or of each 128 of k (4 bits).
 *            `_rows8`, `_rows16`: the loop of gemv.cu. `_tiles`: the next 64 of k of B are loaded
 *            into registers while these are multiplied, and written to shared memory as T.
 *  Geometry  `_rows8`: block x owns 16 rows of B, block y 8 of A; `_rows16`: 32 and 16; 8 warps
 *            divide k. `_tiles`: 64x64 of C by 4 warps of 32x32, 32 KiB. `_plain`, and f32: a warp
 *            per cell of C, for what 16-byte loads cannot reach.
 *  Traffic   B once (`_rows`) or m / 64 times (`_tiles`), as it is stored; A from L2.
 *  Rejected  magic numbers left in and taken off the sums: 128 times the sum of A, cancelled.
 *            B to a workspace as T and `gemm`: three times the bytes and a launch more. */
#include "gemm_quantized.h"
#include "lib/few_rows.cuh"

constexpr int GROUP = 128; /**< weights of 4 bits with a scale in common */

template <typename T> struct Int8Weights {
  static constexpr int RUN = 16;
  static constexpr bool GROUPED = false;
  const bf16 *scales;

  __device__ __forceinline__ Int8Weights(const GemmQuantizedParams &p)
      : scales(static_cast<const bf16 *>(p.scales)) {}

  static __device__ __forceinline__ void expand(uint4 raw, uint32_t (&pairs)[RUN / 2]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t above = words[i] ^ 0x80808080u; // q + 128, in each byte
      pairs[2 * i] = pair(above, 0);
      pairs[2 * i + 1] = pair(above, 1);
    }
  }
  /** Bytes 2 half and 2 half + 1, less 128. */
  static __device__ __forceinline__ uint32_t pair(uint32_t above, int half);

  __device__ __forceinline__ float row_scale(int64_t row) const { return widen(scales[row]); }
  __device__ __forceinline__ float group_scale(int64_t, int64_t) const { return 1.0f; }
};
template <> __device__ __forceinline__ uint32_t Int8Weights<f16>::pair(uint32_t above, int half) {
  const uint32_t magic = __byte_perm(above, 0x64646464u, half ? 0x4342 : 0x4140);
  return ptx::fma_f16x2(magic, 0x3c003c00u, 0xe480e480u); // 1 x - 1152
}
template <> __device__ __forceinline__ uint32_t Int8Weights<bf16>::pair(uint32_t above, int half) {
  // 2^23 + q + 128; the difference has at most 8 bits: its upper half is the bf16.
  const uint32_t low = __byte_perm(above, 0x4b000000u, half ? 0x7652 : 0x7650);
  const uint32_t high = __byte_perm(above, 0x4b000000u, half ? 0x7653 : 0x7651);
  const float offset = 8388608.0f + 128.0f;
  return __byte_perm(__float_as_uint(__uint_as_float(low) - offset),
                     __float_as_uint(__uint_as_float(high) - offset), 0x7632);
}

template <typename T> struct Int4Weights {
  static constexpr int RUN = 32;
  static constexpr bool GROUPED = true;
  const bf16 *scales;
  const int groups; /**< of a row */

  __device__ __forceinline__ Int4Weights(const GemmQuantizedParams &p)
      : scales(static_cast<const bf16 *>(p.scales)), groups((int)(p.product.k / GROUP)) {}

  static __device__ __forceinline__ void expand(uint4 raw, uint32_t (&pairs)[RUN / 2]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 16; i++) pairs[i] = pair(words[i / 4] >> 4 * (i % 4) & 0x000f000fu);
  }
  /** Two nibbles, less 8. */
  static __device__ __forceinline__ uint32_t pair(uint32_t nibbles);

  __device__ __forceinline__ float row_scale(int64_t) const { return 1.0f; }
  __device__ __forceinline__ float group_scale(int64_t row, int64_t k) const {
    return widen(scales[row * groups + k / GROUP]);
  }
};
template <> __device__ __forceinline__ uint32_t Int4Weights<bf16>::pair(uint32_t nibbles) {
  return ptx::fma_bf16x2(nibbles | 0x43004300u, 0x3f803f80u, 0xc308c308u); // 1 x - 136
}
template <> __device__ __forceinline__ uint32_t Int4Weights<f16>::pair(uint32_t nibbles) {
  return ptx::fma_f16x2(nibbles | 0x64006400u, 0x3c003c00u, 0xe408e408u); // 1 x - 1032
}

constexpr int TILE = 64, TILE_K = 64, TILE_THREADS = 128;

template <typename T> struct TilesShared {
  SwizzledTile<T, TILE, TILE_K> a[2], b[2];
};

/** 64 rows of B from row0 on, 64 of k at a time: in registers, then in shared memory as T. */
template <typename T, typename Weights> struct TileOfB {
  static constexpr int RUNS = TILE_K / Weights::RUN; /**< of a row */
  static constexpr int LOADS = TILE * RUNS / TILE_THREADS;
  uint4 raw[LOADS];

  static __device__ __forceinline__ int row(int i) {
    return ((int)threadIdx.x + i * TILE_THREADS) / RUNS;
  }
  static __device__ __forceinline__ int run(int i) {
    return ((int)threadIdx.x + i * TILE_THREADS) % RUNS;
  }

  /** Rows past the end are the last one once more; k past the end counts as 0. */
  __device__ __forceinline__ void load(const GemmParams &p, int64_t row0, int64_t k0) {
    const unsigned char *b = static_cast<const unsigned char *>(p.b);
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const int64_t at = min(row0 + row(i), p.n - 1), k = k0 + run(i) * Weights::RUN;
      raw[i] = k < p.k ? *reinterpret_cast<const uint4 *>(b + at * p.ldb + k / Weights::RUN * 16)
                       : uint4{0, 0, 0, 0};
    }
  }
  __device__ __forceinline__ void store(SwizzledTile<T, TILE, TILE_K> &tile) const {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      uint32_t pairs[Weights::RUN / 2];
      Weights::expand(raw[i], pairs);
#pragma unroll
      for (int c = 0; c < Weights::RUN / 8; c++)
        *reinterpret_cast<uint4 *>(tile.chunk(row(i), run(i) * (Weights::RUN / 8) + c)) = {
            pairs[4 * c], pairs[4 * c + 1], pairs[4 * c + 2], pairs[4 * c + 3]};
    }
  }
};

template <typename T>
__device__ __forceinline__ void load_a(SwizzledTile<T, TILE, TILE_K> &tile, const GemmParams &p,
                                       int64_t row0, int64_t k0) {
  const T *a = static_cast<const T *>(p.a);
#pragma unroll
  for (int i = threadIdx.x; i < TILE * TILE_K / 8; i += TILE_THREADS) {
    const int row = i / (TILE_K / 8), chunk = i % (TILE_K / 8);
    const int64_t k = k0 + chunk * 8;
    const bool valid = row0 + row < p.m && k < p.k;
    ptx::cp_async16(tile.chunk(row, chunk), valid ? a + (row0 + row) * p.lda + k : a, valid);
  }
}

template <typename T, typename Weights>
__device__ __forceinline__ void tiles(const GemmParams &p, Weights w) {
  SHARED(TilesShared<T>, s);
  const int64_t row0 = (int64_t)blockIdx.y * TILE, col0 = (int64_t)blockIdx.x * TILE;
  const int wm = warp() / 2 * 32, wn = warp() % 2 * 32, l = lane();
  const int64_t steps = (p.k + TILE_K - 1) / TILE_K;
  TileOfB<T, Weights> next;
  float acc[2][4][4] = {}, group[2][4][4] = {};

  if (steps > 0) {
    load_a(s.a[0], p, row0, 0);
    ptx::cp_async_commit();
    next.load(p, col0, 0);
    next.store(s.b[0]);
  }
  for (int64_t step = 0; step < steps; step++) {
    ptx::cp_async_wait<0>();
    // Both tiles are there, and the other two are free: everybody has left the step before.
    __syncthreads();
    const bool is_last = step + 1 == steps;
    if (!is_last) {
      load_a(s.a[(step + 1) % 2], p, row0, (step + 1) * TILE_K);
      ptx::cp_async_commit();
      next.load(p, col0, (step + 1) * TILE_K);
    }
    auto &sums = Weights::GROUPED ? group : acc;
#pragma unroll
    for (int chunk = 0; chunk < TILE_K / 8; chunk += 2) {
      uint32_t fa[2][4], fb[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++) s.a[step % 2].load_a(fa[i], wm + i * 16, chunk, l);
#pragma unroll
      for (int j = 0; j < 2; j++) s.b[step % 2].load_b(fb[j], wn + j * 16, chunk, l);
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
          mma<T>(sums[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
    if constexpr (Weights::GROUPED) {
      if (is_last || (step + 1) * TILE_K % GROUP == 0) {
#pragma unroll
        for (int e = 0; e < 8; e++) {
          const int64_t col = col0 + wn + e / 2 * 8 + l % 4 * 2 + e % 2;
          const float scale = w.group_scale(min(col, p.n - 1), step * TILE_K);
#pragma unroll
          for (int i = 0; i < 2; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
              float &sum = group[i][e / 2][half * 2 + e % 2];
              acc[i][e / 2][half * 2 + e % 2] += sum * scale;
              sum = 0;
            }
        }
      }
    }
    if (!is_last) next.store(s.b[(step + 1) % 2]);
  }

#pragma unroll
  for (int j = 0; j < 4; j++) {
    const int64_t col = col0 + wn + j * 8 + l % 4 * 2;
    const float low = w.row_scale(min(col, p.n - 1)), high = w.row_scale(min(col + 1, p.n - 1));
#pragma unroll
    for (int i = 0; i < 2; i++)
      acc[i][j][0] *= low, acc[i][j][1] *= high, acc[i][j][2] *= low, acc[i][j][3] *= high;
  }
  const Epilogue<T> epilogue(p);
#pragma unroll
  for (int i = 0; i < 2; i++)
    epilogue.template store_fragments<4>(row0 + wm + i * 16 + l / 4, col0 + wn + l % 4 * 2,
                                         [&](int j) { return acc[i][j]; });
}

/** A warp per cell of C: block x owns 8 columns, block y a row. `q(row, i)` is a weight. */
template <typename T, typename Weights, typename Q>
__device__ __forceinline__ void plain(const GemmParams &p, Weights w, Q q) {
  const int64_t row = blockIdx.y, col = (int64_t)blockIdx.x * FEW_WARPS + warp();
  if (col >= p.n) return;
  const T *a = static_cast<const T *>(p.a) + row * p.lda;
  const unsigned char *b = static_cast<const unsigned char *>(p.b) + col * p.ldb;
  float sum = 0;
  for (int64_t i = lane(); i < p.k; i += WARP)
    sum += widen(a[i]) * (w.group_scale(col, i) * (float)q(b, i));
  sum = warp_sum(sum);
  const Epilogue<T> epilogue(p);
  if (lane() == 0) epilogue.store(row, col, sum * w.row_scale(col));
}
template <typename T> __device__ __forceinline__ void plain_int8(const GemmQuantizedParams &p) {
  plain<T>(p.product, Int8Weights<T>(p), [](const unsigned char *b, int64_t i) {
    return (int)static_cast<signed char>(b[i]);
  });
}
template <typename T> __device__ __forceinline__ void plain_int4(const GemmQuantizedParams &p) {
  plain<T>(p.product, Int4Weights<T>(p), [](const unsigned char *b, int64_t i) {
    const int nibble = (int)(i % 8 / 2 + i % 2 * 4);
    return (b[i / 8 * 4 + nibble / 2] >> nibble % 2 * 4 & 15) - 8;
  });
}

#define QUANTIZED(name, T)                                                                         \
  KERNEL_EARLY(gemm_quantized_##name##_int8_rows8, GemmQuantizedParams, FEW_THREADS, 2) {          \
    few_rows<T, 1, 1, 4>(p.product, Int8Weights<T>(p), p.product.ldb);                             \
  }                                                                                                \
  KERNEL_EARLY(gemm_quantized_##name##_int8_rows16, GemmQuantizedParams, FEW_THREADS, 2) {         \
    few_rows<T, 2, 2, 1>(p.product, Int8Weights<T>(p), p.product.ldb);                             \
  }                                                                                                \
  KERNEL_EARLY(gemm_quantized_##name##_int4_rows8, GemmQuantizedParams, FEW_THREADS, 2) {          \
    few_rows<T, 1, 1, 2>(p.product, Int4Weights<T>(p), p.product.ldb);                             \
  }                                                                                                \
  KERNEL_EARLY(gemm_quantized_##name##_int4_rows16, GemmQuantizedParams, FEW_THREADS, 2) {         \
    few_rows<T, 2, 2, 1>(p.product, Int4Weights<T>(p), p.product.ldb);                             \
  }                                                                                                \
  KERNEL(gemm_quantized_##name##_int8_tiles, GemmQuantizedParams, TILE_THREADS) {                  \
    tiles<T>(p.product, Int8Weights<T>(p));                                                        \
  }                                                                                                \
  KERNEL(gemm_quantized_##name##_int4_tiles, GemmQuantizedParams, TILE_THREADS) {                  \
    tiles<T>(p.product, Int4Weights<T>(p));                                                        \
  }                                                                                                \
  KERNEL(gemm_quantized_##name##_int8_plain, GemmQuantizedParams, FEW_THREADS) {                   \
    plain_int8<T>(p);                                                                              \
  }                                                                                                \
  KERNEL(gemm_quantized_##name##_int4_plain, GemmQuantizedParams, FEW_THREADS) {                   \
    plain_int4<T>(p);                                                                              \
  }

QUANTIZED(bf16, bf16)
QUANTIZED(f16, f16)
KERNEL(gemm_quantized_f32_int8_plain, GemmQuantizedParams, FEW_THREADS) { plain_int8<float>(p); }
KERNEL(gemm_quantized_f32_int4_plain, GemmQuantizedParams, FEW_THREADS) { plain_int4<float>(p); }

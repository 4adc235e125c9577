/*  `gemm_quantized`
 *
 *  Idea      weights become pairs of T in registers, between their load and the tensor cores:
 *              4 bits   (word >> 4 i) & 0x000f000f | magic: a T whose low bits are the nibble, so
 *                       128 + u (bf16) or 1024 + u (f16); one packed addition leaves u - 8,
 *                       but for up to 8 rows in bf16: there 136 times the sum of A is taken off
 *                       the sum of a group, the former by a product with ones
 *              8 bits   f16: the byte as the low bits of 1024 + q + 128; bf16 has 7 of them: they
 *                       make 128 + (q & 127), and the sign makes -128 or -256, to be added
 *            or (`_rows8_kept`) stay bytes, which the tensor cores multiply with digits of A
 *            (kept_rows.cuh) and add up exactly: of 4 bits, 16 (u - 8) by one instruction for four.
 *            Scales multiply sums: of a row (8 bits), or of each 128 of k (4 bits).
 *            `_rows8`, `_rows8_kept`, `_rows16`: the loops of gemv.cu. `_tiles`: a ring of
 *            stages of A and of B as it is stored (cp.async); a warp makes T of the 32 rows of B
 *            that are its own, once, and multiplies them with all rows of A in the stage.
 *  Geometry  `_rows8`, `_rows8_kept`, `_rows16`: as in gemv.cu; three bytes of shared memory an
 *            element of A that is kept. On Hopper gemm_quantized_sm90.cu is in place of
 *            `_rows8_kept`, but for k in odd pieces.
 *            `_tiles`: 64 rows of A, 128 of B, 4 warps, 64 KiB in 4 stages of 64 of k or 72 KiB in
 *            3 of 128; grid (tiles, 1, parts of k). `_plain`, and f32: a warp per cell of C, for
 *            what 16-byte loads cannot reach.
 *  Traffic   B as it is stored, from memory once, from L2 once (`_rows`) or m / 64 times
 *            (`_tiles`); A from L2, n / 128 times (`_tiles`).
 *  Rejected  pairs of T for `_rows8_kept`: 3.5 and 2.3 instructions a weight of 8 and 4 bits in
 *            the loop where bytes take 1.7 and 1.5, logic and shifts, which go at half speed, a
 *            third; four digits: half as much again for nothing that shows. Digits without a sign,
 *            and 2^22 times the sum of the weights taken off: cancelled. Magic numbers left in and
 *            taken off the sums of a whole row of 8 bits, or in f16: 128 times and more the sum of
 *            A, cancelled. Two chains of sums for one (int4, few rows): 437 tokens/s for 442
 *            (H200). B to a workspace as T and `gemm`: three times the bytes and a launch more. T
 *            of B through shared memory: written and read again, with a barrier between. */
#include "gemm_quantized.h"
#include "lib/feed.cuh"
#include "lib/few_bits.cuh"
#include "lib/few_rows.cuh"
#include "lib/split.cuh"

constexpr int TILE_ROWS = 64, TILE_COLS = 128, TILE_THREADS = 128;
constexpr int ROW_BYTES = 64; /**< of a row of B in a stage: four runs */

/** A ring of stages of A and B; a stage is 4 runs of k, as B is stored. */
template <typename T, typename Weights> struct TilesShared {
  static constexpr int K = 4 * Weights::RUN, CHUNKS = K / 8;
  static constexpr int STAGES = Weights::GROUPED ? 3 : 4;
  struct Stage {
    T a[TILE_ROWS * K];
    unsigned char b[TILE_COLS * ROW_BYTES];

    /** 16 bytes of A. Lanes t = 0 to 3 of a row want chunks t RUN / 8, and two rows are read at
     *  once: in different banks, all of them. */
    __device__ __forceinline__ T *a_chunk(int row, int chunk) {
      return a + row * K + (chunk ^ row % 8 ^ chunk / 8 * 2) * 8;
    }
    __device__ __forceinline__ unsigned char *b_run(int row, int run) {
      return b + row * ROW_BYTES + run * 16;
    }
  };
  alignas(128) Stage stages[STAGES];
  int is_last;
};

/** Sums of a warp, 32 columns of C by 64 rows, += its rows wn .. of B and all of A of a stage. As
 *  in `few_rows`, B is the A operand, and a lane takes the same run of k of both. */
template <typename T, typename Weights>
__device__ __forceinline__ void
multiply_stage(float (&sums)[2][8][4], typename TilesShared<T, Weights>::Stage &stage, int wn) {
  constexpr int CHUNKS = Weights::RUN / 8;
  const int g = lane() / 4, t = lane() % 4;
  uint4 runs[2][2];
#pragma unroll
  for (int i = 0; i < 4; i++)
    runs[i / 2][i % 2] = *reinterpret_cast<const uint4 *>(stage.b_run(wn + i * 8 + g, t));
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    uint32_t fragments[2][2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      uint32_t low[4], high[4];
      Weights::eight(runs[i][0], c, low);
      Weights::eight(runs[i][1], c, high);
#pragma unroll
      for (int x = 0; x < 4; x++)
        fragments[i][x / 2][x % 2 * 2] = low[x], fragments[i][x / 2][x % 2 * 2 + 1] = high[x];
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const uint4 row =
          *reinterpret_cast<const uint4 *>(stage.a_chunk(j * 8 + g, t * CHUNKS + c));
#pragma unroll
      for (int i = 0; i < 2; i++) mma<T>(sums[i][j], fragments[i][0], row.x, row.y);
#pragma unroll
      for (int i = 0; i < 2; i++) mma<T>(sums[i][j], fragments[i][1], row.z, row.w);
    }
  }
}

template <typename T, typename Weights>
__device__ __forceinline__ void tiles(const GemmParams &p, Weights w) {
  using Shared = TilesShared<T, Weights>;
  constexpr int STAGES = Shared::STAGES;
  SHARED(Shared, s);
  // Tiles of the same rows of B are neighbours: the first brings them to L2.
  const unsigned down = (unsigned)((p.m + TILE_ROWS - 1) / TILE_ROWS);
  const int64_t row0 = (int64_t)(blockIdx.x % down) * TILE_ROWS;
  const int64_t col0 = (int64_t)(blockIdx.x / down) * TILE_COLS;
  const int wn = warp() * 32, g = lane() / 4, t = lane() % 4;
  const int all = (int)((p.k + Shared::K - 1) / Shared::K);
  const int each = (all + (int)gridDim.z - 1) / (int)gridDim.z;
  const int begin = min(all, (int)blockIdx.z * each), end = min(all, begin + each);

  const bool is_glu = p.activation == SWIGLU;
  /** This lane's four rows of B, or the last. */
  auto column = [&](int i) { return row_in_turn(p, is_glu, col0 + wn, i / 2, i % 2, g); };
  const bf16 *scales = w.scales + w.first_group(column(0));
  int scales_of[4];
#pragma unroll
  for (int i = 0; i < 4; i++) scales_of[i] = (int)(w.scales + w.first_group(column(i)) - scales);

  Feed<TILE_ROWS, Shared::CHUNKS, TILE_THREADS> feed_a(
      p.a, p.lda * (int64_t)sizeof(T), p.m, p.k * (int64_t)sizeof(T), row0,
      (int64_t)begin * Shared::K * (int64_t)sizeof(T));
  using FeedB = Feed<TILE_COLS, ROW_BYTES / 16, TILE_THREADS>;
  const int64_t b_width = p.k / Weights::RUN * 16, b_at = (int64_t)begin * ROW_BYTES;
  FeedB feed_b = is_glu
                     ? FeedB::template in_turn<8>(p.b, p.ldb, p.n, b_width, col0 / 2, b_at)
                     : FeedB(p.b, p.ldb, p.n, b_width, col0, b_at);
  auto fill_a = [&](typename Shared::Stage &stage) {
    feed_a.fill(stage.a_chunk(feed_a.row(), feed_a.chunk()));
  };
  auto fill_b = [&](typename Shared::Stage &stage) {
    feed_b.fill(stage.b_run(feed_b.row(), feed_b.chunk()));
  };
  // Weights are nobody's to write; rows of A are the launch's before this one.
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++)
    if (begin + i < end) fill_b(s.stages[i]);
  ptx::wait_for_launch_before();
  float acc[2][8][4] = {};
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (begin + i < end) fill_a(s.stages[i]);
    ptx::cp_async_commit();
  }
  int at = 0, to = STAGES - 1;
  for (int step = begin; step < end; step++) {
    ptx::cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < end) fill_a(s.stages[to]), fill_b(s.stages[to]);
    ptx::cp_async_commit();
    if constexpr (Weights::GROUPED) {
      // A stage is a group. Its scales are on their way while it is multiplied.
      bf16 scale[4];
#pragma unroll
      for (int i = 0; i < 4; i++) scale[i] = scales[scales_of[i] + step];
      float group[2][8][4] = {};
      multiply_stage<T, Weights>(group, s.stages[at], wn);
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
          for (int x = 0; x < 4; x++)
            acc[i][j][x] += group[i][j][x] * widen(scale[i * 2 + x / 2]);
    } else {
      multiply_stage<T, Weights>(acc, s.stages[at], wn);
    }
    at = at + 1 < STAGES ? at + 1 : 0, to = to + 1 < STAGES ? to + 1 : 0;
  }
  if (gridDim.z > 1) {
    const bool is_whole = merge_parts<64, TILE_THREADS>(
        p.workspace, blockIdx.x, s.is_last,
        [&](int e) -> float & { return acc[e / 32][e / 4 % 8][e % 4]; }, [] { __syncthreads(); });
    if (!is_whole) return;
  }

  float scale[4];
#pragma unroll
  for (int i = 0; i < 4; i++) scale[i] = widen(w.row_scale(column(i)));
  // Everybody has left the stages: their memory takes the sums on their way out.
  __syncthreads();
  const Epilogue<T> epilogue(p);
  using Stage = typename Epilogue<T>::Stage;
  static_assert(sizeof(s.stages) >= TILE_THREADS / WARP * sizeof(Stage), "one for each warp");
  Stage &stage = reinterpret_cast<Stage *>(&s)[warp()];
  const int width = is_glu ? 16 : 32;
  epilogue.template store_parts<4, 1>(
      stage, row0, is_glu ? (col0 + wn) / 2 : col0 + wn, {16, width}, [&](int part) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
          for (int j = 0; j < 2; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
              float *to = stage.x[j * 8 + t * 2 + e];
              const float *sums = acc[i][part * 2 + j];
              const float low = sums[e] * scale[i * 2], high = sums[2 + e] * scale[i * 2 + 1];
              if (is_glu)
                to[i * 8 + g] = rounded::glu(low, high);
              else
                to[i * 16 + g] = low, to[i * 16 + 8 + g] = high;
            }
      });
}

/** A warp per cell of C: block x owns 8 columns, block y a row. `q(row, i)` is a weight. */
template <typename T, typename Weights, typename Q>
__device__ __forceinline__ void plain(const GemmParams &p, Weights w, Q q) {
  const int64_t row = blockIdx.y, col = (int64_t)blockIdx.x * FEW_WARPS + warp();
  if (col >= p.n) return;
  const T *a = static_cast<const T *>(p.a) + row * p.lda;
  const unsigned char *b = static_cast<const unsigned char *>(p.b) + col * p.ldb;
  const bf16 *scales = w.scales + w.first_group(col);
  float sum = 0;
  for (int64_t i = lane(); i < p.k; i += WARP) {
    const float scale = Weights::GROUPED ? widen(scales[i / GROUP]) : 1.0f;
    sum += widen(a[i]) * (scale * (float)q(b, i));
  }
  sum = warp_sum(sum);
  const Epilogue<T> epilogue(p);
  if (lane() == 0) epilogue.store(row, col, sum * widen(w.row_scale(col)));
}
template <typename T> __device__ __forceinline__ void plain_int8(const GemmQuantizedParams &p) {
  plain<T>(p.product, Int8Weights<T>(p), [](const unsigned char *b, int64_t i) {
    return (int)static_cast<signed char>(b[i]);
  });
}
template <typename T> __device__ __forceinline__ void plain_int4(const GemmQuantizedParams &p) {
  plain<T>(p.product, Int4Weights<T, false>(p), [](const unsigned char *b, int64_t i) {
    const int nibble = (int)(i % 8 / 2 + i % 2 * 4);
    return (b[i / 8 * 4 + nibble / 2] >> nibble % 2 * 4 & 15) - 8;
  });
}

#define ROWS(name, T, bits, variant, Weights, ...)                                                 \
  KERNEL_EARLY(gemm_quantized_##name##_##bits##_##variant, GemmQuantizedParams, FEW_THREADS, 2) {  \
    few_rows<T, __VA_ARGS__>(p.product, Weights(p), p.product.ldb);                                \
  }
#define QUANTIZED(name, T)                                                                         \
  using Int8_##name = Int8Weights<T>;                                                              \
  using Int4_##name = Int4Weights<T, true>;                                                        \
  using Int4_16_##name = Int4Weights<T, false>;                                                    \
  ROWS(name, T, int8, rows8, Int8_##name, 1, 1, FEW_STAGES, false)                                 \
  ROWS(name, T, int8, rows8_kept, Int8_##name, 1, 1, FEW_STAGES, true)                             \
  ROWS(name, T, int8, rows16, Int8_##name, 2, 2, FEW_STAGES / 2, false)                            \
  ROWS(name, T, int4, rows8, Int4_##name, 1, 1, FEW_STAGES, false)                                 \
  ROWS(name, T, int4, rows8_kept, Int4_##name, 1, 1, FEW_STAGES, true)                             \
  ROWS(name, T, int4, rows16, Int4_16_##name, 2, 2, FEW_STAGES / 2, false)                         \
  KERNEL_EARLY(gemm_quantized_##name##_int8_tiles, GemmQuantizedParams, TILE_THREADS, 3) {         \
    tiles<T>(p.product, Int8Weights<T>(p));                                                        \
  }                                                                                                \
  KERNEL_EARLY(gemm_quantized_##name##_int4_tiles, GemmQuantizedParams, TILE_THREADS, 2) {         \
    tiles<T>(p.product, Int4Weights<T, false>(p));                                                 \
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

/*  `gemm` on tensor cores by mma.sync (sm_80 and newer), and in f32 by multiply-adds
 *
 *  Idea      for k0 in steps of 32: copy the next A and B tiles to shared memory (cp.async, a ring
 *            of stages); acc += A B^T out of those that have arrived; then the epilogue in
 *            registers.
 *            grid.z > 1 splits k: each part leaves its sums in the workspace, and the block that
 *            arrives last adds them in the order of the parts: the same bits at every run.
 *            Of SwiGLU a tile has 16 gates, their 16 values, and so on: both are in one thread.
 *  Geometry  grid (tiles, 1, parts of k). `_128x128`: 4 warps of 64x64, 4 stages, 64 KiB.
 *            `_64x64`: 4 warps of 32x32, 4 stages, 32 KiB, for few rows or few tiles. `_plain`: as
 *            `_64x64`, for operands that 16-byte copies cannot reach. f32: 64x64 of 4x4 a thread.
 *  Traffic   A (n / BN) times and B (m / BM) times, through L2; C and residual once.
 *  Rejected  padding rows instead of permuting chunks: copies of 16 bytes would straddle lines. */
#include "gemm.h"
#include "lib/epilogue.cuh"
#include "lib/feed.cuh"
#include "lib/mma.cuh"
#include "lib/reduce.cuh"
#include "lib/split.cuh"

constexpr int BK = 32;

template <typename T, int BM, int BN, int STAGES> struct GemmShared {
  SwizzledTile<T, BM, BK> a[STAGES];
  SwizzledTile<T, BN, BK> b[STAGES];
  int is_last;
};

/** Rows row0 .. of a (rows, k) matrix, columns k0 .. k0 + 32, zeros outside; element by element. */
template <int ROWS, int THREADS, typename T>
__device__ __forceinline__ void load_cells(SwizzledTile<T, ROWS, BK> &tile, const T *matrix,
                                           int64_t ld, int64_t row0, int64_t rows, int64_t k0,
                                           int64_t k) {
#pragma unroll
  for (int i = threadIdx.x; i < ROWS * 4; i += THREADS) {
    int row = i / 4, chunk = i % 4;
    int64_t at = k0 + chunk * 8;
    bool is_row = row0 + row < rows;
    T *to = tile.chunk(row, chunk);
    const T *from = matrix + (is_row ? row0 + row : 0) * ld + at;
#pragma unroll
    for (int j = 0; j < 8; j++) to[j] = is_row && at + j < k ? from[j] : T{0};
  }
}

template <typename T, int BM, int BN, int WM, int WN, int STAGES, bool ALIGNED>
__device__ __forceinline__ void gemm(const GemmParams &p) {
  constexpr int THREADS = BM / WM * (BN / WN) * WARP, MI = WM / 16, NI = WN / 8;
  using Shared = GemmShared<T, BM, BN, STAGES>;
  SHARED(Shared, s);
  // Tiles of the same rows of B are neighbours: the first brings them to L2.
  const unsigned down = (unsigned)((p.m + BM - 1) / BM);
  const int64_t row0 = (int64_t)(blockIdx.x % down) * BM, col0 = (int64_t)(blockIdx.x / down) * BN;
  const int wm = warp() / (BN / WN) * WM, wn = warp() % (BN / WN) * WN, l = lane();
  const int64_t all = (p.k + BK - 1) / BK, each = (all + gridDim.z - 1) / gridDim.z;
  const int64_t begin = min(all, (int64_t)blockIdx.z * each), end = min(all, begin + each);

  constexpr int64_t SIZE = sizeof(T);
  const int64_t at = begin * BK * SIZE;
  Feed<BM, BK / 8, THREADS> feed_a(p.a, p.lda * SIZE, p.m, p.k * SIZE, row0, at);
  using FeedB = Feed<BN, BK / 8, THREADS>;
  // Of SwiGLU, half of the tile's columns: 16 gates, then their values, and so on.
  const bool is_glu = p.activation == SWIGLU;
  FeedB feed_b =
      is_glu ? FeedB::template in_turn<16>(p.b, p.ldb * SIZE, p.n, p.k * SIZE, col0 / 2, at)
             : FeedB(p.b, p.ldb * SIZE, p.n, p.k * SIZE, col0, at);
  int to = 0;
  auto load = [&](int64_t step) {
    if (step < end) {
      if constexpr (ALIGNED) {
        feed_a.fill(s.a[to].chunk(feed_a.row(), feed_a.chunk()));
        feed_b.fill(s.b[to].chunk(feed_b.row(), feed_b.chunk()));
      } else {
        load_cells<BM, THREADS>(s.a[to], static_cast<const T *>(p.a), p.lda, row0, p.m, step * BK,
                                p.k);
        load_cells<BN, THREADS>(s.b[to], static_cast<const T *>(p.b), p.ldb, col0, p.n, step * BK,
                                p.k);
      }
    }
    ptx::cp_async_commit();
    to = to + 1 < STAGES ? to + 1 : 0;
  };

  float acc[MI][NI][4] = {};
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) load(begin + i);
  int stage = 0;
  for (int64_t step = begin; step < end; step++, stage = stage + 1 < STAGES ? stage + 1 : 0) {
    ptx::cp_async_wait<STAGES - 2>();
    __syncthreads();
    load(step + STAGES - 1);
#pragma unroll
    for (int chunk = 0; chunk < BK / 8; chunk += 2) {
      uint32_t fa[MI][4], fb[NI / 2][4];
#pragma unroll
      for (int i = 0; i < MI; i++) s.a[stage].load_a(fa[i], wm + i * 16, chunk, l);
#pragma unroll
      for (int j = 0; j < NI / 2; j++) s.b[stage].load_b(fb[j], wn + j * 16, chunk, l);
#pragma unroll
      for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NI; j++)
          mma<T>(acc[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }

  if (gridDim.z > 1) {
    bool is_whole = merge_parts<MI * NI * 4, THREADS>(
        p.workspace, blockIdx.x, s.is_last,
        [&](int e) -> float & { return acc[e / 4 / NI][e / 4 % NI][e % 4]; },
        [] { __syncthreads(); });
    if (!is_whole) return;
  }

  const Epilogue<T> epilogue(p);
  if constexpr (!ALIGNED) {
#pragma unroll
    for (int i = 0; i < MI; i++)
      epilogue.template store_fragments<NI>(row0 + wm + i * 16 + l / 4, col0 + wn + l % 4 * 2,
                                            [&](int j) { return acc[i][j]; });
  } else {
    // Everybody has left the tiles: their memory takes the sums on their way out.
    __syncthreads();
    using Stage = typename Epilogue<T>::Stage;
    static_assert(sizeof(s.a) + sizeof(s.b) >= THREADS / WARP * sizeof(Stage), "one for each warp");
    Stage &stage = reinterpret_cast<Stage *>(&s)[warp()];
    if (is_glu) {
#pragma unroll
      for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NI / 2; j++)
#pragma unroll
          for (int x = 0; x < 4; x++)
            acc[i][j][x] = rounded::glu(acc[i][j / 2 * 4 + j % 2][x],
                                         acc[i][j / 2 * 4 + 2 + j % 2][x]);
    }
    epilogue.template store_tile<WN, MI>(
        stage, row0 + wm, is_glu ? (col0 + wn) / 2 : col0 + wn, {16, is_glu ? WN / 2 : WN},
        reinterpret_cast<const float(&)[MI][WN / 2]>(acc));
  }
}

/** f32: exact products, so multiply-adds instead of tensor cores. */
struct GemmF32Shared {
  float a[16][64], b[16][64];
};

__device__ __forceinline__ void gemm_f32_tiles(const GemmParams &p) {
  SHARED(GemmF32Shared, s);
  const float *a = static_cast<const float *>(p.a), *b = static_cast<const float *>(p.b);
  const int64_t row0 = (int64_t)blockIdx.y * 64, col0 = (int64_t)blockIdx.x * 64;
  const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  float acc[4][4] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += 16) {
    for (int i = threadIdx.x; i < 64 * 16; i += 256) {
      int64_t row = i / 16, k = k0 + i % 16;
      s.a[i % 16][row] = row0 + row < p.m && k < p.k ? a[(row0 + row) * p.lda + k] : 0.0f;
      s.b[i % 16][row] = col0 + row < p.n && k < p.k ? b[(col0 + row) * p.ldb + k] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 16; k++) {
      float x[4], y[4];
#pragma unroll
      for (int i = 0; i < 4; i++) x[i] = s.a[k][ty * 4 + i], y[i] = s.b[k][tx * 4 + i];
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] = fmaf(x[i], y[j], acc[i][j]);
    }
    __syncthreads();
  }
  const Epilogue<float> epilogue(p);
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) epilogue.store(row0 + ty * 4 + i, col0 + tx * 4 + j, acc[i][j]);
}

KERNEL(gemm_f32, GemmParams, 256) { gemm_f32_tiles(p); }

#define GEMM(name, T)                                                                              \
  KERNEL(gemm_##name##_128x128, GemmParams, 128) { gemm<T, 128, 128, 64, 64, 4, true>(p); }        \
  KERNEL(gemm_##name##_64x64, GemmParams, 128) { gemm<T, 64, 64, 32, 32, 4, true>(p); }            \
  KERNEL(gemm_##name##_plain, GemmParams, 128) { gemm<T, 64, 64, 32, 32, 2, false>(p); }

GEMM(bf16, bf16)
GEMM(f16, f16)

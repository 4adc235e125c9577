/** Products of few rows, C (m,n) = A (m,k) B (n,k)^T with m <= 16, at the speed of reading B.
 *
 *  The tensor cores take B as their A operand, 16 of its rows at a time, and 8 rows of A as their
 *  B operand. Fragments want pairs of k that lie 8 apart; instead a lane takes the 16 bytes of B
 *  that it loaded, and the same stretch of k of A: another order of k in both, the same product.
 *  So B goes from memory to the multiplication without shared memory, and so does A, from L2.
 *
 *  The warps of a block share its rows of B and divide k; their sums are added in warp order.
 *
 *  NORMED, every block makes the norm of all rows of A for itself, in shared memory, while its
 *  weights are on their way: a launch of a norm, and the wait between it and the product, cost more
 *  than that. */
#pragma once
#include "epilogue.cuh"
#include "mma.cuh"
#include "norm.cuh"

constexpr int FEW_THREADS = 256;
constexpr int FEW_WARPS = FEW_THREADS / WARP;

/** Weights stored as T: nothing to do. */
template <typename T> struct DenseWeights {
  static constexpr int RUN = 8;          /**< weights in 16 bytes */
  static constexpr bool GROUPED = false; /**< a scale for each 4 runs of a row, a step */

  /** Weights 8 i to 8 i + 8 of a run: w[2 x] in the low half of pair x, w[2 x + 1] in the high. */
  static __device__ __forceinline__ void eight(uint4 run, int, uint32_t (&pairs)[4]) {
    pairs[0] = run.x, pairs[1] = run.y, pairs[2] = run.z, pairs[3] = run.w;
  }
  /** The factor of the sums of a row. */
  __device__ float row_scale(int64_t) const { return 1.0f; }
  /** The factors of the sums of its groups, if GROUPED. */
  __device__ const bf16 *group_scales(int64_t) const { return nullptr; }
};

/** Where row `half` 8 + g of a block's 16-row tile i of B is, from row_of_b on: of SwiGLU the first
 *  eight are gates, and the second eight their values. Rows past the end are the last once more. */
__device__ __forceinline__ int64_t row_in_turn(const GemmParams &p, bool is_glu, int64_t row_of_b,
                                               int i, int half, int g) {
  if (!is_glu) return min(row_of_b + i * 16 + half * 8 + g, p.n - 1);
  return min(row_of_b / 2 + i * 8 + g, p.n / 2 - 1) + half * (p.n / 2);
}

/** The sums of each warp: of 16 TILES rows of B and 8 COLS rows of A. */
template <int TILES, int COLS> struct FewRowsShared {
  float sums[FEW_WARPS][COLS * 8][TILES * 16];
};

/** The norm of the rows of A, where a block keeps it: behind `*this` are its weight (k), its bias
 *  (k) if there is one, and rows (m,k), in T. Threads read and write their own packs until all of
 *  it is there. */
struct NormedShared {
  FewRowsShared<1, 1> product;
  alignas(16) NormSums<FEW_THREADS> sums;

  /** Between rows, elements: 16 bytes more than k, so that rows begin in other banks. */
  static __device__ __forceinline__ int stride(const GemmParams &p) { return (int)p.k + 8; }

  template <typename T> __device__ __forceinline__ T *vectors() {
    return reinterpret_cast<T *>(this + 1);
  }
  template <typename T> __device__ __forceinline__ T *rows(const GemmParams &p) {
    return vectors<T>() + (p.norm_bias ? 2 : 1) * (int)p.k;
  }

  /** Asks for weight and bias, which no launch writes. */
  template <typename T> __device__ __forceinline__ void ask(const GemmParams &p) {
    const int k = (int)p.k;
    Row<T>::ask(vectors<T>(), static_cast<const T *>(p.norm_weight), k);
    if (p.norm_bias) Row<T>::ask(vectors<T>() + k, static_cast<const T *>(p.norm_bias), k);
  }

  /** Makes the rows. */
  template <typename T> __device__ __forceinline__ void make(const GemmParams &p) {
    const int k = (int)p.k, m = (int)p.m;
    const T *const w = vectors<T>(), *const b = p.norm_bias ? w + k : nullptr;
    for (int r = 0; r < m; r++)
      Row<T>::ask(rows<T>(p) + r * stride(p), static_cast<const T *>(p.a) + r * p.lda, k);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
#pragma unroll 1
    for (int r = 0; r < m; r++) {
      const Row<T> row = {rows<T>(p) + r * stride(p), k};
      if (p.norm == 1) {
        // Sums in turns: those of the row before may still be read.
        const RmsNorm<T> norm(row, r % 2 ? sums.rest : sums.squares, p.norm_eps);
        row.map(w, nullptr, [&](float x, float w, float) { return norm(x, w); });
      } else {
        row.map(w, b, LayerNorm(row, sums, p.norm_eps));
      }
    }
    __syncthreads();
  }

private:
  template <typename T> using Row = SharedRow<T, FEW_THREADS>;
};

/** One warp's part: 16 TILES rows of B against 8 COLS rows of A. */
template <typename T, typename Weights, int TILES, int COLS> struct FewRows {
  static constexpr int RUN = Weights::RUN;
  static constexpr int STEP = 4 * RUN; /**< k of a step */
  static constexpr int RUN_BYTES = 16;

  const unsigned char *b[TILES][2]; /**< this lane's rows of B, at its run of k = 0 */
  const bf16 *scales;               /**< of the groups of the first of these rows */
  int scales_of[TILES][2];          /**< from there to those of each */
  const T *a[COLS];                 /**< this lane's rows of A, likewise */
  float acc[TILES][COLS][4];

  /** Nobody stores the sums of rows past the end. */
  __device__ __forceinline__ FewRows(const GemmParams &p, Weights w, bool is_glu, int64_t row_of_b,
                                     int64_t row_of_a, int64_t ldb)
      : scales(w.group_scales(row_in_turn(p, is_glu, row_of_b, 0, 0, lane() / 4))) {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int64_t row = row_in_turn(p, is_glu, row_of_b, i, half, g);
        b[i][half] = static_cast<const unsigned char *>(p.b) + row * ldb + t * RUN_BYTES;
        scales_of[i][half] = (int)(w.group_scales(row) - scales);
      }
    read_from(static_cast<const T *>(p.a) + row_of_a * p.lda, p.lda, (int)(p.m - row_of_a));
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int j = 0; j < COLS; j++)
#pragma unroll
        for (int x = 0; x < 4; x++) acc[i][j][x] = 0;
  }

  /** Has this lane read A from `rows`, of which there are m; those past the end are the last once
   *  more. */
  template <typename Stride>
  __device__ __forceinline__ void read_from(const T *rows, Stride stride, int m) {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int j = 0; j < COLS; j++) a[j] = rows + min(j * 8 + g, m - 1) * stride + t * RUN;
  }

  /** What is asked for before it is used: the weights of `STEPS` steps. Scales stay as they are
   *  stored until then: widening one would wait for it. */
  template <int STEPS> struct Ahead {
    uint4 weights[STEPS][TILES][2];
    bf16 scales[STEPS][TILES][2];
  };

  /** Asks for the weights from k on. `valid` is false for a lane whose run lies past the end of the
   *  row. */
  template <int STEPS>
  __device__ __forceinline__ void ask(Ahead<STEPS> &ahead, int k, bool valid) const {
    const uint4 zero = {0, 0, 0, 0};
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      const int at = (k / RUN + s * 4) * RUN_BYTES;
#pragma unroll
      for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          ahead.weights[s][i][half] = valid ? ptx::load_once(b[i][half] + at) : zero;
    }
    if constexpr (Weights::GROUPED) {
#pragma unroll
      for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
          for (int half = 0; half < 2; half++)
            ahead.scales[s][i][half] = scales[scales_of[i][half] + k / STEP + s];
    }
  }

  /** Multiplies them with the same stretch of A. */
  template <int STEPS>
  __device__ __forceinline__ void use(const Ahead<STEPS> &ahead, int k, bool valid) {
    const uint4 zero = {0, 0, 0, 0};
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      uint4 rows[COLS][RUN / 8];
#pragma unroll
      for (int j = 0; j < COLS; j++)
#pragma unroll
        for (int x = 0; x < RUN / 8; x++)
          rows[j][x] = valid ? *reinterpret_cast<const uint4 *>(a[j] + k + s * STEP + x * 8) : zero;
      multiply(ahead.weights[s], ahead.scales[s], rows);
    }
  }

  __device__ __forceinline__ void multiply(const uint4 (&weights)[TILES][2],
                                           const bf16 (&scales)[TILES][2],
                                           const uint4 (&rows)[COLS][RUN / 8]) {
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      float group[COLS][4] = {};
#pragma unroll
      for (int x = 0; x < RUN / 8; x++) {
        uint32_t low[4], high[4];
        Weights::eight(weights[i][0], x, low);
        Weights::eight(weights[i][1], x, high);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int y = half * 2;
          const uint32_t fragment[4] = {low[y], high[y], low[y + 1], high[y + 1]};
#pragma unroll
          for (int j = 0; j < COLS; j++) {
            const uint4 &row = rows[j][x];
            mma<T>(Weights::GROUPED ? group[j] : acc[i][j], fragment, half ? row.z : row.x,
                   half ? row.w : row.y);
          }
        }
      }
      if constexpr (Weights::GROUPED) {
#pragma unroll
        for (int j = 0; j < COLS; j++)
#pragma unroll
          for (int x = 0; x < 4; x++) acc[i][j][x] += group[j][x] * widen(scales[i][x / 2]);
      }
    }
  }

  __device__ __forceinline__ void put(FewRowsShared<TILES, COLS> &s) const {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int j = 0; j < COLS; j++)
#pragma unroll
        for (int x = 0; x < 4; x++)
          s.sums[warp()][j * 8 + 2 * t + x % 2][i * 16 + g + x / 2 * 8] = acc[i][j][x];
  }
};

/** The kernel's body: block x owns 16 TILES rows of B, block y 8 COLS rows of A; up to 4 TILES
 *  STEPS loads of B are in flight per thread. `ldb` in bytes; k is a multiple of a run, k < 2^30,
 *  and n < 2^31. */
template <typename T, int TILES, int COLS, int STEPS, bool NORMED, typename Weights>
__device__ __forceinline__ void few_rows(const GemmParams &p, Weights w, int64_t ldb) {
  using Shared = FewRowsShared<TILES, COLS>;
  SHARED(Shared, s);
  NormedShared &normed = reinterpret_cast<NormedShared &>(s);
  using Part = FewRows<T, Weights, TILES, COLS>;
  const int64_t row_of_b = (int64_t)blockIdx.x * (TILES * 16);
  const int64_t row_of_a = (int64_t)blockIdx.y * (COLS * 8);
  // Of more rows of A than eight, SwiGLU is for tiles: there are no registers left here.
  const bool is_glu = COLS == 1 && p.activation == SWIGLU;
  Part part(p, w, is_glu, row_of_b, row_of_a, ldb);

  constexpr int BATCH = STEPS * Part::STEP;
  const int batches = (int)(p.k / BATCH);
  // Two batches at a time: one is on its way while the other is multiplied.
  typename Part::template Ahead<STEPS> ahead[2];
  int i = warp();
#pragma unroll
  for (int turn = 0; turn < 2; turn++)
    if (i + turn * FEW_WARPS < batches) part.ask(ahead[turn], (i + turn * FEW_WARPS) * BATCH, true);
  if constexpr (NORMED) normed.template ask<T>(p);
  // Weights are nobody's to write; rows of A are the launch's before this one.
  ptx::wait_for_launch_before();
  if constexpr (NORMED) {
    normed.template make<T>(p);
    part.read_from(normed.template rows<T>(p), NormedShared::stride(p), (int)p.m);
  }
  while (i < batches) {
#pragma unroll
    for (int turn = 0; turn < 2; turn++, i += FEW_WARPS) {
      if (i < batches) part.use(ahead[turn], i * BATCH, true);
      const int next = i + 2 * FEW_WARPS;
      if (next < batches) part.ask(ahead[turn], next * BATCH, true);
    }
  }
  // What is left is less than a batch: its steps one by one.
  for (int k = batches * BATCH + warp() * Part::STEP; k < p.k; k += FEW_WARPS * Part::STEP) {
    const bool valid = k + lane() % 4 * Part::RUN < p.k;
    typename Part::template Ahead<1> last;
    part.ask(last, k, valid);
    part.use(last, k, valid);
  }

  part.put(s);
  __syncthreads();
  const Epilogue<T> epilogue(p);
  auto whole = [&](int y, int x, int64_t row) {
    float sum = 0;
#pragma unroll
    for (int from = 0; from < FEW_WARPS; from++) sum += s.sums[from][y][x];
    return sum * w.row_scale(row);
  };
  const int cols = is_glu ? TILES * 8 : TILES * 16;
  const int64_t col0 = (int64_t)blockIdx.x * cols;
  for (int i = (int)threadIdx.x; i < COLS * 8 * cols; i += FEW_THREADS) {
    const int x = i % cols, y = i / cols;
    const int64_t row = row_of_a + y, col = col0 + x;
    if (row >= p.m) break;
    if (col >= epilogue.cols) continue;
    if (!is_glu) {
      epilogue.store(row, col, whole(y, x, col));
    } else {
      const int at = x / 8 * 16 + x % 8;
      epilogue.store(row, col, glu(whole(y, at, col), whole(y, at + 8, col + epilogue.cols)));
    }
  }
}

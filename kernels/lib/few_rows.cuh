/** Products of few rows, C (m,n) = A (m,k) B (n,k)^T with m <= 16, at the speed of reading B.
 *
 *  The tensor cores take B as their A operand, 16 of its rows at a time, and 8 rows of A as their
 *  B operand. Fragments want pairs of k that lie 8 apart; instead a lane takes the 16 bytes of B
 *  that it loaded, and the same stretch of k of A: another order of k in both, the same product.
 *  So B goes from memory to the multiplication without shared memory, and so does A, from L2.
 *
 *  The warps of a block share its rows of B and divide k; their sums are added in warp order. */
#pragma once
#include "epilogue.cuh"
#include "mma.cuh"
#include "reduce.cuh"

constexpr int FEW_THREADS = 256;
constexpr int FEW_WARPS = FEW_THREADS / WARP;

/** Weights stored as T: nothing to do. */
template <typename T> struct DenseWeights {
  static constexpr int RUN = 8;          /**< weights in 16 bytes */
  static constexpr bool GROUPED = false; /**< a scale for each 4 runs of a row */

  /** Pair i of the run: w[2i] in the low half. */
  static __device__ __forceinline__ void expand(uint4 raw, uint32_t (&pairs)[RUN / 2]) {
    pairs[0] = raw.x, pairs[1] = raw.y, pairs[2] = raw.z, pairs[3] = raw.w;
  }
  /** The factor of the sums of a row. */
  __device__ float row_scale(int64_t) const { return 1.0f; }
  /** The factor of the sums of the group of `row` that k is in. */
  __device__ float group_scale(int64_t, int64_t) const { return 1.0f; }
};

/** The sums of each warp: of 16 TILES rows of B and 8 COLS rows of A. */
template <int TILES, int COLS> struct FewRowsShared {
  float sums[FEW_WARPS][COLS * 8][TILES * 16];
};

/** One warp's part: 16 TILES rows of B against 8 COLS rows of A. */
template <typename T, typename Weights, int TILES, int COLS> struct FewRows {
  static constexpr int RUN = Weights::RUN;
  static constexpr int STEP = 4 * RUN; /**< k of a step */
  static constexpr int RUN_BYTES = 16;

  const Weights w;
  const unsigned char *b[TILES][2]; /**< this lane's rows of B, at its run of k = 0 */
  const T *a[COLS];                 /**< this lane's rows of A, likewise */
  int b_row[TILES][2];
  float acc[TILES][COLS][4];

  /** Rows past the end are the last one once more; nobody stores their sums. */
  __device__ __forceinline__ FewRows(const GemmParams &p, Weights w, int64_t row_of_b,
                                     int64_t row_of_a, int64_t ldb)
      : w(w) {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int64_t row = row_of_b + i * 16 + half * 8 + g;
        b_row[i][half] = (int)min(row, p.n - 1);
        b[i][half] = static_cast<const unsigned char *>(p.b) + b_row[i][half] * ldb + t * RUN_BYTES;
      }
#pragma unroll
    for (int j = 0; j < COLS; j++) {
      const int64_t row = row_of_a + j * 8 + g;
      a[j] = static_cast<const T *>(p.a) + (row < p.m ? row : p.m - 1) * p.lda + t * RUN;
#pragma unroll
      for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int x = 0; x < 4; x++) acc[i][j][x] = 0;
    }
  }

  /** What is asked for before it is used: the weights of `STEPS` steps. */
  template <int STEPS> struct Ahead {
    uint4 weights[STEPS][TILES][2];
    float scales[STEPS][TILES][2];
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
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
      for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          ahead.scales[s][i][half] = w.group_scale(b_row[i][half], k + s * STEP);
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
                                           const float (&scales)[TILES][2],
                                           const uint4 (&rows)[COLS][RUN / 8]) {
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      uint32_t low[RUN / 2], high[RUN / 2];
      Weights::expand(weights[i][0], low);
      Weights::expand(weights[i][1], high);
      float group[COLS][4] = {};
#pragma unroll
      for (int x = 0; x < RUN / 4; x++) {
        const uint32_t fragment[4] = {low[2 * x], high[2 * x], low[2 * x + 1], high[2 * x + 1]};
#pragma unroll
        for (int j = 0; j < COLS; j++) {
          const uint4 &row = rows[j][x / 2];
          mma<T>(Weights::GROUPED ? group[j] : acc[i][j], fragment, x % 2 ? row.z : row.x,
                 x % 2 ? row.w : row.y);
        }
      }
      if constexpr (Weights::GROUPED) {
#pragma unroll
        for (int j = 0; j < COLS; j++)
#pragma unroll
          for (int x = 0; x < 4; x++) acc[i][j][x] += group[j][x] * scales[i][x / 2];
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
template <typename T, int TILES, int COLS, int STEPS, typename Weights>
__device__ __forceinline__ void few_rows(const GemmParams &p, Weights w, int64_t ldb) {
  using Shared = FewRowsShared<TILES, COLS>;
  SHARED(Shared, s);
  using Part = FewRows<T, Weights, TILES, COLS>;
  const int64_t row_of_b = (int64_t)blockIdx.x * (TILES * 16);
  const int64_t row_of_a = (int64_t)blockIdx.y * (COLS * 8);
  Part part(p, w, row_of_b, row_of_a, ldb);

  constexpr int BATCH = STEPS * Part::STEP;
  const int batches = (int)(p.k / BATCH);
  // Two batches at a time: one is on its way while the other is multiplied.
  typename Part::template Ahead<STEPS> ahead[2];
  int i = warp();
#pragma unroll
  for (int turn = 0; turn < 2; turn++)
    if (i + turn * FEW_WARPS < batches) part.ask(ahead[turn], (i + turn * FEW_WARPS) * BATCH, true);
  // Weights are nobody's to write; rows of A are the launch's before this one.
  ptx::wait_for_launch_before();
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
  for (int i = (int)threadIdx.x; i < COLS * 8 * TILES * 16; i += FEW_THREADS) {
    const int x = i % (TILES * 16), y = i / (TILES * 16);
    const int64_t row = row_of_a + y, col = row_of_b + x;
    if (row >= p.m) break;
    if (col >= p.n) continue;
    float sum = 0;
#pragma unroll
    for (int from = 0; from < FEW_WARPS; from++) sum += s.sums[from][y][x];
    epilogue.store(row, col, sum * part.w.row_scale(col));
  }
}

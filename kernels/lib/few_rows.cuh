/** Products of few rows, C (m,n) = A (m,k) B (n,k)^T with m <= 16, at the speed of reading B.
 *
 *  The tensor cores take B as their A operand, 16 of its rows at a time, and 8 rows of A as their
 *  B operand. Fragments want pairs of k that lie 8 apart; instead a lane takes the 16 bytes of B
 *  that it asked for, and the same stretch of k of A: another order of k in both, the same product.
 *
 *  Blocks stay, and take every gridDim.x-th tile of rows of B. Their warps divide k; the sums of a
 *  tile are added in warp order. A thread copies the weights that it will multiply, and nobody
 *  else's, to a ring of its own in shared memory, STAGES - 1 steps ahead and on into the next tile:
 *  nobody waits for anybody before the sums of a tile, and memory is never idle in between.
 *
 *  Rows of A go the same way to a multiprocessor as its copies, behind all that were asked for
 *  before: with a whole ring before them they came when that was full, 2.7 us after a block had
 *  begun (H200). bf16 waits for memory either way; of weights of few bits EARLY stages go first,
 *  then A, then the rest.
 *
 *  KEPT, a block has all rows of A in shared memory, copied once while its first weights are on
 *  their way, and makes their norm there if one is asked for; for weights of few bits, as digits of
 *  a byte (`kept_rows.cuh`), so that weights are multiplied as the bytes that they are. Otherwise
 *  lanes ask L1 and L2 for their stretch of A, some steps at once, while those before are
 *  multiplied: of the first tile every step is a trip to L2. */
#pragma once
#include "digit_sums.cuh"
#include "epilogue.cuh"
#include "kept_rows.cuh"
#include "mma.cuh"

constexpr int FEW_STAGES = 6; /**< of a ring: 48 KiB a block for 16 rows of B */

/** Weights stored as T: nothing to do. */
template <typename T> struct DenseWeights {
  static constexpr int RUN = 8;          /**< weights in 16 bytes */
  static constexpr bool GROUPED = false; /**< a scale for each 4 runs of a row, a step */
  static constexpr float OFFSET = 0;     /**< what `eight` gives is more by this */
  static constexpr bool ARE_BYTES = false; /**< has `bytes` too, and is multiplied so if KEPT */

  /** Weights 8 i to 8 i + 8 of a run: w[2 x] in the low half of pair x, w[2 x + 1] in the high. */
  static __device__ __forceinline__ void eight(uint4 run, int, uint32_t (&pairs)[4]) {
    pairs[0] = run.x, pairs[1] = run.y, pairs[2] = run.z, pairs[3] = run.w;
  }
  /** The factor of the sums of a row, as it is stored. */
  using Factor = float;
  __device__ Factor row_scale(int64_t) const { return 1.0f; }
};

/** Where row `half` 8 + g of a block's 16-row tile i of B is, from row_of_b on: of SwiGLU the first
 *  eight are gates, and the second eight their values. Rows past the end are the last once more. */
__device__ __forceinline__ int row_in_turn(const GemmParams &p, bool is_glu, int64_t row_of_b,
                                           int i, int half, int g) {
  const int n = (int)p.n, first = (int)row_of_b;
  if (!is_glu) return min(first + i * 16 + half * 8 + g, n - 1);
  return min(first / 2 + i * 8 + g, n / 2 - 1) + half * (n / 2);
}

/** The sums of each warp, of 16 TILES rows of B and ROWS rows of A, of a tile and of the next; and
 *  each thread's ring of runs of its rows of B. */
template <int TILES, int ROWS, int STAGES> struct FewRowsShared {
  using Sums = float[FEW_WARPS][ROWS][TILES * 16];
  Sums sums[2];
  uint4 ring[STAGES][TILES * 2][FEW_THREADS];
};

/** C of a tile of COLS rows of B, whose sums are there, from row_of_a on; by one warp. */
template <typename T, int ROWS, int COLS>
__device__ __forceinline__ void store_tile(const float (&sums)[FEW_WARPS][ROWS][COLS],
                                           const Epilogue<T> &epilogue, bool is_glu, int tile,
                                           int64_t row_of_a, int m) {
  auto whole = [&](int y, int x) {
    float sum = 0;
#pragma unroll
    for (int from = 0; from < FEW_WARPS; from++) sum += sums[from][y][x];
    return sum;
  };
  const int cols = is_glu ? COLS / 2 : COLS;
  const int64_t col0 = (int64_t)tile * cols;
  for (int i = lane(); i < m * cols; i += WARP) {
    const int x = i % cols, y = i / cols;
    const int64_t row = row_of_a + y, col = col0 + x;
    if (col >= epilogue.cols) continue;
    if (!is_glu) {
      epilogue.store(row, col, whole(y, x));
    } else {
      const int at = x / 8 * 16 + x % 8;
      epilogue.store(row, col, rounded::glu(whole(y, at), whole(y, at + 8)));
    }
  }
}

/** One warp's part: 16 TILES rows of B against 8 COLS rows of A. */
template <typename T, typename Weights, int TILES, int COLS, int STAGES, bool KEPT> struct FewRows {
  static constexpr int RUN = Weights::RUN;
  static constexpr int STEP = 4 * RUN; /**< k of a step */
  static constexpr int RUN_BYTES = 16;
  static constexpr bool BY_DIGITS = KEPT && Weights::ARE_BYTES;
  /** A is asked for ahead, unless it is KEPT, or too much for registers. */
  static constexpr bool AHEAD = !KEPT && COLS * RUN <= 32;
  /** Steps whose A and scales are asked for at once, while as many before them are multiplied. */
  static constexpr int AT_ONCE = AHEAD ? 32 / (COLS * RUN) : Weights::GROUPED && KEPT ? 2 : 1;
  using Shared = FewRowsShared<TILES, KEPT ? MOST_KEPT : COLS * 8, STAGES>;
  using Sums = typename Shared::Sums;

  const GemmParams &p;
  const Weights w;
  const int64_t ldb; /**< bytes */
  const bool is_glu;
  const int tiles, steps; /**< of B, and of k */
  float acc[TILES][COLS][4];
  DigitSums<Weights> digit_sums; /**< or these, BY_DIGITS */

  /** What is copied next: a tile, a step of this warp in it, and this lane's runs of B there. */
  struct {
    int tile, step;
    const unsigned char *b[TILES][2];
  } next;
  /** The first groups, and the factors, of this lane's rows of B in the tile that is multiplied. */
  uint32_t groups[TILES][2];
  typename Weights::Factor factors[TILES][2];
  const T *rows[COLS]; /**< this lane's rows of A, at its run of k = 0 */
  const unsigned char *digits; /**< or its digit, likewise */
  float unit;                  /**< of what this lane has sums of */

  /** What is asked for of a step: this lane's runs of A, if AHEAD, and scales as they are stored:
   *  widening one would wait for it. */
  struct Asked {
    uint4 a[COLS][RUN / 8];
    bf16 scales[TILES][2];
  };

  __device__ __forceinline__ FewRows(const GemmParams &p, Weights w, int64_t ldb)
      : p(p), w(w), ldb(ldb),
        // Of more rows of A than eight, SwiGLU is for tiles: there are no registers left here.
        is_glu(COLS == 1 && p.activation == SWIGLU),
        tiles((int)((p.n + TILES * 16 - 1) / (TILES * 16))), steps((int)((p.k + STEP - 1) / STEP)) {
    // Of a short k, some warps have no step.
    find(warp() < steps ? (int)blockIdx.x : tiles);
  }

  /** f(row, i, half) for each row of B that is this lane's in a tile. */
  template <typename F> __device__ __forceinline__ void each_row(int tile, F f) const {
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        f(row_in_turn(p, is_glu, tile * (TILES * 16), i, half, lane() / 4), i, half);
  }

  /** Makes a tile the next to be copied, if there is such. */
  __device__ __forceinline__ void find(int tile) {
    next.tile = tile, next.step = warp();
    if (tile >= tiles) return;
    each_row(tile, [&](int64_t row, int i, int half) {
      next.b[i][half] = static_cast<const unsigned char *>(p.b) + row * ldb +
                        (next.step * 4 + lane() % 4) * RUN_BYTES;
      if constexpr (Weights::GROUPED) {
        // One warp for all: a lane for each 64 bytes, of rows of up to 128 groups.
        const int at = lane() % 4 * 32;
        if (warp() == 0 && at < steps) ptx::prefetch(w.scales + w.first_group(row) + at);
      }
    });
  }

  /** Has this lane read A from `from`, of which there are m rows; those past the end are the last
   *  once more. */
  template <typename Stride>
  __device__ __forceinline__ void read_from(const T *from, Stride stride, int m) {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int j = 0; j < COLS; j++) rows[j] = from + min(j * 8 + g, m - 1) * stride + t * RUN;
  }
  /** Has it read the digits of the rows that are kept. */
  template <typename Kept> __device__ __forceinline__ void read_digits(Kept &kept) {
    digits = kept.own_digits(p), unit = kept.own_unit(p);
  }
  __device__ __forceinline__ uint4 load(int step, int j, int x) const {
    const uint4 zero = {0, 0, 0, 0};
    const T *const from = rows[j] + step * STEP + x * 8;
    return is_inside(step) ? *reinterpret_cast<const uint4 *>(from) : zero;
  }
  /** Asks for what goes with AT_ONCE steps of this warp, from `step` on, if there are such. */
  __device__ __forceinline__ void ask(Asked (&asked)[AT_ONCE], int step) const {
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++, step += FEW_WARPS) {
      if (step >= steps) break;
      if constexpr (AHEAD) {
#pragma unroll
        for (int j = 0; j < COLS; j++)
#pragma unroll
          for (int x = 0; x < RUN / 8; x++) asked[u].a[j][x] = load(step, j, x);
      }
      if constexpr (Weights::GROUPED) {
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
          for (int half = 0; half < 2; half++)
            asked[u].scales[i][half] = w.scales[groups[i][half] + (uint32_t)step];
      }
    }
  }

  /** False for a lane whose run of a step lies past the end of the row. */
  __device__ __forceinline__ bool is_inside(int step) const {
    return Weights::GROUPED || step * STEP + lane() % 4 * RUN < (int)p.k;
  }

  /** Asks for this thread's weights of the next step that nobody has asked for, if there is one. */
  __device__ __forceinline__ void copy(Shared &s, int stage) {
    if (next.tile < tiles) {
#pragma unroll
      for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          ptx::cp_async16_streamed(&s.ring[stage][i * 2 + half][threadIdx.x], next.b[i][half],
                                   is_inside(next.step));
          next.b[i][half] += FEW_WARPS * 4 * RUN_BYTES;
        }
      next.step += FEW_WARPS;
      if (next.step >= steps) find(next.tile + (int)gridDim.x);
    }
    ptx::cp_async_commit();
  }

  /** Begins the sums of a tile; past the last, of its last rows again. */
  __device__ __forceinline__ void begin(int tile) {
    each_row(tile, [&](int64_t row, int i, int half) {
      if constexpr (Weights::GROUPED) groups[i][half] = w.first_group(row);
      factors[i][half] = w.row_scale(row);
    });
    digit_sums.clear();
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int j = 0; j < COLS; j++)
#pragma unroll
        for (int x = 0; x < 4; x++) acc[i][j][x] = 0;
  }

  /** Adds the products of a step, whose weights are there. */
  __device__ __forceinline__ void multiply(const Shared &s, int stage, int step, const Asked &asked,
                                           const uint32_t (&ones)[4]) {
    uint4 runs[TILES][2];
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) runs[i][half] = s.ring[stage][i * 2 + half][threadIdx.x];
    if constexpr (BY_DIGITS) {
      static_assert(TILES == 1 && COLS == 1, "eight columns are two rows of A");
      const float scales[2] = {widen(asked.scales[0][0]), widen(asked.scales[0][1])};
      digit_sums.add(runs[0], digits + step * STEP, scales);
    } else {
      multiply_elements(runs, step, asked, ones);
    }
  }
  __device__ __forceinline__ void multiply_elements(const uint4 (&runs)[TILES][2], int step,
                                                    Asked asked, const uint32_t (&ones)[4]) {
    float group[TILES][COLS][4] = {}, offset[COLS][4] = {};
#pragma unroll
    for (int x = 0; x < RUN / 8; x++) {
      if constexpr (!AHEAD) {
#pragma unroll
        for (int j = 0; j < COLS; j++) asked.a[j][x] = load(step, j, x);
      }
      // The sums of A itself, if weights have an offset to be taken off.
      if constexpr (Weights::OFFSET != 0) {
#pragma unroll
        for (int j = 0; j < COLS; j++) multiply(offset[j], ones, ones, asked.a[j][x]);
      }
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        uint32_t low[4], high[4];
        Weights::eight(runs[i][0], x, low);
        Weights::eight(runs[i][1], x, high);
        const uint32_t first[4] = {low[0], high[0], low[1], high[1]};
        const uint32_t second[4] = {low[2], high[2], low[3], high[3]};
#pragma unroll
        for (int j = 0; j < COLS; j++)
          multiply(Weights::GROUPED ? group[i][j] : acc[i][j], first, second, asked.a[j][x]);
      }
    }
    if constexpr (Weights::GROUPED) {
#pragma unroll
      for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int j = 0; j < COLS; j++)
#pragma unroll
          for (int x = 0; x < 4; x++)
            acc[i][j][x] += (group[i][j][x] - Weights::OFFSET * offset[j][x % 2]) *
                            widen(asked.scales[i][x / 2]);
    }
  }
  /** 32 of k. */
  static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&first)[4],
                                                  const uint32_t (&second)[4], const uint4 &a) {
    mma<T>(sums, first, a.x, a.y);
    mma<T>(sums, second, a.z, a.w);
  }

  /** Leaves the sums of rows of A below m. */
  __device__ __forceinline__ void put(Sums &sums, int m) const {
    if constexpr (BY_DIGITS)
      digit_sums.each(m, [&](int row, int half, float sum) {
        sums[warp()][row][half * 8 + lane() / 4] = sum * unit * widen(factors[0][half]);
      });
    else
      put_elements(sums, m);
  }
  __device__ __forceinline__ void put_elements(Sums &sums, int m) const {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int j = 0; j < COLS; j++)
#pragma unroll
      for (int x = 0; x < 2; x++) {
        const int row = j * 8 + 2 * t + x;
        if (row >= m) continue;
#pragma unroll
        for (int i = 0; i < TILES; i++) {
          sums[warp()][row][i * 16 + g] = acc[i][j][x] * widen(factors[i][0]);
          sums[warp()][row][i * 16 + g + 8] = acc[i][j][x + 2] * widen(factors[i][1]);
        }
      }
  }

};

/** The kernel's body: a block takes every gridDim.x-th 16 TILES rows of B, and 8 COLS rows of A.
 *  `ldb` in bytes; k is a multiple of a run; k and n are below 2^30. */
template <typename T, int TILES, int COLS, int STAGES, bool KEPT, typename Weights>
__device__ __forceinline__ void few_rows(const GemmParams &p, Weights w, int64_t ldb) {
  using Part = FewRows<T, Weights, TILES, COLS, STAGES, KEPT>;
  using Shared = typename Part::Shared;
  SHARED(Shared, s);
  auto &kept = reinterpret_cast<KeptShared<Shared, T, Weights> &>(s);
  const int64_t row_of_a = (int64_t)blockIdx.y * (COLS * 8);
  const int m = min((int)(p.m - row_of_a), COLS * 8);
  Part part(p, w, ldb);
  if constexpr (KEPT) kept.ask(p);
  constexpr int EARLY = Weights::ARE_BYTES ? 2 : STAGES - 1;
  int copied = 0;
  auto copy = [&](int end) {
#pragma unroll 1
    for (; copied < end; copied++) part.copy(s, copied);
  };
  copy(min(EARLY, STAGES - 1));
  constexpr int AT_ONCE = Part::AT_ONCE;
  typename Part::Asked asked[AT_ONCE], next[AT_ONCE];
  part.begin((int)blockIdx.x);
  if constexpr (KEPT) part.ask(next, warp());
  // Weights and their scales are nobody's to write; rows of A are the launch's before this one.
  ptx::wait_for_launch_before();
  auto copy_rest = [&] { copy(STAGES - 1); };
  if constexpr (KEPT) kept.template make<STAGES - 1>(p, copy_rest);
  if constexpr (Part::BY_DIGITS) {
    part.read_digits(kept);
  } else if constexpr (KEPT) {
    part.read_from(kept.rows(p), kept.stride(p), (int)p.m);
  } else {
    part.read_from(static_cast<const T *>(p.a) + row_of_a * p.lda, p.lda, m);
    part.ask(next, warp());
    copy_rest();
  }
  const Epilogue<T> epilogue(p);
  // Each in a register of its own, or four copies are made for every product.
  uint32_t ones[4];
#pragma unroll
  for (int i = 0; i < 4; i++) ones[i] = ptx::opaque(pack2<T>(1, 1));
  int stage = 0, to = STAGES - 1, turn = 0;
  for (int tile = (int)blockIdx.x; tile < part.tiles; tile += (int)gridDim.x, turn++) {
    int step = warp();
#pragma unroll 1
    while (step < part.steps) {
#pragma unroll
      for (int u = 0; u < AT_ONCE; u++) asked[u] = next[u];
      part.ask(next, step + AT_ONCE * FEW_WARPS);
#pragma unroll
      for (int u = 0; u < AT_ONCE; u++, step += FEW_WARPS) {
        if (step >= part.steps) break;
        ptx::cp_async_wait<STAGES - 2>();
        part.copy(s, to);
        part.multiply(s, stage, step, asked[u], ones);
        stage = stage + 1 < STAGES ? stage + 1 : 0, to = to + 1 < STAGES ? to + 1 : 0;
      }
    }
    // The sums of the tile before may still be read; those before it no more.
    auto &sums = s.sums[turn % 2];
    part.put(sums, m);
    part.begin(tile + (int)gridDim.x);
    part.ask(next, warp());
    __syncthreads();
    // One warp adds them, while the others go on.
    if (warp() == turn % FEW_WARPS) store_tile(sums, epilogue, part.is_glu, tile, row_of_a, m);
  }
}

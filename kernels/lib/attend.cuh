/** softmax(scale * Q K^T + ...) V for one head, twice: tiles on tensor cores, and one warp per row.
 *
 *  `Keys` says what the rows are attended to: `count`; `k(j)` and `v(j)`, where key j's features
 *  begin, and `both(j, k, v)`, which finds them once; and `row(r)`, what row r sees of them:
 *  `needs(begin, end)`, false if none of those, `sees(begin, end)`, true if all of those,
 *  `is_biased()`, and `score(j, x)`, the scaled score x in units of log 2 after bias and mask. */
#pragma once
#include "mma.cuh"
#include "reduce.cuh"
#include "softmax.cuh"

constexpr int TILE_ROWS = 64, TILE_KEYS = 64, ATTEND_THREADS = 128;
/** Rows of a warp; keys of a tile that is nearly empty. */
constexpr int WARP_ROWS = 16, FEW_KEYS = 16;

/** Tiles of `count` keys. */
__device__ __forceinline__ int key_tiles(int count) {
  return (count + TILE_KEYS - 1) / TILE_KEYS;
}

/** 64 rows, D wide: 64 or 128, at least head_dim. */
template <typename T, int D> using Tile = SwizzledTile<T, 64, D>;

/** Rows of D features by `row(i)`, zeros where it is null and beyond `head_dim`. */
template <typename T, int ROWS, int D, typename Row>
__device__ __forceinline__ void load_rows(SwizzledTile<T, ROWS, D> &tile, int head_dim, Row row) {
  for (int i = threadIdx.x; i < ROWS * D / 8; i += ATTEND_THREADS) {
    int r = i / (D / 8), chunk = i % (D / 8);
    const T *from = row(r);
    bool valid = from != nullptr && chunk * 8 < head_dim;
    ptx::cp_async16(tile.chunk(r, chunk), valid ? from + chunk * 8 : from, valid);
  }
}

/** Rows of a head in global memory, `stride` elements from one to the next. */
template <typename T> struct HeadRows {
  T *first;
  int64_t stride;
  int count;

  __device__ __forceinline__ T *operator()(int r) const {
    return r < count ? first + r * stride : nullptr;
  }
};

/** Those of a head, zeros beyond the last: a thread's are a fixed distance apart. */
template <typename T, int ROWS, int D>
__device__ __forceinline__ void load_rows(SwizzledTile<T, ROWS, D> &tile, int head_dim,
                                          const HeadRows<const T> &rows) {
  constexpr int CHUNKS = D / 8, STEP = ATTEND_THREADS / CHUNKS;
  static_assert(STEP % 8 == 0, "a thread's rows are permuted alike");
  const int r = (int)threadIdx.x / CHUNKS, chunk = (int)threadIdx.x % CHUNKS;
  const T *from = rows.first + r * rows.stride + chunk * 8;
  T *to = tile.chunk(r, chunk);
#pragma unroll
  for (int i = 0; i < ROWS; i += STEP)
    ptx::cp_async16(to + i * D, from + i * rows.stride, r + i < rows.count && chunk * 8 < head_dim);
}

/** A warp's sixteen rows of sums, times `factor` of this lane's two, go to its rows of a tile that
 *  nobody else reads. */
template <typename T, int D>
__device__ __forceinline__ void put_rows(Tile<T, D> &tile, const float (&o)[D / 8][4],
                                         const float (&factor)[2]) {
  const int l = lane(), row = warp() * WARP_ROWS + l / 4;
  // What stands there was read by other lanes.
  __syncwarp();
#pragma unroll
  for (int i = 0; i < D / 8; i++) {
    // Rows that are eight apart are permuted alike.
    T *to = tile.chunk(row, i) + l % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++)
      *reinterpret_cast<uint32_t *>(to + half * 8 * D) =
          pack2<T>(o[i][half * 2] * factor[half], o[i][half * 2 + 1] * factor[half]);
  }
  __syncwarp();
}

/** The same, and by way of it to `output(r)` where that is not null, 16 bytes a lane. */
template <typename T, int D, typename Output>
__device__ __forceinline__ void store_rows(Tile<T, D> &tile, const float (&o)[D / 8][4],
                                           const float (&factor)[2], int head_dim, Output output) {
  put_rows(tile, o, factor);
  const int l = lane(), first = warp() * WARP_ROWS;
#pragma unroll
  for (int i = l; i < WARP_ROWS * D / 8; i += WARP) {
    const int r = first + i / (D / 8), chunk = i % (D / 8);
    T *to = output(r);
    if (to && chunk * 8 < head_dim)
      *reinterpret_cast<Pack<T> *>(to + chunk * 8) =
          *reinterpret_cast<const Pack<T> *>(tile.chunk(r, chunk));
  }
}

/** To rows of a head: a lane's are a fixed distance apart. */
template <typename T, int D>
__device__ __forceinline__ void store_rows(Tile<T, D> &tile, const float (&o)[D / 8][4],
                                           const float (&factor)[2], int head_dim,
                                           const HeadRows<T> &output) {
  constexpr int CHUNKS = D / 8, STEP = WARP / CHUNKS;
  put_rows(tile, o, factor);
  const int r = warp() * WARP_ROWS + lane() / CHUNKS, chunk = lane() % CHUNKS;
  T *to = output.first + r * output.stride + chunk * 8;
#pragma unroll
  for (int i = 0; i < WARP_ROWS; i += STEP)
    if (r + i < output.count && chunk * 8 < head_dim)
      *reinterpret_cast<Pack<T> *>(to + i * output.stride) =
          *reinterpret_cast<const Pack<T> *>(tile.chunk(r + i, chunk));
}

/** x (16, 8 N) += the products of the warp's sixteen rows with 8 N other ones, from `at` on. */
template <typename T, int N, int ROWS, int D>
__device__ __forceinline__ void products(float (&x)[N][4], Tile<T, D> &own,
                                         SwizzledTile<T, ROWS, D> &other, int at = 0) {
  const int l = lane(), first = warp() * WARP_ROWS;
#pragma unroll
  for (int c = 0; c < D / 8; c += 2) {
    uint32_t a[4];
    own.load_a(a, first, c, l);
#pragma unroll
    for (int j = 0; j < N / 2; j++) {
      uint32_t b[4];
      other.load_b(b, at + j * 16, c, l);
      mma<T>(x[2 * j], a, b[0], b[1]);
      mma<T>(x[2 * j + 1], a, b[2], b[3]);
    }
  }
}

/** Weights of a warp's sixteen rows for sixteen others, an A operand that is the sum of two T:
 *  rounding them then adds nothing to rounding the sums. */
template <typename T> struct TwoWeights {
  uint32_t high[4], low[4];

  /** Weights 16 j .. + 16 out of 8 N. */
  template <int N> __device__ __forceinline__ void set(const float (&w)[N][4], int j) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float x = w[2 * j + e / 2][e % 2 * 2], y = w[2 * j + e / 2][e % 2 * 2 + 1];
      high[e] = pack2<T>(x, y);
      low[e] = pack2<T>(x - low2<T>(high[e]), y - high2<T>(high[e]));
    }
  }
  __device__ __forceinline__ void multiply(float (&sums)[4], uint32_t b0, uint32_t b1) const {
    mma<T>(sums, high, b0, b1);
    mma<T>(sums, low, b0, b1);
  }
};

/** sums (16, D) += w (16, 8 N) times rows of `other`, from `at` on. */
template <typename T, int N, int ROWS, int D>
__device__ __forceinline__ void add_rows(float (&sums)[D / 8][4], const float (&w)[N][4],
                                         SwizzledTile<T, ROWS, D> &other, int at = 0) {
#pragma unroll
  for (int j = 0; j < N / 2; j++) {
    TwoWeights<T> weights;
    weights.set(w, j);
#pragma unroll
    for (int c = 0; c < D / 8; c += 2) {
      uint32_t b[4];
      other.load_b_trans(b, at + j * 16, c, lane());
      weights.multiply(sums[c], b[0], b[1]);
      weights.multiply(sums[c + 1], b[2], b[3]);
    }
  }
}

/** The largest score of this lane's row `half` in a warp's sixteen rows. */
template <int N> __device__ __forceinline__ float largest(const float (&x)[N][4], int half) {
  float most = -INFINITY;
#pragma unroll
  for (int j = 0; j < N; j++)
#pragma unroll
    for (int e = half * 2; e < half * 2 + 2; e++) most = fmaxf(most, x[j][e]);
  most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
  return fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
}

/** The scores of that row become weights; this lane's sum of them. */
template <int N>
__device__ __forceinline__ float weigh(float (&x)[N][4], int half, float unit, float base) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < N; j++)
#pragma unroll
    for (int e = half * 2; e < half * 2 + 2; e++) {
      x[j][e] = ptx::exp2(fmaf(x[j][e], unit, -base));
      sum += x[j][e];
    }
  return sum;
}

/** What a row's output is multiplied by: its four lanes bring their sums together. */
__device__ __forceinline__ float norm_of_row(RunningSoftmax &running) {
  running.sum += __shfl_xor_sync(ALL_LANES, running.sum, 1);
  running.sum += __shfl_xor_sync(ALL_LANES, running.sum, 2);
  return running.norm();
}

/** Nothing is masked, and nothing added to a score. */
struct EveryScore {
  __device__ __forceinline__ float operator()(int, int, float x) const { return x; }
};

/** Sixteen rows of a warp on their way through the keys. */
template <typename T, int D> struct WarpRows {
  RunningSoftmax running[2]; /**< of rows lane / 4 and lane / 4 + 8 */
  float o[D / 8][4] = {};

  /** Takes KEYS keys of a tile, from `at` on, and their values; `score(half, j, x)` is that of key
   *  j for this lane's row `half`, whose product is x. Scores times `unit` are in units of log 2:
   *  they are multiplied where their exponential is taken, in the same instruction. */
  template <int KEYS = TILE_KEYS, typename Score>
  __device__ __forceinline__ void take(Tile<T, D> &q, Tile<T, D> &k, Tile<T, D> &v, float unit,
                                       Score score, int at = 0) {
    float p[KEYS / 8][4] = {}, most[2];
    scores(p, most, q, k, score, at);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float factor = running[half].raise(most[half] * unit);
      running[half].sum += weigh(p, half, unit, running[half].base());
#pragma unroll
      for (int i = 0; i < D / 8; i++) o[i][half * 2] *= factor, o[i][half * 2 + 1] *= factor;
    }
    add_rows(o, p, v, at);
  }

  /** As `take` of the first, but as if others had taken the tile and then been merged, to the bit:
   *  for keys that blocks may share. It takes more registers. */
  template <int KEYS = TILE_KEYS, typename Score>
  __device__ __forceinline__ void take_apart(Tile<T, D> &q, Tile<T, D> &k, Tile<T, D> &v,
                                             float unit, Score score) {
    float p[KEYS / 8][4] = {}, most[2];
    scores(p, most, q, k, score);
    MergeFactors factors[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      RunningSoftmax tile;
      tile.raise(most[half] * unit);
      tile.sum = weigh(p, half, unit, tile.base());
      factors[half] = running[half].merge(tile.max, tile.sum);
    }
    TwoWeights<T> weights[KEYS / 16];
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) weights[j].set(p, j);
    // Chunks of columns at once: a sum waits for what was added to it before, others do not.
    constexpr int COLS = 4;
#pragma unroll
    for (int c = 0; c < D / 8; c += COLS) {
      float sums[COLS][4] = {};
#pragma unroll
      for (int j = 0; j < KEYS / 16; j++)
#pragma unroll
        for (int i = 0; i < COLS; i += 2) {
          uint32_t b[4];
          v.load_b_trans(b, j * 16, c + i, lane());
          weights[j].multiply(sums[i], b[0], b[1]);
          weights[j].multiply(sums[i + 1], b[2], b[3]);
        }
#pragma unroll
      for (int i = 0; i < COLS; i++) merge(o[c + i], sums[i], factors);
    }
  }

  /** Takes what others have come to on later keys. */
  __device__ __forceinline__ void take(const WarpRows &later) {
    MergeFactors factors[2];
#pragma unroll
    for (int half = 0; half < 2; half++)
      factors[half] = running[half].merge(later.running[half].max, later.running[half].sum);
#pragma unroll
    for (int i = 0; i < D / 8; i++) merge(o[i], later.o[i], factors);
  }

  /** The rows go to `output(r)`, by way of those of the queries. */
  template <typename Output>
  __device__ __forceinline__ void store(Tile<T, D> &q, int head_dim, Output output) {
    float norm[2];
#pragma unroll
    for (int half = 0; half < 2; half++) norm[half] = norm_of_row(running[half]);
    store_rows(q, o, norm, head_dim, output);
  }

private:
  /** x (16, KEYS): scores, and the largest one of each of this lane's rows. */
  template <int N, typename Score>
  __device__ __forceinline__ void scores(float (&x)[N][4], float (&most)[2], Tile<T, D> &q,
                                         Tile<T, D> &k, Score score, int at = 0) const {
    products(x, q, k, at);
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int j = 0; j < N; j++)
#pragma unroll
        for (int e = half * 2; e < half * 2 + 2; e++)
          x[j][e] = score(half, at + j * 8 + lane() % 4 * 2 + e % 2, x[j][e]);
      most[half] = largest(x, half);
    }
  }
  static __device__ __forceinline__ void merge(float (&o)[4], const float (&later)[4],
                                               const MergeFactors (&factors)[2]) {
#pragma unroll
    for (int e = 0; e < 4; e++)
      o[e] = fmaf(later[e], factors[e / 2].other, o[e] * factors[e / 2].own);
  }
};

template <typename T, int D> struct AttendShared {
  Tile<T, D> q, k[2], v[2];
};

/** 64 keys and their values on their way to shared memory. A warp copies sixteen of them; where
 *  they are each lane finds for one key (the upper half of the warp for its value), and the others
 *  ask it: finding a key may take a division and a read. */
template <typename T, int D, typename Keys> struct KeyCopies {
  /** Lanes of a key, keys that a warp copies at once, and the whole block. */
  static constexpr int LANES = D / 8, AT_ONCE = WARP / LANES, STEP = ATTEND_THREADS / LANES;
  static_assert(STEP % 8 == 0, "a thread's rows are permuted alike");
  const Keys &keys;
  const int head_dim;

  /** The line that this lane finds, of key tile `tile`, or of the last key if there is none. */
  __device__ __forceinline__ const T *find(int tile) const {
    const int i = lane() % 16, r = i / AT_ONCE * STEP + warp() * AT_ONCE + i % AT_ONCE;
    const T *k, *v;
    keys.both(min(tile * TILE_KEYS + r, keys.count - 1), k, v);
    return lane() < 16 ? k : v;
  }
  __device__ __forceinline__ void copy(Tile<T, D> &k, Tile<T, D> &v, int tile,
                                       const T *found) const {
    const int r = warp() * AT_ONCE + lane() / LANES, chunk = lane() % LANES;
    T *const to_k = k.chunk(r, chunk), *const to_v = v.chunk(r, chunk);
    const uint64_t line = reinterpret_cast<uint64_t>(found);
#pragma unroll
    for (int i = 0; i < TILE_KEYS / STEP; i++) {
      const int from = i * AT_ONCE + lane() / LANES;
      const T *key = reinterpret_cast<const T *>(__shfl_sync(ALL_LANES, line, from));
      const T *value = reinterpret_cast<const T *>(__shfl_sync(ALL_LANES, line, from + 16));
      const bool valid = tile * TILE_KEYS + r + i * STEP < keys.count && chunk * 8 < head_dim;
      ptx::cp_async16(to_k + i * STEP * D, key + chunk * 8, valid);
      ptx::cp_async16(to_v + i * STEP * D, value + chunk * 8, valid);
    }
  }
};

/** Takes 64 rows by 4 warps through key tiles begin .. end, the next one copied while this one is
 *  used; APART as `WarpRows::take_apart`, else all rows see the same keys. `after(tile)` follows
 *  each tile that rows of the warp see. */
template <bool APART, typename T, int D, typename Keys, typename After>
__device__ __forceinline__ void attend_tiles(WarpRows<T, D> &mine, AttendShared<T, D> &s,
                                             const Keys &keys, int head_dim, float scale,
                                             const HeadRows<const T> &queries, int begin, int end,
                                             After after) {
  const int l = lane(), first = warp() * WARP_ROWS;
  const KeyCopies<T, D, Keys> copies{keys, head_dim};
  load_rows(s.q, head_dim, queries);
  const T *found = copies.find(begin);
  auto load = [&](int tile) {
    if (tile < end) copies.copy(s.k[tile % 2], s.v[tile % 2], tile, found);
    ptx::cp_async_commit();
    // The one after it: nobody waits for that.
    if (tile + 1 < end) found = copies.find(tile + 1);
  };

  load(begin);
  const auto own = keys.row(first + l % WARP_ROWS);
  const decltype(own) rows[2] = {keys.row(first + l / 4), keys.row(first + l / 4 + 8)};
  const float to_log2 = scale * LOG2_E, unit = own.is_biased() ? 1.0f : to_log2;
  const float in_unit = own.is_biased() ? to_log2 : 1.0f;
  for (int tile = begin; tile < end; tile++) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    load(tile + 1);
    const int key0 = tile * TILE_KEYS, key1 = min(key0 + TILE_KEYS, keys.count);
    // Not computed if no row of this warp sees any of it.
    if (first >= queries.count || !__any_sync(ALL_LANES, own.needs(key0, key1))) continue;
    auto score = [&](int half, int j, float x) {
      return key0 + j < keys.count ? rows[half].score(key0 + j, x * in_unit) : -INFINITY;
    };
    auto &k = s.k[tile % 2], &v = s.v[tile % 2];
    const bool is_whole = key1 - key0 == TILE_KEYS && own.sees(key0, key1) && !own.is_biased();
    const bool is_plain = __all_sync(ALL_LANES, is_whole);
    // Few keys, as the 257th of an image, would cost as much as 64.
    if constexpr (!APART) {
      if (is_plain)
        mine.take(s.q, k, v, unit, EveryScore());
      else
#pragma unroll 1
        for (int at = 0; at < key1 - key0; at += FEW_KEYS)
          mine.template take<FEW_KEYS>(s.q, k, v, unit, score, at);
    } else if (is_plain) {
      mine.take_apart(s.q, k, v, unit, EveryScore());
    } else if (key1 - key0 <= FEW_KEYS) {
      mine.template take_apart<FEW_KEYS>(s.q, k, v, unit, score);
    } else {
      mine.take_apart(s.q, k, v, unit, score);
    }
    after(tile);
  }
}

/** 64 rows by 4 warps through all keys. */
template <typename T, int D, typename Keys>
__device__ __forceinline__ void attend_tile(AttendShared<T, D> &s, const Keys &keys, int head_dim,
                                            float scale, const HeadRows<const T> &queries,
                                            const HeadRows<T> &outputs) {
  WarpRows<T, D> mine;
  attend_tiles<false>(mine, s, keys, head_dim, scale, queries, 0, key_tiles(keys.count),
                      [](int) {});
  mine.store(s.q, head_dim, outputs);
}

/** Features of o that one launch of `attend_row` computes: 8 a lane. */
constexpr int ROW_FEATURES = 8 * WARP;

/** One row by one warp, any head_dim and type: a key a lane for the scores, features a lane for o.
 *  Features `feature0 ..` of o only; wider heads take several blocks. */
template <typename T, typename Keys>
__device__ __forceinline__ void attend_row(T *o, const T *q, const Keys &keys, int head_dim,
                                           int feature0, float scale) {
  const int l = lane();
  const auto row = keys.row(0);
  RunningSoftmax running;
  float acc[ROW_FEATURES / WARP] = {};
  for (int begin = 0; begin < keys.count; begin += WARP) {
    const int end = min(begin + WARP, keys.count);
    float x = -INFINITY;
    if (begin + l < end) {
      const T *k = keys.k(begin + l);
      float dot = 0;
      for (int i = 0; i < head_dim; i++) dot = fmaf(widen(q[i]), widen(k[i]), dot);
      x = row.score(begin + l, dot * (scale * LOG2_E));
    }
    const float factor = running.raise(warp_max(x));
    const float weight = running.weight(x);
    running.sum += warp_sum(weight);
    for (float &a : acc) a *= factor;
    for (int j = 0; j < end - begin; j++) {
      const float w = __shfl_sync(ALL_LANES, weight, j);
      // What is masked is not read: it may be anything.
      if (w == 0.0f) continue;
      const T *v = keys.v(begin + j);
#pragma unroll
      for (int i = 0; i < ROW_FEATURES / WARP; i++) {
        int feature = feature0 + i * WARP + l;
        if (feature < head_dim) acc[i] = fmaf(w, widen(v[feature]), acc[i]);
      }
    }
  }
  const float factor = running.norm();
#pragma unroll
  for (int i = 0; i < ROW_FEATURES / WARP; i++) {
    int feature = feature0 + i * WARP + l;
    if (feature < head_dim) o[feature] = narrow<T>(acc[i] * factor);
  }
}

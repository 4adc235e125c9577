/** The two launches of `attention_backward`, each twice: tiles on tensor cores, and one warp per
 *  row. What a head's rows are and which keys a query sees is `BackwardHead`'s to say. */
#pragma once
#include "../attention_backward.h"
#include "attend.cuh"

/** Rows of the other side that a block works on at a time. */
constexpr int OTHER_ROWS = 32;

/** Rows begin .. end. */
struct RowRange {
  int begin, end;
};

/** One head of one batch entry. */
template <typename T> struct BackwardHead {
  const AttentionBackwardParams &p;
  int head, queries, keys, first_len; /**< first_len: keys of the first segment */
  int64_t q_row, k_rows[2];           /**< the entry's first rows */
  int64_t all_rows;                   /**< queries of all entries */
  float slope;                        /**< in units of log 2 */

  /** Of sequence `entry` if there are such, whose rows do not have one length. */
  __device__ BackwardHead(const AttentionBackwardParams &p, int64_t entry, int head)
      : p(p), head(head), queries((int)p.q_len), keys((int)(p.k0_len + p.k1_len)),
        first_len((int)p.k0_len), q_row(entry * p.q_len),
        k_rows{entry * p.k0_len, entry * p.k1_len}, all_rows(p.batch * p.q_len),
        slope(p.slopes ? p.slopes[head] * LOG2_E : 0.0f) {
    if (!p.begin) return;
    q_row = k_rows[0] = p.begin[entry];
    queries = keys = first_len = p.begin[entry + 1] - p.begin[entry];
    all_rows = p.q_len;
  }

  __device__ int64_t column() const { return (int64_t)head * p.head_dim; }
  /** True of a query that averages values whatever the keys are. */
  __device__ bool averages(int i) const { return i < queries && p.spans && p.spans[i].uniform; }
  /** The keys that query i sees. */
  __device__ RowRange sees(int i) const {
    if (i >= queries) return {0, 0};
    if (p.spans) return {p.spans[i].begin * p.latents, p.spans[i].end * p.latents};
    return {0, p.begin ? i + 1 : keys};
  }

  /** Features of a query, none of one whose scores are to be equal. */
  __device__ const T *q(int i) const {
    if (i >= queries || averages(i)) return nullptr;
    return static_cast<const T *>(p.q) + (q_row + i) * p.q_stride + column();
  }
  __device__ const T *d_o(int i) const {
    if (i >= queries) return nullptr;
    return static_cast<const T *>(p.d_o) + (q_row + i) * p.do_stride + column();
  }
  __device__ T *dq(int i) const {
    if (i >= queries) return nullptr;
    return static_cast<T *>(p.dq) + (q_row + i) * p.dq_stride + column();
  }
  __device__ AttendedRow *statistics(int i) const {
    return p.statistics + head * all_rows + q_row + i;
  }
  /** Key j of the one or the other segment. */
  template <typename V>
  __device__ V *of_key(int j, V *first, V *second, int64_t stride0, int64_t stride1) const {
    if (j >= keys) return nullptr;
    return j < first_len ? first + (k_rows[0] + j) * stride0 + column()
                         : second + (k_rows[1] + j - first_len) * stride1 + column();
  }
  __device__ const T *k(int j) const {
    return of_key(j, static_cast<const T *>(p.k0), static_cast<const T *>(p.k1), p.kv0_stride,
                  p.kv1_stride);
  }
  __device__ const T *v(int j) const {
    return of_key(j, static_cast<const T *>(p.v0), static_cast<const T *>(p.v1), p.kv0_stride,
                  p.kv1_stride);
  }
  __device__ T *dk(int j) const {
    return of_key(j, static_cast<T *>(p.dk0), static_cast<T *>(p.dk1), p.dkv0_stride,
                  p.dkv1_stride);
  }
  __device__ T *dv(int j) const {
    return of_key(j, static_cast<T *>(p.dv0), static_cast<T *>(p.dv1), p.dkv0_stride,
                  p.dkv1_stride);
  }

  /** The keys that any query of `rows` sees; computed by a warp, in every lane. */
  __device__ RowRange keys_of(RowRange rows) const {
    if (!p.spans) return {0, p.begin ? rows.end : keys};
    unsigned begin = 0x7fffffffu, after = 0;
    for (int i = rows.begin + lane(); i < rows.end; i += WARP) {
      const RowRange seen = sees(i);
      if (seen.begin >= seen.end) continue;
      begin = min(begin, (unsigned)seen.begin);
      after = max(after, (unsigned)seen.end);
    }
    return whole_warp(begin, after);
  }
  /** The queries first, first + step ... that see any key of `own`, and those between, in every
   *  lane; `own` is not empty. */
  __device__ RowRange queries_of(RowRange own, int first, int step) const {
    if (!p.spans) return {p.begin ? own.begin : 0, queries};
    unsigned begin = 0x7fffffffu, after = 0;
    for (int i = first; i < queries; i += step) {
      const RowRange seen = sees(i);
      if (seen.begin >= own.end || seen.end <= own.begin || seen.begin >= seen.end) continue;
      begin = min(begin, (unsigned)i);
      after = max(after, (unsigned)i + 1);
    }
    return whole_warp(begin, after);
  }
  __device__ static RowRange whole_warp(unsigned begin, unsigned after) {
    begin = __reduce_min_sync(ALL_LANES, begin);
    after = __reduce_max_sync(ALL_LANES, after);
    if (begin >= after) return {0, 0};
    return {(int)begin, (int)after};
  }

  /** The score of key j, of which x is scaled in units of log 2, for a query that sees `seen`. */
  __device__ __forceinline__ float score(RowRange seen, int j, float x) const {
    if (j < seen.begin || j >= seen.end) return -INFINITY;
    return fmaf(slope, (float)(j - (seen.end - 1)), x);
  }
};

/** The tile of a block: a batch entry, or a sequence, and a row. */
struct BackwardTile {
  int64_t entry;
  int row; /**< -1 if there is none for this block */
};

__device__ __forceinline__ BackwardTile backward_tile(const AttentionBackwardParams &p) {
  int tile = (int)blockIdx.x;
  if (!p.begin) return {(int64_t)blockIdx.z, tile * TILE_ROWS};
  for (int64_t s = 0; s < p.batch; s++) {
    const int tiles = (p.begin[s + 1] - p.begin[s] + TILE_ROWS - 1) / TILE_ROWS;
    if (tile < tiles) return {s, tile * TILE_ROWS};
    tile -= tiles;
  }
  return {0, -1};
}

template <typename T, int D> struct BackwardShared {
  Tile<T, D> own[2];
  SwizzledTile<T, OTHER_ROWS, D> other[2][2]; /**< by stage */
  AttendedRow seen[2][OTHER_ROWS];            /**< the other side's, where that is queries */
  RowRange ranges[ATTEND_THREADS / WARP];
};

/** A query on its way through the keys: its softmax, and the sum of weights times dP. */
struct RunningDelta {
  RunningSoftmax softmax;
  float weighted = 0;

  __device__ __forceinline__ void raise(float tile_max) { weighted *= softmax.raise(tile_max); }
  __device__ __forceinline__ void take(float score, float dp) {
    const float weight = softmax.weight(score);
    softmax.sum += weight;
    weighted = fmaf(weight, dp, weighted);
  }
  /** Adds up what `lanes` lanes, side by side, have taken. */
  __device__ __forceinline__ void merge(int lanes) {
    for (int by = 1; by < lanes; by *= 2) {
      softmax.sum += __shfl_xor_sync(ALL_LANES, softmax.sum, by);
      weighted += __shfl_xor_sync(ALL_LANES, weighted, by);
    }
  }
  /** Of nothing: no weight to anything. */
  __device__ AttendedRow row(RowRange seen) const {
    if (softmax.norm() == 0.0f) return {INFINITY, 0.0f, seen.begin, seen.end};
    return {softmax.max + log2f(softmax.sum), weighted * softmax.norm(), seen.begin, seen.end};
  }
};

template <typename T, int D>
__device__ __forceinline__ void gradients_of_queries(const AttentionBackwardParams &p) {
  using Shared = BackwardShared<T, D>;
  SHARED(Shared, s);
  const BackwardTile place = backward_tile(p);
  if (place.row < 0) return;
  const BackwardHead<T> h(p, place.entry, (int)blockIdx.y);
  const int row0 = place.row, first = row0 + warp() * WARP_ROWS, l = lane();
  const RowRange keys = h.keys_of({row0, min(row0 + TILE_ROWS, h.queries)});
  const int tiles = (keys.end - keys.begin + OTHER_ROWS - 1) / OTHER_ROWS;
  // The keys pass twice.
  auto load = [&](int turn) {
    if (turn < 2 * tiles) {
      const int key0 = keys.begin + turn % tiles * OTHER_ROWS;
      load_rows(s.other[turn % 2][0], p.head_dim, [&](int j) { return h.k(key0 + j); });
      load_rows(s.other[turn % 2][1], p.head_dim, [&](int j) { return h.v(key0 + j); });
    }
    ptx::cp_async_commit();
  };
  load_rows(s.own[0], p.head_dim, [&](int r) { return h.q(row0 + r); });
  load_rows(s.own[1], p.head_dim, [&](int r) { return h.d_o(row0 + r); });
  load(0);
  const RowRange own = h.sees(first + l % WARP_ROWS);
  const RowRange seen[2] = {h.sees(first + l / 4), h.sees(first + l / 4 + 8)};
  const float to_log2 = p.scale * LOG2_E;

  float x[OTHER_ROWS / 8][4], dp[OTHER_ROWS / 8][4];
  // Scores and dP of a tile of keys; false if no row of this warp sees any of it.
  auto scores = [&](int turn) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    load(turn + 1);
    const int key0 = keys.begin + turn % tiles * OTHER_ROWS;
    if (!__any_sync(ALL_LANES, own.begin < key0 + OTHER_ROWS && own.end > key0)) return false;
#pragma unroll
    for (int j = 0; j < OTHER_ROWS / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) x[j][e] = dp[j][e] = 0;
    products(x, s.own[0], s.other[turn % 2][0]);
    products(dp, s.own[1], s.other[turn % 2][1]);
#pragma unroll
    for (int j = 0; j < OTHER_ROWS / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        x[j][e] = h.score(seen[e / 2], key0 + j * 8 + l % 4 * 2 + e % 2, x[j][e] * to_log2);
    return true;
  };

  RunningDelta running[2];
  for (int turn = 0; turn < tiles; turn++) {
    if (!scores(turn)) continue;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float most = -INFINITY;
#pragma unroll
      for (int j = 0; j < OTHER_ROWS / 8; j++)
        most = fmaxf(most, fmaxf(x[j][half * 2], x[j][half * 2 + 1]));
      most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
      most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
      running[half].raise(most);
#pragma unroll
      for (int j = 0; j < OTHER_ROWS / 8; j++)
#pragma unroll
        for (int e = half * 2; e < half * 2 + 2; e++) running[half].take(x[j][e], dp[j][e]);
    }
  }

  AttendedRow rows[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    running[half].merge(4);
    rows[half] = running[half].row(seen[half]);
    const int i = first + l / 4 + half * 8;
    if (l % 4 == 0 && i < h.queries) *h.statistics(i) = rows[half];
  }
  const bool averages[2] = {h.averages(first + l / 4), h.averages(first + l / 4 + 8)};
  float dq[D / 8][4] = {};
  for (int turn = tiles; turn < 2 * tiles; turn++) {
    if (!scores(turn)) continue;
#pragma unroll
    for (int j = 0; j < OTHER_ROWS / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float weight = ptx::exp2(x[j][e] - rows[e / 2].lse);
        x[j][e] = averages[e / 2] ? 0.0f : weight * (dp[j][e] - rows[e / 2].delta);
      }
    add_rows(dq, x, s.other[turn % 2][0]);
  }
  // Copies of rows that nobody has waited for, if there is no key.
  ptx::cp_async_wait<0>();
  if (tiles == 0) __syncthreads();
  const float factor[2] = {p.scale, p.scale};
  store_rows(s.own[0], dq, factor, p.head_dim, [&](int r) { return h.dq(row0 + r); });
}

template <typename T, int D>
__device__ __forceinline__ void gradients_of_keys(const AttentionBackwardParams &p) {
  using Shared = BackwardShared<T, D>;
  SHARED(Shared, s);
  const BackwardTile place = backward_tile(p);
  if (place.row < 0) return;
  const BackwardHead<T> h(p, place.entry, (int)blockIdx.y);
  const int key0 = place.row, first = key0 + warp() * WARP_ROWS, l = lane();
  load_rows(s.own[0], p.head_dim, [&](int r) { return h.k(key0 + r); });
  load_rows(s.own[1], p.head_dim, [&](int r) { return h.v(key0 + r); });
  const RowRange own = {key0, min(key0 + TILE_ROWS, h.keys)};
  RowRange queries = h.queries_of(own, (int)threadIdx.x, ATTEND_THREADS);
  if (p.spans) {
    if (l == 0) s.ranges[warp()] = queries;
    __syncthreads();
    queries = {0x7fffffff, 0};
#pragma unroll
    for (const RowRange &part : s.ranges)
      if (part.begin < part.end)
        queries = {min(queries.begin, part.begin), max(queries.end, part.end)};
  }
  const int tiles = max(queries.end - queries.begin + OTHER_ROWS - 1, 0) / OTHER_ROWS;
  auto load = [&](int tile) {
    if (tile < tiles) {
      const int row0 = queries.begin + tile * OTHER_ROWS;
      // Nothing of a query that looks elsewhere: it may be anything.
      auto sees = [&](int i) {
        if (!p.spans) return true;
        const RowRange seen = h.sees(i);
        return seen.begin < own.end && seen.end > own.begin;
      };
      load_rows(s.other[tile % 2][0], p.head_dim,
                [&](int r) { return sees(row0 + r) ? h.q(row0 + r) : nullptr; });
      load_rows(s.other[tile % 2][1], p.head_dim,
                [&](int r) { return sees(row0 + r) ? h.d_o(row0 + r) : nullptr; });
      // Zeros see nothing.
      if (threadIdx.x < OTHER_ROWS) {
        const int i = row0 + (int)threadIdx.x;
        ptx::cp_async16(&s.seen[tile % 2][threadIdx.x],
                        i < h.queries ? h.statistics(i) : nullptr, i < h.queries);
      }
    }
    ptx::cp_async_commit();
  };
  load(0);
  const float to_log2 = p.scale * LOG2_E;
  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  for (int tile = 0; tile < tiles; tile++) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    load(tile + 1);
    const AttendedRow mine = s.seen[tile % 2][l];
    // Not computed if none of these queries sees any key of this warp.
    if (!__any_sync(ALL_LANES, mine.lo < first + WARP_ROWS && mine.hi > first)) continue;
    float x[OTHER_ROWS / 8][4] = {}, dp[OTHER_ROWS / 8][4] = {};
    products(x, s.own[0], s.other[tile % 2][0]);
    products(dp, s.own[1], s.other[tile % 2][1]);
#pragma unroll
    for (int j = 0; j < OTHER_ROWS / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const AttendedRow row = s.seen[tile % 2][j * 8 + l % 4 * 2 + e % 2];
        const int key = first + l / 4 + e / 2 * 8;
        x[j][e] = ptx::exp2(h.score({row.lo, row.hi}, key, x[j][e] * to_log2) - row.lse);
        dp[j][e] = x[j][e] * (dp[j][e] - row.delta);
      }
    add_rows(dv, x, s.other[tile % 2][1]);
    add_rows(dk, dp, s.other[tile % 2][0]);
  }
  ptx::cp_async_wait<0>();
  if (tiles == 0) __syncthreads();
  const float scaled[2] = {p.scale, p.scale}, plain[2] = {1.0f, 1.0f};
  store_rows(s.own[0], dk, scaled, p.head_dim, [&](int r) { return h.dk(key0 + r); });
  store_rows(s.own[1], dv, plain, p.head_dim, [&](int r) { return h.dv(key0 + r); });
}

/** The row of a warp. */
__device__ __forceinline__ BackwardTile backward_row(const AttentionBackwardParams &p,
                                                     int64_t rows_of_entry) {
  const int64_t row = (int64_t)blockIdx.x * (ATTEND_THREADS / WARP) + warp();
  if (!p.begin) {
    if (row >= p.batch * rows_of_entry) return {0, -1};
    return {row / rows_of_entry, (int)(row % rows_of_entry)};
  }
  if (row >= p.q_len) return {0, -1};
  int64_t s = 0;
  while (p.begin[s + 1] <= row) s++;
  return {s, (int)(row - p.begin[s])};
}

/** a . b; 0 if there is no a. */
template <typename T> __device__ __forceinline__ float dot(const T *a, const T *b, int count) {
  float sum = 0;
  if (!a) return sum;
  for (int i = 0; i < count; i++) sum = fmaf(widen(a[i]), widen(b[i]), sum);
  return sum;
}

/** Features of a lane in one launch of a row: feature0 + lane, and every 32nd further on. */
template <typename F> __device__ __forceinline__ void each_feature(int head_dim, F f) {
  const int feature0 = (int)blockIdx.z * ROW_FEATURES;
#pragma unroll
  for (int i = 0; i < ROW_FEATURES / WARP; i++) {
    const int feature = feature0 + i * WARP + lane();
    if (feature < head_dim) f(i, feature);
  }
}

/** dq and statistics of one query by one warp, any head_dim and type: a key a lane for scores and
 *  dP, features a lane for dq. */
template <typename T>
__device__ __forceinline__ void gradients_of_query(const AttentionBackwardParams &p) {
  const BackwardTile place = backward_row(p, p.q_len);
  if (place.row < 0) return;
  const BackwardHead<T> h(p, place.entry, (int)blockIdx.y);
  const int i = place.row, l = lane();
  const T *const q = h.q(i), *const d_o = h.d_o(i);
  const RowRange seen = h.sees(i);
  const float to_log2 = p.scale * LOG2_E;
  RunningDelta running;
  for (int j = seen.begin + l; j < seen.end; j += WARP) {
    const float x = h.score(seen, j, dot(q, h.k(j), p.head_dim) * to_log2);
    running.raise(x);
    running.take(x, dot(d_o, h.v(j), p.head_dim));
  }
  running.raise(warp_max(running.softmax.max));
  running.merge(WARP);
  const AttendedRow row = running.row(seen);
  if (l == 0 && blockIdx.z == 0) *h.statistics(i) = row;
  float dq[ROW_FEATURES / WARP] = {};
  for (int begin = seen.begin; begin < seen.end; begin += WARP) {
    const int j = begin + l, count = min(seen.end - begin, WARP);
    float ds = 0;
    if (l < count && !h.averages(i)) {
      const float x = h.score(seen, j, dot(q, h.k(j), p.head_dim) * to_log2);
      ds = ptx::exp2(x - row.lse) * (dot(d_o, h.v(j), p.head_dim) - row.delta);
    }
    for (int n = 0; n < count; n++) {
      const float w = __shfl_sync(ALL_LANES, ds, n);
      const T *const k = h.k(begin + n);
      each_feature(p.head_dim, [&](int f, int at) { dq[f] = fmaf(w, widen(k[at]), dq[f]); });
    }
  }
  T *const out = h.dq(i);
  each_feature(p.head_dim, [&](int f, int at) { out[at] = narrow<T>(dq[f] * p.scale); });
}

/** dk and dv of one key by one warp: a query a lane, then features a lane. */
template <typename T>
__device__ __forceinline__ void gradients_of_key(const AttentionBackwardParams &p) {
  const BackwardTile place = backward_row(p, p.k0_len + p.k1_len);
  if (place.row < 0) return;
  const BackwardHead<T> h(p, place.entry, (int)blockIdx.y);
  const int j = place.row, l = lane();
  const T *const k = h.k(j), *const v = h.v(j);
  const RowRange queries = h.queries_of({j, j + 1}, l, WARP);
  float dk[ROW_FEATURES / WARP] = {}, dv[ROW_FEATURES / WARP] = {};
  for (int begin = queries.begin; begin < queries.end; begin += WARP) {
    const int i = begin + l, count = min(queries.end - begin, WARP);
    float weight = 0, ds = 0;
    if (l < count) {
      const AttendedRow row = *h.statistics(i);
      if (row.lo <= j && j < row.hi) {
        const float x = dot(h.q(i), k, p.head_dim) * (p.scale * LOG2_E);
        weight = ptx::exp2(h.score({row.lo, row.hi}, j, x) - row.lse);
        ds = weight * (dot(h.d_o(i), v, p.head_dim) - row.delta);
      }
    }
    for (int n = 0; n < count; n++) {
      const float w = __shfl_sync(ALL_LANES, weight, n), d = __shfl_sync(ALL_LANES, ds, n);
      // What is not seen is not read: it may be anything.
      if (w == 0.0f) continue;
      const T *const q = h.q(begin + n), *const d_o = h.d_o(begin + n);
      each_feature(p.head_dim, [&](int f, int at) {
        if (q) dk[f] = fmaf(d, widen(q[at]), dk[f]);
        dv[f] = fmaf(w, widen(d_o[at]), dv[f]);
      });
    }
  }
  T *const out_k = h.dk(j), *const out_v = h.dv(j);
  each_feature(p.head_dim, [&](int f, int at) {
    out_k[at] = narrow<T>(dk[f] * p.scale);
    out_v[at] = narrow<T>(dv[f]);
  });
}

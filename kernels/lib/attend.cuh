/** softmax(scale * Q K^T + ...) V for one head, twice: tiles on tensor cores, and one warp per row.
 *
 *  `Keys` says what the rows are attended to: `count`; `k(j)` and `v(j)`, where key j's features
 *  begin; `score(row, j, x)`, the scaled score x in units of log 2 after bias and mask; and
 *  `needs(row, begin, end)`, false if the row sees none of those keys. */
#pragma once
#include "mma.cuh"
#include "reduce.cuh"
#include "softmax.cuh"

constexpr int TILE_ROWS = 64, TILE_KEYS = 64, ATTEND_THREADS = 128;

/** D is the width of the tiles: 64 or 128, at least head_dim. */
template <typename T, int D> struct AttendShared {
  SwizzledTile<T, TILE_ROWS, D> q;
  SwizzledTile<T, TILE_KEYS, D> k[2], v[2];
};

/** 64 rows of D features by `row(i)`, zeros where it is null and beyond `head_dim`. */
template <typename T, int D, typename Row>
__device__ __forceinline__ void load_rows(SwizzledTile<T, 64, D> &tile, int head_dim, Row row) {
  for (int i = threadIdx.x; i < 64 * D / 8; i += ATTEND_THREADS) {
    int r = i / (D / 8), chunk = i % (D / 8);
    const T *from = row(r);
    bool valid = from != nullptr && chunk * 8 < head_dim;
    ptx::cp_async16(tile.chunk(r, chunk), valid ? from + chunk * 8 : from, valid);
  }
}

/** 64 rows by 4 warps of 16: keys in tiles of 64, the next one copied while this one is used. The
 *  weights are multiplied as the sum of two T, so that rounding them adds nothing to rounding o. */
template <typename T, int D, typename Keys, typename Query, typename Output>
__device__ __forceinline__ void attend_tile(AttendShared<T, D> &s, const Keys &keys, int head_dim,
                                            float scale, Query query, Output output) {
  const int l = lane(), first = warp() * 16;
  const int64_t tiles = (keys.count + TILE_KEYS - 1) / TILE_KEYS;
  const float to_log2 = scale * LOG2_E;
  auto load = [&](int64_t tile) {
    if (tile < tiles) {
      auto at = [&](int j) { return tile * TILE_KEYS + j; };
      load_rows(s.k[tile % 2], head_dim,
                [&](int j) { return at(j) < keys.count ? keys.k(at(j)) : (const T *)nullptr; });
      load_rows(s.v[tile % 2], head_dim,
                [&](int j) { return at(j) < keys.count ? keys.v(at(j)) : (const T *)nullptr; });
    }
    ptx::cp_async_commit();
  };

  load_rows(s.q, head_dim, query);
  load(0);
  RunningSoftmax running[2];
  float o[D / 8][4] = {};
  for (int64_t tile = 0; tile < tiles; tile++) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    load(tile + 1);
    const int64_t begin = tile * TILE_KEYS, end = min(begin + TILE_KEYS, keys.count);
    // Not computed if no row of this warp sees any of it.
    if (!__any_sync(ALL_LANES, l < 16 && keys.needs(first + l, begin, end))) continue;
    auto &k = s.k[tile % 2];
    auto &v = s.v[tile % 2];

    float p[TILE_KEYS / 8][4] = {};
#pragma unroll
    for (int c = 0; c < D / 8; c += 2) {
      uint32_t a[4];
      s.q.load_a(a, first, c, l);
#pragma unroll
      for (int j = 0; j < TILE_KEYS / 16; j++) {
        uint32_t b[4];
        k.load_b(b, j * 16, c, l);
        mma<T>(p[2 * j], a, b[0], b[1]);
        mma<T>(p[2 * j + 1], a, b[2], b[3]);
      }
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first + l / 4 + half * 8;
      float most = -INFINITY;
#pragma unroll
      for (int j = 0; j < TILE_KEYS / 8; j++)
#pragma unroll
        for (int e = half * 2; e < half * 2 + 2; e++) {
          int64_t key = begin + j * 8 + l % 4 * 2 + e % 2;
          p[j][e] = key < keys.count ? keys.score(row, key, p[j][e] * to_log2) : -INFINITY;
          most = fmaxf(most, p[j][e]);
        }
      most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
      most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
      const float factor = running[half].raise(most);
      float sum = 0;
#pragma unroll
      for (int j = 0; j < TILE_KEYS / 8; j++)
#pragma unroll
        for (int e = half * 2; e < half * 2 + 2; e++) {
          p[j][e] = running[half].weight(p[j][e]);
          sum += p[j][e];
        }
      running[half].sum += sum;
#pragma unroll
      for (int i = 0; i < D / 8; i++) o[i][half * 2] *= factor, o[i][half * 2 + 1] *= factor;
    }

#pragma unroll
    for (int j = 0; j < TILE_KEYS / 16; j++) {
      uint32_t high[4], low[4];
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float x = p[2 * j + e / 2][e % 2 * 2], y = p[2 * j + e / 2][e % 2 * 2 + 1];
        high[e] = pack2<T>(x, y);
        low[e] = pack2<T>(x - low2<T>(high[e]), y - high2<T>(high[e]));
      }
#pragma unroll
      for (int c = 0; c < D / 8; c += 2) {
        uint32_t b[4];
        v.load_b_trans(b, j * 16, c, l);
        mma<T>(o[c], high, b[0], b[1]);
        mma<T>(o[c], low, b[0], b[1]);
        mma<T>(o[c + 1], high, b[2], b[3]);
        mma<T>(o[c + 1], low, b[2], b[3]);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    float &sum = running[half].sum;
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    T *to = output(first + l / 4 + half * 8);
    if (!to) continue;
    const float factor = running[half].norm();
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
      int feature = i * 8 + l % 4 * 2;
      if (feature < head_dim)
        *reinterpret_cast<uint32_t *>(to + feature) =
            pack2<T>(o[i][half * 2] * factor, o[i][half * 2 + 1] * factor);
    }
  }
}

/** Features of o that one launch of `attend_row` computes: 8 a lane. */
constexpr int ROW_FEATURES = 8 * WARP;

/** One row by one warp, any head_dim and type: a key a lane for the scores, features a lane for o.
 *  Features `feature0 ..` of o only; wider heads take several blocks. */
template <typename T, typename Keys>
__device__ __forceinline__ void attend_row(T *o, const T *q, const Keys &keys, int row, int head_dim,
                                           int feature0, float scale) {
  const int l = lane();
  RunningSoftmax running;
  float acc[ROW_FEATURES / WARP] = {};
  for (int64_t begin = 0; begin < keys.count; begin += WARP) {
    const int64_t end = min(begin + WARP, keys.count);
    if (!keys.needs(row, begin, end)) continue;
    float x = -INFINITY;
    if (begin + l < keys.count) {
      const T *k = keys.k(begin + l);
      float dot = 0;
      for (int i = 0; i < head_dim; i++) dot = fmaf(widen(q[i]), widen(k[i]), dot);
      x = keys.score(row, begin + l, dot * (scale * LOG2_E));
    }
    const float factor = running.raise(warp_max(x));
    const float weight = running.weight(x);
    running.sum += warp_sum(weight);
    for (float &a : acc) a *= factor;
    for (int j = 0; j < (int)(end - begin); j++) {
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

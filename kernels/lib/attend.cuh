/** softmax(scale * Q K^T + ...) V for one head, twice: tiles on tensor cores, and one warp per row.
 *
 *  `Keys` says what the rows are attended to: `count`; `k(j)` and `v(j)`, where key j's features
 *  begin, and `both(j, k, v)`, which finds them once; and `row(r)`, what row r sees of them:
 *  `needs(begin, end)`, false if none of those, and `score(j, x)`, the scaled score x in units of
 *  log 2 after bias and mask. */
#pragma once
#include "mma.cuh"
#include "reduce.cuh"
#include "softmax.cuh"

constexpr int TILE_ROWS = 64, TILE_KEYS = 64, ATTEND_THREADS = 128;
/** Rows of a warp; keys of a tile that is nearly empty. */
constexpr int WARP_ROWS = 16, FEW_KEYS = 16;

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

/** A warp's sixteen rows of sums, times `factor` of this lane's two, go to `output(r)` where that
 *  is not null, 16 bytes a lane, by way of the warp's rows of a tile that nobody else reads. */
template <typename T, int D, typename Output>
__device__ __forceinline__ void store_rows(Tile<T, D> &tile, const float (&o)[D / 8][4],
                                           const float (&factor)[2], int head_dim, Output output) {
  const int l = lane(), first = warp() * WARP_ROWS;
  // What stands there was read by other lanes.
  __syncwarp();
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int i = 0; i < D / 8; i++)
      *reinterpret_cast<uint32_t *>(tile.chunk(first + l / 4 + half * 8, i) + l % 4 * 2) =
          pack2<T>(o[i][half * 2] * factor[half], o[i][half * 2 + 1] * factor[half]);
  __syncwarp();
#pragma unroll
  for (int i = l; i < WARP_ROWS * D / 8; i += WARP) {
    const int r = first + i / (D / 8), chunk = i % (D / 8);
    T *to = output(r);
    if (to && chunk * 8 < head_dim)
      *reinterpret_cast<Pack<T> *>(to + chunk * 8) =
          *reinterpret_cast<const Pack<T> *>(tile.chunk(r, chunk));
  }
}

/** x (16, 8 N) += the products of the warp's sixteen rows with the first 8 N of other ones. */
template <typename T, int N, int ROWS, int D>
__device__ __forceinline__ void products(float (&x)[N][4], Tile<T, D> &own,
                                         SwizzledTile<T, ROWS, D> &other) {
  const int l = lane(), first = warp() * WARP_ROWS;
#pragma unroll
  for (int c = 0; c < D / 8; c += 2) {
    uint32_t a[4];
    own.load_a(a, first, c, l);
#pragma unroll
    for (int j = 0; j < N / 2; j++) {
      uint32_t b[4];
      other.load_b(b, j * 16, c, l);
      mma<T>(x[2 * j], a, b[0], b[1]);
      mma<T>(x[2 * j + 1], a, b[2], b[3]);
    }
  }
}

/** sums (16, D) += w (16, 8 N) times the first rows of `other`. The weights are multiplied as the
 *  sum of two T, so that rounding them adds nothing to rounding the sums. */
template <typename T, int N, int ROWS, int D>
__device__ __forceinline__ void add_rows(float (&sums)[D / 8][4], const float (&w)[N][4],
                                         SwizzledTile<T, ROWS, D> &other) {
  const int l = lane();
#pragma unroll
  for (int j = 0; j < N / 2; j++) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float x = w[2 * j + e / 2][e % 2 * 2], y = w[2 * j + e / 2][e % 2 * 2 + 1];
      high[e] = pack2<T>(x, y);
      low[e] = pack2<T>(x - low2<T>(high[e]), y - high2<T>(high[e]));
    }
#pragma unroll
    for (int c = 0; c < D / 8; c += 2) {
      uint32_t b[4];
      other.load_b_trans(b, j * 16, c, l);
      mma<T>(sums[c], high, b[0], b[1]);
      mma<T>(sums[c], low, b[0], b[1]);
      mma<T>(sums[c + 1], high, b[2], b[3]);
      mma<T>(sums[c + 1], low, b[2], b[3]);
    }
  }
}

/** Sixteen rows of a warp on their way through the keys. */
template <typename T, int D> struct WarpRows {
  RunningSoftmax running[2]; /**< of rows lane / 4 and lane / 4 + 8 */
  float o[D / 8][4] = {};

  /** Takes the first KEYS keys of a tile and their values; `score(half, j, x)` is that of key j for
   *  this lane's row `half`. */
  template <int KEYS = TILE_KEYS, typename Score>
  __device__ __forceinline__ void take(Tile<T, D> &q, Tile<T, D> &k, Tile<T, D> &v, float to_log2,
                                       Score score) {
    const int l = lane();
    float p[KEYS / 8][4] = {};
    products(p, q, k);

#pragma unroll
    for (int half = 0; half < 2; half++) {
      float most = -INFINITY;
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = half * 2; e < half * 2 + 2; e++) {
          p[j][e] = score(half, j * 8 + l % 4 * 2 + e % 2, p[j][e] * to_log2);
          most = fmaxf(most, p[j][e]);
        }
      most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
      most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
      const float factor = running[half].raise(most), base = running[half].base();
      float sum = 0;
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = half * 2; e < half * 2 + 2; e++) {
          p[j][e] = ptx::exp2(p[j][e] - base);
          sum += p[j][e];
        }
      running[half].sum += sum;
#pragma unroll
      for (int i = 0; i < D / 8; i++) o[i][half * 2] *= factor, o[i][half * 2 + 1] *= factor;
    }

    add_rows(o, p, v);
  }

  /** The rows go to `output(r)`, by way of those of the queries. */
  template <typename Output>
  __device__ __forceinline__ void store(Tile<T, D> &q, int head_dim, Output output) {
    float norm[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float &sum = running[half].sum;
      sum += __shfl_xor_sync(ALL_LANES, sum, 1);
      sum += __shfl_xor_sync(ALL_LANES, sum, 2);
      norm[half] = running[half].norm();
    }
    store_rows(q, o, norm, head_dim, output);
  }
};

template <typename T, int D> struct AttendShared {
  Tile<T, D> q, k[2], v[2];
};

/** 64 rows by 4 warps: keys in tiles of 64, the next one copied while this one is used. */
template <typename T, int D, typename Keys>
__device__ __forceinline__ void attend_tile(AttendShared<T, D> &s, const Keys &keys, int head_dim,
                                            float scale, const HeadRows<const T> &queries,
                                            const HeadRows<T> &outputs) {
  const int l = lane(), first = warp() * WARP_ROWS;
  const int tiles = (keys.count + TILE_KEYS - 1) / TILE_KEYS;
  auto load = [&](int tile) {
    if (tile < tiles) {
      // All at once: where a key is may itself have to be read.
#pragma unroll
      for (int i = threadIdx.x; i < 64 * D / 8; i += ATTEND_THREADS) {
        const int r = i / (D / 8), chunk = i % (D / 8), j = tile * TILE_KEYS + r;
        const bool valid = j < keys.count && chunk * 8 < head_dim;
        const T *k, *v;
        keys.both(min(j, keys.count - 1), k, v);
        ptx::cp_async16(s.k[tile % 2].chunk(r, chunk), k + chunk * 8, valid);
        ptx::cp_async16(s.v[tile % 2].chunk(r, chunk), v + chunk * 8, valid);
      }
    }
    ptx::cp_async_commit();
  };

  load_rows(s.q, head_dim, queries);
  load(0);
  const auto own = keys.row(first + l % WARP_ROWS);
  const decltype(own) rows[2] = {keys.row(first + l / 4), keys.row(first + l / 4 + 8)};
  WarpRows<T, D> mine;
  for (int tile = 0; tile < tiles; tile++) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    load(tile + 1);
    const int begin = tile * TILE_KEYS, end = min(begin + TILE_KEYS, keys.count);
    // Not computed if no row of this warp sees any of it.
    if (first >= queries.count || !__any_sync(ALL_LANES, own.needs(begin, end))) continue;
    auto score = [&](int half, int j, float x) {
      return begin + j < keys.count ? rows[half].score(begin + j, x) : -INFINITY;
    };
    // The 257th key of an image would cost as much as 64.
    if (end - begin > FEW_KEYS)
      mine.take(s.q, s.k[tile % 2], s.v[tile % 2], scale * LOG2_E, score);
    else
      mine.template take<FEW_KEYS>(s.q, s.k[tile % 2], s.v[tile % 2], scale * LOG2_E, score);
  }
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

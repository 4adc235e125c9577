/*  `attention`
 *
 *  Idea      a block takes 64 queries of a head through all keys, in tiles of 64
 *            (`lib/attend.cuh`); key j is in the first segment if j < k0_len, else in the second:
 *            nothing is concatenated.
 *  Geometry  `_64`, `_128` (tile width, at least head_dim): grid (heads, batch, query tiles), 4
 *            warps, 40 or 80 KiB; of `_64` four blocks a multiprocessor. Blocks begin in the order
 *            of their numbers, and the last query tile has the fewest rows: of seven images of 257
 *            tokens an H200 has room for 528 of 560 blocks, and the rest are of one row. `_row`: a
 *            warp per query, 4 a block, for f32 and heads of odd widths.
 *  Traffic   q and o once; keys and values once per 64 queries, from L2.
 *  Rejected  rounding the weights once: cells near 0 then miss twice the rounding of o. Tiles of
 *            128 keys: of 257 a third of the work would be on keys that are not there. */
#include "attention.h"
#include "lib/attend.cuh"

/** Every key is seen. */
struct EveryKey {
  __device__ bool needs(int, int) const { return true; }
  __device__ bool sees(int, int) const { return true; }
  __device__ bool is_biased() const { return false; }
  __device__ float score(int, float x) const { return x; }
};

/** Where keys are is found anew each time: it is seldom asked for, and pointers take registers. */
template <typename T> struct SegmentKeys {
  const AttentionParams &p;
  int64_t batch;
  int head, count;

  __device__ SegmentKeys(const AttentionParams &p, int64_t batch, int head)
      : p(p), batch(batch), head(head), count((int)(p.k0_len + p.k1_len)) {}

  __device__ __forceinline__ void both(int j, const T *&k, const T *&v) const {
    const bool is_first = j < (int)p.k0_len;
    const int64_t row = is_first ? batch * p.k0_len + j : batch * p.k1_len + (j - p.k0_len);
    const int64_t at = row * (is_first ? p.kv0_stride : p.kv1_stride) + head * p.head_dim;
    k = static_cast<const T *>(is_first ? p.k0 : p.k1) + at;
    v = static_cast<const T *>(is_first ? p.v0 : p.v1) + at;
  }
  __device__ const T *k(int j) const {
    const T *k, *v;
    return both(j, k, v), k;
  }
  __device__ const T *v(int j) const {
    const T *k, *v;
    return both(j, k, v), v;
  }
  __device__ EveryKey row(int) const { return {}; }
};

template <typename T, int D> __device__ void attention_tiles(const AttentionParams &p) {
  using Shared = AttendShared<T, D>;
  SHARED(Shared, s);
  const int64_t row0 = (int64_t)blockIdx.z * TILE_ROWS, batch = blockIdx.y;
  const int head = (int)blockIdx.x;
  auto offset = [&](int64_t stride) {
    return (batch * p.q_len + row0) * stride + (int64_t)head * p.head_dim;
  };
  const int count = (int)min(p.q_len - row0, (int64_t)TILE_ROWS);
  const HeadRows<const T> q = {static_cast<const T *>(p.q) + offset(p.q_stride), p.q_stride, count};
  const HeadRows<T> o = {static_cast<T *>(p.o) + offset(p.o_stride), p.o_stride, count};
  attend_tile(s, SegmentKeys<T>(p, batch, head), p.head_dim, p.scale, q, o);
}

template <typename T> __device__ void attention_row(const AttentionParams &p) {
  const int64_t row = (int64_t)blockIdx.x * (ATTEND_THREADS / WARP) + warp();
  if (row >= p.batch * p.q_len) return;
  const int64_t head = (int64_t)blockIdx.y * p.head_dim;
  attend_row(static_cast<T *>(p.o) + row * p.o_stride + head,
             static_cast<const T *>(p.q) + row * p.q_stride + head,
             SegmentKeys<T>(p, row / p.q_len, (int)blockIdx.y), p.head_dim,
             (int)blockIdx.z * ROW_FEATURES, p.scale);
}

#define ATTENTION_TILES(name, T)                                                                   \
  KERNEL(attention_##name##_64, AttentionParams, ATTEND_THREADS, 4) {                              \
    attention_tiles<T, 64>(p);                                                                     \
  }                                                                                                \
  KERNEL(attention_##name##_128, AttentionParams, ATTEND_THREADS, 2) {                             \
    attention_tiles<T, 128>(p);                                                                    \
  }
#define ATTENTION_ROW(name, T)                                                                     \
  KERNEL(attention_##name##_row, AttentionParams, ATTEND_THREADS) { attention_row<T>(p); }

ATTENTION_TILES(bf16, bf16)
ATTENTION_TILES(f16, f16)
ATTENTION_ROW(f32, float)
ATTENTION_ROW(bf16, bf16)
ATTENTION_ROW(f16, f16)

/*  `self_attention`
 *
 *  Idea      a block takes 64 query rows of one sequence and head through the keys before them,
 *            page by page through the table, 64 keys at a time (`lib/attend.cuh`); tiles beyond the
 *            last query are not visited, and a warp skips those beyond its own 16 rows.
 *  Geometry  `_64`, `_128` (tile width, at least head_dim): grid (row tiles, heads), 4 warps, 40 or
 *            80 KiB; as many row tiles as there can be, whatever the sequences are: the launch does
 *            not depend on what is in device memory. `_row`: a warp per row, 4 a block, for f32
 *            and heads of odd widths. (Steps of one row a sequence are `attention_decode`.)
 *  Traffic   q and o once; keys and values of a sequence once per 64 rows, from L2.
 *  Rejected  a tile list made by the host: one more upload per step. */
#include "lib/attend.cuh"
#include "lib/pages.cuh"
#include "self_attention.h"

template <typename T, int D> __device__ void self_attention_tiles(const SelfAttentionParams &p) {
  using Shared = AttendShared<T, D>;
  SHARED(Shared, s);
  // Blocks begin in the order of their numbers: those with the most keys first.
  int tile = (int)(gridDim.x - 1 - blockIdx.x), sequence = 0, rows = 0;
  for (; sequence < p.sequences; sequence++) {
    rows = p.q_begin[sequence + 1] - p.q_begin[sequence];
    const int tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    if (tile < tiles) break;
    tile -= tiles;
  }
  if (sequence == p.sequences) return;
  const int row0 = tile * TILE_ROWS, here = min(rows - row0, TILE_ROWS);
  const int position = p.kv_len[sequence] - rows + row0, head = (int)blockIdx.y;
  const int64_t first = p.q_begin[sequence] + row0, at = (int64_t)head * p.head_dim;
  const int64_t o_stride = (int64_t)p.heads * p.head_dim;
  const T *q = static_cast<const T *>(p.q) + first * p.q_stride + at;
  T *o = static_cast<T *>(p.o) + first * o_stride + at;
  const PagedKeys<T, SelfAttentionParams> keys(p, sequence, position, position + here, head);
  attend_tile(s, keys, p.head_dim, p.scale, HeadRows<const T>{q, p.q_stride, here},
              HeadRows<T>{o, o_stride, here});
}

template <typename T> __device__ void self_attention_row(const SelfAttentionParams &p) {
  const int64_t row = (int64_t)blockIdx.x * (ATTEND_THREADS / WARP) + warp();
  if (row >= p.rows) return;
  int sequence = 0;
  while (p.q_begin[sequence + 1] <= row) sequence++;
  const int position = p.kv_len[sequence] - (int)(p.q_begin[sequence + 1] - row);
  const int64_t head = blockIdx.y, at = head * p.head_dim;
  const PagedKeys<T, SelfAttentionParams> keys(p, sequence, position, position + 1, (int)head);
  attend_row(static_cast<T *>(p.o) + row * p.heads * p.head_dim + at,
             static_cast<const T *>(p.q) + row * p.q_stride + at, keys, p.head_dim,
             (int)blockIdx.z * ROW_FEATURES, p.scale);
}

#define SELF_ATTENTION_TILES(name, T)                                                              \
  KERNEL(self_attention_##name##_64, SelfAttentionParams, ATTEND_THREADS, 3) {                     \
    self_attention_tiles<T, 64>(p);                                                                \
  }                                                                                                \
  KERNEL(self_attention_##name##_128, SelfAttentionParams, ATTEND_THREADS, 2) {                    \
    self_attention_tiles<T, 128>(p);                                                               \
  }
#define SELF_ATTENTION_ROW(name, T)                                                                \
  KERNEL(self_attention_##name##_row, SelfAttentionParams, ATTEND_THREADS) {                       \
    self_attention_row<T>(p);                                                                      \
  }

SELF_ATTENTION_TILES(bf16, bf16)
SELF_ATTENTION_TILES(f16, f16)
SELF_ATTENTION_ROW(f32, float)
SELF_ATTENTION_ROW(bf16, bf16)
SELF_ATTENTION_ROW(f16, f16)

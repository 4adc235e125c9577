/*  `self_attention`
 *
 *  Idea      a block takes 64 query rows of one sequence and head through the keys before them,
 *            page by page through the table, 64 keys at a time (`lib/attend.cuh`); tiles beyond the
 *            last query are not visited, and a warp skips those beyond its own 16 rows. Where rows
 *            are too few to fill the card, keys are in parts of a tile. A block leaves those of its
 *            own in the workspace, each by itself, and the one that comes last merges all of them,
 *            in order. A block that walks merges its tiles in the same way: the bits do not depend
 *            on the choice.
 *  Geometry  `_64`, `_128` (tile width, at least head_dim): grid (row tiles, heads, parts of the
 *            keys by those of a block), 4 warps, 40 or 80 KiB; as many row tiles and parts as there
 *            can be, whatever the sequences are: the launch does not depend on what is in device
 *            memory. 35 rows of 300 keys are 160 blocks of a tile, not 32 of five; 250 rows 192 of
 *            at most two: 320 of one would be two rounds. `_row`: a warp per row, 4 a block, for
 *            f32 and odd widths. (Steps of one row a sequence are `attention_decode`.)
 *  Traffic   q and o once; keys and values of a sequence once per 64 rows, from L2. In parts q once
 *            a block, and f32 sums of 16 rows for every part that they see, both ways through L2.
 *  Rejected  a tile list made by the host: one more upload per step. Parts of several tiles: for
 *            the same bits a block that walks would need sums of a part beside its rows'. */
#include "lib/attend.cuh"
#include "lib/pages.cuh"
#include "lib/split.cuh"
#include "self_attention.h"

/** What the blocks of a row tile and head leave in the workspace: of each part of the keys, each
 *  thread's maxima, sums of weights and sums, as it holds them. */
template <typename T, int D> struct Parts {
  static constexpr int CELLS = D / 2 + 4;
  float *first;

  __device__ explicit Parts(const SelfAttentionParams &p, int64_t at)
      : first(static_cast<float *>(p.workspace) + COUNTERS +
              at * p.parts * CELLS * ATTEND_THREADS + threadIdx.x) {}

  /** Calls `f` with each cell of `rows` and its place in the part. */
  template <typename Cells, typename F>
  __device__ __forceinline__ void each(int part, Cells &rows, F f) const {
    float *to = first + (int64_t)part * CELLS * ATTEND_THREADS;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      f(rows.running[half].max, to + 2 * half * ATTEND_THREADS);
      f(rows.running[half].sum, to + (2 * half + 1) * ATTEND_THREADS);
    }
#pragma unroll
    for (int i = 0; i < D / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) f(rows.o[i][e], to + (4 + i * 4 + e) * ATTEND_THREADS);
  }
  __device__ __forceinline__ void leave(int part, const WarpRows<T, D> &rows) const {
    each(part, rows, [](float cell, float *to) { *to = cell; });
  }
  /** Not through L1, which may hold what was there before. */
  __device__ __forceinline__ void find(int part, WarpRows<T, D> &rows) const {
    each(part, rows, [](float &cell, const volatile float *from) { cell = *from; });
  }
};

template <typename T, int D> __device__ void self_attention_tiles(const SelfAttentionParams &p) {
  using Shared = AttendShared<T, D>;
  SHARED(Shared, s);
  SHARED_STATIC(int, is_last, 1);
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
  const int position = p.kv_len[sequence] - rows + row0, head = p.first_head + (int)blockIdx.y;
  const int tiles = key_tiles(position + here);
  const int each = (p.parts + (int)gridDim.z - 1) / (int)gridDim.z;
  const bool is_split = p.parts > 1 && tiles > 1;
  const int begin = (int)blockIdx.z * each, end = is_split ? min(begin + each, tiles) : tiles;
  if (begin >= tiles) return;
  const int first = p.q_begin[sequence] + row0;
  const T *q = static_cast<const T *>(p.q) + first * p.q_stride + (int64_t)head * p.head_dim;
  const PagedKeys<T, SelfAttentionParams> keys(p, sequence, position, position + here, head);
  // What is above came with the step; queries and new keys are the launch's before this one.
  ptx::wait_for_launch_before();
  WarpRows<T, D> mine;
  const HeadRows<const T> queries = {q, p.q_stride, here};
  const int64_t place = (int64_t)blockIdx.x * gridDim.y + blockIdx.y;
  const Parts<T, D> parts(p, place);
  // Called of the tiles that this warp's rows see, and no others.
  attend_tiles<true>(mine, s, keys, p.head_dim, p.scale, queries, begin, end, [&](int tile) {
    if (!is_split) return;
    parts.leave(tile, mine);
    mine = WarpRows<T, D>();
  });

  if (is_split) {
    const int row = warp() * WARP_ROWS, last = min(row + WARP_ROWS, here) - 1;
    const int seen = row < here ? key_tiles(position + last + 1) : 0;
    uint32_t *counter = static_cast<uint32_t *>(p.workspace) + place;
    const unsigned blocks = (unsigned)((tiles + each - 1) / each);
    if (!comes_last(counter, blocks, is_last[0], [] { __syncthreads(); })) return;
    WarpRows<T, D> next;
    if (seen > 0) parts.find(0, next);
    for (int i = 0; i < seen; i++) {
      const WarpRows<T, D> later = next;
      if (i + 1 < seen) parts.find(i + 1, next);
      mine.take(later);
    }
  }
  const int64_t width = (int64_t)p.heads * p.head_dim;
  T *o = static_cast<T *>(p.o) + first * width + (int64_t)head * p.head_dim;
  mine.store(s.q, p.head_dim, HeadRows<T>{o, width, here});
}

template <typename T> __device__ void self_attention_row(const SelfAttentionParams &p) {
  const int64_t row = (int64_t)blockIdx.x * (ATTEND_THREADS / WARP) + warp();
  if (row >= p.rows) return;
  int sequence = 0;
  while (p.q_begin[sequence + 1] <= row) sequence++;
  const int position = p.kv_len[sequence] - (int)(p.q_begin[sequence + 1] - row);
  const int64_t head = p.first_head + (int)blockIdx.y, at = head * p.head_dim;
  const PagedKeys<T, SelfAttentionParams> keys(p, sequence, position, position + 1, (int)head);
  attend_row(static_cast<T *>(p.o) + row * p.heads * p.head_dim + at,
             static_cast<const T *>(p.q) + row * p.q_stride + at, keys, p.head_dim,
             (int)blockIdx.z * ROW_FEATURES, p.scale);
}

// A third block of `_64` would not leave a thread enough registers.
#define SELF_ATTENTION_TILES(name, T)                                                              \
  KERNEL_EARLY(self_attention_##name##_64, SelfAttentionParams, ATTEND_THREADS, 2) {               \
    self_attention_tiles<T, 64>(p);                                                                \
  }                                                                                                \
  KERNEL_EARLY(self_attention_##name##_128, SelfAttentionParams, ATTEND_THREADS, 2) {              \
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

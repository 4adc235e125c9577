/*  `cross_attention`
 *
 *  Idea      a block takes its rows of a head, 64 at a time, through the images that they see; an
 *            image's keys and values stay in shared memory for as many tiles of rows as see it, and
 *            all its 64 latents are one tile of keys. Queries and image of the next step are copied
 *            during this one. Spans follow text time: that is one image, or two where a marker
 *            falls into a tile; a warp whose 16 rows do not see it computes nothing, and one whose
 *            rows all do asks of no score whether it counts. Rows without an image become 0 by
 *            having no keys.
 *  Geometry  `_64`, `_128` (tile width, at least head_dim): grid (runs of rows, heads), 4 warps, 48
 *            or 96 KiB. Few rows are one run a multiprocessor, down to a row a block: sequences
 *            that are decoded look at images of their own. Many are whole tiles, three blocks a
 *            multiprocessor; on Hopper those are `cross_attention_sm90.cu`'s. `_row`: a warp per
 *            row, 4 a block, for f32 and heads of odd widths.
 *  Traffic   q and o once; an image once per run of rows that sees it, from L2, the first before
 *            the launch that makes q has ended.
 *  Rejected  a work list of rows by image: it must be made anew for every step, by one more launch.
 *            One image at a time in shared memory: a trip to L2 for each of many that are seen.
 *            Four blocks a multiprocessor: of 128 registers 5 to 14 are missing. Not measured:
 *            folding the norm and the projection of q into this kernel. It would read that weight
 *            once per run of rows instead of once. */
#include "cross_attention.h"
#include "lib/attend.cuh"

template <typename T, int D> struct CrossShared {
  Tile<T, D> q[2], k[2], v[2];
};

/** Tiles of 64 latents, counted through all images. */
struct Latents {
  int first, last;
};

/** A run of rows of one head. */
template <typename T, int D> struct CrossRun {
  const CrossAttentionParams &p;
  int end;         /**< row after the last */
  int head, tiles; /**< of latents in an image */

  /** Rows of the run from row0 on, at most 64. */
  __device__ int count(int row0) const { return max(min(end - row0, TILE_ROWS), 0); }
  /** What row r of those from row0 on sees: nothing beyond the run. */
  __device__ MediaSpan span(int row0, int r) const {
    return r < count(row0) ? p.spans[row0 + r] : MediaSpan{0, 0, 0};
  }
  /** What 64 rows see between them; if nothing, what stands in shared memory already. */
  __device__ Latents seen(int row0, int held) const {
    unsigned begin = 0x7fffffffu, after = 0;
#pragma unroll
    for (int r = lane(); r < TILE_ROWS; r += WARP) {
      const MediaSpan s = span(row0, r);
      const bool is_some = s.begin < s.end;
      begin = is_some ? min(begin, (unsigned)s.begin) : begin;
      after = is_some ? max(after, (unsigned)s.end) : after;
    }
    begin = __reduce_min_sync(ALL_LANES, begin);
    after = __reduce_max_sync(ALL_LANES, after);
    if (begin >= after) return {held, held};
    return {(int)begin * tiles, (int)after * tiles - 1};
  }
  /** 64 rows of q or o. */
  template <typename X> __device__ HeadRows<X> rows_of(X *x, int row0) const {
    const int64_t stride = (int64_t)p.heads * p.head_dim;
    const int64_t at = row0 * stride + (int64_t)head * p.head_dim;
    return {x + at, stride, count(row0)};
  }
  __device__ void load_queries(Tile<T, D> &q, int row0) const {
    load_rows(q, p.head_dim, rows_of(static_cast<const T *>(p.q), row0));
  }
  __device__ void load_latents(Tile<T, D> &k, Tile<T, D> &v, int tile) const {
    if (tile < 0) return;
    const int64_t width = (int64_t)p.heads * p.head_dim;
    const int image = image_of(tile), latent0 = (tile - image * tiles) * TILE_KEYS;
    const T *first = static_cast<const T *>(p.kv[image]) + latent0 * 2 * width + head * p.head_dim;
    const int count = p.latents - latent0;
    load_rows(k, p.head_dim, HeadRows<const T>{first, 2 * width, count});
    load_rows(v, p.head_dim, HeadRows<const T>{first + width, 2 * width, count});
  }
  /** Dividing costs as much as half of a tile's scores; with 64 latents there is nothing to. */
  __device__ int image_of(int tile) const { return tiles == 1 ? tile : tile / tiles; }
};

template <typename T, int D> __device__ void cross_attention_tiles(const CrossAttentionParams &p) {
  using Shared = CrossShared<T, D>;
  SHARED(Shared, s);
  int run = (int)(((uint32_t)p.rows + gridDim.x - 1) / gridDim.x);
  if (run > TILE_ROWS) run = (run + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
  int row0 = (int)blockIdx.x * run;
  const CrossRun<T, D> rows{p, min(row0 + run, (int)p.rows), (int)blockIdx.y,
                            max((p.latents + TILE_KEYS - 1) / TILE_KEYS, 1)};
  if (row0 >= rows.end) return;
  const int first = warp() * WARP_ROWS, l = lane();

  Latents seen = rows.seen(row0, -1);
  rows.load_latents(s.k[0], s.v[0], seen.first);
  // What is seen of images, and where, was there before; queries are the launch's before this one.
  ptx::wait_for_launch_before();
  rows.load_queries(s.q[0], row0);
  ptx::cp_async_commit();
  int stage = 0;
  for (int turn = 0; row0 < rows.end; turn ^= 1, row0 += TILE_ROWS) {
    const Latents next = rows.seen(row0 + TILE_ROWS, seen.last);
    const MediaSpan own = rows.span(row0, first + l % WARP_ROWS);
    const MediaSpan spans[2] = {rows.span(row0, first + l / 4), rows.span(row0, first + l / 4 + 8)};
    WarpRows<T, D> mine;
    for (int tile = seen.first; tile <= seen.last; tile++) {
      ptx::cp_async_wait<0>();
      __syncthreads();
      const int after = tile < seen.last ? tile + 1 : next.first;
      if (tile == seen.last) rows.load_queries(s.q[turn ^ 1], row0 + TILE_ROWS);
      if (after != tile) rows.load_latents(s.k[stage ^ 1], s.v[stage ^ 1], after);
      ptx::cp_async_commit();

      const int image = rows.image_of(tile);
      const int latents = p.latents - (tile - image * rows.tiles) * TILE_KEYS;
      auto sees = [&](const MediaSpan &span) { return span.begin <= image && image < span.end; };
      const float unit = p.scale * LOG2_E;
      const bool is_plain = sees(own) && !own.uniform && latents >= TILE_KEYS;
      if (__all_sync(ALL_LANES, is_plain)) {
        mine.take(s.q[turn], s.k[stage], s.v[stage], unit, EveryScore());
      } else if (__any_sync(ALL_LANES, sees(own))) {
        const bool visible[2] = {sees(spans[0]), sees(spans[1])};
        mine.take(s.q[turn], s.k[stage], s.v[stage], unit, [&](int half, int j, float x) {
          if (!visible[half] || j >= latents) return -INFINITY;
          return spans[half].uniform ? 0.0f : x;
        });
      }
      if (after != tile) stage ^= 1;
    }
    mine.store(s.q[turn], p.head_dim, rows.rows_of(static_cast<T *>(p.o), row0));
    seen = next;
  }
}

/** The latents that one row sees, all of them. */
template <typename T> struct RowLatents {
  const CrossAttentionParams &p;
  MediaSpan span;
  int head, count;

  struct Row {
    bool is_uniform;
    __device__ float score(int, float x) const { return is_uniform ? 0.0f : x; }
  };
  __device__ const T *k(int j) const {
    const T *image = static_cast<const T *>(p.kv[span.begin + j / p.latents]);
    return image + (j % p.latents * 2 * (int64_t)p.heads + head) * p.head_dim;
  }
  __device__ const T *v(int j) const { return k(j) + (int64_t)p.heads * p.head_dim; }
  __device__ Row row(int) const { return {span.uniform != 0}; }
};

template <typename T> __device__ void cross_attention_row(const CrossAttentionParams &p) {
  const int64_t row = (int64_t)blockIdx.x * (ATTEND_THREADS / WARP) + warp();
  if (row >= p.rows) return;
  const MediaSpan span = p.spans[row];
  const RowLatents<T> keys{p, span, (int)blockIdx.y, (span.end - span.begin) * p.latents};
  const int64_t at = (row * p.heads + blockIdx.y) * p.head_dim;
  attend_row(static_cast<T *>(p.o) + at, static_cast<const T *>(p.q) + at, keys, p.head_dim,
             (int)blockIdx.z * ROW_FEATURES, p.scale);
}

#define CROSS_ATTENTION_TILES(name, T)                                                             \
  KERNEL_EARLY(cross_attention_##name##_64, CrossAttentionParams, ATTEND_THREADS, 3) {             \
    cross_attention_tiles<T, 64>(p);                                                               \
  }                                                                                                \
  KERNEL_EARLY(cross_attention_##name##_128, CrossAttentionParams, ATTEND_THREADS, 2) {            \
    cross_attention_tiles<T, 128>(p);                                                              \
  }
#define CROSS_ATTENTION_ROW(name, T)                                                               \
  KERNEL(cross_attention_##name##_row, CrossAttentionParams, ATTEND_THREADS) {                     \
    cross_attention_row<T>(p);                                                                     \
  }

CROSS_ATTENTION_TILES(bf16, bf16)
CROSS_ATTENTION_TILES(f16, f16)
CROSS_ATTENTION_ROW(f32, float)
CROSS_ATTENTION_ROW(bf16, bf16)
CROSS_ATTENTION_ROW(f16, f16)

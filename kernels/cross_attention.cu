/*  `cross_attention`
 *
 *  Idea      a block takes 64 rows of a head through the latents of the images that any of them sees,
 *            first to last, 64 keys at a time (`lib/attend.cuh`). Spans follow text time, so that is
 *            one image, or two where a marker falls into the tile; a warp whose 16 rows see none of
 *            a tile does not compute it. Rows without an image become 0 by having no keys.
 *  Geometry  `_64`, `_128` (tile width, at least head_dim): grid (row tiles, heads), 4 warps, 40 or
 *            80 KiB. `_row`: a warp per row, 4 a block, for f32 and heads of odd widths.
 *  Traffic   q and o once; keys and values of an image once per tile of 64 rows, from L2.
 *  Rejected  a work list of rows by image: it must be made anew for every step, by one more launch. */
#include "cross_attention.h"
#include "lib/attend.cuh"

template <typename T> struct LatentKeys {
  const CrossAttentionParams &p;
  int64_t row0, first, count; /**< of the tile's rows and of the keys that any of them sees */
  int head;

  __device__ const T *latent(int64_t j) const {
    const T *image = static_cast<const T *>(p.kv[(first + j) / p.latents]);
    return image + (first + j) % p.latents * (2 * (int64_t)p.heads * p.head_dim) +
           (int64_t)head * p.head_dim;
  }
  __device__ const T *k(int64_t j) const { return latent(j); }
  __device__ const T *v(int64_t j) const { return latent(j) + (int64_t)p.heads * p.head_dim; }
  __device__ float score(int row, int64_t j, float x) const {
    if (row0 + row >= p.rows) return -INFINITY;
    const MediaSpan span = p.spans[row0 + row];
    const int64_t image = (first + j) / p.latents;
    if (image < span.begin || image >= span.end) return -INFINITY;
    return span.uniform ? 0.0f : x;
  }
  __device__ bool needs(int row, int64_t begin, int64_t end) const {
    if (row0 + row >= p.rows) return false;
    const MediaSpan span = p.spans[row0 + row];
    return span.begin * (int64_t)p.latents < first + end && first + begin < span.end * (int64_t)p.latents;
  }
};

template <typename T, int D> struct CrossShared {
  AttendShared<T, D> tiles;
  int begin, end; /**< images that any row of the tile sees */
};

template <typename T, int D> __device__ void cross_attention_tiles(const CrossAttentionParams &p) {
  using Shared = CrossShared<T, D>;
  SHARED(Shared, s);
  const int64_t row0 = (int64_t)blockIdx.x * TILE_ROWS, width = (int64_t)p.heads * p.head_dim;
  const int head = (int)blockIdx.y;
  if (warp() == 0) {
    unsigned begin = 0x7fffffffu, end = 0;
    for (int r = lane(); r < TILE_ROWS && row0 + r < p.rows; r += WARP) {
      const MediaSpan span = p.spans[row0 + r];
      if (span.begin >= span.end) continue;
      begin = min(begin, (unsigned)span.begin);
      end = max(end, (unsigned)span.end);
    }
    begin = __reduce_min_sync(ALL_LANES, begin);
    end = __reduce_max_sync(ALL_LANES, end);
    if (lane() == 0) s.begin = (int)min(begin, end), s.end = (int)end;
  }
  __syncthreads();
  LatentKeys<T> keys{p, row0, (int64_t)s.begin * p.latents, (int64_t)(s.end - s.begin) * p.latents, head};
  auto offset = [&](int r) { return (row0 + r) * width + (int64_t)head * p.head_dim; };
  auto is_row = [&](int r) { return row0 + r < p.rows; };
  attend_tile(
      s.tiles, keys, p.head_dim, p.scale,
      [&](int r) { return is_row(r) ? static_cast<const T *>(p.q) + offset(r) : nullptr; },
      [&](int r) { return is_row(r) ? static_cast<T *>(p.o) + offset(r) : nullptr; });
}

template <typename T> __device__ void cross_attention_row(const CrossAttentionParams &p) {
  const int64_t row = (int64_t)blockIdx.x * (ATTEND_THREADS / WARP) + warp();
  if (row >= p.rows) return;
  const MediaSpan span = p.spans[row];
  const int64_t first = (int64_t)span.begin * p.latents;
  LatentKeys<T> keys{p, row, first, (int64_t)span.end * p.latents - first, (int)blockIdx.y};
  const int64_t at = (row * p.heads + blockIdx.y) * p.head_dim;
  attend_row(static_cast<T *>(p.o) + at, static_cast<const T *>(p.q) + at, keys, 0, p.head_dim,
             (int)blockIdx.z * ROW_FEATURES, p.scale);
}

#define CROSS_ATTENTION_TILES(name, T)                                                             \
  KERNEL(cross_attention_##name##_64, CrossAttentionParams, ATTEND_THREADS, 3) {                   \
    cross_attention_tiles<T, 64>(p);                                                               \
  }                                                                                                \
  KERNEL(cross_attention_##name##_128, CrossAttentionParams, ATTEND_THREADS, 2) {                  \
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

/*  `cross_attention` of many rows on Hopper's tensor cores (sm_90a): heads of 64, 64 latents
 *
 *  Idea      one warp:         barriers; for tile of 64 rows: wait until its place is empty; copy
 *                              its queries there, once the launch that makes them has ended
 *            two warps:        for image: wait until its stage is read; copy its keys and values
 *            four warpgroups:  what each tile sees, once; then every fourth tile: for image: scores
 *                              = q k^T by wgmma; weights, in registers, are the A operand of their
 *                              product with the values; rows to shared memory, and out by tensor
 *                              copies of sixteen
 *            Four tiles are a round: images come in the order in which rounds see them, and stay
 *            while the next round sees the same. Where all rows of a tile begin with an image
 *            nothing is masked, and there are no sums before.
 *  Geometry  `_sm90_64`: grid (runs of tiles, heads), a block a multiprocessor, 640 threads, 193
 *            KiB and 16 bytes for each tile of a run and three more: by them a block knows how
 *            many they are, and nothing is divided. Three tiles of queries for each warpgroup
 *            are there or on their way: all of 12288 rows are asked for at once.
 *  Traffic   q and o once; an image once per run of tiles that sees it, from L2, the first before
 *            the launch that makes q has ended: after what is seen, beside the queries.
 *  Rejected  sums of each image for themselves, added later: 32 registers more than there are.
 *            Weights of one part in f16, in which nearly all values of bf16 are exact: outputs
 *            that cancel need both parts. Blocks of one warpgroup: each image four times as often
 *            from L2. Not measured: the sum of weights as a column of the product with values, 40
 *            of 428 instructions of a warp's turn for an eighth more of that product. */
#include "cross_attention.h"
#include "lib/attend.cuh"

constexpr int GROUPS = 4, GROUP_THREADS = 128, ROW_THREADS = GROUPS * GROUP_THREADS;
/** Tiles whose queries are there or on their way; a warpgroup has every fourth. */
constexpr int PLACES = 3 * GROUPS;

/** Images `first` .. `end` that rows of a tile see; none if `end` is 0. */
struct alignas(16) Seen {
  static constexpr uint32_t NONE = 0x7fffffff;
  uint32_t first, end;
  uint32_t alone; /**< the one that all rows begin with, and attend to; or NONE */
  uint32_t reserved;
};

template <typename T> struct alignas(1024) CrossSm90Shared {
  Tile<T, 64> q[PLACES], k[2], v[2], o[GROUPS];
  float4 kept[4][ROW_THREADS];
  uint64_t full[PLACES], empty[PLACES];
  uint64_t filled[2], read[2]; /**< keys and values */
};

#if HAS_SM90A
/** That copy images. */
constexpr int IMAGE_THREADS = 64;
/** That come to know what is seen, and that barriers are there. */
constexpr int BARRIER_THREADS = ROW_THREADS + IMAGE_THREADS + WARP;

template <typename T>
__device__ __forceinline__ void wgmma(float (&d)[8][4], uint64_t a, uint64_t b, bool add) {
  wgmma<T, 64>(reinterpret_cast<float(&)[32]>(d), a, b, add);
}
template <typename T>
__device__ __forceinline__ void wgmma_rows(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b,
                                           bool add) {
  float(&sums)[32] = reinterpret_cast<float(&)[32]>(d);
  if constexpr (is_bf16<T>)
    ptx::wgmma_rows_bf16(sums, a, b, add);
  else
    ptx::wgmma_rows_f16(sums, a, b, add);
}
__device__ __forceinline__ void finish_products(float (&d)[8][4]) {
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::wgmma_settle(reinterpret_cast<float(&)[32]>(d));
}

/** Images in the order in which rounds see them. */
struct ImageOrder {
  int round = 0; /**< the next one */
  uint32_t image = Seen::NONE, end = 0;

  /** False if that was all. */
  template <typename Run> __device__ __forceinline__ bool next(const Run &run) {
    if (image + 1 < end) return image++, true;
    while (round * GROUPS < run.tiles) {
      const Seen all = run.round(round++);
      if (all.end != 0) return image = all.first, end = all.end, true;
    }
    return false;
  }
};

/** A run of tiles of one head. */
template <typename T> struct CrossTiles {
  using Shared = CrossSm90Shared<T>;
  const CrossAttentionParams &p;
  Shared &s;
  Seen *const seen; /**< of whole rounds */
  const int row0, tiles, head;

  __device__ __forceinline__ CrossTiles(const CrossAttentionParams &p, Shared &s, int room)
      : p(p), s(s), seen(reinterpret_cast<Seen *>(&s + 1)),
        row0((int)blockIdx.x * room * TILE_ROWS),
        tiles(min(room, ((int)p.rows - row0 + TILE_ROWS - 1) / TILE_ROWS)), head((int)blockIdx.y) {}

  __device__ __forceinline__ MediaSpan span(int row) const {
    return row < (int)p.rows ? p.spans[row] : MediaSpan{0, 0, 0};
  }

  /** By one warp. */
  __device__ __forceinline__ void copy_queries(const TensorMaps &maps) const {
    if (lane() == 0) {
      ptx::tma_prefetch(&maps.map[0]);
      ptx::tma_prefetch(&maps.map[1]);
      for (int i = 0; i < PLACES; i++) {
        ptx::mbarrier_init(&s.full[i], 1);
        ptx::mbarrier_init(&s.empty[i], GROUP_THREADS / WARP);
      }
      for (int i = 0; i < 2; i++) {
        ptx::mbarrier_init(&s.filled[i], IMAGE_THREADS);
        ptx::mbarrier_init(&s.read[i], ROW_THREADS / WARP);
      }
      ptx::fence_barrier_init();
    }
    __syncwarp();
    ptx::bar_arrive(1, BARRIER_THREADS);
    if (lane() != 0) return;
    ptx::wait_for_launch_before();
    for (int i = 0; i < tiles; i++) {
      const int place = i % PLACES;
      if (i >= PLACES) ptx::mbarrier_wait(&s.empty[place], (uint32_t)(i / PLACES & 1 ^ 1));
      ptx::mbarrier_arrive_expect_tx(&s.full[place], sizeof s.q[0]);
      ptx::tma_load_2d(s.q[place].cells, &maps.map[0], &s.full[place], head * 64,
                       row0 + i * TILE_ROWS);
    }
  }

  /** By IMAGE_THREADS: keys and values of each image that is another one than the one before. What
   *  is seen of images, and where they are, was there before the launch before this one. */
  __device__ __forceinline__ void copy_images(int thread) const {
    // Where the first image is shall not have to be read when it is known which one that is.
    const uint64_t line = lane() < (int)p.images ? reinterpret_cast<uint64_t>(p.kv[lane()]) : 0;
    ptx::bar_sync(1, BARRIER_THREADS);
    ImageOrder order;
    const int r = thread / 8, chunk = thread % 8, width = p.heads * 64;
    const int64_t stride = 2 * (int64_t)width;
    uint32_t i = 0, before = Seen::NONE;
    for (; order.next(*this); before = order.image) {
      if (order.image == before) continue;
      const uint32_t stage = i % 2;
      const uint64_t of_lane = __shfl_sync(ALL_LANES, line, order.image % WARP);
      const T *from = order.image < WARP ? reinterpret_cast<const T *>(of_lane)
                                         : static_cast<const T *>(p.kv[order.image]);
      from += r * stride + head * 64 + chunk * 8;
      T *to = s.k[stage].chunk(r, chunk);
      ptx::mbarrier_wait(&s.read[stage], i / 2 & 1 ^ 1);
#pragma unroll
      for (int row = 0; row < TILE_KEYS; row += IMAGE_THREADS / 8) {
        ptx::cp_async16(to + row * 64, from, true);
        ptx::cp_async16(to + row * 64 + (s.v[0].cells - s.k[0].cells), from + width, true);
        from += IMAGE_THREADS / 8 * stride;
      }
      ptx::cp_async_commit();
      ptx::cp_async_wait<0>();
      ptx::fence_async_shared();
      ptx::mbarrier_arrive(&s.filled[stage]);
      i++;
    }
  }

  /** By a warp: what its tiles see. */
  __device__ __forceinline__ void look() const {
#pragma unroll 1
    for (int i = warp(); i < tiles + GROUPS - 1; i += ROW_THREADS / WARP) {
      const int row = i < tiles ? row0 + i * TILE_ROWS + lane() : (int)p.rows;
      const MediaSpan spans[2] = {span(row), span(row + WARP)};
      uint32_t first = Seen::NONE, end = 0;
#pragma unroll
      for (const MediaSpan &s : spans) {
        const bool is_some = s.begin < s.end;
        first = is_some ? min(first, (uint32_t)s.begin) : first;
        end = is_some ? max(end, (uint32_t)s.end) : end;
      }
      first = __reduce_min_sync(ALL_LANES, first), end = __reduce_max_sync(ALL_LANES, end);
      bool is_alone = true;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const MediaSpan &s = spans[half];
        // Rows beyond the last are nobody's.
        is_alone &= row + half * WARP >= (int)p.rows ||
                    (s.begin == (int)first && s.begin < s.end && !s.uniform);
      }
      is_alone = __all_sync(ALL_LANES, is_alone);
      if (lane() == 0) seen[i] = {first, end, is_alone ? first : Seen::NONE, 0};
    }
  }

  /** What the tiles of a round see between them: a lane looks at one of them. */
  __device__ __forceinline__ Seen round(int i) const {
    const Seen &tile = seen[i * GROUPS + lane() % GROUPS];
    return {__reduce_min_sync(ALL_LANES, tile.first), __reduce_max_sync(ALL_LANES, tile.end),
            Seen::NONE, 0};
  }
};

/** Scores of this lane's row `half`, as a row of that span makes them of an image; false if it does
 *  not see it. */
__device__ __forceinline__ bool mask(float (&x)[8][4], int half, const MediaSpan &span, int image) {
  const bool sees = span.begin <= image && image < span.end;
#pragma unroll
  for (int j = 0; j < 8; j++)
#pragma unroll
    for (int e = half * 2; e < half * 2 + 2; e++)
      x[j][e] = !sees ? -INFINITY : span.uniform ? 0.0f : x[j][e];
  return sees;
}

/** Descriptors of the tiles that a warpgroup multiplies. */
struct Operands {
  /** Of a tile in 16 bytes, of sixteen columns, and of sixteen rows. */
  static constexpr uint32_t TILE = 64 * 64 * 2 / 16, COLUMNS = 16 * 2 / 16, ROWS = 16 * 64 * 2 / 16;
  uint64_t q, k, v;

  /** Opaque: what is added to it stays one addition, not an `or` of each half. */
  static __device__ __forceinline__ uint64_t of(const void *tile) {
    const uint64_t descriptor = ptx::shared_descriptor_128b(tile);
    return (descriptor & 0xffffffff00000000u) | ptx::opaque((uint32_t)descriptor);
  }
  __device__ __forceinline__ Operands at(uint32_t place, uint32_t stage) const {
    return {q + place * TILE, k + stage * TILE, v + stage * TILE};
  }
};

/** Where a thread leaves its sums and takes them back: half of them where its warp's rows are on
 *  their way out, once those before have left. */
struct Kept {
  float4 (&cells)[4][ROW_THREADS];
  float4 *out;

  __device__ __forceinline__ float4 &cell(int j) const {
    return j < 4 ? cells[j][threadIdx.x] : out[(j - 4) * WARP + lane()];
  }
  __device__ __forceinline__ void put(const float (&o)[8][4]) const {
    if (lane() == 0) ptx::tma_store_wait<0>();
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 8; j++) cell(j) = make_float4(o[j][0], o[j][1], o[j][2], o[j][3]);
  }
  __device__ __forceinline__ void get(float (&o)[8][4]) const {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float4 x = cell(j);
      o[j][0] = x.x, o[j][1] = x.y, o[j][2] = x.z, o[j][3] = x.w;
    }
  }
};

/** A tile of 64 rows of a warpgroup on its way through the images: sixteen rows a warp. */
template <typename T> struct GroupRows {
  RunningSoftmax running[2]; /**< of rows lane / 4 and lane / 4 + 8 */
  float o[8][4];             /**< nothing yet before the first image, or `clear` */

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) o[j][e] = 0;
  }

  /** Takes the first image, of which all rows see all. */
  __device__ __forceinline__ void take_alone(const Operands &tiles, float unit) {
    float x[8][4];
    scores(x, tiles);
#pragma unroll
    for (int half = 0; half < 2; half++) running[half].max = largest(x, half) * unit;
#pragma unroll
    for (int half = 0; half < 2; half++)
      running[half].sum = weigh(x, half, unit, running[half].base());
    products(x, tiles);
  }

  /** Takes an image after others, or the first if `is_first`; `mask(x, half)` turns the scores of
   *  this lane's row `half` into what it makes of them, and is false if it does not see the image.
   *  A row's first image comes to the same as by `take_alone`, to the bit. */
  template <typename Mask>
  __device__ __forceinline__ void take(const Operands &tiles, float unit, bool is_first,
                                       const Kept &kept, Mask mask) {
    float x[8][4], factor[2];
    scores(x, tiles);
    const bool sees[2] = {mask(x, 0), mask(x, 1)};
    const bool is_kept = !__any_sync(ALL_LANES, sees[0] || sees[1]);
#pragma unroll
    for (int half = 0; half < 2; half++)
      factor[half] = running[half].raise(largest(x, half) * unit);
    if (is_first) clear();
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) o[j][e] *= factor[e / 2];
    // Values that are no numbers are only for those who see them.
    if (is_kept) kept.put(o);
#pragma unroll
    for (int half = 0; half < 2; half++)
      running[half].sum += weigh(x, half, unit, running[half].base());
    add_products(x, tiles);
    if (is_kept) kept.get(o);
  }

  /** The warp's rows go to its sixteen of `to`, `first` on, and from there to `row` of a head. */
  __device__ __forceinline__ void store(Tile<T, 64> &to, int first, const TensorMap *map, int head,
                                        int row) {
    float norm[2];
#pragma unroll
    for (int half = 0; half < 2; half++) norm[half] = norm_of_row(running[half]);
    const int l = lane();
    if (l == 0) ptx::tma_store_wait<0>();
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t cells[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        cells[i] = pack2<T>(o[j + i / 2][i % 2 * 2] * norm[i % 2],
                            o[j + i / 2][i % 2 * 2 + 1] * norm[i % 2]);
      ptx::stmatrix_x4(to.chunk(first + l % 16, j + l / 16), cells);
    }
    ptx::fence_async_shared();
    __syncwarp();
    if (l == 0) {
      ptx::tma_store_2d(map, to.cells + first * 64, head * 64, row + first);
      ptx::tma_store_commit();
    }
  }

private:
  static __device__ __forceinline__ void scores(float (&x)[8][4], const Operands &tiles) {
    ptx::wgmma_fence();
#pragma unroll
    for (int c = 0; c < 4; c++)
      wgmma<T>(x, tiles.q + c * Operands::COLUMNS, tiles.k + c * Operands::COLUMNS, c > 0);
    finish_products(x);
  }
  /** o = weights times values: half of them are made while products of the others run. */
  __device__ __forceinline__ void products(const float (&x)[8][4], const Operands &tiles) {
    TwoWeights<T> weights[4];
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      weights[j].set(x, j), weights[j + 1].set(x, j + 1);
      ptx::wgmma_fence();
      multiply(weights[j], tiles, j, j > 0);
      multiply(weights[j + 1], tiles, j + 1, true);
    }
    finish_products(o);
  }
  /** o += weights times values: all of them first, for want of registers. */
  __device__ __forceinline__ void add_products(const float (&x)[8][4], const Operands &tiles) {
    TwoWeights<T> weights[4];
#pragma unroll
    for (int j = 0; j < 4; j++) weights[j].set(x, j);
    ptx::wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++) multiply(weights[j], tiles, j, true);
    finish_products(o);
  }
  __device__ __forceinline__ void multiply(const TwoWeights<T> &weights, const Operands &tiles,
                                           int j, bool add) {
    const uint64_t v = tiles.v + j * Operands::ROWS;
    wgmma_rows<T>(o, weights.high, v, add);
    wgmma_rows<T>(o, weights.low, v, true);
  }
};

/** By the four warpgroups. */
template <typename T>
__device__ __forceinline__ void take_rows(const CrossTiles<T> &run, const TensorMap *map) {
  CrossSm90Shared<T> &s = run.s;
  run.look();
  ptx::setmaxnreg_inc<112>();
  ptx::bar_sync(1, BARRIER_THREADS);
  ptx::wait_for_launch_before();
  // The same for all lanes, as the compiler can tell.
  const int w = __shfl_sync(ALL_LANES, warp(), 0), group = w / GROUPS;
  const int first = w % GROUPS * WARP_ROWS, l = lane();
  const float unit = run.p.scale * LOG2_E;
  const Operands tiles = {Operands::of(s.q[0].cells), Operands::of(s.k[0].cells),
                          Operands::of(s.v[0].cells)};
  // Which image is there, and how many have been.
  uint32_t held = Seen::NONE, images = 0, stage = 0;
  for (int round = 0; round * GROUPS < run.tiles; round++) {
    const uint32_t i = (uint32_t)(round * GROUPS + group), place = i % PLACES;
    const Seen all = run.round(round), own = run.seen[i];
    const uint32_t phase = i / PLACES & 1;
    GroupRows<T> rows;
    for (uint32_t image = all.first; image < all.end; image++) {
      if (image != held) {
        if (held != Seen::NONE && l == 0) ptx::mbarrier_arrive(&s.read[stage]);
        held = image, stage = images % 2;
        ptx::mbarrier_wait(&s.filled[stage], images++ / 2 & 1);
      }
      if (image < own.first || image >= own.end) continue;
      ptx::mbarrier_wait(&s.full[place], phase);
      const Operands operands = tiles.at(place, stage);
      if (image == own.alone) {
        rows.take_alone(operands, unit);
      } else {
        const int row = run.row0 + (int)i * TILE_ROWS + first + l / 4;
        float4 *const out = reinterpret_cast<float4 *>(s.o[group].cells + first * 64);
        rows.take(operands, unit, image == own.first, Kept{s.kept, out},
                  [&](float(&x)[8][4], int half) {
                    return mask(x, half, run.span(row + half * 8), (int)image);
                  });
      }
    }
    if ((int)i >= run.tiles) break;
    if (own.end == 0) {
      ptx::mbarrier_wait(&s.full[place], phase);
      rows.clear();
    }
    if (l == 0) ptx::mbarrier_arrive(&s.empty[place]);
    rows.store(s.o[group], first, map, run.head, run.row0 + (int)i * TILE_ROWS);
  }
  if (l == 0) ptx::tma_store_wait<0>();
}
#endif

template <typename T>
__device__ __forceinline__ void cross_attention_tiles(const CrossAttentionParams &p,
                                                      const TensorMaps &maps) {
#if HAS_SM90A
  using Shared = CrossSm90Shared<T>;
  SHARED(Shared, s);
  const int room =
      (int)(ptx::dynamic_shared_bytes() - sizeof s) / (int)sizeof(Seen) - (GROUPS - 1);
  const CrossTiles<T> run(p, s, room);
  if (threadIdx.x < ROW_THREADS) return take_rows(run, &maps.map[1]);
  // What the block has registers for: 640 times 96.
  ptx::setmaxnreg_dec<32>();
  const int thread = (int)threadIdx.x - ROW_THREADS;
  if (thread < IMAGE_THREADS)
    run.copy_images(thread);
  else if (thread < IMAGE_THREADS + WARP)
    run.copy_queries(maps);
#endif
}

#define CROSS_ATTENTION(name, T)                                                                   \
  KERNEL_TMA(cross_attention_##name##_sm90_64, CrossAttentionParams, 640, 1) {                     \
    cross_attention_tiles<T>(p, maps);                                                             \
  }

CROSS_ATTENTION(bf16, bf16)
CROSS_ATTENTION(f16, f16)

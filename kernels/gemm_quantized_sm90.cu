/*  `gemm_quantized` of one or two rows on Hopper (sm_90a): what decoding does with few bits
 *
 *  Idea      as `_rows8_kept` of gemm_quantized.cu: bytes of B times digits of A. But B comes by
 *            tensor copies, in pieces of 16 rows by 128 bytes, to a ring that is a warp's own:
 *              a warp:  copy its first pieces; wait until the launch before this one has ended;
 *                       rows of A, or their norm, as digits
 *                       for tile, piece: wait until it is there; sums += B A^T; copy the next
 *              C = epilogue(sum over the warps, in their order)
 *            Loads of A do not queue behind such copies, so the ring is as long as there is room;
 *            and a step has no addresses to count.
 *  Geometry  blocks that stay, 2 a multiprocessor, 8 warps that divide k by pieces; a stage of the
 *            ring is 16 KiB, as many as shared memory has room for beside A, up to 6.
 *            128-byte permutation: rows i and i + 4 of a piece lie in other banks, so they are
 *            neighbours in a fragment.
 *  Traffic   B once, past L1; A once a block, with the norm's vectors.
 *  Rejected  copies without a tensor map: rows of a piece are 128 bytes, a copy each, 16 for one.
 *            Sharing a ring: whoever is late has everybody wait. */
#include "gemm_quantized.h"
#include "lib/few_bits.cuh"
#include "lib/few_rows.cuh"

constexpr int PIECE_ROWS = 16, PIECE_WIDTH = 128; /**< of B, bytes */
constexpr int STEP_WIDTH = 64;                    /**< of a step: four runs */
constexpr int PIECE_STEPS = PIECE_WIDTH / STEP_WIDTH;
constexpr int MOST_STAGES = 6;

struct alignas(1024) Piece {
  unsigned char bytes[PIECE_ROWS * PIECE_WIDTH];
};
/** Of the ring: a piece for each warp. */
using Stage = Piece[FEW_WARPS];

/** The sums of each warp, of a tile and of the next; and the barriers of its stages. */
struct BytesSm90Shared {
  float sums[2][FEW_WARPS][MOST_KEPT][PIECE_ROWS];
  uint64_t full[MOST_STAGES][FEW_WARPS];
};

template <typename T, typename Weights>
using KeptBytes = KeptShared<BytesSm90Shared, T, Weights, PIECE_STEPS>;

#if HAS_SM90A
/** One warp's part: 16 rows of B, the pieces of k that are its own, in each tile of its block. */
template <typename T, typename Weights> struct ByteRows {
  static constexpr int STEP = 4 * Weights::RUN; /**< k of a step */

  const GemmParams &p;
  const Weights w;
  const TensorMap &map;
  Stage *const ring;
  BytesSm90Shared &s;
  const bool is_glu;
  const int stages, tiles, pieces; /**< of the ring, of B, and of k, which is whole pieces */
  const int row;                   /**< this lane's, in each half of a tile */

  DigitSums<Weights> sums;
  int stage = 0;
  uint32_t phase = 0;
  /** What is copied next: a piece of a tile. */
  int next_tile, next_piece = warp();
  /** The first groups, and the factors, of this lane's rows of B in the tile that is multiplied. */
  uint32_t groups[2];
  typename Weights::Factor factors[2];
  /** Scales that go with a piece, two groups of a row, as they are stored: widening one would wait
   *  for it. */
  uint32_t scales[2] = {};

  __device__ __forceinline__ ByteRows(const GemmParams &p, Weights w, const TensorMap &map,
                                      Stage *ring, int stages, BytesSm90Shared &s)
      : p(p), w(w), map(map), ring(ring), s(s), is_glu(p.activation == SWIGLU), stages(stages),
        tiles((int)((p.n + PIECE_ROWS - 1) / PIECE_ROWS)),
        pieces((int)(p.k / (PIECE_STEPS * STEP))), row(lane() / 8 + lane() / 4 % 2 * 4),
        // Of a short k, some warps have no piece.
        next_tile(warp() < pieces ? (int)blockIdx.x : tiles) {}

  __device__ __forceinline__ uint64_t *full(int stage) { return &s.full[stage][warp()]; }

  __device__ __forceinline__ void prepare_barriers() {
    if (lane() == 0) {
#pragma unroll 1
      for (int i = 0; i < stages; i++) ptx::mbarrier_init(full(i), 1);
      ptx::fence_barrier_init();
    }
    __syncwarp();
  }

  /** Asks for the next piece that nobody has asked for, if there is one. */
  __device__ __forceinline__ void copy(int stage) {
    if (next_tile >= tiles) return;
    if (lane() == 0) {
      unsigned char *const to = ring[stage][warp()].bytes;
      // Columns of a map are of two bytes.
      const int x = next_piece * (PIECE_WIDTH / 2), rows = is_glu ? PIECE_ROWS / 2 : PIECE_ROWS;
      ptx::mbarrier_arrive_expect_tx(full(stage), sizeof(Piece));
      ptx::tma_load_2d(to, &map, full(stage), x, next_tile * rows);
      // Of SwiGLU the gates, and behind them their values.
      if (is_glu)
        ptx::tma_load_2d(to + sizeof(Piece) / 2, &map, full(stage), x,
                         next_tile * rows + (int)(p.n / 2));
    }
    next_piece += FEW_WARPS;
    if (next_piece < pieces) return;
    next_piece = warp(), next_tile += (int)gridDim.x;
    if (next_tile < tiles) foresee(next_tile);
  }

  /** Asks L2 for the scales of a tile: one warp for all, a lane for each 64 bytes, of rows of up to
   *  128 groups. */
  __device__ __forceinline__ void foresee(int tile) const {
    if constexpr (Weights::GROUPED) {
      const int at = lane() % 4 * 32;
      if (warp() != 0 || at >= pieces * PIECE_STEPS) return;
#pragma unroll
      for (int half = 0; half < 2; half++)
        ptx::prefetch(w.scales + w.first_group(row_of_b(tile, half)) + at);
    }
  }

  __device__ __forceinline__ int row_of_b(int tile, int half) const {
    return row_in_turn(p, is_glu, tile * PIECE_ROWS, 0, half, row);
  }

  /** Begins the sums of a tile; past the last, of its last rows again. */
  __device__ __forceinline__ void begin(int tile) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int from = row_of_b(tile, half);
      if constexpr (Weights::GROUPED) groups[half] = w.first_group(from);
      factors[half] = w.row_scale(from);
    }
    sums.clear();
    ask(warp());
  }

  /** Asks for the scales of a piece. */
  __device__ __forceinline__ void ask(int piece) {
    static_assert(PIECE_STEPS == 2, "two scales are a load");
    if constexpr (Weights::GROUPED) {
      if (piece >= pieces) return;
#pragma unroll
      for (int half = 0; half < 2; half++)
        scales[half] = *reinterpret_cast<const uint32_t *>(
            w.scales + (groups[half] + (uint32_t)(piece * PIECE_STEPS)));
    }
  }

  /** Adds the products of this warp's pieces; `digits` are this lane's. */
  __device__ __forceinline__ void multiply(const unsigned char *digits) {
#pragma unroll 1
    for (int piece = warp(); piece < pieces; piece += FEW_WARPS) {
      const uint32_t own[2] = {scales[0], scales[1]};
      ask(piece + FEW_WARPS);
      ptx::mbarrier_wait(full(stage), phase);
      const unsigned char *const b = ring[stage][warp()].bytes + row * PIECE_WIDTH;
#pragma unroll
      for (int u = 0; u < PIECE_STEPS; u++) {
        // Permuted by the row, as tensor copies leave it.
        const unsigned char *const run = b + ((u * 4 + lane() % 4) ^ row) * 16;
        const uint4 runs[2] = {
            *reinterpret_cast<const uint4 *>(run),
            *reinterpret_cast<const uint4 *>(run + PIECE_ROWS / 2 * PIECE_WIDTH)};
        const float of_group[2] = {u ? high2<bf16>(own[0]) : low2<bf16>(own[0]),
                                   u ? high2<bf16>(own[1]) : low2<bf16>(own[1])};
        sums.add(runs, digits + (piece * PIECE_STEPS + u) * STEP, of_group);
      }
      __syncwarp(); // All have read the stage.
      copy(stage);
      if (++stage == stages) stage = 0, phase ^= 1;
    }
  }

  /** Leaves the sums of rows of A below m, of which each is in units of its own. */
  __device__ __forceinline__ void put(int turn, int m, float unit) {
    sums.each(m, [&](int row_of_a, int half, float sum) {
      s.sums[turn][warp()][row_of_a][half * (PIECE_ROWS / 2) + row] =
          sum * unit * widen(factors[half]);
    });
  }
};
#endif

template <typename T, typename Weights>
__device__ __forceinline__ void byte_rows(const GemmParams &p, Weights w, const TensorMaps &maps) {
#if HAS_SM90A
  SHARED(Stage, ring);
  using Kept = KeptBytes<T, Weights>;
  const int room = (int)ptx::dynamic_shared_bytes() - Kept::bytes(p);
  const int stages = min(room / (int)sizeof(Stage), MOST_STAGES);
  auto &kept = *reinterpret_cast<Kept *>(&ring + stages);
  if (threadIdx.x == 0) ptx::tma_prefetch(&maps.map[0]);
  ByteRows<T, Weights> rows(p, w, maps.map[0], &ring, stages, kept.product);
  rows.prepare_barriers();
#pragma unroll 1
  for (int i = 0; i < stages; i++) rows.copy(i);
  kept.ask(p);
  rows.begin((int)blockIdx.x);
  // Weights and their scales are nobody's to write; rows of A are the launch's before this one.
  ptx::wait_for_launch_before();
  kept.template make<0>(p, [] {});
  const unsigned char *const digits = kept.own_digits(p);
  const float unit = kept.own_unit(p);
  const Epilogue<T> epilogue(p);
  int turn = 0;
  for (int tile = (int)blockIdx.x; tile < rows.tiles; tile += (int)gridDim.x, turn++) {
    rows.multiply(digits);
    // The sums of the tile before may still be read; those before it no more.
    rows.put(turn % 2, (int)p.m, unit);
    rows.begin(tile + (int)gridDim.x);
    __syncthreads();
    // One warp adds them, while the others go on.
    if (warp() == turn % FEW_WARPS)
      store_tile(kept.product.sums[turn % 2], epilogue, rows.is_glu, tile, 0, (int)p.m);
  }
#endif
}

#define BYTE_ROWS(name, T)                                                                         \
  using Int8_##name = Int8Weights<T>;                                                              \
  using Int4_##name = Int4Weights<T, true>;                                                        \
  KERNEL_TMA(gemm_quantized_##name##_int8_sm90_rows8, GemmQuantizedParams, FEW_THREADS, 2) {       \
    byte_rows<T>(p.product, Int8_##name(p), maps);                                                 \
  }                                                                                                \
  KERNEL_TMA(gemm_quantized_##name##_int4_sm90_rows8, GemmQuantizedParams, FEW_THREADS, 2) {       \
    byte_rows<T>(p.product, Int4_##name(p), maps);                                                 \
  }

BYTE_ROWS(bf16, bf16)
BYTE_ROWS(f16, f16)

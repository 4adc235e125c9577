/*  `gemm` on Hopper's tensor cores (sm_90a): wgmma out of tiles that tensor copies bring
 *
 *  Idea      the last warpgroup:   for tile, k0 in steps of 64: wait until a stage is empty; one
 *                                  thread copies A and B to it; B of the first stages before the
 *                                  launch before this one has ended
 *            the others, 64 rows:  wait until it is full; acc += A B^T; the stage before is empty;
 *                                  after the last step the epilogue, while the next tile is copied
 *            grid.z > 1 splits k, as in `gemm.cu`. B is copied in two halves of a tile's columns:
 *            of SwiGLU gates and their values, which then stand in the same thread.
 *            `_turns`: a warpgroup has a tile to itself, and the next is the other's: the epilogue
 *            of one runs beside the products of the other, which k of 1024 is too short to go
 *            without.
 *  Geometry  grid (blocks that the card holds, 1, parts of k); a block takes every grid.x-th tile,
 *            in bands of 8 tiles of rows. `_sm90_128x256`: 2 warpgroups of 64x256, 4 stages, 211
 *            KiB; `_sm90_128x192`, `_sm90_128x176`, `_sm90_128x128`: 5, 5 and 6 stages (176: what
 *            256 rows and 22016 columns make of two rounds of 132 blocks). `_sm90_turns_128x128`:
 *            2 warpgroups of 128x128, 6 stages. `_sm90_64x128`: 1 of 64x128, 4 stages, 106 KiB: two
 *            blocks a multiprocessor, one's epilogue beside the other's products. `_sm90_64x64`: as
 *            that, 6 stages: of few rows of A and of B, where 64x128 are 96 or 128 blocks on 132
 *            multiprocessors, half as much again of B on its way.
 *  Traffic   A (n / BN) times and B (m / BM) times through L2; C and residual once.
 *  Rejected  one copying warp instead of a warpgroup: registers are counted by groups of four
 *            warps, so it leaves the others no more (168), and `setmaxnreg` has no say. Clusters of
 *            two blocks that share B, and of two and two that share A as well: never the fastest of
 *            38 products of the model, by 1 to 50 % and by 8 to 130 % (H200). Sums through shared
 *            memory, each 16 x 32 of them in code of its own: of vision's products (k of 1024) two
 *            thirds of the time. */
#include "gemm.h"
#include "lib/epilogue.cuh"
#include "lib/mma.cuh"
#include "lib/reduce.cuh"
#include "lib/ring.cuh"
#include "lib/split.cuh"

constexpr int BK = 64;

/** How a block works: GROUPS warpgroups that multiply, ROWS rows of a tile each, or in turns a tile
 *  each; tiles BN columns wide. */
template <int GROUPS_, int ROWS_, int BN_, int STAGES_, bool IN_TURNS_ = false>
struct Plan {
  static constexpr int GROUPS = GROUPS_, ROWS = ROWS_, BN = BN_, STAGES = STAGES_;
  static constexpr bool IN_TURNS = IN_TURNS_;
  static constexpr int BM = IN_TURNS ? ROWS : GROUPS * ROWS;
  /** Threads that multiply, and the warps that a copy waits for. */
  static constexpr int THREADS = GROUPS * 128, WARPS = BM / ROWS * 4;
  /** Of a thread that multiplies. */
  static constexpr int REGISTERS = GROUPS == 1 ? 224 : 240;
};

template <typename T, typename P> struct alignas(1024) GemmSm90Shared {
  T a[P::STAGES][P::BM * BK];
  T b[P::STAGES][P::BN * BK];
  typename Epilogue<T>::Stage out[P::GROUPS * 4]; /**< of each warp that multiplies */
  uint64_t full[P::STAGES], empty[P::STAGES];
  uint64_t turn[2]; /**< of a warpgroup: the other has seen all stages of its tile filled */
  int is_last;
};

#if HAS_SM90A
/** C in tiles, in the order in which they are taken. */
struct Tiles {
  static constexpr int BAND = 8;
  int down, across;

  __device__ __forceinline__ int count() const { return down * across; }
  /** Where tile `i` is: bands of BAND tiles of rows, so that tiles at work share A and B in L2. */
  __device__ __forceinline__ void place(int i, int &row, int &col) const {
    int band = i / (BAND * across), in = i - band * BAND * across;
    int rows = min(BAND, down - band * BAND);
    row = band * BAND + in % rows, col = in / rows;
  }
};

/** What a block does: every `stride`-th tile from `first` on, steps `begin .. end` of k. */
template <typename T, typename P> struct Share {
  static constexpr int BM = P::BM, BN = P::BN;
  static constexpr int HALVES = P::ROWS / 64; /**< of a warpgroup's rows */
  const GemmParams &p;
  GemmSm90Shared<T, P> &s;
  const Tiles tiles;
  const int first, stride;
  const bool is_glu;
  int begin, end;

  __device__ __forceinline__ Share(const GemmParams &p, GemmSm90Shared<T, P> &s)
      : p(p), s(s), tiles{(int)((p.m + BM - 1) / BM), (int)((p.n + BN - 1) / BN)},
        first((int)blockIdx.x), stride((int)gridDim.x), is_glu(p.activation == SWIGLU) {
    const int parts = (int)gridDim.z, all = (int)((p.k + BK - 1) / BK);
    const int each = (all + parts - 1) / parts;
    begin = min(all, (int)blockIdx.z * each), end = min(all, begin + each);
  }

  __device__ __forceinline__ void prepare_barriers() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < P::STAGES; i++) {
        ptx::mbarrier_init(&s.full[i], 1);
        ptx::mbarrier_init(&s.empty[i], P::WARPS);
      }
      for (uint64_t &turn : s.turn) ptx::mbarrier_init(&turn, 4);
      ptx::fence_barrier_init();
    }
    __syncthreads();
  }

  /** By one thread. */
  __device__ __forceinline__ void copy(const TensorMaps &maps) {
    Ring<P::STAGES> ring;
    ptx::tma_prefetch(&maps.map[0]);
    ptx::tma_prefetch(&maps.map[1]);
    int row, col, early = 0;
    if (first < tiles.count()) {
      tiles.place(first, row, col);
      for (; early < min(P::STAGES, end - begin); early++) ask_b(maps, early, begin + early, col);
    }
    // Weights are nobody's to write; rows of A are the launch's before this one.
    ptx::wait_for_launch_before();
    for (int tile = first; tile < tiles.count(); tile += stride) {
      tiles.place(tile, row, col);
      for (int step = begin; step < end; step++, ring.next()) {
        if (early > 0) {
          early--;
        } else {
          ptx::mbarrier_wait(&s.empty[ring.stage], ring.phase ^ 1);
          ask_b(maps, ring.stage, step, col);
        }
        ask_a(maps, ring.stage, step, row);
      }
    }
  }

  /** By the warpgroups before the last. */
  __device__ __forceinline__ void multiply() {
    const int group = (int)threadIdx.x / 128, own = P::IN_TURNS ? 0 : group * P::ROWS;
    const Epilogue<T> epilogue(p);
    Ring<P::STAGES> ring;
    int turn = 0, row, col;
    uint32_t phase = group == 0; // The first turn is the first warpgroup's.
    ptx::wait_for_launch_before();
    for (int tile = first; tile < tiles.count(); tile += stride, turn ^= 1) {
      if (P::IN_TURNS && turn != group) {
        ring.skip(end - begin);
        continue;
      }
      float acc[HALVES][BN / 2];
      // A stage's parity does not tell a use from the one before last: nobody may be ahead.
      if (P::IN_TURNS) ptx::mbarrier_wait(&s.turn[group], phase), phase ^= 1;
      const int last = add_products(acc, ring, own);
      if (P::IN_TURNS && lane() == 0) ptx::mbarrier_arrive(&s.turn[group ^ 1]);
      ptx::wgmma_wait<0>();
#pragma unroll
      for (int h = 0; h < HALVES; h++) ptx::wgmma_settle(acc[h]);
      if (last >= 0) leave(last);

      if constexpr (!P::IN_TURNS) {
        if (gridDim.z > 1) {
          bool is_whole = merge_parts<BN / 2, P::THREADS>(
              p.workspace, tile, s.is_last,
              [&](int e) -> float & { return acc[0][e]; },
              [] { ptx::bar_sync(1, P::THREADS); });
          if (!is_whole) continue;
        }
      }
      if (is_glu) {
#pragma unroll
        for (int h = 0; h < HALVES; h++)
#pragma unroll
          for (int e = 0; e < BN / 4; e++)
            acc[h][e] = rounded::glu(acc[h][e], acc[h][e + BN / 4]);
      }
      tiles.place(tile, row, col);
      const int width = is_glu ? BN / 2 : BN;
      epilogue.template store_tile<BN, HALVES>(s.out[warp()],
                                                 (int64_t)row * BM + own + warp() % 4 * 16,
                                                 (int64_t)col * width, {64, width}, acc);
    }
  }

private:
  /** Has a stage wait for all of a step, and asks for its B. */
  __device__ __forceinline__ void ask_b(const TensorMaps &maps, int stage, int step, int col) {
    // In two halves: of SwiGLU gates and their values.
    const int width = is_glu ? BN / 2 : BN, away = is_glu ? (int)p.n / 2 : BN / 2;
    T *b = s.b[stage];
    uint64_t *full = &s.full[stage];
    ptx::mbarrier_arrive_expect_tx(full, sizeof(s.a[0]) + sizeof(s.b[0]));
    ptx::tma_load_2d(b, &maps.map[1], full, step * BK, col * width);
    ptx::tma_load_2d(b + BN / 2 * BK, &maps.map[1], full, step * BK, col * width + away);
  }
  /** Asks for its A. */
  __device__ __forceinline__ void ask_a(const TensorMaps &maps, int stage, int step, int row) {
    ptx::tma_load_2d(s.a[stage], &maps.map[0], &s.full[stage], step * BK, row * BM);
  }

  /** acc = the warpgroup's rows of A, from `own` on in a stage, times B^T. The last products may
   *  still run, in the stage that is returned. */
  __device__ __forceinline__ int add_products(float (&acc)[HALVES][BN / 2], Ring<P::STAGES> &ring,
                                              int own) {
#pragma unroll
    for (int h = 0; h < HALVES; h++)
#pragma unroll
      for (int e = 0; e < BN / 2; e++) acc[h][e] = 0;
    int before = -1;
    for (int step = begin; step < end; step++, ring.next()) {
      ptx::mbarrier_wait(&s.full[ring.stage], ring.phase);
      const T *a = s.a[ring.stage] + own * BK, *b = s.b[ring.stage];
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < BK; k += 16)
#pragma unroll
        for (int h = 0; h < HALVES; h++)
          wgmma<T, BN>(acc[h], ptx::shared_descriptor_128b(a + h * 64 * BK + k),
                       ptx::shared_descriptor_128b(b + k));
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();
      if (before >= 0) leave(before);
      before = ring.stage;
    }
    return before;
  }

  /** This warp needs the stage no more. */
  __device__ __forceinline__ void leave(int stage) {
    if (lane() == 0) ptx::mbarrier_arrive(&s.empty[stage]);
  }
};
#endif

template <typename T, typename P>
__device__ __forceinline__ void gemm(const GemmParams &p, const TensorMaps &maps) {
#if HAS_SM90A
  using Shared = GemmSm90Shared<T, P>;
  SHARED(Shared, s);
  Share<T, P> share(p, s);
  share.prepare_barriers();
  if (threadIdx.x >= P::THREADS) {
    ptx::setmaxnreg_dec<24>();
    if (threadIdx.x < P::THREADS + WARP) {
      if (lane() == 0) share.copy(maps);
    }
  } else {
    ptx::setmaxnreg_inc<P::REGISTERS>();
    share.multiply();
  }
#endif
}

#define GEMM(name, T)                                                                              \
  KERNEL_TMA(gemm_##name##_sm90_128x256, GemmParams, 384, 1) {                                     \
    gemm<T, Plan<2, 64, 256, 4>>(p, maps);                                                         \
  }                                                                                                \
  KERNEL_TMA(gemm_##name##_sm90_128x192, GemmParams, 384, 1) {                                     \
    gemm<T, Plan<2, 64, 192, 5>>(p, maps);                                                         \
  }                                                                                                \
  KERNEL_TMA(gemm_##name##_sm90_128x176, GemmParams, 384, 1) {                                     \
    gemm<T, Plan<2, 64, 176, 5>>(p, maps);                                                         \
  }                                                                                                \
  KERNEL_TMA(gemm_##name##_sm90_128x128, GemmParams, 384, 1) {                                     \
    gemm<T, Plan<2, 64, 128, 6>>(p, maps);                                                         \
  }                                                                                                \
  KERNEL_TMA(gemm_##name##_sm90_64x128, GemmParams, 256, 2) {                                      \
    gemm<T, Plan<1, 64, 128, 4>>(p, maps);                                                         \
  }                                                                                                \
  KERNEL_TMA(gemm_##name##_sm90_64x64, GemmParams, 256, 2) {                                       \
    gemm<T, Plan<1, 64, 64, 6>>(p, maps);                                                          \
  }                                                                                                \
  KERNEL_TMA(gemm_##name##_sm90_turns_128x128, GemmParams, 384, 1) {                               \
    gemm<T, Plan<2, 128, 128, 6, true>>(p, maps);                                                  \
  }

GEMM(bf16, bf16)
GEMM(f16, f16)

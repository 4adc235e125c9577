/*  `gemm` of 9 to 16 rows on Hopper's tensor cores (sm_90a): what a few sequences, or a question
 *  after known shots, multiply
 *
 *  Idea      the last warp:   for tile, k0 in steps of 64: wait until a stage is empty; one thread
 *                             copies 64 rows of B and 16 of A to it; B of the first stages before
 *                             the launch before this one has ended
 *            the warpgroup:   wait until it is full; sums += B A^T: B is the operand of 64 rows, so
 *                             that nothing is multiplied for rows that A does not have; the stage
 *                             before is empty; after the last step a warp's 16 columns of C
 *            grid.z > 1 splits k, as in `gemm.cu`. Of SwiGLU a tile is 32 gates and their values:
 *            two warps hand the sums of values to those that have the gates.
 *  Geometry  grid (blocks that the card holds, 1, parts of k), two a multiprocessor: 160 threads,
 *            10 stages of 10 KiB; a block takes every grid.x-th tile of 64 columns.
 *  Traffic   B once; A from L2, n / 64 times, a quarter of B's bytes.
 *  Rejected  two blocks of eight rows of `gemv.cu` for each tile: B twice through L2, 73 us for 48
 *            of eight rows (H200, 22016 by 4096); tiles of 64 rows of `gemm_sm90.cu`: 64 KiB on
 *            their way to a multiprocessor, 64 us. Gates and values by eights, so that a warp has
 *            both: nine copies a stage, 71 us. */
#include "gemm.h"
#include "lib/epilogue.cuh"
#include "lib/mma.cuh"
#include "lib/reduce.cuh"
#include "lib/ring.cuh"
#include "lib/split.cuh"

constexpr int BK = 64, ROWS = 16, COLS = 64, STAGES = 10;
constexpr int THREADS = 128; /**< that multiply */

template <typename T> struct alignas(1024) FewRowsSm90Shared {
  T b[STAGES][COLS * BK];
  T a[STAGES][ROWS * BK];
  typename Epilogue<T>::Stage out[THREADS / WARP];
  uint64_t full[STAGES], empty[STAGES];
  int is_last;
};

#if HAS_SM90A
constexpr int GATES = THREADS / WARP / 2; /**< warps that have gates of SwiGLU */

/** What a block does: every `stride`-th tile, steps `begin` .. `end` of k. */
template <typename T> struct FewRowsShare {
  const GemmParams &p;
  FewRowsSm90Shared<T> &s;
  const bool is_glu;
  const int tiles, first, stride;
  int begin, end;

  __device__ __forceinline__ FewRowsShare(const GemmParams &p, FewRowsSm90Shared<T> &s)
      : p(p), s(s), is_glu(p.activation == SWIGLU), tiles((int)((p.n + COLS - 1) / COLS)),
        first((int)blockIdx.x), stride((int)gridDim.x) {
    const int parts = (int)gridDim.z, all = (int)((p.k + BK - 1) / BK);
    const int each = (all + parts - 1) / parts;
    begin = min(all, (int)blockIdx.z * each), end = min(all, begin + each);
  }

  __device__ __forceinline__ void prepare_barriers() {
    if (threadIdx.x == THREADS) {
      for (int i = 0; i < STAGES; i++) {
        ptx::mbarrier_init(&s.full[i], 1);
        ptx::mbarrier_init(&s.empty[i], THREADS / WARP);
      }
      ptx::fence_barrier_init();
    }
    __syncthreads();
  }

  /** By one thread. */
  __device__ __forceinline__ void copy(const TensorMaps &maps) {
    Ring<STAGES> ring;
    ptx::tma_prefetch(&maps.map[1]);
    ptx::tma_prefetch(&maps.map[0]);
    int early = 0;
    if (first < tiles)
      for (; early < min(STAGES, end - begin); early++) ask_b(maps, early, begin + early, first);
    // Weights are nobody's to write; rows of A are the launch's before this one.
    ptx::wait_for_launch_before();
    for (int tile = first; tile < tiles; tile += stride)
      for (int step = begin; step < end; step++, ring.next()) {
        if (early > 0) {
          early--;
        } else {
          ptx::mbarrier_wait(&s.empty[ring.stage], ring.phase ^ 1);
          ask_b(maps, ring.stage, step, tile);
        }
        ptx::tma_load_2d(s.a[ring.stage], &maps.map[0], &s.full[ring.stage], step * BK, 0);
      }
  }

  /** By the warpgroup. */
  __device__ __forceinline__ void multiply() {
    const Epilogue<T> epilogue(p);
    const int g = lane() / 4, t = lane() % 4;
    Ring<STAGES> ring;
    ptx::wait_for_launch_before();
    for (int tile = first, turn = 0; tile < tiles; tile += stride, turn ^= 1) {
      float sums[8];
      add_products(sums, ring);
      if (gridDim.z > 1) {
        const bool is_whole = merge_parts<8, THREADS>(
            p.workspace, tile, s.is_last, [&](int e) -> float & { return sums[e]; },
            [] { ptx::bar_sync(1, THREADS); });
        if (!is_whole) continue;
      }
      if (is_glu && !join(sums, turn)) continue;
      const int warps = is_glu ? GATES : THREADS / WARP;
      const int64_t col = (int64_t)(tile * warps + warp()) * 16;
      epilogue.template store_parts<1, 1>(s.out[warp()], 0, col, {16, 16}, [&](int) {
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            float *to = s.out[warp()].x[j * 8 + t * 2 + e];
            to[g] = sums[j * 4 + e], to[8 + g] = sums[j * 4 + 2 + e];
          }
      });
    }
  }

private:
  /** Has a stage wait for all of a step, and asks for its B. */
  __device__ __forceinline__ void ask_b(const TensorMaps &maps, int stage, int step, int tile) {
    uint64_t *full = &s.full[stage];
    ptx::mbarrier_arrive_expect_tx(full, sizeof(s.a[0]) + sizeof(s.b[0]));
    // In two halves: of SwiGLU gates and their values.
    const int width = is_glu ? COLS / 2 : COLS, away = is_glu ? (int)p.n / 2 : COLS / 2;
    T *b = s.b[stage];
    ptx::tma_load_2d(b, &maps.map[1], full, step * BK, tile * width);
    ptx::tma_load_2d(b + COLS / 2 * BK, &maps.map[1], full, step * BK, tile * width + away);
  }

  /** SwiGLU: the warps that have values leave them to those that have the gates, in their own
   *  memory for sums on their way out, in turns. True in the latter. */
  __device__ __forceinline__ bool join(float (&sums)[8], int turn) {
    auto value = [&](int e) -> float & {
      float *room = &s.out[GATES + warp() % GATES].x[0][0];
      return room[(turn * 8 + e) * WARP + lane()];
    };
    const bool has_gates = warp() < GATES;
#pragma unroll
    for (int e = 0; e < 8; e++)
      if (!has_gates) value(e) = sums[e];
    ptx::bar_sync(1, THREADS);
#pragma unroll
    for (int e = 0; e < 8; e++)
      if (has_gates) sums[e] = rounded::glu(sums[e], value(e));
    return has_gates;
  }

  /** sums = the tile's rows of B times A^T. */
  __device__ __forceinline__ void add_products(float (&sums)[8], Ring<STAGES> &ring) {
#pragma unroll
    for (int e = 0; e < 8; e++) sums[e] = 0;
    int before = -1;
    for (int step = begin; step < end; step++, ring.next()) {
      ptx::mbarrier_wait(&s.full[ring.stage], ring.phase);
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < BK; k += 16)
        wgmma<T, ROWS>(sums, ptx::shared_descriptor_128b(s.b[ring.stage] + k),
                       ptx::shared_descriptor_128b(s.a[ring.stage] + k));
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();
      if (before >= 0) leave(before);
      before = ring.stage;
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_settle(sums);
    if (before >= 0) leave(before);
  }

  /** This warp needs the stage no more. */
  __device__ __forceinline__ void leave(int stage) {
    if (lane() == 0) ptx::mbarrier_arrive(&s.empty[stage]);
  }
};
#endif

template <typename T>
__device__ __forceinline__ void few_rows_sm90(const GemmParams &p, const TensorMaps &maps) {
#if HAS_SM90A
  using Shared = FewRowsSm90Shared<T>;
  SHARED(Shared, s);
  FewRowsShare<T> share(p, s);
  share.prepare_barriers();
  if (threadIdx.x < THREADS)
    share.multiply();
  else if (threadIdx.x == THREADS)
    share.copy(maps);
#endif
}

#define GEMV_SM90(name, T)                                                                         \
  KERNEL_TMA(gemm_##name##_sm90_rows16, GemmParams, 160, 2) { few_rows_sm90<T>(p, maps); }

GEMV_SM90(bf16, bf16)
GEMV_SM90(f16, f16)

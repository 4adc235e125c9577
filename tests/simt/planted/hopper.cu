#include "planted.h"

struct Tiles {
  bf16 a[64 * 64], b[64 * 64];
  uint64_t full;
};

/** Writes before it has waited, if `wrong`. */
KERNEL_EARLY(written_early, PlantedParams, 64) {
  if (!p.wrong) ptx::wait_for_launch_before();
  p.y[threadIdx.x] = 1.0f;
}

/** Y (64,64) = A (64,64) B (64,64)^T by one warpgroup. `wrong`: 1 does not wait for the tiles, 2
 *  waits for the other phase, 3 leaves the product in flight, 4 expects too many bytes, 5 stores
 *  into a tile and does not fence. */
KERNEL_TMA(warpgroup_product, PlantedParams, 128) {
  SHARED(Tiles, s);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&s.full, 1);
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(&s.full, (p.wrong == 4 ? 3 : 2) * sizeof s.a);
    ptx::tma_load_2d(s.a, &maps.map[0], &s.full, 0, 0);
    ptx::tma_load_2d(s.b, &maps.map[1], &s.full, 0, 0);
  }
  if (p.wrong != 1) ptx::mbarrier_wait(&s.full, p.wrong == 2);
  if (p.wrong == 2) ptx::mbarrier_wait(&s.full, 0), ptx::mbarrier_wait(&s.full, 1);
  if (p.wrong == 5) {
    __syncthreads();
    if (threadIdx.x == 9) s.a[0] = narrow<bf16>(1.0f);
    __syncthreads();
  }
  float d[32] = {};
  ptx::wgmma_fence();
  for (int k = 0; k < 64; k += 16)
    ptx::wgmma_bf16<64>(d, ptx::shared_descriptor_128b(s.a) + k * 2 / 16,
                        ptx::shared_descriptor_128b(s.b) + k * 2 / 16);
  ptx::wgmma_commit();
  if (p.wrong != 3) ptx::wgmma_wait<0>();
  ptx::wait_for_launch_before();
  int row = 16 * warp() + lane() / 4, column = lane() % 4 * 2;
  for (int j = 0; j < 8; j++)
    for (int i = 0; i < 4; i++)
      p.y[(row + i / 2 * 8) * 64 + 8 * j + column + i % 2] = d[4 * j + i];
}

/** Y (64,64) = A (64,64) B (64,64), A out of registers, in bf16 by tensor copies of sixteen rows.
 *  `wrong` does not fence what they read. */
KERNEL_TMA(register_product, PlantedParams, 128) {
  SHARED(Tiles, s);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&s.full, 1);
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(&s.full, 2 * sizeof s.a);
    ptx::tma_load_2d(s.a, &maps.map[0], &s.full, 0, 0);
    ptx::tma_load_2d(s.b, &maps.map[1], &s.full, 0, 0);
  }
  ptx::mbarrier_wait(&s.full, 0);
  // The lane's row of A, and there chunk `i` of eight cells.
  const int row = 16 * warp() + lane() % 16;
  auto chunk = [&](int i) { return s.a + row * 64 + (i + lane() / 16 ^ row % 8) * 8; };
  float d[32];
  uint32_t a[4][4];
  for (int k = 0; k < 4; k++) ptx::ldmatrix_x4(a[k], chunk(2 * k));
  ptx::wgmma_fence();
  for (int k = 0; k < 4; k++)
    ptx::wgmma_rows_bf16(d, a[k], ptx::shared_descriptor_128b(s.b + k * 16 * 64), k > 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  for (int j = 0; j < 4; j++) {
    uint32_t y[4];
    for (int i = 0; i < 4; i++) y[i] = pack2<bf16>(d[8 * j + 2 * i], d[8 * j + 2 * i + 1]);
    ptx::stmatrix_x4(chunk(2 * j), y);
  }
  if (!p.wrong) ptx::fence_async_shared();
  __syncwarp();
  ptx::wait_for_launch_before();
  if (lane() == 0) {
    ptx::tma_store_2d(&maps.map[2], s.a + 16 * warp() * 64, 0, 16 * warp());
    ptx::tma_store_commit();
    ptx::tma_store_wait<0>();
  }
}

struct Halves {
  bf16 x[2][32 * 64];
  uint64_t full, empty;
};

/** y[block, half] = the first cell of rows `half` * 32 of A (64,64), then of rows one further:
 *  twice, each of two blocks copies one half for both. `wrong`: 1 copies the second time before
 *  the other block has read the first, 2 leaves while the other still needs it, 3 copies to a
 *  block that the cluster does not have. */
KERNEL_TMA(cluster_halves, PlantedParams, 32) {
  SHARED(Halves, s);
  const uint32_t rank = ptx::cluster_rank();
  ptx::wait_for_launch_before();
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&s.full, 1);
    ptx::mbarrier_init(&s.empty, 2);
    ptx::fence_barrier_init();
  }
  ptx::cluster_sync();
  for (int round = 0; round < 2; round++) {
    if (threadIdx.x == 0) {
      if (p.wrong != 1) ptx::mbarrier_wait(&s.empty, (uint32_t)round ^ 1);
      ptx::mbarrier_arrive_expect_tx(&s.full, sizeof s.x);
      ptx::tma_load_2d_for(p.wrong == 3 ? 7 : 3, s.x[rank], &maps.map[0], &s.full, 0,
                           (int)rank * 32 + round);
    }
    ptx::mbarrier_wait(&s.full, (uint32_t)round);
    const int half = (int)threadIdx.x % 2;
    if (threadIdx.x < 2) p.y[round * 4 + (int)rank * 2 + half] = widen(s.x[half][0]);
    __syncwarp();
    if (threadIdx.x < 2 && (p.wrong != 1 || threadIdx.x == rank))
      ptx::mbarrier_arrive_in(threadIdx.x, &s.empty);
  }
  if (p.wrong != 2) ptx::cluster_sync();
}

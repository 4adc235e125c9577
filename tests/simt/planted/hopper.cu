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

struct Collected {
  float x[2][32];
  uint64_t all;
};

/** y[i] = what thread i of 64 in two blocks has stored into the first block: x[i]. `wrong`: 1 does
 *  not wait until that block has begun, 2 reads before all have come, 3 expects too few bytes, 4
 *  does not make the barrier known, 5 and 6: the first block leaves, before the other stores or
 *  before what it stored has come, 7 stores into a block that the cluster does not have, 8 and 9
 *  wait for the cluster without having arrived, and arrive twice. */
KERNEL_EARLY(cluster_stores, PlantedParams, 32) {
  SHARED(Collected, s);
  const bool is_first = blockIdx.x == 0;
  ptx::wait_for_launch_before();
  if (is_first && threadIdx.x == 0) {
    ptx::mbarrier_init(&s.all, 1);
    if (p.wrong != 4) ptx::fence_barrier_init();
  }
  __syncthreads();
  if (p.wrong != 8) ptx::cluster_arrive();
  if (p.wrong == 9 && is_first) ptx::cluster_arrive();
  if (p.wrong != 1) ptx::cluster_wait();
  if (p.wrong == 5 && is_first) return;
  if (p.wrong == 5) __syncthreads();
  ptx::store_in(p.wrong == 7 ? 2 : 0, &s.x[blockIdx.x][threadIdx.x],
                p.x[blockIdx.x * 32 + threadIdx.x], &s.all);
  if (!is_first || p.wrong == 6) return;
  if (threadIdx.x == 0)
    ptx::mbarrier_arrive_expect_tx(&s.all, p.wrong == 3 ? sizeof s.x / 2 : sizeof s.x);
  if (p.wrong != 2) ptx::mbarrier_wait_for_cluster(&s.all, 0);
  for (int block = 0; block < 2; block++)
    p.y[block * 32 + (int)threadIdx.x] = s.x[block][threadIdx.x];
}

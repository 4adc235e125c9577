#include "planted.h"

KERNEL(divergent_barrier, PlantedParams, 64) {
  if (p.wrong && threadIdx.x < 32) {
    p.y[threadIdx.x] = 1;
    __syncthreads();
  } else {
    __syncthreads();
    p.y[threadIdx.x] = 2;
  }
}
KERNEL(barrier_after_return, PlantedParams, 64) {
  if (p.wrong && threadIdx.x == 63) return;
  __syncthreads();
  p.y[threadIdx.x] = 1;
}
KERNEL(wrong_mask, PlantedParams, 64) {
  unsigned mask = p.wrong ? 0xffffu : ALL_LANES;
  p.y[threadIdx.x] = __shfl_xor_sync(mask, p.x[threadIdx.x], 1);
}
KERNEL(lanes_apart, PlantedParams, 64) {
  int lower = threadIdx.x % 32 < 16;
  if (p.wrong && lower)
    __syncwarp();
  else
    p.y[threadIdx.x] = __shfl_sync(ALL_LANES, p.x[threadIdx.x], 0);
}
KERNEL(lane_gone, PlantedParams, 64) {
  if (p.wrong && threadIdx.x == 40) return;
  p.y[threadIdx.x] = warp_sum(p.x[threadIdx.x]);
}
KERNEL(named_too_few, PlantedParams, 64) {
  ptx::bar_sync(1, p.wrong ? 96 : 64);
  p.y[threadIdx.x] = 1;
}

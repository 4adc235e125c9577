/** Work that is split over blocks: each part leaves its sums in the workspace, and the block that
 *  comes last puts them together in the order of the parts, the same bits at every run. */
#pragma once
#include "abi.h"
#include "ptx.cuh"

/** u32 counters at the beginning of the workspace. */
constexpr int64_t COUNTERS = 16384;

/** True in the block that is the last of `parts` to come: what every one of them has written is
 *  there for it, past L1. `sync` is the barrier of all threads that ask, thread 0 among them, and
 *  `is_last` is shared by them. The counter is 0 again afterwards. */
template <typename Sync>
__device__ __forceinline__ bool comes_last(uint32_t *counter, unsigned parts, int &is_last,
                                           Sync sync) {
  sync();
  if (threadIdx.x == 0) {
    is_last = ptx::take_turn(counter) == parts - 1;
    if (is_last) *counter = 0;
  }
  sync();
  return is_last != 0;
}

/** Adds up the parts of a tile. `cell(e)` is this thread's sum e of CELLS; THREADS threads take
 *  part, and `sync` is their barrier. True in the block that has the whole sums now. */
template <int CELLS, int THREADS, typename Cell, typename Sync>
__device__ __forceinline__ bool merge_parts(void *workspace, int64_t tile, int &is_last, Cell cell,
                                            Sync sync) {
  float *room = static_cast<float *>(workspace) + COUNTERS;
  auto part = [&](int64_t z) {
    return room + (tile * gridDim.z + z) * CELLS * THREADS + threadIdx.x;
  };
  float *own = part(blockIdx.z);
#pragma unroll
  for (int e = 0; e < CELLS; e++) own[e * THREADS] = cell(e);
  uint32_t *counter = static_cast<uint32_t *>(workspace) + tile;
  if (!comes_last(counter, gridDim.z, is_last, sync)) return false;
#pragma unroll
  for (int e = 0; e < CELLS; e++) cell(e) = 0;
  for (unsigned z = 0; z < gridDim.z; z++) {
    const volatile float *from = part(z);
#pragma unroll
    for (int e = 0; e < CELLS; e++) cell(e) += from[e * THREADS];
  }
  return true;
}

#include "planted.h"

KERNEL(read_without_barrier, PlantedParams, 64) {
  SHARED(Room, room);
  room.cells[threadIdx.x] = p.x[threadIdx.x];
  if (!p.wrong) __syncthreads();
  p.y[threadIdx.x] = room.cells[threadIdx.x % 32];
}
KERNEL(write_after_read, PlantedParams, 64) {
  SHARED(Room, room);
  room.cells[threadIdx.x] = p.x[threadIdx.x];
  __syncthreads();
  float other = room.cells[threadIdx.x ^ 32];
  if (!p.wrong) __syncthreads();
  room.cells[threadIdx.x] = other;
  p.y[threadIdx.x] = room.cells[threadIdx.x];
}
KERNEL(two_writers, PlantedParams, 64) {
  SHARED(Room, room);
  room.cells[p.wrong ? threadIdx.x % 63 : threadIdx.x] = p.x[threadIdx.x];
  __syncthreads();
  p.y[threadIdx.x] = room.cells[0];
}
KERNEL(atomic_without_barrier, PlantedParams, 64) {
  SHARED(Room, room);
  uint32_t *count = reinterpret_cast<uint32_t *>(room.cells);
  if (threadIdx.x == 0) *count = 0;
  if (!p.wrong) __syncthreads();
  atomicAdd(count, 1u);
  __syncthreads();
  p.y[threadIdx.x] = (float)*count;
}
KERNEL(missing_syncwarp, PlantedParams, 64) {
  SHARED(Room, room);
  room.cells[threadIdx.x] = p.x[threadIdx.x];
  if (p.wrong) // Orders nothing in memory.
    (void)__shfl_sync(ALL_LANES, 0, 0);
  else
    __syncwarp();
  p.y[threadIdx.x] = room.cells[threadIdx.x ^ 1];
}
KERNEL(unwritten, PlantedParams, 64) {
  SHARED(Room, room);
  if (!p.wrong || threadIdx.x != 7) room.cells[threadIdx.x] = 0;
  p.y[threadIdx.x] = room.cells[threadIdx.x];
}
KERNEL(missing_wait, PlantedParams, 64) {
  SHARED(Room, room);
  if (threadIdx.x < 16) ptx::cp_async16(&room.cells[4 * threadIdx.x], &p.x[4 * threadIdx.x], true);
  ptx::cp_async_commit();
  if (p.wrong)
    ptx::cp_async_wait<1>();
  else
    ptx::cp_async_wait<0>();
  __syncthreads();
  p.y[threadIdx.x] = room.cells[threadIdx.x];
}

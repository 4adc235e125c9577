#include "planted.h"

KERNEL(shared_beyond, PlantedParams, 64) {
  SHARED(Room, room);
  room.cells[threadIdx.x + p.wrong] = 1;
}
KERNEL(static_beyond, PlantedParams, 64) {
  SHARED_STATIC(float, cells, 64);
  cells[threadIdx.x + p.wrong] = 1;
}
KERNEL(shared_too_small, PlantedParams, 64) {
  struct Large {
    float cells[128];
  };
  if (p.wrong) {
    SHARED(Large, large);
    large.cells[threadIdx.x] = 1;
  }
}
KERNEL(read_beyond, PlantedParams, 64) { p.y[threadIdx.x] = p.x[threadIdx.x + 192 + p.wrong]; }
KERNEL(write_beyond, PlantedParams, 64) { p.y[threadIdx.x + 192 + p.wrong] = 1; }
KERNEL(write_before, PlantedParams, 64) { p.y[(int)threadIdx.x - p.wrong] = 1; }
KERNEL(misaligned_pack, PlantedParams, 64) {
  if (threadIdx.x > 0) return;
  auto from = reinterpret_cast<const Pack<float> *>(p.x + p.wrong);
  *reinterpret_cast<Pack<float> *>(p.y) = *from;
}
KERNEL(misaligned_copy, PlantedParams, 64) {
  SHARED(uint4, to);
  if (threadIdx.x > 0) return;
  ptx::cp_async16(&to, p.x + p.wrong, true);
  ptx::cp_async_wait<0>();
}

/** Kernels with one bug each, which is there if `wrong`. */
#pragma once
#include "lib/reduce.cuh"
#include "lib/types.cuh"

struct PlantedParams {
  float *y;       /**< (256) */
  const float *x; /**< (256) */
  int32_t wrong, reserved;
};

struct Room {
  float cells[64];
};

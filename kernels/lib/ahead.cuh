/** What the next launch begins with, asked for by those who know (`GemmParams::next`). */
#pragma once
#include "../gemm.h"
#include "ptx.cuh"

/** Asks L2 for row i of the sixteen of a tile, if there is such. */
__device__ __forceinline__ void ask_ahead(const Ahead &a, int tile, int i) {
  const int64_t row = tile * a.pitch + i / 8 * a.away + i % 8;
  if (row < a.rows)
    ptx::prefetch(static_cast<const char *>(a.from) + row * a.stride, (uint32_t)a.bytes);
}

/*  `gate_backward`
 *
 *  Idea      for each cell of the part: sum += d h; d *= tanh(gate)
 *  Geometry  256 threads a block, a block per part, 16 bytes of d and of h a thread at a time
 *            (`_plain`: one cell).
 *  Traffic   d twice, h once.
 *  Rejected  the epilogue of the product that makes d: h would be read in pairs of columns, and
 *            cuBLASLt has no such epilogue. */
#include "gate_backward.h"
#include "lib/cells.cuh"
#include "lib/reduce.cuh"

struct GateBackwardShared {
  BlockSum<CELL_THREADS> sum;
};

template <typename T, bool PACKED> __device__ void gate_backward(const GateBackwardParams &p) {
  constexpr int SIZE = Move<T, PACKED>::SIZE;
  SHARED(GateBackwardShared, s);
  const float factor = tanhf(widen(*static_cast<const T *>(p.gate)));
  const int64_t begin = blockIdx.x * p.part_cells, end = min(begin + p.part_cells, p.cells);
  float sum = 0;
#pragma unroll 2
  for (int64_t at = begin + threadIdx.x * SIZE; at < end; at += CELL_THREADS * SIZE) {
    alignas(PACKED ? 16 : sizeof(T)) T d[SIZE], h[SIZE];
    copy_cells<T, PACKED>(d, static_cast<const T *>(p.d) + at);
    copy_cells<T, PACKED>(h, static_cast<const T *>(p.h) + at);
#pragma unroll
    for (int i = 0; i < SIZE; i++) {
      sum = fmaf(widen(d[i]), widen(h[i]), sum);
      d[i] = narrow<T>(widen(d[i]) * factor);
    }
    copy_cells<T, PACKED>(static_cast<T *>(p.d) + at, d);
  }
  sum = s.sum(sum);
  if (threadIdx.x == 0) p.parts[blockIdx.x] = (1.0f - factor * factor) * sum;
}

#define GATE_BACKWARD(name, T)                                                                     \
  KERNEL(gate_backward_##name, GateBackwardParams, CELL_THREADS) { gate_backward<T, true>(p); }    \
  KERNEL(gate_backward_##name##_plain, GateBackwardParams, CELL_THREADS) {                         \
    gate_backward<T, false>(p);                                                                    \
  }

GATE_BACKWARD(f32, float)
GATE_BACKWARD(bf16, bf16)
GATE_BACKWARD(f16, f16)

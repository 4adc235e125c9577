/*  `swiglu`
 *
 *  Idea      y = silu(gate) * up, cell by cell.
 *  Geometry  256 threads a block, 16 bytes of y a thread (`_plain`: one cell).
 *  Traffic   x once, y once.
 *  Rejected  an epilogue of the product that makes [gate | up]: its halves lie far apart in n. */
#include "activation.h"
#include "lib/cells.cuh"

template <typename T, bool PACKED> __device__ void swiglu(const SwigluParams &p) {
  constexpr int SIZE = Move<T, PACKED>::SIZE;
  for_my_cells(p.rows * p.cols, SIZE, [&](int64_t at) {
    const T *gate = static_cast<const T *>(p.x) + at / p.cols * 2 * p.cols + at % p.cols;
    T *y = static_cast<T *>(p.y) + at;
    if constexpr (PACKED) {
      Pack<T> gates = *reinterpret_cast<const Pack<T> *>(gate);
      Pack<T> ups = *reinterpret_cast<const Pack<T> *>(gate + p.cols), out;
#pragma unroll
      for (int i = 0; i < SIZE; i++) {
        float x = widen(gates.x[i]);
        out.x[i] = narrow<T>(x / (1.0f + __expf(-x)) * widen(ups.x[i]));
      }
      *reinterpret_cast<Pack<T> *>(y) = out;
    } else {
      float x = widen(gate[0]);
      y[0] = narrow<T>(x / (1.0f + expf(-x)) * widen(gate[p.cols]));
    }
  });
}

#define SWIGLU(name, T)                                                                            \
  KERNEL(swiglu_##name, SwigluParams, CELL_THREADS) { swiglu<T, true>(p); }                        \
  KERNEL(swiglu_##name##_plain, SwigluParams, CELL_THREADS) { swiglu<T, false>(p); }

SWIGLU(f32, float)
SWIGLU(bf16, bf16)
SWIGLU(f16, f16)

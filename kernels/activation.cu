/*  `swiglu`, `swiglu_backward`, `activation`, `activation_backward`
 *
 *  Idea      y = silu(gate) * up, or f(x), cell by cell; their gradients likewise.
 *  Geometry  256 threads a block, 16 bytes of y or dy a thread (`_plain`: one cell).
 *  Traffic   x once, y once; backward x, dy and dx once.
 *  Rejected  this launch where nobody needs [gate | up] again: there the product of both ends in
 *            SwiGLU itself (`gemm`). */
#include "activation.h"
#include "lib/cells.cuh"
#include "lib/epilogue.cuh"

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

/** dgate and dup from dy, gate and up. */
__device__ __forceinline__ float2 swiglu_gradients(float dy, float gate, float up) {
  const float s = 1.0f / (1.0f + expf(-gate));
  // Far below, gate * s goes to 0 although gate does not.
  const float low = fmaxf(gate, -100.0f), silu = gate != gate ? gate : low * s;
  return make_float2(dy * up * (s + silu * (1.0f - s)), dy * silu);
}

template <typename T, bool PACKED> __device__ void swiglu_backward(const SwigluBackwardParams &p) {
  constexpr int SIZE = Move<T, PACKED>::SIZE;
  for_my_cells(p.rows * p.cols, SIZE, [&](int64_t at) {
    const int64_t gate = at / p.cols * 2 * p.cols + at % p.cols, up = gate + p.cols;
    const T *x = static_cast<const T *>(p.x);
    alignas(PACKED ? 16 : sizeof(T)) T gates[SIZE], ups[SIZE], dys[SIZE];
    copy_cells<T, PACKED>(gates, x + gate);
    copy_cells<T, PACKED>(ups, x + up);
    copy_cells<T, PACKED>(dys, static_cast<const T *>(p.dy) + at);
#pragma unroll
    for (int i = 0; i < SIZE; i++) {
      const float2 d = swiglu_gradients(widen(dys[i]), widen(gates[i]), widen(ups[i]));
      gates[i] = narrow<T>(d.x);
      ups[i] = narrow<T>(d.y);
    }
    copy_cells<T, PACKED>(static_cast<T *>(p.dx) + gate, gates);
    copy_cells<T, PACKED>(static_cast<T *>(p.dx) + up, ups);
  });
}

#define SWIGLU_BACKWARD(name, T)                                                                   \
  KERNEL(swiglu_backward_##name, SwigluBackwardParams, CELL_THREADS) {                             \
    swiglu_backward<T, true>(p);                                                                   \
  }                                                                                                \
  KERNEL(swiglu_backward_##name##_plain, SwigluBackwardParams, CELL_THREADS) {                     \
    swiglu_backward<T, false>(p);                                                                  \
  }

SWIGLU_BACKWARD(f32, float)
SWIGLU_BACKWARD(bf16, bf16)
SWIGLU_BACKWARD(f16, f16)

template <typename T, bool PACKED> __device__ void activation(const ActivationParams &p) {
  constexpr int SIZE = Move<T, PACKED>::SIZE;
  for_my_cells(p.cells, SIZE, [&](int64_t at) {
    alignas(PACKED ? 16 : sizeof(T)) T x[SIZE];
    copy_cells<T, PACKED>(x, static_cast<const T *>(p.x) + at);
#pragma unroll
    for (int i = 0; i < SIZE; i++) x[i] = narrow<T>(activate(widen(x[i]), p.activation));
    copy_cells<T, PACKED>(static_cast<T *>(p.y) + at, x);
  });
}

template <typename T, bool PACKED>
__device__ void activation_backward(const ActivationBackwardParams &p) {
  constexpr int SIZE = Move<T, PACKED>::SIZE;
  for_my_cells(p.cells, SIZE, [&](int64_t at) {
    alignas(PACKED ? 16 : sizeof(T)) T x[SIZE], dy[SIZE];
    copy_cells<T, PACKED>(x, static_cast<const T *>(p.x) + at);
    copy_cells<T, PACKED>(dy, static_cast<const T *>(p.dy) + at);
#pragma unroll
    for (int i = 0; i < SIZE; i++)
      dy[i] = narrow<T>(widen(dy[i]) * activation_slope(widen(x[i]), p.activation));
    copy_cells<T, PACKED>(static_cast<T *>(p.dx) + at, dy);
  });
}

#define ACTIVATION(name, T)                                                                        \
  KERNEL(activation_##name, ActivationParams, CELL_THREADS) { activation<T, true>(p); }            \
  KERNEL(activation_##name##_plain, ActivationParams, CELL_THREADS) { activation<T, false>(p); }   \
  KERNEL(activation_backward_##name, ActivationBackwardParams, CELL_THREADS) {                     \
    activation_backward<T, true>(p);                                                               \
  }                                                                                                \
  KERNEL(activation_backward_##name##_plain, ActivationBackwardParams, CELL_THREADS) {             \
    activation_backward<T, false>(p);                                                              \
  }

ACTIVATION(f32, float)
ACTIVATION(bf16, bf16)
ACTIVATION(f16, f16)

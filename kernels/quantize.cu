/*  `quantize`, `dequantize`
 *
 *  Idea      the largest |w| of a group gives its scale; then each weight times 1 / scale, rounded
 *  Geometry  int8: a block of 256 threads per row; int4: 16 lanes per group of 128, 16 groups of
 *            the matrix per block, so that a lane makes one word of 8 codes. Back: 8 weights a
 *            thread.
 *  Traffic   int4: w once; int8: w twice, the second time from L2; codes and scales once
 *  Rejected  a row in registers for int8: three more entries for what is done once per model */
#include "quantize.h"
#include "lib/cells.cuh"
#include "lib/reduce.cuh"

constexpr int THREADS = CELL_THREADS;
constexpr int EACH = 8; // weights of a thread at a time: a word of 4-bit codes
constexpr int GROUP = 128;
constexpr int LANES = GROUP / EACH;

template <typename T> __device__ __forceinline__ void load(const T *w, float (&x)[EACH]) {
#pragma unroll
  for (int i = 0; i < EACH; i += Pack<T>::SIZE) {
    const Pack<T> pack = *reinterpret_cast<const Pack<T> *>(w + i);
#pragma unroll
    for (int j = 0; j < Pack<T>::SIZE; j++) x[i + j] = widen(pack.x[j]);
  }
}

/** Where the code of one of eight weights begins in its word. */
__device__ __forceinline__ constexpr int shift_of(int weight) {
  return 4 * (weight / 2 + weight % 2 * 4);
}

/** A scale as it is stored, and what was lost under it. */
struct Scaled {
  bf16 stored;
  float scale, inverse;
  float difference = 0, weights = 0;

  __device__ __forceinline__ Scaled(float exact)
      : stored(narrow<bf16>(exact)), scale(widen(stored)),
        // 0 where weights are 0, or so small that it would be no number.
        inverse(fabsf(scale) >= 1.17549435e-38f ? 1.0f / scale : 0.0f) {}

  /** The integer nearest to x / scale in least..most; that of NaN is `nan`. */
  __device__ __forceinline__ int code(float x, float least, float most, int nan) {
    constexpr float ROUND = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    const float exact = x * inverse;
    const float q = (fminf(fmaxf(exact, least), most) + ROUND) - ROUND;
    const bool is_number = exact == exact;
    const float off = is_number ? fmaf(-q, scale, x) : exact;
    difference = fmaf(off, off, difference), weights = fmaf(x, x, weights);
    return is_number ? (int)q : nan;
  }
};

struct QuantizeShared {
  float most[THREADS / WARP];
  BlockSum<THREADS> difference, weights;
};

template <typename T> __device__ void quantize_int8(const QuantizeParams &p) {
  SHARED(QuantizeShared, s);
  const int64_t row = blockIdx.x;
  const T *w = static_cast<const T *>(p.w) + row * p.cols;
  uint8_t *codes = static_cast<uint8_t *>(p.codes) + row * p.cols;
  const int64_t first = threadIdx.x * EACH;
  float x[EACH], most = 0;
  for (int64_t c = first; c < p.cols; c += THREADS * EACH) {
    load(w + c, x);
#pragma unroll
    for (int i = 0; i < EACH; i++) most = fmaxf(most, fabsf(x[i]));
  }
  most = warp_max(most);
  if (lane() == 0) s.most[warp()] = most;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < THREADS / WARP; i++) most = fmaxf(most, s.most[i]);
  Scaled scaled(most / 127.0f);
  if (threadIdx.x == 0) static_cast<bf16 *>(p.scales)[row] = scaled.stored;
  for (int64_t c = first; c < p.cols; c += THREADS * EACH) {
    load(w + c, x);
    uint64_t word = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      word |= (uint64_t)(uint8_t)scaled.code(x[i], -127.0f, 127.0f, 0) << (8 * i);
    *reinterpret_cast<uint64_t *>(codes + c) = word;
  }
  const float difference = s.difference(scaled.difference), weights = s.weights(scaled.weights);
  if (p.losses && threadIdx.x == 0)
    p.losses[2 * row] = difference, p.losses[2 * row + 1] = weights;
}

/** The sum over a group's lanes. */
__device__ __forceinline__ float group_sum(float x) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(ALL_LANES, x, offset);
  return x;
}

template <typename T> __device__ void quantize_int4(const QuantizeParams &p) {
  // Groups follow each other over the whole matrix, as words and scales do.
  const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  const bool is_inside = at < p.rows * p.cols / EACH;
  float x[EACH] = {}, most = 0;
  if (is_inside) load(static_cast<const T *>(p.w) + at * EACH, x);
#pragma unroll
  for (int i = 0; i < EACH; i++) most = fabsf(x[i]) > fabsf(most) ? x[i] : most;
  // Of two as large, the one of the lower lane.
#pragma unroll
  for (int offset = 1; offset < LANES; offset *= 2) {
    const float other = __shfl_xor_sync(ALL_LANES, most, offset);
    const bool is_upper = lane() & offset;
    const bool is_other = is_upper ? fabsf(other) >= fabsf(most) : fabsf(other) > fabsf(most);
    most = is_other ? other : most;
  }
  Scaled scaled(most / -8.0f);
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++)
    word |= (uint32_t)(scaled.code(x[i], -8.0f, 7.0f, -8) + 8) << shift_of(i);
  const float difference = group_sum(scaled.difference), weights = group_sum(scaled.weights);
  if (!is_inside) return;
  static_cast<uint32_t *>(p.codes)[at] = word;
  if (at % LANES != 0) return;
  const int64_t group = at / LANES;
  static_cast<bf16 *>(p.scales)[group] = scaled.stored;
  if (p.losses) p.losses[2 * group] = difference, p.losses[2 * group + 1] = weights;
}

template <typename T, int BITS> __device__ void dequantize(const DequantizeParams &p) {
  for_my_cells(p.rows * p.cols, EACH, [&](int64_t at) {
    const int64_t group = BITS == 8 ? at / p.cols : at / GROUP;
    const float scale = widen(static_cast<const bf16 *>(p.scales)[group]);
    alignas(16) T w[EACH];
    if constexpr (BITS == 8) {
      const uint64_t word = static_cast<const uint64_t *>(p.codes)[at / EACH];
#pragma unroll
      for (int i = 0; i < EACH; i++) w[i] = narrow<T>((float)(int8_t)(word >> 8 * i) * scale);
    } else {
      const uint32_t word = static_cast<const uint32_t *>(p.codes)[at / EACH];
#pragma unroll
      for (int i = 0; i < EACH; i++)
        w[i] = narrow<T>((float)((int)(word >> shift_of(i) & 15) - 8) * scale);
    }
#pragma unroll
    for (int i = 0; i < EACH; i += Pack<T>::SIZE)
      copy_cells<T, true>(static_cast<T *>(p.w) + at + i, w + i);
  });
}

#define QUANTIZE(name, T)                                                                          \
  KERNEL(quantize_##name##_int8, QuantizeParams, THREADS) { quantize_int8<T>(p); }                 \
  KERNEL(quantize_##name##_int4, QuantizeParams, THREADS) { quantize_int4<T>(p); }                 \
  KERNEL(dequantize_##name##_int8, DequantizeParams, THREADS) { dequantize<T, 8>(p); }             \
  KERNEL(dequantize_##name##_int4, DequantizeParams, THREADS) { dequantize<T, 4>(p); }

QUANTIZE(f32, float)
QUANTIZE(bf16, bf16)
QUANTIZE(f16, f16)

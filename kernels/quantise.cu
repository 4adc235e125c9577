/*  `quantise`
 *
 *  Idea      the largest |w| of a group gives its scale; then each weight times 1 / scale, rounded
 *  Geometry  int8: a block of 256 threads per row; int4: 16 lanes per group of 128, 16 groups of
 *            the matrix per block, so that a lane makes one word of 8 codes
 *  Traffic   int4: w once; int8: w twice, the second time from L2; codes and scales once
 *  Rejected  a row in registers for int8: three more entries for what is done once per model */
#include "quantise.h"
#include "lib/reduce.cuh"
#include "lib/types.cuh"

constexpr int THREADS = 256;
constexpr int EACH = 8;   // weights of a thread at a time: a word of 4-bit codes
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

/** 1 / scale; 0 where weights are 0, or so small that it would be no number. */
__device__ __forceinline__ float inverse(bf16 stored) {
  const float scale = widen(stored);
  return fabsf(scale) >= 1.17549435e-38f ? 1.0f / scale : 0.0f;
}

/** The integer nearest to x in least..most; that of NaN is `nan`. */
__device__ __forceinline__ int nearest(float x, float least, float most, int nan) {
  constexpr float ROUND = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
  return x == x ? (int)((fminf(fmaxf(x, least), most) + ROUND) - ROUND) : nan;
}

struct QuantiseShared {
  float most[THREADS / WARP];
};

template <typename T> __device__ void quantise_int8(const QuantiseParams &p) {
  SHARED(QuantiseShared, s);
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
  const bf16 scale = narrow<bf16>(most / 127.0f);
  if (threadIdx.x == 0) static_cast<bf16 *>(p.scales)[row] = scale;
  const float by = inverse(scale);
  for (int64_t c = first; c < p.cols; c += THREADS * EACH) {
    load(w + c, x);
    uint64_t word = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      word |= (uint64_t)(uint8_t)nearest(x[i] * by, -127.0f, 127.0f, 0) << (8 * i);
    *reinterpret_cast<uint64_t *>(codes + c) = word;
  }
}

template <typename T> __device__ void quantise_int4(const QuantiseParams &p) {
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
    const bool is_lower = lane() & offset;
    const bool is_other =
        is_lower ? fabsf(other) >= fabsf(most) : fabsf(other) > fabsf(most);
    most = is_other ? other : most;
  }
  if (!is_inside) return;
  const bf16 scale = narrow<bf16>(most / -8.0f);
  if (at % LANES == 0) static_cast<bf16 *>(p.scales)[at / LANES] = scale;
  const float by = inverse(scale);
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++)
    word |= (uint32_t)(nearest(x[i] * by, -8.0f, 7.0f, -8) + 8) << (4 * (i / 2 + i % 2 * 4));
  static_cast<uint32_t *>(p.codes)[at] = word;
}

#define QUANTISE(name, T)                                                                          \
  KERNEL(quantise_##name##_int8, QuantiseParams, THREADS) { quantise_int8<T>(p); }                 \
  KERNEL(quantise_##name##_int4, QuantiseParams, THREADS) { quantise_int4<T>(p); }

QUANTISE(f32, float)
QUANTISE(bf16, bf16)
QUANTISE(f16, f16)

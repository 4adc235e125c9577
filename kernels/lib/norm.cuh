/** The norms of a row that a block holds: in registers (`RegisterRow`), in shared memory
 *  (`SharedRow`), or in memory (`PlainRow`, `ReadRow`). */
#pragma once
#include "reduce.cuh"
#include "row.cuh"

constexpr int NORM_THREADS = 256;

/** ENTRY(name, T, variant, OWN, Row) for every way to make a row by OWN threads: by a warp, by a
 *  block that holds it in as many packs a thread, or by one that reads it anew. */
#define NORM_ENTRIES(ENTRY, name, T)                                                               \
  ENTRY(name, T, warp, WARP, RegisterRow<T, WARP, 4>)                                              \
  ENTRY(name, T, packs1, NORM_THREADS, RegisterRow<T, NORM_THREADS, 1>)                            \
  ENTRY(name, T, packs2, NORM_THREADS, RegisterRow<T, NORM_THREADS, 2>)                            \
  ENTRY(name, T, packs4, NORM_THREADS, RegisterRow<T, NORM_THREADS, 4>)                            \
  ENTRY(name, T, plain, NORM_THREADS, PlainRow<T, NORM_THREADS>)

/** The row of this thread, if OWN threads make one. */
template <int OWN> __device__ __forceinline__ int64_t norm_row() {
  return (int64_t)blockIdx.x * (NORM_THREADS / OWN) + threadIdx.x / OWN;
}

template <int THREADS> struct NormSums {
  BlockSum<THREADS> mean, rest, squares;
};

/** y = round(x scale) w, with scale = 1 / sqrt(mean(x^2) + eps). */
template <typename T> struct RmsNorm {
  float scale;

  template <typename Row, int THREADS>
  __device__ __forceinline__ RmsNorm(const Row &row, BlockSum<THREADS> &sum, float eps) {
    const float squares = sum(row.sum([](float x) { return x * x; }));
    scale = 1.0f / sqrtf(squares / (float)row.cols + eps);
  }
  __device__ __forceinline__ float operator()(float x, float w) const {
    return widen(narrow<T>(x * scale)) * w;
  }
};

/** y = (x - mean - rest) scale w + b, with mean = sum(x) / n, rest = sum(x - mean) / n, which is
 *  what rounding left of the mean, and scale = 1 / sqrt(sum((x - mean)^2) / n - rest^2 + eps). */
struct LayerNorm {
  float mean, rest, scale;

  template <typename Row, int THREADS>
  __device__ __forceinline__ LayerNorm(const Row &row, NormSums<THREADS> &s, float eps) {
    const float n = (float)row.cols;
    const float m = mean = s.mean(row.sum([](float x) { return x; })) / n;
    rest = s.rest(row.sum([=](float x) { return x - m; })) / n;
    const float squares = s.squares(row.sum([=](float x) { return (x - m) * (x - m); })) / n;
    const float variance = fmaxf(squares - rest * rest, 0.0f);
    // fmaxf drops a NaN; the row must keep it.
    scale = squares != squares ? squares : 1.0f / sqrtf(variance + eps);
  }
  __device__ __forceinline__ float operator()(float x, float w, float b) const {
    return ((x - mean) - rest) * scale * w + b;
  }
};

/*  `layernorm`
 *
 *  Idea      mean = sum(x) / n;  rest = sum(x - mean) / n;  var = sum((x - mean)^2) / n - rest^2
 *            y = (x - mean - rest) / sqrt(var + eps) * w + b
 *            `rest` is what rounding left of the mean, which matters when it is far from 0.
 *  Geometry  a block of 256 threads per row, the row in registers: 1, 2 or 4 packs of 16 bytes a
 *            thread (`_packs*`); other widths and unaligned rows are read three times (`_plain`).
 *  Traffic   x and y once; w and b from L2.
 *  Rejected  Welford: a division per element for what the second pass over registers gives. */
#include "layernorm.h"
#include "lib/norm.cuh"

constexpr int THREADS = 256;

template <typename T, typename Row> __device__ void layernorm(const LayernormParams &p) {
  SHARED(NormSums<THREADS>, s);
  const int64_t r = blockIdx.x;
  const Row row(static_cast<const T *>(p.x) + r * p.x_stride, p.cols);
  row.store(static_cast<T *>(p.y) + r * p.y_stride, static_cast<const T *>(p.w),
            static_cast<const T *>(p.b), LayerNorm(row, s, p.eps));
}

#define LAYERNORM(name, T)                                                                         \
  KERNEL(layernorm_##name##_packs1, LayernormParams, THREADS) {                                    \
    layernorm<T, RegisterRow<T, THREADS, 1>>(p);                                                   \
  }                                                                                                \
  KERNEL(layernorm_##name##_packs2, LayernormParams, THREADS) {                                    \
    layernorm<T, RegisterRow<T, THREADS, 2>>(p);                                                   \
  }                                                                                                \
  KERNEL(layernorm_##name##_packs4, LayernormParams, THREADS) {                                    \
    layernorm<T, RegisterRow<T, THREADS, 4>>(p);                                                   \
  }                                                                                                \
  KERNEL(layernorm_##name##_plain, LayernormParams, THREADS) {                                     \
    layernorm<T, PlainRow<T, THREADS>>(p);                                                         \
  }

LAYERNORM(f32, float)
LAYERNORM(bf16, bf16)
LAYERNORM(f16, f16)

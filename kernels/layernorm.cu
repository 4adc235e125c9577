/*  `layernorm`
 *
 *  Idea      mean = sum(x) / n;  rest = sum(x - mean) / n;  var = sum((x - mean)^2) / n - rest^2
 *            y = (x - mean - rest) / sqrt(var + eps) * w + b
 *            `rest` is what rounding left of the mean, which matters when it is far from 0.
 *  Geometry  a block of 256 threads per row, the row in registers: 1, 2 or 4 packs of 16 bytes a
 *            thread (`_packs*`). `_warp`: a warp per row of at most 128 packs, 8 a block, without
 *            barriers. Other widths and unaligned rows are read three times (`_plain`).
 *  Traffic   x and y once; w and b from L2, asked for before the launch that makes x has ended.
 *  Rejected  Welford: a division per element for what the second pass over registers gives. */
#include "layernorm.h"
#include "lib/norm.cuh"

/** A row by OWN threads. */
template <typename T, int OWN, typename Row> __device__ void layernorm(const LayernormParams &p) {
  SHARED(NormSums<OWN>, s);
  const int64_t r = norm_row<OWN>();
  if (r >= p.rows) return;
  const typename Row::Along w(static_cast<const T *>(p.w), p.cols);
  const typename Row::Along b(static_cast<const T *>(p.b), p.cols);
  ptx::wait_for_launch_before();
  const Row row(static_cast<const T *>(p.x) + r * p.x_stride, p.cols);
  row.store(static_cast<T *>(p.y) + r * p.y_stride, w, b, LayerNorm(row, s, p.eps));
}

#define LAYERNORM(name, T, variant, OWN, ...)                                                      \
  KERNEL_EARLY(layernorm_##name##_##variant, LayernormParams, NORM_THREADS) {                      \
    layernorm<T, OWN, __VA_ARGS__>(p);                                                             \
  }

NORM_ENTRIES(LAYERNORM, f32, float)
NORM_ENTRIES(LAYERNORM, bf16, bf16)
NORM_ENTRIES(LAYERNORM, f16, f16)

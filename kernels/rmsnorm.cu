/*  `rmsnorm`
 *
 *  Idea      y = round(x / sqrt(sum(x^2) / n + eps)) * w
 *  Geometry  as `layernorm`: a block of 256 threads per row in registers, a warp per row, or
 *            `_plain`.
 *  Traffic   x and y once; w from L2, asked for before the launch that makes x has ended.
 *  Rejected  a warp for wider rows: at n = 4096 a lane would hold 128 values. */
#include "rmsnorm.h"
#include "lib/norm.cuh"

template <int OWN> struct RmsnormShared {
  BlockSum<OWN> squares;
};

/** A row by OWN threads. */
template <typename T, int OWN, typename Row> __device__ void rmsnorm(const RmsnormParams &p) {
  SHARED(RmsnormShared<OWN>, s);
  const int64_t r = norm_row<OWN>();
  if (r >= p.rows) return;
  const typename Row::Along w(static_cast<const T *>(p.w), p.cols);
  ptx::wait_for_launch_before();
  const Row row(static_cast<const T *>(p.x) + r * p.cols, p.cols);
  row.store(static_cast<T *>(p.y) + r * p.cols, w, RmsNorm<T>(row, s.squares, p.eps));
}

#define RMSNORM(name, T, variant, OWN, ...)                                                        \
  KERNEL_EARLY(rmsnorm_##name##_##variant, RmsnormParams, NORM_THREADS) {                          \
    rmsnorm<T, OWN, __VA_ARGS__>(p);                                                               \
  }

NORM_ENTRIES(RMSNORM, f32, float)
NORM_ENTRIES(RMSNORM, bf16, bf16)
NORM_ENTRIES(RMSNORM, f16, f16)

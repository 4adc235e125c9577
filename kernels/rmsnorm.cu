/*  `rmsnorm`
 *
 *  Idea      y = round(x / sqrt(sum(x^2) / n + eps)) * w
 *  Geometry  as `layernorm`: a block of 256 threads per row in registers, or `_plain`.
 *  Traffic   x and y once; w from L2, asked for before the launch that makes x has ended.
 *  Rejected  a warp per row: at n = 4096 a lane would hold 128 values. */
#include "rmsnorm.h"
#include "lib/norm.cuh"

constexpr int THREADS = 256;

struct RmsnormShared {
  BlockSum<THREADS> squares;
};

template <typename T, typename Row> __device__ void rmsnorm(const RmsnormParams &p) {
  SHARED(RmsnormShared, s);
  const int64_t at = (int64_t)blockIdx.x * p.cols;
  const typename Row::Along w(static_cast<const T *>(p.w), p.cols);
  ptx::wait_for_launch_before();
  const Row row(static_cast<const T *>(p.x) + at, p.cols);
  row.store(static_cast<T *>(p.y) + at, w, RmsNorm<T>(row, s.squares, p.eps));
}

#define RMSNORM(name, T)                                                                           \
  KERNEL_EARLY(rmsnorm_##name##_packs1, RmsnormParams, THREADS) {                                  \
    rmsnorm<T, RegisterRow<T, THREADS, 1>>(p);                                                     \
  }                                                                                                \
  KERNEL_EARLY(rmsnorm_##name##_packs2, RmsnormParams, THREADS) {                                  \
    rmsnorm<T, RegisterRow<T, THREADS, 2>>(p);                                                     \
  }                                                                                                \
  KERNEL_EARLY(rmsnorm_##name##_packs4, RmsnormParams, THREADS) {                                  \
    rmsnorm<T, RegisterRow<T, THREADS, 4>>(p);                                                     \
  }                                                                                                \
  KERNEL_EARLY(rmsnorm_##name##_plain, RmsnormParams, THREADS) {                                   \
    rmsnorm<T, PlainRow<T, THREADS>>(p);                                                           \
  }

RMSNORM(f32, float)
RMSNORM(bf16, bf16)
RMSNORM(f16, f16)

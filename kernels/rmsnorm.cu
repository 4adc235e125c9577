/*  `rmsnorm`
 *
 *  Idea      y = round(x / sqrt(sum(x^2) / n + eps)) * w
 *  Geometry  as `layernorm`: a block of 256 threads per row in registers, a warp per row, or
 *            `_plain`.
 *  Traffic   x and y once; w from L2, asked for before the launch that makes x has ended.
 *  Rejected  a warp for wider rows: at n = 4096 a lane would hold 128 values. */
#include "rmsnorm.h"
#include "lib/norm.cuh"

constexpr int THREADS = 256;

template <int OWN> struct RmsnormShared {
  BlockSum<OWN> squares;
};

/** A row by OWN threads. */
template <typename T, int OWN, typename Row> __device__ void rmsnorm(const RmsnormParams &p) {
  SHARED(RmsnormShared<OWN>, s);
  const int64_t r = (int64_t)blockIdx.x * (THREADS / OWN) + threadIdx.x / OWN;
  if (r >= p.rows) return;
  const typename Row::Along w(static_cast<const T *>(p.w), p.cols);
  ptx::wait_for_launch_before();
  const Row row(static_cast<const T *>(p.x) + r * p.cols, p.cols);
  row.store(static_cast<T *>(p.y) + r * p.cols, w, RmsNorm<T>(row, s.squares, p.eps));
}

#define PACKED(name, T, variant, own, packs)                                                       \
  KERNEL_EARLY(rmsnorm_##name##_##variant, RmsnormParams, THREADS) {                               \
    rmsnorm<T, own, RegisterRow<T, own, packs>>(p);                                                \
  }
#define RMSNORM(name, T)                                                                           \
  PACKED(name, T, warp, WARP, 4)                                                                   \
  PACKED(name, T, packs1, THREADS, 1)                                                              \
  PACKED(name, T, packs2, THREADS, 2)                                                              \
  PACKED(name, T, packs4, THREADS, 4)                                                              \
  KERNEL_EARLY(rmsnorm_##name##_plain, RmsnormParams, THREADS) {                                   \
    rmsnorm<T, THREADS, PlainRow<T, THREADS>>(p);                                                  \
  }

RMSNORM(f32, float)
RMSNORM(bf16, bf16)
RMSNORM(f16, f16)

/*  `adamw`
 *
 *  Idea      m, v, p by AdamW, element by element
 *  Geometry  256 threads a block, 8 neighbours a thread.
 *  Traffic   g once; p, m and v twice; 16 bytes a load.
 *  Rejected  nothing else was tried. */
#include "adamw.h"
#include "lib/adamw.cuh"
#include "lib/reduce.cuh"

constexpr int THREADS = 256;
constexpr int OWN = 8;

template <typename T> __device__ void adamw_step(const AdamwParams &p) {
  const float scale = p.grad_scale ? *p.grad_scale : 1.0f;
  const int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * OWN;
  if (!is_finite(scale) || at >= p.n) return;
  const int count = (int)min(p.n - at, (int64_t)OWN);
  float g[OWN], x[OWN], m[OWN], v[OWN];
  load_own<OWN>(g, p.grad + at, count);
  load_own<OWN>(m, p.m + at, count);
  load_own<OWN>(v, p.v + at, count);
  load_param<OWN>(x, static_cast<const T *>(p.param), p.master, at, count);
#pragma unroll
  for (int i = 0; i < OWN; i++)
    if (i < count) x[i] = adamw<T>(p, x[i], __fmul_rn(g[i], scale), m[i], v[i], at + i);
  store_own<OWN>(p.m + at, m, count);
  store_own<OWN>(p.v + at, v, count);
  store_param<OWN>(static_cast<T *>(p.param), p.master, x, at, count);
}

KERNEL(adamw_f32, AdamwParams, THREADS) { adamw_step<float>(p); }
KERNEL(adamw_bf16, AdamwParams, THREADS) { adamw_step<bf16>(p); }
KERNEL(adamw_f16, AdamwParams, THREADS) { adamw_step<f16>(p); }

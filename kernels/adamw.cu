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

template <typename T, Rounding R>
__device__ void adamw_step(const AdamwParams &p, int64_t at, int count, float scale) {
  Own<float> g, m, v;
  Kept<T, R> kept;
  g.load(p.grad + at, count, 0.0f);
  m.load(p.m + at, count, 0.0f);
  v.load(p.v + at, count, 0.0f);
  kept.load(p, at, count);
  float x[OWN];
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    float m1 = m[i], v1 = v[i];
    x[i] = adamw<T, R, false>(p, widen(kept.own[i]), __fmul_rn(g[i], scale), m1, v1, at + i);
    m.set(i, m1);
    v.set(i, v1);
  }
  m.store(p.m + at, count);
  v.store(p.v + at, count);
  kept.store(p, x, at, count);
}

template <typename T> __device__ void adamw_kernel(const AdamwParams &p) {
  const float scale = p.grad_scale ? *p.grad_scale : 1.0f;
  const int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * OWN;
  if (!is_finite(scale) || at >= p.n) return;
  const int count = (int)min(p.n - at, (int64_t)OWN);
  switch (rounding(p)) {
  case MASTER: return adamw_step<T, MASTER>(p, at, count, scale);
  case NEAREST: return adamw_step<T, NEAREST>(p, at, count, scale);
  case STOCHASTIC:
    if (is_bf16<T>) adamw_step<T, STOCHASTIC>(p, at, count, scale);
  }
}

KERNEL(adamw_f32, AdamwParams, THREADS) { adamw_kernel<float>(p); }
KERNEL(adamw_bf16, AdamwParams, THREADS) { adamw_kernel<bf16>(p); }
KERNEL(adamw_f16, AdamwParams, THREADS) { adamw_kernel<f16>(p); }

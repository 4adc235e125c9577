/*  `rope`
 *
 *  Idea      angle = position * base^(-2i / rotary);  (a, b) = (a cos - b sin, b cos + a sin)
 *            for the pair (i, i + rotary/2) of every query and key head; -sin for the inverse.
 *  Geometry  a thread per (row, i), which turns all heads: the angle is computed once.
 *  Traffic   the rotated cells of q and k, read and written once.
 *  Rejected  a table of sines: its reads cost what computing them costs, once per row. */
#include "lib/cells.cuh"
#include "rope.h"

template <typename T> __device__ void rope(const RopeParams &p) {
  const int half = p.rotary / 2;
  for_my_cells(p.rows * half, 1, [&](int64_t at) {
    int64_t row = at / half;
    int i = (int)(at % half);
    float frequency = 1.0f / powf(p.base, (float)(2 * i) / (float)p.rotary), sine, cosine;
    sincosf((float)p.positions[row] * frequency, &sine, &cosine);
    if (p.is_inverse) sine = -sine;
    T *pair = static_cast<T *>(p.qkv) + row * p.row_stride + i;
    for (int head = 0; head < 2 * p.heads; head++, pair += p.head_dim) {
      float a = widen(pair[0]), b = widen(pair[half]);
      pair[0] = narrow<T>(a * cosine - b * sine);
      pair[half] = narrow<T>(b * cosine + a * sine);
    }
  });
}

KERNEL(rope_f32, RopeParams, CELL_THREADS) { rope<float>(p); }
KERNEL(rope_bf16, RopeParams, CELL_THREADS) { rope<bf16>(p); }
KERNEL(rope_f16, RopeParams, CELL_THREADS) { rope<f16>(p); }

/*  `rope`
 *
 *  Idea      angle = position * base^(-2i / rotary);  (a, b) = (a cos - b sin, b cos + a sin)
 *            for the pair (i, i + rotary/2) of every query and key head; -sin for the inverse.
 *  Geometry  grid (256 pairs (row, i), groups of 8 heads): the angle is computed once a group, and
 *            all its loads are asked for before the first is used.
 *  Traffic   the rotated cells of q and k, read and written once.
 *  Rejected  a table of sines: its reads cost what computing them costs, once per row. All heads by
 *            one thread: 64 trips to memory one after another, 30 us for 484 rows (H200). */
#include "lib/cells.cuh"
#include "lib/rotary.cuh"
#include "rope.h"

/** Query and key heads of a block. */
constexpr int HEADS = 8;

template <typename T> __device__ void rope(const RopeParams &p) {
  const int half = p.rotary / 2;
  for_my_cells(p.rows * half, 1, [&](int64_t at) {
    int64_t row = at / half;
    int i = (int)(at % half);
    float sine, cosine;
    rotary_angle(i, p.rotary, p.base, p.positions[row], sine, cosine);
    if (p.is_inverse) sine = -sine;
    const int first = (int)blockIdx.y * HEADS;
    T *pair = static_cast<T *>(p.qkv) + row * p.row_stride + first * p.head_dim + i;
    T a[HEADS], b[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++)
      if (first + h < 2 * p.heads)
        a[h] = pair[h * p.head_dim], b[h] = pair[h * p.head_dim + half];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      if (first + h >= 2 * p.heads) break;
      const float x = widen(a[h]), y = widen(b[h]);
      pair[h * p.head_dim] = narrow<T>(x * cosine - y * sine);
      pair[h * p.head_dim + half] = narrow<T>(y * cosine + x * sine);
    }
  });
}

KERNEL(rope_f32, RopeParams, CELL_THREADS) { rope<float>(p); }
KERNEL(rope_bf16, RopeParams, CELL_THREADS) { rope<bf16>(p); }
KERNEL(rope_f16, RopeParams, CELL_THREADS) { rope<f16>(p); }

/*  `patchify`, `vision_tokens`, `vision_tokens_backward`
 *
 *  Idea      patchify: y[image, py, px][channel, y, x]
 *                      = levels[channel, pixels[image, channel, py*patch+y, px*patch+x]]
 *            vision_tokens: y[i, 0] = cls + pos[0];  y[i, 1 + q] = x[i, q] + pos[1 + q]
 *            backward: dpos[t] = the sum of dy[i, t] over the images, and its share of dx
 *  Geometry  256 threads a block; a thread makes one cell of patchify's y, 16 bytes of a token's
 *            columns (`_plain`: one cell), or backward those in all images.
 *  Traffic   input once, y once; neighbours in y are neighbours in a line of pixels; levels stay
 *            in L1. Backward dy once, dx once.
 *  Rejected  16-byte stores: a patch line of 14 is not a multiple, and this is 0.1 % of a
 *            request. */
#include "lib/cells.cuh"
#include "patchify.h"

template <typename T> __device__ void patchify(const PatchifyParams &p) {
  // Of 32 bits: a division of 64 takes longer than all else of a cell.
  const uint32_t side = p.side, patch = p.patch, across = side / patch, cols = (uint32_t)p.cols;
  for_my_cells(p.images * across * across * cols, 1, [&](int64_t at) {
    const uint32_t row = (uint32_t)at / cols, cell = (uint32_t)at % cols;
    T &y_at = static_cast<T *>(p.y)[at];
    if (cell >= 3 * patch * patch) {
      y_at = narrow<T>(0);
      return;
    }
    const uint32_t x = cell % patch, y = cell / patch % patch, channel = cell / patch / patch;
    const uint32_t px = row % across, py = row / across % across, image = row / across / across;
    const uint32_t line = (image * 3 + channel) * side + py * patch + y;
    const uint8_t byte = p.pixels[line * side + px * patch + x];
    y_at = narrow<T>(p.levels[channel * 256 + byte]);
  });
}

template <typename T, bool PACKED> __device__ void vision_tokens(const VisionTokensParams &p) {
  constexpr int SIZE = Move<T, PACKED>::SIZE;
  const uint32_t tokens = 1 + (uint32_t)p.patches, cols = (uint32_t)p.cols;
  for_my_cells(p.images * tokens * p.cols, SIZE, [&](int64_t at) {
    const uint32_t c = (uint32_t)at % cols, row = (uint32_t)at / cols;
    const uint32_t token = row % tokens, image = row / tokens;
    const T *x = token == 0 ? static_cast<const T *>(p.cls) + c
                            // Less a class embedding for every image so far.
                            : static_cast<const T *>(p.x) + (row - image - 1) * p.cols + c;
    alignas(PACKED ? 16 : sizeof(T)) T sum[SIZE], position[SIZE];
    copy_cells<T, PACKED>(sum, x);
    copy_cells<T, PACKED>(position, static_cast<const T *>(p.pos) + token * p.cols + c);
#pragma unroll
    for (int i = 0; i < SIZE; i++) sum[i] = narrow<T>(widen(sum[i]) + widen(position[i]));
    copy_cells<T, PACKED>(static_cast<T *>(p.y) + at, sum);
  });
}

template <typename T, bool PACKED>
__device__ void vision_tokens_backward(const VisionTokensBackwardParams &p) {
  constexpr int SIZE = Move<T, PACKED>::SIZE;
  const int64_t tokens = 1 + p.patches;
  for_my_cells(tokens * p.cols, SIZE, [&](int64_t at) {
    const int64_t c = at % p.cols, token = at / p.cols;
    float sum[SIZE] = {};
#pragma unroll 2
    for (int64_t image = 0; image < p.images; image++) {
      alignas(PACKED ? 16 : sizeof(T)) T dy[SIZE];
      copy_cells<T, PACKED>(dy, static_cast<const T *>(p.dy) + image * tokens * p.cols + at);
      if (p.dx && token > 0)
        copy_cells<T, PACKED>(static_cast<T *>(p.dx) +
                                  (image * p.patches + token - 1) * p.cols + c,
                              dy);
#pragma unroll
      for (int i = 0; i < SIZE; i++) sum[i] += widen(dy[i]);
    }
#pragma unroll
    for (int i = 0; i < SIZE; i++) {
      float *dpos = p.dpos + at + i, *dcls = p.dcls + c + i;
      *dpos = (p.accumulate ? *dpos : 0.0f) + sum[i];
      if (token == 0) *dcls = (p.accumulate ? *dcls : 0.0f) + sum[i];
    }
  });
}

#define PATCHIFY(name, T)                                                                          \
  KERNEL(patchify_##name, PatchifyParams, CELL_THREADS) { patchify<T>(p); }                        \
  KERNEL(vision_tokens_##name, VisionTokensParams, CELL_THREADS) { vision_tokens<T, true>(p); }    \
  KERNEL(vision_tokens_##name##_plain, VisionTokensParams, CELL_THREADS) {                         \
    vision_tokens<T, false>(p);                                                                    \
  }                                                                                                \
  KERNEL(vision_tokens_backward_##name, VisionTokensBackwardParams, CELL_THREADS) {                \
    vision_tokens_backward<T, true>(p);                                                            \
  }                                                                                                \
  KERNEL(vision_tokens_backward_##name##_plain, VisionTokensBackwardParams, CELL_THREADS) {        \
    vision_tokens_backward<T, false>(p);                                                           \
  }

PATCHIFY(f32, float)
PATCHIFY(bf16, bf16)
PATCHIFY(f16, f16)

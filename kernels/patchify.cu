/*  `patchify`, `vision_tokens`, `vision_tokens_backward`
 *
 *  Idea      patchify: y[image, py, px][channel, y, x]
 *                      = levels[channel, pixels[image, channel, py*patch+y, px*patch+x]]
 *            vision_tokens: y[i, 0] = cls + pos[0];  y[i, 1 + q] = x[i, q] + pos[1 + q]
 *            backward: dpos[t] = the sum of dy[i, t] over the images, and its share of dx
 *  Geometry  256 threads a block, one cell of y a thread; backward 16 bytes of a token's columns
 *            (`_plain`: one cell) in all images a thread.
 *  Traffic   input once, y once; neighbours in y are neighbours in a line of pixels; levels stay
 *            in L1. Backward dy once, dx once.
 *  Rejected  16-byte stores: a patch line of 14 is not a multiple, and this is 0.1 % of a
 *            request. */
#include "lib/cells.cuh"
#include "patchify.h"

template <typename T> __device__ void patchify(const PatchifyParams &p) {
  const int64_t across = p.side / p.patch, cols = 3 * (int64_t)p.patch * p.patch;
  for_my_cells(p.images * across * across * cols, 1, [&](int64_t at) {
    int64_t row = at / cols, cell = at % cols;
    int64_t x = cell % p.patch, y = cell / p.patch % p.patch, channel = cell / p.patch / p.patch;
    int64_t px = row % across, py = row / across % across, image = row / across / across;
    int64_t line = (image * 3 + channel) * p.side + py * p.patch + y;
    uint8_t byte = p.pixels[line * p.side + px * p.patch + x];
    static_cast<T *>(p.y)[at] = narrow<T>(p.levels[channel * 256 + byte]);
  });
}

template <typename T> __device__ void vision_tokens(const VisionTokensParams &p) {
  const int64_t tokens = 1 + p.patches;
  for_my_cells(p.images * tokens * p.cols, 1, [&](int64_t at) {
    int64_t c = at % p.cols, token = at / p.cols % tokens, image = at / p.cols / tokens;
    const T *x = token == 0
                     ? static_cast<const T *>(p.cls)
                     : static_cast<const T *>(p.x) + (image * p.patches + token - 1) * p.cols;
    float position = widen(static_cast<const T *>(p.pos)[token * p.cols + c]);
    static_cast<T *>(p.y)[at] = narrow<T>(widen(x[c]) + position);
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
  KERNEL(vision_tokens_##name, VisionTokensParams, CELL_THREADS) { vision_tokens<T>(p); }          \
  KERNEL(vision_tokens_backward_##name, VisionTokensBackwardParams, CELL_THREADS) {                \
    vision_tokens_backward<T, true>(p);                                                            \
  }                                                                                                \
  KERNEL(vision_tokens_backward_##name##_plain, VisionTokensBackwardParams, CELL_THREADS) {        \
    vision_tokens_backward<T, false>(p);                                                           \
  }

PATCHIFY(f32, float)
PATCHIFY(bf16, bf16)
PATCHIFY(f16, f16)

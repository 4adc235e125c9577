#pragma once
#include <stdint.h>

/** `patchify`: cuts images into patches, one row each, in the order (channel, y, x) of a
 *  convolution weight, so that the patch embedding is a `gemm`. Patches are row-major over the
 *  image. A byte of channel c becomes levels[c, byte]. Columns beyond a patch are zeros: rows of
 *  588, which patches of 14 are, do not begin at multiples of 16 bytes.
 *
 *  Source    arXiv:2010.11929 eq. 1; open_clip VisionTransformer.conv1
 *  Entries   patchify_{f32,bf16,f16}
 *  Limits    side divisible by patch; fewer than 2^31 pixels, and cells of y */
typedef struct PatchifyParams {
  void *y;               /**< (images * (side/patch)^2, cols) T */
  const uint8_t *pixels; /**< (images, 3, side, side) */
  const float *levels;   /**< (3, 256) */
  int64_t images, cols; /**< cols >= 3*patch*patch */
  int32_t side, patch;
} PatchifyParams;

/** `vision_tokens`: prepends the class embedding and adds positions:
 *  y[i,0] = cls + pos[0]; y[i,1+p] = x[i,p] + pos[1+p].
 *
 *  Source    arXiv:2010.11929 eq. 1
 *  Entries   vision_tokens_{f32,bf16,f16}
 *  Limits    fewer than 2^31 cells of y */
typedef struct VisionTokensParams {
  void *y;         /**< (images, 1+patches, cols) T */
  const void *x;   /**< (images, patches, cols) T */
  const void *cls; /**< (cols) T */
  const void *pos; /**< (1+patches, cols) T */
  int64_t images, patches, cols;
} VisionTokensParams;

/** `vision_tokens_backward`: the gradients of `vision_tokens`:
 *  dx[i,p] = dy[i,1+p];  dpos[t] (+)= sum of dy[i,t] over i;  dcls (+)= sum of dy[i,0] over i.
 *
 *  Source    arXiv:2010.11929 eq. 1, differentiated
 *  Entries   vision_tokens_backward_{f32,bf16,f16}
 *  Limits    dx null if not wanted
 *  Numerics  f32 sums in the order of the images; dx a copy */
typedef struct VisionTokensBackwardParams {
  void *dx;       /**< (images, patches, cols) T, or null */
  float *dcls;    /**< (cols) */
  float *dpos;    /**< (1+patches, cols) */
  const void *dy; /**< (images, 1+patches, cols) T */
  int64_t images, patches, cols;
  int32_t accumulate;
  int32_t reserved;
} VisionTokensBackwardParams;

#pragma once
#include <stdint.h>

/** `patchify`: cuts images into patches, one row each, in the order (channel, y, x) of a
 *  convolution weight, so that the patch embedding is a `gemm`. Patches are row-major over the
 *  image.
 *
 *  Source    arXiv:2010.11929 eq. 1; open_clip VisionTransformer.conv1
 *  Entries   patchify_{f32,bf16,f16}; pixels are f32
 *  Limits    side divisible by patch */
typedef struct PatchifyParams {
  void *y;             /**< (images * (side/patch)^2, 3*patch*patch) T */
  const float *pixels; /**< (images, 3, side, side) */
  int64_t images;
  int32_t side, patch;
} PatchifyParams;

/** `vision_tokens`: prepends the class embedding and adds positions:
 *  y[i,0] = cls + pos[0]; y[i,1+p] = x[i,p] + pos[1+p].
 *
 *  Source    arXiv:2010.11929 eq. 1
 *  Entries   vision_tokens_{f32,bf16,f16} */
typedef struct VisionTokensParams {
  void *y;         /**< (images, 1+patches, cols) T */
  const void *x;   /**< (images, patches, cols) T */
  const void *cls; /**< (cols) T */
  const void *pos; /**< (1+patches, cols) T */
  int64_t images, patches, cols;
} VisionTokensParams;

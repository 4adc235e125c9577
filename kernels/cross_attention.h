#pragma once
#include <stdint.h>

/** What one text row may look at: the latents of images begin .. end of the launch's table.
 *  An empty span gives a zero output row. `uniform` averages the span's values instead of
 *  attending, which is what the original's masked softmax does for a marker without an image. */
typedef struct MediaSpan {
  int32_t begin, end;
  int32_t uniform;
} MediaSpan;

/** `cross_attention`: O = softmax(scale * Q K^T) V per row and head, over the latents of the images
 *  in the row's span.
 *
 *  Keys and values of image j are the halves of rows of kv[j] (latents, 2*heads*head_dim): keys,
 *  values. Nothing is computed for 16 consecutive rows of which none sees the image.
 *
 *  Source    arXiv:2204.14198 sec. 2.3; open_flamingo/src/helpers.py MaskedCrossAttention
 *  Entries   cross_attention_{f32,bf16,f16}
 *  Limits    spans inside the table; rows < 2^31; scale > 0
 *  Numerics  one pass with a running maximum and sum in f32; 0 for rows without an image */
typedef struct CrossAttentionParams {
  void *o;                /**< (rows, heads*head_dim) T */
  const void *q;          /**< (rows, heads*head_dim) T */
  const void *const *kv;  /**< (images) pointers to (latents, 2*heads*head_dim) T of this layer */
  const MediaSpan *spans; /**< (rows) */
  int64_t rows, images;
  int32_t latents, heads, head_dim;
  float scale;
  int64_t visible; /**< (row, image) pairs that are not masked; for `cost` only */
} CrossAttentionParams;

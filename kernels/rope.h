#pragma once
#include <stdint.h>

/** `rope`: rotates the first `rotary` features of every query and key head by
 *  position * base^(-2i/rotary). Pairs are (i, i + rotary/2), the rotate-half form.
 *  By the opposite angle if is_inverse, which is what the gradient does.
 *
 *  Source    arXiv:2104.09864 eq. 34; transformers apply_rotary_pos_emb (LLaMA, GPT-NeoX)
 *  Entries   rope_{f32,bf16,f16}
 *  Limits    rotary even, 0 < rotary <= head_dim; in place on [q | k | v] rows
 *  Numerics  angle, sine and cosine in f32 */
typedef struct RopeParams {
  void *qkv;                /**< (rows, 3*heads*head_dim) T, changed in place: q and k parts */
  const int32_t *positions; /**< (rows) */
  int64_t rows;
  int64_t row_stride; /**< elements */
  int32_t heads, head_dim, rotary;
  float base;
  int32_t is_inverse;
  int32_t reserved;
} RopeParams;

#pragma once
#include <stdint.h>

/** `attention`: O = softmax(scale * Q K^T) V per batch entry and head, every query sees every key.
 *  Keys and values may come in two segments that are never concatenated in memory: the Perceiver's
 *  [media | latents]; the vision tower uses the first only (k1_len = 0).
 *
 *  Source    arXiv:1706.03762 eq. 1; open_flamingo/src/helpers.py PerceiverAttention
 *  Entries   attention_{f32,bf16,f16}
 *  Limits    1 <= k0_len + k1_len < 2^31; k1 and v1 are null only if k1_len = 0; scale > 0
 *  Numerics  one pass with a running maximum and sum in f32 */
typedef struct AttentionParams {
  void *o;       /**< (batch, q_len, heads*head_dim) T, row stride o_stride */
  const void *q; /**< (batch, q_len, heads*head_dim) T, row stride q_stride */
  const void *k0, *v0; /**< (batch, k0_len, heads*head_dim) T, row stride kv0_stride */
  const void *k1, *v1; /**< (batch, k1_len, heads*head_dim) T, row stride kv1_stride, or null */
  int64_t batch, q_len, k0_len, k1_len;
  int64_t o_stride, q_stride, kv0_stride, kv1_stride; /**< elements between rows */
  int32_t heads, head_dim;
  float scale;
  int32_t reserved;
} AttentionParams;

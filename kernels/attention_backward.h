#pragma once
#include "cross_attention.h"
#include <stdint.h>

/** What a query's softmax came to: of the first launch, for the second. */
typedef struct AttendedRow {
  float lse;      /**< log of the sum of exponentials, in units that the device chooses */
  float delta;    /**< sum over keys of P dP */
  int32_t lo, hi; /**< the keys that it sees, of its batch entry; hi not included */
} AttendedRow;

/** `attention_backward`: the gradients of O = softmax(scale * Q K^T + bias) V, given dO, for every
 *  attention of the model. Two launches: `is_keys` 0 computes dQ and what the rows' softmax came
 *  to, `is_keys` 1 computes dK and dV from that.
 *
 *  P = softmax(scale * Q K^T + bias);  dP = dO V^T;  delta = sum over keys of P dP;
 *  dS = P (dP - delta);  dQ = scale * dS K;  dK = scale * dS^T Q;  dV = P^T dO
 *
 *  Query i of a batch entry sees keys lo .. hi of it and no others: all of them; 0 .. i+1 if there
 *  are `begin`, which divides the rows of queries and of keys into `batch` sequences; the latents
 *  of the images in spans[i] if there are `spans`. The bias is slopes[h] * (key - (hi-1)), ALiBi.
 *  A row that sees nothing has no gradient; a `uniform` one averages values, and has dV only.
 *
 *  Source    arXiv:1706.03762 eq. 1, differentiated as in arXiv:2205.14135 alg. 4; masks as in
 *            `attention`, `self_attention`, `cross_attention`
 *  Entries   attention_backward_{f32,bf16,f16}
 *  Limits    k0_len + k1_len < 2^31; k1, v1, dk1 and dv1 are null only if k1_len = 0; with `begin`
 *            k1_len = 0, and q_len = k0_len is the rows of all sequences; with `spans` k1_len = 0
 *            and batch = 1; f16 holds every dS
 *  Numerics  f32; weights and dS are multiplied as sums of two T; gradients are overwritten, in an
 *            order of summation that does not depend on the device */
typedef struct AttentionBackwardParams {
  void *dq;         /**< (batch, q_len, heads*head_dim) T, row stride dq_stride */
  void *dk0, *dv0;  /**< (batch, k0_len, heads*head_dim) T, row stride dkv0_stride */
  void *dk1, *dv1;  /**< (batch, k1_len, heads*head_dim) T, row stride dkv1_stride, or null */
  AttendedRow *statistics; /**< (heads, batch*q_len), at a multiple of 16 bytes */
  const void *d_o;  /**< (batch, q_len, heads*head_dim) T, row stride do_stride */
  const void *q;    /**< (batch, q_len, heads*head_dim) T, row stride q_stride */
  const void *k0, *v0;    /**< (batch, k0_len, heads*head_dim) T, row stride kv0_stride */
  const void *k1, *v1;    /**< (batch, k1_len, heads*head_dim) T, row stride kv1_stride, or null */
  const int32_t *begin;   /**< (batch+1): the first row of each sequence, or null */
  const MediaSpan *spans; /**< (q_len), or null */
  const float *slopes;    /**< (heads) ALiBi slopes, or null */
  int64_t batch, q_len, k0_len, k1_len;
  int64_t dq_stride, dkv0_stride, dkv1_stride; /**< elements between rows */
  int64_t do_stride, q_stride, kv0_stride, kv1_stride;
  int32_t heads, head_dim;
  float scale;
  int32_t latents; /**< per image, with `spans` */
  int32_t is_keys; /**< 0 dq and statistics, 1 dk and dv */
  int32_t reserved;
  int64_t pairs; /**< (query, key) pairs that are not masked; for `cost` only */
} AttentionBackwardParams;

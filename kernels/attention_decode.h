#pragma once
#include <stdint.h>

/** `attention_decode`: `rope`, `kv_append` and `self_attention` of a step in which every sequence
 *  has one row: row s, the last of the kv_len[s] tokens of its page table, turns its query and key,
 *  puts key and value into its slot, and attends to all of them. No turning if `rotary` is 0.
 *
 *  Source    arXiv:1706.03762 eq. 1; arXiv:2104.09864 eq. 34; keys in parts, merged as in
 *            arXiv:2307.08691 sec. 3.1
 *  Entries   attention_decode_{f32,bf16,f16}
 *  Limits    as of the three; kv_len[s] >= 1; qkv is spent: its contents afterwards are unspecified
 *  Numerics  turned queries and keys are rounded to T; maxima and sums in f32, merged in a fixed
 *            order: the same bits whatever else is in the batch */
typedef struct AttentionDecodeParams {
  void *o;                /**< (rows, heads*head_dim) T, dense */
  void *qkv;              /**< (rows, 3*heads*head_dim) T, stride row_stride */
  void *pages;            /**< first page of this layer, layout as in `kv_append` */
  void *workspace;        /**< the stream's, for what parts of the keys leave; null on the host */
  const int32_t *tables;  /**< (rows, table_stride) page numbers */
  const int32_t *kv_len;  /**< (rows) */
  const float *slopes;    /**< (heads) ALiBi slopes, or null */
  int64_t rows, table_stride;
  int64_t row_stride;  /**< elements */
  int64_t page_stride; /**< elements between pages of this layer */
  int32_t heads, head_dim;
  int32_t page_tokens;
  int32_t rotary; /**< features that turn, even; 0 for none */
  float base, scale;
  int64_t keys; /**< of all rows; for `cost` only */
} AttentionDecodeParams;

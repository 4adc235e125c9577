#pragma once
#include <stdint.h>

/** `attention_decode`: `rope`, `kv_append` and `self_attention` of a step in which every sequence
 *  has one row: row s turns its query and key, puts key and value into its slot, and attends to the
 *  first kv_len[s] slots of its page table, its own the last. No turning if `rotary` is 0.
 *
 *  Source    arXiv:1706.03762 eq. 1; arXiv:2104.09864 eq. 34; parts of keys after flash decoding
 *            (arXiv:2307.08691 sec. 3.1 merges them alike)
 *  Entries   attention_decode_{f32,bf16,f16}
 *  Limits    as of the three; positions[s] = kv_len[s] - 1; qkv is spent: its contents afterwards
 *            are unspecified
 *  Numerics  turned queries and keys are rounded to T; running maxima and sums in f32, merged in a
 *            fixed order; the same bits whatever else is in the batch */
typedef struct AttentionDecodeParams {
  void *o;                  /**< (rows, heads*head_dim) T, dense */
  void *qkv;                /**< (rows, 3*heads*head_dim) T, stride row_stride */
  void *pages;              /**< first page of this layer, layout as in `kv_append` */
  void *workspace;          /**< the stream's, for sums of parts of the keys; null on the host */
  const int64_t *slots;     /**< (rows) page * page_tokens + offset of the new key */
  const int32_t *positions; /**< (rows) */
  const int32_t *tables;    /**< (rows, table_stride) page numbers */
  const int32_t *kv_len;    /**< (rows) */
  const float *slopes;      /**< (heads) ALiBi slopes, or null */
  int64_t rows, table_stride;
  int64_t row_stride;  /**< elements */
  int64_t page_stride; /**< elements between pages of this layer */
  int32_t heads, head_dim;
  int32_t page_tokens;
  int32_t rotary; /**< features that turn, even; 0 for none */
  int32_t part;   /**< keys of a part, at least 1 */
  float base, scale;
  int32_t reserved;
} AttentionDecodeParams;

#pragma once
#include <stdint.h>

/** `self_attention`: causal attention of a ragged batch over paged keys and values.
 *
 *  Sequence s owns query rows q_begin[s] .. q_begin[s+1]; they are its last tokens, and its keys,
 *  the rows' own included, are the first kv_len[s] slots of its page table. Query i of n sees keys
 *  0 ..= kv_len - n + i. With ALiBi, slopes[h] * (key - query position) is added to the scaled
 *  score.
 *
 *  Source    arXiv:1706.03762 eq. 1; ALiBi arXiv:2108.12409 sec. 3; pages arXiv:2309.06180
 *  Entries   self_attention_{f32,bf16,f16}; prefill and decode
 *  Limits    kv_len[s] >= its query rows; page layout as in `kv_append`; scale > 0
 *  Numerics  maxima and sums in f32, merged in the order of the keys: on a card the same bits of a
 *            row whatever else is in the batch, its own prefix or others */
typedef struct SelfAttentionParams {
  void *o;                  /**< (rows, heads*head_dim) T, dense */
  const void *q;            /**< (rows, ...) T: the q part of [q | k | v] rows, stride q_stride */
  const void *pages;        /**< first page of this layer, layout as in `kv_append` */
  void *workspace;          /**< the stream's, for what parts of the keys leave; null on the host */
  const int32_t *tables;    /**< (sequences, table_stride) page numbers */
  const int32_t *q_begin;   /**< (sequences+1) */
  const int32_t *kv_len;    /**< (sequences) */
  const float *slopes;      /**< (heads) ALiBi slopes, or null */
  int64_t rows, sequences, table_stride;
  int64_t q_stride;    /**< elements */
  int64_t page_stride; /**< elements between pages of this layer */
  int32_t heads, head_dim;
  int32_t page_tokens;
  int32_t first_head, some_heads; /**< which are computed */
  int32_t parts; /**< of the keys that a table has room for, 64 each; 1 if they are not split */
  float scale;
  int32_t reserved;
  int64_t pairs; /**< (query, key) pairs that are not masked; for `cost` only */
  int64_t keys;  /**< of all sequences; for `cost` only */
} SelfAttentionParams;

#pragma once
#include <stdint.h>

/** `kv_append`: copies the key and value parts of [q | k | v] rows into the pages of a KV pool. If
 *  `rotary` is not 0, queries are turned in place and keys on their way, as by `rope`.
 *
 *  Page layout (2, heads, page_tokens, head_dim) T: keys, then values, each head contiguous.
 *  Row r goes to slot `slots[r]` = page * page_tokens + offset.
 *
 *  Source    paging after arXiv:2309.06180; arXiv:2104.09864 eq. 34
 *  Entries   kv_append_{f32,bf16,f16}
 *  Limits    slots are distinct and inside the pool, which has fewer than 2^31; rotary even, at
 *            most head_dim and 4096; if it is not 0, k of qkv is unspecified afterwards
 *  Numerics  as `rope`; turned queries and keys are rounded to T once */
typedef struct KvAppendParams {
  void *pages;              /**< first page of this layer */
  void *qkv;                /**< (rows, 3*heads*head_dim) T; q is changed in place if it turns */
  const int64_t *slots;     /**< (rows) */
  const int32_t *positions; /**< (rows) */
  int64_t rows;
  int64_t row_stride;  /**< of qkv, elements */
  int64_t page_stride; /**< elements between pages of this layer */
  int32_t heads, head_dim;
  int32_t page_tokens;
  int32_t rotary; /**< features that turn, even; 0 for none */
  float base;
  int32_t reserved;
} KvAppendParams;

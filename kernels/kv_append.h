#pragma once
#include <stdint.h>

/** `kv_append`: copies the key and value parts of [q | k | v] rows into the pages of a KV pool.
 *
 *  Page layout (2, heads, page_tokens, head_dim) T: keys, then values, each head contiguous.
 *  Row r goes to slot `slots[r]` = page * page_tokens + offset.
 *
 *  Source    paging after arXiv:2309.06180
 *  Entries   kv_append_{f32,bf16,f16}
 *  Limits    slots are distinct and inside the pool */
typedef struct KvAppendParams {
  void *pages;          /**< first page of this layer */
  const void *qkv;      /**< (rows, 3*heads*head_dim) T */
  const int64_t *slots; /**< (rows) */
  int64_t rows;
  int64_t row_stride;  /**< of qkv, elements */
  int64_t page_stride; /**< elements between pages of this layer */
  int32_t heads, head_dim;
  int32_t page_tokens;
  int32_t reserved;
} KvAppendParams;

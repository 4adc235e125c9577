/*  `kv_append`
 *
 *  Idea      page[part, head, offset] = qkv[row, part, head] for the key and the value part.
 *  Geometry  256 threads a block, 16 bytes a thread (`_plain`: one element).
 *  Traffic   the k and v parts once, their slots once.
 *  Rejected  nothing else was tried. */
#include "kv_append.h"
#include "lib/cells.cuh"

template <typename T, bool PACKED> __device__ void kv_append(const KvAppendParams &p) {
  const int64_t width = (int64_t)p.heads * p.head_dim;
  for_my_cells(p.rows * 2 * width, Move<T, PACKED>::SIZE, [&](int64_t at) {
    int64_t row = at / (2 * width), cell = at % (2 * width), slot = p.slots[row];
    int64_t line = cell / p.head_dim, feature = cell % p.head_dim; // line: part, then head
    int64_t page = slot / p.page_tokens, offset = slot % p.page_tokens;
    T *to = static_cast<T *>(p.pages) + page * p.page_stride +
            (line * p.page_tokens + offset) * p.head_dim + feature;
    copy_cells<T, PACKED>(to, static_cast<const T *>(p.qkv) + row * p.row_stride + width + cell);
  });
}

#define KV_APPEND(name, T)                                                                         \
  KERNEL(kv_append_##name, KvAppendParams, CELL_THREADS) { kv_append<T, true>(p); }                \
  KERNEL(kv_append_##name##_plain, KvAppendParams, CELL_THREADS) { kv_append<T, false>(p); }

KV_APPEND(f32, float)
KV_APPEND(bf16, bf16)
KV_APPEND(f16, f16)

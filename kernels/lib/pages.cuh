/** Keys and values of one sequence and head in pages, laid out as in `kv_append`. */
#pragma once
#include "softmax.cuh"

/** The keys of row 0 of a tile, which is at `position`, and of those after it; for params with the
 *  fields of `self_attention`. */
template <typename T, typename Params> struct PagedKeys {
  const Params &p;
  const int32_t *table;
  int64_t count;
  int64_t position;
  int head;
  float slope; /**< in units of log 2 */

  __device__ PagedKeys(const Params &p, int64_t sequence, int64_t position, int64_t count, int head)
      : p(p), table(p.tables + sequence * p.table_stride), count(count), position(position),
        head(head), slope(p.slopes ? p.slopes[head] * LOG2_E : 0.0f) {}

  /** The key (part 0) or value (part 1) of token j. */
  __device__ T *line(int64_t j, int part) const {
    // Positions have 31 bits, in which dividing costs a third.
    const uint32_t page = (uint32_t)j / (uint32_t)p.page_tokens;
    const uint32_t offset = (uint32_t)j % (uint32_t)p.page_tokens;
    return (T *)p.pages + table[page] * p.page_stride +
           ((part * (int64_t)p.heads + head) * p.page_tokens + offset) * p.head_dim;
  }
  __device__ const T *k(int64_t j) const { return line(j, 0); }
  __device__ const T *v(int64_t j) const { return line(j, 1); }
  __device__ float score(int row, int64_t j, float x) const {
    return j <= position + row ? x + slope * (float)(j - position - row) : -INFINITY;
  }
  __device__ bool needs(int row, int64_t begin, int64_t) const { return begin <= position + row; }
};

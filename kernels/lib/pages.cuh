/** Keys and values of one sequence and head in pages, laid out as in `kv_append`. */
#pragma once
#include "softmax.cuh"

/** What the row at `position` sees: keys up to its own, with a bias by distance. */
struct CausalRow {
  int position;
  float slope; /**< in units of log 2 */

  __device__ bool needs(int begin, int) const { return begin <= position; }
  __device__ bool sees(int, int end) const { return end - 1 <= position; }
  __device__ bool is_biased() const { return slope != 0.0f; }
  __device__ float score(int j, float x) const {
    return j <= position ? x + slope * (float)(j - position) : -INFINITY;
  }
};

/** The keys of a tile whose row 0 is at `position`; for params with the fields of
 *  `self_attention`. */
template <typename T, typename Params> struct PagedKeys {
  const Params &p;
  const int32_t *table;
  int count, position, head;
  float slope;

  __device__ PagedKeys(const Params &p, int64_t sequence, int position, int count, int head)
      : p(p), table(p.tables + sequence * p.table_stride), count(count), position(position),
        head(head), slope(p.slopes ? p.slopes[head] * LOG2_E : 0.0f) {}

  /** The key (part 0) or value (part 1) of token j. */
  __device__ T *line(int j, int part) const {
    // Without signs, dividing costs less.
    const uint32_t page = (uint32_t)j / (uint32_t)p.page_tokens;
    const uint32_t offset = (uint32_t)j % (uint32_t)p.page_tokens;
    return (T *)p.pages + table[page] * p.page_stride +
           ((part * (int64_t)p.heads + head) * p.page_tokens + offset) * p.head_dim;
  }
  __device__ const T *k(int j) const { return line(j, 0); }
  __device__ const T *v(int j) const { return line(j, 1); }
  __device__ __forceinline__ void both(int j, const T *&k, const T *&v) const {
    k = line(j, 0), v = k + (int64_t)p.heads * p.page_tokens * p.head_dim;
  }
  __device__ CausalRow row(int r) const { return {position + r, slope}; }
};

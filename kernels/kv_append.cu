/*  `kv_append`
 *
 *  Idea      page[part, head, offset] = qkv[row, part, head] for the key and the value part; the
 *            key turned by its row's angles, as the query is in place. A thread has two groups of
 *            cells of a head's query, key and value: a pair of groups that turn together, or two
 *            neighbours that do not turn. The block's angles are in shared memory.
 *  Geometry  grid (rows, 256 pairs of groups), 256 threads, groups of 16 bytes (`_plain`: of one
 *            element): a row of 32 heads of 128 is one block, an angle for 64 of its threads.
 *  Traffic   k and v once, their slots once; of q what turns, read and written.
 *  Rejected  `rope` before it: one more launch, and the keys written and read once more. Angles by
 *            the threads that use them: eight in each. */
#include "kv_append.h"
#include "lib/cells.cuh"
#include "lib/rotary.cuh"

/** Neighbours that a thread moves at once. */
template <typename T, int SIZE> struct alignas(SIZE * sizeof(T)) Group {
  T x[SIZE];
};

/** Pairs (a[e], b[e]) turn by angles whose sines and cosines are given. */
template <typename T, int SIZE>
__device__ __forceinline__ void turn(Group<T, SIZE> &a, Group<T, SIZE> &b,
                                     const Group<float, SIZE> &sine,
                                     const Group<float, SIZE> &cosine) {
#pragma unroll
  for (int e = 0; e < SIZE; e++) {
    const float x = widen(a.x[e]), y = widen(b.x[e]);
    a.x[e] = narrow<T>(x * cosine.x[e] - y * sine.x[e]);
    b.x[e] = narrow<T>(y * cosine.x[e] + x * sine.x[e]);
  }
}

template <typename T, bool PACKED> __device__ void kv_append(const KvAppendParams &p) {
  constexpr int SIZE = Move<T, PACKED>::SIZE;
  using Cells = Group<T, SIZE>;
  using Angles = Group<float, SIZE>;
  SHARED(float, first_sine);
  const int half = p.rotary / 2;
  float *const sines = &first_sine, *const cosines = sines + half;
  const int64_t row = blockIdx.x;
  const uint32_t slot = (uint32_t)p.slots[row], page_tokens = (uint32_t)p.page_tokens;
  if (half > 0) {
    const int position = p.positions[row];
    for (int i = threadIdx.x; i < half; i += CELL_THREADS) {
      float sine, cosine;
      rotary_angle(i, p.rotary, p.base, position, sine, cosine);
      sines[i] = sine, cosines[i] = cosine;
    }
  }
  // Where rows are and go came with the step; the rows are the launch's before this one.
  ptx::wait_for_launch_before();

  const uint32_t groups = (uint32_t)(p.head_dim / SIZE), turning = (uint32_t)(half / SIZE);
  const uint32_t pairs = (groups + 1) / 2, unit = blockIdx.y * CELL_THREADS + threadIdx.x;
  const uint32_t head = unit / pairs, j = unit % pairs;
  const bool is_mine = head < (uint32_t)p.heads, turns = j < turning;
  // Groups of the pair; of an odd number of groups the last one is alone.
  const uint32_t group[2] = {turns ? j : 2 * j, turns ? j + turning : 2 * j + 1};
  const int64_t width = (int64_t)p.heads * p.head_dim;
  T *const qkv = static_cast<T *>(p.qkv) + row * p.row_stride + (int64_t)head * p.head_dim;
  auto cells = [&](T *line, int i) { return reinterpret_cast<Cells *>(line + group[i] * SIZE); };
  const bool has[2] = {is_mine, is_mine && group[1] < groups};
  Cells q[2], k[2], v[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (!has[i]) continue;
    if (turns) q[i] = *cells(qkv, i);
    k[i] = *cells(qkv + width, i), v[i] = *cells(qkv + 2 * width, i);
  }
  __syncthreads();
  if (!is_mine) return;
  if (turns) {
    const Angles sine = *reinterpret_cast<const Angles *>(sines + j * SIZE);
    const Angles cosine = *reinterpret_cast<const Angles *>(cosines + j * SIZE);
    turn(q[0], q[1], sine, cosine), turn(k[0], k[1], sine, cosine);
  }
  T *const key = static_cast<T *>(p.pages) + (int64_t)(slot / page_tokens) * p.page_stride +
                 ((int64_t)head * page_tokens + slot % page_tokens) * p.head_dim;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (!has[i]) continue;
    if (turns) *cells(qkv, i) = q[i];
    *cells(key, i) = k[i], *cells(key + width * page_tokens, i) = v[i];
  }
}

#define KV_APPEND(name, T)                                                                         \
  KERNEL_EARLY(kv_append_##name, KvAppendParams, CELL_THREADS) { kv_append<T, true>(p); }          \
  KERNEL_EARLY(kv_append_##name##_plain, KvAppendParams, CELL_THREADS) { kv_append<T, false>(p); }

KV_APPEND(f32, float)
KV_APPEND(bf16, bf16)
KV_APPEND(f16, f16)

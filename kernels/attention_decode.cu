/*  `attention_decode`
 *
 *  Idea      block (row, head, part): turn the query (the last part: turn and append the new key);
 *            each of 8 warps takes every eighth group of keys, a lane 16 bytes of a key, and keeps
 *            maximum, sum and output of its own; lanes, then warps, merge in order. With more parts
 *            than one, the block that comes last merges what all left in the workspace.
 *  Geometry  `_64`, `_128` (features held by a warp's lanes, at least head_dim): grid (rows, heads,
 *            parts of the longest table); blocks beyond a sequence's keys leave at once, so that
 *            the launch is the same from token to token. `_plain`: any head_dim, one part.
 *  Traffic   keys and values once; they are the whole traffic.
 *  Rejected  as many parts as fill the card: the bits would depend on the batch. */
#include "attention_decode.h"
#include "lib/reduce.cuh"
#include "lib/softmax.cuh"
#include "lib/types.cuh"

constexpr int DECODE_THREADS = 256, DECODE_WARPS = DECODE_THREADS / WARP;
constexpr int PLAIN_FEATURES = 256;
/** The workspace begins with this many counters; then maximum, sum and output of every part. */
constexpr int COUNTERS = 16384, PART_FLOATS = 2 + 128;

template <int D> struct DecodeShared {
  float acc[DECODE_WARPS][D], q[D];
  float max[DECODE_WARPS], sum[DECODE_WARPS];
  int is_last;
};

/** Where one row's head has its cells. */
template <typename T> struct DecodeHead {
  const AttentionDecodeParams &p;
  int64_t row, head;
  const int32_t *table;
  int keys;
  float slope; /**< in units of log 2 */
  T *q, *k, *v, *o;

  __device__ DecodeHead(const AttentionDecodeParams &p)
      : p(p), row(blockIdx.x), head(blockIdx.y), table(p.tables + row * p.table_stride),
        keys(p.kv_len[row]), slope(p.slopes ? p.slopes[head] * LOG2_E : 0.0f) {
    const int64_t width = (int64_t)p.heads * p.head_dim, at = head * p.head_dim;
    q = static_cast<T *>(p.qkv) + row * p.row_stride + at;
    k = q + width, v = k + width;
    o = static_cast<T *>(p.o) + row * width + at;
  }
  /** The head's keys (part 0) or values (part 1) in `page`, from `offset` on. */
  __device__ T *line(int64_t page, int part, int64_t offset) const {
    return static_cast<T *>(p.pages) + page * p.page_stride +
           ((part * (int64_t)p.heads + head) * p.page_tokens + offset) * p.head_dim;
  }
  __device__ T *new_line(int part) const {
    const int64_t slot = p.slots[row];
    return line(slot / p.page_tokens, part, slot % p.page_tokens);
  }
  /** Sine and cosine for the pair (i, i + rotary/2), as in `rope`. */
  __device__ void angle(int i, float &sine, float &cosine) const {
    float frequency = 1.0f / powf(p.base, (float)(2 * i) / (float)p.rotary);
    sincosf((float)p.positions[row] * frequency, &sine, &cosine);
  }
  /** Feature f of x turned. */
  __device__ T turned(const T *x, int f) const {
    if (f >= p.rotary) return x[f];
    const int half = p.rotary / 2, i = f % half;
    float sine, cosine, a = widen(x[i]), b = widen(x[i + half]);
    angle(i, sine, cosine);
    return narrow<T>(f < half ? a * cosine - b * sine : b * cosine + a * sine);
  }
  /** The score of key j, whose product with the query is x, in units of log 2. */
  __device__ float score(int j, float x) const {
    return x * (p.scale * LOG2_E) + slope * (float)(j - (keys - 1));
  }
};

/** What a part's sums are multiplied by when its maximum becomes `all`; a NaN among them stays. */
__device__ __forceinline__ float part_factor(float max, float all) {
  return all == -INFINITY ? 1.0f : ptx::exp2(max - all);
}

/** Feature f of what the warps have, and their common maximum and sum. */
template <int D>
__device__ __forceinline__ float merge_warps(const DecodeShared<D> &s, int f, RunningSoftmax &all) {
  float sum = 0;
  for (int w = 0; w < DECODE_WARPS; w++) {
    sum *= all.raise(s.max[w]);
    const float factor = part_factor(s.max[w], all.max);
    sum += s.acc[w][f] * factor;
    all.sum += s.sum[w] * factor;
  }
  return sum;
}

template <typename T, int D> __device__ void attention_decode(const AttentionDecodeParams &p) {
  SHARED(DecodeShared<D>, s);
  constexpr int SIZE = Pack<T>::SIZE, LANES = D / SIZE, GROUPS = WARP / LANES, UNROLL = 4;
  const DecodeHead<T> h(p);
  const int begin = (int)blockIdx.z * p.part;
  if (begin >= h.keys) return;
  const int end = min(h.keys - begin, p.part) + begin;

  const bool is_new_here = end == h.keys;
  for (int i = threadIdx.x; i < (is_new_here ? 3 : 1) * p.head_dim; i += DECODE_THREADS) {
    const int f = i % p.head_dim, which = i / p.head_dim;
    if (which == 0) s.q[f] = widen(h.turned(h.q, f));
    if (which == 1) h.new_line(0)[f] = h.turned(h.k, f);
    if (which == 2) h.new_line(1)[f] = h.v[f];
  }
  __syncthreads();

  const int first = lane() % LANES * SIZE, group = lane() / LANES;
  const bool has_features = first < p.head_dim;
  float q[SIZE], acc[SIZE] = {};
#pragma unroll
  for (int i = 0; i < SIZE; i++) q[i] = has_features ? s.q[first + i] : 0.0f;
  RunningSoftmax softmax;
  constexpr int STEP = GROUPS * UNROLL;
  for (int base = begin + warp() * STEP; base < end; base += DECODE_WARPS * STEP) {
    Pack<T> k[UNROLL], v[UNROLL];
    float x[UNROLL], top = -INFINITY;
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      // Without a branch: what is not there is read elsewhere and put to 0.
      const bool is_there = base + u * GROUPS + group < end && has_features;
      const int j = min(base + u * GROUPS + group, end - 1), at = has_features ? first : 0;
      const int64_t page = h.table[j / p.page_tokens], offset = j % p.page_tokens;
      k[u] = *reinterpret_cast<const Pack<T> *>(h.line(page, 0, offset) + at);
      v[u] = *reinterpret_cast<const Pack<T> *>(h.line(page, 1, offset) + at);
      if (!is_there) k[u] = v[u] = Pack<T>{};
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int j = base + u * GROUPS + group;
      float product = 0;
#pragma unroll
      for (int i = 0; i < SIZE; i++) product = fmaf(q[i], widen(k[u].x[i]), product);
#pragma unroll
      for (int offset = LANES / 2; offset > 0; offset /= 2)
        product += __shfl_xor_sync(ALL_LANES, product, offset);
      x[u] = j < end ? h.score(j, product) : -INFINITY;
      top = fmaxf(top, x[u]);
    }
    const float factor = softmax.raise(top);
#pragma unroll
    for (int i = 0; i < SIZE; i++) acc[i] *= factor;
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const float weight = softmax.weight(x[u]);
      softmax.sum += weight;
#pragma unroll
      for (int i = 0; i < SIZE; i++) acc[i] = fmaf(weight, widen(v[u].x[i]), acc[i]);
    }
  }

#pragma unroll
  for (int offset = LANES; offset < WARP; offset *= 2) {
    const float other = __shfl_xor_sync(ALL_LANES, softmax.max, offset);
    const float sum = __shfl_xor_sync(ALL_LANES, softmax.sum, offset);
    const float mine = softmax.raise(other), theirs = part_factor(other, softmax.max);
    softmax.sum += sum * theirs;
#pragma unroll
    for (int i = 0; i < SIZE; i++)
      acc[i] = acc[i] * mine + __shfl_xor_sync(ALL_LANES, acc[i], offset) * theirs;
  }
  if (group == 0) {
#pragma unroll
    for (int i = 0; i < SIZE; i++) s.acc[warp()][first + i] = acc[i];
  }
  if (lane() == 0) s.max[warp()] = softmax.max, s.sum[warp()] = softmax.sum;
  __syncthreads();

  const int f = threadIdx.x, parts = (h.keys - 1) / p.part + 1;
  RunningSoftmax all;
  float sum = 0;
  if (f < p.head_dim) sum = merge_warps(s, f, all);
  if (parts > 1) {
    const int64_t mine = h.row * p.heads + h.head;
    float *room = static_cast<float *>(p.workspace) + COUNTERS + mine * gridDim.z * PART_FLOATS;
    float *own = room + (int64_t)blockIdx.z * PART_FLOATS;
    if (f < p.head_dim) own[2 + f] = sum;
    if (f == 0) own[0] = all.max, own[1] = all.sum;
    __threadfence();
    __syncthreads();
    uint32_t *counter = static_cast<uint32_t *>(p.workspace) + mine;
    if (threadIdx.x == 0) {
      s.is_last = atomicAdd(counter, 1u) == (uint32_t)parts - 1;
      if (s.is_last) *counter = 0;
      __threadfence();
    }
    __syncthreads();
    if (!s.is_last) return;
    all = RunningSoftmax(), sum = 0;
    for (int i = 0; i < parts && f < p.head_dim; i++) {
      const volatile float *part = room + (int64_t)i * PART_FLOATS;
      const float top = part[0];
      sum *= all.raise(top);
      const float factor = part_factor(top, all.max);
      sum += part[2 + f] * factor;
      all.sum += part[1] * factor;
    }
  }
  if (f < p.head_dim) h.o[f] = narrow<T>(sum / all.sum);
}

template <typename T> __device__ void attention_decode_plain(const AttentionDecodeParams &p) {
  SHARED(DecodeShared<PLAIN_FEATURES>, s);
  const DecodeHead<T> h(p);
  // This block alone reads its head of qkv.
  for (int i = threadIdx.x; i < p.rotary / 2; i += DECODE_THREADS) {
    float sine, cosine;
    h.angle(i, sine, cosine);
    for (int part = 0; part < 2; part++) {
      T *x = part ? h.k : h.q;
      const float a = widen(x[i]), b = widen(x[i + p.rotary / 2]);
      x[i] = narrow<T>(a * cosine - b * sine);
      x[i + p.rotary / 2] = narrow<T>(b * cosine + a * sine);
    }
  }
  __syncthreads();
  for (int f = threadIdx.x; f < p.head_dim; f += DECODE_THREADS) {
    h.new_line(0)[f] = h.k[f];
    h.new_line(1)[f] = h.v[f];
  }
  __syncthreads();
  for (int begin = 0; begin < p.head_dim; begin += PLAIN_FEATURES) {
    const int end = min(p.head_dim, begin + PLAIN_FEATURES);
    float acc[PLAIN_FEATURES / WARP] = {};
    RunningSoftmax softmax;
    for (int j = warp(); j < h.keys; j += DECODE_WARPS) {
      const int64_t page = h.table[j / p.page_tokens], offset = j % p.page_tokens;
      const T *k = h.line(page, 0, offset), *v = h.line(page, 1, offset);
      float product = 0;
      for (int f = lane(); f < p.head_dim; f += WARP)
        product = fmaf(widen(h.q[f]), widen(k[f]), product);
      const float x = h.score(j, warp_sum(product)), factor = softmax.raise(x);
      const float weight = softmax.weight(x);
      softmax.sum += weight;
#pragma unroll
      for (int i = 0; i < PLAIN_FEATURES / WARP; i++) {
        const int f = begin + i * WARP + lane();
        if (f < end) acc[i] = fmaf(weight, widen(v[f]), acc[i] * factor);
      }
    }
#pragma unroll
    for (int i = 0; i < PLAIN_FEATURES / WARP; i++) s.acc[warp()][i * WARP + lane()] = acc[i];
    if (lane() == 0) s.max[warp()] = softmax.max, s.sum[warp()] = softmax.sum;
    __syncthreads();
    RunningSoftmax all;
    const int f = threadIdx.x;
    if (begin + f < end) {
      const float sum = merge_warps(s, f, all);
      h.o[begin + f] = narrow<T>(sum / all.sum);
    }
    __syncthreads();
  }
}

#define ATTENTION_DECODE(name, T)                                                                  \
  KERNEL(attention_decode_##name##_64, AttentionDecodeParams, DECODE_THREADS) {                    \
    attention_decode<T, 64>(p);                                                                    \
  }                                                                                                \
  KERNEL(attention_decode_##name##_128, AttentionDecodeParams, DECODE_THREADS) {                   \
    attention_decode<T, 128>(p);                                                                   \
  }                                                                                                \
  KERNEL(attention_decode_##name##_plain, AttentionDecodeParams, DECODE_THREADS) {                 \
    attention_decode_plain<T>(p);                                                                  \
  }

ATTENTION_DECODE(f32, float)
ATTENTION_DECODE(bf16, bf16)
ATTENTION_DECODE(f16, f16)

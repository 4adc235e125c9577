/*  `attention_decode`
 *
 *  Idea      block (row, head, part) has 64 keys, 16 bytes of 4 of them a lane, and asks for all at
 *            once; while they come it turns the query. Lanes, then warps, merge maximum, sum and
 *            output in order. Of a row with several parts, the block that comes last merges what
 *            all have left in the workspace, in order. The last part turns and appends the new key.
 *            `_sm90`: the parts are a cluster. Each stores its own into shared memory of the first
 *            block, which merges them, in the same order: the same bits.
 *  Geometry  `_64`, `_128` (features held by lanes, at least head_dim): grid (rows, heads, parts of
 *            the largest table), 8 warps: 300 keys of 32 heads are 160 blocks. Parts beyond a row's
 *            keys leave at once, so that the launch is the same from token to token. `_sm90_64`,
 *            `_sm90_128`: 2, 4 or 8 parts, grid (parts, rows, heads). `_plain`: any head_dim, a
 *            block per row and head.
 *  Traffic   keys and values once: all of it but 3 %.
 *  Rejected  parts as large as the card can still fill with: the bits would depend on the batch.
 *            Volatile reads of all parts in one loop: a trip to L2 for each. Plain stores into the
 *            first block, then a barrier of the cluster: its release is one for the memory of the
 *            card (MEMBAR.ALL.GPU), half a microsecond. */
#include "attention_decode.h"
#include "lib/attend.cuh"
#include "lib/pages.cuh"
#include "lib/rotary.cuh"
#include "lib/split.cuh"

constexpr int DECODE_THREADS = 256, DECODE_WARPS = DECODE_THREADS / WARP;
/** Keys of a block. */
constexpr int PART = 64;

/** What a block's warps have come to, or a row's parts. */
template <int D> struct Pieces {
  float o[DECODE_WARPS][D];
  float max[DECODE_WARPS], sum[DECODE_WARPS];
};

template <typename T, int D> struct alignas(16) DecodeShared {
  Pieces<D> pieces; /**< of warps, then of parts */
  float q[D];       /**< 0 beyond head_dim */
  T k[D];
  int is_last;
};

/** Of a part that is a block of a cluster. */
template <typename T, int D> struct ClusterShared {
  DecodeShared<T, D> own;
  Pieces<D> parts; /**< in the first block */
  uint64_t all;    /**< in the first block: all parts have come */
};

/** The new token of a row, for one head. */
template <typename T> struct NewToken {
  const AttentionDecodeParams &p;
  int64_t row;
  int head, position;
  T *o, *q, *k, *v;

  __device__ NewToken(const AttentionDecodeParams &p, int64_t row, int head)
      : p(p), row(row), head(head), position(p.kv_len[row] - 1) {
    const int64_t width = (int64_t)p.heads * p.head_dim, at = (int64_t)head * p.head_dim;
    o = static_cast<T *>(p.o) + row * width + at;
    q = static_cast<T *>(p.qkv) + row * p.row_stride + at;
    k = q + width, v = k + width;
  }
  __device__ PagedKeys<T, AttentionDecodeParams> keys() const {
    return {p, row, position, position + 1, head};
  }
  /** Of its keys. */
  __device__ int parts() const { return position / PART + 1; }
  /** Sine and cosine for the pair (i, i + rotary/2), as in `rope`. */
  __device__ void angle(int i, float &sine, float &cosine) const {
    rotary_angle(i, p.rotary, p.base, position, sine, cosine);
  }
  /** Feature f of x, turned by its angle. */
  __device__ T turned(const T *x, int f, float sine, float cosine) const {
    if (f >= p.rotary) return x[f];
    const int half = p.rotary / 2, i = f < half ? f : f - half;
    const float a = widen(x[i]), b = widen(x[i + half]);
    return narrow<T>(f < half ? a * cosine - b * sine : b * cosine + a * sine);
  }
};

/** Feature f of an output that warps, or parts, have pieces of. */
struct Merged {
  RunningSoftmax softmax;
  float o = 0;

  /** Takes the first `count` pieces, in order; their factors do not wait for each other. */
  template <int D>
  __device__ __forceinline__ void take(const Pieces<D> &pieces, int count, int f) {
    float top = -INFINITY;
#pragma unroll
    for (int i = 0; i < DECODE_WARPS; i++)
      if (i < count) top = fmaxf(top, pieces.max[i]);
    o *= softmax.raise(top);
#pragma unroll
    for (int i = 0; i < DECODE_WARPS; i++) {
      if (i >= count) break;
      const float factor = softmax.factor(pieces.max[i]);
      softmax.sum += pieces.sum[i] * factor;
      o = fmaf(pieces.o[i][f], factor, o);
    }
  }
};

/** Leaves output, maximum and sum of a part in the workspace. True in the block that is the last of
 *  `parts` to do so: it finds them all. */
template <typename T, int D>
__device__ __forceinline__ bool leave(DecodeShared<T, D> &s, float *room, uint32_t *counter,
                                      int parts, const Merged &merged) {
  float *own = room + (int64_t)blockIdx.z * (D + 2);
  if (threadIdx.x < D) own[threadIdx.x] = merged.o;
  if (threadIdx.x == 0) own[D] = merged.softmax.max, own[D + 1] = merged.softmax.sum;
  return comes_last(counter, parts, s.is_last, [] { __syncthreads(); });
}

/** What the keys of one part come to: feature f in thread f of the first D. */
template <typename T, int D>
__device__ __forceinline__ Merged attend_part(const NewToken<T> &token, int part,
                                              DecodeShared<T, D> &s) {
  constexpr int SIZE = Pack<T>::SIZE, LANES = D / SIZE, GROUPS = WARP / LANES;
  constexpr int STEPS = PART / (DECODE_WARPS * GROUPS);
  const AttentionDecodeParams &p = token.p;
  const auto keys = token.keys();
  const int begin = part * PART, last = token.position;

  const int feature = lane() % LANES * SIZE;
  const bool has_features = feature < p.head_dim;
  int key[STEPS];
  Pack<T> k[STEPS], v[STEPS];
#pragma unroll
  for (int u = 0; u < STEPS; u++) {
    key[u] = begin + (u * DECODE_WARPS + warp()) * GROUPS + lane() / LANES;
    // Without branches: lanes of no key or no feature read what others do, the new key's what its
    // place in the pages held before.
    const int j = min(key[u], last), at = has_features ? feature : 0;
    k[u] = *reinterpret_cast<const Pack<T> *>(keys.k(j) + at);
    v[u] = *reinterpret_cast<const Pack<T> *>(keys.v(j) + at);
  }
  // How far each feature turns needs no more than the new token's position.
  const int f = (int)threadIdx.x % D, which = (int)threadIdx.x / D;
  float sine = 0, cosine = 1;
  if (which < 2 && f < p.rotary) token.angle(f % (p.rotary / 2), sine, cosine);
  // Older keys were there before the step began; the new token is the launch's before this one.
  ptx::wait_for_launch_before();
#pragma unroll
  for (int u = 0; u < STEPS; u++)
    if (key[u] >= last)
      v[u] = *reinterpret_cast<const Pack<T> *>(token.v + (has_features ? feature : 0));

  const bool is_new_here = last < begin + PART;
  if (which == 0) s.q[f] = f < p.head_dim ? widen(token.turned(token.q, f, sine, cosine)) : 0.0f;
  if (which == 1 && f < p.head_dim && is_new_here) {
    const T turned = token.turned(token.k, f, sine, cosine);
    keys.line(last, 0)[f] = turned, keys.line(last, 1)[f] = token.v[f];
    s.k[f] = turned;
  }
  __syncthreads();

  alignas(16) float q[SIZE];
  float x[STEPS], o[SIZE] = {};
#pragma unroll
  for (int i = 0; i < SIZE; i += 4)
    *reinterpret_cast<float4 *>(q + i) = *reinterpret_cast<const float4 *>(s.q + feature + i);
  float top = -INFINITY;
#pragma unroll
  for (int u = 0; u < STEPS; u++) {
    if (key[u] == last && has_features)
      k[u] = *reinterpret_cast<const Pack<T> *>(s.k + feature);
    float product = 0;
#pragma unroll
    for (int i = 0; i < SIZE; i++)
      product = fmaf(q[i], has_features ? widen(k[u].x[i]) : 0.0f, product);
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2)
      product += __shfl_xor_sync(ALL_LANES, product, offset);
    x[u] = keys.row(0).score(key[u], product * (p.scale * LOG2_E));
    top = fmaxf(top, x[u]);
  }
  RunningSoftmax softmax;
  softmax.raise(top);
#pragma unroll
  for (int u = 0; u < STEPS; u++) {
    const float weight = softmax.weight(x[u]);
    softmax.sum += weight;
#pragma unroll
    for (int i = 0; i < SIZE; i++) o[i] = fmaf(weight, widen(v[u].x[i]), o[i]);
  }

#pragma unroll
  for (int offset = LANES; offset < WARP; offset *= 2) {
    const float max = __shfl_xor_sync(ALL_LANES, softmax.max, offset);
    const float sum = __shfl_xor_sync(ALL_LANES, softmax.sum, offset);
    const MergeFactors factors = softmax.merge(max, sum);
#pragma unroll
    for (int i = 0; i < SIZE; i++)
      o[i] = o[i] * factors.own + __shfl_xor_sync(ALL_LANES, o[i], offset) * factors.other;
  }
  if (lane() < LANES) {
#pragma unroll
    for (int i = 0; i < SIZE; i++) s.pieces.o[warp()][feature + i] = o[i];
  }
  if (lane() == 0) s.pieces.max[warp()] = softmax.max, s.pieces.sum[warp()] = softmax.sum;
  __syncthreads();

  Merged merged;
  if (which == 0) merged.take(s.pieces, DECODE_WARPS, f);
  return merged;
}

template <typename T, int D> __device__ void attention_decode(const AttentionDecodeParams &p) {
  using Shared = DecodeShared<T, D>;
  SHARED(Shared, s);
  const NewToken<T> token(p, blockIdx.x, (int)blockIdx.y);
  const int parts = token.parts(), f = (int)threadIdx.x;
  if ((int)blockIdx.z >= parts) return;

  Merged merged = attend_part(token, (int)blockIdx.z, s);
  if (parts > 1) {
    const int64_t at = token.row * p.heads + token.head;
    float *room = static_cast<float *>(p.workspace) + COUNTERS + at * gridDim.z * (D + 2);
    if (!leave(s, room, static_cast<uint32_t *>(p.workspace) + at, parts, merged)) return;
    merged = Merged();
    for (int first = 0; first < parts; first += DECODE_WARPS) {
      __syncthreads();
      if (first + warp() < parts) {
        // Not through L1, which may hold what was there before.
        const volatile float *part = room + (int64_t)(first + warp()) * (D + 2);
        for (int i = lane(); i < D; i += WARP) s.pieces.o[warp()][i] = part[i];
        if (lane() == 0) s.pieces.max[warp()] = part[D], s.pieces.sum[warp()] = part[D + 1];
      }
      __syncthreads();
      if (f < D) merged.take(s.pieces, min(parts - first, DECODE_WARPS), f);
    }
  }
  if (f < D && f < p.head_dim) token.o[f] = narrow<T>(merged.o * merged.softmax.norm());
}

/** The same where the parts are a cluster: those without keys too. */
template <typename T, int D>
__device__ __forceinline__ void attention_decode_cluster(const AttentionDecodeParams &p) {
#if HAS_SM90A
  using Shared = ClusterShared<T, D>;
  SHARED(Shared, s);
  const NewToken<T> token(p, blockIdx.y, (int)blockIdx.z);
  const int part = (int)blockIdx.x, f = (int)threadIdx.x;
  if (part == 0 && f == 0) {
    ptx::mbarrier_init(&s.all, 1);
    ptx::fence_barrier_init();
  }
  ptx::cluster_arrive();
  const int parts = token.parts();
  if (part >= parts) return;

  Merged merged = attend_part(token, part, s.own);
  if (parts > 1) {
    // The first block has begun, long ago, and made its barrier.
    ptx::cluster_wait();
    if (f < D) ptx::store_in(0, &s.parts.o[part][f], merged.o, &s.all);
    if (f == 0) {
      ptx::store_in(0, &s.parts.max[part], merged.softmax.max, &s.all);
      ptx::store_in(0, &s.parts.sum[part], merged.softmax.sum, &s.all);
    }
    if (part > 0 || f >= D) return;
    if (f == 0) ptx::mbarrier_arrive_expect_tx(&s.all, parts * (D + 2) * (int)sizeof(float));
    ptx::mbarrier_wait_for_cluster(&s.all, 0);
    merged = Merged();
    merged.take(s.parts, parts, f);
  }
  if (f < D && f < p.head_dim) token.o[f] = narrow<T>(merged.o * merged.softmax.norm());
#endif
}

template <typename T> __device__ void attention_decode_plain(const AttentionDecodeParams &p) {
  const NewToken<T> token(p, blockIdx.x, (int)blockIdx.y);
  const auto keys = token.keys();
  // This block alone reads its head of qkv.
  for (int i = threadIdx.x; i < p.rotary / 2; i += DECODE_THREADS) {
    float sine, cosine;
    token.angle(i, sine, cosine);
    for (int part = 0; part < 2; part++) {
      T *x = part ? token.k : token.q;
      const float a = widen(x[i]), b = widen(x[i + p.rotary / 2]);
      x[i] = narrow<T>(a * cosine - b * sine);
      x[i + p.rotary / 2] = narrow<T>(b * cosine + a * sine);
    }
  }
  __syncthreads();
  for (int f = threadIdx.x; f < p.head_dim; f += DECODE_THREADS) {
    keys.line(token.position, 0)[f] = token.k[f];
    keys.line(token.position, 1)[f] = token.v[f];
  }
  __syncthreads();
  for (int f = warp() * ROW_FEATURES; f < p.head_dim; f += DECODE_WARPS * ROW_FEATURES)
    attend_row(token.o, token.q, keys, p.head_dim, f, p.scale);
}

#define ATTENTION_DECODE(name, T)                                                                  \
  KERNEL_EARLY(attention_decode_##name##_64, AttentionDecodeParams, DECODE_THREADS, 3) {           \
    attention_decode<T, 64>(p);                                                                    \
  }                                                                                                \
  KERNEL_EARLY(attention_decode_##name##_128, AttentionDecodeParams, DECODE_THREADS) {             \
    attention_decode<T, 128>(p);                                                                   \
  }                                                                                                \
  KERNEL_EARLY(attention_decode_##name##_sm90_64, AttentionDecodeParams, DECODE_THREADS, 3) {      \
    attention_decode_cluster<T, 64>(p);                                                            \
  }                                                                                                \
  KERNEL_EARLY(attention_decode_##name##_sm90_128, AttentionDecodeParams, DECODE_THREADS) {        \
    attention_decode_cluster<T, 128>(p);                                                           \
  }                                                                                                \
  KERNEL(attention_decode_##name##_plain, AttentionDecodeParams, DECODE_THREADS) {                 \
    attention_decode_plain<T>(p);                                                                  \
  }

ATTENTION_DECODE(f32, float)
ATTENTION_DECODE(bf16, bf16)
ATTENTION_DECODE(f16, f16)

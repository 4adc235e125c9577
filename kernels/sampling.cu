/*  `sampling`
 *
 *  Idea      edits become two bits a token; then scores are read again whenever they are needed
 *            best = min over tokens of (descending score, id)            the maximum, alternatives
 *            reach: the token at which a running total, in order of (|y|, id), gets to a goal
 *                   = a histogram, the bin of the goal, its histogram ... until one is left
 *            top-k, top-p and the draw itself are each one `reach`; no sort
 *  Geometry  a block of 1024 threads a sequence, a bin a thread; edits as bits in shared memory,
 *            then |y| of as many tokens as a block has room for: all of 32003.
 *  Traffic   the row, three times, from L2 but for the first; what has no room, five to ten times.
 *  Rejected  bins of leading bits at the first level: logits share a few exponents, and a thousand
 *            threads would add to the same ten bins; bins of 1/32 of y spread them. Weights as
 *            floats: their sum depends on its order, and a token on the sum. Sums of 64 bits by
 *            one addition each: in shared memory those are loops of compare and swap. */
#include "sampling.h"
#include "lib/reduce.cuh"
#include "lib/types.cuh"

using u64 = unsigned long long;

constexpr int THREADS = 1024, WARPS = THREADS / WARP;
static_assert(WARPS == WARP, "a lane holds the partial of a warp");
/** A bin a thread. */
constexpr int BIN_BITS = 10, BINS = 1 << BIN_BITS;
static_assert(BINS == THREADS, "");
constexpr float BINS_PER_UNIT = 32;
constexpr int ID_BITS = 18;
constexpr u64 ID_MASK = (1ull << ID_BITS) - 1;
/** The entry of a token that cannot be drawn: after all others. */
constexpr u64 NEVER = ~0ull;

/** The bits of the edits follow, penalised, then banned; then |y| of the first tokens. */
struct SamplingShared {
  uint32_t low[BINS], high[BINS], counts[BINS]; /**< halves of a bin's sum, and its tokens */
  u64 partial[WARPS];
  u64 before;
  int32_t bin, id;

  __device__ uint32_t *bits() { return reinterpret_cast<uint32_t *>(this + 1); }
  __device__ u64 sum(int bin) const { return (u64)high[bin] << 32 | low[bin]; }
  __device__ void add(int bin, u64 x) {
    const uint32_t part = (uint32_t)x, before = atomicAdd(&low[bin], part);
    const uint32_t carried = (uint32_t)(x >> 32) + (before + part < before);
    if (carried) atomicAdd(&high[bin], carried);
    atomicAdd(&counts[bin], 1u);
  }
};

/** f over the values of all threads, in every thread. */
template <typename F> __device__ u64 block_fold(u64 (&partial)[WARPS], u64 x, F f) {
#pragma unroll
  for (int by = WARP / 2; by > 0; by /= 2) x = f(x, __shfl_xor_sync(ALL_LANES, x, by));
  if (lane() == 0) partial[warp()] = x;
  __syncthreads();
  x = partial[lane()];
#pragma unroll
  for (int by = WARP / 2; by > 0; by /= 2) x = f(x, __shfl_xor_sync(ALL_LANES, x, by));
  __syncthreads(); // `partial` is free again
  return x;
}

/** The sum over the lanes up to this one. */
__device__ u64 warp_scan(u64 x) {
#pragma unroll
  for (int by = 1; by < WARP; by *= 2) {
    u64 y = __shfl_up_sync(ALL_LANES, x, by);
    if (lane() >= by) x += y;
  }
  return x;
}

/** The sum over the threads up to this one, and over all. */
__device__ u64 block_scan(u64 (&partial)[WARPS], u64 x, u64 &total) {
  x = warp_scan(x);
  if (lane() == WARP - 1) partial[warp()] = x;
  __syncthreads();
  u64 sums = warp_scan(partial[lane()]);
  u64 before = __shfl_sync(ALL_LANES, sums, (warp() + WARP - 1) % WARP);
  total = __shfl_sync(ALL_LANES, sums, WARP - 1);
  __syncthreads(); // `partial` is free again
  return warp() == 0 ? x : before + x;
}

/** floor(2^40 exp(y)), y <= 0: `ops::logits::weight`, operation for operation. */
__device__ u64 weight(float y) {
  constexpr float ROUND = 12582912.0f, LOG2_E = 1.44269504088896340736f;
  constexpr float LN2_HIGH = 0.6933594f, LN2_LOW = -2.1219444e-4f;
  constexpr float TAYLOR[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  const float x = y > -87.0f ? y : -87.0f;
  const float shifted = __fadd_rn(__fmul_rn(x, LOG2_E), ROUND), k = __fsub_rn(shifted, ROUND);
  const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(k, LN2_HIGH)), __fmul_rn(k, LN2_LOW));
  float p = 1.0f / 5040;
#pragma unroll
  for (int i = 0; i < 7; i++) p = __fadd_rn(__fmul_rn(p, r), TAYLOR[i]);
  const float scale = __uint_as_float((__float_as_uint(shifted) << 23) + (127u << 23));
  return (u64)__fmul_rn(__fmul_rn(p, scale), 0x1p40f);
}

/** Smaller for larger x; 0 for what no row may hold: NaN and inf. */
__device__ uint32_t descending(float x) {
  if (!(x < INFINITY)) return 0;
  uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f)); // -0 and 0 are equals
  return bits >> 31 ? bits : bits ^ 0x7fffffffu;
}

__device__ bool has(const uint32_t *bits, int id) { return bits[id / 32] >> id % 32 & 1; }

template <typename T> struct Row {
  const T *x;
  int tokens;
  float penalty;
  bool is_edited;
  const uint32_t *penalised, *banned;

  __device__ float logit(int id) const { return widen(x[id]); }

  __device__ float score(int id) const {
    float x = logit(id);
    if (!is_edited) return x;
    if (has(penalised, id)) x = x < 0 ? __fmul_rn(x, penalty) : __fdiv_rn(x, penalty);
    return has(banned, id) ? -INFINITY : x;
  }
};

/** use(id, x) for this thread's tokens, x = read(id): a trip to memory for eight of them, and for
 *  those that are left over. */
template <typename Read, typename Use>
__device__ __forceinline__ void for_my_tokens(int tokens, Read read, Use use) {
  constexpr int AHEAD = 8;
#pragma unroll 1
  for (int id = threadIdx.x; id < tokens; id += AHEAD * THREADS) {
    float x[AHEAD] = {};
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (id + i * THREADS < tokens) x[i] = read(id + i * THREADS);
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (id + i * THREADS < tokens) use(id + i * THREADS, x[i]);
  }
}

/** The first of (descending(f(id)), id) that is not before `first`. */
template <typename F> __device__ u64 best(u64 (&partial)[WARPS], int tokens, u64 first, F f) {
  u64 found = NEVER;
  for_my_tokens(tokens, f, [&](int id, float x) {
    const u64 entry = (u64)descending(x) << ID_BITS | id;
    if (entry >= first && entry < found) found = entry;
  });
  return block_fold(partial, found, [](u64 a, u64 b) { return a < b ? a : b; });
}

/** True if `entry`, the best of all, is no number that a token could be chosen by. */
__device__ bool is_fault(u64 entry) {
  return entry >> ID_BITS == 0 || entry >> ID_BITS == descending(-INFINITY);
}

/** Entries first .. last. */
struct Range {
  u64 first, last;
  __device__ bool holds(u64 entry) const { return first <= entry && entry <= last; }
};

/** Scores relative to the best of them. */
template <typename T> struct Distribution {
  Row<T> row;
  float maximum, temperature;
  float *kept; /**< |y| of the tokens before `room`, each written by who reads it */
  int room;

  /** |y|; infinite for what cannot be drawn. */
  __device__ float away(int id) const {
    return fabsf(__fdiv_rn(__fsub_rn(row.score(id), maximum), temperature));
  }
  __device__ void keep() {
    for_my_tokens(room, [&](int id) { return away(id); }, [&](int id, float y) { kept[id] = y; });
  }
  /** use(entry) for this thread's tokens: |y| and the id. */
  template <typename Use> __device__ __forceinline__ void for_my_entries(Use use) const {
    const auto read = [&](int id) { return id < room ? kept[id] : away(id); };
    for_my_tokens(row.tokens, read, [&](int id, float y) {
      use(y < INFINITY ? (u64)__float_as_uint(y) << ID_BITS | id : NEVER);
    });
  }
};

/** |y| of an entry. */
__device__ float distance(u64 entry) { return __uint_as_float((uint32_t)(entry >> ID_BITS)); }

/** Which part of `in` a bin stands for: 1/32 of y at the first level, 2^shift entries later. */
__device__ int bin_of(u64 entry, Range in, int shift, bool is_first) {
  if (!is_first) return (int)((entry - in.first) >> shift);
  const float y = distance(entry);
  return y < BINS / BINS_PER_UNIT ? (int)(y * BINS_PER_UNIT) : BINS - 1;
}
__device__ Range part_of(int bin, Range in, int shift, bool is_first) {
  auto start = [](int bin) { return (u64)__float_as_uint((float)bin / BINS_PER_UNIT) << ID_BITS; };
  u64 first = is_first ? start(bin) : in.first + ((u64)bin << shift);
  u64 last = !is_first         ? first + (1ull << shift) - 1
             : bin == BINS - 1 ? in.last
                               : start(bin + 1) - 1;
  return {first, min(last, in.last)};
}

/** Entries with but one token among them: the first up to which `measure` adds up to `goal`, which
 *  is a function of the whole, over the tokens up to `last`. */
template <typename T, typename Measure, typename Goal>
__device__ Range reach(SamplingShared &s, const Distribution<T> &d, u64 last, Measure measure,
                       Goal goal_of) {
  const int t = threadIdx.x;
  Range in = {0, last};
  u64 before = 0, goal = 0;
  for (bool is_first = true;; is_first = false) {
    const int shift = max(0, 64 - __clzll((long long)(in.last - in.first)) - BIN_BITS);
    s.low[t] = 0, s.high[t] = 0, s.counts[t] = 0;
    __syncthreads();
    d.for_my_entries([&](u64 entry) {
      if (in.holds(entry)) s.add(bin_of(entry, in, shift, is_first), measure(entry));
    });
    __syncthreads();
    u64 total;
    const u64 own = s.sum(t), upto = before + block_scan(s.partial, own, total);
    if (is_first) goal = goal_of(total);
    if (upto - own < goal && goal <= upto) s.bin = t, s.before = upto - own;
    __syncthreads();
    const int bin = s.bin;
    before = s.before;
    const bool is_single = s.counts[bin] == 1;
    in = part_of(bin, in, shift, is_first);
    __syncthreads();
    if (is_single || in.first == in.last) return in;
  }
}

/** The token of the distribution at draw.uniform of the part that is kept. */
template <typename T>
__device__ int draw_token(SamplingShared &s, const Distribution<T> &d, const SamplingDraw &draw) {
  const auto one = [](u64) { return 1ull; };
  const auto mass = [](u64 entry) { return weight(-distance(entry)); };
  const u64 most = draw.top_k, share = draw.top_p, least = draw.min_p, uniform = draw.uniform;
  u64 last = NEVER - 1;
  if (most > 0) {
    const Range end = reach(s, d, last, one, [=](u64 all) { return min(most, all); });
    last = min(end.last | ID_MASK, last);
  }
  if (share != ~0ull) {
    const auto goal = [=](u64 all) {
      return max(1ull, __umul64hi(share, all) + (share * all != 0)); // rounded up
    };
    last = reach(s, d, last, mass, goal).last;
  }
  const auto kept = [=](u64 entry) {
    const u64 w = mass(entry);
    return w >= least ? w : 0;
  };
  const auto place = [=](u64 all) { return __umul64hi(uniform, all) + 1; };
  const Range chosen = reach(s, d, last, kept, place);
  d.for_my_entries([&](u64 entry) {
    if (chosen.holds(entry)) s.id = (int)(entry & ID_MASK);
  });
  __syncthreads();
  return s.id;
}

/** The draw's edits as bits. */
__device__ void mark(uint32_t *bits, const int32_t *ids, int begin, int end) {
  for (int i = begin + threadIdx.x; i < end; i += THREADS)
    atomicOr(&bits[ids[i] / 32], 1u << ids[i] % 32);
}

template <typename T> __device__ void sampling(const SamplingParams &p) {
  SHARED(SamplingShared, s);
  const SamplingDraw draw = p.draws[blockIdx.x];
  SamplingChoice &choice = p.choices[blockIdx.x];
  const int tokens = (int)p.vocabulary, words = (tokens + 31) / 32;
  uint32_t *const penalised = s.bits(), *const banned = penalised + words;
  const Row<T> row = {static_cast<const T *>(p.logits) + draw.row * p.row_stride,
                      tokens,
                      draw.penalty,
                      draw.penalised_begin < draw.banned_end,
                      penalised,
                      banned};
  const auto logit = [&](int id) { return row.logit(id); };
  const auto score = [&](int id) { return row.score(id); };
  const auto finish = [&](u64 entry, int fault) {
    const int id = (int)(entry & ID_MASK);
    if (threadIdx.x > 0) return;
    choice.id = p.ids[blockIdx.x] = id;
    choice.fault = fault;
    choice.logit = fault == 2 ? row.score(id) : row.logit(id);
  };

  if (row.is_edited) {
    for (int i = threadIdx.x; i < 2 * words; i += THREADS) penalised[i] = 0;
    __syncthreads();
    mark(penalised, p.edits, draw.penalised_begin, draw.penalised_end);
    mark(banned, p.edits, draw.penalised_end, draw.banned_end);
    __syncthreads();
  }

  const u64 first = best(s.partial, tokens, 0, logit);
  if (is_fault(first)) return finish(first, 1);
  const float maximum = row.logit((int)(first & ID_MASK));
  u64 sum = 0;
  for_my_tokens(tokens, logit, [&](int, float x) { sum += weight(__fsub_rn(x, maximum)); });
  sum = block_fold(s.partial, sum, [](u64 a, u64 b) { return a + b; });
  if (threadIdx.x == 0) choice.sum = sum, choice.maximum = maximum;

  u64 next = first;
  for (int i = 0; i < min(draw.alternatives, tokens); i++) {
    if (i > 0) next = best(s.partial, tokens, next + 1, logit);
    if (threadIdx.x > 0) continue;
    choice.top_id[i] = (int)(next & ID_MASK);
    choice.top_logit[i] = row.logit((int)(next & ID_MASK));
  }

  const u64 likeliest = row.is_edited ? best(s.partial, tokens, 0, score) : first;
  if (is_fault(likeliest)) return finish(likeliest, 2);
  if (draw.temperature == 0) return finish(likeliest, 0);
  const float top = row.score((int)(likeliest & ID_MASK));
  float *const kept = reinterpret_cast<float *>(banned + words);
  const int used = (int)sizeof(SamplingShared) + 8 * words;
  const int room = min(tokens, ((int)ptx::dynamic_shared_bytes() - used) / (int)sizeof(float));
  Distribution<T> distribution = {row, top, draw.temperature, kept, room};
  distribution.keep();
  finish(draw_token(s, distribution, draw), 0);
}

KERNEL(sampling_f32, SamplingParams, THREADS) { sampling<float>(p); }
KERNEL(sampling_bf16, SamplingParams, THREADS) { sampling<bf16>(p); }
KERNEL(sampling_f16, SamplingParams, THREADS) { sampling<f16>(p); }

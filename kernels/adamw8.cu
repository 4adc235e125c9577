/*  `adamw8`
 *
 *  Idea      for each block: read g, p and codes; m, v, p by AdamW; write p, absmax and codes
 *  Geometry  256 threads take 2048 elements, then the next 2048 that no other block takes; a lane
 *            has 8 neighbours, a warp 256. A block of 256 is a warp's own: its scale is a reduction
 *            away, and warps never wait for each other. A block of 2048 is the thread block's: one
 *            barrier. The next elements are asked for before the codes of these are made.
 *  Traffic   g, p and the codes once, 16 or 8 bytes a load; codebooks (15.9 KB) once a block.
 *  Rejected  the search of bitsandbytes: 7 dependent loads from shared memory; here 2. Values by
 *            arithmetic instead of a table: another codebook would be another kernel. Division and
 *            root of the compiler: a lane's elements one after another, 38 % of the copy (H200). */
#include "adamw8.h"
#include "lib/adamw.cuh"
#include "lib/exact.cuh"
#include "lib/reduce.cuh"

constexpr int THREADS = 256;
constexpr uint32_t GROUP = THREADS * OWN;

struct Adamw8Shared {
  Adamw8Codebook book1, book2;
  float largest1[2][THREADS / WARP], largest2[2][THREADS / WARP];
};

__device__ __forceinline__ void copy_book(Adamw8Codebook &to, const Adamw8Codebook *from) {
  static_assert(sizeof(Adamw8Codebook) % 8 == 0, "in words of 8 bytes");
  uint2 *words = reinterpret_cast<uint2 *>(&to);
  for (int i = (int)threadIdx.x; i < (int)(sizeof to / 8); i += THREADS)
    words[i] = reinterpret_cast<const uint2 *>(from)[i];
}

/** Codes of 0 in the books of first and second moments. */
constexpr uint8_t ZERO1 = 127, ZERO2 = 0;

/** Code i is that of the number nearest to x, |x| <= 1, whose sign `is_negative` knows if x is 0;
 *  of a NaN, that of such a 0. */
__device__ __forceinline__ void encode(Own<uint8_t> &codes, int i, const Adamw8Codebook &book,
                                       float x, uint32_t is_negative) {
  constexpr uint32_t BELOW_TINY = ((127 - 23) << 7) - 1;
  const float in_cells = fmaxf(fabsf(x), __uint_as_float(BELOW_TINY << 16));
  const uint32_t cell = (__float_as_uint(in_cells) >> 16) - BELOW_TINY;
  const uint32_t code = book.cell[is_negative][cell];
  codes.set_bits(i, code);
  codes.increase_if(x >= book.above[code], i);
}

/** A lane's elements of one group, of which `count` exist. */
template <typename T, int BLOCK, Rounding R> struct Held {
  uint32_t at;
  int count;
  Own<float> g;
  Own<uint8_t> code1, code2;
  Kept<T, R> kept;
  float absmax1, absmax2;

  /** Of the group that begins at `first`. */
  __device__ __forceinline__ void load(const Adamw8Params &p, uint32_t first) {
    at = first + threadIdx.x * OWN;
    const uint32_t n = (uint32_t)p.n;
    count = at < n ? (int)min(n - at, (uint32_t)OWN) : 0;
    if (__builtin_expect(count == OWN, 1))
      load_some(p, OWN);
    else
      load_some(p, count);
  }
  __device__ __forceinline__ void load_some(const Adamw8Params &p, int present) {
    g.load(p.grad + at, present, 0.0f);
    code1.load(p.code1 + at, present, ZERO1);
    code2.load(p.code2 + at, present, ZERO2);
    kept.load(p, at, present);
    absmax1 = present > 0 ? p.absmax1[at / BLOCK] : 0.0f;
    absmax2 = present > 0 ? p.absmax2[at / BLOCK] : 0.0f;
  }
  __device__ __forceinline__ void decode(const Adamw8Shared &s, int i, float &m, float &v) {
    m = __fmul_rn(s.book1.value[code1[i]], absmax1);
    v = __fmul_rn(s.book2.value[code2[i]], absmax2);
  }
};

/** A step of the lane's parameters; m and v become the new moments, of which the largest are
 *  returned. */
template <typename T, int BLOCK, Rounding R>
__device__ __forceinline__ void move(const Adamw8Params &p, const Adamw8Shared &s,
                                     Held<T, BLOCK, R> &held, float scale, float (&m)[OWN],
                                     float (&v)[OWN], float &largest1, float &largest2) {
  uint32_t least = 0xffffffffu, most = 0;
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    held.decode(s, i, m[i], v[i]);
    advance(p, __fmul_rn(held.g[i], scale), m[i], v[i]);
    least = min(least, __float_as_uint(v[i]));
    most = max(most, __float_as_uint(v[i]));
  }
  // Then gradients were finite, and `exact` is.
  const bool usual = (least >= __float_as_uint(0x1p-100f)) & (most < __float_as_uint(0x1p60f)) &
                     (fabsf(held.absmax1) < 0x1p100f) & (p.eps >= 0.0f) & (p.eps <= 1.0f);
  float x[OWN];
  if (__builtin_expect(usual, 1)) {
#pragma unroll
    for (int i = 0; i < OWN; i++) {
      const float below = __fadd_rn(exact::root(v[i]), p.eps);
      const float direction = __fmul_rn(m[i], exact::reciprocal(below));
      x[i] = moved<T, R>(p, widen(held.kept.own[i]), direction, held.at + i);
    }
    largest2 = __uint_as_float(most);
  } else {
    largest2 = 0.0f;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
      const float g = __fmul_rn(held.g[i], scale);
      held.decode(s, i, m[i], v[i]);
      x[i] = adamw<T, R, true>(p, widen(held.kept.own[i]), g, m[i], v[i], held.at + i);
      largest2 = fmaxf(largest2, fabsf(v[i]));
    }
  }
  held.kept.store(p, x, held.at, held.count);
  largest1 = 0.0f;
#pragma unroll
  for (int i = 0; i < OWN; i++) largest1 = fmaxf(largest1, fabsf(m[i]));
}

/** A lane's largest moments become those of its block. */
template <int BLOCK>
__device__ __forceinline__ void share(Adamw8Shared &s, int turn, float &largest1,
                                      float &largest2) {
  largest1 = warp_max_positive(largest1);
  largest2 = warp_max_positive(largest2);
  if (BLOCK > WARP * OWN) {
    // Two sets in turn: a warp may be a group ahead of the slowest, not two.
    if (lane() == 0) s.largest1[turn][warp()] = largest1, s.largest2[turn][warp()] = largest2;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < THREADS / WARP; i++) {
      largest1 = fmaxf(largest1, s.largest1[turn][i]);
      largest2 = fmaxf(largest2, s.largest2[turn][i]);
    }
  }
}

/** a / b by y = 1 / b and one residual: nearly always what the division is rounded to, for b in
 *  [2^-72, 2^60) and quotients that are not too small for a code. */
__device__ __forceinline__ float quotient(float a, float b, float y) {
  const float q = __fmul_rn(a, y);
  return __fmaf_rn(__fmaf_rn(-b, q, a), y, q);
}
__device__ __forceinline__ bool is_divisor(float b) { return b >= 0x1p-72f && b < 0x1p60f; }

/** The codes of m and v, whose blocks' largest are given. */
__device__ __forceinline__ void quantise(const Adamw8Shared &s, const float (&m)[OWN],
                                         const float (&v)[OWN], float largest1, float largest2,
                                         Own<uint8_t> &code1, Own<uint8_t> &code2) {
  // The same for the whole warp.
  if (__builtin_expect(is_divisor(largest1) & is_divisor(largest2), 1)) {
    const float y1 = exact::reciprocal(largest1), y2 = exact::reciprocal(largest2);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
      const float x1 = quotient(m[i], largest1, y1), x2 = quotient(v[i], largest2, y2);
      encode(code1, i, s.book1, x1, __float_as_uint(m[i]) >> 31);
      encode(code2, i, s.book2, x2, 0);
    }
  } else {
#pragma unroll
    for (int i = 0; i < OWN; i++) {
      const float x1 = __fdiv_rn(m[i], largest1), x2 = __fdiv_rn(v[i], largest2);
      const uint32_t sign1 = __float_as_uint(m[i]) >> 31, sign2 = __float_as_uint(v[i]) >> 31;
      // 0 / 0 goes where the search of bitsandbytes leaves it: to the ends.
      if (x1 == x1)
        encode(code1, i, s.book1, x1, sign1);
      else
        code1.set_bits(i, sign1 ? 0u : 255u);
      if (x2 == x2)
        encode(code2, i, s.book2, x2, sign2);
      else
        code2.set_bits(i, 0);
    }
  }
}

template <typename T, int BLOCK, Rounding R>
__device__ void steps(const Adamw8Params &p, Adamw8Shared &s, float scale) {
  Held<T, BLOCK, R> held;
  uint32_t first = blockIdx.x * GROUP;
  held.load(p, first);
  for (int turn = 0; first < (uint32_t)p.n; turn ^= 1) {
    float m[OWN], v[OWN], largest1, largest2;
    move(p, s, held, scale, m, v, largest1, largest2);
    const uint32_t at = held.at, block = at / BLOCK;
    const int count = held.count;
    // bitsandbytes fills a last block with code 128, which is not quite 0.
    const float filler = __fmul_rn(__fmul_rn(s.book1.value[128], held.absmax1), p.beta1);
    if ((block + 1) * BLOCK > (uint32_t)p.n) largest1 = fmaxf(largest1, fabsf(filler));
    held.load(p, first += gridDim.x * GROUP);
    share<BLOCK>(s, turn, largest1, largest2);
    if (at % BLOCK == 0 && count > 0) p.absmax1[block] = largest1, p.absmax2[block] = largest2;
    Own<uint8_t> code1, code2;
    quantise(s, m, v, largest1, largest2, code1, code2);
    code1.store(p.code1 + at, count);
    code2.store(p.code2 + at, count);
  }
}

template <typename T, int BLOCK> __device__ void adamw8(const Adamw8Params &p) {
  SHARED(Adamw8Shared, s);
  const float scale = p.grad_scale ? *p.grad_scale : 1.0f;
  if (!is_finite(scale)) return;
  copy_book(s.book1, p.book1);
  copy_book(s.book2, p.book2);
  __syncthreads();
  switch (rounding(p)) {
  case MASTER: return steps<T, BLOCK, MASTER>(p, s, scale);
  case NEAREST: return steps<T, BLOCK, NEAREST>(p, s, scale);
  case STOCHASTIC:
    if (is_bf16<T>) steps<T, BLOCK, STOCHASTIC>(p, s, scale);
  }
}

#define ADAMW8(name, T)                                                                            \
  KERNEL(adamw8_##name##_256, Adamw8Params, THREADS, 3) { adamw8<T, 256>(p); }                     \
  KERNEL(adamw8_##name##_2048, Adamw8Params, THREADS, 3) { adamw8<T, 2048>(p); }

ADAMW8(f32, float)
ADAMW8(bf16, bf16)
ADAMW8(f16, f16)

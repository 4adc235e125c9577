/*  `adamw8`
 *
 *  Idea      for each block: read g, p and codes; m, v, p by AdamW; write p, absmax and codes
 *  Geometry  256 threads take 2048 elements, then the next 2048 that no other block takes; a lane
 *            has 8 neighbours, a warp 256. A block of 256 is a warp's own: its scale is a shuffle
 *            away, and warps never wait for each other. A block of 2048 is the thread block's: one
 *            barrier.
 *  Traffic   g, p and the codes once, 16 or 8 bytes a load; codebooks (15.9 KB) once a block.
 *  Rejected  the search of bitsandbytes: 7 dependent loads from shared memory; here 2. Values by
 *            arithmetic instead of a table: another codebook would be another kernel. */
#include "adamw8.h"
#include "lib/adamw.cuh"
#include "lib/reduce.cuh"

constexpr int THREADS = 256;
constexpr int OWN = 8;
constexpr int GROUP = THREADS * OWN;

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

/** The code of the number nearest to x, |x| <= 1; 0 for NaN. */
__device__ __forceinline__ uint32_t quantise(const Adamw8Codebook &book, float x) {
  constexpr int TINY = (127 - 23) << 7, CELLS = 2946;
  const uint32_t bits = __float_as_uint(x);
  const int cell = min(max((int)((bits & 0x7fffffffu) >> 16) - TINY + 1, 0), CELLS - 1);
  const uint32_t code = book.cell[bits >> 31][cell];
  return x != x ? 0 : code + (x >= book.above[code]);
}

/** The code of a first moment: its value has the moment's sign. */
__device__ __forceinline__ uint32_t quantise_signed(const Adamw8Codebook &book, float x, float m) {
  const uint32_t code = quantise(book, x);
  const bool agrees = (__float_as_uint(book.value[code]) ^ __float_as_uint(m)) >> 31 == 0;
  return agrees ? code : (code + (m > 0.0f ? 1u : 255u)) & 255u;
}

/** This lane's part of a block: 8 neighbours, of which `count` exist. */
struct Own {
  int64_t at;
  int count;
};

template <typename T, int BLOCK>
__device__ __forceinline__ void step(const Adamw8Params &p, Adamw8Shared &s, Own own, float scale,
                                     int turn) {
  const int64_t block = own.at / BLOCK;
  const bool exists = own.count > 0;
  const float absmax1 = exists ? p.absmax1[block] : 0.0f,
              absmax2 = exists ? p.absmax2[block] : 0.0f;
  uint8_t code1[OWN], code2[OWN];
  float g[OWN], x[OWN], m[OWN], v[OWN];
  load_own<OWN>(g, p.grad + own.at, own.count);
  load_own<OWN>(code1, p.code1 + own.at, own.count);
  load_own<OWN>(code2, p.code2 + own.at, own.count);
  load_param<OWN>(x, static_cast<const T *>(p.param), p.master, own.at, own.count);
  // bitsandbytes fills a last block with code 128, which is not quite 0.
  const bool is_ragged = (block + 1) * BLOCK > p.n;
  const float filler = __fmul_rn(__fmul_rn(s.book1.value[128], absmax1), p.beta1);
  float largest1 = is_ragged ? fabsf(filler) : 0.0f, largest2 = 0.0f;
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    if (i >= own.count) continue;
    m[i] = __fmul_rn(s.book1.value[code1[i]], absmax1);
    v[i] = __fmul_rn(s.book2.value[code2[i]], absmax2);
    x[i] = adamw<T>(p, x[i], __fmul_rn(g[i], scale), m[i], v[i], own.at + i);
    largest1 = fmaxf(largest1, fabsf(m[i]));
    largest2 = fmaxf(largest2, fabsf(v[i]));
  }
  largest1 = warp_max(largest1);
  largest2 = warp_max(largest2);
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
  if (!exists) return;
  if (own.at % BLOCK == 0) p.absmax1[block] = largest1, p.absmax2[block] = largest2;
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    if (i >= own.count) continue;
    code1[i] = (uint8_t)quantise_signed(s.book1, __fdiv_rn(m[i], largest1), m[i]);
    code2[i] = (uint8_t)quantise(s.book2, __fdiv_rn(v[i], largest2));
  }
  store_own<OWN>(p.code1 + own.at, code1, own.count);
  store_own<OWN>(p.code2 + own.at, code2, own.count);
  store_param<OWN>(static_cast<T *>(p.param), p.master, x, own.at, own.count);
}

template <typename T, int BLOCK> __device__ void adamw8(const Adamw8Params &p) {
  SHARED(Adamw8Shared, s);
  const float scale = p.grad_scale ? *p.grad_scale : 1.0f;
  if (!is_finite(scale)) return;
  copy_book(s.book1, p.book1);
  copy_book(s.book2, p.book2);
  __syncthreads();
  int turn = 0;
  for (int64_t group = blockIdx.x; group * GROUP < p.n; group += gridDim.x) {
    const int64_t at = group * GROUP + (int64_t)threadIdx.x * OWN;
    const int count = (int)min(max(p.n - at, (int64_t)0), (int64_t)OWN);
    step<T, BLOCK>(p, s, {at, count}, scale, turn);
    turn ^= 1;
  }
}

#define ADAMW8(name, T)                                                                            \
  KERNEL(adamw8_##name##_256, Adamw8Params, THREADS) { adamw8<T, 256>(p); }                        \
  KERNEL(adamw8_##name##_2048, Adamw8Params, THREADS) { adamw8<T, 2048>(p); }

ADAMW8(f32, float)
ADAMW8(bf16, bf16)
ADAMW8(f16, f16)

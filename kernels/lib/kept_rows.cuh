/** Rows of A, or their norm, in the shared memory of every block that multiplies few of them: as
 *  elements, or as digits for weights that are bytes.
 *
 *  Digits    x = unit (d0 + 256 d1 + 65536 d2) with whole d of -128 .. 127, and unit the power of
 *            two in which the largest size of a warp's part of the row is 2^21 or more and below
 *            2^22: x is off by 2^-22 of the largest at most, where bf16 has rounded x itself to
 *            2^-9 and f16 to 2^-12. A warp makes the digits that it multiplies, and waits for no
 *            other, but for the sums of a norm: a barrier for the largest of the row and one for
 *            its digits were 0.5 us of a launch (H200).
 *            Products with bytes and their sums are whole numbers then, and exact. Digits are what
 *            the tensor cores multiply beside a row anyway: eight columns at a time. */
#pragma once
#include "gemm.h"
#include "norm.cuh"

constexpr int FEW_THREADS = 256;
constexpr int FEW_WARPS = FEW_THREADS / WARP;
constexpr int MOST_KEPT = 2; /**< rows of A that a block keeps */
constexpr int DIGITS = 3;    /**< of an element */

/** What the elements of a row are counted in. */
struct DigitUnit {
  float unit, per_unit; /**< a power of two, NaN of a row that is not finite; 1 / unit */

  /** `most` is the largest size in the row, or NaN. */
  __device__ __forceinline__ explicit DigitUnit(float most) {
    const uint32_t exponent = __float_as_uint(most) >> 23;
    const uint32_t least = max(exponent, 22u); // unit is 2^-126 at least
    per_unit = __uint_as_float((275 - least) << 23);
    unit = __uint_as_float(exponent == 255 ? 0x7fffffffu : (least - 21) << 23);
  }

  /** The digits of x, from the lowest byte on. */
  __device__ __forceinline__ uint32_t digits(float x) const {
    // 1.5 2^23 + x / unit, rounded: its low bits are the whole number + 2^22.
    const uint32_t sum = __float_as_uint(fmaf(x, per_unit, 12582912.0f));
    // Half a digit added to the lower two makes them signed, and carries into the next.
    return (sum - 0x400000u + 0x8080u) ^ 0x8080u;
  }
};

/** Behind `*this` are weight (k) and bias (k) of the norm, if there are such, in T; then rows (m,k)
 *  in T, or, if Weights are bytes, their digits: (DIGITS m, k) bytes, k up to whole steps. Threads
 *  read and write their own packs until all of it is there. A warp multiplies STEPS steps of four
 *  runs side by side, then those FEW_WARPS times as far on. */
template <typename Product, typename T, typename Weights, int STEPS = 1> struct KeptShared {
  Product product;
  alignas(16) NormSums<FEW_THREADS> sums;
  float units[MOST_KEPT][FEW_WARPS];

  /** Between rows, elements: 16 bytes more than k, so that rows begin in other banks. */
  static __device__ __forceinline__ int stride(const GemmParams &p) { return (int)p.k + 8; }
  /** Between digits, bytes. Eight lanes read four runs of two of them at once: runs of 16 weights
   *  are side by side, of 32 in every other 16 bytes. */
  static __device__ __forceinline__ int digit_stride(const GemmParams &p) {
    return ((int)p.k + 127) / 128 * 128 + (Weights::RUN == 16 ? 64 : 16);
  }

  /** All that is needed for digits, with `*this`, bytes. */
  static __device__ __forceinline__ int bytes(const GemmParams &p) {
    return (int)sizeof(KeptShared) + vectors(p) * (int)sizeof(T) +
           (int)p.m * DIGITS * digit_stride(p);
  }

  __device__ __forceinline__ T *rows(const GemmParams &p) { return vectors() + vectors(p); }
  __device__ __forceinline__ unsigned char *digit(const GemmParams &p, int row, int digit) {
    return reinterpret_cast<unsigned char *>(rows(p)) + (row * DIGITS + digit) * digit_stride(p);
  }

  /** Where this lane's digits of the first step are, of its column of the tensor cores. */
  __device__ __forceinline__ const unsigned char *own_digits(const GemmParams &p) {
    const int g = lane() / 4, last = (int)p.m - 1;
    return digit(p, min(g / 4, last), min(g % 4, DIGITS - 1)) + lane() % 4 * Weights::RUN;
  }
  /** What 1 is in this lane's sums. */
  __device__ __forceinline__ float own_unit(const GemmParams &p) const {
    return units[min(lane() % 4 / 2, (int)p.m - 1)][warp()] * Weights::BYTE;
  }

  /** Asks for weight and bias, which no launch writes: a group of copies. */
  __device__ __forceinline__ void ask(const GemmParams &p) {
    const int k = (int)p.k;
    if (p.norm) Row::ask(vectors(), static_cast<const T *>(p.norm_weight), k);
    if (p.norm && p.norm_bias) Row::ask(vectors() + k, static_cast<const T *>(p.norm_bias), k);
    ptx::cp_async_commit();
  }

  /** Makes the rows, or of their digits those that this warp multiplies. When A has been asked for
   *  `meanwhile` runs, more than once perhaps; then LATER groups of copies are younger than that of
   *  `ask`. */
  template <int LATER, typename F>
  __device__ __forceinline__ void make(const GemmParams &p, F meanwhile) {
    if constexpr (Weights::ARE_BYTES) {
#pragma unroll 1
      for (int r = 0; r < (int)p.m; r++) count(p, r, largest<LATER>(p, r, meanwhile));
      __syncwarp();
    } else {
      take<LATER>(p, meanwhile);
      __syncthreads(); // Rows are others' too.
    }
  }

private:
  using Row = SharedRow<T, FEW_THREADS>;

  __device__ __forceinline__ T *vectors() { return reinterpret_cast<T *>(this + 1); }
  /** Elements of them. */
  static __device__ __forceinline__ int vectors(const GemmParams &p) {
    return (!p.norm ? 0 : p.norm_bias ? 2 : 1) * (int)p.k;
  }
  /** Of row r: sums in turns, those of the row before may still be read. */
  __device__ __forceinline__ BlockSum<FEW_THREADS> &squares(int r) {
    return r % 2 ? sums.rest : sums.squares;
  }

  template <int LATER, typename F>
  __device__ __forceinline__ void take(const GemmParams &p, F meanwhile) {
    const int k = (int)p.k, m = (int)p.m;
    const T *const w = vectors(), *const b = p.norm_bias ? w + k : nullptr;
    for (int r = 0; r < m; r++)
      Row::take(rows(p) + r * stride(p), static_cast<const T *>(p.a) + r * p.lda, k, meanwhile);
    if (p.norm) ptx::cp_async_wait<LATER>();
#pragma unroll 1
    for (int r = 0; r < m && p.norm; r++) {
      const Row row = {rows(p) + r * stride(p), k};
      if (p.norm == 1) {
        const RmsNorm<T> norm(row, squares(r), p.norm_eps);
        row.map(w, nullptr, [&](float x, float w, float) { return norm(x, w); });
      } else {
        row.map(w, b, LayerNorm(row, sums, p.norm_eps));
      }
    }
  }

  static constexpr int STEP = 4 * Weights::RUN;

  /** `each_pack` of this lane's in its warp's steps of a row. */
  template <int AT_ONCE, typename L, typename M, typename F>
  static __device__ __forceinline__ void own_packs(int end, L load, M meanwhile, F f) {
    constexpr int SPAN = STEPS * STEP, LANES = SPAN / Pack<T>::SIZE;
    static_assert(WARP % LANES == 0, "a lane's packs lie equally far from each other");
    each_pack<AT_ONCE, WARP / LANES * FEW_WARPS * SPAN>(
        (warp() + lane() / LANES * FEW_WARPS) * SPAN + lane() % LANES * Pack<T>::SIZE, end, load,
        meanwhile, f);
  }

  /** The largest size in this lane's packs of row r of A, in the upper half; or in those of its
   *  norm, which stay where digits will be. */
  template <int LATER, typename M>
  __device__ __forceinline__ uint32_t largest(const GemmParams &p, int r, M meanwhile) {
    const int k = (int)p.k;
    const T *const a = static_cast<const T *>(p.a) + r * p.lda;
    auto load = [&](int at) { return load_pack(a + at); };
    uint32_t most = 0;
    auto see = [&](const uint4 &x) {
      const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
        most = max(most, max(pairs[i] & 0x7fff0000u, pairs[i] << 16 & 0x7fff0000u));
    };
    if (!p.norm) {
      // All of the row at once, if it is no longer than eight packs a lane.
      own_packs<8>(k, load, meanwhile, [&](int, const uint4 &x) { see(x); });
      return most;
    }
    // The barrier of a sum makes everybody's copies of weight and bias everybody's.
    auto copied = [&] { meanwhile(), ptx::cp_async_wait<LATER>(); };
    const ReadRow<T, FEW_THREADS, decltype(copied)> row = {a, k, copied};
    const T *const w = vectors(), *const b = p.norm_bias ? w + k : nullptr;
    auto make_norm = [&](auto norm) {
      unsigned char *const to = digit(p, r, 0);
      own_packs<2>(k, load, [] {}, [&](int at, const uint4 &x) {
        const uint4 y = normed(x, w + at, b ? b + at : nullptr, norm);
        see(y);
        put_whole(to + at, digit_stride(p), y);
      });
    };
    if (p.norm == 1) {
      const RmsNorm<T> norm(row, squares(r), p.norm_eps);
      make_norm([&](float x, float w, float) { return norm(x, w); });
    } else {
      make_norm(LayerNorm(row, sums, p.norm_eps));
    }
    return most;
  }

  /** Makes digits of row r of A, or of its norm, by the largest size that each lane has there. */
  __device__ __forceinline__ void count(const GemmParams &p, int r, uint32_t largest) {
    const DigitUnit unit(high2<T>(__reduce_max_sync(ALL_LANES, largest)));
    if (lane() == 0) units[r][warp()] = unit.unit;
    const T *const a = static_cast<const T *>(p.a) + r * p.lda;
    unsigned char *const to = digit(p, r, 0);
    const int k = (int)p.k, apart = digit_stride(p);
    // A again, out of L1: registers have no index, and twice as much code would come from memory.
    auto load = [&](int at) {
      if (at >= k) return make_uint4(0, 0, 0, 0);
      return p.norm ? whole(to + at, apart) : load_pack(a + at);
    };
    own_packs<2>((k + STEP - 1) / STEP * STEP, load, [] {},
                 [&](int at, const uint4 &x) { put(to + at, apart, x, unit); });
  }

  /** The norm of a pack; `b` may be null and then counts as 0. */
  template <typename N>
  static __device__ __forceinline__ uint4 normed(const uint4 &x, const T *w, const T *b, N norm) {
    const uint4 scale = load_pack(w), shift = b ? load_pack(b) : make_uint4(0, 0, 0, 0);
    auto pair = [&](uint32_t x, uint32_t w, uint32_t b) {
      return pack2<T>(norm(low2<T>(x), low2<T>(w), low2<T>(b)),
                      norm(high2<T>(x), high2<T>(w), high2<T>(b)));
    };
    return make_uint4(pair(x.x, scale.x, shift.x), pair(x.y, scale.y, shift.y),
                      pair(x.z, scale.z, shift.z), pair(x.w, scale.w, shift.w));
  }

  /** Keeps a pack where two of its digits will be, `apart` bytes from each other. */
  static __device__ __forceinline__ void put_whole(unsigned char *to, int apart, const uint4 &x) {
    *reinterpret_cast<uint2 *>(to) = make_uint2(x.x, x.y);
    *reinterpret_cast<uint2 *>(to + apart) = make_uint2(x.z, x.w);
  }
  static __device__ __forceinline__ uint4 whole(const unsigned char *at, int apart) {
    const uint2 first = *reinterpret_cast<const uint2 *>(at);
    const uint2 second = *reinterpret_cast<const uint2 *>(at + apart);
    return make_uint4(first.x, first.y, second.x, second.y);
  }

  /** Digits of a pack, in the order that weights have as bytes, `apart` bytes from each other. */
  static __device__ __forceinline__ void put(unsigned char *to, int apart, const uint4 &x,
                                             const DigitUnit &unit) {
    const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
    uint32_t words[DIGITS][2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t d[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int at = Weights::place(half * 4 + i);
        d[i] = unit.digits(at % 2 ? high2<T>(pairs[at / 2]) : low2<T>(pairs[at / 2]));
      }
      // Bytes 0 and 1 of two elements, then byte 2.
      const uint32_t low = __byte_perm(d[0], d[1], 0x5140), high = __byte_perm(d[2], d[3], 0x5140);
      words[0][half] = __byte_perm(low, high, 0x5410);
      words[1][half] = __byte_perm(low, high, 0x7632);
      words[2][half] =
          __byte_perm(__byte_perm(d[0], d[1], 0x62), __byte_perm(d[2], d[3], 0x62), 0x5410);
    }
#pragma unroll
    for (int i = 0; i < DIGITS; i++)
      *reinterpret_cast<uint2 *>(to + i * apart) = make_uint2(words[i][0], words[i][1]);
  }
};

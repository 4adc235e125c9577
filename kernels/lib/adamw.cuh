/** AdamW on one element, and the elements that a lane owns: shared by `adamw` and `adamw8`.
 *
 *  Every product and sum is rounded on its own, so that the host's twin computes the same bits. */
#pragma once
#include "types.cuh"

/** Elements of a lane: neighbours. */
constexpr int OWN = 8;

__device__ __forceinline__ bool is_finite(float x) {
  return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

template <typename E> __device__ __forceinline__ E from_bits(uint32_t x) {
  return E{(uint16_t)x};
}
template <> __device__ __forceinline__ float from_bits(uint32_t x) { return __uint_as_float(x); }
template <> __device__ __forceinline__ uint8_t from_bits(uint32_t x) { return (uint8_t)x; }
__device__ __forceinline__ uint32_t to_bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ uint32_t to_bits(bf16 x) { return x.bits; }
__device__ __forceinline__ uint32_t to_bits(f16 x) { return x.bits; }
__device__ __forceinline__ uint32_t to_bits(uint8_t x) { return x; }

/** A lane's elements of an array, packed as they lie there: what has been asked for is waited for
 *  where it is unpacked. */
template <typename E> class Own {
  static constexpr int BITS = 8 * (int)sizeof(E), A_WORD = 32 / BITS, WORDS = OWN / A_WORD;
  static constexpr int WIDTH = WORDS < 4 ? WORDS : 4;
  struct alignas(4 * WIDTH) Wide {
    uint32_t word[WIDTH];
  };
  Wide wide[WORDS / WIDTH];

  __device__ __forceinline__ uint32_t &word(int i) { return wide[i / WIDTH].word[i % WIDTH]; }
  __device__ __forceinline__ static uint32_t packed(float x, float, float) { return to_bits(x); }
  template <typename T>
  __device__ __forceinline__ static uint32_t packed(float low, float high, T) {
    return pack2<T>(low, high);
  }

public:
  __device__ __forceinline__ E operator[](int i) {
    return from_bits<E>(word(i / A_WORD) >> (i % A_WORD * BITS));
  }
  /** From the first to the last; of `bits` there are no more than E has. */
  __device__ __forceinline__ void set_bits(int i, uint32_t bits) {
    const int shift = i % A_WORD * BITS;
    word(i / A_WORD) = shift ? word(i / A_WORD) | bits << shift : bits;
  }
  __device__ __forceinline__ void set(int i, E x) { set_bits(i, to_bits(x)); }
  /** To whole numbers that stay below 2^BITS. */
  __device__ __forceinline__ void increase_if(bool condition, int i) {
    if (condition) word(i / A_WORD) += 1u << (i % A_WORD * BITS);
  }
  /** `x`, rounded to E. */
  __device__ __forceinline__ void narrow(const float (&x)[OWN]) {
#pragma unroll
    for (int i = 0; i < OWN; i += A_WORD) word(i / A_WORD) = packed(x[i], x[i + A_WORD - 1], E{});
  }
  /** Those that do not exist are `nothing`; 16 bytes at a time if all do. `from` is at a multiple
   *  of OWN from a 16-byte boundary. */
  __device__ __forceinline__ void load(const E *from, int count, E nothing) {
    if (__builtin_expect(count == OWN, 1)) {
#pragma unroll
      for (int i = 0; i < WORDS / WIDTH; i++) wide[i] = reinterpret_cast<const Wide *>(from)[i];
    } else {
#pragma unroll
      for (int i = 0; i < OWN; i++) set(i, i < count ? from[i] : nothing);
    }
  }
  __device__ __forceinline__ void store(E *to, int count) {
    if (__builtin_expect(count == OWN, 1)) {
#pragma unroll
      for (int i = 0; i < WORDS / WIDTH; i++) reinterpret_cast<Wide *>(to)[i] = wide[i];
    } else {
#pragma unroll
      for (int i = 0; i < OWN; i++)
        if (i < count) to[i] = (*this)[i];
    }
  }
};

/** What a parameter is after its step. */
enum Rounding {
  MASTER,    /**< f32, beside which param is its rounding */
  NEAREST,   /**< rounded to T, after the update and after the decay */
  STOCHASTIC /**< rounded to bf16 once, up or down by chance */
};
template <typename Params> __device__ __forceinline__ Rounding rounding(const Params &p) {
  return p.master ? MASTER : p.seed == 0 ? NEAREST : STOCHASTIC;
}

/** A lane's parameters as they are kept: the master's, where there is one. */
template <typename T, Rounding R> struct KeptAs {
  using Type = T;
};
template <typename T> struct KeptAs<T, MASTER> {
  using Type = float;
};
template <typename T, Rounding R> struct Kept {
  using Type = typename KeptAs<T, R>::Type;
  Own<Type> own;

  template <typename Params, typename Index>
  __device__ __forceinline__ void load(const Params &p, Index at, int count) {
    const void *from = R == MASTER ? (const void *)p.master : p.param;
    own.load(static_cast<const Type *>(from) + at, count, Type{});
  }
  template <typename Params, typename Index>
  __device__ __forceinline__ static void store(const Params &p, const float (&x)[OWN], Index at,
                                               int count) {
    Own<T> rounded;
    rounded.narrow(x);
    rounded.store(static_cast<T *>(p.param) + at, count);
    if (R == MASTER) {
      Own<float> master;
      master.narrow(x);
      master.store(p.master + at, count);
    }
  }
};

/** 16 bits that are as good as random, of element i at a step's seed (the finaliser of splitmix64,
 *  doi:10.1145/2714064.2660195). */
__device__ __forceinline__ uint32_t noise(uint64_t seed, int64_t i) {
  uint64_t z = seed + ((uint64_t)i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return (uint32_t)(z >> 48);
}

/** Both moments after gradient g. */
template <typename Params>
__device__ __forceinline__ void advance(const Params &p, float g, float &m, float &v) {
  const float fresh2 = __fmul_rn(__fmul_rn(1.0f - p.beta2, g), g);
  v = __fadd_rn(__fmul_rn(v, p.beta2), fresh2);
  m = __fadd_rn(__fmul_rn(m, p.beta1), __fmul_rn(1.0f - p.beta1, g));
}

/** x after the step in `direction`, m / (sqrt(v) + eps). Element `i` is only for the noise. */
template <typename T, Rounding R, typename Params>
__device__ __forceinline__ float moved(const Params &p, float x, float direction, int64_t i) {
  x = __fadd_rn(x, __fmul_rn(p.step_size, direction));
  if (R == NEAREST) x = widen(narrow<T>(x));
  x = __fmul_rn(x, p.keep);
  if (R != STOCHASTIC) return x;
  // bfloat16 is the upper half: with 16 random bits added, what is cut off carries with its own
  // probability. A number that is not finite stays as it is.
  const uint32_t cut = is_finite(x) ? 0xffffu : 0u;
  return __uint_as_float((__float_as_uint(x) + (noise(p.seed, i) & cut)) & ~cut);
}

/** x after the step; m and v become the new moments. m / d is m (1 / d) if BY_RECIPROCAL. */
template <typename T, Rounding R, bool BY_RECIPROCAL, typename Params>
__device__ __forceinline__ float adamw(const Params &p, float x, float g, float &m, float &v,
                                       int64_t i) {
  if (!is_finite(g)) {
    m = v = 0.0f;
    return x;
  }
  advance(p, g, m, v);
  const float below = __fadd_rn(__fsqrt_rn(v), p.eps);
  const float direction = BY_RECIPROCAL ? __fmul_rn(m, __frcp_rn(below)) : __fdiv_rn(m, below);
  return moved<T, R>(p, x, direction, i);
}

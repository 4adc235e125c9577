/** Products of weights that are bytes with the digits of at most two rows of A (`kept_rows.cuh`),
 *  by the tensor cores: every row of A is four of their columns, of which the fourth is nothing. */
#pragma once
#include "ptx.cuh"
#include "reduce.cuh"
#include "types.cuh"

/** What products of bytes are added up in: those of a group are whole, and scaled before they meet
 *  those of another. */
template <bool IS_WHOLE> struct SumOf {
  using Type = float;
};
template <> struct SumOf<true> {
  using Type = int32_t;
};

/** A lane's sums of 16 rows of B: lane 4 g + t has those of rows g and g + 8, and of columns 2 t
 *  and 2 t + 1. */
template <typename Weights> struct DigitSums {
  typename SumOf<!Weights::GROUPED>::Type acc[4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int x = 0; x < 4; x++) acc[x] = 0;
  }

  /** Adds a step: runs of this lane's rows, times what is at `digits`; `scales` of its group. */
  __device__ __forceinline__ void add(const uint4 (&runs)[2], const unsigned char *digits,
                                      const float (&scales)[2]) {
    // Sums of a group begin with 1.5 2^23, as a float: so they are floats too.
    constexpr uint32_t ZERO = 0x4b400000u;
    int32_t group[4] = {ZERO, ZERO, ZERO, ZERO};
#pragma unroll
    for (int x = 0; x < Weights::RUN / 16; x++) {
      const uint4 a = *reinterpret_cast<const uint4 *>(digits + x * 16);
#pragma unroll
      for (int y = 0; y < 2; y++) {
        uint32_t low[2], high[2];
        Weights::bytes(runs[0], x * 2 + y, low);
        Weights::bytes(runs[1], x * 2 + y, high);
        const uint32_t both[4] = {low[0], high[0], low[1], high[1]};
        if constexpr (Weights::GROUPED)
          ptx::mma_s8(group, both, y ? a.z : a.x, y ? a.w : a.y);
        else
          ptx::mma_s8(acc, both, y ? a.z : a.x, y ? a.w : a.y);
      }
    }
    if constexpr (Weights::GROUPED) {
#pragma unroll
      for (int x = 0; x < 4; x++)
        acc[x] += (__uint_as_float((uint32_t)group[x]) - __uint_as_float(ZERO)) *
                  scales[x / 2];
    }
  }

  /** f(row of A, half, sum) for this lane's rows g and g + 8, in units of a digit. It has the sums
   *  of two digits of row t / 2, and its neighbour that of the third. */
  template <typename F> __device__ __forceinline__ void each(int m, F f) const {
    const int t = lane() % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float first = (float)acc[2 * half], second = (float)acc[2 * half + 1];
      float sum = t % 2 ? 65536.0f * first : fmaf(256.0f, second, first);
      sum += __shfl_xor_sync(ALL_LANES, sum, 1);
      if (t % 2 == 0 && t / 2 < m) f(t / 2, half, sum);
    }
  }
};

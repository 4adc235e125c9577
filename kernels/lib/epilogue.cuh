/** What happens to a sum of products before it is stored:
 *  C = residual + tanh(gate) * f(sum + bias), in f32, rounded once. */
#pragma once
#include "../gemm.h"
#include "ptx.cuh"
#include "types.cuh"

__device__ __forceinline__ float activate(float x, int activation) {
  if (activation == 1) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752440f));
  if (activation == 2) return x / (1.0f + expf(-1.702f * x));
  return x;
}

constexpr int SWIGLU = 3; /**< what `activate` leaves to who has both sums */

/** Activations of what will be rounded to 16 bits: good to 20, and without a branch, so that one
 *  need not wait for another. */
namespace rounded {

/** x * sigmoid(-1.702 x), its factor a power of 2. */
__device__ __forceinline__ float quick_gelu(float x) {
  return x * ptx::reciprocal(1.0f + ptx::exp2(x * -2.4554669596f));
}

/** x Phi(x). Phi(-|x|) = exp(-x^2 / 2) Q(1 / (1 + 0.36 |x|)); Q, without a constant, was fitted by
 *  Lawson's iterations to erfc on 0 <= |x| <= 14: relative errors up to 2^-20. */
__device__ __forceinline__ float gelu(float x) {
  const float u = ptx::reciprocal(fmaf(0.36f, fabsf(x), 1.0f));
  float q = fmaf(0.0470562405f, u, -0.1797645376f);
  q = fmaf(q, u, 0.1809538071f);
  q = fmaf(q, u, 0.0265494642f);
  q = fmaf(q, u, 0.1397192159f);
  q = fmaf(q, u, 0.1417724616f);
  q = fmaf(q, u, 0.1437130450f);
  const float below = q * u * ptx::exp2(x * x * -0.7213475204f);
  return x * (x > 0.0f ? 1.0f - below : below);
}

/** SwiGLU of the sums of a gate and of a value. */
__device__ __forceinline__ float glu(float gate, float value) {
  return gate * ptx::reciprocal(1.0f + ptx::exp2(gate * -1.4426950409f)) * value;
}

/** `activate`, of all. */
template <int COUNT>
__device__ __forceinline__ void activate(float (&x)[COUNT], int activation) {
  if (activation == 1) {
#pragma unroll
    for (float &own : x) own = gelu(own);
  } else if (activation == 2) {
#pragma unroll
    for (float &own : x) own = quick_gelu(own);
  }
}

} // namespace rounded

/** The derivative of `activate` at x. */
__device__ __forceinline__ float activation_slope(float x, int activation) {
  // Far out, x times a factor that vanishes is 0, although x may be infinite; NaN stays.
  const float near = x < -40.0f ? -40.0f : x > 40.0f ? 40.0f : x;
  if (activation == 1)
    return 0.5f * (1.0f + erff(x * 0.70710678118654752440f)) +
           near * 0.39894228040143267794f * expf(-0.5f * x * x);
  if (activation == 2) {
    const float e = expf(-1.702f * near), s = x < -40.0f ? 0.0f : 1.0f / (1.0f + e);
    // e s is 1 - s without its cancellation.
    return s * (1.0f + 1.702f * near * (e * s));
  }
  return 1.0f;
}

template <typename T> struct Epilogue {
  const GemmParams &p;
  float factor;  /**< tanh(gate) */
  bool is_glu;
  int64_t cols;  /**< of C */
  bool in_pairs; /**< two cells from an even column on are one access, in all three matrices */

  __device__ __forceinline__ Epilogue(const GemmParams &p)
      : p(p), factor(p.gate ? tanhf(widen(*static_cast<const T *>(p.gate))) : 1.0f),
        is_glu(p.activation == SWIGLU), cols(is_glu ? p.n / 2 : p.n),
        in_pairs(sizeof(T) == 2 && p.ldc % 2 == 0 && (uintptr_t)p.bias % 4 == 0 &&
                 ((uintptr_t)p.c | (uintptr_t)p.residual) % 8 == 0) {}

  __device__ __forceinline__ void store(int64_t row, int64_t col, float sum) const {
    if (p.c_is_f32)
      store_as<float>(row, col, sum);
    else
      store_as<T>(row, col, sum);
  }

  /** Sums as `mma` lays them out, from the lane's first cell on: `sums(j)[0 .. 4]` are the cells at
   *  columns col + 8 j and the next, of `row` and of row + 8; j < COUNT. */
  template <int COUNT, typename Sums>
  __device__ __forceinline__ void store_fragments(int64_t row, int64_t col, Sums sums) const {
    if (p.c_is_f32)
      store_all<float, COUNT>(row, col, sums);
    else
      store_all<T, COUNT>(row, col, sums);
  }

  /** A warp's way from sums as `mma` lays them out to 8 columns of a row in every lane. */
  struct alignas(16) Stage {
    static constexpr int COLS = 32;
    float x[16][COLS + 4];
  };

  /** Where stages of a warp go: rows from one line of them to the next; columns from `width` on,
   *  counted from the first, are left out. */
  struct Parts {
    int rows, width;
  };

  /** LINES times 16 rows by at most N columns, the first at (row0, col0); `sums[i][e]` is the
   *  lane's cell e % 4 of columns 8 (e / 4) .. of line i, as in `store_fragments`. By whole warps,
   *  each with a stage. */
  template <int N, int LINES>
  __device__ __forceinline__ void store_tile(Stage &stage, int64_t row0, int64_t col0, Parts parts,
                                             const float (&sums)[LINES][N / 2]) const {
    if (in_eights() && !p.c_is_f32 && cols % 8 == 0 && parts.width % 8 == 0)
      store_turned<N, LINES>(row0, col0, parts, sums);
    else
      store_staged<N, LINES>(stage, row0, col0, parts, sums);
  }

  /** COUNT stages of 16 rows by 32 columns, ACROSS of them beside each other, the first at
   *  (row0, col0); `put(part)` writes the warp's sums of one to the stage. One loop: as much code
   *  as there are sums would not stay in the instruction cache. */
  template <int COUNT, int ACROSS, typename Put>
  __device__ __forceinline__ void store_parts(Stage &stage, int64_t row0, int64_t col0, Parts parts,
                                              Put put) const {
    if (p.c_is_f32)
      store_parts_as<float, COUNT, ACROSS>(stage, row0, col0, parts, put);
    else
      store_parts_as<T, COUNT, ACROSS>(stage, row0, col0, parts, put);
  }

private:
  /** Words of a quad, turned: word j of lane t becomes word t of lane j. */
  static __device__ __forceinline__ void turn(uint32_t (&x)[4]) {
#pragma unroll
    for (int by = 1; by < 4; by *= 2) {
      const bool is_upper = threadIdx.x & by;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (i & by) continue;
        uint32_t &low = x[i], &high = x[i | by];
        const uint32_t got = __shfl_xor_sync(0xffffffffu, is_upper ? low : high, by);
        if (is_upper)
          low = got;
        else
          high = got;
      }
    }
  }
  static __device__ __forceinline__ void words(uint32_t (&x)[4], uint4 eight) {
    x[0] = eight.x, x[1] = eight.y, x[2] = eight.z, x[3] = eight.w;
  }

  /** Straight from registers: pairs of a quad's lanes, from four times 8 columns, become 8 columns
   *  of a row in each. Rows of C and of the residual are whole packs of eight. */
  template <int N, int LINES>
  __device__ __forceinline__ void store_turned(int64_t row0, int64_t col0, Parts parts,
                                               const float (&sums)[LINES][N / 2]) const {
    constexpr int COLS = Stage::COLS, ACROSS = (N + COLS - 1) / COLS;
    const int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    auto is_inside = [&](int part) {
      return part * COLS + t * 8 < parts.width && col0 + part * COLS + t * 8 < cols;
    };
    const T *bias = static_cast<const T *>(p.bias) + col0 + t * 8;
#pragma unroll
    for (int line = 0; line < LINES; line++) {
      const int64_t row = row0 + line * parts.rows + g, at = row * p.ldc + col0 + t * 8;
      const bool is_row[2] = {row < p.m, row + 8 < p.m};
      // C may be the residual: all of it first, so that no load waits for a store.
      uint4 residual[ACROSS][2] = {};
      if (p.residual) {
        const T *from = static_cast<const T *>(p.residual) + at;
#pragma unroll
        for (int part = 0; part < ACROSS; part++)
#pragma unroll
          for (int half = 0; half < 2; half++)
            if (is_row[half] && is_inside(part))
              residual[part][half] =
                  *reinterpret_cast<const uint4 *>(from + half * 8 * p.ldc + part * COLS);
      }
#pragma unroll
      for (int part = 0; part < ACROSS; part++) {
        if (part * COLS >= parts.width) break;
        float x[16];
#pragma unroll
        for (int e = 0; e < 16; e++)
          x[e] = part * 16 + e < N / 2 ? sums[line][part * 16 + e] : 0.0f;
        if (p.bias) {
          uint32_t pairs[4];
          words(pairs, is_inside(part) ? __ldg(reinterpret_cast<const uint4 *>(bias + part * COLS))
                                       : uint4{});
          turn(pairs);
#pragma unroll
          for (int e = 0; e < 16; e++)
            x[e] += e % 2 ? high2<T>(pairs[e / 4]) : low2<T>(pairs[e / 4]);
        }
        rounded::activate(x, p.activation);
        if (p.gate || p.residual) {
#pragma unroll
          for (int half = 0; half < 2; half++) {
            uint32_t pairs[4];
            words(pairs, residual[part][half]);
            turn(pairs);
#pragma unroll
            for (int j = 0; j < 4; j++) {
              float &low = x[j * 4 + half * 2], &high = x[j * 4 + half * 2 + 1];
              low = factor * low + low2<T>(pairs[j]), high = factor * high + high2<T>(pairs[j]);
            }
          }
        }
        T *to = static_cast<T *>(p.c) + at + part * COLS;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          uint32_t pairs[4];
#pragma unroll
          for (int j = 0; j < 4; j++)
            pairs[j] = pack2<T>(x[j * 4 + half * 2], x[j * 4 + half * 2 + 1]);
          turn(pairs);
          if (is_row[half] && is_inside(part))
            *reinterpret_cast<uint4 *>(to + half * 8 * p.ldc) =
                uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
        }
      }
    }
  }

  /** Through a stage, 16 rows by 32 columns at a time. */
  template <int N, int LINES>
  __device__ __forceinline__ void store_staged(Stage &stage, int64_t row0, int64_t col0,
                                               Parts parts,
                                               const float (&sums)[LINES][N / 2]) const {
    const int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    constexpr int ACROSS = (N + Stage::COLS - 1) / Stage::COLS;
    store_parts<ACROSS * LINES, ACROSS>(stage, row0, col0, parts, [&](int part) {
      const float *own = sums[part / ACROSS];
#pragma unroll
      for (int j = 0; j < Stage::COLS / 8; j++) {
        const int e = part % ACROSS * Stage::COLS / 2 + j * 4;
        if (e >= N / 2) break;
        *reinterpret_cast<float2 *>(&stage.x[g][j * 8 + t * 2]) = make_float2(own[e], own[e + 1]);
        *reinterpret_cast<float2 *>(&stage.x[g + 8][j * 8 + t * 2]) =
            make_float2(own[e + 2], own[e + 3]);
      }
    });
  }

  /** Rows of C, of bias and of residual begin where 16-byte accesses may. */
  __device__ __forceinline__ bool in_eights() const {
    return sizeof(T) == 2 && p.ldc % 8 == 0 &&
           ((uintptr_t)p.c | (uintptr_t)p.residual | (uintptr_t)p.bias) % 16 == 0;
  }

  /** Eight neighbours of C. */
  template <typename C> struct alignas(16) Eight {
    C x[8];
  };

  template <typename C, int COUNT, int ACROSS, typename Put>
  __device__ __forceinline__ void store_parts_as(Stage &stage, int64_t row0, int64_t col0,
                                                 Parts parts, Put put) const {
    const int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    const bool is_even = in_eights();
#pragma unroll 1
    for (int part = 0; part < COUNT; part++) {
      if (part % ACROSS * Stage::COLS >= parts.width) continue;
      const int64_t first = row0 + part / ACROSS * parts.rows;
      const int in_width = part % ACROSS * Stage::COLS + t * 8;
      const int64_t col = col0 + in_width;
      const bool is_inside = is_even && col + 8 <= cols && in_width < parts.width;
      // Asked for before the sums move.
      Eight<C> residual[2] = {};
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int64_t row = first + half * 8 + g;
        if (p.residual && is_inside && row < p.m)
          residual[half] = *reinterpret_cast<const Eight<C> *>(static_cast<const C *>(p.residual) +
                                                               row * p.ldc + col);
      }
      // Registers have no index: each part has its own lines, and only one of them runs.
#pragma unroll
      for (int own = 0; own < COUNT; own++)
        if (own == part) put(own);
      __syncwarp();
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int64_t row = first + half * 8 + g;
        const float *x = &stage.x[half * 8 + g][t * 8];
        if (row >= p.m || in_width >= parts.width) continue;
        if (is_inside) {
          store8<C>(row, col, x, residual[half]);
        } else {
#pragma unroll 1
          for (int i = 0; i < 8; i++) store_as<C>(row, col + i, x[i]);
        }
      }
      __syncwarp();
    }
  }

  template <typename C>
  __device__ __forceinline__ void store8(int64_t row, int64_t col, const float *sums,
                                         const Eight<C> &residual) const {
    float x[8];
    *reinterpret_cast<float4 *>(x) = *reinterpret_cast<const float4 *>(sums);
    *reinterpret_cast<float4 *>(x + 4) = *reinterpret_cast<const float4 *>(sums + 4);
    if (p.bias) {
      const Eight<T> bias =
          *reinterpret_cast<const Eight<T> *>(static_cast<const T *>(p.bias) + col);
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] += widen(bias.x[i]);
    }
    if constexpr (sizeof(C) == 2) {
      rounded::activate(x, p.activation);
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] = activate(x[i], p.activation);
    }
    Eight<C> y;
#pragma unroll
    for (int i = 0; i < 8; i++) y.x[i] = narrow<C>(factor * x[i] + widen(residual.x[i]));
    *reinterpret_cast<Eight<C> *>(static_cast<C *>(p.c) + row * p.ldc + col) = y;
  }

  /** Two neighbours of C. */
  template <typename C> struct alignas(2 * sizeof(C)) Pair {
    C x[2];
  };

  template <typename C, int COUNT, typename Sums>
  __device__ __forceinline__ void store_all(int64_t row, int64_t col, Sums sums) const {
    // C may be the residual, so a load waits for the stores before it: many loads first.
    constexpr int MOST = 32 / (int)sizeof(Pair<C>), BATCH = COUNT < MOST ? COUNT : MOST;
#pragma unroll
    for (int first = 0; first < COUNT; first += BATCH) {
      Pair<C> residual[BATCH][2];
#pragma unroll
      for (int j = 0; j < BATCH; j++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          residual[j][half] = residual2<C>(row + half * 8, col + (first + j) * 8);
#pragma unroll
      for (int j = 0; j < BATCH; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float *pair = sums(first + j) + half * 2;
          store2(row + half * 8, col + (first + j) * 8, pair[0], pair[1], residual[j][half]);
        }
    }
  }

  template <typename C>
  __device__ __forceinline__ void store_as(int64_t row, int64_t col, float sum) const {
    if (row >= p.m || col >= cols) return;
    const int64_t at = row * p.ldc + col;
    if (p.bias) sum += widen(static_cast<const T *>(p.bias)[col]);
    float y = factor * activate(sum, p.activation);
    if (p.residual) y += widen(static_cast<const C *>(p.residual)[at]);
    static_cast<C *>(p.c)[at] = narrow<C>(y);
  }

  __device__ __forceinline__ bool is_pair(int64_t row, int64_t col) const {
    return in_pairs && row < p.m && col + 1 < cols;
  }

  template <typename C>
  __device__ __forceinline__ Pair<C> residual2(int64_t row, int64_t col) const {
    if (!p.residual || !is_pair(row, col)) return {};
    return *reinterpret_cast<const Pair<C> *>(static_cast<const C *>(p.residual) + row * p.ldc +
                                              col);
  }

  template <typename C>
  __device__ __forceinline__ void store2(int64_t row, int64_t col, float first, float second,
                                         Pair<C> residual) const {
    if (!is_pair(row, col)) {
      store_as<C>(row, col, first);
      store_as<C>(row, col + 1, second);
      return;
    }
    if (p.bias) {
      uint32_t bias =
          __ldg(reinterpret_cast<const uint32_t *>(static_cast<const T *>(p.bias) + col));
      first += low2<T>(bias), second += high2<T>(bias);
    }
    first = factor * activate(first, p.activation) + widen(residual.x[0]);
    second = factor * activate(second, p.activation) + widen(residual.x[1]);
    *reinterpret_cast<Pair<C> *>(static_cast<C *>(p.c) + row * p.ldc + col) =
        {narrow<C>(first), narrow<C>(second)};
  }
};

/*  `norm_backward`
 *
 *  Idea      for each row of the part: mean and r as in the forward pass; h and g from registers;
 *            dx = r (g - mean(g) - h mean(g h)); dw += dy h and db += dy in registers
 *  Geometry  a block of 256 threads per part; a row in registers (`_packs*`), or read again each
 *            time (`_plain`, whose dw and db grow in memory).
 *  Traffic   x and dy once, dx once (twice if added to); dw and db once a part.
 *  Rejected  mean and r kept from the forward pass: 8 bytes a row to save two sums over
 *            registers. */
#include "norm_backward.h"
#include "lib/reduce.cuh"
#include "lib/row.cuh"

constexpr int THREADS = 256;

struct NormBackwardShared {
  BlockSum<THREADS> mean, rest, squares, g, gh;
};

/** Sums over a part's rows of what a thread adds to its columns. */
template <typename Row> struct ColumnSum;

template <typename T, int PACKS> struct ColumnSum<RegisterRow<T, THREADS, PACKS>> {
  float sum[PACKS * Pack<T>::SIZE] = {};
  float *out;
  __device__ ColumnSum(float *out, int64_t) : out(out) {}
  __device__ __forceinline__ void add(int slot, int64_t, float x) { sum[slot] += x; }
  __device__ __forceinline__ void finish(int64_t cols) {
    if (!out) return;
    RegisterRow<T, THREADS, PACKS>::each(cols, [&](int slot, int64_t c) { out[c] = sum[slot]; });
  }
};

template <typename T> struct ColumnSum<PlainRow<T, THREADS>> {
  float *out;
  __device__ ColumnSum(float *out, int64_t cols) : out(out) {
    if (out) PlainRow<T, THREADS>::each(cols, [&](int, int64_t c) { out[c] = 0.0f; });
  }
  __device__ __forceinline__ void add(int, int64_t c, float x) {
    if (out) out[c] += x;
  }
  __device__ __forceinline__ void finish(int64_t) {}
};

template <typename T, typename Row>
__device__ void norm_backward(const NormBackwardParams &p) {
  SHARED(NormBackwardShared, s);
  const int64_t part = blockIdx.x, end = min((part + 1) * p.part_rows, p.rows);
  const float n = (float)p.cols;
  const Row w(static_cast<const T *>(p.w), p.cols);
  ColumnSum<Row> dw(p.dw ? p.dw + part * p.cols : nullptr, p.cols);
  ColumnSum<Row> db(p.db ? p.db + part * p.cols : nullptr, p.cols);
  for (int64_t r = part * p.part_rows; r < end; r++) {
    const Row x(static_cast<const T *>(p.x) + r * p.x_stride, p.cols);
    const Row dy(static_cast<const T *>(p.dy) + r * p.dy_stride, p.cols);
    float mean = 0, rest = 0;
    if (p.is_centred) {
      mean = s.mean(x.sum([](float x) { return x; })) / n;
      rest = s.rest(x.sum([=](float x) { return x - mean; })) / n;
    }
    const float squares = s.squares(x.sum([=](float x) { return (x - mean) * (x - mean); })) / n;
    const float scale = 1.0f / sqrtf(fmaxf(squares - rest * rest, 0.0f) + p.eps);
    const auto h = [&](int slot, int64_t c) { return ((x.at(slot, c) - mean) - rest) * scale; };
    float g = 0, gh = 0;
    Row::each(p.cols, [&](int slot, int64_t c) {
      const float d = dy.at(slot, c) * w.at(slot, c), unit = h(slot, c);
      g += d;
      gh += d * unit;
      dw.add(slot, c, dy.at(slot, c) * unit);
      db.add(slot, c, dy.at(slot, c));
    });
    const float mean_g = p.is_centred ? s.g(g) / n : 0.0f, mean_gh = s.gh(gh) / n;
    T *const out = static_cast<T *>(p.dx) + r * p.dx_stride;
    const auto dx = [&](int slot, int64_t c) {
      return (dy.at(slot, c) * w.at(slot, c) - mean_g - h(slot, c) * mean_gh) * scale;
    };
    if (p.accumulate) {
      const Row old(out, p.cols);
      Row::map(out, p.cols, [&](int slot, int64_t c) { return old.at(slot, c) + dx(slot, c); });
    } else {
      Row::map(out, p.cols, dx);
    }
  }
  dw.finish(p.cols);
  db.finish(p.cols);
}

#define NORM_BACKWARD(name, T)                                                                     \
  KERNEL(norm_backward_##name##_packs1, NormBackwardParams, THREADS) {                             \
    norm_backward<T, RegisterRow<T, THREADS, 1>>(p);                                               \
  }                                                                                                \
  KERNEL(norm_backward_##name##_packs2, NormBackwardParams, THREADS) {                             \
    norm_backward<T, RegisterRow<T, THREADS, 2>>(p);                                               \
  }                                                                                                \
  KERNEL(norm_backward_##name##_packs4, NormBackwardParams, THREADS) {                             \
    norm_backward<T, RegisterRow<T, THREADS, 4>>(p);                                               \
  }                                                                                                \
  KERNEL(norm_backward_##name##_plain, NormBackwardParams, THREADS) {                              \
    norm_backward<T, PlainRow<T, THREADS>>(p);                                                     \
  }

NORM_BACKWARD(f32, float)
NORM_BACKWARD(bf16, bf16)
NORM_BACKWARD(f16, f16)

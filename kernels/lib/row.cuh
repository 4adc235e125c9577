/** A row of a matrix in the registers of a block or a warp: read once, used often, written once.
 *
 *  Thread t holds packs t, t + THREADS, ... of the row. Widths beyond the registers, and rows whose
 *  packs would not be aligned, take `PlainRow`, which reads memory again each time. */
#pragma once
#include "types.cuh"

template <typename T, int THREADS, int PACKS> struct RegisterRow {
  Pack<T> packs[PACKS];
  int64_t cols;

  __device__ RegisterRow(const T *row, int64_t cols) : cols(cols) {
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
      int64_t at = start(i);
      if (at < cols) packs[i] = *reinterpret_cast<const Pack<T> *>(row + at);
    }
  }

  __device__ __forceinline__ static int64_t start(int i) {
    return ((int64_t)i * THREADS + threadIdx.x % THREADS) * Pack<T>::SIZE;
  }

  /** The sum of f(x) over this thread's part. */
  template <typename F> __device__ __forceinline__ float sum(F f) const {
    float total = 0;
#pragma unroll
    for (int i = 0; i < PACKS; i++)
      if (start(i) < cols)
#pragma unroll
        for (int j = 0; j < Pack<T>::SIZE; j++) total += f(widen(packs[i].x[j]));
    return total;
  }

  /** This thread's element in `slot`, which is in column `c`. */
  __device__ __forceinline__ float at(int slot, int64_t c) const {
    (void)c;
    return widen(packs[slot / Pack<T>::SIZE].x[slot % Pack<T>::SIZE]);
  }

  /** f(slot, column) for each element of this thread. */
  template <typename F> __device__ __forceinline__ static void each(int64_t cols, F f) {
#pragma unroll
    for (int i = 0; i < PACKS; i++)
      if (start(i) < cols)
#pragma unroll
        for (int j = 0; j < Pack<T>::SIZE; j++) f(i * Pack<T>::SIZE + j, start(i) + j);
  }

  /** y[c] = f(slot, c) for each element of this thread. */
  template <typename F> __device__ __forceinline__ static void map(T *y, int64_t cols, F f) {
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
      if (start(i) >= cols) continue;
      Pack<T> out;
#pragma unroll
      for (int j = 0; j < Pack<T>::SIZE; j++)
        out.x[j] = narrow<T>(f(i * Pack<T>::SIZE + j, start(i) + j));
      *reinterpret_cast<Pack<T> *>(y + start(i)) = out;
    }
  }

  /** A vector along the row, which may be asked for before the row is there; null is zeros. */
  struct Along {
    Pack<T> packs[PACKS] = {};

    __device__ Along(const T *w, int64_t cols) {
#pragma unroll
      for (int i = 0; i < PACKS; i++)
        if (w && start(i) < cols) packs[i] = *reinterpret_cast<const Pack<T> *>(w + start(i));
    }
    __device__ __forceinline__ float at(int slot, int64_t) const {
      return widen(packs[slot / Pack<T>::SIZE].x[slot % Pack<T>::SIZE]);
    }
  };

  /** y[c] = f(x[c], w[c]). */
  template <typename F> __device__ __forceinline__ void store(T *y, const Along &w, F f) const {
    map(y, cols, [&](int slot, int64_t c) { return f(at(slot, c), w.at(slot, c)); });
  }

  /** y[c] = f(x[c], w[c], b[c]). */
  template <typename F>
  __device__ __forceinline__ void store(T *y, const Along &w, const Along &b, F f) const {
    map(y, cols, [&](int slot, int64_t c) { return f(at(slot, c), w.at(slot, c), b.at(slot, c)); });
  }
};

/** The 16 bytes at `from`. Of a pack of 16-bit elements the compiler moves each by itself. */
template <typename T> __device__ __forceinline__ uint4 load_pack(const T *from) {
  return *reinterpret_cast<const uint4 *>(from);
}

/** f(at, x) for x = load(at), the packs at `at`, at + APART, ... below `end`. AT_ONCE are on their
 *  way at once, and `meanwhile` runs when they have been asked for: once at least. */
template <int AT_ONCE, int APART, typename L, typename M, typename F>
__device__ __forceinline__ void each_pack(int at, int end, L load, M meanwhile, F f) {
#pragma unroll 1
  do {
    uint4 x[AT_ONCE] = {}; // Or each would take registers across the loop: 120 for 72.
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      if (at + i * APART < end) x[i] = load(at + i * APART);
    meanwhile();
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      if (at + i * APART < end) f(at + i * APART, x[i]);
    at += AT_ONCE * APART;
  } while (at < end);
}

/** A row that every sum reads anew, from L1 after the first; each pack is one thread's, as of
 *  `SharedRow`. `meanwhile` as of `each_pack`, in every sum. */
template <typename T, int THREADS, typename M> struct ReadRow {
  const T *row;
  int cols;
  M meanwhile;

  template <typename F> __device__ __forceinline__ float sum(F f) const {
    float total = 0;
    each_pack<4, THREADS * Pack<T>::SIZE>(
        (int)threadIdx.x * Pack<T>::SIZE, cols, [&](int at) { return load_pack(row + at); },
        meanwhile, [&](int, const uint4 &x) {
          const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
          for (int i = 0; i < 4; i++) total += f(low2<T>(pairs[i])), total += f(high2<T>(pairs[i]));
        });
    return total;
  }
};

/** A row in shared memory, whose every pack is one thread's own: no barrier is needed before it has
 *  been written. `cols` is a multiple of a pack. */
template <typename T, int THREADS> struct SharedRow {
  T *row;
  int cols;

  /** f(column) for each pack of this thread. */
  template <typename F> __device__ __forceinline__ static void each(int cols, F f) {
#pragma unroll 1
    for (int at = (int)threadIdx.x * Pack<T>::SIZE; at < cols; at += THREADS * Pack<T>::SIZE) f(at);
  }

  /** Asks for this thread's packs of `from`: there when its copies are (`cp_async_wait`). */
  static __device__ __forceinline__ void ask(T *row, const T *from, int cols) {
    each(cols, [&](int at) { ptx::cp_async16_kept(row + at, from + at); });
  }

  /** Copies this thread's packs of `from`, by registers: no older copy is waited for. Several are
   *  on their way at once, and `meanwhile` runs when they have been asked for. */
  template <typename F>
  static __device__ __forceinline__ void take(T *row, const T *from, int cols, F meanwhile) {
    constexpr int STEP = THREADS * Pack<T>::SIZE, AT_ONCE = 4;
    int at = (int)threadIdx.x * Pack<T>::SIZE;
#pragma unroll 1
    do {
      // Of a pack of 16-bit elements the compiler moves each by itself.
      uint4 x[AT_ONCE];
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++)
        if (at + i * STEP < cols) x[i] = *reinterpret_cast<const uint4 *>(from + at + i * STEP);
      meanwhile();
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++)
        if (at + i * STEP < cols) *reinterpret_cast<uint4 *>(row + at + i * STEP) = x[i];
      at += AT_ONCE * STEP;
    } while (at < cols);
  }

  template <typename F> __device__ __forceinline__ float sum(F f) const {
    float total = 0;
    each(cols, [&](int at) {
      const Pack<T> x = pack(row + at);
#pragma unroll
      for (int j = 0; j < Pack<T>::SIZE; j++) total += f(widen(x.x[j]));
    });
    return total;
  }

  /** x[c] = f(x[c], w[c], b[c]) in place; `b` may be null and then counts as 0. */
  template <typename F> __device__ __forceinline__ void map(const T *w, const T *b, F f) const {
    each(cols, [&](int at) {
      const Pack<T> scale = pack(w + at);
      Pack<T> x = pack(row + at), shift;
      if (b) shift = pack(b + at);
#pragma unroll
      for (int j = 0; j < Pack<T>::SIZE; j++)
        x.x[j] = narrow<T>(f(widen(x.x[j]), widen(scale.x[j]), b ? widen(shift.x[j]) : 0.0f));
      pack(row + at) = x;
    });
  }

  static __device__ __forceinline__ Pack<T> &pack(T *at) {
    return *reinterpret_cast<Pack<T> *>(at);
  }
  static __device__ __forceinline__ const Pack<T> &pack(const T *at) {
    return *reinterpret_cast<const Pack<T> *>(at);
  }
};

template <typename T, int THREADS> struct PlainRow {
  const T *row;
  int64_t cols;

  __device__ PlainRow(const T *row, int64_t cols) : row(row), cols(cols) {}

  template <typename F> __device__ __forceinline__ float sum(F f) const {
    float total = 0;
    for (int64_t c = threadIdx.x; c < cols; c += THREADS) total += f(widen(row[c]));
    return total;
  }

  __device__ __forceinline__ float at(int, int64_t c) const { return widen(row[c]); }

  template <typename F> __device__ __forceinline__ static void each(int64_t cols, F f) {
    for (int64_t c = threadIdx.x; c < cols; c += THREADS) f(0, c);
  }

  template <typename F> __device__ __forceinline__ static void map(T *y, int64_t cols, F f) {
    each(cols, [&](int slot, int64_t c) { y[c] = narrow<T>(f(slot, c)); });
  }

  struct Along {
    const T *w;
    __device__ Along(const T *w, int64_t) : w(w) {}
    __device__ __forceinline__ float at(int, int64_t c) const { return w ? widen(w[c]) : 0.0f; }
  };

  template <typename F> __device__ __forceinline__ void store(T *y, const Along &w, F f) const {
    map(y, cols, [&](int slot, int64_t c) { return f(at(slot, c), w.at(slot, c)); });
  }

  template <typename F>
  __device__ __forceinline__ void store(T *y, const Along &w, const Along &b, F f) const {
    map(y, cols, [&](int slot, int64_t c) { return f(at(slot, c), w.at(slot, c), b.at(slot, c)); });
  }
};

/** Elementwise kernels: which cells of a matrix a thread computes. */
#pragma once
#include "types.cuh"

constexpr int CELL_THREADS = 256;

/** Calls f(first cell) for every group of `group` cells, one group a thread. */
template <typename F> __device__ __forceinline__ void for_my_cells(int64_t cells, int group, F f) {
  int64_t at = ((int64_t)blockIdx.x * CELL_THREADS + threadIdx.x) * group;
  if (at < cells) f(at);
}

/** 16 bytes or one element: how much of a row is moved at once. */
template <typename T, bool PACKED> struct Move {
  static constexpr int SIZE = PACKED ? Pack<T>::SIZE : 1;
};

template <typename T, bool PACKED>
__device__ __forceinline__ void copy_cells(T *to, const T *from) {
  if constexpr (PACKED)
    *reinterpret_cast<Pack<T> *>(to) = *reinterpret_cast<const Pack<T> *>(from);
  else
    *to = *from;
}

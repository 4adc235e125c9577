/** How a kernel is written once for nvcc and for the emulator that tests run it on.
 *
 *  `KERNEL(entry, Params, threads[, blocks per SM]) { ... }` defines an entry whose body sees the
 *  params as `p`. `KERNEL_TMA` entries also see `maps`, the tensor maps that the launch's geometry
 *  asked for. On Hopper a launch may begin while the one before it ends: entries wait for that
 *  before their body, those of `KERNEL_EARLY` and `KERNEL_TMA` in it
 *  (`ptx::wait_for_launch_before`), after they have asked for what no launch writes: weights.
 *  `SHARED(Struct, name)` is the block's dynamic shared memory; `sizeof(Struct)` is what the
 *  geometry states. No `<<<>>>`, no runtime API, no C++ containers. */
#pragma once
#include <stdint.h>

/** A tensor map as the driver encodes it, or as the emulator does: opaque. */
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};
/** The tensor maps of one launch, in the order of its geometry. */
struct TensorMaps {
  TensorMap map[4];
};

#ifdef __CUDACC__

#define KERNEL_ENTRY(entry, Params, wait, ...)                                                     \
  __device__ __forceinline__ void entry##_body(const Params &p);                                   \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__)                                        \
      entry(const __grid_constant__ Params p) {                                                    \
    ptx::let_next_launch_begin();                                                                  \
    wait;                                                                                          \
    entry##_body(p);                                                                               \
  }                                                                                                \
  __device__ __forceinline__ void entry##_body(const Params &p)
#define KERNEL(entry, Params, ...)                                                                 \
  KERNEL_ENTRY(entry, Params, ptx::wait_for_launch_before(), __VA_ARGS__)
#define KERNEL_EARLY(entry, Params, ...) KERNEL_ENTRY(entry, Params, (void)0, __VA_ARGS__)
#define KERNEL_TMA(entry, Params, ...)                                                             \
  __device__ __forceinline__ void entry##_body(const Params &p, const TensorMaps &maps);           \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__)                                        \
      entry(const __grid_constant__ Params p, const __grid_constant__ TensorMaps maps) {           \
    ptx::let_next_launch_begin();                                                                  \
    entry##_body(p, maps);                                                                         \
  }                                                                                                \
  __device__ __forceinline__ void entry##_body(const Params &p, const TensorMaps &maps)
#define SHARED(Struct, name)                                                                       \
  extern __shared__ __align__(1024) unsigned char shared_bytes[];                                  \
  Struct &name = *reinterpret_cast<Struct *>(shared_bytes)
/** An array of Type that the block shares, beside what the launch states. */
#define SHARED_STATIC(Type, name, count) __shared__ Type name[count]
/** Bodies of the Hopper path: wgmma needs sm_90a itself. Elsewhere such an entry is empty, and no
 *  geometry asks for it. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#define HAS_SM90A 1
#else
#define HAS_SM90A 0
#endif

#else
#include "simt.h"
#define HAS_SM90A 1
#endif

// Entries use it, whatever else they include.
#include "ptx.cuh"

/*  `checksum`
 *
 *  Idea      each thread xors 16-byte words of its block's part, eight of them on their way at a
 *            time; then the lanes of a warp by shuffles, then the warps through shared memory.
 *  Geometry  256 threads, a block per part.
 *  Traffic   x once.
 *  Rejected  one load at a time: too few bytes on their way to fill the memory's latency. */
#include "checksum.h"
#include "lib/cells.cuh"
#include "lib/reduce.cuh"

struct alignas(16) Words {
  uint32_t x[4];
};

constexpr int AHEAD = 8;

__device__ __forceinline__ uint32_t fold(Words w) { return w.x[0] ^ w.x[1] ^ w.x[2] ^ w.x[3]; }

__device__ void checksum(const ChecksumParams &p) {
  SHARED_STATIC(uint32_t, sums, CELL_THREADS / WARP);
  const int64_t each = (p.packs + p.parts - 1) / p.parts, begin = blockIdx.x * each;
  const int64_t end = begin + each < p.packs ? begin + each : p.packs;
  const Words *x = static_cast<const Words *>(p.x);
  uint32_t sum = 0;
  int64_t at = begin + threadIdx.x;
  for (; at + (AHEAD - 1) * CELL_THREADS < end; at += AHEAD * CELL_THREADS) {
    Words words[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) words[i] = x[at + i * CELL_THREADS];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) sum ^= fold(words[i]);
  }
  for (; at < end; at += CELL_THREADS) sum ^= fold(x[at]);
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2)
    sum ^= __shfl_xor_sync(ALL_LANES, sum, offset);
  if (lane() == 0) sums[warp()] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < CELL_THREADS / WARP; i++) sum ^= sums[i];
    static_cast<uint32_t *>(p.y)[blockIdx.x] = sum;
  }
}

KERNEL(checksum_f32, ChecksumParams, CELL_THREADS) { checksum(p); }
KERNEL(checksum_bf16, ChecksumParams, CELL_THREADS) { checksum(p); }
KERNEL(checksum_f16, ChecksumParams, CELL_THREADS) { checksum(p); }

/** Rows of a matrix on their way to shared memory, stage after stage of k, by cp.async. */
#pragma once
#include "types.cuh"

/** A stage is ROWS rows of CHUNKS times 16 bytes, by THREADS threads; a thread copies the same
 *  chunk of every STEP-th row. What does not exist is zeros. Lengths along a row are in bytes. */
template <int ROWS, int CHUNKS, int THREADS> struct Feed {
  static constexpr int STEP = THREADS / CHUNKS, ROW_BYTES = CHUNKS * 16;
  // Chunks are permuted by the row, in eights.
  static_assert(ROWS % STEP == 0 && STEP % 8 == 0, "a thread's rows are permuted alike");
  const char *from; /**< this thread's chunk of its first row, in the next stage */
  int64_t step;     /**< to its next row */
  int64_t left;     /**< from there to the end of a row */
  int rows;         /**< from its first row to the end */
  int row_step;     /**< from one of its rows to the next */

  static __device__ __forceinline__ int row() { return (int)threadIdx.x / CHUNKS; }
  static __device__ __forceinline__ int chunk() { return (int)threadIdx.x % CHUNKS; }

  /** Rows row0 .. of `rows`, each of `width` and `stride` apart, from `begin` on. */
  __device__ __forceinline__ Feed(const void *matrix, int64_t stride, int64_t rows, int64_t width,
                                  int64_t row0, int64_t begin)
      : from(static_cast<const char *>(matrix) + (row0 + row()) * stride + begin + chunk() * 16),
        step(STEP * stride), left(width - begin - chunk() * 16),
        rows((int)min(rows - row0, (int64_t)ROWS) - row()), row_step(STEP) {}

  /** The same of a matrix in two halves, EACH rows of one and EACH of the other in turn, from row0
   *  of both on. */
  template <int EACH>
  static __device__ __forceinline__ Feed in_turn(const void *matrix, int64_t stride, int64_t rows,
                                                 int64_t width, int64_t row0, int64_t begin) {
    static_assert(STEP % (2 * EACH) == 0, "a thread's rows are of the same half");
    Feed feed(matrix, stride, rows, width, row0, begin);
    const int64_t half = rows / 2;
    const int place = row() / (2 * EACH) * EACH + row() % EACH;
    const int64_t first = row0 + place + row() / EACH % 2 * half;
    feed.from = static_cast<const char *>(matrix) + first * stride + begin + chunk() * 16;
    feed.step = STEP / 2 * stride, feed.row_step = STEP / 2;
    feed.rows = (int)min(half - row0, (int64_t)ROWS) - place;
    return feed;
  }

  /** Fills a stage; `to` is where this thread's chunk of its first row goes. */
  __device__ __forceinline__ void fill(void *to) {
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++)
      ptx::cp_async16(static_cast<char *>(to) + i * STEP * ROW_BYTES, from + i * step,
                      i * row_step < rows && left > 0);
    from += ROW_BYTES, left -= ROW_BYTES;
  }
};

/*  `attention_backward`
 *
 *  Idea      first launch, a block takes 64 queries of a head twice through the keys that they see:
 *            scores and dP for the softmax and delta; scores and dP again, dQ += dS K.
 *            Second launch, a block takes 64 keys through the queries that see them: scores and dP
 *            transposed, dV += P^T dO, dK += dS^T Q. Both hold rows of two operands and are passed
 *            32 rows of the other two at a time (`lib/attend_backward.cuh`).
 *  Geometry  `_queries_*` and `_keys_*`; `_64`, `_128` (tile width, at least head_dim): grid
 *            (tiles, heads, batch), 4 warps, 33 or 65 KiB. With `begin` as many tiles as there can
 *            be, in one batch entry. `_row`: a warp per query, or key, 4 a block, for f32 and heads
 *            of odd widths.
 *  Traffic   own rows and gradients once; the others once (queries), twice (keys) per 64 own rows,
 *            from L2; 16 bytes a query and head between the launches.
 *  Rejected  one launch that adds to dQ from every block of keys: atomics, sums in any order. The
 *            softmax kept by the forward pass: the first pass over the keys has to be made for
 *            delta all the same, as O is not kept either. Rounding weights and dS once: cells near
 *            0 then miss twice the rounding of the gradients. Tiles of 64 other rows: with heads of
 *            128 an A100 has room for one block of 128 KiB only. */
#include "attention_backward.h"
#include "lib/attend_backward.cuh"

#define ATTENTION_BACKWARD_TILES(name, T)                                                          \
  KERNEL(attention_backward_##name##_queries_64, AttentionBackwardParams, ATTEND_THREADS, 3) {     \
    gradients_of_queries<T, 64>(p);                                                                \
  }                                                                                                \
  KERNEL(attention_backward_##name##_queries_128, AttentionBackwardParams, ATTEND_THREADS, 2) {    \
    gradients_of_queries<T, 128>(p);                                                               \
  }                                                                                                \
  KERNEL(attention_backward_##name##_keys_64, AttentionBackwardParams, ATTEND_THREADS, 2) {        \
    gradients_of_keys<T, 64>(p);                                                                   \
  }                                                                                                \
  KERNEL(attention_backward_##name##_keys_128, AttentionBackwardParams, ATTEND_THREADS, 2) {       \
    gradients_of_keys<T, 128>(p);                                                                  \
  }
#define ATTENTION_BACKWARD_ROW(name, T)                                                            \
  KERNEL(attention_backward_##name##_queries_row, AttentionBackwardParams, ATTEND_THREADS, 4) {    \
    gradients_of_query<T>(p);                                                                      \
  }                                                                                                \
  KERNEL(attention_backward_##name##_keys_row, AttentionBackwardParams, ATTEND_THREADS, 4) {       \
    gradients_of_key<T>(p);                                                                        \
  }

ATTENTION_BACKWARD_TILES(bf16, bf16)
ATTENTION_BACKWARD_TILES(f16, f16)
ATTENTION_BACKWARD_ROW(f32, float)
ATTENTION_BACKWARD_ROW(bf16, bf16)
ATTENTION_BACKWARD_ROW(f16, f16)

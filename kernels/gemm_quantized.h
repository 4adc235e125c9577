#pragma once
#include "gemm.h"

/** `gemm_quantized`: `gemm` with weights of few bits, B[j][i] = scales[j][i / group] * q[j][i].
 *
 *  8 bits: q are signed bytes, a group is a whole row. 4 bits: q + 8 are nibbles, a group is 128;
 *  eight consecutive weights w0.. are a little-endian 32-bit word whose nibbles, from the lowest,
 *  are w0 w2 w4 w6 w1 w3 w5 w7: (word >> 4 i) & 0x000f000f is the pair w[2i], w[2i+1].
 *
 *  Source    arXiv:2208.07339 sec. 2 (a scale per output channel); arXiv:2210.17323 sec. 3
 *            (groups); arXiv:2408.11743 (order of the nibbles)
 *  Entries   gemm_quantized_{f32,bf16,f16}; C is T, or f32 when `c_is_f32`
 *  Limits    as `gemm`; m < 2^16, n < 2^27, k < 2^30, for 4 bits k is a multiple of 128
 *  Numerics  q is exact in T; the products of a group are summed in f32, scaled, and summed in f32;
 *            the epilogue of `gemm`. Of 4 bits, in bf16 and of at most 8 rows, cards sum those of
 *            q + 136 and take 136 times the sum of A off: five of the 24 bits of a sum. Of up to 2
 *            rows of 16 bits in 16-byte chunks, where a card has the room, A is rounded to 2^-22 of
 *            the largest in an eighth of its row, and the products of a group, or of such an
 *            eighth, are exact */
typedef struct GemmQuantizedParams {
  GemmParams product; /**< b: (n,k) signed bytes or (n,k/2) bytes of two; ldb in bytes */
  const void *scales; /**< (n) or (n,k/128) bf16, whatever T is */
  int64_t bits;       /**< 8 or 4 */
} GemmQuantizedParams;

#pragma once
#include <stdint.h>

/** `quantise`: weights to the codes and scales that `gemm_quantized` reads.
 *
 *  Each weight takes the code nearest to it under the scale as it is stored. 8 bits: a row's
 *  largest weight is 127 scales. 4 bits: a group's largest weight is code -8, whatever its sign,
 *  by a scale of the opposite one; the first of several that are as large decides the sign.
 *
 *  Source    arXiv:2208.07339 sec. 2; arXiv:2210.17323 sec. 3
 *  Entries   quantise_{f32,bf16,f16}{_int8,_int4}
 *  Limits    cols is a multiple of 16 (8 bits) or 128 (4 bits); codes and w 16-byte aligned
 *  Numerics  f32; a scale is rounded to bf16, then w * (1 / scale) to the nearest integer, ties to
 *            even. A NaN counts for no scale, and its code is 0 (8 bits) or -8 (4 bits) */
typedef struct QuantiseParams {
  void *codes;   /**< (rows,cols) signed bytes or (rows,cols/2) bytes of two */
  void *scales;  /**< (rows) or (rows,cols/128) bf16 */
  const void *w; /**< (rows,cols) T */
  int64_t rows, cols;
  int64_t bits; /**< 8 or 4 */
} QuantiseParams;

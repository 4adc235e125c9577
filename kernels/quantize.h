#pragma once
#include <stdint.h>

/** `quantize`: weights to the codes and scales that `gemm_quantized` reads.
 *
 *  Each weight takes the code nearest to it under the scale as it is stored. 8 bits: a row's
 *  largest weight is 127 scales. 4 bits: a group's largest weight is code -8, whatever its sign,
 *  by a scale of the opposite one; the first of several that are as large decides the sign.
 *  losses[i] = [sum of (w - code scale)^2, sum of w^2] over the weights of scale i.
 *
 *  Source    arXiv:2208.07339 sec. 2; arXiv:2210.17323 sec. 3
 *  Entries   quantize_{f32,bf16,f16}
 *  Limits    cols is a multiple of 16 (8 bits) or 128 (4 bits); codes and w 16-byte aligned
 *  Numerics  f32; a scale is rounded to bf16, then w * (1 / scale) to the nearest integer, ties to
 *            even. A NaN counts for no scale, and its code is 0 (8 bits) or -8 (4 bits). Codes and
 *            scales are the same bits everywhere, losses are sums in an order of each device's */
typedef struct QuantizeParams {
  void *codes;   /**< (rows,cols) signed bytes or (rows,cols/2) bytes of two */
  void *scales;  /**< (rows) or (rows,cols/128) bf16 */
  float *losses; /**< (rows,2) or (rows,cols/128,2), or null */
  const void *w; /**< (rows,cols) T */
  int64_t rows, cols;
  int64_t bits; /**< 8 or 4 */
} QuantizeParams;

/** `dequantize`: w = code * scale, of what `quantize` has made.
 *
 *  Source    as `quantize`
 *  Entries   dequantize_{f32,bf16,f16}
 *  Limits    as `quantize`; w 16-byte aligned
 *  Numerics  f32, one rounding */
typedef struct DequantizeParams {
  void *w;            /**< (rows,cols) T */
  const void *codes;  /**< (rows,cols) signed bytes or (rows,cols/2) bytes of two */
  const void *scales; /**< (rows) or (rows,cols/128) bf16 */
  int64_t rows, cols;
  int64_t bits; /**< 8 or 4 */
} DequantizeParams;

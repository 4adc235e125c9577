#pragma once
#include <stdint.h>

/** `norm_backward`: the gradients of y = h w + b per row, where h = (x - mean(x)) r and
 *  r = 1 / sqrt(var(x) + eps) in a layernorm; in an rmsnorm h = x r and
 *  r = 1 / sqrt(mean(x^2) + eps).
 *
 *  g = dy w;  dx (+)= r (g - mean(g) - h mean(g h)), an rmsnorm without mean(g);
 *  dw[q] = sum of dy h and db[q] = sum of dy over the rows of part q,
 *  q*part_rows .. (q+1)*part_rows of those that exist. `column_sums` adds the parts up.
 *
 *  Source    arXiv:1607.06450 eq. 4 and arXiv:1910.07467 eq. 4, differentiated
 *  Entries   norm_backward_{f32,bf16,f16}
 *  Limits    cols >= 1, parts*part_rows >= rows; dw and db null if not wanted, db null for an
 *            rmsnorm
 *  Numerics  f32; sums of a part in the order of its rows, one rounding of dx */
typedef struct NormBackwardParams {
  void *dx;       /**< (rows,cols) T, stride dx_stride; added to if accumulate */
  float *dw, *db; /**< (parts,cols), or null */
  const void *dy; /**< (rows,cols) T, stride dy_stride */
  const void *x;  /**< (rows,cols) T, stride x_stride */
  const void *w;  /**< (cols) T */
  int64_t rows, cols, parts, part_rows;
  int64_t dx_stride, dy_stride, x_stride;
  float eps;
  int32_t is_centred; /**< 1 layernorm, 0 rmsnorm */
  int32_t accumulate;
  int32_t reserved;
} NormBackwardParams;

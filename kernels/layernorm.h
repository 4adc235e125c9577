#pragma once
#include <stdint.h>

/** `layernorm`: y = (x - mean(x)) / sqrt(var(x) + eps) * w + b, per row.
 *
 *  Source    arXiv:1607.06450 eq. 4; torch.nn.LayerNorm (biased variance)
 *  Entries   layernorm_{f32,bf16,f16}
 *  Limits    cols >= 1; b may be null (MPT has weights only)
 *  Numerics  mean; then mean and variance of the centred values, all in f32 */
typedef struct LayernormParams {
  void *y;       /**< (rows,cols) T, stride y_stride; may be x */
  const void *x; /**< (rows,cols) T, stride x_stride */
  const void *w; /**< (cols) T */
  const void *b; /**< (cols) T or null */
  int64_t rows, cols;
  int64_t y_stride, x_stride;
  float eps;
  int32_t reserved;
} LayernormParams;

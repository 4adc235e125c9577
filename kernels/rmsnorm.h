#pragma once
#include <stdint.h>

/** `rmsnorm`: y = x / sqrt(mean(x^2) + eps) * w, per row.
 *
 *  Source    arXiv:1910.07467 eq. 4; transformers LlamaRMSNorm
 *  Entries   rmsnorm_{f32,bf16,f16}
 *  Limits    cols >= 1
 *  Numerics  mean square in f32; x/rms is rounded to T before the weight, as LlamaRMSNorm does */
typedef struct RmsnormParams {
  void *y;       /**< (rows,cols) T; may be x */
  const void *x; /**< (rows,cols) T */
  const void *w; /**< (cols) T */
  int64_t rows, cols;
  float eps;
  int32_t reserved;
} RmsnormParams;

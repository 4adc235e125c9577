#pragma once
#include <stdint.h>

/** `swiglu`: y = silu(gate) * up, where a row of x is [gate | up].
 *
 *  Source    arXiv:2002.05202 eq. 6; transformers LlamaMLP
 *  Entries   swiglu_{f32,bf16,f16}
 *  Numerics  f32, one rounding */
typedef struct SwigluParams {
  void *y;       /**< (rows,cols) T */
  const void *x; /**< (rows,2*cols) T */
  int64_t rows, cols;
} SwigluParams;

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

/** `swiglu_backward`: the gradients of y = silu(gate) * up, where rows of x and dx are [gate | up].
 *
 *  With s = sigmoid(gate): dgate = dy up s (1 + gate (1 - s)), dup = dy gate s.
 *
 *  Source    arXiv:2002.05202 eq. 6, differentiated
 *  Entries   swiglu_backward_{f32,bf16,f16}
 *  Numerics  f32, one rounding */
typedef struct SwigluBackwardParams {
  void *dx;       /**< (rows,2*cols) T */
  const void *dy; /**< (rows,cols) T */
  const void *x;  /**< (rows,2*cols) T */
  int64_t rows, cols;
} SwigluBackwardParams;

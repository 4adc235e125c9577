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

/** `activation`: y = f(x), f being 0 identity, 1 GELU (erf), 2 QuickGELU x*sigmoid(1.702 x), as in
 *  the epilogue of `gemm`: for a forward pass that keeps x.
 *
 *  Source    arXiv:1606.08415 eq. 2; QuickGELU of open_clip
 *  Entries   activation_{f32,bf16,f16}
 *  Numerics  f32, one rounding */
typedef struct ActivationParams {
  void *y;       /**< (cells) T, or x itself */
  const void *x; /**< (cells) T */
  int64_t cells;
  int32_t activation;
  int32_t reserved;
} ActivationParams;

/** `activation_backward`: dx = dy f'(x), with f as in `activation`: GELU' = Phi(x) + x phi(x),
 *  QuickGELU' = s (1 + 1.702 x (1 - s)) with s = sigmoid(1.702 x).
 *
 *  Source    arXiv:1606.08415 eq. 2, differentiated
 *  Entries   activation_backward_{f32,bf16,f16}
 *  Numerics  f32, one rounding */
typedef struct ActivationBackwardParams {
  void *dx;       /**< (cells) T, or dy itself */
  const void *dy; /**< (cells) T */
  const void *x;  /**< (cells) T, before f */
  int64_t cells;
  int32_t activation;
  int32_t reserved;
} ActivationBackwardParams;

#pragma once
#include <stdint.h>

/** `transpose`: y[c, r] = x[r, c]; columns of y from `rows` on are 0, so that a product over them
 *  may be as long as its kernel likes.
 *
 *  Source    dx = dy W and dW = dy^T x are `gemm`s of transposed operands
 *  Entries   transpose_{f32,bf16,f16}
 *  Limits    y_cols >= rows
 *  Numerics  a copy, bit for bit */
typedef struct TransposeParams {
  void *y;       /**< (cols,y_cols) T, stride y_stride */
  const void *x; /**< (rows,cols) T, stride x_stride */
  int64_t rows, cols, y_cols;
  int64_t y_stride, x_stride;
} TransposeParams;

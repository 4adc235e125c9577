#pragma once
#include <stdint.h>

/** `cross_entropy`: per row, loss = log(sum of exp(x)) - x[label] and its gradient
 *  dx[j] = scale (softmax(x)[j] - [j == label]). A row whose label is negative has loss 0 and
 *  gradient 0. Columns of dx from `cols` on are 0, so that a product over them may be as long as
 *  its kernel likes.
 *
 *  Source    torch.nn.functional.cross_entropy with ignore_index, each row's loss by itself
 *  Entries   cross_entropy_{f32,bf16,f16}: T of dx
 *  Limits    labels below cols, checked when they are made; cols >= 1, dx_cols >= cols; dx may be x
 *            where T is f32 and the strides are equal
 *  Numerics  f32, less the row's largest, which may be any finite number; one rounding of dx */
typedef struct CrossEntropyParams {
  float *loss;           /**< (rows) */
  void *dx;              /**< (rows,dx_cols) T, stride dx_stride */
  const float *x;        /**< (rows,cols), stride x_stride */
  const int32_t *labels; /**< (rows) */
  int64_t rows, cols, dx_cols;
  int64_t dx_stride, x_stride;
  float scale;
  int32_t reserved;
} CrossEntropyParams;

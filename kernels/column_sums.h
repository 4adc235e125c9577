#pragma once
#include <stdint.h>

/** `column_sums`: y[q, c] (+)= sum of x[r, c] over the rows r of part q,
 *  q*part_rows .. (q+1)*part_rows of those that exist: gradients of biases, say.
 *
 *  Source    the transpose of adding a row to every row
 *  Entries   column_sums_{f32,bf16,f16}: T of x
 *  Limits    parts*part_rows >= rows
 *  Numerics  f32; eight sums of every eighth row, then those in order */
typedef struct ColumnSumsParams {
  float *y;      /**< (parts,cols), dense */
  const void *x; /**< (rows,cols) T, stride x_stride */
  int64_t rows, cols, parts, part_rows;
  int64_t x_stride;
  int32_t accumulate;
  int32_t reserved;
} ColumnSumsParams;

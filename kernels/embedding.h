#pragma once
#include <stdint.h>

/** `embedding`: y[r] = w[ids[r]].
 *
 *  Source    torch.nn.Embedding
 *  Entries   embedding_{f32,bf16,f16}
 *  Limits    0 <= ids[r] < vocabulary, checked when the ids are made */
typedef struct EmbeddingParams {
  void *y;            /**< (rows,cols) T */
  const int32_t *ids; /**< (rows) */
  const void *w;      /**< (vocabulary,cols) T */
  int64_t rows, cols, vocabulary;
} EmbeddingParams;

/** `embedding_backward`: dw[rows[i]] += sum of dx[order[j]] over begin[i] <= j < begin[i + 1]: the
 *  gradient of `embedding` by those rows that some token named, tokens of one id together.
 *
 *  Source    torch.nn.Embedding, differentiated
 *  Entries   embedding_backward_{f32,bf16,f16}: T of dx
 *  Limits    `rows` differ from each other; all three are checked when they are made
 *  Numerics  f32; eight sums of every eighth token of a group, then those in order */
typedef struct EmbeddingBackwardParams {
  float *dw;            /**< (_,cols), stride dw_stride; added to */
  const void *dx;       /**< (_,cols) T, stride dx_stride */
  const int32_t *rows;  /**< (groups) of dw */
  const int32_t *begin; /**< (groups+1) */
  const int32_t *order; /**< (begin[groups]) rows of dx */
  int64_t groups, cols;
  int64_t dw_stride, dx_stride;
  int64_t tokens; /**< begin[groups] */
} EmbeddingBackwardParams;

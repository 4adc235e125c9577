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

#pragma once
#include <stdint.h>

/** `gate_backward`: the gradients of x + tanh(gate) h W^T by h and by the gate, where the product's
 *  own output was not kept: given d = dy W,
 *  parts[q] = (1 - tanh(gate)^2) * sum of d h over the cells of part q, and then d *= tanh(gate).
 *  Part q has the cells q*part_cells .. (q+1)*part_cells of those that exist; `column_sums` adds
 *  the parts up.
 *
 *  Source    arXiv:2204.14198 eq. 2, differentiated: sum of dy (h W^T) = sum of (dy W) h
 *  Entries   gate_backward_{f32,bf16,f16}
 *  Limits    parts*part_cells >= cells
 *  Numerics  f32 sums in a fixed order, of d before it is scaled; d is rounded once */
typedef struct GateBackwardParams {
  void *d;          /**< (cells) T, scaled in place */
  float *parts;     /**< (count) */
  const void *h;    /**< (cells) T */
  const void *gate; /**< (1) T */
  int64_t cells, count, part_cells;
} GateBackwardParams;

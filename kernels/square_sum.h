#pragma once
#include <stdint.h>

/** `square_sum`: parts[q] = [sum of x^2, count of what is not finite] over part q of x, which has
 *  the elements q*each .. (q+1)*each of those that exist. `column_sums` adds up the parts of one
 *  tensor or of many.
 *
 *  Source    the first half of torch.nn.utils.clip_grad_norm_
 *  Entries   square_sum_{f32,bf16,f16}
 *  Limits    count*each >= n
 *  Numerics  f32, in a fixed order; x that is not finite is in the sum, too */
typedef struct SquareSumParams {
  float *parts;  /**< (count,2) */
  const void *x; /**< (n) T */
  int64_t n, count, each;
} SquareSumParams;

/** `clip_factor`: norm = scale sqrt(sums[0]); factor = [scale min(1, max_norm / (norm + 1e-6)),
 *  norm]: what gradients whose squares add up to sums[0] are to be multiplied by, and the norm they
 *  have after `scale`. Where something was not finite, which sums[1] counts, the factor is NaN, so
 *  that an optimiser changes nothing.
 *
 *  Source    the second half of torch.nn.utils.clip_grad_norm_
 *  Entries   clip_factor_{f32,bf16,f16}: the same
 *  Limits    max_norm > 0; inf does not clip
 *  Numerics  f32 */
typedef struct ClipFactorParams {
  float *factor;     /**< (2) */
  const float *sums; /**< (2) */
  float max_norm, scale;
} ClipFactorParams;

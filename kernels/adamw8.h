#pragma once
#include <stdint.h>

/** The 256 numbers that an 8-bit code may stand for, and how to find the nearest without a search.
 *
 *  A cell is the numbers of one sign that share exponent and 7 bits of mantissa; cell 0 is those
 *  below 2^-23. No cell has numbers of more than two codes, so code(x) = c + (x >= above[c]) for
 *  the c of x's cell. `above` is exact: ties go where the search of bitsandbytes leaves them, and
 *  where numbers have signs a negative one (and -0) never has the code of 0. */
typedef struct Adamw8Codebook {
  float value[256];      /**< by code, ascending */
  float above[256];      /**< the least number of the next code; NaN after the last */
  uint8_t cell[2][2948]; /**< the least code of each cell; positive numbers, then negative */
} Adamw8Codebook;

/** `adamw8`: one step of AdamW with both moments in 8 bits, by blocks that share a scale.
 *
 *  m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2;  p += step_size * m / (sqrt(v) + eps)
 *  and then p *= keep, where g is scaled by grad_scale, and the step's number t has gone into
 *  step_size = -lr sqrt(1-beta2^t) / (1-beta1^t), eps sqrt(1-beta2^t), and into
 *  keep = 1 - lr weight_decay.
 *  m and v are stored as value[code] * absmax of their block, after p has used them unrounded.
 *  m / d is m (1/d). What a code is of, x = m / absmax, is q + (1/absmax) (m - absmax q) of
 *  q = m (1/absmax), the sums fused, which nearly always rounds as the division does (none of 3e8
 *  otherwise); where an absmax of the block is not in [2^-72, 2^60) it is the division.
 *  Where g is not finite m = v = 0 and p stays; if grad_scale is not finite, nothing changes.
 *
 *  Source    arXiv:2110.02861 sec. 2; bitsandbytes kOptimizerStatic8bit2StateBlockwise
 *  Entries   adamw8_{f32,bf16,f16}: T of param
 *  Limits    block 256 or 2048; n < 2^31; param 16-byte aligned, codes 8-byte
 *  Numerics  f32, no contraction: twin and card agree to the bit. param is rounded to T after the
 *            update and after the decay, or, if `seed` is not 0 (T bf16), once and stochastically.
 *            With `master`, p is the master in f32 and param its rounding. */
typedef struct Adamw8Params {
  void *param;                /**< (n) T */
  float *master;              /**< (n), or null */
  uint8_t *code1, *code2;     /**< (n) of m and of v */
  float *absmax1, *absmax2;   /**< (ceil(n/block)) */
  const float *grad;          /**< (n) */
  const float *grad_scale;    /**< (1), or null for 1 */
  const Adamw8Codebook *book1, *book2; /**< of m, signed; of v */
  int64_t n;
  uint64_t seed;
  int32_t block;
  float beta1, beta2;
  float step_size, eps, keep;
} Adamw8Params;

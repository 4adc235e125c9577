#pragma once
#include <stdint.h>

/** `adamw`: one step of AdamW with both moments in f32.
 *
 *  m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2;  p += step_size * m / (sqrt(v) + eps)
 *  and then p *= keep, where g is scaled by grad_scale, and the step's number t has gone into
 *  step_size = -lr sqrt(1-beta2^t) / (1-beta1^t), eps sqrt(1-beta2^t), and into
 *  keep = 1 - lr weight_decay.
 *  Where g is not finite m = v = 0 and p stays; if grad_scale is not finite, nothing changes.
 *
 *  Source    arXiv:1711.05101 alg. 2; order of update and decay as in bitsandbytes'
 *            kOptimizer32bit2State
 *  Entries   adamw_{f32,bf16,f16}: T of param
 *  Limits    param, master, m, v and grad 16-byte aligned
 *  Numerics  f32, no contraction: twin and card agree to the bit. param is rounded to T after the
 *            update and after the decay, or, if `seed` is not 0 (T bf16), once and stochastically.
 *            With `master`, p is the master in f32 and param its rounding. */
typedef struct AdamwParams {
  void *param;             /**< (n) T */
  float *master;           /**< (n), or null */
  float *m, *v;            /**< (n) */
  const float *grad;       /**< (n) */
  const float *grad_scale; /**< (1), or null for 1 */
  int64_t n;
  uint64_t seed;
  float beta1, beta2;
  float step_size, eps, keep;
  int32_t reserved;
} AdamwParams;

#pragma once
#include <stdint.h>

/** `gemm`: C = residual + tanh(gate) * f(A B^T + bias), with C (m,n), A (m,k), B (n,k).
 *
 *  Absent parts are null: no bias, no residual, gate factor 1. `activation` is f: 0 identity,
 *  1 GELU (erf), 2 QuickGELU x*sigmoid(1.702 x). C may be the residual itself (in place): so are
 *  gradients of T accumulated in f32.
 *
 *  Source    arXiv:2204.14198 eq. 2 (tanh gate);
 *            open_flamingo/src/helpers.py GatedCrossAttentionBlock
 *  Entries   gemm_{f32,bf16,f16}; C is T, or f32 when `c_is_f32`
 *  Limits    m,n,k >= 0; lda >= k, ldb >= k, ldc >= n
 *  Numerics  products of T summed in f32; epilogue in f32; one rounding to C's type */
typedef struct GemmParams {
  void *c;              /**< (m,n) T or f32 */
  const void *a;        /**< (m,k) T */
  const void *b;        /**< (n,k) T, the weight */
  const void *bias;     /**< (n) T or null */
  const void *residual; /**< (m,n) of C's type with stride ldc, or null */
  const void *gate;     /**< (1) T or null */
  void *workspace;      /**< the stream's, for sums of parts of k; null on the host */
  int64_t m, n, k;
  int64_t lda, ldb, ldc; /**< row strides, elements */
  int32_t activation;
  int32_t c_is_f32;
} GemmParams;

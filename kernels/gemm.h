#pragma once
#include <stdint.h>

/** `gemm`: C = residual + tanh(gate) * f(norm(A) B^T + bias), with C (m,n), A (m,k), B (n,k).
 *
 *  Absent parts are null: no bias, no residual, gate factor 1. `activation` is f: 0 identity,
 *  1 GELU (erf), 2 QuickGELU x*sigmoid(1.702 x), 3 SwiGLU: B is n/2 rows of gates, then n/2 of
 *  values; C (m,n/2) = residual + tanh(gate) * silu(A Bgates^T) (A Bvalues^T), on cards, of 16-bit
 *  operands in 16-byte chunks, without bias. `norm` is 0 for A as it is; 1 for the rows that
 *  `rmsnorm` makes of A, or 2 for those of `layernorm`: on cards, of at most 2 rows, 16-bit
 *  operands in 16-byte chunks. C may be the residual itself (in place): so are gradients of T
 *  accumulated in f32.
 *
 *  Source    arXiv:2204.14198 eq. 2 (tanh gate);
 *            open_flamingo/src/helpers.py GatedCrossAttentionBlock; arXiv:2002.05202 eq. 6 (SwiGLU)
 *  Entries   gemm_{f32,bf16,f16}; C is T, or f32 when `c_is_f32`
 *  Limits    m,n,k >= 0; lda >= k, ldb >= k, ldc >= columns of C
 *  Numerics  a norm as its own kernel has it, rounded to T; products of T summed in f32; epilogue
 *            in f32; one rounding to C's type */
typedef struct GemmParams {
  void *c;              /**< (m,n) T or f32; (m,n/2) of SwiGLU */
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
  const void *norm_weight; /**< (k) T, of a norm */
  const void *norm_bias;   /**< (k) T or null, of `layernorm` */
  float norm_eps;
  int32_t norm;
} GemmParams;

#pragma once
#include <stdint.h>

/** `gemm_int8`: `gemm` with weights B[j][i] = scales[j] * b[j][i], b signed bytes.
 *
 *  Source    arXiv:2208.07339 sec. 2 (a scale per output channel)
 *  Entries   gemm_int8_{f32,bf16,f16}; C is T, or f32 when `c_is_f32`
 *  Limits    as `gemm`; k < 2^30
 *  Numerics  b is exact in T; products summed in f32, then scaled; the epilogue of `gemm` */
typedef struct GemmInt8Params {
  void *c;              /**< (m,n) T or f32 */
  const void *a;        /**< (m,k) T */
  const void *b;        /**< (n,k) int8 */
  const float *scales;  /**< (n) */
  const void *bias;     /**< (n) T or null */
  const void *residual; /**< (m,n) T with stride ldc, or null */
  const void *gate;     /**< (1) T or null */
  int64_t m, n, k;
  int64_t lda, ldb, ldc; /**< row strides, elements */
  int32_t activation;
  int32_t c_is_f32;
} GemmInt8Params;

/** `gemm_int4`: `gemm` with weights B[j][i] = scales[j][i / 128] * (b[j][i] - 8), b of 4 bits.
 *
 *  Eight consecutive weights w0.. of a row are a little-endian 32-bit word, whose nibbles from the
 *  lowest are w0 w2 w4 w6 w1 w3 w5 w7: (word >> 4 i) & 0x000f000f is the pair w[2i], w[2i+1].
 *
 *  Source    arXiv:2210.17323 sec. 3 (groups); arXiv:2408.11743 (order of the nibbles)
 *  Entries   gemm_int4_{f32,bf16,f16}; C is T, or f32 when `c_is_f32`
 *  Limits    as `gemm`; k < 2^30 is a multiple of 128
 *  Numerics  b - 8 is exact in T; products of a group summed in f32, scaled, then summed in f32 */
typedef struct GemmInt4Params {
  void *c;              /**< (m,n) T or f32 */
  const void *a;        /**< (m,k) T */
  const void *b;        /**< (n,k/2) bytes */
  const float *scales;  /**< (n,k/128) */
  const void *bias;     /**< (n) T or null */
  const void *residual; /**< (m,n) T with stride ldc, or null */
  const void *gate;     /**< (1) T or null */
  int64_t m, n, k;
  int64_t lda, ldb, ldc; /**< row strides, elements; ldb in bytes */
  int32_t activation;
  int32_t c_is_f32;
} GemmInt4Params;

#pragma once
#include <stdint.h>

/** `checksum`: y[i] = xor of the 32-bit words of part i of x, of `parts` equal parts.
 *  It reads and does nothing else: its rate is what memory gives at most, measured.
 *
 *  Source    none; `medflamingo profile` and `bench/kernels.rs` compare other kernels with it
 *  Entries   checksum_{f32,bf16,f16}
 *  Limits    x begins at a multiple of 16 bytes
 *  Numerics  exact; the storage type does not matter */
typedef struct ChecksumParams {
  void *y;       /**< (parts) i32 */
  const void *x; /**< 16*packs bytes */
  int64_t packs; /**< of 16 bytes */
  int64_t parts; /**< of ceil(packs/parts) packs; the last ones have fewer */
} ChecksumParams;

#include "planted.h"

struct Operands {
  bf16 a[16][16], b[8][16];
};

/** Y (16,8) = A (16,16) B (8,16)^T of bf16: rows of x are A's, then B's. */
KERNEL(tile_product, PlantedParams, 32) {
  SHARED(Operands, s);
  for (int i = lane(); i < 256; i += 32) s.a[i / 16][i % 16] = narrow<bf16>(p.x[i]);
  for (int i = lane(); i < 128; i += 32) s.b[i / 16][i % 16] = narrow<bf16>(p.x[256 + i]);
  __syncwarp();
  uint32_t a[4], b[2];
  float d[4] = {};
  ptx::ldmatrix_x4(a, &s.a[lane() % 16][lane() / 16 * 8]);
  ptx::ldmatrix_x2(b, &s.b[lane() % 8][lane() / 8 % 2 * 8]);
  ptx::mma_bf16(d, a, b[0], b[1]);
  int row = lane() / 4, column = lane() % 4 * 2;
  for (int i = 0; i < 4; i++) p.y[(row + i / 2 * 8) * 8 + column + i % 2] = d[i];
}

struct ByteOperands {
  int8_t a[16][32], b[8][32];
};

/** Y (16,8) = A (16,32) B (8,32)^T of bytes: rows of x are A's, then B's. */
KERNEL(byte_product, PlantedParams, 32) {
  SHARED(ByteOperands, s);
  for (int i = lane(); i < 512; i += 32) s.a[i / 32][i % 32] = (int8_t)p.x[i];
  for (int i = lane(); i < 256; i += 32) s.b[i / 32][i % 32] = (int8_t)p.x[512 + i];
  __syncwarp();
  uint32_t a[4], b[2];
  int32_t d[4] = {7, 7, 7, 7};
  ptx::ldmatrix_x4(a, &s.a[lane() % 16][lane() / 16 * 16]);
  ptx::ldmatrix_x2(b, &s.b[lane() % 8][lane() / 8 % 2 * 16]);
  ptx::mma_s8(d, a, b[0], b[1]);
  int row = lane() / 4, column = lane() % 4 * 2;
  for (int i = 0; i < 4; i++) p.y[(row + i / 2 * 8) * 8 + column + i % 2] = (float)(d[i] - 7);
}

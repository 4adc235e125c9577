/** Conversions, copies without registers and tensor cores, of sm_80. Part of `simt.cpp`. */
#pragma once
#include "simt_state.h"

namespace ptx {

using simt::Lane;

float f16_to_float(uint16_t x) {
  uint32_t sign = (uint32_t)(x & 0x8000) << 16, exponent = x >> 10 & 31, fraction = x & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f;
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

uint16_t to_f16(float x) {
  uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000;
  float size = fabsf(x);
  if (x != x) return 0x7fff;
  if (size >= 65520.0f) return (uint16_t)(sign | 0x7c00);
  if (size < 0x1p-14f) return (uint16_t)(sign | (uint32_t)nearbyintf(size * 0x1p24f));
  uint32_t u = __float_as_uint(size);
  u += 0xfffu + (u >> 13 & 1u);
  return (uint16_t)(sign | ((u >> 13) - (112u << 10)));
}

void cp_async16(void *to, const void *from, bool valid) {
  // The target is written when the copy is waited for; until then nobody may touch it.
  simt::aligned_access(to, 16, true, SITE);
  simt::mark_in_flight(to, 16);
  if (valid) simt::aligned_access(from, 16, false, SITE);
  auto &copies = static_cast<simt::Fiber *>(simt::now)->copies;
  if (copies.empty()) copies.emplace_back();
  copies.back().push_back({to, from, valid});
}

void cp_async_commit() {
  auto &copies = static_cast<simt::Fiber *>(simt::now)->copies;
  if (copies.empty()) copies.emplace_back();
  copies.emplace_back();
}

void cp_async_wait(int groups) {
  auto &copies = static_cast<simt::Fiber *>(simt::now)->copies;
  // The last entry is the group that is still open.
  while (!copies.empty() && (int)copies.size() - 1 > groups) {
    for (auto &c : copies.front()) {
      simt::mark_landed(c.to, 16);
      simt::aligned_access(c.to, 16, true, SITE);
      if (c.valid)
        memcpy(c.to, c.from, 16);
      else
        memset(c.to, 0, 16);
    }
    copies.erase(copies.begin());
  }
}

void ldmatrix(uint32_t *r, const void *row, int matrices, bool transposed) {
  if ((int)(simt::now->index.x % 32) < 8 * matrices) simt::aligned_access(row, 16, false, SITE);
  struct Arguments {
    int matrices;
    bool transposed;
    const void *row;
  } arguments = {matrices, transposed, row};
  Lane own = {&arguments, r, 0, 32};
  simt::meet(
      "ldmatrix", 0xffffffffu,
      [](Lane *const lanes[32], uint32_t) {
        auto a = *static_cast<const Arguments *>(lanes[0]->in);
        for (int m = 0; m < a.matrices; m++) {
          uint16_t cell[8][8];
          for (int i = 0; i < 8; i++)
            memcpy(cell[i], static_cast<const Arguments *>(lanes[8 * m + i]->in)->row, 16);
          for (int l = 0; l < 32; l++) {
            int g = l / 4, t = l % 4 * 2;
            uint16_t low = a.transposed ? cell[t][g] : cell[g][t];
            uint16_t high = a.transposed ? cell[t + 1][g] : cell[g][t + 1];
            static_cast<uint32_t *>(lanes[l]->out)[m] = low | (uint32_t)high << 16;
          }
        }
      },
      &own, SITE);
}

namespace {

struct Fragments {
  const uint32_t *a;
  uint32_t b0, b1;
};

template <bool IS_BF16> float element(uint32_t pair, int high) {
  uint32_t bits = high ? pair >> 16 : pair & 0xffffu;
  return IS_BF16 ? __uint_as_float(bits << 16) : f16_to_float((uint16_t)bits);
}

template <bool IS_BF16> void product(Lane *const lanes[32], uint32_t) {
  float a[16][16], b[16][8];
  for (int l = 0; l < 32; l++) {
    auto p = static_cast<const Fragments *>(lanes[l]->in);
    int g = l / 4, t = l % 4 * 2;
    for (int i = 0; i < 2; i++) {
      a[g][t + i] = element<IS_BF16>(p->a[0], i);
      a[g + 8][t + i] = element<IS_BF16>(p->a[1], i);
      a[g][t + 8 + i] = element<IS_BF16>(p->a[2], i);
      a[g + 8][t + 8 + i] = element<IS_BF16>(p->a[3], i);
      b[t + i][g] = element<IS_BF16>(p->b0, i);
      b[t + 8 + i][g] = element<IS_BF16>(p->b1, i);
    }
  }
  float d[16][8] = {};
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < 16; k++)
      for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
  for (int l = 0; l < 32; l++) {
    auto out = static_cast<float *>(lanes[l]->out);
    int g = l / 4, t = l % 4 * 2;
    out[0] += d[g][t], out[1] += d[g][t + 1];
    out[2] += d[g + 8][t], out[3] += d[g + 8][t + 1];
  }
}

void byte_product(Lane *const lanes[32], uint32_t) {
  int a[16][32], b[32][8];
  auto byte = [](uint32_t word, int i) { return (int)(int8_t)(word >> 8 * i); };
  for (int l = 0; l < 32; l++) {
    auto p = static_cast<const Fragments *>(lanes[l]->in);
    int g = l / 4, t = l % 4 * 4;
    for (int i = 0; i < 4; i++) {
      a[g][t + i] = byte(p->a[0], i), a[g + 8][t + i] = byte(p->a[1], i);
      a[g][t + 16 + i] = byte(p->a[2], i), a[g + 8][t + 16 + i] = byte(p->a[3], i);
      b[t + i][g] = byte(p->b0, i), b[t + 16 + i][g] = byte(p->b1, i);
    }
  }
  // Sums that do not fit are cut off, as on cards: no overflow of the host's.
  uint32_t d[16][8] = {};
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < 32; k++)
      for (int j = 0; j < 8; j++) d[i][j] += (uint32_t)(a[i][k] * b[k][j]);
  for (int l = 0; l < 32; l++) {
    auto out = static_cast<int32_t *>(lanes[l]->out);
    int g = l / 4, t = l % 4 * 2;
    for (int i = 0; i < 4; i++)
      out[i] = (int32_t)((uint32_t)out[i] + d[g + i / 2 * 8][t + i % 2]);
  }
}

} // namespace

void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Fragments own = {a, b0, b1};
  Lane lane = {&own, d, 0, 32};
  simt::meet("mma_s8", 0xffffffffu, byte_product, &lane, SITE);
}

void mma(float *d, const uint32_t *a, uint32_t b0, uint32_t b1, bool is_bf16) {
  Fragments own = {a, b0, b1};
  Lane lane = {&own, d, 0, 32};
  if (is_bf16)
    simt::meet("mma_bf16", 0xffffffffu, product<true>, &lane, SITE);
  else
    simt::meet("mma_f16", 0xffffffffu, product<false>, &lane, SITE);
}

} // namespace ptx

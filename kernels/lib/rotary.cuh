/** Rotary positions: how far a pair of features turns (arXiv:2104.09864 eq. 34). */
#pragma once
#include "abi.h"

/** Sine and cosine for the pair (i, i + rotary/2) at `position`. */
__device__ __forceinline__ void rotary_angle(int i, int rotary, float base, int position,
                                             float &sine, float &cosine) {
  float frequency = 1.0f / powf(base, (float)(2 * i) / (float)rotary);
  sincosf((float)position * frequency, &sine, &cosine);
}

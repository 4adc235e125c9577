// Sixty-four values live across a barrier, in a block that leaves 32 registers to a thread.
extern "C" __global__ void __launch_bounds__(1024, 2) rmsnorm_f32_spill(float *y, const float *x) {
  float a[64];
#pragma unroll
  for (int i = 0; i < 64; i++) a[i] = x[threadIdx.x + i * 1024];
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 8; j++)
#pragma unroll
    for (int i = 0; i < 64; i++) a[i] = a[i] * a[(i + 7) % 64] + a[(i + 13) % 64];
#pragma unroll
  for (int i = 0; i < 64; i++) y[threadIdx.x + i * 1024] = a[i];
}

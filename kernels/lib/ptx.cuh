/** Every instruction that C++ has no word for, each with its plain meaning. On the device: one line
 *  of inline assembly. On the host: the meaning itself, run by the emulator (`simt.h`). */
#pragma once
#include "abi.h"

#ifdef __CUDACC__
namespace ptx {

// Conversions, to nearest even.

__device__ __forceinline__ float f16_to_float(uint16_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
__device__ __forceinline__ uint16_t to_f16(float x) {
  uint16_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint16_t to_bf16(float x) {
  uint16_t y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
/** Low half from `low`. */
__device__ __forceinline__ uint32_t to_bf16x2(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
__device__ __forceinline__ uint32_t to_f16x2(float low, float high) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

/** 1 / x to 1 ulp, and 1 / sqrt(x) to 2; denormals are 0. */
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float rsqrt(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/** 2^x to about 2 ulp; 0 for -inf. */
__device__ __forceinline__ float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Pairs of 16-bit elements in a register: x y + z in each half, rounded once.

__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t x, uint32_t y, uint32_t z) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(y), "r"(z));
  return d;
}
__device__ __forceinline__ uint32_t fma_f16x2(uint32_t x, uint32_t y, uint32_t z) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(y), "r"(z));
  return d;
}

/** (x & mask) | bits in one instruction: of two constants the compiler makes two. */
__device__ __forceinline__ uint32_t and_or(uint32_t x, uint32_t mask, uint32_t bits) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(x), "r"(mask), "r"(bits));
  return d;
}

/** (x & mask) ^ bits, likewise. */
__device__ __forceinline__ uint32_t and_xor(uint32_t x, uint32_t mask, uint32_t bits) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(x), "r"(mask), "r"(bits));
  return d;
}

/** x, of which the compiler knows nothing more. */
__device__ __forceinline__ uint32_t opaque(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Launches that overlap (sm_90): what one wrote is there for the next after it has waited.

/** Until the launch before this one has ended and all it wrote can be read. */
__device__ __forceinline__ void wait_for_launch_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/** The next launch may begin once every block of this one has said so, and has room. */
__device__ __forceinline__ void let_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/** Adds 1 to a counter in global memory; what it was. By one thread, between two barriers of its
 *  block: what the block wrote before the first is there for whoever adds later, and what blocks
 *  that added before wrote is there for this one after the second, past L1. In place of a fence by
 *  every thread. */
__device__ __forceinline__ uint32_t take_turn(uint32_t *counter) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return before;
}

/** Bytes of shared memory that the launch states. */
__device__ __forceinline__ uint32_t dynamic_shared_bytes() {
  uint32_t bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  return bytes;
}

/** Asks for the line at `p`, to L2. */
__device__ __forceinline__ void prefetch(const void *p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// Global to shared memory without registers (sm_80).

__device__ __forceinline__ uint32_t shared_address(const void *p) {
  return (uint32_t)__cvta_generic_to_shared(p);
}
/** 16 bytes to shared memory, in flight until `cp_async_wait`; zeros and no read if not `valid`. */
__device__ __forceinline__ void cp_async16(void *to, const void *from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
/** 16 bytes as by `cp_async16`, of a line whose rest is asked for next: L2 takes all of it. */
__device__ __forceinline__ void cp_async16_streamed(void *to, const void *from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
/** 16 bytes likewise, which stay in L1: for what other blocks here want too. */
__device__ __forceinline__ void cp_async16_kept(void *to, const void *from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
}
/** Closes a group of this thread's copies. */
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/** Waits until at most N of this thread's groups are in flight. */
template <int N> __device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Tensor cores (sm_80). Fragments as in the PTX manual, m16n8k16: with g = lane / 4, t = lane % 4,
// a0 = A[g][2t..], a1 = A[g+8][2t..], a2 = A[g][2t+8..], a3 = A[g+8][2t+8..], b0 = B[2t..][g],
// b1 = B[2t+8..][g], d0,d1 = D[g][2t..], d2,d3 = D[g+8][2t..].

/** Four 8x8 matrices of 16-bit elements: lane 8i + r names row r of matrix i; afterwards register i
 *  holds elements 2t, 2t+1 of row g of matrix i. Rows are 16-byte aligned. */
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}
/** As `ldmatrix_x4`, each matrix transposed. */
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}
/** Two matrices; lanes 0 to 15 name the rows. */
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row)));
}
/** D (16,8) += A (16,16) B (16,8), bf16 products summed in f32. */
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/** D (16,8) += A (16,16) B (16,8), f16 products summed in f32. */
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/** D (16,8) += A (16,32) B (32,8) of signed bytes, exact in 32 bits. A register is four bytes in a
 *  row: a0 = A[g][4t..], a1 = A[g+8][4t..], a2 = A[g][4t+16..], a3 = A[g+8][4t+16..], b0 =
 *  B[4t..][g], b1 = B[4t+16..][g]; d as above. */
__device__ __forceinline__ void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#if HAS_SM90A
/** Four 8x8 matrices to shared memory, as `ldmatrix_x4` takes them. */
__device__ __forceinline__ void stmatrix_x4(void *row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                   shared_address(row)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// Hopper: barriers in shared memory that count arrivals and bytes.

/** A barrier whose phase ends after `count` arrivals and the bytes they expect. */
__device__ __forceinline__ void mbarrier_init(uint64_t *barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}
/** Makes the barriers that this thread initialised known to the tensor copies, and to the cluster
 *  once it arrives there. */
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t *barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
/** Arrives, and has the phase wait for `bytes` of copies too. */
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t *barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
/** Waits until the phase of this parity is over; parity 1 is over at the beginning. */
__device__ __forceinline__ void mbarrier_wait(uint64_t *barrier, uint32_t parity) {
  uint32_t is_over = 0;
  while (!is_over)
    asm volatile("{ .reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p; }"
                 : "=r"(is_over)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
}

// Blocks of a cluster, side by side in x: each stores into the shared memory of the others, from
// when they have begun until they end.

/** This block has begun, and the barriers that it initialised and fenced are there for who waits.
 *  Nothing else that was written is: a release for a cluster is a barrier for the memory of the
 *  card, half a microsecond. By whole warps, as is the wait. */
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
/** Until every thread of the cluster that has not returned has arrived. */
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/** x to where block `rank` has what this block has at `to`; its four bytes arrive at the barrier
 *  that block has there. */
__device__ __forceinline__ void store_in(uint32_t rank, float *to, float x, uint64_t *barrier) {
  asm volatile("{ .reg .b32 there, signal;\n"
               "mapa.shared::cluster.u32 there, %0, %3;\n"
               "mapa.shared::cluster.u32 signal, %2, %3;\n"
               "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 "
               "[there], %1, [signal]; }" ::"r"(shared_address(to)),
               "f"(x), "r"(shared_address(barrier)), "r"(rank)
               : "memory");
}
/** As `mbarrier_wait`, for what other blocks have stored. */
__device__ __forceinline__ void mbarrier_wait_for_cluster(uint64_t *barrier, uint32_t parity) {
  uint32_t is_over = 0;
  while (!is_over)
    asm volatile("{ .reg .pred p;\n"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p; }"
                 : "=r"(is_over)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
}

// Tensor copies: boxes of a `TensorMap`, zeros outside of it, begun by one thread.

__device__ __forceinline__ void tma_prefetch(const TensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/** The box at column x, row y to shared memory; its bytes arrive at `barrier`. */
__device__ __forceinline__ void tma_load_2d(void *to, const TensorMap *map, uint64_t *barrier,
                                            int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(to)),
               "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
               : "memory");
}

/** What this thread has written to shared memory is there for tensor copies and for products, once
 *  who begins them knows of it. */
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/** The box at column x, row y from shared memory; nothing is written outside of the matrix. */
__device__ __forceinline__ void tma_store_2d(const TensorMap *map, const void *from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::
                   "l"(map),
               "r"(shared_address(from)), "r"(x), "r"(y)
               : "memory");
}
/** Closes a group of this thread's stores. */
__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/** Waits until at most N of this thread's groups have not been read out of shared memory. */
template <int N> __device__ __forceinline__ void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

// Products of a warpgroup (four warps, the first a multiple of four), out of shared memory. Warp w
// holds rows 16 w .. + 16 of D, laid out as those of `mma_bf16`: d[4 j ..] is columns 8 j ...

/** A (rows, 64) tile of 16-bit elements as a tensor copy with `Swizzle::Bytes128` leaves it, at a
 *  multiple of 1024 bytes; plus 32, 64 or 96 bytes for the following columns. */
__device__ __forceinline__ uint64_t shared_descriptor_128b(const void *tile) {
  // Address, 1024 bytes between groups of eight rows, 128-byte permutation; sizes in 16 bytes.
  return (uint64_t)(shared_address(tile) >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
/** Before the first product, and after registers of D were touched. */
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/** Closes a group of products. */
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/** Waits until at most N groups are running. */
template <int N> __device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/** After the wait for the last product: the compiler reads no sum before it. */
template <int N> __device__ __forceinline__ void wgmma_settle(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

/** D (64,N) += A (64,16) B (N,16)^T, bf16 products summed in f32; done when waited for. Without
 *  `add` D is the products alone. */
template <int N>
__device__ __forceinline__ void wgmma_bf16(float (&d)[N / 2], uint64_t a, uint64_t b,
                                           bool add = true);
/** The same of f16. */
template <int N>
__device__ __forceinline__ void wgmma_f16(float (&d)[N / 2], uint64_t a, uint64_t b,
                                          bool add = true);

#define PLACES_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define PLACES_32                                                                                  \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                         \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define PLACES_64                                                                                  \
  PLACES_32                                                                                        \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                              \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define PLACES_88                                                                                  \
  PLACES_64                                                                                        \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"                              \
  "%80,%81,%82,%83,%84,%85,%86,%87"
#define PLACES_96 PLACES_88 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define PLACES_128                                                                                 \
  PLACES_96                                                                                        \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"                  \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define SUMS4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS16(i) SUMS4(i), SUMS4(i + 4), SUMS4(i + 8), SUMS4(i + 12)
#define SUMS_8 SUMS4(0), SUMS4(4)
#define SUMS_32 SUMS16(0), SUMS16(16)
#define SUMS_64 SUMS_32, SUMS16(32), SUMS16(48)
#define SUMS_88 SUMS_64, SUMS16(64), SUMS4(80), SUMS4(84)
#define SUMS_96 SUMS_88, SUMS4(88), SUMS4(92)
#define SUMS_128 SUMS_96, SUMS16(96), SUMS16(112)
#define WGMMA(type, N, sums, a_place, b_place, add_place)                                          \
  template <>                                                                                      \
  __device__ __forceinline__ void wgmma_##type<N>(float (&d)[sums], uint64_t a, uint64_t b,        \
                                                  bool add) {                                      \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, " add_place ", 0;\n"                              \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #type "." #type " {"            \
                 PLACES_##sums "}, " a_place ", " b_place ", p, 1, 1, 0, 0; }\n"                   \
                 : SUMS_##sums                                                                     \
                 : "l"(a), "l"(b), "r"((int)add));                                                 \
  }
WGMMA(bf16, 16, 8, "%8", "%9", "%10")
WGMMA(bf16, 64, 32, "%32", "%33", "%34")
WGMMA(bf16, 128, 64, "%64", "%65", "%66")
WGMMA(bf16, 176, 88, "%88", "%89", "%90")
WGMMA(bf16, 192, 96, "%96", "%97", "%98")
WGMMA(bf16, 256, 128, "%128", "%129", "%130")
WGMMA(f16, 16, 8, "%8", "%9", "%10")
WGMMA(f16, 64, 32, "%32", "%33", "%34")
WGMMA(f16, 128, 64, "%64", "%65", "%66")
WGMMA(f16, 176, 88, "%88", "%89", "%90")
WGMMA(f16, 192, 96, "%96", "%97", "%98")
WGMMA(f16, 256, 128, "%128", "%129", "%130")
#undef WGMMA

/** D (64,64) += A (64,16) B (16,64), bf16 products summed in f32. A is in registers, a warp's are
 *  the A operand of `mma_bf16` for its sixteen rows; the descriptor is of the first row of B, of 64
 *  columns. Without `add` D is the products alone. */
__device__ __forceinline__ void wgmma_rows_bf16(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                                bool add);
/** The same of f16. */
__device__ __forceinline__ void wgmma_rows_f16(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                               bool add);
#define WGMMA_ROWS(type)                                                                           \
  __device__ __forceinline__ void wgmma_rows_##type(float (&d)[32], const uint32_t (&a)[4],        \
                                                    uint64_t b, bool add) {                        \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"                                        \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." #type "." #type " {" PLACES_32      \
                 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 1; }\n"                                      \
                 : SUMS_32                                                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));             \
  }
WGMMA_ROWS(bf16)
WGMMA_ROWS(f16)
#undef WGMMA_ROWS
#undef SUMS_128
#undef SUMS_96
#undef SUMS_88
#undef SUMS_64
#undef SUMS_32
#undef SUMS_8
#undef SUMS16
#undef SUMS4
#undef PLACES_128
#undef PLACES_96
#undef PLACES_88
#undef PLACES_64
#undef PLACES_32
#undef PLACES_8

/** At most N registers a thread from here on, for the four warps of a warpgroup. */
template <int N> __device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
#endif

/** A barrier of `threads` of the block, `id` 1 to 15. */
__device__ __forceinline__ void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/** Arrives there and goes on: what this thread wrote is there for those who wait. */
__device__ __forceinline__ void bar_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

} // namespace ptx
#else
#include "simt_ptx.h"
#endif

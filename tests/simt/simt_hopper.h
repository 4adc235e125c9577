/** Hopper's part of the emulator: barrier objects, tiles by tensor map, stores into other blocks of
 *  a cluster, products of warpgroups. Part of `simt.cpp`. What is asynchronous on the card happens
 *  as late as it may: a tile, or what another block stored, lands when its barrier is waited for, a
 *  product is computed and a store read when they are. */
#pragma once

namespace simt {
namespace {

/// What `encode` in `src/device/simt.rs` writes.
struct Map {
  uint64_t address, columns, rows, stride, tile_columns, tile_rows, swizzle;

  explicit Map(const uint64_t *w)
      : address(w[0]), columns(w[1]), rows(w[2]), stride(w[3]), tile_columns(w[4]), tile_rows(w[5]),
        swizzle(w[6]) {}
  size_t row_bytes() const { return tile_columns * 2; }
  size_t bytes() const { return row_bytes() * tile_rows; }
};

/// Where byte `at` of a row-major tile is: 16-byte units permuted by address bits 7 and up.
uintptr_t swizzled(uintptr_t at, uint64_t swizzle) {
  if (swizzle == 128) return at ^ (at >> 7 & 7) << 4;
  if (swizzle == 64) return at ^ (at >> 7 & 3) << 4;
  return at;
}

Arrivals &arrivals(const uint64_t *barrier, void *pc) {
  auto at = cluster->arrivals.find(barrier);
  if (at == cluster->arrivals.end())
    fault_at(pc, "mbarrier at %p was not initialised", (const void *)barrier);
  return at->second;
}

/// Ends the phase if all have arrived and all bytes have landed.
void advance(const uint64_t *barrier, Arrivals &a) {
  if (a.pending != 0 || a.bytes != 0) return;
  a.phase++;
  a.pending = a.count;
  a.released = a.arrived;
  for (uint32_t i = 0; i < cluster->threads; i++) {
    Fiber &f = *cluster->fibers[i];
    if (f.state == State::ARRIVALS && f.barrier == barrier && (a.phase & 1) != f.parity)
      f.state = State::READY;
  }
}

void arrive(uint64_t *barrier, uint32_t bytes, void *pc) {
  Fiber &f = *self();
  Arrivals &a = arrivals(barrier, pc);
  if (a.pending == 0)
    fault_at(pc, "mbarrier: more arrivals in a phase than the %u expected", a.count);
  join(a.arrived, f.clock);
  f.clock[f.id]++;
  a.bytes += bytes;
  a.pending--;
  advance(barrier, a);
}

/// Puts the tile where it belongs, zeros for what is outside the matrix; how many bytes it is.
size_t land(const Tile &t) {
  auto at = shared_byte(t.to);
  if (!t.map) {
    memcpy(t.to, &t.value, 4);
    for (size_t i = at; i < at + 4; i++) cluster->writes[i] = t.own, cluster->reads[i] = 0;
    return 4;
  }
  Map map(t.map);
  for (uint64_t r = 0; r < map.tile_rows; r++)
    for (uint64_t c = 0; c < map.tile_columns; c++) {
      int64_t row = t.y + (int64_t)r, column = t.x + (int64_t)c;
      bool inside =
          row >= 0 && column >= 0 && row < (int64_t)map.rows && column < (int64_t)map.columns;
      uint16_t cell = 0;
      if (inside) memcpy(&cell, (const void *)(map.address + row * map.stride + column * 2), 2);
      auto to = swizzled(shared_byte(t.to) + r * map.row_bytes() + c * 2, map.swizzle);
      memcpy(cluster->shared + to, &cell, 2);
    }
  for (size_t i = at; i < at + map.bytes(); i++)
    cluster->writes[i] = t.own | ENGINE, cluster->reads[i] = 0;
  return map.bytes();
}

/// What is on its way to `barrier` arrives, as much as its phase waits for.
void land_all(const uint64_t *barrier) {
  auto &tiles = cluster->tiles;
  const uint32_t phase = cluster->arrivals.at(barrier).phase;
  for (size_t i = 0; i < tiles.size() && cluster->arrivals.at(barrier).phase == phase;) {
    if (tiles[i].barrier != barrier) {
      i++;
      continue;
    }
    Tile t = std::move(tiles[i]);
    tiles.erase(tiles.begin() + (long)i);
    Arrivals &a = cluster->arrivals.at(barrier);
    a.bytes -= (int64_t)land(t);
    join(a.arrived, t.clock);
    advance(barrier, a);
  }
}

/// The copy engine and tensor cores see a thread's own stores only after a fence: by the thread
/// that stored, or by the reader once it knew of the store.
void needs_fence([[maybe_unused]] uintptr_t at, [[maybe_unused]] size_t bytes,
                 [[maybe_unused]] void *pc) {
#ifndef SIMT_UNCHECKED
  Fiber &f = *self();
  for (size_t i = at; i < at + bytes; i++) {
    Epoch e = cluster->writes[i];
    if (e == 0 || e == IN_FLIGHT || (e & ENGINE)) continue;
    if (when(e) > cluster->fibers[who(e)]->fenced[who(e)] && when(e) > f.fenced[who(e)])
      fault_at(pc, "shared byte %zu was stored by thread %u without fence_async_shared after it",
               i % cluster->stride, cluster->fibers[who(e)]->index.x);
  }
#endif
}

/// The box of a tile must be one that a tensor map can have.
void check_tile(const Map &map, const void *shared, void *pc) {
  auto at = (uintptr_t)shared - (uintptr_t)own().shared;
  if (map.address == 0) fault_at(pc, "tensor map that the geometry does not have");
  if (at % 128) fault_at(pc, "tile at shared byte %zu: not a multiple of 128", (size_t)at);
  if (map.stride % 16 || map.address % 16) fault_at(pc, "tensor map is not aligned to 16 bytes");
  if (map.swizzle && map.row_bytes() > map.swizzle)
    fault_at(pc, "tile rows of %zu bytes with a swizzle of %zu", map.row_bytes(),
             (size_t)map.swizzle);
  if (map.row_bytes() % 16 || map.tile_rows > 256 || map.tile_columns > 256)
    fault_at(pc, "tile of %zu by %zu", (size_t)map.tile_rows, (size_t)map.tile_columns);
}

/// Where `p`, in the running block's shared memory, is in that of block `rank`.
template <typename T> T *in_block(T *p, uint32_t rank, void *pc) {
  auto &blocks = cluster->blocks;
  if (rank >= blocks.size()) fault_at(pc, "block %u of a cluster of %zu", rank, blocks.size());
  if (!self()->knows_cluster) fault_at(pc, "block %u of the cluster may not have begun", rank);
  if (blocks[rank].live == 0) fault_at(pc, "block %u of the cluster has ended", rank);
  auto at = (uintptr_t)p - (uintptr_t)own().shared;
  if (at + sizeof(T) > cluster->launch->shared_bytes)
    fault_at(pc, "%zu bytes beyond the end of shared memory", sizeof(T));
  return (T *)(at + (uintptr_t)blocks[rank].shared);
}

/// Something for the shared memory of a block, at whose barrier it will arrive.
void begin_tile(Tile tile, size_t bytes, void *pc) {
  Fiber *f = self();
  cluster_access(tile.to, bytes, true, pc);
  cluster_access(tile.barrier, 8, false, pc);
  mark_in_flight(tile.to, bytes);
  arrivals(tile.barrier, pc);
  // Those that wait already need somebody to let it land.
  for (uint32_t i = 0; i < cluster->threads; i++) {
    Fiber &other = *cluster->fibers[i];
    if (other.state == State::ARRIVALS && other.barrier == tile.barrier) other.state = State::READY;
  }
  tile.own = epoch(f->id, f->clock[f->id]);
  tile.clock = f->clock;
  cluster->tiles.push_back(std::move(tile));
  f->clock[f->id]++;
}

void check_matrix(const Map &map, int x, int y, bool is_write, void *pc) {
  int64_t first = std::max(x, 0),
          last = std::min<int64_t>(x + (int64_t)map.tile_columns, (int64_t)map.columns);
  for (int64_t r = std::max(y, 0);
       r < std::min<int64_t>(y + (int64_t)map.tile_rows, (int64_t)map.rows); r++)
    if (first < last)
      access((const void *)(map.address + r * map.stride + first * 2), (size_t)(last - first) * 2,
             is_write, pc);
}

void together(const char *name, void *pc) {
  Lane own = {nullptr, nullptr, 0, 32};
  meet(
      name, 0xffffffffu, [](Lane *const[32], uint32_t) {}, &own, pc);
}

float element(const uint8_t *p, bool is_bf16) {
  uint16_t bits;
  memcpy(&bits, p, 2);
  return is_bf16 ? __uint_as_float((uint32_t)bits << 16) : ptx::f16_to_float(bits);
}

/// Byte of element (row, k) of a K-major operand with a 128-byte swizzle.
uintptr_t operand(uint64_t descriptor, int row, int k) {
  uint64_t start = (descriptor & 0x3fff) << 4, group = (descriptor >> 32 & 0x3fff) << 4;
  return swizzled(start + (uint64_t)(row / 8) * group + (uint64_t)(row % 8) * 128 + (uint64_t)k * 2,
                  128);
}

/// `columns` cells of rows from .. + rows.
void check_operand(uint64_t descriptor, int from, int rows, int columns, void *pc) {
  if (descriptor >> 62 != 1) fault_at(pc, "wgmma operand without the 128-byte swizzle");
  for (int r = from; r < from + rows; r++)
    for (int k = 0; k < columns; k += 8) {
      auto at = operand(descriptor, r, k);
      access(own().shared + at, 16, false, pc);
      needs_fence(shared_byte(own().shared) + at, 16, pc);
    }
}

/// This thread's cells of D (64,n) += A (64,16) B (n,16)^T, or B (16,n) if A came in registers.
void compute(const Product &p) {
  int warp = (int)(self()->index.x / 32 % 4), g = (int)(self()->id % 32) / 4,
      t = (int)(self()->id % 4) * 2;
  float a[2][16];
  for (int k = 0; k < 16; k++)
    for (int half = 0; half < 2; half++)
      a[half][k] =
          p.has_rows
              ? p.rows[half][k]
              : element(own().shared + operand(p.a, 16 * warp + g + 8 * half, k), p.is_bf16);
  if (!p.add) std::fill_n(p.d, p.n / 2, 0.0f);
  for (int j = 0; j < p.n; j += 8)
    for (int i = 0; i < 2; i++) {
      float low = 0, high = 0;
      for (int k = 0; k < 16; k++) {
        int column = j + t + i;
        auto at = p.has_rows ? operand(p.b, k, column) : operand(p.b, column, k);
        float b = element(own().shared + at, p.is_bf16);
        low += a[0][k] * b, high += a[1][k] * b;
      }
      p.d[j / 2 + i] += low, p.d[j / 2 + 2 + i] += high;
    }
}

} // namespace
} // namespace simt

namespace ptx {

using namespace simt;

void stmatrix_x4(void *row, const uint32_t (&r)[4]) {
  aligned_access(row, 16, true, SITE);
  struct Arguments {
    void *row;
    const uint32_t *r;
  } arguments = {row, r};
  Lane own = {&arguments, nullptr, 0, 32};
  meet(
      "stmatrix", 0xffffffffu,
      [](Lane *const lanes[32], uint32_t) {
        auto of = [&](int lane) { return static_cast<const Arguments *>(lanes[lane]->in); };
        for (int l = 0; l < 32; l++)
          for (int t = 0; t < 4; t++)
            memcpy((char *)of(l)->row + t * 4, &of(l % 8 * 4 + t)->r[l / 8], 4);
      },
      &own, SITE);
}

void mbarrier_init(uint64_t *barrier, uint32_t count) {
  aligned_access(barrier, 8, true, SITE);
  if ((uintptr_t)barrier % 8) fault_at(SITE, "mbarrier at %p is misaligned", (void *)barrier);
  Arrivals a;
  a.count = a.pending = count;
  a.arrived.assign(cluster->threads, 0), a.released.assign(cluster->threads, 0);
  cluster->arrivals[barrier] = a;
}

void mbarrier_arrive(uint64_t *barrier) {
  access(barrier, 8, false, SITE);
  arrive(barrier, 0, SITE);
}

void mbarrier_arrive_expect_tx(uint64_t *barrier, uint32_t bytes) {
  access(barrier, 8, false, SITE);
  arrive(barrier, bytes, SITE);
}

void mbarrier_wait(uint64_t *barrier, uint32_t parity) {
  access(barrier, 8, false, SITE);
  if (parity > 1) fault_at(SITE, "mbarrier parity %u", parity);
  Fiber *f = self();
  // The copies were begun for somebody who waits: this is the latest they may land.
  while ((arrivals(barrier, SITE).phase & 1) == parity) {
    land_all(barrier);
    if ((arrivals(barrier, SITE).phase & 1) != parity) break;
    f->barrier = barrier, f->parity = parity;
    yield_as(State::ARRIVALS, "an mbarrier", SITE);
  }
  join(f->clock, arrivals(barrier, SITE).released);
}

void fence_barrier_init() {
  Fiber *f = self();
  f->known = f->clock;
  f->clock[f->id]++;
}

void cluster_arrive() {
  together("cluster_arrive", SITE);
  Fiber *f = self();
  if (f->met > cluster->phase) fault_at(SITE, "cluster_arrive again before all have arrived");
  if (!f->known.empty()) join(cluster->arrived, f->known);
  f->met = cluster->phase + 1;
  cluster->at_barrier++;
  meet_cluster();
}

void cluster_wait() {
  together("cluster_wait", SITE);
  Fiber *f = self();
  if (f->met == 0) fault_at(SITE, "cluster_wait without cluster_arrive before it");
  while (cluster->phase < f->met) yield_as(State::CLUSTER, "its cluster", SITE);
  join(f->clock, cluster->released);
  f->knows_cluster = true;
}

void store_in(uint32_t rank, float *to, float x, uint64_t *barrier) {
  if ((uintptr_t)to % 4) fault_at(SITE, "store of 4 bytes at %p is misaligned", (void *)to);
  if (cluster->blocks.size() == 1) fault_at(SITE, "store_in by a block without a cluster");
  begin_tile({in_block(to, rank, SITE), nullptr, in_block(barrier, rank, SITE), 0, 0, x, 0, {}}, 4,
        SITE);
}

void fence_async_shared() {
  Fiber *f = self();
  f->fenced = f->clock;
  f->clock[f->id]++;
}

void tma_load_2d(void *to, const TensorMap *map, uint64_t *barrier, int x, int y) {
  auto *words = reinterpret_cast<const uint64_t *>(map);
  Map m(words);
  check_tile(m, to, SITE);
  check_matrix(m, x, y, false, SITE);
  if (shared_byte(to) - shared_byte(own().shared) + m.bytes() > cluster->launch->shared_bytes)
    fault_at(SITE, "tile of %zu bytes beyond the end of shared memory", m.bytes());
  begin_tile({to, words, barrier, x, y, 0, 0, {}}, m.bytes(), SITE);
}

void tma_store_2d(const TensorMap *map, const void *from, int x, int y) {
  Fiber *f = self();
  auto *words = reinterpret_cast<const uint64_t *>(map);
  Map m(words);
  check_tile(m, from, SITE);
  check_matrix(m, x, y, true, SITE);
  access(from, m.bytes(), false, SITE);
  needs_fence(shared_byte(from), m.bytes(), SITE);
  f->site = SITE;
  if (f->stores.empty()) f->stores.emplace_back();
  f->stores.back().push_back({words, from, x, y});
}

void tma_store_commit() { self()->stores.emplace_back(); }

void tma_store_wait(int groups) {
  auto &stores = self()->stores;
  while (!stores.empty() && (int)stores.size() - 1 > groups) {
    for (auto &s : stores.front()) {
      Map m(s.map);
      access(s.from, m.bytes(), false, SITE);
      auto at = shared_byte(s.from);
      for (int64_t r = 0; r < (int64_t)m.tile_rows; r++)
        for (int64_t c = 0; c < (int64_t)m.tile_columns; c++) {
          int64_t row = s.y + r, column = s.x + c;
          if (row < 0 || column < 0 || row >= (int64_t)m.rows || column >= (int64_t)m.columns)
            continue;
          auto cell = swizzled(at + (size_t)r * m.row_bytes() + (size_t)c * 2, m.swizzle);
          memcpy((void *)(m.address + row * m.stride + column * 2), cluster->shared + cell, 2);
        }
    }
    stores.erase(stores.begin());
  }
}

uint64_t shared_descriptor_128b(const void *p) {
  auto at = (uint64_t)((uintptr_t)p - (uintptr_t)own().shared);
  if (at % 16) fault_at(SITE, "wgmma operand at shared byte %zu is misaligned", (size_t)at);
  return (at & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

static void in_warpgroup(void *pc) {
  const uint32_t threads = cluster->launch->threads;
  if (self()->index.x / 128 * 128 + 128 > threads)
    fault_at(pc, "wgmma by the last %u threads of a block: no warpgroup", threads % 128);
}

void wgmma(float *d, int n, uint64_t a, uint64_t b, bool is_bf16, bool add) {
  Fiber *f = self();
  in_warpgroup(SITE);
  struct Operands {
    uint64_t a, b;
  } operands = {a, b};
  Lane own = {&operands, nullptr, 0, 32};
  meet(
      "wgmma", 0xffffffffu,
      [](Lane *const lanes[32], uint32_t) {
        for (int i = 1; i < 32; i++)
          if (memcmp(lanes[i]->in, lanes[0]->in, sizeof(Operands)))
            fault("wgmma: lane %d has other operands than lane 0", i);
      },
      &own, SITE);
  if (f->products.empty()) f->products.emplace_back();
  f->products.back().push_back({d, n, a, b, is_bf16, add, false, {}});
}

void wgmma_rows(float *d, const uint32_t *a, uint64_t b, bool is_bf16, bool add) {
  Fiber *f = self();
  in_warpgroup(SITE);
  Product product = {d, 64, 0, b, is_bf16, add, true, {}};
  struct Operands {
    uint64_t b;
    const uint32_t *a;
    bool is_bf16;
  } operands = {b, a, is_bf16};
  Lane own = {&operands, &product, 0, 32};
  meet(
      "wgmma", 0xffffffffu,
      [](Lane *const lanes[32], uint32_t) {
        auto of = [&](int lane) { return static_cast<const Operands *>(lanes[lane]->in); };
        for (int i = 0; i < 32; i++) {
          if (of(i)->b != of(0)->b) fault("wgmma: lane %d has another operand than lane 0", i);
          for (int k = 0; k < 16; k++)
            for (int half = 0; half < 2; half++) {
              // As of `mma`: two cells a register, of four lanes.
              uint32_t pair = of(i / 4 * 4 + k % 8 / 2)->a[k / 8 * 2 + half];
              static_cast<Product *>(lanes[i]->out)->rows[half][k] =
                  of(i)->is_bf16 ? element<true>(pair, k % 2) : element<false>(pair, k % 2);
            }
        }
      },
      &own, SITE);
  if (f->products.empty()) f->products.emplace_back();
  f->products.back().push_back(product);
}

void wgmma_fence() { together("wgmma_fence", SITE); }

void wgmma_commit() {
  together("wgmma_commit", SITE);
  self()->products.emplace_back();
}

void wgmma_wait(int groups) {
  void *pc = SITE;
  Fiber *f = self();
  auto &products = f->products;
  while (!products.empty() && (int)products.size() - 1 > groups) {
    for (auto &p : products.front()) {
      // One lane's reads stand for its warp's: rows of A are the warp's own, B is everybody's.
      if (f->id % 32 == 0) {
        if (!p.has_rows) check_operand(p.a, (int)(f->index.x / 32 % 4) * 16, 16, 16, pc);
        check_operand(p.b, 0, p.has_rows ? 16 : p.n, p.has_rows ? p.n : 16, pc);
      }
      compute(p);
    }
    products.erase(products.begin());
  }
  Lane own = {nullptr, nullptr, 0, 32};
  meet(
      "wgmma_wait", 0xffffffffu,
      [](Lane *const[32], uint32_t) {
        std::vector<Fiber *> warp;
        for (uint32_t i = 0; i < 32; i++)
          warp.push_back(cluster->fibers[self()->id / 32 * 32 + i].get());
        synchronise(warp);
      },
      &own, pc);
}

} // namespace ptx

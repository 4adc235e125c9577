/*  The emulator: blocks over host threads, each CUDA thread a fiber.
 *
 *  A fiber runs until it waits - for a barrier, for its warp, for a copy - and then the next one
 *  that can run does. The blocks of a cluster share a host thread. Kernels are compiled with
 *  `-fsanitize=thread`, whose calls land here instead of in a sanitizer: every access of a kernel's
 *  code is looked at. Shared memory has a shadow, two entries a byte: who wrote it last and who
 *  read it last, as (thread, time). Each thread knows how far it has synchronised with every other
 *  (arXiv:1001.1741, FastTrack); an access that is not ordered after a conflicting one is a race.
 *  Barriers and `__syncwarp` order memory; shuffles and tensor-core operations do not.
 *
 *  On a fault the block is abandoned: kernel frames own nothing. */
#include "simt_memory.h"

namespace simt {

// Threads that wait for each other.

/// A compiler may have several copies of one barrier.
static bool is_same_line(void *a, void *b) {
  static std::mutex lock;
  static std::map<std::pair<void *, void *>, bool> known;
  std::lock_guard<std::mutex> hold(lock);
  auto [at, is_new] = known.try_emplace({a, b}, false);
  if (is_new) at->second = place(a) == place(b);
  return at->second;
}

int barrier(int how, int predicate) {
  Fiber *f = self();
  Block &b = own();
  const uint32_t threads = cluster->launch->threads;
  f->predicate = predicate;
  if (b.at_barrier == 0) b.how = how, b.barrier_site = SITE;
  if (b.how != how) fault_at(SITE, "two kinds of __syncthreads at once");
  if (b.barrier_site != SITE && !is_same_line(b.barrier_site, SITE))
    fault_at(SITE, "divergent __syncthreads: others wait at %s", place(b.barrier_site).c_str());
  b.at_barrier++;
  f->state = State::BARRIER;
  if (b.at_barrier < threads) {
    yield_as(State::BARRIER, "__syncthreads", SITE);
    return f->result;
  }
  int any = 0, all = 1, count = 0;
  std::vector<Fiber *> everybody;
  for (uint32_t i = 0; i < threads; i++) {
    Fiber *other = cluster->fibers[f->rank * threads + i].get();
    any |= other->predicate, all &= other->predicate, count += other->predicate;
    everybody.push_back(other);
  }
  for (Fiber *other : everybody) {
    other->result = how == 1 ? any : how == 2 ? all : count;
    other->state = State::READY;
  }
  if (cluster->blocks.size() > 1) {
    synchronise(everybody);
  } else if (has_memory()) {
    // Everybody's own time is the latest anybody knows of it.
    std::vector<uint32_t> times(threads);
    for (uint32_t i = 0; i < threads; i++) times[i] = everybody[i]->clock[i];
    for (uint32_t i = 0; i < threads; i++) {
      everybody[i]->clock = times;
      everybody[i]->clock[i]++;
    }
  }
  b.at_barrier = 0;
  return f->result;
}

/// Lets those who wait at the cluster's barrier go on once all have arrived that have not returned.
static void meet_cluster() {
  Cluster &c = *cluster;
  if (c.at_barrier < c.live) return;
  c.phase++, c.at_barrier = 0;
  c.released = c.arrived;
  for (uint32_t i = 0; i < c.threads; i++)
    if (c.fibers[i]->state == State::CLUSTER) c.fibers[i]->state = State::READY;
}

void named_barrier(int id, int threads, bool waits) {
  Fiber *f = self();
  auto &n = own().named[id & 15];
  if (n.arrived == 0) n.expected = threads, n.released.assign(cluster->threads, 0);
  if (n.expected != threads)
    fault_at(SITE, "barrier %d for %d threads, and for %d by others", id, threads, n.expected);
  n.arrived++;
  join(n.released, f->clock);
  f->clock[f->id]++;
  if (waits) n.waiting.push_back(f);
  if (n.arrived < n.expected) {
    if (waits) yield_as(State::NAMED, "a named barrier", SITE);
    return;
  }
  for (Fiber *other : n.waiting) {
    join(other->clock, n.released);
    other->state = State::READY;
  }
  n.waiting.clear(), n.arrived = 0;
}

static void meet(const char *name, uint32_t mask, Operation run, Lane *own, void *site) {
  Fiber *f = self();
  uint32_t lane = f->id % 32;
  if (!(mask >> lane & 1))
    fault_at(site, "%s with mask %08x by lane %u, which is not in it", name, mask, lane);
  f->site = site;
  auto &meetings = cluster->meetings[f->id / 32];
  auto m = std::find_if(meetings.begin(), meetings.end(),
                        [&](const Meeting &m) { return m.mask & mask; });
  if (m == meetings.end()) {
    meetings.push_back({name, mask, 0, {}});
    m = meetings.end() - 1;
  }
  if (m->mask != mask || strcmp(m->name, name) != 0)
    fault_at(site, "%s with mask %08x while other lanes are at %s with mask %08x", name, mask,
             m->name, m->mask);
  m->lanes[lane] = own;
  m->arrived |= 1u << lane;
  if (m->arrived != mask) return yield_as(State::WARP, name, site);
  Meeting full = *m;
  meetings.erase(m);
  cluster->in_operation = true;
  run(full.lanes, mask);
  cluster->in_operation = false;
  for (uint32_t i = 0; i < 32; i++)
    if (mask >> i & 1) cluster->fibers[f->id / 32 * 32 + i]->state = State::READY;
}

void collective(const char *name, uint32_t mask, Operation run, Lane *own) {
  meet(name, mask, run, own, SITE);
}

void sync_warp(uint32_t mask) {
  Lane own = {nullptr, nullptr, 0, 32};
  meet(
      "__syncwarp", mask,
      [](Lane *const[32], uint32_t mask) {
        std::vector<Fiber *> fibers;
        for (uint32_t i = 0; i < 32; i++)
          if (mask >> i & 1) fibers.push_back(cluster->fibers[self()->id / 32 * 32 + i].get());
        synchronise(fibers);
      },
      &own, SITE);
}

// Running a block.

namespace {

/// The running block ends: what is stored to it now would be in another's memory.
void nothing_in_flight(const Cluster &c) {
  for (auto &t : c.tiles)
    if (!t.map && (shared_byte(t.to) - shared_byte(own().shared)) < c.stride)
      fault_at(self()->site, "the block ends with a store to it in flight: nobody has waited");
}

void fiber_main() {
  for (;;) {
    Fiber *f = self();
    Launch &launch = *cluster->launch;
    launch.entry(launch.params, launch.maps);
    f = self();
    for (auto &group : f->stores)
      if (!group.empty()) fault_at(f->site, "returns with stores in flight from shared memory");
    for (auto &group : f->products)
      if (!group.empty()) fault_at(f->site, "returns with products in flight");
    f->state = State::DONE;
    cluster->live--, own().live--;
    if (f->met > cluster->phase) cluster->at_barrier--;
    if (own().live == 0) nothing_in_flight(*cluster);
    if (cluster->live > 0) meet_cluster();
    if (_setjmp(f->resume) == 0) _longjmp(cluster->scheduler, 1);
  }
}

void start(Fiber &f) {
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = (void *)f.stack_begin;
  f.context.uc_stack.ss_size = f.stack_end - f.stack_begin;
  f.context.uc_link = nullptr;
  makecontext(&f.context, fiber_main, 0);
  f.is_started = true;
  setcontext(&f.context);
}

Fiber *new_fiber() {
  auto *f = new Fiber();
  auto *memory = (uint8_t *)mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  mprotect(memory, PAGE, PROT_NONE);
  f->stack_begin = (uintptr_t)memory + PAGE, f->stack_end = f->stack_begin + STACK;
  return f;
}

void prepare(Cluster &c, Launch &launch, uint3 first) {
  c.launch = &launch;
  c.threads = c.live = launch.threads * launch.cluster;
  c.at_barrier = c.phase = 0;
  c.arrived.assign(c.threads, 0), c.released.assign(c.threads, 0);
  c.in_operation = false;
  c.arrivals.clear();
  c.tiles.clear();
  for (auto &hit : c.hits) hit = {};
  c.readers.clear();
  c.stride = (launch.shared_bytes + (64 << 10) + 4 * GUARD + 1023) / 1024 * 1024;
  const size_t room = GUARD + c.stride * launch.cluster;
  if (c.room_bytes < room) {
    free(c.room);
    c.room_bytes = (room + 1023) / 1024 * 1024;
    c.room = (uint8_t *)aligned_alloc(1024, c.room_bytes);
    c.shared = c.room + GUARD;
  }
  if (launch.shared_bytes > 0) memset(c.room, 0xff, c.room_bytes);
  c.blocks.assign(launch.cluster, {});
  for (uint32_t rank = 0; rank < launch.cluster; rank++)
    c.blocks[rank].live = launch.threads, c.blocks[rank].shared = c.shared + rank * c.stride;
  size_t bytes = c.room_bytes - GUARD;
  c.writes.assign(bytes, 0), c.reads.assign(bytes, 0), c.stores.assign(bytes, 0);
  c.meetings.assign((c.threads + 31) / 32, {});
  while (c.fibers.size() < c.threads) c.fibers.emplace_back(new_fiber());
  for (uint32_t i = 0; i < c.threads; i++) {
    Fiber &f = *c.fibers[i];
    f.id = i, f.rank = i / launch.threads;
    f.index = {i % launch.threads, 0, 0};
    f.block_index = {first.x + f.rank, first.y, first.z};
    f.block_size = {launch.threads, 1, 1}, f.grid_size = launch.grid;
    f.state = State::READY;
    f.has_waited = f.knows_cluster = false;
    f.known.clear();
    f.met = 0;
    f.clock.assign(c.threads, 0);
    f.clock[i] = 1;
    f.copies.clear();
    f.stores.clear();
    f.products.clear();
    f.fenced.assign(c.threads, 0);
  }
}

/// Who waits where, when nobody can go on.
std::string census(Cluster &c) {
  std::map<std::string, std::pair<uint32_t, uint32_t>> groups;
  uint32_t done = 0;
  for (uint32_t i = 0; i < c.threads; i++) {
    Fiber &f = *c.fibers[i];
    if (f.state == State::DONE) {
      done++;
      continue;
    }
    auto [at, is_new] =
        groups.try_emplace(std::string(f.waits_for) + " at " + place(f.site), 0u, f.index.x);
    at->second.first++;
  }
  std::string text;
  for (auto &[where, count] : groups)
    text += (text.empty() ? "" : "; ") + std::to_string(count.first) + " threads (first " +
            std::to_string(count.second) + ") wait for " + where;
  if (done) text += "; " + std::to_string(done) + " have returned";
  return text;
}

/// Clusters with their stacks, for whoever needs one next.
struct Spare {
  std::mutex lock;
  std::vector<std::unique_ptr<Cluster>> clusters;

  std::unique_ptr<Cluster> take() {
    std::lock_guard<std::mutex> hold(lock);
    if (clusters.empty()) return std::make_unique<Cluster>();
    auto cluster = std::move(clusters.back());
    clusters.pop_back();
    // A fiber never changes its thread: what its frames know of `now` would be another's.
    for (auto &f : cluster->fibers) f->is_started = false;
    return cluster;
  }
  void give(std::unique_ptr<Cluster> cluster) {
    std::lock_guard<std::mutex> hold(lock);
    clusters.push_back(std::move(cluster));
  }
} spare;

/// Leaves every fiber where it stands, to start anew: kernel frames own nothing.
bool abandon(Cluster &c) {
  for (auto &f : c.fibers) f->is_started = false;
  now = nullptr;
  return false;
}

/// True if every thread returned; else the launch has failed.
bool run_cluster(Cluster &c, Launch &launch, uint3 first) {
  cluster = &c;
  prepare(c, launch, first);
  volatile uint32_t i = 0, idle = 0;
  int came = _setjmp(c.scheduler);
  if (came == 2) return abandon(c);
  now = nullptr;
  while (c.live > 0) {
    if (idle == c.threads) {
      char text[96];
      snprintf(text, sizeof text, "block (%u, %u, %u) cannot go on: ", first.x, first.y, first.z);
      fail(launch, text + census(c));
      return abandon(c);
    }
    Fiber &f = *c.fibers[i];
    i = i + 1 == c.threads ? 0 : i + 1;
    if (f.state != State::READY) {
      idle = idle + 1;
      continue;
    }
    idle = 0;
    now = &f;
    if (f.is_started) _longjmp(f.resume, 1);
    start(f);
  }
  return true;
}

} // namespace
} // namespace simt

#include "simt_ampere.h"
#include "simt_hopper.h"

// What the host calls.

extern "C" {

void simt_bind(bool (*find)(uintptr_t, uintptr_t *, uintptr_t *)) { simt::find_buffer = find; }

/// Runs a grid; 0, or 1 and a message.
int simt_launch(const char *name, void (*entry)(const void *, const void *), const void *params,
                size_t params_bytes, const void *maps, const uint32_t *grid, uint32_t threads,
                uint32_t shared_bytes, uint32_t cluster, uint32_t workers, char *message,
                size_t message_bytes) {
  simt::Launch launch;
  launch.name = name, launch.entry = entry, launch.params = params, launch.maps = maps;
  launch.params_bytes = params_bytes;
  launch.grid = {grid[0], grid[1], grid[2]};
  launch.threads = threads, launch.shared_bytes = shared_bytes, launch.cluster = cluster;
  if (cluster == 0 || grid[0] % cluster || (cluster > 1 && threads % 32) ||
      threads * cluster > simt::MOST_THREADS) {
    snprintf(message, message_bytes, "%s: %u blocks of %u threads in clusters of %u", name, grid[0],
             threads, cluster);
    return 1;
  }
  const uint32_t across = grid[0] / cluster;
  uint64_t clusters = (uint64_t)across * grid[1] * grid[2];
  auto work = [&] {
    auto own = simt::spare.take();
    for (uint64_t i; !launch.failed && (i = launch.next++) < clusters;) {
      uint3 first = {(unsigned)(i % across) * cluster, (unsigned)(i / across % grid[1]),
                     (unsigned)(i / across / grid[1])};
      if (!simt::run_cluster(*own, launch, first)) break;
    }
    simt::spare.give(std::move(own));
  };
  std::vector<std::thread> others;
  for (uint32_t i = 1; i < workers && i < clusters; i++) others.emplace_back(work);
  work();
  for (auto &t : others) t.join();
  snprintf(message, message_bytes, "%s", launch.message.c_str());
  return launch.failed ? 1 : 0;
}

// What the compiler calls for every access.

#define READS(n)                                                                                   \
  void __tsan_read##n(void *p) { simt::aligned_access(p, n, false, SITE); }                        \
  void __tsan_write##n(void *p) { simt::aligned_access(p, n, true, SITE); }
READS(1) READS(2) READS(4) READS(8) READS(16)
#define UNALIGNED(n)                                                                               \
  void __tsan_unaligned_read##n(void *p) { simt::access(p, n, false, SITE); }                      \
  void __tsan_unaligned_write##n(void *p) { simt::access(p, n, true, SITE); }
UNALIGNED(2) UNALIGNED(4) UNALIGNED(8) UNALIGNED(16)
void __tsan_read_range(void *p, size_t n) { simt::access(p, n, false, SITE); }
void __tsan_write_range(void *p, size_t n) { simt::access(p, n, true, SITE); }
void __tsan_volatile_read4(void *p) { simt::aligned_access(p, 4, false, SITE); }
void __tsan_volatile_write4(void *p) { simt::aligned_access(p, 4, true, SITE); }
void __tsan_vptr_update(void *, void *) {}
void __tsan_vptr_read(void *) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_init() {}
#define ATOMIC(bits)                                                                               \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *p, int) {               \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_strong(                                               \
      volatile uint##bits##_t *p, uint##bits##_t *expected, uint##bits##_t x, int, int) {          \
    return __atomic_compare_exchange_n(p, expected, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }
ATOMIC(32) ATOMIC(64)
}

/*  The emulator: blocks over host threads, each CUDA thread a fiber.
 *
 *  A fiber runs until it waits - for a barrier, for its warp, for a copy - and then the next one
 *  that can run does. Kernels are compiled with `-fsanitize=thread`, whose calls land here instead
 *  of in a sanitizer: every access of a kernel's code is looked at. Shared memory has a shadow, two
 *  entries a byte: who wrote it last and who read it last, as (thread, time). Each thread knows how
 *  far it has synchronised with every other (arXiv:1001.1741, FastTrack); an access that is not
 *  ordered after a conflicting one is a race. Barriers and `__syncwarp` order memory; shuffles and
 *  tensor-core operations do not.
 *
 *  On a fault the block is abandoned: kernel frames own nothing. */
#include "simt.h"
#include "simt_ptx.h"
#include <algorithm>
#include <atomic>
#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <ucontext.h>
#include <vector>

namespace simt {
namespace {

constexpr size_t STACK = 128 << 10, PAGE = 4096, GUARD = 4096;

/// Who did something, and at which of its own times; 0 is nobody.
using Epoch = uint32_t;
constexpr Epoch MANY = 0xffffffffu;
/// A copy to this byte was begun and nobody has waited for it.
constexpr Epoch IN_FLIGHT = 0xfffffffeu;
/// Written by the copy engine (the asynchronous proxy), not by a thread's own store.
constexpr Epoch ENGINE = 0x80000000u;
Epoch epoch(uint32_t thread, uint32_t time) { return (thread + 1) << 20 | (time & 0xfffffu); }
uint32_t who(Epoch e) { return ((e & ~ENGINE) >> 20) - 1; }
uint32_t when(Epoch e) { return e & 0xfffffu; }

/// Where the device buffer around an address begins and ends; the host keeps the list.
bool (*find_buffer)(uintptr_t at, uintptr_t *begin, uintptr_t *end) = nullptr;

struct Copy {
  void *to;
  const void *from;
  bool valid;
};

/// A tile on its way into shared memory; it lands when its barrier is waited for.
struct Tile {
  void *to;
  const uint64_t *map;
  uint64_t *barrier;
  int x, y;
  uint32_t thread;
  Epoch own;
  std::vector<uint32_t> clock;
};

struct Store {
  const uint64_t *map;
  const void *from;
  int x, y;
};

/// A product of a warpgroup, as one of its threads sees it.
struct Product {
  float *d;
  int n;
  uint64_t a, b;
  bool is_bf16;
};

/// A barrier object in shared memory.
struct Arrivals {
  uint32_t count, pending, phase = 0;
  int64_t bytes = 0;
  std::vector<uint32_t> arrived, released; ///< clocks
};

enum class State { READY, BARRIER, NAMED, WARP, ARRIVALS, DONE };

struct Fiber : Thread {
  uint32_t id = 0;
  State state = State::READY;
  const char *waits_for = "";
  uintptr_t stack_begin = 0, stack_end = 0;
  bool is_started = false;
  ucontext_t context;
  jmp_buf resume;
  int predicate = 0, result = 0;
  void *site = nullptr;
  std::vector<uint32_t> clock;
  std::vector<std::vector<Copy>> copies;
  std::vector<std::vector<Store>> stores;
  std::vector<std::vector<Product>> products;
  std::vector<uint32_t> fenced; ///< clock at the last fence towards the copy engine
  const void *barrier = nullptr;
  uint32_t parity = 0;
};

/// Lanes that wait for each other.
struct Meeting {
  const char *name;
  uint32_t mask, arrived;
  Lane *lanes[32];
};

struct Launch {
  const char *name;
  void (*entry)(const void *, const void *);
  const void *params, *maps;
  size_t params_bytes;
  uint3 grid;
  uint32_t threads, shared_bytes;
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex lock;
  std::string message;
};

} // namespace

thread_local Thread *now = nullptr;

struct Block {
  Launch *launch = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;
  uint32_t threads = 0, live = 0, at_barrier = 0;
  int how = 0;
  std::vector<std::vector<Meeting>> meetings;
  struct Named {
    int expected = 0, arrived = 0;
    std::vector<Fiber *> waiting;
    std::vector<uint32_t> released;
  } named[16];
  uint8_t *room = nullptr;
  size_t room_bytes = 0;
  uint8_t *shared = nullptr;
  std::map<const void *, std::pair<uint8_t *, size_t>> statics;
  std::vector<Epoch> writes, reads;
  std::map<size_t, std::vector<Epoch>> readers;
  jmp_buf scheduler;
  bool in_operation = false; ///< the emulator works for a warp: on every lane's stack
  std::map<const void *, Arrivals> arrivals;
  std::vector<Tile> tiles;
  void *barrier_site = nullptr;
  /// Ranges that were found to be the device's, the last few.
  struct Hit {
    uintptr_t begin = 1, end = 0;
  } hits[8];
  uint32_t next_hit = 0;
};

namespace {

thread_local Block *block __attribute__((tls_model("initial-exec"))) = nullptr;

Fiber *self() { return static_cast<Fiber *>(now); }

std::string place(void *pc) {
  Dl_info info;
  if (!pc || !dladdr(pc, &info)) return "an unknown line";
  char command[1024], line[512] = "";
  auto offset = (uintptr_t)pc - (uintptr_t)info.dli_fbase - 1;
  snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname, offset);
  std::string found;
  if (FILE *pipe = popen(command, "r")) {
    while (fgets(line, sizeof line, pipe)) {
      std::string text(line, strcspn(line, "\n"));
      auto cut = text.find(" (discriminator");
      text = text.substr(0, cut);
      auto slash = text.rfind('/');
      auto name = slash == std::string::npos ? text : text.substr(slash + 1);
      // The innermost line of a kernel; lines of the emulator's own headers say little.
      if (name.rfind("simt", 0) == 0 || text.rfind("??", 0) == 0) continue;
      if (!found.empty()) found += ", from ";
      found += name;
    }
    pclose(pipe);
  }
  return found.empty() ? info.dli_sname ? info.dli_sname : "an unknown line" : found;
}

std::string person(const Fiber &f) {
  char text[160];
  snprintf(text, sizeof text, "block (%u, %u, %u) thread %u", f.block_index.x, f.block_index.y,
           f.block_index.z, f.id);
  return text;
}

[[noreturn]] void give_up(const std::string &what) {
  Launch &launch = *block->launch;
  {
    std::lock_guard<std::mutex> hold(launch.lock);
    if (!launch.failed) launch.message = std::string(launch.name) + ": " + what;
    launch.failed = true;
  }
  now = nullptr;
  _longjmp(block->scheduler, 2);
}

[[noreturn]] void fault_at(void *pc, const char *format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] void fault_at(void *pc, const char *format, ...) {
  char text[512];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  give_up(person(*self()) + ": " + text + " at " + place(pc));
}

/// Lets others run; comes back when this fiber is ready again.
void yield_as(State state, const char *what, void *site) {
  Fiber *f = self();
  f->state = state, f->waits_for = what, f->site = site;
  if (_setjmp(f->resume) == 0) _longjmp(block->scheduler, 1);
}

void join(std::vector<uint32_t> &into, const std::vector<uint32_t> &from) {
  for (size_t i = 0; i < into.size(); i++) into[i] = std::max(into[i], from[i]);
}

bool has_memory() { return block->launch->shared_bytes > 0 || !block->statics.empty(); }

/// All of `fibers` now know what each of them knew.
void synchronise(const std::vector<Fiber *> &fibers) {
  if (!has_memory() || fibers.empty()) return;
  std::vector<uint32_t> all(block->threads, 0);
  for (Fiber *f : fibers) join(all, f->clock);
  for (Fiber *f : fibers) {
    f->clock = all;
    f->clock[f->id]++;
  }
}

// Shared memory.

bool is_before(Epoch e, const Fiber &f) { return when(e) <= f.clock[who(e)]; }

[[noreturn]] void race(const char *mine, Epoch other, const char *theirs, size_t at, void *pc) {
  fault_at(pc,
           "race: %s of shared byte %zu, which thread %u %s without a barrier in between", mine, at,
           who(other), theirs);
}

void shared_access(size_t at, size_t bytes, bool is_write, void *pc) {
  Fiber &f = *self();
  const Epoch own = epoch(f.id, f.clock[f.id]);
  for (size_t i = at; i < at + bytes; i++) {
    Epoch &write = block->writes[i], &read = block->reads[i];
    if (write == own && (is_write ? read == 0 || read == own : read == own)) continue;
    if (write == IN_FLIGHT)
      fault_at(pc, "%s of shared byte %zu, to which a copy is in flight: nobody has waited for it",
               is_write ? "write" : "read", i);
    if (write && write != own && who(write) != f.id && !is_before(write, f))
      race(is_write ? "write" : "read", write, "wrote", i, pc);
    if (!is_write) {
      if (!write)
        fault_at(pc, "read of shared byte %zu, which nobody has written", i);
      if (read == 0 || (read != MANY && (who(read) == f.id || is_before(read, f)))) {
        read = own;
      } else if (read != own) {
        auto &set = block->readers[i];
        if (read != MANY) set.assign(1, read), read = MANY;
        bool known = false;
        for (Epoch &e : set)
          if (who(e) == f.id) e = own, known = true;
        if (!known) set.push_back(own);
      }
      continue;
    }
    if (read == MANY) {
      for (Epoch e : block->readers[i])
        if (who(e) != f.id && !is_before(e, f)) race("write", e, "read", i, pc);
      block->readers.erase(i);
    } else if (read && who(read) != f.id && !is_before(read, f)) {
      race("write", read, "read", i, pc);
    }
    read = 0;
    write = own;
  }
}

const char *verb(bool is_write) { return is_write ? "write" : "read"; }

/// Any access of kernel code: to its stack, to shared memory, or to a buffer of the device.
void access(const void *p, size_t bytes, bool is_write, void *pc) {
  Fiber *f = self();
#ifdef SIMT_UNCHECKED
  return;
#endif
  if (!f || bytes == 0 || block->in_operation) return;
  auto at = (uintptr_t)p;
  if (at >= f->stack_begin && at < f->stack_end) return;
  // threadIdx and its like.
  if (at == (uintptr_t)&now || (at >= (uintptr_t)f && at < (uintptr_t)f + sizeof(Thread))) return;
  Block &b = *block;
  auto room = (uintptr_t)b.room;
  if (at >= room && at < room + b.room_bytes) {
    auto begin = (uintptr_t)b.shared;
    size_t size = b.launch->shared_bytes;
    if (at >= begin && at + bytes <= begin + size) return shared_access(at - begin, bytes, is_write, pc);
    for (auto &[key, entry] : b.statics) {
      auto own = (uintptr_t)entry.first;
      if (at >= own && at + bytes <= own + entry.second)
        return shared_access(at - begin, bytes, is_write, pc);
    }
    fault_at(pc, "%s of %zu bytes at %td of %zu bytes of shared memory: out of bounds", verb(is_write),
             bytes, (ptrdiff_t)(at - begin), size);
  }
  auto params = (uintptr_t)b.launch->params, maps = (uintptr_t)b.launch->maps;
  if (!is_write && at >= params && at + bytes <= params + b.launch->params_bytes) return;
  if (!is_write && at >= maps && at + bytes <= maps + sizeof(uint64_t) * 64) return;
  for (auto &hit : b.hits)
    if (at >= hit.begin && at + bytes <= hit.end) return;
  uintptr_t begin = 0, end = 0;
  if (find_buffer(at, &begin, &end)) {
    if (at + bytes <= end) {
      b.hits[b.next_hit++ % 8] = {begin, end};
      return;
    }
    if (at < end + (1 << 20))
      fault_at(pc, "%s of %zu bytes at %td of a buffer of %zu bytes: out of bounds", verb(is_write), bytes,
               (ptrdiff_t)(at - begin), (size_t)(end - begin));
  }
  // Constants of the kernel library itself.
  Dl_info own, other;
  if (!is_write && dladdr((void *)b.launch->entry, &own) && dladdr(p, &other) &&
      own.dli_fbase == other.dli_fbase) {
    b.hits[b.next_hit++ % 8] = {at, at + bytes};
    return;
  }
  fault_at(pc, "%s of %zu bytes at %p, which is no device memory", verb(is_write), bytes, p);
}

void aligned_access(const void *p, size_t bytes, bool is_write, void *pc) {
  if (now && (uintptr_t)p % bytes != 0)
    fault_at(pc, "%s of %zu bytes at %p is misaligned", verb(is_write), bytes, p);
  access(p, bytes, is_write, pc);
}

} // namespace

#define SITE __builtin_return_address(0)

void fault(const char *format, ...) {
  char text[512];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  fault_at(self()->site, "%s", text);
}

/// A compiler may have several copies of one barrier.
static bool is_same_line(void *a, void *b) {
  static std::mutex lock;
  static std::map<std::pair<void *, void *>, bool> known;
  std::lock_guard<std::mutex> hold(lock);
  auto [at, is_new] = known.try_emplace({a, b}, false);
  if (is_new) at->second = place(a) == place(b);
  return at->second;
}

void *shared(size_t bytes) {
  if (bytes > block->launch->shared_bytes)
    fault_at(SITE, "shared memory of %zu bytes, but the launch has %u", bytes,
             block->launch->shared_bytes);
  return block->shared;
}

void *shared_static(const void *key, size_t bytes) {
  auto &entry = block->statics[key];
  if (!entry.first) {
    size_t used = block->launch->shared_bytes + GUARD;
    for (auto &[other, e] : block->statics)
      if (e.first) used += (e.second + 15) / 16 * 16 + GUARD;
    if (used + bytes + 2 * GUARD > block->room_bytes) fault_at(SITE, "too much static shared memory");
    entry = {block->shared + (used + 15) / 16 * 16, bytes};
  }
  return entry.first;
}

int barrier(int how, int predicate) {
  Fiber *f = self();
  Block &b = *block;
  f->predicate = predicate;
  if (b.at_barrier == 0) b.how = how;
  if (b.at_barrier == 0) b.barrier_site = SITE;
  if (b.how != how) fault_at(SITE, "two kinds of __syncthreads at once");
  if (b.barrier_site != SITE && !is_same_line(b.barrier_site, SITE))
    fault_at(SITE, "divergent __syncthreads: others wait at %s", place(b.barrier_site).c_str());
  b.at_barrier++;
  f->state = State::BARRIER;
  if (b.at_barrier < b.threads) {
    yield_as(State::BARRIER, "__syncthreads", SITE);
    return f->result;
  }
  int any = 0, all = 1, count = 0;
  std::vector<Fiber *> everybody;
  for (uint32_t i = 0; i < b.threads; i++) {
    Fiber *other = b.fibers[i].get();
    any |= other->predicate, all &= other->predicate, count += other->predicate;
    everybody.push_back(other);
  }
  for (Fiber *other : everybody) {
    other->result = how == 1 ? any : how == 2 ? all : count;
    other->state = State::READY;
  }
  if (has_memory()) {
    // Everybody's own time is the latest anybody knows of it.
    std::vector<uint32_t> times(b.threads);
    for (uint32_t i = 0; i < b.threads; i++) times[i] = everybody[i]->clock[i];
    for (uint32_t i = 0; i < b.threads; i++) {
      everybody[i]->clock = times;
      everybody[i]->clock[i]++;
    }
  }
  b.at_barrier = 0;
  return f->result;
}

void named_barrier(int id, int threads, bool waits) {
  Fiber *f = self();
  auto &n = block->named[id & 15];
  if (n.arrived == 0) n.expected = threads, n.released.assign(block->threads, 0);
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
  auto &meetings = block->meetings[f->id / 32];
  auto m = std::find_if(meetings.begin(), meetings.end(), [&](const Meeting &m) { return m.mask & mask; });
  if (m == meetings.end()) {
    meetings.push_back({name, mask, 0, {}});
    m = meetings.end() - 1;
  }
  if (m->mask != mask || strcmp(m->name, name) != 0)
    fault_at(site, "%s with mask %08x while other lanes are at %s with mask %08x", name, mask, m->name,
             m->mask);
  m->lanes[lane] = own;
  m->arrived |= 1u << lane;
  if (m->arrived != mask) return yield_as(State::WARP, name, site);
  Meeting full = *m;
  meetings.erase(m);
  block->in_operation = true;
  run(full.lanes, mask);
  block->in_operation = false;
  for (uint32_t i = 0; i < 32; i++)
    if (mask >> i & 1) block->fibers[f->id / 32 * 32 + i]->state = State::READY;
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
          if (mask >> i & 1) fibers.push_back(block->fibers[self()->id / 32 * 32 + i].get());
        synchronise(fibers);
      },
      &own, SITE);
}

void will_read(const void *p, size_t bytes, size_t alignment) {
  if ((uintptr_t)p % alignment) fault_at(SITE, "read of %zu bytes at %p is misaligned", bytes, p);
  access(p, bytes, false, SITE);
}

void will_write(void *p, size_t bytes, size_t alignment) {
  if ((uintptr_t)p % alignment) fault_at(SITE, "write of %zu bytes at %p is misaligned", bytes, p);
  access(p, bytes, true, SITE);
}

void will_update(void *p, size_t bytes) {
#ifdef SIMT_UNCHECKED
  return;
#endif
  if ((uintptr_t)p % bytes) fault_at(SITE, "atomic of %zu bytes at %p is misaligned", bytes, p);
  auto at = (uintptr_t)p, begin = (uintptr_t)block->shared;
  if (at >= begin && at + bytes <= begin + block->launch->shared_bytes) {
    Fiber &f = *self();
    for (size_t i = at - begin; i < at - begin + bytes; i++) {
      if (!block->writes[i]) fault_at(SITE, "atomic on shared byte %zu, which nobody has written", i);
      block->writes[i] = epoch(f.id, f.clock[f.id]);
    }
    return;
  }
  aligned_access(p, bytes, true, SITE);
}

static Epoch *shadow(const void *p) { return &block->writes[(uintptr_t)p - (uintptr_t)block->shared]; }

static void mark_in_flight([[maybe_unused]] const void *p, [[maybe_unused]] size_t bytes) {
#ifndef SIMT_UNCHECKED
  std::fill_n(shadow(p), bytes, IN_FLIGHT);
#endif
}
static void mark_landed([[maybe_unused]] const void *p, [[maybe_unused]] size_t bytes) {
#ifndef SIMT_UNCHECKED
  std::fill_n(shadow(p), bytes, 0u);
#endif
}

// Running a block.

namespace {

void fiber_main() {
  for (;;) {
    Fiber *f = self();
    Launch &launch = *block->launch;
    launch.entry(launch.params, launch.maps);
    f = self();
    for (auto &group : f->stores)
      if (!group.empty()) fault_at(f->site, "returns with stores in flight from shared memory");
    for (auto &group : f->products)
      if (!group.empty()) fault_at(f->site, "returns with products in flight");
    f->state = State::DONE;
    block->live--;
    if (_setjmp(f->resume) == 0) _longjmp(block->scheduler, 1);
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

void prepare(Block &b, Launch &launch, uint3 index) {
  b.launch = &launch;
  b.threads = b.live = launch.threads;
  b.at_barrier = 0;
  b.in_operation = false;
  b.statics.clear();
  b.arrivals.clear();
  b.tiles.clear();
  for (auto &hit : b.hits) hit = {};
  b.readers.clear();
  for (auto &n : b.named) n = {};
  size_t room = launch.shared_bytes + (64 << 10) + 4 * GUARD;
  if (b.room_bytes < room) {
    free(b.room);
    b.room_bytes = (room + 1023) / 1024 * 1024;
    b.room = (uint8_t *)aligned_alloc(1024, b.room_bytes);
    b.shared = b.room + GUARD;
  }
  if (launch.shared_bytes > 0) memset(b.room, 0xff, b.room_bytes);
  size_t bytes = b.room_bytes - GUARD;
  b.writes.assign(bytes, 0), b.reads.assign(bytes, 0);
  b.meetings.assign((b.threads + 31) / 32, {});
  while (b.fibers.size() < b.threads) b.fibers.emplace_back(new_fiber());
  for (uint32_t i = 0; i < b.threads; i++) {
    Fiber &f = *b.fibers[i];
    f.id = i;
    f.index = {i, 0, 0};
    f.block_index = index, f.block_size = {launch.threads, 1, 1}, f.grid_size = launch.grid;
    f.state = State::READY;
    f.clock.assign(b.threads, 0);
    f.clock[i] = 1;
    f.copies.clear();
    f.stores.clear();
    f.products.clear();
    f.fenced.assign(b.threads, 0);
  }
}

/// Who waits where, when nobody can go on.
std::string census(Block &b) {
  std::map<std::string, std::pair<uint32_t, uint32_t>> groups;
  uint32_t done = 0;
  for (uint32_t i = 0; i < b.threads; i++) {
    Fiber &f = *b.fibers[i];
    if (f.state == State::DONE) {
      done++;
      continue;
    }
    auto [at, is_new] = groups.try_emplace(std::string(f.waits_for) + " at " + place(f.site), 0u, i);
    at->second.first++;
  }
  std::string text;
  for (auto &[where, count] : groups)
    text += (text.empty() ? "" : "; ") + std::to_string(count.first) + " threads (first " +
            std::to_string(count.second) + ") wait for " + where;
  if (done) text += "; " + std::to_string(done) + " have returned";
  return text;
}

/// Blocks with their stacks, for whoever needs one next.
struct Spare {
  std::mutex lock;
  std::vector<std::unique_ptr<Block>> blocks;

  std::unique_ptr<Block> take() {
    std::lock_guard<std::mutex> hold(lock);
    if (blocks.empty()) return std::make_unique<Block>();
    auto block = std::move(blocks.back());
    blocks.pop_back();
    // A fiber never changes its thread: what its frames know of `now` would be another's.
    for (auto &f : block->fibers) f->is_started = false;
    return block;
  }
  void give(std::unique_ptr<Block> block) {
    std::lock_guard<std::mutex> hold(lock);
    blocks.push_back(std::move(block));
  }
} spare;

bool run_block(Block &b, Launch &launch, uint3 index) {
  block = &b;
  prepare(b, launch, index);
  volatile uint32_t i = 0, idle = 0;
  int came = _setjmp(b.scheduler);
  if (came == 2) {
    for (auto &f : b.fibers) f->is_started = false;
    now = nullptr;
    return false;
  }
  now = nullptr;
  while (b.live > 0) {
    if (idle == b.threads) {
      Fiber &f = *b.fibers[0];
      char text[96];
      snprintf(text, sizeof text, "block (%u, %u, %u) cannot go on: ", f.block_index.x, f.block_index.y,
               f.block_index.z);
      std::string message = text + census(b);
      std::lock_guard<std::mutex> hold(launch.lock);
      if (!launch.failed) launch.message = std::string(launch.name) + ": " + message;
      launch.failed = true;
      for (auto &fiber : b.fibers) fiber->is_started = false;
      return false;
    }
    Fiber &f = *b.fibers[i];
    i = i + 1 == b.threads ? 0 : i + 1;
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

// Conversions, copies and tensor cores.

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

uint4 load_once(const void *p) {
  simt::aligned_access(p, 16, false, SITE);
  return *static_cast<const uint4 *>(p);
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

} // namespace

void mma(float *d, const uint32_t *a, uint32_t b0, uint32_t b1, bool is_bf16) {
  Fragments own = {a, b0, b1};
  Lane lane = {&own, d, 0, 32};
  if (is_bf16)
    simt::meet("mma_bf16", 0xffffffffu, product<true>, &lane, SITE);
  else
    simt::meet("mma_f16", 0xffffffffu, product<false>, &lane, SITE);
}

} // namespace ptx

#include "simt_hopper.h"

// What the host calls.

extern "C" {

void simt_bind(bool (*find)(uintptr_t, uintptr_t *, uintptr_t *)) { simt::find_buffer = find; }

/// Runs a grid; 0, or 1 and a message.
int simt_launch(const char *name, void (*entry)(const void *, const void *), const void *params,
                size_t params_bytes, const void *maps, const uint32_t *grid, uint32_t threads, uint32_t shared_bytes,
                uint32_t workers, char *message, size_t message_bytes) {
  simt::Launch launch;
  launch.name = name, launch.entry = entry, launch.params = params, launch.maps = maps;
  launch.params_bytes = params_bytes;
  launch.grid = {grid[0], grid[1], grid[2]};
  launch.threads = threads, launch.shared_bytes = shared_bytes;
  uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2];
  auto work = [&] {
    auto block = simt::spare.take();
    for (uint64_t i; !launch.failed && (i = launch.next++) < blocks;) {
      uint3 index = {(unsigned)(i % grid[0]), (unsigned)(i / grid[0] % grid[1]),
                     (unsigned)(i / grid[0] / grid[1])};
      if (!simt::run_block(*block, launch, index)) break;
    }
    simt::spare.give(std::move(block));
  };
  std::vector<std::thread> others;
  for (uint32_t i = 1; i < workers && i < blocks; i++) others.emplace_back(work);
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

/** What the emulator knows: launches, blocks, fibers, what is on its way; and how it stops with a
 *  message that says who did what and where. Part of `simt.cpp`. */
#pragma once
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

constexpr size_t STACK = 128 << 10, PAGE = 4096, GUARD = 4096;

/// Who did something, and at which of its own times; 0 is nobody.
using Epoch = uint32_t;
constexpr Epoch MANY = 0xffffffffu;
/// A copy to this byte was begun and nobody has waited for it.
constexpr Epoch IN_FLIGHT = 0xfffffffeu;
/// Written by the copy engine (the asynchronous proxy), not by a thread's own store.
constexpr Epoch ENGINE = 0x80000000u;
/// Threads of a cluster, at most: eight blocks of 256.
constexpr uint32_t MOST_THREADS = 2048;
Epoch epoch(uint32_t thread, uint32_t time) { return (thread + 1) << 19 | (time & 0x7ffffu); }
uint32_t who(Epoch e) { return ((e & ~ENGINE) >> 19) - 1; }
uint32_t when(Epoch e) { return e & 0x7ffffu; }

/// Where the device buffer around an address begins and ends; the host keeps the list.
bool (*find_buffer)(uintptr_t at, uintptr_t *begin, uintptr_t *end) = nullptr;

struct Copy {
  void *to;
  const void *from;
  bool valid;
};

/// A tile on its way into shared memory, or a float of another block, which has no map; it lands
/// when its barrier is waited for.
struct Tile {
  void *to;
  const uint64_t *map;
  uint64_t *barrier;
  int x, y;
  float value;
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
  bool is_bf16, add;
  bool has_rows; ///< A came in registers, and rows of B are those of the product
  float rows[2][16]; ///< of A, then: this thread's
};

/// A barrier object in shared memory.
struct Arrivals {
  uint32_t count, pending, phase = 0;
  int64_t bytes = 0;
  std::vector<uint32_t> arrived, released; ///< clocks
};

enum class State { READY, BARRIER, NAMED, WARP, ARRIVALS, CLUSTER, DONE };

struct Fiber : Thread {
  uint32_t id = 0;   ///< in its cluster
  uint32_t rank = 0; ///< of its block in the cluster
  bool has_waited = false; ///< for the launch before, which may still read and write
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
  std::vector<uint32_t> known;  ///< to the cluster from the next arrival on: barriers
  uint32_t met = 0;             ///< phases of the cluster's barrier that it has arrived for
  bool knows_cluster = false;   ///< that all its blocks have begun
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
  uint32_t threads, shared_bytes; ///< of a block
  uint32_t cluster;               ///< blocks of one, in x
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex lock;
  std::string message;
};

thread_local Thread *now = nullptr;

/// What a block has to itself.
struct Block {
  uint32_t live = 0, at_barrier = 0;
  int how = 0;
  void *barrier_site = nullptr;
  struct Named {
    int expected = 0, arrived = 0;
    std::vector<Fiber *> waiting;
    std::vector<uint32_t> released;
  } named[16];
  uint8_t *shared = nullptr;
  std::map<const void *, std::pair<uint8_t *, size_t>> statics;
};

/// Blocks that run together and may reach each other's shared memory; mostly there is one.
struct Cluster {
  Launch *launch = nullptr;
  std::vector<Block> blocks;
  std::vector<std::unique_ptr<Fiber>> fibers; ///< of the first block, then of the next
  uint32_t threads = 0, live = 0;
  uint32_t at_barrier = 0, phase = 0;      ///< of the cluster's barrier
  std::vector<uint32_t> arrived, released; ///< clocks there
  std::vector<std::vector<Meeting>> meetings;
  uint8_t *room = nullptr;
  size_t room_bytes = 0;
  uint8_t *shared = nullptr; ///< of the first block
  size_t stride = 0;         ///< from there to the next block's
  std::vector<Epoch> writes, reads;
  std::vector<Epoch> stores; ///< of the writes the last that was no atomic operation
  std::map<size_t, std::vector<Epoch>> readers;
  jmp_buf scheduler;
  bool in_operation = false; ///< the emulator works for a warp: on every lane's stack
  std::map<const void *, Arrivals> arrivals;
  std::vector<Tile> tiles;
  /// Ranges that were found to be the device's, the last few.
  struct Hit {
    uintptr_t begin = 1, end = 0;
  } hits[8];
  uint32_t next_hit = 0;
};

namespace {

thread_local Cluster *cluster __attribute__((tls_model("initial-exec"))) = nullptr;

Fiber *self() { return static_cast<Fiber *>(now); }
Block &own() { return cluster->blocks[self()->rank]; }
/// Where an address of shared memory is in the cluster's.
size_t shared_byte(const void *p) { return (uintptr_t)p - (uintptr_t)cluster->shared; }

std::string place(void *pc) {
  Dl_info info;
  if (!pc || !dladdr(pc, &info)) return "an unknown line";
  char command[1024], line[512] = "";
  auto offset = (uintptr_t)pc - (uintptr_t)info.dli_fbase - 1;
  snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
           offset);
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
           f.block_index.z, f.index.x);
  return text;
}

/// Ends the launch; the first to do so says why.
void fail(Launch &launch, const std::string &what) {
  std::lock_guard<std::mutex> hold(launch.lock);
  if (!launch.failed) launch.message = std::string(launch.name) + ": " + what;
  launch.failed = true;
}

[[noreturn]] void give_up(const std::string &what) {
  fail(*cluster->launch, what);
  now = nullptr;
  _longjmp(cluster->scheduler, 2);
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
  if (_setjmp(f->resume) == 0) _longjmp(cluster->scheduler, 1);
}

void join(std::vector<uint32_t> &into, const std::vector<uint32_t> &from) {
  for (size_t i = 0; i < into.size(); i++) into[i] = std::max(into[i], from[i]);
}

bool has_memory() { return cluster->launch->shared_bytes > 0 || !own().statics.empty(); }

/// All of `fibers` now know what each of them knew.
void synchronise(const std::vector<Fiber *> &fibers) {
  if (!has_memory() || fibers.empty()) return;
  std::vector<uint32_t> all(cluster->threads, 0);
  for (Fiber *f : fibers) join(all, f->clock);
  for (Fiber *f : fibers) {
    f->clock = all;
    f->clock[f->id]++;
  }
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

} // namespace simt

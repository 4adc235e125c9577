/** Who may read and write what: races in shared memory, bounds and alignment everywhere. Part of
 *  `simt.cpp`. */
#pragma once
#include "simt_state.h"

namespace simt {
namespace {

bool is_before(Epoch e, const Fiber &f) { return when(e) <= f.clock[who(e)]; }

[[noreturn]] void race(const char *mine, Epoch other, const char *theirs, size_t at, void *pc) {
  fault_at(pc,
           "race: %s of shared byte %zu, which thread %u %s without a barrier in between", mine, at,
           who(other), theirs);
}

/// `mine` comes after `write` of byte i.
void after_writer(Epoch write, size_t i, const Fiber &f, const char *mine, void *pc) {
  if (write == IN_FLIGHT)
    fault_at(pc, "%s of shared byte %zu, to which a copy is in flight: nobody has waited for it",
             mine, i);
  if (write && who(write) != f.id && !is_before(write, f)) race(mine, write, "wrote", i, pc);
}

/// `mine` comes after all who have read byte i since; forgets them.
void after_readers(size_t i, const Fiber &f, const char *mine, void *pc) {
  Epoch &read = block->reads[i];
  if (read == MANY) {
    for (Epoch e : block->readers[i])
      if (who(e) != f.id && !is_before(e, f)) race(mine, e, "read", i, pc);
    block->readers.erase(i);
  } else if (read && who(read) != f.id && !is_before(read, f)) {
    race(mine, read, "read", i, pc);
  }
  read = 0;
}

void shared_access(size_t at, size_t bytes, bool is_write, void *pc) {
  Fiber &f = *self();
  const Epoch own = epoch(f.id, f.clock[f.id]);
  for (size_t i = at; i < at + bytes; i++) {
    Epoch &write = block->writes[i], &read = block->reads[i];
    if (is_write) block->stores[i] = own;
    if (write == own && (is_write ? read == 0 || read == own : read == own)) continue;
    after_writer(write, i, f, is_write ? "write" : "read", pc);
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
    after_readers(i, f, "write", pc);
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
    if (at >= begin && at + bytes <= begin + size)
      return shared_access(at - begin, bytes, is_write, pc);
    for (auto &[key, entry] : b.statics) {
      auto own = (uintptr_t)entry.first;
      if (at >= own && at + bytes <= own + entry.second)
        return shared_access(at - begin, bytes, is_write, pc);
    }
    fault_at(pc, "%s of %zu bytes at %td of %zu bytes of shared memory: out of bounds",
             verb(is_write), bytes, (ptrdiff_t)(at - begin), size);
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
      fault_at(pc, "%s of %zu bytes at %td of a buffer of %zu bytes: out of bounds", verb(is_write),
               bytes, (ptrdiff_t)(at - begin), (size_t)(end - begin));
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
    if (used + bytes + 2 * GUARD > block->room_bytes)
      fault_at(SITE, "too much static shared memory");
    entry = {block->shared + (used + 15) / 16 * 16, bytes};
  }
  return entry.first;
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
      if (!block->writes[i])
        fault_at(SITE, "atomic on shared byte %zu, which nobody has written", i);
      // Atomics exclude each other, and nothing else.
      after_writer(block->writes[i] == IN_FLIGHT ? IN_FLIGHT : block->stores[i], i, f, "atomic",
                   SITE);
      after_readers(i, f, "atomic", SITE);
      block->writes[i] = epoch(f.id, f.clock[f.id]);
    }
    return;
  }
  aligned_access(p, bytes, true, SITE);
}

static Epoch *shadow(const void *p) {
  return &block->writes[(uintptr_t)p - (uintptr_t)block->shared];
}

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

} // namespace simt

/** Who may read and write what: races in shared memory, bounds and alignment everywhere. Part of
 *  `simt.cpp`. */
#pragma once
#include "simt_state.h"

namespace simt {
namespace {

bool is_before(Epoch e, const Fiber &f) { return when(e) <= f.clock[who(e)]; }

[[noreturn]] void race(const char *mine, Epoch other, const char *theirs, size_t at, void *pc) {
  const Fiber &f = *cluster->fibers[who(other)];
  const char *whose = f.rank == self()->rank ? "" : " of another block";
  fault_at(pc,
           "race: %s of shared byte %zu, which thread %u%s %s without a barrier in between", mine,
           at % cluster->stride, f.index.x, whose, theirs);
}

/// `mine` comes after `write` of byte i.
void after_writer(Epoch write, size_t i, const Fiber &f, const char *mine, void *pc) {
  if (write == IN_FLIGHT)
    fault_at(pc, "%s of shared byte %zu, to which a copy is in flight: nobody has waited for it",
             mine, i % cluster->stride);
  if (write && who(write) != f.id && !is_before(write, f)) race(mine, write, "wrote", i, pc);
}

/// `mine` comes after all who have read byte i since; forgets them.
void after_readers(size_t i, const Fiber &f, const char *mine, void *pc) {
  Epoch &read = cluster->reads[i];
  if (read == MANY) {
    for (Epoch e : cluster->readers[i])
      if (who(e) != f.id && !is_before(e, f)) race(mine, e, "read", i, pc);
    cluster->readers.erase(i);
  } else if (read && who(read) != f.id && !is_before(read, f)) {
    race(mine, read, "read", i, pc);
  }
  read = 0;
}

void shared_access(size_t at, size_t bytes, bool is_write, void *pc) {
  Fiber &f = *self();
  const Epoch own = epoch(f.id, f.clock[f.id]);
  for (size_t i = at; i < at + bytes; i++) {
    Epoch &write = cluster->writes[i], &read = cluster->reads[i];
    if (is_write) cluster->stores[i] = own;
    if (write == own && (is_write ? read == 0 || read == own : read == own)) continue;
    after_writer(write, i, f, is_write ? "write" : "read", pc);
    if (!is_write) {
      if (!write)
        fault_at(pc, "read of shared byte %zu, which nobody has written", i % cluster->stride);
      if (read == 0 || (read != MANY && (who(read) == f.id || is_before(read, f)))) {
        read = own;
      } else if (read != own) {
        auto &set = cluster->readers[i];
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

/// An access that one block makes to the shared memory of any of its cluster.
void cluster_access([[maybe_unused]] const void *p, [[maybe_unused]] size_t bytes,
                    [[maybe_unused]] bool is_write, [[maybe_unused]] void *pc) {
#ifndef SIMT_UNCHECKED
  shared_access(shared_byte(p), bytes, is_write, pc);
#endif
}

const char *verb(bool is_write) { return is_write ? "write" : "read"; }

/// Any access of kernel code: to its stack, to shared memory, or to a buffer of the device.
void access(const void *p, size_t bytes, bool is_write, void *pc) {
  Fiber *f = self();
#ifdef SIMT_UNCHECKED
  return;
#endif
  if (!f || bytes == 0 || cluster->in_operation) return;
  auto at = (uintptr_t)p;
  if (at >= f->stack_begin && at < f->stack_end) return;
  // threadIdx and its like.
  if (at == (uintptr_t)&now || (at >= (uintptr_t)f && at < (uintptr_t)f + sizeof(Thread))) return;
  Cluster &c = *cluster;
  auto room = (uintptr_t)c.room;
  if (at >= room && at < room + c.room_bytes) {
    auto begin = (uintptr_t)own().shared;
    size_t size = c.launch->shared_bytes;
    if (at >= begin && at + bytes <= begin + size)
      return shared_access(shared_byte(p), bytes, is_write, pc);
    for (auto &[key, entry] : own().statics) {
      auto first = (uintptr_t)entry.first;
      if (at >= first && at + bytes <= first + entry.second)
        return shared_access(shared_byte(p), bytes, is_write, pc);
    }
    fault_at(pc, "%s of %zu bytes at %td of %zu bytes of shared memory: out of bounds",
             verb(is_write), bytes, (ptrdiff_t)(at - begin), size);
  }
  auto params = (uintptr_t)c.launch->params, maps = (uintptr_t)c.launch->maps;
  if (!is_write && at >= params && at + bytes <= params + c.launch->params_bytes) return;
  if (!is_write && at >= maps && at + bytes <= maps + sizeof(uint64_t) * 64) return;
  if (is_write && !f->has_waited)
    fault_at(pc, "write of %zu bytes without wait_for_launch_before before it", bytes);
  for (auto &hit : c.hits)
    if (at >= hit.begin && at + bytes <= hit.end) return;
  uintptr_t begin = 0, end = 0;
  if (find_buffer(at, &begin, &end)) {
    if (at + bytes <= end) {
      c.hits[c.next_hit++ % 8] = {begin, end};
      return;
    }
    if (at < end + (1 << 20))
      fault_at(pc, "%s of %zu bytes at %td of a buffer of %zu bytes: out of bounds", verb(is_write),
               bytes, (ptrdiff_t)(at - begin), (size_t)(end - begin));
  }
  // Constants of the kernel library itself.
  Dl_info own, other;
  if (!is_write && dladdr((void *)c.launch->entry, &own) && dladdr(p, &other) &&
      own.dli_fbase == other.dli_fbase) {
    c.hits[c.next_hit++ % 8] = {at, at + bytes};
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
  if (bytes > cluster->launch->shared_bytes)
    fault_at(SITE, "shared memory of %zu bytes, but the launch has %u", bytes,
             cluster->launch->shared_bytes);
  return own().shared;
}

void *shared_static(const void *key, size_t bytes) {
  auto &entry = own().statics[key];
  if (!entry.first) {
    size_t used = cluster->launch->shared_bytes + GUARD;
    for (auto &[other, e] : own().statics)
      if (e.first) used += (e.second + 15) / 16 * 16 + GUARD;
    if (used + bytes + 2 * GUARD > cluster->stride)
      fault_at(SITE, "too much static shared memory");
    entry = {own().shared + (used + 15) / 16 * 16, bytes};
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
  auto at = (uintptr_t)p, begin = (uintptr_t)own().shared;
  if (at >= begin && at + bytes <= begin + cluster->launch->shared_bytes) {
    Fiber &f = *self();
    const size_t first = shared_byte(p);
    for (size_t i = first; i < first + bytes; i++) {
      if (!cluster->writes[i])
        fault_at(SITE, "atomic on shared byte %zu, which nobody has written", i);
      // Atomics exclude each other, and nothing else.
      after_writer(cluster->writes[i] == IN_FLIGHT ? IN_FLIGHT : cluster->stores[i], i, f, "atomic",
                   SITE);
      after_readers(i, f, "atomic", SITE);
      cluster->writes[i] = epoch(f.id, f.clock[f.id]);
    }
    return;
  }
  aligned_access(p, bytes, true, SITE);
}

} // namespace simt

void ptx::wait_for_launch_before() { simt::self()->has_waited = true; }
uint32_t ptx::dynamic_shared_bytes() { return simt::cluster->launch->shared_bytes; }

namespace simt {

static Epoch *shadow(const void *p) { return &cluster->writes[shared_byte(p)]; }

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

// A driver that has no card: the entry points that the product calls, over this process's memory.
// Launches run the product's kernels under the emulator's library, DRIVER_KERNELS; without one they
// do nothing. DRIVER_FAULT has it fail: no_device, old_driver, no_image, exclusive, launch:N,
// run:N (the Nth launch is refused, or breaks when it runs), memory:BYTES (there are that many).
// DRIVER_CHIP=a100 is another card. At exit it writes what it counted to DRIVER_REPORT.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <map>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

namespace {

enum {
  SUCCESS = 0,
  INVALID = 1,
  MEMORY = 2,
  UNAVAILABLE = 46,
  NO_DEVICE = 100,
  NO_BINARY = 209,
  NOT_FOUND = 500,
  OUT_OF_RESOURCES = 701,
  LAUNCH_FAILED = 719,
};
using Entry = void (*)(const void *, const void *);
using Emulate = int (*)(const char *, Entry, const void *, size_t, const void *, const uint32_t *,
                        uint32_t, uint32_t, uint32_t, uint32_t, char *, size_t);

struct Function {
  std::string name;
  Entry entry;
};
struct Launch {
  Function *function;
  uint32_t grid[3], threads, shared, cluster;
  std::vector<uint8_t> params;
  void (*work)(const void *) = nullptr; ///< a library's, of the params, instead of an entry
};
struct Graph {
  std::vector<Launch> launches;
};

std::recursive_mutex lock;
/// Allocations, which the emulator's threads look up while a call holds `lock`.
std::map<uintptr_t, size_t> memory;
std::shared_mutex memory_lock;
/// Everything that was made and not given back: streams, events, graphs, contexts, memory.
std::set<void *> live;
size_t in_use, misaligned;
Graph *capturing;
/// The status that every call returns after a kernel has failed.
int broken;
long calls, fail_at, launches, replays, uploads, waits, products, overlapping;

template <typename T> T *made(T *object) { return live.insert(object), object; }
/// A handle that stands for nothing.
void *handle() { return made(malloc(1)); }
int gone(void *object) { return live.erase(object) ? SUCCESS : INVALID; }
int give_back(void *object) { return gone(object) ? INVALID : (free(object), SUCCESS); }

/// The value after the colon of DRIVER_FAULT, if it is of this kind.
bool has(const char *kind, long *value = nullptr) {
  const char *text = getenv("DRIVER_FAULT");
  std::string all = text ? text : "";
  size_t colon = all.find(':');
  if (all.substr(0, colon) != kind) return false;
  if (value) *value = colon == std::string::npos ? 0 : atol(all.c_str() + colon + 1);
  return true;
}

/// One address range for all of it, so that allocations touch as a card's do.
char *carve(size_t n) {
  const size_t all = (size_t)1 << 36;
  static char *next = (char *)mmap(nullptr, all, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  static char *const end = next + all;
  if (next == MAP_FAILED || n > (size_t)(end - next)) return nullptr;
  return std::exchange(next, next + (n + 255) / 256 * 256);
}

bool find(uintptr_t at, uintptr_t *begin, uintptr_t *end) {
  std::shared_lock<std::shared_mutex> guard(memory_lock);
  auto next = memory.upper_bound(at);
  if (next == memory.begin()) return false;
  --next;
  *begin = next->first, *end = next->first + next->second;
  return true;
}

/// True if the bytes are in one allocation: a copy may not leave it.
bool holds(uintptr_t at, size_t n) {
  uintptr_t begin, end;
  return n == 0 || (find(at, &begin, &end) && at + n <= end);
}

/// The emulator's library, told of the memory here.
void *library() {
  static void *handle = [] {
    const char *path = getenv("DRIVER_KERNELS");
    void *handle = path && *path ? dlopen(path, RTLD_NOW) : nullptr;
    using Find = bool (*)(uintptr_t, uintptr_t *, uintptr_t *);
    if (handle) ((void (*)(Find))dlsym(handle, "simt_bind"))(find);
    return handle;
  }();
  return handle;
}

/// Marks a tensor map, whose place among the params only the entry knows.
const uint64_t MAP = 0x6d61702065646f63;

int run(const Launch &launch) {
  long at = 0;
  launches++;
  if (has("run", &at) && launches == at) return broken = LAUNCH_FAILED;
  if (launch.work) return products++, launch.work(launch.params.data()), SUCCESS;
  if (!library()) return SUCCESS;
  size_t size = launch.params.size();
  const uint8_t *params = launch.params.data(), *maps = nullptr;
  if (size > 512)
    for (int i = 0; i < 4; i++)
      if (!memcmp(params + size - 512 + 128 * i + 120, &MAP, 8)) maps = params + size - 512;
  alignas(64) uint8_t copy[512] = {};
  if (maps) memcpy(copy, maps, 512);
  char message[2048] = "";
  Emulate emulate = (Emulate)dlsym(library(), "simt_launch");
  if (emulate(launch.function->name.c_str(), launch.function->entry, params,
              maps ? size - 512 : size, copy, launch.grid, launch.threads, launch.shared,
              launch.cluster, 2, message, sizeof message)) {
    fprintf(stderr, "%s\n", message);
    return broken = LAUNCH_FAILED;
  }
  return SUCCESS;
}

struct Report {
  ~Report() {
    const char *path = getenv("DRIVER_REPORT");
    FILE *file = path ? fopen(path, "w") : nullptr;
    if (!file) return;
    fprintf(file, "{\"launches\": %ld, \"replays\": %ld, \"live\": %zu, \"bytes\": %zu,", launches,
            replays, live.size(), in_use);
    fprintf(file, " \"uploads\": %ld, \"waits\": %ld,", uploads, waits);
    fprintf(file, " \"misaligned\": %zu,", misaligned);
    fprintf(file, " \"overlapping\": %ld, \"products\": %ld}\n", overlapping, products);
    fclose(file);
  }
} report;

}  // namespace

/// Begins every call that can fail: one at a time, and the one at `fail_at` fails.
#define CALL                                                                                       \
  std::lock_guard<std::recursive_mutex> guard(lock);                                               \
  if (++calls == fail_at) return INVALID;                                                          \
  if (broken) return broken
/// Begins every call that gives something back: those are not made to fail.
#define RETURN std::lock_guard<std::recursive_mutex> guard(lock)

extern "C" {

/// The `n`th call from now on fails; 0 is none. What was broken is whole again.
void driver_fail_at(long n) { calls = 0, fail_at = n, broken = 0; }
/// Calls since.
long driver_calls() { return calls; }
/// Objects that were not given back.
long driver_live() { return (long)live.size(); }

int cuInit(unsigned) {
  CALL;
  return has("no_device") ? NO_DEVICE : SUCCESS;
}
int cuDriverGetVersion(int *v) {
  CALL;
  return *v = has("old_driver") ? 11040 : 13000, SUCCESS;
}
int cuDeviceGetCount(int *n) {
  CALL;
  return *n = 1, SUCCESS;
}
int cuDeviceGet(int *d, int i) {
  CALL;
  return *d = i, i ? 101 : SUCCESS;
}
int cuDeviceGetName(char *name, int n, int) {
  CALL;
  return snprintf(name, n, "Stand-in"), SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *n, int) {
  CALL;
  return *n = (size_t)1 << 36, SUCCESS;
}
int cuDeviceGetAttribute(int *v, int which, int) {
  CALL;
  const char *chip = getenv("DRIVER_CHIP");
  bool a100 = chip && !strcmp(chip, "a100");
  switch (which) {
    case 75: return *v = a100 ? 8 : 9, SUCCESS;              // capability, major
    case 76: return *v = 0, SUCCESS;                         // minor
    case 16: return *v = a100 ? 108 : 132, SUCCESS;          // multiprocessors
    case 97: return *v = (a100 ? 163 : 227) << 10, SUCCESS;  // shared bytes
  }
  return INVALID;
}
int cuGetErrorName(int e, const char **s) {
  switch (e) {
    case SUCCESS: *s = "CUDA_SUCCESS"; break;
    case INVALID: *s = "CUDA_ERROR_INVALID_VALUE"; break;
    case MEMORY: *s = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case UNAVAILABLE: *s = "CUDA_ERROR_DEVICE_UNAVAILABLE"; break;
    case NO_DEVICE: *s = "CUDA_ERROR_NO_DEVICE"; break;
    case NO_BINARY: *s = "CUDA_ERROR_NO_BINARY_FOR_GPU"; break;
    case OUT_OF_RESOURCES: *s = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"; break;
    case LAUNCH_FAILED: *s = "CUDA_ERROR_LAUNCH_FAILED"; break;
    default: *s = "CUDA_ERROR_OTHER";
  }
  return SUCCESS;
}
int cuGetErrorString(int e, const char **s) { return cuGetErrorName(e, s); }

int cuDevicePrimaryCtxRetain(void **c, int) {
  CALL;
  return has("exclusive") ? UNAVAILABLE : (*c = &memory, live.insert(&memory), SUCCESS);
}
int cuDevicePrimaryCtxRelease_v2(int) {
  RETURN;
  return gone(&memory);
}
int cuCtxSetCurrent(void *) {
  CALL;
  return SUCCESS;
}
int cuDeviceGetDefaultMemPool(void **p, int) {
  CALL;
  return *p = &memory, SUCCESS;
}
int cuMemPoolSetAttribute(void *, int, void *) {
  CALL;
  return SUCCESS;
}

int cuModuleLoadData(void **module, const void *image) {
  CALL;
  if ((uintptr_t)image % 8) return INVALID;
  return has("no_image") ? NO_BINARY : (*module = handle(), SUCCESS);
}
int cuModuleUnload(void *module) {
  RETURN;
  return give_back(module);
}
int cuModuleGetFunction(void **f, void *, const char *name) {
  CALL;
  static std::map<std::string, Function *> known;
  Entry entry = library() ? (Entry)dlsym(library(), name) : nullptr;
  if (library() && !entry) return NOT_FOUND;
  Function *&function = known[name];
  if (!function) function = new Function{name, entry};
  return *f = function, SUCCESS;
}
int cuFuncSetAttribute(void *, int, int) {
  CALL;
  return SUCCESS;
}

int cuMemGetInfo_v2(size_t *free, size_t *total) {
  CALL;
  long limit = 0;
  if (!has("memory", &limit)) limit = (long)1 << 36;
  *total = limit, *free = (size_t)limit > in_use ? limit - in_use : 0;
  return SUCCESS;
}
int cuMemAllocAsync(uint64_t *at, size_t n, void *) {
  CALL;
  long limit;
  if (has("memory", &limit) && in_use + n > (size_t)limit) return MEMORY;
  void *p = carve(n);
  if (!p) return MEMORY;
  memset(p, 0xff, n);
  std::unique_lock<std::shared_mutex> changing(memory_lock);
  memory[(uintptr_t)p] = n, in_use += n;
  return *at = (uint64_t)made(p), SUCCESS;
}
int cuMemFreeAsync(uint64_t at, void *) {
  RETURN;
  std::unique_lock<std::shared_mutex> changing(memory_lock);
  auto found = memory.find(at);
  if (found == memory.end()) return INVALID;
  const uintptr_t first = (at + 4095) / 4096 * 4096, past = (at + found->second) / 4096 * 4096;
  if (past > first) madvise((void *)first, past - first, MADV_DONTNEED);
  in_use -= found->second, memory.erase(found);
  return gone((void *)at);
}
int cuMemHostAlloc(void **p, size_t n, unsigned) {
  CALL;
  return *p = made(aligned_alloc(4096, n)), SUCCESS;
}
int cuMemFreeHost(void *p) {
  RETURN;
  return give_back(p);
}
int cuMemsetD8Async(uint64_t at, unsigned char v, size_t n, void *) {
  CALL;
  return memset((void *)at, v, n), SUCCESS;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *) {
  CALL;
  if (!holds(to, n)) return INVALID;
  uploads++, misaligned += to % 16 != 0;
  return memcpy((void *)to, from, n), SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *) {
  CALL;
  if (!holds(from, n)) return INVALID;
  return memcpy(to, (void *)from, n), SUCCESS;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *) {
  CALL;
  if (!holds(to, n) || !holds(from, n)) return INVALID;
  return memcpy((void *)to, (void *)from, n), SUCCESS;
}
struct Copy {
  size_t from_x, from_y;
  unsigned from_kind;
  const void *from_host;
  uint64_t from;
  void *from_array;
  size_t from_pitch, to_x, to_y;
  unsigned to_kind;
  void *to_host;
  uint64_t to;
  void *to_array;
  size_t to_pitch, width, height;
};
int cuMemcpy2DAsync_v2(const Copy *c, void *) {
  CALL;
  const char *from = c->from_kind == 1 ? (const char *)c->from_host : (const char *)c->from;
  char *to = c->to_kind == 1 ? (char *)c->to_host : (char *)c->to;
  for (size_t row = 0; row < c->height; row++)
    memcpy(to + row * c->to_pitch, from + row * c->from_pitch, c->width);
  return SUCCESS;
}

int cuStreamCreate(void **s, unsigned) {
  CALL;
  return *s = handle(), SUCCESS;
}
int cuStreamDestroy_v2(void *s) {
  RETURN;
  return give_back(s);
}
int cuStreamSynchronize(void *) {
  CALL;
  waits++;
  return SUCCESS;
}
int cuEventCreate(void **event, unsigned) {
  CALL;
  return *event = handle(), SUCCESS;
}
int cuEventRecord(void *, void *) {
  CALL;
  return SUCCESS;
}
int cuEventSynchronize(void *) {
  CALL;
  waits++;
  return SUCCESS;
}
int cuProfilerStart() {
  RETURN;
  return SUCCESS;
}
int cuProfilerStop() {
  RETURN;
  return SUCCESS;
}
int cuEventElapsedTime(float *ms, void *from, void *to) {
  CALL;
  return *ms = from == to ? 0 : 0.25, SUCCESS;
}
int cuEventDestroy_v2(void *event) {
  RETURN;
  return give_back(event);
}

struct Attribute {
  int id;
  char pad[4];
  int value[16];
};
struct Config {
  uint32_t grid[3], block[3], shared;
  void *stream;
  Attribute *attributes;
  unsigned count;
};
int cuLaunchKernelEx(const Config *c, Function *f, void **params, void **extra) {
  CALL;
  if (!params || extra) return INVALID;
  long at;
  if (has("launch", &at) && launches + 1 == at) return OUT_OF_RESOURCES;
  // The attributes in use: blocks of a cluster, and to begin while the launch before ends.
  uint32_t cluster = 1;
  for (const Attribute *a = c->attributes; a < c->attributes + c->count; a++) {
    if (a->id == 4 && a->value[0] > 1 && a->value[1] == 1 && a->value[2] == 1)
      cluster = (uint32_t)a->value[0];
    else if (a->id == 6 && a->value[0] == 1)
      overlapping++;
    else
      return INVALID;
  }
  // A driver knows each entry's parameters; this one is told where they end.
  const uint8_t *bytes = (const uint8_t *)params[0], *end = (const uint8_t *)params[2];
  Launch launch = {f,
                   {c->grid[0], c->grid[1], c->grid[2]},
                   c->block[0],
                   c->shared,
                   cluster,
                   {bytes, end}};
  if (capturing) return capturing->launches.push_back(launch), SUCCESS;
  run(launch);
  return SUCCESS;
}
/// For `cublaslt.cpp`: has the queue do `work` of `bytes` at `data`.
int driver_do(void (*work)(const void *), const void *data, size_t bytes) {
  CALL;
  const uint8_t *first = (const uint8_t *)data;
  Launch launch = {nullptr, {1, 1, 1}, 1, 0, 1, {first, first + bytes}, work};
  if (capturing) return capturing->launches.push_back(launch), SUCCESS;
  return run(launch);
}
int cuTensorMapEncodeTiled(uint64_t *map, int, unsigned rank, void *address, const uint64_t *sizes,
                           const uint64_t *stride, const uint32_t *box, const uint32_t *, int,
                           int swizzle, int, int) {
  CALL;
  if (rank != 2 || (uintptr_t)address % 16 || *stride % 16) return INVALID;
  if (box[0] > 256 || box[1] > 256) return INVALID;
  memset(map, 0, 128);
  map[0] = (uint64_t)address, map[1] = sizes[0], map[2] = sizes[1], map[3] = *stride;
  map[4] = box[0], map[5] = box[1], map[6] = swizzle == 3 ? 128 : swizzle == 2 ? 64 : 0;
  map[15] = MAP;
  return SUCCESS;
}

int cuStreamBeginCapture_v2(void *, int) {
  CALL;
  return capturing = made(new Graph), SUCCESS;
}
int cuStreamEndCapture(void *, void **graph) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  // A capture that fails leaves no graph.
  if (++calls == fail_at) return gone(capturing), delete capturing, capturing = nullptr, INVALID;
  return *graph = capturing, capturing = nullptr, SUCCESS;
}
int cuGraphInstantiateWithFlags(void **ready, Graph *graph, unsigned long long) {
  CALL;
  return *ready = made(new Graph(*graph)), SUCCESS;
}
int cuGraphDestroy(Graph *graph) {
  RETURN;
  return gone(graph) ? INVALID : (delete graph, SUCCESS);
}
int cuGraphExecDestroy(Graph *graph) { return cuGraphDestroy(graph); }
int cuGraphLaunch(Graph *graph, void *) {
  CALL;
  replays++;
  for (auto &launch : graph->launches)
    if (run(launch)) break;
  return SUCCESS;
}

}  // extern "C"

// Runs kernels without a GPU: the threads of a block are fibres, in shuffled order, that switch at barriers, shuffles,
// ballots and atomics. The kernels are compiled with -fsanitize=thread, but its hooks are those below: they see every
// read and write, and report races, shared memory that is read unwritten, and (where the address sanitizer is
// preloaded) what lies outside an allocation.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "cuda_runtime_api.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

extern "C" void* __asan_region_is_poisoned(void*, size_t) __attribute__((weak));
extern "C" __attribute__((visibility("hidden"))) char __bss_start[], _end[];

namespace emulation {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kStack = 128 << 10;

// ---------------------------------------------------------------- fibres
#if defined(__x86_64__)
using Context = void*;
extern "C" void emulation_switch(void** save, void* to);
asm(R"(
.text
.type emulation_switch, @function
emulation_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");
void prepare(Context& c, char* stack, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(stack + kStack - 64);
  top[0] = reinterpret_cast<void*>(entry);
  c = top - 6;
}
void change(Context& from, Context& to) { emulation_switch(&from, to); }
#else
using Context = ucontext_t;
void prepare(Context& c, char* stack, void (*entry)()) {
  getcontext(&c);
  c.uc_stack.ss_sp = stack, c.uc_stack.ss_size = kStack;
  makecontext(&c, entry, 0);
}
void change(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

struct Fence {
  uint32_t time = 0, barriers = 0;
};

struct Thread {
  Context context;
  int index = 0, line = 0, source = 0, votes = 0;
  bool done = false, yes = false;
  Meeting meeting = Meeting::none;
  unsigned mask = 0, ballot = 0;
  uint64_t own = 0, result = 0;
  uint32_t barriers = 0, warp_barriers = 0;  // passed
  Fence fence;                               // the last one
  bool acquired = false;                     // has fenced after it saw what other blocks released
};

// ---------------------------------------------------------------- the launch
std::mt19937_64 random_bits;
char* stacks = nullptr;  // kMaxThreads of them
std::vector<Thread> threads;
Thread* current = nullptr;
Context scheduler;
const std::function<void()>* body;
const char* kernel;
Extent grid(1), block(1);
unsigned block_number;
uint32_t launches = 0, clock_now = 0, blocks_run = 0;
std::vector<std::string> reports;
std::string report_text;

void report(const std::string& what) {
  const std::string text = std::string(kernel) + ", block " + std::to_string(block_number) +
                           (current ? ", thread " + std::to_string(current->index) : "") + ": " + what;
  if (reports.size() < 8) reports.push_back(text);
}

// ---------------------------------------------------------------- who touched what
struct Access {
  uint32_t launch = 0, block = 0, barriers = 0, warp_barriers = 0, time = 0;
  uint16_t thread = 0;
  bool atomic = false;
};
struct Cell {
  Access write, read, other_read, other_block;  // the last ones; the others not by the thread, or the block, of read
};
constexpr uintptr_t kPage = 4096;
struct Page {
  size_t unit = 8;  // bytes a cell: the smallest access
  std::vector<Cell> cells;
};
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
std::vector<uint32_t> written;  // the last block that wrote a byte of .bss

bool is_shared(uintptr_t p) {
  return p >= reinterpret_cast<uintptr_t>(__bss_start) && p < reinterpret_cast<uintptr_t>(_end);
}

// What a block knows of another one: an atomic of it, after its fence, was seen by one of ours, before a fence.
struct Release {
  uint32_t block;
  uint16_t thread;
  Fence fence;
};
struct Counted {
  uintptr_t p;
  int thread;
  uint32_t barriers;
};
std::unordered_map<uintptr_t, std::vector<Release>> releases;  // by what the atomics are on
std::vector<Counted> counted;                                  // the block's atomics
std::unordered_map<uint32_t, Release> acquired;                // by block
std::unordered_set<uintptr_t> acquired_atomics;
uint32_t acquired_barriers;  // of the first thread that acquired

bool after_acquire() {
  return !acquired_atomics.empty() && (current->acquired || current->barriers > acquired_barriers);
}

bool ordered(const Access& a, uintptr_t p) {
  if (a.launch != launches) return true;
  if (a.block == block_number)
    return a.thread == current->index || a.barriers < current->barriers ||
           (a.thread / kWarp == current->index / kWarp && a.warp_barriers < current->warp_barriers);
  if (is_shared(p)) return true;
  if (!after_acquire()) return false;
  if (a.atomic && acquired_atomics.count(p)) return true;
  const auto found = acquired.find(a.block);
  if (found == acquired.end()) return false;
  const Release& from = found->second;
  return a.time < from.fence.time && (a.thread == from.thread || a.barriers < from.fence.barriers);
}

std::string place(uintptr_t p) {
  char text[40];
  std::snprintf(text, sizeof text, "%s 0x%zx", is_shared(p) ? "shared" : "global", static_cast<size_t>(p));
  return text;
}

void report_race(const char* what, const Access& with, const char* other, uintptr_t p) {
  report(std::string("race: ") + what + " of " + place(p) + " is not ordered with the " + other + " by block " +
         std::to_string(with.block) + ", thread " + std::to_string(with.thread));
}

// Several threads may write the same bits to one place. The hook runs before the write, so this is for the next one.
struct SameWrite {
  uintptr_t p = 0;
  size_t size = 0;
  char before[16];
  Access with;
} same_write;

void check_same_write() {
  if (!same_write.size) return;
  if (std::memcmp(reinterpret_cast<void*>(same_write.p), same_write.before, same_write.size))
    report_race("a write", same_write.with, "write", same_write.p);
  same_write.size = 0;
}

Cell* cells_of(uintptr_t p, size_t unit, size_t& step) {
  static uintptr_t last = 0;
  static Page* last_page = nullptr;
  static uint32_t last_launch = 0;
  const uintptr_t number = p / kPage;
  if (number != last || last_launch != launches) {
    auto& page = pages[number];
    if (!page) page = std::make_unique<Page>();
    last = number, last_page = page.get(), last_launch = launches;
  }
  Page& page = *last_page;
  if (page.cells.empty() || unit < page.unit) {
    page.unit = unit < page.unit ? unit : page.unit;
    page.cells.assign(kPage / page.unit, Cell{});
  }
  step = page.unit;
  return &page.cells[p % kPage / page.unit];
}

void touch(uintptr_t p, size_t size, bool write, bool atomic) {
  if (p - reinterpret_cast<uintptr_t>(stacks) < kMaxThreads * kStack) return;  // a thread's own variable
  check_same_write();
  if (__asan_region_is_poisoned && __asan_region_is_poisoned(reinterpret_cast<void*>(p), size)) {
    report(std::string(write ? "write" : "read") + " of " + std::to_string(size) + " bytes outside an array, at " +
           place(p));
    for (const auto& text : reports) std::fprintf(stderr, "%s\n", text.c_str());
  }
  if (is_shared(p)) {
    uint32_t* w = &written[p - reinterpret_cast<uintptr_t>(__bss_start)];
    for (size_t i = 0; i < size; ++i) {
      if ((!write || atomic) && w[i] != blocks_run) {
        report("read of " + place(p) + ", which no thread of the block has written");
        break;
      }
    }
    for (size_t i = 0; write && i < size; ++i) w[i] = blocks_run;
  }
  const Access now{launches,
                   block_number,
                   current->barriers,
                   current->warp_barriers,
                   clock_now,
                   static_cast<uint16_t>(current->index),
                   atomic};
  size_t unit = size > 8 ? 8 : size;
  while (p % unit) unit /= 2;
  size_t step = unit;
  for (uintptr_t q = p; q < p + size; q += step) {
    Cell& c = *cells_of(q, unit, step);
    if (!(atomic && c.write.atomic) && !ordered(c.write, q)) {
      if (write && !atomic && !c.write.atomic) {
        same_write = {p, size, {}, c.write};
        std::memcpy(same_write.before, reinterpret_cast<void*>(p), size);
      } else {
        report_race(atomic  ? "an atomic"
                    : write ? "a write"
                            : "a read",
                    c.write, c.write.atomic ? "atomic" : "write", q);
      }
    }
    if (write) {
      for (const Access* r : {&c.read, &c.other_read, &c.other_block})
        if (!ordered(*r, q)) report_race(atomic ? "an atomic" : "a write", *r, "read", q);
      c.write = now;
    } else {
      if (c.read.block != now.block) c.other_block = c.read;
      if (c.read.thread != now.thread || c.read.block != now.block) c.other_read = c.read;
      c.read = now;
    }
  }
}

// ---------------------------------------------------------------- the scheduler
void enter() {
  (*body)();
  check_same_write();
  current->done = true;
  change(current->context, scheduler);
  std::abort();
}

void pause() {
  Thread* const me = current;
  check_same_write();
  change(me->context, scheduler);
}

void wait(Meeting meeting, int line) {
  current->meeting = meeting, current->line = line;
  pause();
}

// Whether the lanes named by `t` are all there; then they go on.
bool warp_meets(Thread& t) {
  const int first = t.index / kWarp * kWarp, count = static_cast<int>(threads.size());
  unsigned votes = 0;
  for (int i = 0; i < kWarp; ++i) {
    if (!(t.mask >> i & 1)) continue;
    if (first + i >= count) return false;
    const Thread& other = threads[first + i];
    if (other.done || other.meeting != t.meeting || other.mask != t.mask || other.line != t.line) return false;
    votes |= static_cast<unsigned>(other.yes) << i;
  }
  for (int i = 0; i < kWarp; ++i) {
    if (!(t.mask >> i & 1)) continue;
    Thread& other = threads[first + i];
    if (other.meeting == Meeting::shuffle) {
      if (other.source < 0 || other.source >= kWarp || !(t.mask >> other.source & 1)) {
        current = &other;
        report("a shuffle in line " + std::to_string(other.line) + " reads lane " + std::to_string(other.source) +
               ", which takes no part");
        current = nullptr;
      } else {
        other.result = threads[first + other.source].own;
      }
      other.ballot = votes;
    }
  }
  for (int i = 0; i < kWarp; ++i) {
    if (!(t.mask >> i & 1)) continue;
    Thread& other = threads[first + i];
    if (other.meeting == Meeting::warp && t.mask == 0xFFFFFFFF) ++other.warp_barriers;
    other.meeting = Meeting::none;
  }
  return true;
}

bool block_meets() {
  int votes = 0;
  for (const Thread& t : threads) {
    if (t.done || t.meeting != Meeting::block || t.line != threads[0].line) return false;
    votes += t.yes;
  }
  for (Thread& t : threads) t.meeting = Meeting::none, t.votes = votes, ++t.barriers;
  return true;
}

bool meet() {
  bool any = false;
  for (Thread& t : threads)
    if (t.meeting == Meeting::warp || t.meeting == Meeting::shuffle) any |= warp_meets(t);
  return any || block_meets();
}

void report_stuck() {
  const char* const names[] = {"", "__syncthreads", "__syncwarp", "a shuffle or ballot"};
  std::string text = "divergent: some threads wait";
  int shown = 0, left = 0;
  for (const Thread& t : threads) {
    left += t.done;
    if (t.done || shown++ >= 3) continue;
    text += "; thread " + std::to_string(t.index) + " at " + names[static_cast<int>(t.meeting)] + " in line " +
            std::to_string(t.line);
  }
  report(text + "; " + std::to_string(left) + " have left the kernel");
}

void run_block() {
  ++blocks_run;
  counted.clear(), acquired.clear(), acquired_atomics.clear();
  const int count = static_cast<int>(block.x);
  threads.clear();
  threads.resize(count);
  if (!stacks)
    stacks = static_cast<char*>(mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  for (int i = 0; i < count; ++i) {
    threads[i].index = i;
    prepare(threads[i].context, stacks + i * kStack, enter);
  }
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_bits);
  for (int alive = count; alive > 0;) {
    bool ready = false;
    const int begin = static_cast<int>(random_bits() % count);
    uint64_t skips = random_bits();  // some wait for the next round
    for (int k = 0; k < count; ++k) {
      Thread& t = threads[order[(begin + k) % count]];
      if (t.done || t.meeting != Meeting::none) continue;
      ready = true;
      skips = skips << 1 | skips >> 63;
      if ((skips & 7) == 0) continue;
      current = &t;
      change(scheduler, t.context);
      current = nullptr;
      alive -= t.done;
    }
    if (!ready && alive > 0 && !meet()) return report_stuck();
  }
}

}  // namespace

Index thread_index() { return {static_cast<unsigned>(current->index), 0, 0}; }
Index block_index() { return {block_number, 0, 0}; }
Extent block_extent() { return block; }
Extent grid_extent() { return grid; }

void run(const char* name, Extent grid_wanted, Extent block_wanted, const std::function<void()>& thread) {
  static const bool seeded = [] {
    const char* seed = std::getenv("FASTRL_EMULATION_SEED");
    random_bits.seed(seed ? std::strtoull(seed, nullptr, 10) : 0);
    return true;
  }();
  (void)seeded;
  kernel = name, grid = grid_wanted, block = block_wanted, body = &thread, block_number = 0;
  if (grid.x == 0 || block.x == 0 || block.x > kMaxThreads || grid.y != 1 || grid.z != 1 || block.y != 1 ||
      block.z != 1 || emulation_device != 0)
    return report("bad launch of " + std::to_string(grid.x) + " blocks of " + std::to_string(block.x) + " threads");
  ++launches, clock_now = 0;
  if (pages.size() > 4096) pages.clear();
  releases.clear();
  written.resize(_end - __bss_start);
  std::vector<unsigned> order(grid.x);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random_bits);
  for (unsigned b : order) {
    block_number = b;
    run_block();
  }
}

int barrier(int line, bool yes) {
  current->yes = yes;
  wait(Meeting::block, line);
  return current->votes;
}

void warp_barrier(int line, unsigned mask) {
  if (!(mask >> lane() & 1))
    return report("__syncwarp in line " + std::to_string(line) + " does not name its own lane");
  current->mask = mask;
  wait(Meeting::warp, line);
}

uint64_t exchange(int line, unsigned mask, uint64_t own, int source) {
  if (!(mask >> lane() & 1)) {
    report("the mask in line " + std::to_string(line) + " does not name its own lane");
    return own;
  }
  current->mask = mask, current->own = own, current->source = source;
  wait(Meeting::shuffle, line);
  return current->result;
}

unsigned ballot(int line, unsigned mask, bool yes) {
  current->yes = yes;
  exchange(line, mask, 0, lane());
  return current->ballot;
}

void fail_width(int line, int width) {
  report("a shuffle in line " + std::to_string(line) + " has width " + std::to_string(width));
}

void fence() {
  current->fence = {++clock_now, current->barriers};
  ++clock_now;
  for (const Counted& c : counted) {
    if (c.thread != current->index && c.barriers >= current->barriers) continue;
    current->acquired = true;
    if (acquired_atomics.empty()) acquired_barriers = current->barriers;
    if (!acquired_atomics.insert(c.p).second) continue;
    for (const Release& r : releases[c.p])
      if (r.block != block_number) acquired[r.block] = r;
  }
}

void atomic_begin(const void* p, size_t size) {
  pause();
  const auto at = reinterpret_cast<uintptr_t>(p);
  touch(at, size, true, true);
  if (current->fence.time)
    releases[at].push_back({block_number, static_cast<uint16_t>(current->index), current->fence});
  counted.push_back({at, current->index, current->barriers});
}

}  // namespace emulation

// ---------------------------------------------------------------- the host's calls
bool emulation_reported() { return !emulation::reports.empty(); }

const char* emulation_report() {
  emulation::report_text.clear();
  for (const auto& text : emulation::reports) emulation::report_text += "\n  " + text;
  emulation::reports.clear();
  return emulation::report_text.c_str();
}

// ---------------------------------------------------------------- the compiler's hooks
#define ACCESS(name, size, write)                                                                 \
  extern "C" void __tsan_##name(void* p) {                                                        \
    if (emulation::current) emulation::touch(reinterpret_cast<uintptr_t>(p), size, write, false); \
  }
#define ACCESSES(size)                      \
  ACCESS(read##size, size, false)           \
  ACCESS(write##size, size, true)           \
  ACCESS(unaligned_read##size, size, false) \
  ACCESS(unaligned_write##size, size, true) \
  ACCESS(volatile_read##size, size, false)  \
  ACCESS(volatile_write##size, size, true)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
extern "C" void __tsan_read_range(void* p, size_t size) {
  if (emulation::current) emulation::touch(reinterpret_cast<uintptr_t>(p), size, false, false);
}
extern "C" void __tsan_write_range(void* p, size_t size) {
  if (emulation::current && size <= 16) emulation::touch(reinterpret_cast<uintptr_t>(p), size, true, false);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}

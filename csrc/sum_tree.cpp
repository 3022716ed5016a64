#include "sum_tree.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#define FASTRL_FORKS 1
#else
#define FASTRL_FORKS 0
#endif

#include "parallel.h"
#include "powers.h"
#include "random.h"

namespace fastrl {
namespace {

constexpr int kMaxLevels = 9;    // 16^8 > 2^31 leaves
constexpr int kInterleave = 32;  // draws that descend together, so that their cache misses overlap
constexpr int64_t kChunk = 256;  // draws a pass, so that their uniforms stay on the stack
constexpr int64_t kAlign = 64;

// ---------------------------------------------------------------- one node of 16 children
// The vector type is GCC's and Clang's; 4 lanes map onto AVX, are split for SSE2 and NEON. Elsewhere plain loops.
#if defined(__GNUC__)
typedef double Lanes __attribute__((vector_size(32)));
typedef float Lanes32 __attribute__((vector_size(16)));

FASTRL_INLINE Lanes load_lanes(const double* p) { return *reinterpret_cast<const Lanes*>(p); }
FASTRL_INLINE Lanes load_lanes(const float* p) {
  return __builtin_convertvector(*reinterpret_cast<const Lanes32*>(p), Lanes);
}

FASTRL_INLINE Lanes scan4(Lanes x) {
  const Lanes zero = {0, 0, 0, 0};
  x += __builtin_shufflevector(x, zero, 4, 0, 4, 2);
  return x + __builtin_shufflevector(x, zero, 4, 4, 1, 1);
}

FASTRL_INLINE Lanes last4(Lanes x) { return __builtin_shufflevector(x, x, 3, 3, 3, 3); }

// prefix_sums of the 16 values at `in`, written to `out`; returns the last one.
FASTRL_INLINE double scan_children(const double* in, double* out) {
  Lanes a = scan4(load_lanes(in)), b = scan4(load_lanes(in + 4));
  Lanes c = scan4(load_lanes(in + 8)), d = scan4(load_lanes(in + 12));
  b += last4(a);
  d += last4(c);
  c += last4(b);
  d += last4(b);
  auto* to = reinterpret_cast<Lanes*>(out);
  to[0] = a, to[1] = b, to[2] = c, to[3] = d;
  return d[3];
}

template <class T>
FASTRL_INLINE double sum_children(const T* children) {
  const Lanes a = load_lanes(children), b = load_lanes(children + 4);
  const Lanes c = load_lanes(children + 8), d = load_lanes(children + 12);
  const Lanes ab = __builtin_shufflevector(a, b, 0, 4, 2, 6) + __builtin_shufflevector(a, b, 1, 5, 3, 7);
  const Lanes cd = __builtin_shufflevector(c, d, 0, 4, 2, 6) + __builtin_shufflevector(c, d, 1, 5, 3, 7);
  const Lanes q = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  return (q[0] + q[1]) + (q[2] + q[3]);
}

// Smallest (of the positive ones, where asked) and largest of the 16 children.
typedef float Lanes8 __attribute__((vector_size(32)));

template <class V>
FASTRL_INLINE V lower(V x, V y) {
  return x < y ? x : y;
}
template <class V>
FASTRL_INLINE V higher(V x, V y) {
  return x > y ? x : y;
}
template <class V>
FASTRL_INLINE V positive_or_inf(V x, bool only_positive) {
  const V zero = {}, inf = zero + std::numeric_limits<double>::infinity();
  return only_positive ? (x > zero ? x : inf) : x;
}

#define FASTRL_FOLD_4(f, v)                            \
  v = f(v, __builtin_shufflevector(v, v, 2, 3, 2, 3)); \
  v = f(v, __builtin_shufflevector(v, v, 1, 1, 1, 1));
#define FASTRL_FOLD_8(f, v)                                        \
  v = f(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 4, 5, 6, 7)); \
  v = f(v, __builtin_shufflevector(v, v, 2, 3, 2, 3, 2, 3, 2, 3)); \
  v = f(v, __builtin_shufflevector(v, v, 1, 1, 1, 1, 1, 1, 1, 1));

FASTRL_INLINE double min_children(const double* p, bool only_positive) {
  const auto* v = reinterpret_cast<const Lanes*>(p);
  Lanes m = lower(lower(positive_or_inf(v[0], only_positive), positive_or_inf(v[1], only_positive)),
                  lower(positive_or_inf(v[2], only_positive), positive_or_inf(v[3], only_positive)));
  FASTRL_FOLD_4(lower, m)
  return m[0];
}
FASTRL_INLINE double max_children(const double* p) {
  const auto* v = reinterpret_cast<const Lanes*>(p);
  Lanes m = higher(higher(v[0], v[1]), higher(v[2], v[3]));
  FASTRL_FOLD_4(higher, m)
  return m[0];
}
FASTRL_INLINE float min_children(const float* p, bool only_positive) {
  const auto* v = reinterpret_cast<const Lanes8*>(p);
  Lanes8 m = lower(positive_or_inf(v[0], only_positive), positive_or_inf(v[1], only_positive));
  FASTRL_FOLD_8(lower, m)
  return m[0];
}
FASTRL_INLINE float max_children(const float* p) {
  const auto* v = reinterpret_cast<const Lanes8*>(p);
  Lanes8 m = higher(v[0], v[1]);
  FASTRL_FOLD_8(higher, m)
  return m[0];
}
#undef FASTRL_FOLD_4
#undef FASTRL_FOLD_8
#else
double scan_children(const double* in, double* out) {
  std::copy(in, in + kFanout, out);
  prefix_sums(out);
  return out[kFanout - 1];
}

template <class T>
double sum_children(const T* children) {
  double prefix[kFanout];
  for (int j = 0; j < kFanout; ++j) prefix[j] = children[j];
  prefix_sums(prefix);
  return prefix[kFanout - 1];
}

template <class T>
T min_children(const T* children, bool only_positive) {
  T low[kFanout];
  for (int j = 0; j < kFanout; ++j)
    low[j] = only_positive && !(children[j] > 0) ? std::numeric_limits<T>::infinity() : children[j];
  for (int h = kFanout / 2; h > 0; h /= 2)
    for (int j = 0; j < h; ++j) low[j] = low[j] < low[j + h] ? low[j] : low[j + h];
  return low[0];
}

template <class T>
T max_children(const T* children) {
  T high[kFanout];
  for (int j = 0; j < kFanout; ++j) high[j] = children[j];
  for (int h = kFanout / 2; h > 0; h /= 2)
    for (int j = 0; j < h; ++j) high[j] = high[j] > high[j + h] ? high[j] : high[j + h];
  return high[0];
}
#endif

// ---------------------------------------------------------------- the levels
template <class T>
struct Levels {
  int top;                    // the level of the root; leaves are level 0
  int64_t width[kMaxLevels];  // nodes of a level, padded to whole groups of siblings
  T* leaves;
  double* sums[kMaxLevels];    // [0] unused
  double* prefix[kMaxLevels];  // of the sums, within each group of 16 siblings; [0] and [top] unused
  T* mins[kMaxLevels];
  T* maxs[kMaxLevels];
  uint8_t*
      marks[kMaxLevels];  // a byte a node: on the list of nodes to recompute (bits would wait for each other's stores)
  uint64_t* stale;        // a bit a node of level 1: its mins and maxs, and those above it, are out of date
};

// ---------------------------------------------------------------- lists of nodes
// Which byte of a word, in memory order, is its first that is not 0. Each is 0 or 1.
FASTRL_INLINE int lowest_byte(uint64_t word) {
#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  return __builtin_ctzll(word) / 8;
#else
  uint8_t bytes[8];
  std::memcpy(bytes, &word, 8);
  int byte = 0;
  while (!bytes[byte]) ++byte;
  return byte;
#endif
}

// The parents of the nodes in `list`, in place; `sorted` says whether the list is, and the parents then come once each.
// Few nodes of a wide level hardly meet, and recomputing twice costs less than finding the doubles. Else each parent is
// marked by a byte (a bit would wait for its neighbour's store), and the marks, all 0 before and after, are read off in
// order: this sorts the list.
FASTRL_INLINE int64_t parents(int64_t* list, int64_t n, int64_t width, uint8_t* marks, bool& sorted) {
  constexpr int kShift = 4;
  static_assert(1 << kShift == kFanout, "a node's parent is node >> kShift");
  int64_t count = 0;
  if (sorted) {
    int64_t last = -1;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t node = list[i] >> kShift;
      count += node != last;
      list[count - 1] = last = node;
    }
    return count;
  }
  if (n * 4 < width) {
    for (int64_t i = 0; i < n; ++i) list[i] >>= kShift;
    return n;
  }
  for (int64_t i = 0; i < n; ++i) marks[list[i] >> kShift] = 1;
  for (int64_t base = 0; base < width; base += 8) {
    uint64_t word;
    std::memcpy(&word, marks + base, 8);
    if (!word) continue;
    std::memset(marks + base, 0, 8);
    for (; word; word &= word - 1) list[count++] = base + lowest_byte(word);
  }
  sorted = true;
  return count;
}

// ---------------------------------------------------------------- search, one version an instruction set
FASTRL_INLINE void prefetch(const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

namespace baseline {
#define FASTRL_LEVEL 1
#include "sum_tree_search.inl"
}  // namespace baseline

#if FASTRL_X86_LEVELS
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,lzcnt,popcnt,movbe")
namespace v3 {
#define FASTRL_LEVEL 3
#include "sum_tree_search.inl"
}  // namespace v3
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,lzcnt,popcnt,movbe,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")
namespace v4 {
#define FASTRL_LEVEL 4
#include "sum_tree_search.inl"
}  // namespace v4
#pragma GCC pop_options
#endif

// The version for this processor, chosen once.
template <class T>
struct Search {
  void (*find_all)(const Levels<T>& tree, double* u, int64_t n, int64_t* out);
  void (*repair)(const Levels<T>& tree, int64_t* list, int64_t n);
};

template <class T>
Search<T> choose_search() {
#if FASTRL_X86_LEVELS
  if (x86_level() == 4) return {v4::find_all, v4::repair};
  if (x86_level() == 3) return {v3::find_all, v3::repair};
#endif
  return {baseline::find_all, baseline::repair};
}

template <class T>
const Search<T> search = choose_search<T>();

#if FASTRL_X86_LEVELS
void (*const uniforms)(uint64_t, uint64_t, int64_t, double*) = x86_level() == 4   ? v4::uniforms
                                                               : x86_level() == 3 ? v3::uniforms
                                                                                  : baseline::uniforms;
#else
using baseline::uniforms;
#endif

// ---------------------------------------------------------------- recomputing parents
// The smallest positive and largest values of the nodes of level 1 in `list`, which is sorted, and of their ancestors.
template <class T>
FASTRL_INLINE void repair_extremes(const Levels<T>& tree, int64_t* list, int64_t n) {
  bool sorted = true;
  for (int64_t i = 0; i < n; ++i) {
    tree.mins[1][list[i]] = min_children(tree.leaves + list[i] * kFanout, true);
    tree.maxs[1][list[i]] = max_children(tree.leaves + list[i] * kFanout);
  }
  for (int level = 2; level <= tree.top; ++level) {
    n = parents(list, n, tree.width[level], tree.marks[level], sorted);
    for (int64_t i = 0; i < n; ++i) {
      tree.mins[level][list[i]] = min_children(tree.mins[level - 1] + list[i] * kFanout, false);
      tree.maxs[level][list[i]] = max_children(tree.maxs[level - 1] + list[i] * kFanout);
    }
  }
}

// target_clones does not apply to templates: one plain function a leaf type.
#define FASTRL_REFRESH(T) \
  FASTRL_CLONES void refresh(const Levels<T>& tree, int64_t* list, int64_t n) { repair_extremes(tree, list, n); }
FASTRL_REFRESH(float)
FASTRL_REFRESH(double)
#undef FASTRL_REFRESH

// Whether all indices are inside the tree and all values in [low, high]; NaN is not.
#define FASTRL_ALL_GOOD(P)                                                                                       \
  FASTRL_CLONES bool all_good(const int64_t* indices, int64_t capacity, const P* p, P low, P high, int64_t n) {  \
    int64_t bad = 0;                                                                                             \
    for (int64_t i = 0; i < n; ++i) bad |= static_cast<uint64_t>(indices[i]) >= static_cast<uint64_t>(capacity); \
    for (int64_t i = 0; i < n; ++i) bad |= !(p[i] >= low) | !(p[i] <= high);                                     \
    return !bad;                                                                                                 \
  }
FASTRL_ALL_GOOD(float)
FASTRL_ALL_GOOD(double)
#undef FASTRL_ALL_GOOD

uint64_t fetch_add(uint64_t* counter, uint64_t n) {
#if defined(__GNUC__)
  return __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
#else
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  const uint64_t before = *counter;
  *counter = before + n;
  return before;
#endif
}

// A shared_mutex whose readers let a waiting writer go first: glibc's own lets them come and go for seconds.
class Mutex {
 public:
  void lock() {
    ++waiting_;
    {
      const std::lock_guard<std::mutex> first(gate_);
      mutex_.lock();
    }
    --waiting_;
  }
  void unlock() { mutex_.unlock(); }
  void lock_shared() {
    if (waiting_ > 0) {
      const std::lock_guard<std::mutex> after(gate_);
    }
    mutex_.lock_shared();
  }
  void unlock_shared() { mutex_.unlock_shared(); }

 private:
  std::shared_mutex mutex_;
  std::mutex gate_;
  std::atomic<int> waiting_{0};
};

// The tree whose lock this thread holds. A signal handler may run in the middle of a long call (check_interrupt) and
// use the same tree: an error then, where it would wait for its own thread.
thread_local const void* held = nullptr;

template <class Lock>
class Locked {
 public:
  Locked(Mutex& mutex, const void* tree) : lock_(mutex, std::defer_lock), before_(held) {
    if (held == tree)
      throw std::runtime_error("sum_tree: a signal handler used the tree in the middle of a call of it");
    lock_.lock();
    held = tree;
  }
  ~Locked() { held = before_; }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  Lock lock_;
  const void* before_;
};

using Read = Locked<std::shared_lock<Mutex>>;
using Write = Locked<std::unique_lock<Mutex>>;

template <class T>
class SumTreeOf final : public SumTree {
 public:
  explicit SumTreeOf(int64_t capacity) : capacity_(capacity) {
    // Widths first, so that one allocation holds all.
    int64_t* widths = tree_.width;
    widths[0] = round_up(capacity);
    int top = 0;
    while (top == 0 || widths[top] > 1) {
      const int64_t nodes = widths[top] / kFanout;
      widths[++top] = nodes == 1 ? 1 : round_up(nodes);
    }
    tree_.top = top;
    size_t bytes = aligned(widths[0] * sizeof(T)) + aligned(widths[1] / 8 + 8);
    for (int l = 1; l <= top; ++l)
      bytes +=
          2 * aligned(widths[l] * sizeof(double)) + kAlign + 2 * aligned(widths[l] * sizeof(T)) + aligned(widths[l]);
    // Zeros that cost no memory until they are written to.
    memory_.reset(static_cast<char*>(std::calloc(bytes + kAlign, 1)));
    if (!memory_) throw std::bad_alloc();
    bytes_ = bytes;
    char* at = begin();
    auto take = [&at](size_t n) {
      char* here = at;
      at += aligned(n);
      return here;
    };
    tree_.leaves = reinterpret_cast<T*>(take(widths[0] * sizeof(T)));
    for (int l = 1; l <= top; ++l) {
      tree_.sums[l] = reinterpret_cast<double*>(take(widths[l] * sizeof(double)));
      take(kAlign);  // the search reads one before the first
      tree_.prefix[l] = reinterpret_cast<double*>(take(widths[l] * sizeof(double)));
      tree_.mins[l] = reinterpret_cast<T*>(take(widths[l] * sizeof(T)));
      tree_.maxs[l] = reinterpret_cast<T*>(take(widths[l] * sizeof(T)));
      tree_.marks[l] = reinterpret_cast<uint8_t*>(take(widths[l]));
    }
    tree_.stale = reinterpret_cast<uint64_t*>(take(widths[1] / 8 + 8));
    no_minima();
  }

  BadItem update(const int64_t* indices, const double* priorities, int64_t n) override {
    return update_from(indices, priorities, n);
  }
  BadItem update(const int64_t* indices, const float* priorities, int64_t n) override {
    return update_from(indices, priorities, n);
  }

  BadItem update_from_td(const int64_t* indices, double* td, int64_t n, double alpha, double eps, bool keep_zeros,
                         double* largest) override {
    Copy<int64_t> list(indices, n);
    prefetch_leaves(list.data(), n);
    const double max = std::numeric_limits<double>::max();
    const BadItem bad = check(list.data(), td, -max, max, n);
    if (bad.kind != BadItem::none) return bad;
    td_to_priorities(td, n, alpha, eps, std::numeric_limits<T>::min(), kMaxPriority);
    *largest = write(list.data(), td, n, keep_zeros ? td : nullptr);
    return {};
  }

  BadItem load(const void* leaves) override {
    const T* values = static_cast<const T*>(leaves);
    const T high = static_cast<T>(kMaxPriority);
    for (int64_t i = 0; i < capacity_; ++i)
      if (!(values[i] >= 0 && values[i] <= std::numeric_limits<T>::max()))
        return {BadItem::not_finite_or_negative, i, 0, static_cast<double>(values[i])};
    for (int64_t i = 0; i < capacity_; ++i)
      if (values[i] > high) return {BadItem::too_large, i, 0, static_cast<double>(values[i])};
    std::vector<int64_t> list(static_cast<size_t>(tree_.width[0] / kFanout));  // a leaf of each node
    for (size_t i = 0; i < list.size(); ++i) list[i] = static_cast<int64_t>(i) * kFanout;
    const Write lock(mutex_, this);
    positive_ = 0;
    for (int64_t i = 0; i < capacity_; ++i) positive_ += (tree_.leaves[i] = as_leaf(values[i])) > 0;
    any_stale_ = true;
    search<T>.repair(tree_, list.data(), static_cast<int64_t>(list.size()));
    return {};
  }

  BadItem get(const int64_t* indices, void* out, int64_t n) const override {
    const Read lock(mutex_, this);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t index = indices[i];  // read once: another thread may write to the caller's array meanwhile
      if (!inside(index)) return {BadItem::index, i, index, 0};
      static_cast<T*>(out)[i] = tree_.leaves[index];
    }
    return {};
  }

  void clear() override {
    const Write lock(mutex_, this);
    std::memset(begin(), 0, bytes_);
    any_stale_ = false;
    positive_ = 0;
    no_minima();
  }

  void copy_leaves(void* out) const override {
    const Read lock(mutex_, this);
    std::memcpy(out, tree_.leaves, capacity_ * sizeof(T));
  }

  bool acquire() override {
    if (held == this) return false;
    mutex_.lock();
#if FASTRL_FORKS
    process_ = getpid();
#endif
    return true;
  }
  void release() override {
#if FASTRL_FORKS
    if (process_ !=
        getpid()) {  // a child: the threads that wait for the lock in the parent are not here to be given it
      new (&mutex_) Mutex;
      return;
    }
#endif
    mutex_.unlock();
  }

  double total() const override {
    return locked([this] { return tree_.sums[tree_.top][0]; });
  }
  double min_positive() override {
    return extremes([this] { return double(tree_.mins[tree_.top][0]); });
  }
  double max() override {
    return extremes([this] { return double(tree_.maxs[tree_.top][0]); });
  }
  int64_t count_positive() const override {
    return locked([this] { return positive_; });
  }

  Status find(const double* u, int64_t n, int64_t* out, Threads threads, double* total, int64_t* bad) const override {
    const Read lock(mutex_, this);
    *total = tree_.sums[tree_.top][0];
    *bad = -1;
    if (!(*total > 0)) return Status::total_is_zero;
    for (int64_t i = 0; i < n && *bad < 0; ++i)
      if (!(u[i] >= 0 && u[i] <= *total)) *bad = i;
    if (*bad < 0)
      for_chunks(n, threads, [&](int64_t begin, int64_t m, double* scratch) {
        std::memcpy(scratch, u + begin, m * sizeof(double));
        search<T>.find_all(tree_, scratch, m, out + begin);
      });
    return Status::ok;
  }

  Status sample(uint64_t* state, bool stratified, int64_t n, int64_t* indices, double* probabilities,
                Threads threads) const override {
    const Read lock(mutex_, this);
    const double total = tree_.sums[tree_.top][0];
    if (!(total > 0)) return Status::total_is_zero;
    draw(state, stratified, n, indices, threads,
         [&](int64_t i) { probabilities[i] = static_cast<double>(tree_.leaves[indices[i]]) / total; });
    return Status::ok;
  }

  Status sample_weighted(uint64_t* state, bool stratified, double beta, bool whole_tree, int64_t n, int64_t* indices,
                         void* weights, Threads threads) override {
    T* w = static_cast<T*>(weights);
    auto run = [&] {
      if (!(tree_.sums[tree_.top][0] > 0)) return Status::total_is_zero;
      draw(state, stratified, n, indices, threads, [&](int64_t i) { w[i] = tree_.leaves[indices[i]]; });
      const T smallest = whole_tree ? tree_.mins[tree_.top][0] : *std::min_element(w, w + n);
      parallel_for(n, n >= kParallelFrom ? threads : Threads(1), [&](int64_t begin, int64_t end) {
        priorities_to_weights(w + begin, end - begin, beta, static_cast<double>(smallest));
      });
      return Status::ok;
    };
    return whole_tree ? extremes(run) : locked(run);
  }

  Status sample_distinct(uint64_t* state, int64_t n, int64_t* indices, double* probabilities) override {
    const Write lock(mutex_, this);
    const double total = tree_.sums[tree_.top][0];
    if (!(total > 0)) return Status::total_is_zero;
    if (n > positive_) return Status::too_few;
    std::vector<int64_t> list(indices, indices + n);  // allocated before anything changes
    std::vector<T> taken(n);
    std::exception_ptr stopped;
    const uint64_t seed = state[0], counter = fetch_add(state + 1, static_cast<uint64_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      try {
        if (i % 1024 == 1023) check_interrupt();
      } catch (...) {
        stopped = std::current_exception();
        n = i;  // those are put back
        break;
      }
      double u = uniform(philox(seed, counter + static_cast<uint64_t>(i))) * tree_.sums[tree_.top][0];
      search<T>.find_all(tree_, &u, 1, indices + i);
      T& leaf = tree_.leaves[indices[i]];
      taken[i] = leaf;
      leaf = 0;
      list[0] = indices[i];
      search<T>.repair(tree_, list.data(), 1);
    }
    for (int64_t i = 0; i < n; ++i) {
      tree_.leaves[indices[i]] = taken[i];
      list[i] = indices[i];
      probabilities[i] = static_cast<double>(taken[i]) / total;
    }
    search<T>.repair(tree_, list.data(), n);
    if (stopped) std::rethrow_exception(stopped);
    return Status::ok;
  }

 private:
  static constexpr int64_t kParallelFrom = 8192;      // below, waking the pool costs more than it saves
  static constexpr int64_t kUndo = int64_t{1} << 20;  // updates of more items can be interrupted
  static constexpr double kMaxPriority =
      std::is_same<T, float>::value ? double{std::numeric_limits<float>::max()} : kMaxFloat64Priority;

  static int64_t round_up(int64_t n) { return (n + kFanout - 1) / kFanout * kFanout; }
  static size_t aligned(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }
  bool inside(int64_t i) const { return static_cast<uint64_t>(i) < static_cast<uint64_t>(capacity_); }

  template <class F>
  auto locked(F f) const {
    const Read lock(mutex_, this);
    return f();
  }

  // f under the shared lock, with the smallest and largest values up to date. They are brought up to date here and not
  // in update, where they cost more than the sums (256 updates of 1e6 leaves: 9.9 us with, 3.0 without): few callers
  // ask.
  template <class F>
  auto extremes(F f) {
    for (;;) {
      {
        const Read lock(mutex_, this);
        if (!any_stale_) return f();
      }
      const Write lock(mutex_, this);
      std::vector<int64_t> list;
      for (int64_t word = 0; word <= tree_.width[1] / 64; ++word)
        for (uint64_t bits = tree_.stale[word], node = word * 64; bits; bits >>= 1, ++node)
          if (bits & 1) list.push_back(static_cast<int64_t>(node));
      refresh(tree_, list.data(), static_cast<int64_t>(list.size()));
      std::memset(tree_.stale, 0, tree_.width[1] / 8 + 8);
      any_stale_ = false;
    }
  }

  char* begin() const {
    void* at = memory_.get();
    size_t space = bytes_ + kAlign;
    return static_cast<char*>(std::align(kAlign, bytes_, at, space));
  }

  void no_minima() {
    for (int l = 1; l <= tree_.top; ++l)
      std::fill(tree_.mins[l], tree_.mins[l] + tree_.width[l], std::numeric_limits<T>::infinity());
  }

  template <class F>
  static void for_chunks(int64_t n, Threads threads, F f) {
    parallel_for(n, n >= kParallelFrom ? threads : Threads(1), [&](int64_t begin, int64_t end) {
      alignas(kAlign) double scratch[kChunk];
      for (int64_t i = begin; i < end; i += kChunk) f(i, end - i < kChunk ? end - i : kChunk, scratch);
    });
  }

  template <class F>
  void draw(uint64_t* state, bool stratified, int64_t n, int64_t* indices, Threads threads, F each) const {
    const uint64_t seed = state[0], counter = fetch_add(state + 1, static_cast<uint64_t>(n));
    const double total = tree_.sums[tree_.top][0], slice = total / static_cast<double>(n);
    for_chunks(n, threads, [&](int64_t begin, int64_t m, double* u) {
      uniforms(seed, counter + static_cast<uint64_t>(begin), m, u);
      if (stratified && slice >= std::numeric_limits<double>::min())
        for (int64_t i = 0; i < m; ++i) u[i] = (static_cast<double>(begin + i) + u[i]) * slice;
      else if (stratified)  // a slice that is no normal number has too few bits
        for (int64_t i = 0; i < m; ++i) u[i] = (static_cast<double>(begin + i) + u[i]) / static_cast<double>(n) * total;
      else
        for (int64_t i = 0; i < m; ++i) u[i] *= total;
      search<T>.find_all(tree_, u, m, indices + begin);
      for (int64_t i = begin; i < begin + m; ++i) each(i);
    });
  }

  // Inputs are copied before they are checked: another thread may write to the caller's array meanwhile.
  template <class V>
  class Copy {
   public:
    Copy(const V* values, int64_t n) : many_(n > kChunk ? new V[n] : nullptr) { std::copy(values, values + n, data()); }
    V* data() { return many_ ? many_.get() : few_; }

   private:
    std::unique_ptr<V[]> many_;
    V few_[kChunk];
  };

  // Before the checks, so that the leaves are here when those are done: as numbers, for an index may be any.
  void prefetch_leaves(const int64_t* list, int64_t n) const {
    const uintptr_t base = reinterpret_cast<uintptr_t>(tree_.leaves);
    for (int64_t i = 0; i < n; ++i)
      prefetch(reinterpret_cast<const void*>(base + static_cast<uintptr_t>(list[i]) * sizeof(T)));
  }

  template <class P>
  BadItem check(const int64_t* indices, const P* values, P low, P high, int64_t n) const {
    if (all_good(indices, capacity_, values, low, high, n)) return {};
    for (int64_t i = 0; i < n; ++i)
      if (!inside(indices[i])) return {BadItem::index, i, indices[i], 0};
    for (int64_t i = 0; i < n; ++i)
      if (!(values[i] >= low && values[i] <= std::numeric_limits<P>::max()))
        return {BadItem::not_finite_or_negative, i, 0, static_cast<double>(values[i])};
    for (int64_t i = 0; i < n; ++i)
      if (values[i] > high) return {BadItem::too_large, i, 0, static_cast<double>(values[i])};
    return {};
  }

  template <class P>
  BadItem update_from(const int64_t* indices, const P* priorities, int64_t n) {
    Copy<int64_t> list(indices, n);
    prefetch_leaves(list.data(), n);
    Copy<P> values(priorities, n);
    const P high = static_cast<P>(std::min(kMaxPriority, static_cast<double>(std::numeric_limits<P>::max())));
    const BadItem bad = check(list.data(), values.data(), P(0), high, n);
    if (bad.kind == BadItem::none) write(list.data(), values.data(), n);
    return bad;
  }

  // In the leaf type. -0 becomes 0; what is positive stays so, and is normal: no sum of leaves has too few bits.
  template <class P>
  static T as_leaf(P priority) {
    constexpr T low = std::numeric_limits<T>::min();
    const T value = static_cast<T>(priority) + T(0);
    return priority > 0 && value < low ? low : value;
  }

  // Checked items; the largest priority written. `dead`: the same priorities, to be set to 0 where the leaf is 0 now.
  template <class P>
  double write(int64_t* list, const P* priorities, int64_t n, double* dead = nullptr) {
    std::unique_ptr<T[]> before(n > kUndo ? new T[n] : nullptr);
    const Write lock(mutex_, this);
    if (dead)
      for (int64_t i = 0; i < n; ++i)
        if (!(tree_.leaves[list[i]] > 0)) dead[i] = 0;
    // The largest by its bits, which order as numbers >= 0 do: as a number GCC keeps it in memory, 11 cycles an item.
    typename std::conditional<sizeof(T) == 4, uint32_t, uint64_t>::type bits, largest_bits = 0;
    int64_t positive = positive_;
    for (int64_t begin = 0; begin < n; begin += kUndo) {
      const int64_t end = std::min(n, begin + kUndo);
      if (before) save(list, begin, end, before.get());
      for (int64_t i = begin; i < end; ++i) {
        T& leaf = tree_.leaves[list[i]];
        const T value = as_leaf(priorities[i]);
        std::memcpy(&bits, &value, sizeof bits);
        positive += (bits != 0) - (leaf > 0);
        largest_bits = bits > largest_bits ? bits : largest_bits;
        leaf = value;
      }
    }
    T largest;
    std::memcpy(&largest, &largest_bits, sizeof largest);
    positive_ = positive;
    any_stale_ = true;
    search<T>.repair(tree_, list, n);
    return largest;
  }

  // The leaves of a block of a long update, before they are written to: to put them all back where it is interrupted.
  void save(const int64_t* list, int64_t begin, int64_t end, T* before) {
    try {
      check_interrupt();
    } catch (...) {
      for (int64_t i = begin; i-- > 0;) tree_.leaves[list[i]] = before[i];
      throw;
    }
    for (int64_t i = begin; i < end; ++i) before[i] = tree_.leaves[list[i]];
  }

  struct Free {
    void operator()(char* p) const { std::free(p); }
  };

  int64_t capacity_, positive_ = 0;
  bool any_stale_ = false;
  Levels<T> tree_{};
  size_t bytes_;
  std::unique_ptr<char, Free> memory_;
  mutable Mutex mutex_;
#if FASTRL_FORKS
  pid_t process_ = 0;  // the one that acquire was called in
#endif
};

}  // namespace

SumTree* make_sum_tree(int64_t capacity, bool float64) {
  if (float64) return new SumTreeOf<double>(capacity);
  return new SumTreeOf<float>(capacity);
}

const char* simd_level() {
#if FASTRL_X86_LEVELS
  const int level = x86_level();
  return level == 4 ? "x86-64-v4 (AVX-512)" : level == 3 ? "x86-64-v3 (AVX2)" : "x86-64 (SSE2)";
#elif defined(__aarch64__)
  return "NEON";
#else
  return "the compiler's default";
#endif
}

}  // namespace fastrl

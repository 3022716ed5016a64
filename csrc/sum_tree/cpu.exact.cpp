#include "sum_tree/sum_tree.h"

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

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#define FASTRL_FORKS 1
#else
#define FASTRL_FORKS 0
#endif

#include "core/levels.h"
#include "core/parallel.h"
#include "random/normals.h"
#include "sum_tree/levels.h"
#include "sum_tree/lock.h"
#include "sum_tree/node.h"
#include "sum_tree/powers.h"
#include "sum_tree/search.h"

namespace fastrl {
namespace {

constexpr int64_t kChunk = 256;  // draws a pass, so that their uniforms stay on the stack

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

// Whether all indices are inside the tree and all values in [low, high]; NaN is not.
template <class P>
FASTRL_INLINE bool all_good(const int64_t* indices, int64_t capacity, const P* p, P low, P high, int64_t n) {
  int64_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= static_cast<uint64_t>(indices[i]) >= static_cast<uint64_t>(capacity);
  for (int64_t i = 0; i < n; ++i) bad |= !(p[i] >= low) | !(p[i] <= high);
  return !bad;
}

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

template <class T>
class SumTreeOf final : public SumTree {
 public:
  explicit SumTreeOf(int64_t capacity) : capacity_(capacity) {
    set_widths();
    bytes_ = lay_out(nullptr, true);
    // Zeros that cost no memory until they are written to.
    memory_.reset(static_cast<char*>(std::calloc(bytes_ + kAlign, 1)));
    if (!memory_) throw std::bad_alloc();
    lay_out(begin(), true);
    no_minima();
  }

  // In memory of the caller, without extremes.
  SumTreeOf(int64_t capacity, void* leaves, void* nodes) : capacity_(capacity) {
    set_widths();
    tree_.leaves = static_cast<T*>(leaves);
    bytes_ = lay_out(static_cast<char*>(nodes), false);
  }

  size_t bytes() const { return bytes_; }

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
    repair(tree_, list.data(), static_cast<int64_t>(list.size()));
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
        find_all(tree_, scratch, m, out + begin);
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
      find_all(tree_, &u, 1, indices + i);
      T& leaf = tree_.leaves[indices[i]];
      taken[i] = leaf;
      leaf = 0;
      list[0] = indices[i];
      repair(tree_, list.data(), 1);
    }
    for (int64_t i = 0; i < n; ++i) {
      tree_.leaves[indices[i]] = taken[i];
      list[i] = indices[i];
      probabilities[i] = static_cast<double>(taken[i]) / total;
    }
    repair(tree_, list.data(), n);
    if (stopped) std::rethrow_exception(stopped);
    return Status::ok;
  }

 private:
  static constexpr int64_t kParallelFrom = 8192;      // below, waking the pool costs more than it saves
  static constexpr int64_t kUndo = int64_t{1} << 20;  // updates of more items can be interrupted
  static constexpr double kMaxPriority =
      std::is_same<T, float>::value ? double{std::numeric_limits<float>::max()} : kMaxFloat64Priority;

  static int64_t round_up(int64_t n) { return sum_tree_leaves(n); }

  void set_widths() {
    int64_t* widths = tree_.width;
    widths[0] = round_up(capacity_);
    int top = 0;
    while (top == 0 || widths[top] > 1) {
      const int64_t nodes = widths[top] / kFanout;
      widths[++top] = nodes == 1 ? 1 : round_up(nodes);
    }
    tree_.top = top;
  }

  // Puts the arrays one after another from `base` on, which may be null to learn how many bytes they take. `whole`:
  // leaves and extremes too.
  size_t lay_out(char* base, bool whole) {
    size_t used = 0;
    const auto take = [&](size_t n) {
      char* here = base ? base + used : nullptr;
      used += aligned(n);
      return here;
    };
    const int64_t* widths = tree_.width;
    if (whole) tree_.leaves = reinterpret_cast<T*>(take(widths[0] * sizeof(T)));
    for (int l = 1; l <= tree_.top; ++l) {
      tree_.sums[l] = reinterpret_cast<double*>(take(widths[l] * sizeof(double)));
      take(kAlign);  // the search reads one before the first
      tree_.prefix[l] = reinterpret_cast<double*>(take(widths[l] * sizeof(double)));
      if (whole) tree_.mins[l] = reinterpret_cast<T*>(take(widths[l] * sizeof(T)));
      if (whole) tree_.maxs[l] = reinterpret_cast<T*>(take(widths[l] * sizeof(T)));
      tree_.marks[l] = reinterpret_cast<uint8_t*>(take(widths[l]));
    }
    tree_.stale = reinterpret_cast<uint64_t*>(take(widths[1] / 8 + 8));
    return used;
  }

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
      at_level<repair_extremes<T>>(tree_, list.data(), static_cast<int64_t>(list.size()));
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
      fill_uniform(seed, counter + static_cast<uint64_t>(begin), m, u);
      if (stratified && slice >= std::numeric_limits<double>::min())
        for (int64_t i = 0; i < m; ++i) u[i] = (static_cast<double>(begin + i) + u[i]) * slice;
      else if (stratified)  // a slice that is no normal number has too few bits
        for (int64_t i = 0; i < m; ++i) u[i] = (static_cast<double>(begin + i) + u[i]) / static_cast<double>(n) * total;
      else
        for (int64_t i = 0; i < m; ++i) u[i] *= total;
      find_all(tree_, u, m, indices + begin);
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
    if (at_level<all_good<P>>(indices, capacity_, values, low, high, n)) return {};
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
    repair(tree_, list, n);
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

std::unique_ptr<SumTree> sum_tree_in(int64_t capacity, bool float64, void* leaves, void* nodes) {
  if (float64) return std::make_unique<SumTreeOf<double>>(capacity, leaves, nodes);
  return std::make_unique<SumTreeOf<float>>(capacity, leaves, nodes);
}

size_t sum_tree_node_bytes(int64_t capacity, bool float64) {
  return float64 ? SumTreeOf<double>(capacity, nullptr, nullptr).bytes()
                 : SumTreeOf<float>(capacity, nullptr, nullptr).bytes();
}

}  // namespace fastrl

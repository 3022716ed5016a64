#include "categorical/categorical.h"

#include <memory>
#include <type_traits>

#include "core/levels.h"

namespace fastrl {
namespace {

// Rows that are worked on together, laid out action by action: rows are short, so the vectors run across them, and a
// row's numbers depend neither on its neighbours nor on its place. Missing rows repeat the last one.
constexpr int64_t kRows = 16;
constexpr int64_t kOnStack = 64;  // actions

template <class T>
class Tile {
 public:
  explicit Tile(int64_t actions) {
    if (actions <= kOnStack) return;
    heap_.reset(new Line[actions]);
    lines = heap_.get();
  }
  struct alignas(64) Line {
    T row[kRows];
  };

 private:
  Line stack_[kOnStack];
  std::unique_ptr<Line[]> heap_;

 public:
  Line* lines = stack_;
};

template <class In>
FASTRL_INLINE In load_item(const char* at) {
  In x;
  std::memcpy(&x, at, sizeof x);  // a NumPy array may be unaligned
  return x;
}

// Several rows at once. The vector type is GCC's and Clang's: their loop vectoriser keeps sums over k of 16 neighbours
// in scalars. 32 bytes, as all selects on wider ones are scalar below AVX-512. Elsewhere one row at a time.
#if defined(__GNUC__)
template <class T>
struct LanesOf;
template <>
struct LanesOf<float> {
  typedef float type __attribute__((vector_size(32)));
};
template <>
struct LanesOf<double> {
  typedef double type __attribute__((vector_size(32)));
};
template <class T>
using Lanes = typename LanesOf<T>::type;
typedef float FourFloats __attribute__((vector_size(16)));
typedef int64_t FourInts __attribute__((vector_size(32)));
FASTRL_INLINE Lanes<double> widen(const double* x) { return *reinterpret_cast<const Lanes<double>*>(x); }
FASTRL_INLINE Lanes<double> widen(FourFloats x) {
  return Lanes<double>{x[0], x[1], x[2], x[3]};  // one instruction, which __builtin_convertvector is not
}
FASTRL_INLINE Lanes<double> widen(const float* x) { return widen(*reinterpret_cast<const FourFloats*>(x)); }
FASTRL_INLINE Lanes<double> widen_product(const double* x, const double* y) { return widen(x) * widen(y); }
FASTRL_INLINE Lanes<double> widen_product(const float* x, const float* y) {
  return widen(*reinterpret_cast<const FourFloats*>(x) * *reinterpret_cast<const FourFloats*>(y));
}
// 1 where it holds, in integers as wide as the lanes.
FASTRL_INLINE FourInts ones(FourInts mask) { return -mask; }
#else
template <class T>
using Lanes = T;
using FourInts = int64_t;
template <class T>
FASTRL_INLINE double widen(const T* x) {
  return static_cast<double>(*x);
}
template <class T>
FASTRL_INLINE double widen_product(const T* x, const T* y) {
  return static_cast<double>(*x * *y);
}
FASTRL_INLINE int64_t ones(bool holds) { return holds; }
#endif

// Lanes in a line of the tile.
template <class V, class T>
constexpr int64_t kStep = kRows * static_cast<int64_t>(sizeof(T)) / static_cast<int64_t>(sizeof(V));

template <class V, class T>
FASTRL_INLINE V& lanes(T* at) {
  return *reinterpret_cast<V*>(at);
}

// d = z - base of the rows to tile[k][row]; few rows at once, so that their addresses and numbers stay in registers.
template <class In, class T>
FASTRL_INLINE void stage(const Logits& z, int64_t first, int64_t rows, T* tile, T* base) {
  using V = Lanes<T>;
  constexpr int64_t kGroup = sizeof(V) / sizeof(T);
  for (int64_t group = 0; group < kRows; group += kGroup) {
    const char* at[kGroup];
    for (int64_t r = 0; r < kGroup; ++r)
      at[r] = z.data + (first + (group + r < rows ? group + r : rows - 1)) * z.row_stride;
    V* const to = reinterpret_cast<V*>(tile + group);
    V largest = V{} - std::numeric_limits<T>::infinity();
    int64_t offset = 0;
    const auto item = [&](int64_t r) { return static_cast<T>(load_item<In>(at[r] + offset)); };
    for (int64_t k = 0; k < z.actions; ++k, offset += z.column_stride) {
      V x;
      if constexpr (kGroup == 8)
        x = V{item(0), item(1), item(2), item(3), item(4), item(5), item(6), item(7)};
      else if constexpr (kGroup == 4)
        x = V{item(0), item(1), item(2), item(3)};
      else
        x = item(0);
      largest = x > largest ? x : largest;
      to[k * kStep<V, T>] = x;
    }
    const V b = logit_base(largest), floor = V{} + ExpFloor<T>::value;
    for (int64_t k = 0; k < z.actions; ++k) to[k * kStep<V, T>] = logit_difference(to[k * kStep<V, T>], b, floor);
    lanes<V>(base + group) = b;
  }
}

template <class T>
FASTRL_INLINE void exponentials(const T* d, int64_t n, T* e) {
  for (int64_t i = 0; i < n; ++i) e[i] = exp_negative(d[i]);
}

// s = sum e^d and t = sum e^d d, in float64: a float32 sum of many small terms and a 1 would drift. Several sums at a
// time, because each waits for its own last addition.
template <class T>
FASTRL_INLINE void totals(const T* d, const T* e, int64_t n, double* s, double* t) {
  using V = Lanes<double>;
  constexpr int64_t kWidth = sizeof(V) / sizeof(double), kSums = 4;
  for (int64_t r = 0; r < kRows; r += kSums * kWidth) {
    V sum[kSums] = {}, sum_ed[kSums] = {};
    for (int64_t i = r; i < n; i += kRows)
      for (int64_t v = 0; v < kSums; ++v) {
        sum[v] += widen(e + i + v * kWidth);
        sum_ed[v] += widen_product(e + i + v * kWidth, d + i + v * kWidth);
      }
    for (int64_t v = 0; v < kSums; ++v) {
      lanes<V>(s + r + v * kWidth) = sum[v];
      lanes<V>(t + r + v * kWidth) = sum_ed[v];
    }
  }
}

template <class T>
FASTRL_INLINE void log_prob_tile(const T* d, T* e, int64_t n, const T* chosen, T* log_prob, T* entropy) {
  alignas(64) double s[kRows], t[kRows];
  exponentials(d, n, e);
  totals(d, e, n, s, t);
  for (int64_t r = 0; r < kRows; ++r) {
    const double log_s = log_total(s[r]);
    log_prob[r] = static_cast<T>(static_cast<double>(chosen[r]) - log_s);
    entropy[r] = static_cast<T>(categorical_entropy(s[r], t[r], log_s));
  }
}

// e <- the gradients.
template <class T>
FASTRL_INLINE void grad_tile(const T* d, T* e, int64_t n, const T* g_log_prob, const T* g_entropy) {
  using V = Lanes<T>;
  alignas(64) double s[kRows], t[kRows];
  alignas(64) T log_s[kRows], entropy[kRows], inverse[kRows];
  exponentials(d, n, e);
  totals(d, e, n, s, t);
  for (int64_t r = 0; r < kRows; ++r) {
    const double ls = log_total(s[r]);
    log_s[r] = static_cast<T>(ls);
    entropy[r] = static_cast<T>(categorical_entropy(s[r], t[r], ls));
    inverse[r] = static_cast<T>(1.0 / s[r]);
  }
  for (int64_t r = 0; r < kRows; r += sizeof(V) / sizeof(T)) {
    const V ls = lanes<V>(log_s + r), h = lanes<V>(entropy + r), w = lanes<V>(inverse + r), none = {};
    const V gl = lanes<const V>(g_log_prob + r), gh = lanes<const V>(g_entropy + r);
    for (int64_t i = r; i < n; i += kRows)
      lanes<V>(e + i) = categorical_grad(lanes<V>(e + i) * w, lanes<const V>(d + i) - ls, h, none, gl, gh);
  }
}

// The action is the first k whose prefix sum exceeds u s. One without probability adds nothing, so never is the first;
// nor is any after the sum is complete, should u s round up to s.
FASTRL_INLINE void draw_tile(double* d, double* e, int64_t n, const double* u, double* log_s, int64_t* action) {
  using V = Lanes<double>;
  alignas(64) double s[kRows];
  exponentials(d, n, e);
  constexpr int64_t kWidth = sizeof(V) / sizeof(double), kSums = 4;
  for (int64_t r = 0; r < kRows; r += kSums * kWidth) {
    V sum[kSums] = {}, target[kSums];
    FourInts count[kSums] = {};
    for (int64_t i = r; i < n; i += kRows)
      for (int64_t v = 0; v < kSums; ++v) {
        V& x = lanes<V>(e + i + v * kWidth);
        x = sum[v] += x;
      }
    for (int64_t v = 0; v < kSums; ++v) target[v] = lanes<const V>(u + r + v * kWidth) * sum[v];
    for (int64_t i = r; i < n; i += kRows)
      for (int64_t v = 0; v < kSums; ++v) {
        const V x = lanes<V>(e + i + v * kWidth);
        count[v] += ones((x <= target[v]) & (x < sum[v]));
      }
    for (int64_t v = 0; v < kSums; ++v) {
      lanes<V>(s + r + v * kWidth) = sum[v];
      lanes<FourInts>(action + r + v * kWidth) = count[v];
    }
  }
  for (int64_t r = 0; r < kRows; ++r) log_s[r] = log_total(s[r]);
}

FASTRL_INLINE void uniform_rows(const uint64_t* bits, double* u) {
  for (int64_t r = 0; r < kRows; ++r) u[r] = uniform(bits[r]);
}

FASTRL_INLINE int64_t rows_of(int64_t first, int64_t end) { return end - first < kRows ? end - first : kRows; }

template <class T>
FASTRL_INLINE void put_rows(const T* x, int64_t rows, T* out) {
  if (rows == kRows)
    std::memcpy(out, x, kRows * sizeof(T));
  else
    std::memcpy(out, x, static_cast<size_t>(rows) * sizeof(T));
}

}  // namespace

template <class T>
void CategoricalLogProb<T>::operator()(int64_t begin, int64_t end) const {
  Tile<T> d(logits.actions), e(logits.actions);
  T* const dt = d.lines->row;
  alignas(64) T base[kRows], chosen[kRows] = {}, lp[kRows], h[kRows];
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t rows = rows_of(first, end);
    at_level_256<stage<T, T>>(logits, first, rows, dt, base);
    const char* row = logits.data + first * logits.row_stride;
    for (int64_t r = 0; r < rows; ++r, row += logits.row_stride)
      chosen[r] = load_item<T>(row + action[first + r] * logits.column_stride) - base[r];
    at_level_256<log_prob_tile<T>>(dt, e.lines->row, logits.actions * kRows, chosen, lp, h);
    put_rows(lp, rows, log_prob + first);
    put_rows(h, rows, entropy + first);
  }
}

template <class T>
void CategoricalGrad<T>::operator()(int64_t begin, int64_t end) const {
  Tile<T> d(logits.actions), e(logits.actions);
  T *const dt = d.lines->row, *const et = e.lines->row;
  alignas(64) T base[kRows], gl[kRows] = {}, gh[kRows] = {};
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t rows = rows_of(first, end), actions = logits.actions;
    at_level_256<stage<T, T>>(logits, first, rows, dt, base);
    for (int64_t r = 0; r < rows; ++r) {
      if (grad_log_prob) gl[r] = grad_log_prob[first + r];
      if (grad_entropy) gh[r] = grad_entropy[first + r];
    }
    at_level_256<grad_tile<T>>(dt, et, actions * kRows, gl, gh);
    for (int64_t r = 0; r < rows; ++r) {
      T* out = grad_logits + (first + r) * actions;
      for (int64_t k = 0; k < actions; ++k) out[k] = et[k * kRows + r];
      out[action[first + r]] += gl[r];
    }
  }
}

template <class T>
int64_t CategoricalSample<T>::operator()(int64_t begin, int64_t end) const {
  Tile<double> d(logits.actions), e(logits.actions);
  double* const dt = d.lines->row;
  alignas(64) double base[kRows], log_s[kRows], u[kRows] = {};
  alignas(64) int64_t drawn[kRows];
  alignas(64) uint64_t bits[kRows];
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t rows = rows_of(first, end);
    if constexpr (std::is_same_v<T, float>)
      at_level<stage<T, double>>(logits, first, rows, dt, base);
    else
      at_level_256<stage<T, double>>(logits, first, rows, dt, base);
    if (uniform) {
      for (int64_t r = 0; r < rows; ++r) u[r] = uniform[first + r];
    } else {
      philox_blocks(seed, counter + static_cast<uint64_t>(first), kRows, bits, nullptr);
      at_level<uniform_rows>(bits, u);
    }
    at_level<draw_tile>(dt, e.lines->row, logits.actions * kRows, u, log_s, drawn);
    for (int64_t r = 0; r < rows; ++r) {
      if (std::isnan(log_s[r])) return first + r;
      action[first + r] = drawn[r];
      log_prob[first + r] = static_cast<T>(dt[drawn[r] * kRows + r] - log_s[r]);
    }
  }
  return -1;
}

template struct CategoricalLogProb<float>;
template struct CategoricalLogProb<double>;
template struct CategoricalGrad<float>;
template struct CategoricalGrad<double>;
template struct CategoricalSample<float>;
template struct CategoricalSample<double>;

}  // namespace fastrl

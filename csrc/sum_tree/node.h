// One node of the tree: its 16 children's sums, smallest and largest.
#pragma once

#include <algorithm>
#include <limits>

#include "core/common.h"
#include "sum_tree/sum_tree.h"

namespace fastrl {

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
inline double scan_children(const double* in, double* out) {
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

}  // namespace fastrl

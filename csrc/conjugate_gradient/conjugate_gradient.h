// The vector work of one iteration of conjugate gradient for (A + damping I) x = b: three passes over [n]. Dots are
// float64 sums over fixed pieces, so that they do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "core/common.h"

namespace fastrl {

constexpr int64_t kCgPiece = 4096;
inline int64_t cg_pieces(int64_t n) { return (n + kCgPiece - 1) / kCgPiece; }

// The codes of fastrl/kernels/conjugate_gradient.
enum class CgStatus : int { running, converged, max_iter, negative_curvature, breakdown };

struct CgSums {
  double a = 0, b = 0, c = 0;
};

// Each works on the pieces [begin, end) of vectors of n numbers and writes `sums` [piece].

// r = b - (z + damping x), or b where z is null; p = inverse r, or r where that is null. Sums: b.b, r.r and
// r.p.
template <class T>
struct CgStart {
  int64_t n;
  const T *b, *x, *z, *inverse;
  double damping;
  T *r, *p;
  CgSums* sums;
  void operator()(int64_t begin, int64_t end) const;
};

// Sum: p.(z + damping p).
template <class T>
struct CgCurvature {
  int64_t n;
  const T *p, *z;
  double damping;
  CgSums* sums;
  void operator()(int64_t begin, int64_t end) const;
};

// x_next = x + alpha p; r_next = r - alpha (z + damping p). Sums, of r_next: r.r and r.(inverse r); and 0 if all of
// x_next is finite, else NaN.
template <class T>
struct CgUpdate {
  int64_t n;
  const T *x, *r, *p, *z, *inverse;
  double alpha, damping;
  T *x_next, *r_next;
  CgSums* sums;
  void operator()(int64_t begin, int64_t end) const;
};

// p = y + beta p, with y = inverse r where `inverse` is not null.
template <class T>
struct CgDirection {
  int64_t n;
  const T *y, *inverse;
  double beta;
  T* p;
  void operator()(int64_t begin, int64_t end) const;
};

// Sum: r.y.
template <class T>
struct CgDot {
  int64_t n;
  const T *r, *y;
  CgSums* sums;
  void operator()(int64_t begin, int64_t end) const;
};

}  // namespace fastrl

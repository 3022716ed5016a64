#include "conjugate_gradient/conjugate_gradient.h"

#include <algorithm>

#include "core/levels.h"

namespace fastrl {
namespace {

// So many sums side by side: independent adds, and one order for every vector length.
constexpr int64_t kLanes = 16;

// f(i, lane) for i in [begin, end).
template <class F>
FASTRL_INLINE void each(int64_t begin, int64_t end, F f) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    FASTRL_INDEPENDENT
    for (int64_t lane = 0; lane < kLanes; ++lane) f(i + lane, lane);
  }
  for (int64_t lane = 0; i + lane < end; ++lane) f(i + lane, lane);
}

struct Lanes {
  double x[kLanes] = {};
  FASTRL_INLINE double sum() const {
    double s = 0;
    for (double v : x) s += v;
    return s;
  }
};

template <class T>
FASTRL_INLINE CgSums start(const CgStart<T>& c, int64_t begin, int64_t end) {
  Lanes bb, rr, rp;
  each(begin, end, [&](int64_t i, int64_t lane) {
    const double b = c.b[i];
    c.r[i] = c.z ? static_cast<T>(b - (c.z[i] + c.damping * c.x[i])) : c.b[i];
    const double r = c.r[i];
    c.p[i] = c.inverse ? static_cast<T>(r * c.inverse[i]) : c.r[i];
    bb.x[lane] += b * b;
    rr.x[lane] += r * r;
    rp.x[lane] += r * c.p[i];
  });
  return {bb.sum(), rr.sum(), rp.sum()};
}

template <class T>
FASTRL_INLINE CgSums curvature(const CgCurvature<T>& c, int64_t begin, int64_t end) {
  Lanes sums;
  each(begin, end, [&](int64_t i, int64_t lane) {
    const double p = c.p[i];
    sums.x[lane] += p * (c.z[i] + c.damping * p);
  });
  return {sums.sum(), 0, 0};
}

template <class T, bool scaled>
FASTRL_INLINE CgSums update(const CgUpdate<T>& c, int64_t begin, int64_t end) {
  Lanes rr, ry, bad;
  each(begin, end, [&](int64_t i, int64_t lane) {
    const double p = c.p[i];
    const T x = static_cast<T>(c.x[i] + c.alpha * p);
    c.x_next[i] = x;
    c.r_next[i] = static_cast<T>(c.r[i] - c.alpha * (c.z[i] + c.damping * p));
    const double r = c.r_next[i];
    rr.x[lane] += r * r;
    if (scaled) ry.x[lane] += r * (r * c.inverse[i]);
    bad.x[lane] += x - x;  // NaN for an infinite x
  });
  return {rr.sum(), scaled ? ry.sum() : rr.sum(), bad.sum()};
}

template <class T>
FASTRL_INLINE void direction(const CgDirection<T>& c, int64_t begin, int64_t end) {
  if (c.inverse) {
    FASTRL_INDEPENDENT
    for (int64_t i = begin; i < end; ++i)
      c.p[i] = static_cast<T>(static_cast<double>(c.y[i]) * c.inverse[i] + c.beta * c.p[i]);
  } else {
    FASTRL_INDEPENDENT
    for (int64_t i = begin; i < end; ++i) c.p[i] = static_cast<T>(c.y[i] + c.beta * c.p[i]);
  }
}

template <class T>
FASTRL_INLINE CgSums dot(const CgDot<T>& c, int64_t begin, int64_t end) {
  Lanes sums;
  each(begin, end, [&](int64_t i, int64_t lane) { sums.x[lane] += static_cast<double>(c.r[i]) * c.y[i]; });
  return {sums.sum(), 0, 0};
}

template <class F>
FASTRL_INLINE void each_piece(int64_t n, int64_t begin, int64_t end, F f) {
  for (int64_t piece = begin; piece < end; ++piece) f(piece, piece * kCgPiece, std::min(n, (piece + 1) * kCgPiece));
}

}  // namespace

template <class T>
void CgStart<T>::operator()(int64_t begin, int64_t end) const {
  each_piece(n, begin, end,
             [&](int64_t piece, int64_t first, int64_t last) { sums[piece] = at_level<start<T>>(*this, first, last); });
}

template <class T>
void CgCurvature<T>::operator()(int64_t begin, int64_t end) const {
  each_piece(n, begin, end, [&](int64_t piece, int64_t first, int64_t last) {
    sums[piece] = at_level<curvature<T>>(*this, first, last);
  });
}

template <class T>
void CgUpdate<T>::operator()(int64_t begin, int64_t end) const {
  each_piece(n, begin, end, [&](int64_t piece, int64_t first, int64_t last) {
    sums[piece] =
        inverse ? at_level<update<T, true>>(*this, first, last) : at_level<update<T, false>>(*this, first, last);
  });
}

template <class T>
void CgDirection<T>::operator()(int64_t begin, int64_t end) const {
  each_piece(n, begin, end, [&](int64_t, int64_t first, int64_t last) { at_level<direction<T>>(*this, first, last); });
}

template <class T>
void CgDot<T>::operator()(int64_t begin, int64_t end) const {
  each_piece(n, begin, end,
             [&](int64_t piece, int64_t first, int64_t last) { sums[piece] = at_level<dot<T>>(*this, first, last); });
}

#define FASTRL_INSTANCES(T)       \
  template struct CgStart<T>;     \
  template struct CgCurvature<T>; \
  template struct CgUpdate<T>;    \
  template struct CgDirection<T>; \
  template struct CgDot<T>;
FASTRL_INSTANCES(float)
FASTRL_INSTANCES(double)
#undef FASTRL_INSTANCES

}  // namespace fastrl

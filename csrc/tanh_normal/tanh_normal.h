// Tanh-Gaussian policy head: u = mean + e^log_std eps, action = bias + scale tanh(u), its log-probability, and their
// gradients. Float32 data are worked on in float32, but for u and the sum of a row; those of a given action in float64.
#pragma once

#include "normal/normal.h"

namespace fastrl {

// ---------------------------------------------------------------- the maths
constexpr double kLog2 = 0.69314718055994530942;
constexpr double kLargest = std::numeric_limits<double>::max(), kLargestFloat = std::numeric_limits<float>::max();
constexpr double kMinLogStd = -709.0;  // sigma of a given action is no smaller than its e^

// w = e^{-2|u|}, and 1 - w with the sign of u.
template <class R>
struct Decay {
  R w, rest;
};
template <class R>
FASTRL_HD FASTRL_INLINE Decay<R> decay(R u, R floor) {
  const ExpPair<R> w = exp_pair(R(-2) * magnitude(u), floor);
  return {w.e, with_sign(w.minus_1, u)};
}

// tanh u, 1 - tanh^2 u = 4 w / (1 + w)^2, which rounds to 0 only where w does, and log(1 + w).
template <class R>
struct Squashed {
  R t, slope, log1p_w;
};
template <class R>
FASTRL_HD FASTRL_INLINE Squashed<R> squash(const Decay<R>& q) {
  const R inverse = R(1) / (R(1) + q.w);
  return {q.rest * inverse, R(4) * (q.w * inverse) * inverse, log1p_unit(q.w)};
}
template <class R>
FASTRL_HD FASTRL_INLINE Squashed<R> squash(R u) {
  return squash(decay(u, ExpFloor<R>::value));
}

// NaN stays NaN.
template <class R>
FASTRL_HD FASTRL_INLINE R clamp(R x, R low, R high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// e^log_std; beyond +-kMaxLogStd it is 0 or infinite as a float32. Bounded, so that 0 is never multiplied by infinity.
constexpr float kMaxLogStd = 700.0f;
FASTRL_HD FASTRL_INLINE double sigma_of(float log_std) {
  return exp_rough(static_cast<double>(clamp(log_std, -kMaxLogStd, kMaxLogStd)));
}
FASTRL_HD FASTRL_INLINE double sigma_of(double log_std) { return clamp(exp_bounded(log_std), 0.0, kLargest); }

// As a finite number of the type of the last argument, for the same reason: a gradient of 0 is multiplied by it.
FASTRL_HD FASTRL_INLINE float finite(double x, float) {
  return static_cast<float>(clamp(x, -kLargestFloat, kLargestFloat));
}
FASTRL_HD FASTRL_INLINE double finite(double x, double) { return clamp(x, -kLargest, kLargest); }

// A row's element of log_prob, but for 2 (|u| + log(1 + w)), or minus log(scale (1 - tanh^2) + epsilon), and for minus
// log_prob_constant.
FASTRL_HD FASTRL_INLINE double log_prob_part(double eps, double log_std) { return -0.5 * eps * eps - log_std; }
FASTRL_HD FASTRL_INLINE double log_prob_constant(double scale, bool stable) {
  return kHalfLog2Pi + (stable ? 2.0 * kLog2 + log_positive(scale) : 0.0);
}

// d loss / d u, from the gradients of action and log_prob.
template <class R>
FASTRL_HD FASTRL_INLINE R squash_grad(const Squashed<R>& q, R scale, R epsilon, R grad_action, R grad_log_prob) {
  const R width = scale * q.slope, share = epsilon > 0 ? width / (width + epsilon) : R(1);
  return grad_action * width + grad_log_prob * (R(2) * q.t) * share;
}

// A dimension's bounds; an action at one, or beyond, is taken at first_in or last_in.
struct Bound {
  double low, high, first_in, last_in;
  FASTRL_HD double scale() const { return 0.5 * high - 0.5 * low; }
  FASTRL_HD double bias() const { return 0.5 * high + 0.5 * low; }
};

// What a given action stands for: x = tanh u = (action - bias) / scale; width = scale (1 - x^2).
struct Unsquashed {
  double z, inverse_sigma, x, width, log_width;
};
FASTRL_HD FASTRL_INLINE Unsquashed unsquash(double mean, double log_std, double action, double low, double high,
                                            double first_in, double last_in) {
  const double poison = 0.0 * mean + 0.0 * log_std + 0.0 * action;
  const double scale = 0.5 * high - 0.5 * low, bias = 0.5 * high + 0.5 * low;
  const double a = clamp(action, first_in, last_in), x = (a - bias) / scale, abs_x = x < 0 ? -x : x;
  // To the nearer bound, exactly; 1 - |x| = distance / scale.
  const double below = a - low, above = high - a, distance = below < above ? below : above, near = distance / scale;
  const double log_scale = log_positive(scale);
  // 2u = log(1 + 2 |x| / near). Where that may overflow, or near is no normal number, |x| is 1 and this is
  // log 2 + log scale - log distance, to which the other bound's is added: scaled, so that 2 / distance is finite.
  const bool tiny = near < 0x1p-1000, tinier = distance < 0x1p-500;
  const double scaled = distance * (tinier ? 0x1p400 : 0x1p-100);
  const double shift = log_scale + (tinier ? 400.0 : -100.0) * kLog2;
  const double two_u = log1p_positive(2.0 * abs_x / (tiny ? scaled : near)) + (tiny ? shift : 0.0);
  // Bounded, so that no 0 is multiplied by infinity.
  const double inverse = exp_bounded(log_std < kMinLogStd ? -kMinLogStd : -log_std),
               u = x < 0 ? -0.5 * two_u : 0.5 * two_u;
  return {(u - mean) * inverse + poison, inverse, x, distance * (1.0 + abs_x),
          log_scale + 2.0 * log1p_positive(abs_x) - two_u};
}

FASTRL_HD FASTRL_INLINE double unsquashed_log_prob(const Unsquashed& s, double log_std, double epsilon) {
  const double log_width = epsilon > 0 ? log_positive(s.width + epsilon) : s.log_width;
  return -0.5 * s.z * s.z - log_std - kHalfLog2Pi - log_width;
}

// d log_prob / d action.
FASTRL_HD FASTRL_INLINE double unsquashed_grad(const Unsquashed& s, double epsilon) {
  const double share = epsilon > 0 ? s.width / (s.width + epsilon) : 1.0;
  return (2.0 * s.x * share - s.z * s.inverse_sigma) / s.width;
}

// The upstream gradient times a derivative, as a finite number; NaN stays NaN.
FASTRL_HD FASTRL_INLINE double bounded_grad(double grad, double derivative, double largest) {
  return clamp(grad * clamp(derivative, -kLargest, kLargest), -largest, largest);
}

// ---------------------------------------------------------------- the CPU drivers: rows [begin, end)
// Outputs are contiguous. `bounds` is of the columns; log_std is clamped to its own; epsilon 0: the stable form.
struct TanhNormal {
  int64_t columns;
  const Bound* bounds;
  double log_std_min, log_std_max, epsilon;
};

template <class T>
struct TanhNormalSample : TanhNormal {
  Columns mean, log_std, noise;  // noise.data null: drawn as by NormalSample
  uint64_t seed, counter;
  T *action, *log_prob, *u, *scaled_noise;  // u, e^log_std eps: for the gradient; null: not wanted
  void operator()(int64_t begin, int64_t end) const;
};

// The gradient of log_std as in normal.h: written or, for one of shape [columns], added to `sums`.
template <class T>
struct TanhNormalSampleGrad : TanhNormal {
  const T *u, *scaled_noise;
  Columns log_std, grad_action;  // grad_action.data null: 0
  const T* grad_log_prob;        // null: 0
  T *grad_mean, *grad_log_std;
  double* sums;
  void operator()(int64_t begin, int64_t end) const;
};

template <class T>
struct TanhNormalLogProb : TanhNormal {
  Columns mean, log_std, action;
  T* log_prob;
  void operator()(int64_t begin, int64_t end) const;
};

template <class T>
struct TanhNormalLogProbGrad : TanhNormal {
  Columns mean, log_std, action;
  const T* grad_log_prob;
  T *grad_mean, *grad_log_std, *grad_action;
  double* sums;
  void operator()(int64_t begin, int64_t end) const;
};

// action = bias + scale tanh(mean), or, where grad_action.data is not null, its gradient.
template <class T>
struct TanhNormalMode : TanhNormal {
  Columns mean, grad_action;
  T* out;
  void operator()(int64_t begin, int64_t end) const;
};

}  // namespace fastrl

#include "adam/adam.h"

#include <cmath>

#include "core/levels.h"
#include "core/simd_math.h"

namespace fastrl {
namespace {

// a b + c. This file is compiled without contraction: which product is fused is written down, as torch fuses it. An x86
// processor without the instruction calls a function, which is slow but rounds alike; elsewhere without it, it rounds
// twice.
template <class T>
FASTRL_INLINE T multiply_add(T a, T b, T c) {
#if FASTRL_X86_LEVELS || defined(__FMA__) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

// x + weight (end - x), from the end that is nearer: `Far` for a weight of 1/2 or more.
template <bool Far, class T>
FASTRL_INLINE T lerp(T x, T end, T weight) {
  return Far ? multiply_add(weight - 1, end - x, end) : multiply_add(weight, end - x, x);
}

template <bool Decay, bool Far, class T>
FASTRL_INLINE void adam_loop(T* __restrict param, const T* __restrict grad, T* __restrict exp_avg,
                             T* __restrict exp_avg_sq, int64_t n, const AdamStep& step) {
  const T decay = static_cast<T>(step.weight_decay), weight1 = static_cast<T>(1 - step.beta1);
  const T beta2 = static_cast<T>(step.beta2), weight2 = static_cast<T>(1 - step.beta2);
  const T inverse_root = static_cast<T>(1 / std::sqrt(step.bias2)), eps = static_cast<T>(step.eps);
  const T size = static_cast<T>(step.lr / step.bias1);
  for (int64_t i = 0; i < n; ++i) {
    const T p = param[i];
    const T g = Decay ? multiply_add(decay, p, grad[i]) : grad[i];
    const T m = lerp<Far>(exp_avg[i], g, weight1);
    const T v = multiply_add(weight2 * g, g, exp_avg_sq[i] * beta2);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    param[i] = p - size * m / (std::sqrt(v) * inverse_root + eps);
  }
}

template <class T>
FASTRL_INLINE void adam_any(T* param, const T* grad, T* exp_avg, T* exp_avg_sq, int64_t n, const AdamStep& step) {
  const bool far = step.beta1 <= 0.5;
  if (step.weight_decay != 0 && far)
    adam_loop<true, true>(param, grad, exp_avg, exp_avg_sq, n, step);
  else if (step.weight_decay != 0)
    adam_loop<true, false>(param, grad, exp_avg, exp_avg_sq, n, step);
  else if (far)
    adam_loop<false, true>(param, grad, exp_avg, exp_avg_sq, n, step);
  else
    adam_loop<false, false>(param, grad, exp_avg, exp_avg_sq, n, step);
}

}  // namespace

void adam_step(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t n, const AdamStep& step) {
  at_level_256<adam_any<float>>(param, grad, exp_avg, exp_avg_sq, n, step);
}

void adam_step(double* param, const double* grad, double* exp_avg, double* exp_avg_sq, int64_t n,
               const AdamStep& step) {
  at_level_256<adam_any<double>>(param, grad, exp_avg, exp_avg_sq, n, step);
}

}  // namespace fastrl

// Returns and advantages over rollouts [T, N]: every op is the reverse affine recurrence y_t = b_t + a_t y_{t+1}. An op
// says what a_t and b_t are (`affine`) and what it returns given y (`finish`); the drivers in scans.cpp and scans.cu
// run any of them, serially in time or as a blocked scan along it. fastrl/kernels/scans has the equations.
#pragma once

#include <cmath>
#include <type_traits>

#include "core/common.h"
#include "core/lanes.h"
#include "core/parallel.h"
#include "core/simd_math.h"

namespace fastrl {

// What a step's result depends on. A factor of 0 counts as an end, so that 0 times x is 0, whatever x: what lies beyond
// a terminal state or a cut must not matter, be it NaN.
enum StepCode : uint8_t {
  kBootstraps = 1,  // V' counts: the step is not terminated, and gamma > 0
  kContinues = 2,   // the step after it counts: cont_t, and a_t > 0
};

// One step of one environment, or of several (V is a number or a vector of them; `code` likewise): the op's inputs,
// what it makes of them, and its results.
template <class V>
struct Inputs {
  V x0, x1, x2, x3;
};
template <class V>
struct Affine {
  V a, b;
};
template <class V>
struct Outputs {
  V y0, y1;
};

template <class V>
FASTRL_HD FASTRL_INLINE V times(V weight, V x) {
  return select(weight != 0, weight * x, V{});
}

// x where the code has this bit, else `otherwise`.
template <class V, class Code>
FASTRL_HD FASTRL_INLINE V where(Code code, int bit, V x, V otherwise = V{}) {
  return select((code & bit) != 0, x, otherwise);
}

// `advance` is y_t = b_t + a_t y_{t+1}, by the cheapest way to leave out what a_t = 0 cuts off; a_t by itself is for
// the scans that compose steps. `continuation` is 0 only if every a_t is.

template <class R>
struct AffineScan {  // inputs: a, b
  static constexpr int kInputs = 2, kOutputs = 1;
  static constexpr bool kConstant = false;
  static constexpr R gamma = 1, continuation = 1;
  AffineScan<float> in_float() const { return {}; }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE Affine<V> affine(const Inputs<V>& x, Code) const {
    return {x.x0, x.x1};
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE V advance(const Affine<V>& step, Code, V y_next) const {
    return step.b + times(step.a, y_next);
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE Outputs<V> finish(const Inputs<V>&, Code, V y, V) const {
    return {y, V{}};
  }
};

template <class R>
struct Gae {  // inputs: r, V, V'; y: the advantage
  static constexpr int kInputs = 3, kOutputs = 2;
  static constexpr bool kConstant = true;  // a_t is `continuation` or 0
  R gamma, continuation;                   // gamma lam
  // delta = r - decay V + slope (V' - V). V is larger than what a step adds: the error of gamma V' - V in float32, of
  // one sign at every step, would grow with the horizon. Of gamma 0 and 1 no 0 times V.
  R decay = gamma > 0 ? 1 - gamma : 0, slope = gamma > 0 ? gamma : 1;
  Gae<float> in_float() const {
    return {static_cast<float>(gamma), static_cast<float>(continuation), static_cast<float>(decay),
            static_cast<float>(slope)};
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE Affine<V> affine(const Inputs<V>& x, Code code) const {
    const V kept = select(V{} + decay != 0, x.x0 - decay * x.x1, x.x0);
    return {where(code, kContinues, V{} + continuation), kept + slope * (where(code, kBootstraps, x.x2) - x.x1)};
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE V advance(const Affine<V>& step, Code code, V y_next) const {
    return step.b + where(code, kContinues, continuation * y_next);
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE Outputs<V> finish(const Inputs<V>& x, Code, V y, V) const {
    return {y, y + x.x1};
  }
};

template <class R>
struct LambdaReturns {  // inputs: r, V'
  static constexpr int kInputs = 2, kOutputs = 1;
  static constexpr bool kConstant = true;  // a_t is `continuation` or 0
  R gamma, continuation;                   // gamma lam
  R rest = gamma - continuation;           // before either is rounded to float32
  LambdaReturns<float> in_float() const {
    return {static_cast<float>(gamma), static_cast<float>(continuation), static_cast<float>(rest)};
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE Affine<V> affine(const Inputs<V>& x, Code code) const {
    const V weight = where(code, kContinues, V{} + rest, where(code, kBootstraps, V{} + gamma));
    return {where(code, kContinues, V{} + continuation), x.x0 + times(weight, x.x1)};
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE V advance(const Affine<V>& step, Code code, V y_next) const {
    return step.b + where(code, kContinues, continuation * y_next);
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE Outputs<V> finish(const Inputs<V>&, Code, V y, V) const {
    return {y, V{}};
  }
};

template <class R>
struct RewardsToGo {  // inputs: r
  static constexpr int kInputs = 1, kOutputs = 1;
  static constexpr bool kConstant = true;  // a_t is `continuation` or 0
  R gamma, continuation;                   // both gamma
  RewardsToGo<float> in_float() const { return {static_cast<float>(gamma), static_cast<float>(continuation)}; }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE Affine<V> affine(const Inputs<V>& x, Code code) const {
    return {where(code, kContinues, V{} + continuation), x.x0};
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE V advance(const Affine<V>& step, Code code, V y_next) const {
    return step.b + where(code, kContinues, continuation * y_next);
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE Outputs<V> finish(const Inputs<V>&, Code, V y, V) const {
    return {y, V{}};
  }
};

template <class R>
struct VTrace {  // inputs: r, V, V', and log rho, of which `prepare` makes rho; y: vs - V
  static constexpr int kInputs = 4, kOutputs = 2;
  static constexpr bool kConstant = false;
  R gamma, continuation /* gamma */, lam, rho_clip, c_clip, pg_rho_clip;
  R floor = kExpFloor, ceiling = kExpCeiling;  // of log rho
  VTrace<float> in_float() const {
    return {static_cast<float>(gamma),    static_cast<float>(continuation), static_cast<float>(lam),
            static_cast<float>(rho_clip), static_cast<float>(c_clip),       static_cast<float>(pg_rho_clip)};
  }
  // A NaN ratio stays one.
  template <class V>
  FASTRL_HD FASTRL_INLINE static V clip(V rho, R high) {
    const V most = V{} + high;
    return rho > most ? most : rho;
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE V delta(const Inputs<V>& x, Code code) const {
    return x.x0 + where(code, kBootstraps, gamma * x.x2) - x.x1;
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE Affine<V> affine(const Inputs<V>& x, Code code) const {
    // gamma lam times(...), without a select within a select, which GCC takes apart lane by lane.
    const R trace = gamma * lam;
    return {trace * where(code, trace != 0 ? kContinues : 0, clip(x.x3, c_clip)),
            times(clip(x.x3, rho_clip), delta(x, code))};
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE V advance(const Affine<V>& step, Code, V y_next) const {
    return step.b + times(step.a, y_next);
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE Outputs<V> finish(const Inputs<V>& x, Code code, V y, V y_next) const {
    const V error = delta(x, code) + where(code, kContinues, gamma * y_next);
    return {x.x1 + y, times(clip(x.x3, pg_rho_clip), error)};
  }
};

// What an op computes of its inputs before anything else. T: the dtype of the arrays.
template <class T, class Op, class V>
FASTRL_HD FASTRL_INLINE void prepare(const Op&, Inputs<V>&) {}
template <class T, class R, class V>
FASTRL_HD FASTRL_INLINE void prepare(const VTrace<R>& op, Inputs<V>& x) {
#if defined(__CUDA_ARCH__)
  x.x3 = exp(x.x3);
#else
  if constexpr (std::is_same<V, float>::value) {
    x.x3 = static_cast<float>(exp_bounded(x.x3));
  } else if constexpr (std::is_same<T, float>::value) {
    x.x3 = exp_rough_bounded(x.x3, op.floor, op.ceiling);
  } else {
    x.x3 = exp_bounded_of(x.x3);
  }
#endif
}

template <class R>
struct OffPolicyReturns {  // inputs: r, Q, V', c; y: c (target - Q)
  static constexpr int kInputs = 4, kOutputs = 1;
  static constexpr bool kConstant = false;
  R gamma, continuation;  // both gamma
  OffPolicyReturns<float> in_float() const { return {static_cast<float>(gamma), static_cast<float>(continuation)}; }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE V one_step(const Inputs<V>& x, Code code) const {
    return x.x0 + where(code, kBootstraps, gamma * x.x2);
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE Affine<V> affine(const Inputs<V>& x, Code code) const {
    return {where(code, kContinues, gamma * x.x3), times(x.x3, one_step(x, code) - x.x1)};
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE V advance(const Affine<V>& step, Code, V y_next) const {
    return step.b + times(step.a, y_next);
  }
  template <class V, class Code>
  FASTRL_HD FASTRL_INLINE Outputs<V> finish(const Inputs<V>& x, Code code, V, V y_next) const {
    return {one_step(x, code) + where(code, kContinues, gamma * y_next), V{}};
  }
};

constexpr int kMaxScanInputs = 4, kMaxScanOutputs = 3;

// An array [T, N]; strides in bytes.
struct ScanArray {
  char* data = nullptr;
  int64_t row = 0, column = 0;
};

// The arguments of one scan. Flags are bytes, null where there are none.
struct ScanData {
  int64_t T = 0, N = 0;
  ScanArray in[kMaxScanInputs];
  ScanArray terminated, truncated, mask, cut;
  ScanArray last;  // AffineScan: y_T [N], in `column` strides; null is 0
  double last_value = 0;
  ScanArray out[kMaxScanOutputs];
};

// T is float or double, the dtype of `in` and `out`; sums are double. `threads`: at most so many.
template <class T>
void scan(const AffineScan<double>& op, const ScanData& data, Threads threads);
template <class T>
void scan(const Gae<double>& op, const ScanData& data, Threads threads);
template <class T>
void scan(const LambdaReturns<double>& op, const ScanData& data, Threads threads);
template <class T>
void scan(const RewardsToGo<double>& op, const ScanData& data, Threads threads);
template <class T>
void scan(const VTrace<double>& op, const ScanData& data, Threads threads);
template <class T>
void scan(const OffPolicyReturns<double>& op, const ScanData& data, Threads threads);

// in: r, V' (its data null for none); out: returns, discounts, last (int64).
template <class T>
void n_step_returns(const ScanData& data, double gamma, int64_t n, Threads threads);

// The first byte > 1 of flags [T, N], in row-major order, as t * N + n; -1 if there is none.
int64_t find_bad_flag(const ScanArray& flags, int64_t T, int64_t N);

}  // namespace fastrl

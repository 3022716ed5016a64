// Categorical policy head: log p_k = z_k - log sum_j e^{z_j} of each row of logits, fused with what is made of it.
#pragma once

#include "core/simd_math.h"
#include "random/random.h"

namespace fastrl {

// Logits [rows, actions] in any strides (bytes).
struct Logits {
  const char* data;
  int64_t rows, actions;
  int64_t row_stride, column_stride;
};

// ---------------------------------------------------------------- the maths
// T is a float, a double or a vector of them.
// What the logits are measured from: their largest, or 0 where all are masked.
template <class T>
FASTRL_HD FASTRL_INLINE T logit_base(T largest) {
  const T zero = {};
  const T masked = zero - kFloatInf;
  return largest == masked ? zero : largest;
}

// z - base, cut to `floor`, where e^d is 0 (and 0 * d is not NaN, as it would be for a masked logit).
template <class T>
FASTRL_HD FASTRL_INLINE T logit_difference(T z, T base, T floor) {
  const T d = z - base;
  return floor > d ? floor : d;
}

// log of s = sum e^d; NaN for a row with no possible action, a NaN or +inf.
FASTRL_HD FASTRL_INLINE double log_total(double s) { return s > 0.0 && s < kInf ? log_positive(s) : kNaN; }

// H = log s - sum e^d d / s.
FASTRL_HD FASTRL_INLINE double categorical_entropy(double s, double sum_ed, double log_s) { return log_s - sum_ed / s; }

// Gradient for one logit: g_log_prob (1{k = a} - p) - g_entropy p (log p + H), p = e^{log p}.
template <class T>
FASTRL_HD FASTRL_INLINE T categorical_grad(T p, T log_p, T entropy, T chosen, T g_log_prob, T g_entropy) {
  return g_log_prob * (chosen - p) - g_entropy * (p * (log_p + entropy));
}

// ---------------------------------------------------------------- the CPU drivers: rows [begin, end)
// `action` has been checked to be in [0, actions).
template <class T>
struct CategoricalLogProb {
  Logits logits;
  const int64_t* action;
  T *log_prob, *entropy;
  void operator()(int64_t begin, int64_t end) const;
};

// Gradients may be null: 0. `grad_logits` is contiguous.
template <class T>
struct CategoricalGrad {
  Logits logits;
  const int64_t* action;
  const T *grad_log_prob, *grad_entropy;
  T* grad_logits;
  void operator()(int64_t begin, int64_t end) const;
};

// Row b takes the uniform of block counter + b, or uniform[b] where that is given. Returns the first row without a
// valid distribution, else -1.
template <class T>
struct CategoricalSample {
  Logits logits;
  uint64_t seed, counter;
  const double* uniform;
  int64_t* action;
  T* log_prob;
  int64_t operator()(int64_t begin, int64_t end) const;
};

}  // namespace fastrl

// Diagonal normal policy head: x = mean + e^log_std eps, its log-probability and entropy, and their gradients.
#pragma once

#include "core/simd_math.h"
#include "heads/columns.h"
#include "random/normals.h"

namespace fastrl {

// ---------------------------------------------------------------- the maths
constexpr double kHalfLog2Pi = 0.91893853320467274178;

// log density of x = mean + e^log_std z.
FASTRL_HD FASTRL_INLINE double normal_log_density(double z, double log_std) {
  return -0.5 * z * z - (log_std + kHalfLog2Pi);
}

FASTRL_HD FASTRL_INLINE double normal_entropy(double log_std) { return log_std + (0.5 + kHalfLog2Pi); }

// z and d log_prob / d x = -z / sigma; d log_prob / d mean is its negative, d log_prob / d log_std = z^2 - 1.
struct Standardized {
  double z, z_over_sigma;
};
FASTRL_HD FASTRL_INLINE Standardized standardize(double x, double mean, double inverse_sigma) {
  const double z = (x - mean) * inverse_sigma;
  return {z, z * inverse_sigma};
}

// ---------------------------------------------------------------- the CPU drivers: rows [begin, end)
// Outputs are contiguous; a null one is not wanted.
template <class T>
struct NormalLogProb {
  int64_t columns;
  Columns mean, log_std, action;
  T *log_prob, *entropy;
  void operator()(int64_t begin, int64_t end) const;
};

// noise.data null: element i = b columns + j is number i mod 4 of block counter + i / 4.
template <class T>
struct NormalSample {
  int64_t columns;
  Columns mean, log_std, noise;
  uint64_t seed, counter;
  T *action, *log_prob, *noise_out;
  void operator()(int64_t begin, int64_t end) const;
};

// Gradients of NormalLogProb from those of its outputs [rows], null for 0. For a log_std of shape [columns] the
// gradient is not written but added to `sums` [piece, columns], by pieces of kPieceRows rows, so that the total does
// not depend on the threads; `begin` is then the start of a piece.
template <class T>
struct NormalGrad {
  int64_t columns;
  Columns mean, log_std, action;
  const T *grad_log_prob, *grad_entropy;
  T *grad_mean, *grad_log_std, *grad_action;
  double* sums;
  void operator()(int64_t begin, int64_t end) const;
};

// Gradient of NormalSample for log_std: grad_action e^log_std noise - grad_log_prob. (That for mean is grad_action.)
template <class T>
struct NormalSampleGrad {
  int64_t columns;
  Columns log_std, noise, grad_action;  // grad_action.data null: 0
  const T* grad_log_prob;
  T* grad_log_std;
  double* sums;
  void operator()(int64_t begin, int64_t end) const;
};

}  // namespace fastrl

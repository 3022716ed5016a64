// Diagonal normal policy head: x = mean + e^log_std eps, its log-probability and entropy, and their gradients.
#pragma once

#include "core/simd_math.h"
#include "random/random.h"

namespace fastrl {

// An array of the call as [rows, columns] in any strides (bytes); row stride 0 for one of shape [columns].
struct Columns {
  const char* data = nullptr;
  int64_t row_stride = 0, column_stride = 0;
};

// ---------------------------------------------------------------- the maths
constexpr double kHalfLog2Pi = 0.91893853320467274178;

// Two standard normals from two words of a block (Box-Muller): u = (first | 1) 2^-32 in (0, 1), v = second 2^-32 turns.
// The largest is sqrt(64 log 2) = 6.66. The last argument gives the type.
template <class T>
struct NormalPair {
  T even, odd;
};
template <class T>
FASTRL_HD FASTRL_INLINE T normal_radius(uint32_t first, T type) {
  return root(static_cast<T>(2) * minus_log_uniform(first, type));
}
template <class T>
FASTRL_HD FASTRL_INLINE NormalPair<T> normal_pair(T radius, uint32_t second) {
  const CosSin<T> turn = cos_sin_turns(second, radius);
  return {radius * turn.cos, radius * turn.sin};
}
template <class T>
FASTRL_HD FASTRL_INLINE NormalPair<T> normal_pair(uint32_t first, uint32_t second, T type) {
  return normal_pair(normal_radius(first, type), second);
}

// Four elements share a block, in their order: what a call of n elements takes.
FASTRL_HD FASTRL_INLINE int64_t normal_blocks(int64_t n) { return n / 4 + (n % 4 != 0); }

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
constexpr int64_t kPieceRows = 1024;

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

// element[i] <- the number of block counter + i; the i-th normal of a call.
void fill_uniform(uint64_t seed, uint64_t counter, int64_t n, double* element);
void fill_normal(uint64_t seed, uint64_t counter, int64_t n, double* element);

// The normals first .. first + n - 1 of a call, n <= kNormals. What follows them, up to a whole vector, may be read.
constexpr int64_t kNormals = 512;
template <class T>
class Normals {
 public:
  const T* draw(uint64_t seed, uint64_t counter, int64_t first, int64_t n);

 private:
  alignas(64) T numbers_[kNormals + 64] = {};
};

}  // namespace fastrl

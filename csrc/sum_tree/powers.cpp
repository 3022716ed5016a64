#include "sum_tree/powers.h"

#include <cmath>

#include "core/levels.h"
#include "core/simd_math.h"

namespace fastrl {
namespace {

constexpr int64_t kChunk = 256;

// Two loops, logarithms and then exponentials: one loop spills its constants (4.0 ns an item against 1.5). Always over
// whole vectors, so that the same number gives the same bits at every position.
int64_t whole_vectors(int64_t n) { return (n + 15) / 16 * 16; }

FASTRL_INLINE void log_loop(double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = log_positive(x[i]);
}

FASTRL_INLINE void exp_loop(double* x, int64_t n, double slope, double offset) {
  for (int64_t i = 0; i < n; ++i) x[i] = exp_bounded(slope * (x[i] - offset));
}

template <class T>
void weights(T* p, int64_t n, double beta, double smallest) {
  alignas(64) double x[kChunk];
  for (double& value : x) value = smallest;
  at_level<log_loop>(x, 16);
  const double log_smallest = x[0];
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t m = n - begin < kChunk ? n - begin : kChunk, padded = whole_vectors(m);
    for (int64_t i = 0; i < m; ++i) x[i] = static_cast<double>(p[begin + i]);
    for (int64_t i = m; i < padded; ++i) x[i] = 1.0;
    at_level<log_loop>(x, padded);
    at_level<exp_loop>(x, padded, -beta, log_smallest);
    for (int64_t i = 0; i < m; ++i) p[begin + i] = static_cast<T>(x[i]);
  }
}

FASTRL_INLINE void priorities_loop(double* td, int64_t n, double alpha, double eps, double low, double high) {
  alignas(64) double x[kChunk];
  const double at_zero = alpha == 0 ? 1.0 : 0.0;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t m = n - begin < kChunk ? n - begin : kChunk, padded = whole_vectors(m);
    double* out = td + begin;
    for (int64_t i = 0; i < m; ++i) out[i] = std::fabs(out[i]) + eps;
    for (int64_t i = 0; i < m; ++i) x[i] = out[i] > 0 ? out[i] : 1.0;
    for (int64_t i = m; i < padded; ++i) x[i] = 1.0;
    if (alpha != 1) {  // else the priorities are the errors to the bit
      at_level<log_loop>(x, padded);
      at_level<exp_loop>(x, padded, alpha, 0.0);
    }
    for (int64_t i = 0; i < m; ++i) {
      const double p = x[i] < low ? low : x[i] > high ? high : x[i];
      out[i] = out[i] > 0 ? p : at_zero;
    }
  }
}

}  // namespace

void td_to_priorities(double* td, int64_t n, double alpha, double eps, double low, double high) {
  at_level<priorities_loop>(td, n, alpha, eps, low, high);
}

void priorities_to_weights(float* p, int64_t n, double beta, double smallest) { weights(p, n, beta, smallest); }
void priorities_to_weights(double* p, int64_t n, double beta, double smallest) { weights(p, n, beta, smallest); }

}  // namespace fastrl

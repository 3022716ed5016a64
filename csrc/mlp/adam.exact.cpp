// Adam over flat vectors with what an update does besides: the gradient's norm is clipped before, and target and
// average follow after, block by block in the cache.
#include <algorithm>
#include <cmath>

#include "adam/adam.h"
#include "core/levels.h"
#include "mlp/flat_adam.h"

namespace fastrl {
namespace {

constexpr int64_t kBlock = 2048;

FASTRL_INLINE double squares(const float* x, int64_t n) {
  constexpr int kLanes = 16;  // sums side by side: the order is the same at every level
  double sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) sums[j] += static_cast<double>(x[i + j]) * x[i + j];
  double total = 0;
  for (; i < n; ++i) total += static_cast<double>(x[i]) * x[i];
  for (double s : sums) total += s;
  return total;
}

FASTRL_INLINE void times(float* x, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// x + weight (end - x), from the end that is nearer, as torch.lerp: a weight of 1 copies exactly.
FASTRL_INLINE void follow(float* __restrict x, const float* __restrict end, float weight, int64_t n) {
  if (weight < 0.5f) {
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] + weight * (end[i] - x[i]);
  } else {
    const float rest = 1 - weight;
    for (int64_t i = 0; i < n; ++i) x[i] = rest == 0 ? end[i] : end[i] - rest * (end[i] - x[i]);
  }
}

}  // namespace

double flat_adam_step(const FlatAdam& f, const AdamStep& step) {
  const double norm = f.max_norm < 0 ? std::nan("") : std::sqrt(at_level_256<squares>(f.grad, f.n));
  const float factor = f.max_norm < 0 ? 1.0f : static_cast<float>(f.max_norm / (norm + 1e-6));
  for (int64_t i = 0; i < f.n; i += kBlock) {
    const int64_t n = std::min(kBlock, f.n - i);
    if (!(factor >= 1)) at_level_256<times>(f.grad + i, factor, n);
    adam_step(f.param + i, f.grad + i, f.exp_avg + i, f.exp_avg_sq + i, n, step);
    if (f.target) at_level_256<follow>(f.target + i, f.param + i, f.tau, n);
    if (f.average) at_level_256<follow>(f.average + i, f.param + i, f.average_weight, n);
  }
  return norm;
}

}  // namespace fastrl

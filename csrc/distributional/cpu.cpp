#include "distributional/distributional.h"

#include <cmath>
#include <vector>

#include "core/levels.h"
#include "core/simd_math.h"

namespace fastrl {
namespace {

// Rows in the work arrays end on a whole vector: where the compiler would take single numbers, an exponential costs as
// much as eight.
constexpr int64_t kLanes = 8;
int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// The sum of term(0) .. term(n - 1), in four sums side by side.
template <class F>
FASTRL_INLINE double sum_of(int64_t n, F term) {
  double s[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int64_t k = 0; k < 4; ++k) s[k] += term(i + k);
  for (; i < n; ++i) s[0] += term(i);
  return (s[0] + s[1]) + (s[2] + s[3]);
}

// The largest; a NaN is passed over if it is not the first.
FASTRL_INLINE float largest(const float* x, int64_t n) {
  float best[kLanes];
  for (float& b : best) b = x[0];
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) best[k] = x[i + k] > best[k] ? x[i + k] : best[k];
  for (; i < n; ++i) best[0] = x[i] > best[0] ? x[i] : best[0];
  for (int64_t k = 1; k < kLanes; ++k) best[0] = best[k] > best[0] ? best[k] : best[0];
  return best[0];
}

// e[j] = e^(x[j] - max x) in float32, and 0 from n to `length`; sum e and sum e z, NaN for what has no distribution.
struct Exponentials {
  float top;
  double sum, dot;
  double mean() const { return dot / sum; }
};
FASTRL_INLINE Exponentials exponentials(const float* x, int64_t n, int64_t length, const double* z, float* e) {
  const float top = largest(x, n), floor = ExpFloor<float>::value;
  for (int64_t j = 0; j < n; ++j) e[j] = x[j] - top;
  for (int64_t j = n; j < length; ++j) e[j] = floor;
  for (int64_t j = 0; j < length; ++j) e[j] = exp_negative(e[j] < floor ? floor : e[j]);
  const double sum = sum_of(length, [=](int64_t j) { return static_cast<double>(e[j]); });
  return {top, sum, sum_of(length, [=](int64_t j) { return e[j] * z[j]; })};
}

// The first largest of values[0] .. values[n - 1]; a NaN is the largest.
int64_t argmax(const double* values, int64_t n) {
  int64_t best = 0;
  for (int64_t a = 1; a < n; ++a)
    if (values[a] > values[best] || (values[a] != values[a] && values[best] == values[best])) best = a;
  return best;
}

// The atoms, and 0 from n to padded(n).
void fill_atoms(const Support& s, double* z) {
  for (int64_t j = 0; j < padded(s.n); ++j) z[j] = j < s.n ? s.low + s.step * static_cast<double>(j) : 0.0;
}

// m_j of masses p_k scale, whose sum is `total`, on r + discount z_k; `place` and `above` have room for n
// numbers.
FASTRL_INLINE void project_row(const float* p, double scale, double total, double r, double discount, const Support& s,
                               const double* z, double* place, double* above, double* m) {
  const int64_t n = s.n, masses = discount == 0 ? 1 : n;
  if (discount == 0) total = 1;
  if (r != r || !std::isfinite(discount) || !std::isfinite(total)) {
    for (int64_t j = 0; j < n; ++j) m[j] = kNaN;
    return;
  }
  const double last = static_cast<double>(n - 1), low = s.low, high = s.high, step = s.step;
  for (int64_t j = 0; j < n; ++j) m[j] = above[j] = 0;
  for (int64_t k = 0; k < masses; ++k) {
    const double x = r + discount * z[k], inside = x < low ? low : x > high ? high : x, at = (inside - low) / step;
    place[k] = at > last ? last : at;
  }
  for (int64_t k = 0; k < masses; ++k) {
    const int64_t whole = static_cast<int64_t>(place[k]), left = whole > n - 2 ? n - 2 : whole;
    const double mass = discount == 0 ? 1.0 : p[k] * scale, right = mass * (place[k] - static_cast<double>(left));
    m[left] += mass - right;
    above[left] += right;  // by itself: two additions in a row would wait for each other's memory
  }
  for (int64_t j = 1; j < n; ++j) m[j] += above[j - 1];
}

FASTRL_INLINE void projection_loop(const float* probs, const float* rewards, const float* discounts, const Support* s,
                                   int64_t rows, const double* z, double* place, double* above, double* m,
                                   float* masses) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* p = probs + i * s->n;
    const double total = sum_of(s->n, [=](int64_t k) { return static_cast<double>(p[k]); });
    project_row(p, 1, total, rewards[i], discounts[i], *s, z, place, above, m);
    for (int64_t j = 0; j < s->n; ++j) masses[i * s->n + j] = static_cast<float>(m[j]);
  }
}

struct C51Work {
  const double* z;
  double *values, *place, *above, *m;
  float *e, *log_m;
};

FASTRL_INLINE DistributionalMeans c51_loop(const Transitions* t, const Support* s, const C51Work* work, int64_t length,
                                           float* d_x, float* kl) {
  const int64_t n = t->n, each = t->n_actions * n;
  const double share = 1 / static_cast<double>(t->rows);
  const double* const z = work->z;
  double* const m = work->m;
  float *const e = work->e, *const log_m = work->log_m;
  DistributionalMeans means;
  for (int64_t i = 0; i < t->rows; ++i) {
    double sum = 1;
    if (t->discounts[i] != 0) {
      work->values[0] = 0;
      for (int64_t a = 0; a < t->n_actions && t->n_actions > 1; ++a)  // of one action there is nothing to choose
        work->values[a] = exponentials(t->choose + i * each + a * n, n, length, z, e).mean();
      sum = exponentials(t->after + i * each + argmax(work->values, t->n_actions) * n, n, length, z, e).sum;
    }
    project_row(e, 1 / sum, sum, t->rewards[i], t->discounts[i], *s, z, work->place, work->above, m);
    const float* x = t->x + i * each + t->actions[i] * n;
    const Exponentials now = exponentials(x, n, length, z, e);
    const double log_sum = std::log(now.sum), top = now.top, inverse = 1 / now.sum;
    const double w = t->weights ? t->weights[i] * share : share;
    for (int64_t j = 0; j < length; ++j) log_m[j] = log_normal(m[j] < 1e-37 ? 1e-37f : static_cast<float>(m[j]));
    // Where there is no mass the logit may be -inf.
    const double cross = sum_of(n, [=](int64_t j) { return m[j] == 0 ? 0.0 : m[j] * (x[j] - top - log_sum); });
    const double divergence = sum_of(length, [=](int64_t j) { return m[j] * log_m[j]; }) - cross;
    means.loss -= w * cross, means.mean_q += now.mean();
    kl[i] = static_cast<float>(divergence < 0 ? 0.0 : divergence);
    float* d = d_x + i * each;
    for (int64_t j = 0; j < each; ++j) d[j] = 0;
    d += t->actions[i] * n;
    for (int64_t j = 0; j < n; ++j) d[j] = static_cast<float>(w * (e[j] * inverse - m[j]));
  }
  means.mean_q *= share;
  return means;
}

struct QuantileWork {
  double *values, *y, *tau, *theta, *losses, *slopes;
};

// For one y, over all theta: what it adds to their losses and slopes (by u), with H / kappa for H.
FASTRL_INLINE void add_pairs(double y, const double* theta, const double* tau, int64_t n, double kappa, double inverse,
                             double* losses, double* slopes) {
  FASTRL_INDEPENDENT
  for (int64_t k = 0; k < n; ++k) {
    const double u = y - theta[k], size = u < 0 ? -u : u, near = size < kappa ? size : kappa;
    const double side = u < 0 ? 1 - tau[k] : tau[k], slope = near * inverse;
    losses[k] += size <= kappa ? side * (slope * 0.5 * size) : side * (size - 0.5 * kappa);
    slopes[k] += u < 0 ? -side * slope : u > 0 ? side * slope : u;
  }
}

FASTRL_INLINE DistributionalMeans quantile_loop(const Transitions* t, const float* taus, double kappa,
                                                const QuantileWork* work, float* d_x, float* errors) {
  const int64_t n = t->n, n_after = t->n_after, each = t->n_actions * n;
  const double share = 1 / static_cast<double>(t->rows), share_after = 1 / static_cast<double>(n_after);
  const double share_now = 1 / static_cast<double>(n);
  double *const y = work->y, *const theta = work->theta, *const tau = work->tau;
  double *const losses = work->losses, *const slopes = work->slopes;
  for (int64_t k = 0; k < n; ++k) tau[k] = (static_cast<double>(k) + 0.5) * share_now;
  DistributionalMeans means;
  for (int64_t i = 0; i < t->rows; ++i) {
    for (int64_t a = 0; a < t->n_actions; ++a) {
      const float* choose = t->choose + (i * t->n_actions + a) * t->n_choose;
      work->values[a] = sum_of(t->n_choose, [=](int64_t j) { return double{choose[j]}; });
    }
    const float* after = t->after + (i * t->n_actions + argmax(work->values, t->n_actions)) * n_after;
    const double r = t->rewards[i], discount = t->discounts[i];
    for (int64_t j = 0; j < n_after; ++j) y[j] = discount == 0 ? r : r + discount * after[j];
    const float* x = t->x + i * each + t->actions[i] * n;
    for (int64_t k = 0; k < n; ++k) theta[k] = x[k], losses[k] = slopes[k] = 0;
    for (int64_t k = 0; taus && k < n; ++k) tau[k] = taus[i * n + k];
    for (int64_t j = 0; j < n_after; ++j) add_pairs(y[j], theta, tau, n, kappa, 1 / kappa, losses, slopes);
    const double w = (t->weights ? t->weights[i] * share : share) * share_after;
    const double mean_theta = share_now * sum_of(n, [=](int64_t k) { return theta[k]; });
    means.loss += w * sum_of(n, [=](int64_t k) { return losses[k]; }), means.mean_q += mean_theta;
    errors[i] = static_cast<float>(mean_theta - share_after * sum_of(n_after, [=](int64_t j) { return y[j]; }));
    float* d = d_x + i * each;
    for (int64_t j = 0; j < each; ++j) d[j] = 0;
    d += t->actions[i] * n;
    for (int64_t k = 0; k < n; ++k) d[k] = static_cast<float>(-w * slopes[k]);
  }
  means.mean_q *= share;
  return means;
}

size_t length(int64_t n) { return static_cast<size_t>(n); }

}  // namespace

void categorical_projection(const float* probs, const float* rewards, const float* discounts, const Support& support,
                            int64_t rows, float* masses) {
  const int64_t n = padded(support.n);
  std::vector<double> work(length(4 * n));
  double *const z = work.data(), *const place = z + n, *const above = place + n, *const m = above + n;
  fill_atoms(support, z);
  at_level_256<projection_loop>(probs, rewards, discounts, &support, rows, z, place, above, m, masses);
}

DistributionalMeans c51_loss(const Transitions& t, const Support& support, float* d_x, float* kl) {
  const int64_t n = padded(t.n);
  std::vector<double> work(length(4 * n + t.n_actions));
  std::vector<float> e(length(2 * n));
  double *const z = work.data(), *const place = z + n, *const above = place + n, *const m = above + n;
  fill_atoms(support, z);
  const C51Work parts{z, m + n, place, above, m, e.data(), e.data() + n};
  return at_level_256<c51_loop>(&t, &support, &parts, n, d_x, kl);
}

DistributionalMeans quantile_huber_loss(const Transitions& t, const float* taus, double kappa, float* d_x,
                                        float* errors) {
  std::vector<double> work(length(t.n_actions + t.n_after + 4 * t.n));
  double *const values = work.data(), *const y = values + t.n_actions, *const tau = y + t.n_after;
  const QuantileWork parts{values, y, tau, tau + t.n, tau + 2 * t.n, tau + 3 * t.n};
  return at_level_256<quantile_loop>(&t, taus, kappa, &parts, d_x, errors);
}

}  // namespace fastrl

#include "distributional/distributional.h"

#include <cmath>
#include <cstring>
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

// The same for n a multiple of kLanes, in as many sums.
template <class F>
FASTRL_INLINE double sum_of_lanes(int64_t n, F term) {
  double s[kLanes] = {};
  for (int64_t i = 0; i < n; i += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) s[k] += term(i + k);
  return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
}

// u[j] = x[j] and e[j] = e^(x[j] - max x) in float32; from n to `length` -inf and 0. Sum e is NaN for what has no
// distribution.
struct Exponentials {
  float top;
  double sum;
};
FASTRL_INLINE Exponentials exponentials(const float* x, int64_t n, int64_t length, float* u, float* e) {
  const float floor = ExpFloor<float>::value;
  std::memcpy(u, x, static_cast<size_t>(n) * sizeof(float));
  for (int64_t j = n; j < length; ++j) u[j] = -kFloatInf;
  const float top = largest(u, length);
  for (int64_t j = 0; j < length; ++j) {
    const float below = u[j] - top;
    e[j] = exp_negative(below < floor ? floor : below);
  }
  return {top, sum_of_lanes(length, [=](int64_t j) { return static_cast<double>(e[j]); })};
}
FASTRL_INLINE double dot(const float* e, const double* z, int64_t length) {
  return sum_of_lanes(length, [=](int64_t j) { return e[j] * z[j]; });
}

// The first largest of values[0] .. values[n - 1]; a NaN is the largest.
int64_t argmax(const double* values, int64_t n) {
  int64_t best = 0;
  for (int64_t a = 1; a < n; ++a)
    if (values[a] > values[best] || (values[a] != values[a] && values[best] == values[best])) best = a;
  return best;
}

// What a projection works in: padded(n) numbers each; the atoms, and 0, 1, 2 ...
struct ProjectionWork {
  double *z, *index, *keep, *give, *above, *m;
  int32_t* left;
};

// m_j of masses p_k scale, whose sum is `total`, on r + discount z_k; p and m end in zeros, from n to `length`.
FASTRL_INLINE void project_row(const float* p, double scale, double total, double r, double discount, const Support& s,
                               int64_t length, const ProjectionWork& w) {
  double *const m = w.m, *const above = w.above, *const keep = w.keep, *const give = w.give;
  const double* const index = w.index;
  int32_t* const left = w.left;
  // Atom k lands on the place first + discount k between 0 and n - 1, without rounding where that is an atom.
  const double first = (r + (discount - 1) * s.low) / s.step, last = static_cast<double>(s.n - 1);
  const bool lost = first != first || !std::isfinite(discount) || (discount != 0 && !std::isfinite(total));
  for (int64_t j = 0; j < length; ++j) above[j] = 0, m[j] = lost ? kNaN : 0.0;
  if (lost) return;
  const int32_t most = static_cast<int32_t>(s.n - 2);
  if (discount == 0) {
    const double place = first < 0 ? 0.0 : first > last ? last : first;
    const int64_t whole = static_cast<int64_t>(place), at = whole > most ? most : whole;
    m[at + 1] = place - static_cast<double>(at), m[at] = 1 - m[at + 1];
    return;
  }
  for (int64_t k = 0; k < length; ++k) {
    const double x = first + discount * index[k], inside = x < 0 ? 0.0 : x, place = inside > last ? last : inside;
    const int32_t whole = static_cast<int32_t>(place);
    left[k] = whole > most ? most : whole;
    const double mass = p[k] * scale;
    give[k] = mass * (place - static_cast<double>(left[k]));
    keep[k] = mass - give[k];
  }
  for (int64_t k = 0; k < s.n; ++k) {
    m[left[k]] += keep[k];
    above[left[k] + 1] += give[k];  // by itself: two additions in a row would wait for each other's memory
  }
  for (int64_t j = 0; j < length; ++j) m[j] += above[j];
}

FASTRL_INLINE void projection_loop(const float* probs, const float* rewards, const float* discounts, const Support* s,
                                   int64_t rows, int64_t length, const ProjectionWork* work, float* p, float* masses) {
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(p, probs + i * s->n, static_cast<size_t>(s->n) * sizeof(float));
    const double total = sum_of(s->n, [=](int64_t k) { return static_cast<double>(p[k]); });
    project_row(p, 1, total, rewards[i], discounts[i], *s, length, *work);
    for (int64_t j = 0; j < s->n; ++j) masses[i * s->n + j] = static_cast<float>(work->m[j]);
  }
}

struct C51Work {
  ProjectionWork projection;
  double* values;
  float *e, *x, *log_m;
};

FASTRL_INLINE DistributionalMeans c51_loop(const Transitions* t, const Support* s, const C51Work* work, int64_t length,
                                           float* d_x, float* kl) {
  const int64_t n = t->n, each = t->n_actions * n;
  const double share = 1 / static_cast<double>(t->rows);
  const double *const z = work->projection.z, *const m = work->projection.m;
  float *const e = work->e, *const log_m = work->log_m, *const x = work->x;
  DistributionalMeans means;
  for (int64_t i = 0; i < t->rows; ++i) {
    double sum = 1;
    if (t->discounts[i] != 0) {
      work->values[0] = 0;
      for (int64_t a = 0; a < t->n_actions && t->n_actions > 1; ++a) {  // of one action there is nothing to choose
        const double total = exponentials(t->choose + i * each + a * n, n, length, x, e).sum;
        work->values[a] = dot(e, z, length) / total;
      }
      sum = exponentials(t->after + i * each + argmax(work->values, t->n_actions) * n, n, length, x, e).sum;
    }
    project_row(e, 1 / sum, sum, t->rewards[i], t->discounts[i], *s, length, work->projection);
    const Exponentials now = exponentials(t->x + i * each + t->actions[i] * n, n, length, x, e);
    const double top = now.top, log_sum = std::log(now.sum), inverse = 1 / now.sum;
    const double w = t->weights ? t->weights[i] * share : share;
    for (int64_t j = 0; j < length; ++j) log_m[j] = log_normal(m[j] < 1e-37 ? 1e-37f : static_cast<float>(m[j]));
    // Where there is no mass the logit may be -inf.  The largest logit goes first: log_sum is lost beside a huge one.
    const double cross =
        sum_of_lanes(length, [=](int64_t j) { return m[j] == 0 ? 0.0 : m[j] * ((x[j] - top) - log_sum); });
    const double divergence = sum_of_lanes(length, [=](int64_t j) { return m[j] * log_m[j]; }) - cross;
    means.loss -= w * cross, means.mean_q += dot(e, z, length) * inverse;
    kl[i] = static_cast<float>(divergence < 0 ? 0.0 : divergence);
    for (int64_t j = 0; j < length; ++j) log_m[j] = static_cast<float>(w * (e[j] * inverse - m[j]));
    float* d = d_x + i * each;
    for (int64_t j = 0; j < each && t->n_actions > 1; ++j) d[j] = 0;
    std::memcpy(d + t->actions[i] * n, log_m, static_cast<size_t>(n) * sizeof(float));
  }
  means.mean_q *= share;
  return means;
}

// The mean Q of logits x [rows, n], and the gradient of -mean Q.
FASTRL_INLINE double value_loop(const float* x, int64_t rows, int64_t n, const C51Work* work, int64_t length,
                                float* d_x) {
  const double share = 1 / static_cast<double>(rows), *const z = work->projection.z;
  float *const e = work->e, *const d = work->log_m;
  double sum_q = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const double inverse = 1 / exponentials(x + i * n, n, length, work->x, e).sum, q = dot(e, z, length) * inverse;
    sum_q += q;
    const double scale = inverse * share;
    for (int64_t j = 0; j < length; ++j) d[j] = static_cast<float>(scale * e[j] * (q - z[j]));
    std::memcpy(d_x + i * n, d, static_cast<size_t>(n) * sizeof(float));
  }
  return sum_q * share;
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

namespace {

// The work of a call, in one piece of each type.
struct Work {
  int64_t n;
  std::vector<double> doubles;
  std::vector<float> floats;
  std::vector<int32_t> left;
  C51Work parts;
  Work(const Support& s, int64_t actions)
      : n(padded(s.n)), doubles(length(6 * n + actions)), floats(length(3 * n)), left(length(n)) {
    double* const d = doubles.data();
    float* const f = floats.data();
    parts = {{d, d + n, d + 2 * n, d + 3 * n, d + 4 * n, d + 5 * n, left.data()}, d + 6 * n, f, f + n, f + 2 * n};
    for (int64_t j = 0; j < n; ++j) {
      d[j] = j < s.n ? s.low + s.step * static_cast<double>(j) : 0.0;
      d[n + j] = static_cast<double>(j);
    }
  }
};

}  // namespace

void categorical_projection(const float* probs, const float* rewards, const float* discounts, const Support& support,
                            int64_t rows, float* masses) {
  const Work work(support, 0);
  at_level_256<projection_loop>(probs, rewards, discounts, &support, rows, work.n, &work.parts.projection, work.parts.e,
                                masses);
}

DistributionalMeans c51_loss(const Transitions& t, const Support& support, float* d_x, float* kl) {
  const Work work(support, t.n_actions);
  return at_level_256<c51_loop>(&t, &support, &work.parts, work.n, d_x, kl);
}

double c51_actor_loss(const float* x, const Support& support, int64_t rows, float* d_x) {
  const Work work(support, 0);
  return -at_level_256<value_loop>(x, rows, support.n, &work.parts, work.n, d_x);
}

DistributionalMeans quantile_huber_loss(const Transitions& t, const float* taus, double kappa, float* d_x,
                                        float* errors) {
  std::vector<double> work(length(t.n_actions + t.n_after + 4 * t.n));
  double *const values = work.data(), *const y = values + t.n_actions, *const tau = y + t.n_after;
  const QuantileWork parts{values, y, tau, tau + t.n, tau + 2 * t.n, tau + 3 * t.n};
  return at_level_256<quantile_loop>(&t, taus, kappa, &parts, d_x, errors);
}

}  // namespace fastrl

#include "mlp/losses.h"

#include <cmath>
#include <vector>

#include "core/levels.h"
#include "core/simd_math.h"

namespace fastrl {
namespace {

constexpr double kHalfLog2Pi = 0.91893853320467274178;

// A NaN is the largest, as in torch and NumPy.
bool above(float x, float best) { return x > best || (x != x && best == best); }
bool below(float x, float best) { return x < best || (x != x && best == best); }

// 0 times x is 0, whatever x is.
double times(double a, double x) { return a == 0 ? 0.0 : a * x; }

struct PointLoss {
  double value, slope;
};
PointLoss point_loss(double e, bool huber) {
  if (!huber) return {e * e, 2 * e};
  const double size = std::abs(e);
  return size <= 1 ? PointLoss{0.5 * e * e, e} : PointLoss{size - 0.5, e < 0 ? -1.0 : e > 0 ? 1.0 : e};
}

// Advantages, normalized if that is wanted: (A - mean A) / (standard deviation + 1e-8).
struct Advantages {
  const float* a;
  double mean = 0, inverse = 1;
  Advantages(const float* advantages, int64_t rows, bool normalize) : a(advantages) {
    if (!normalize) return;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < rows; ++i) sum += a[i];
    mean = sum / static_cast<double>(rows);
    for (int64_t i = 0; i < rows; ++i) squares += (a[i] - mean) * (a[i] - mean);
    inverse = 1 / (std::sqrt(squares / static_cast<double>(rows)) + 1e-8);
  }
  double at(int64_t i) const { return (a[i] - mean) * inverse; }
};

// Of one sample: min(rho A, clip(rho) A) and its derivative by log rho, and rho - 1 - log rho.
struct Surrogate {
  double value, slope, kl;
};
Surrogate surrogate(double ratio, double log_ratio, double advantage, double clip_range) {
  const double plain = ratio * advantage, low = 1 - clip_range, high = 1 + clip_range;
  const double clipped = (ratio < low ? low : ratio > high ? high : ratio) * advantage;
  const bool cut = clipped < plain;
  return {cut ? clipped : plain, cut ? 0.0 : plain, ratio - 1 - log_ratio};
}

FASTRL_INLINE void exp_loop(double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = exp_bounded(x[i]);
}
FASTRL_INLINE void log_loop(double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = log_positive(x[i]);
}

void exp_all(double* x, int64_t n) { at_level_256<exp_loop>(x, n); }
void log_all(double* x, int64_t n) { at_level_256<log_loop>(x, n); }

// log p and p of rows of logits; `sums` has room for a number a row.
void log_softmax(const float* logits, int64_t rows, int64_t n, double* log_p, double* p, double* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* z = logits + i * n;
    float top = z[0];
    for (int64_t j = 1; j < n; ++j) top = z[j] > top ? z[j] : top;
    for (int64_t j = 0; j < n; ++j) log_p[i * n + j] = p[i * n + j] = static_cast<double>(z[j]) - top;
  }
  exp_all(p, rows * n);
  for (int64_t i = 0; i < rows; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += p[i * n + j];
    const double inverse = 1 / sum;
    for (int64_t j = 0; j < n; ++j) p[i * n + j] *= inverse;
    sums[i] = sum;
  }
  log_all(sums, rows);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; ++j) log_p[i * n + j] -= sums[i];
}

}  // namespace

LossMeans q_learning_loss(const float* q, const int64_t* actions, const float* rewards, const float* discounts,
                          const float* next_q, const float* chooser, const float* weights, bool huber, int64_t rows,
                          int64_t columns, float* d_q, float* td_errors) {
  const double share = 1 / static_cast<double>(rows);
  LossMeans means;
  for (int64_t i = 0; i < rows; ++i) {
    const float *choose = (chooser ? chooser : next_q) + i * columns, *row = q + i * columns;
    int64_t best = 0;
    for (int64_t a = 1; a < columns; ++a)
      if (above(choose[a], choose[best])) best = a;
    const float y = static_cast<float>(rewards[i] + times(discounts[i], next_q[i * columns + best]));
    const float error = row[actions[i]] - y;
    const PointLoss l = point_loss(error, huber);
    const double w = weights ? weights[i] * share : share;
    means.loss += w * l.value, means.mean += row[actions[i]];
    for (int64_t a = 0; a < columns; ++a) d_q[i * columns + a] = 0;
    d_q[i * columns + actions[i]] = static_cast<float>(w * l.slope);
    td_errors[i] = error;
  }
  means.mean *= share;
  return means;
}

void min_q_targets(const float* next_q, const float* rewards, const float* discounts, const float* log_prob,
                   float temperature, int64_t networks, int64_t rows, float* targets) {
  for (int64_t i = 0; i < rows; ++i) {
    float least = next_q[i];
    for (int64_t k = 1; k < networks; ++k)
      if (below(next_q[k * rows + i], least)) least = next_q[k * rows + i];
    const double value = log_prob ? least - times(temperature, log_prob[i]) : least;
    targets[i] = static_cast<float>(rewards[i] + times(discounts[i], value));
  }
}

LossMeans q_regression_loss(const float* q, const float* targets, const float* weights, bool huber, int64_t networks,
                            int64_t rows, float* d_q, float* td_errors) {
  const double share = 1 / static_cast<double>(rows);
  LossMeans means;
  for (int64_t k = 0; k < networks; ++k)
    for (int64_t i = 0; i < rows; ++i) {
      const float error = q[k * rows + i] - targets[i];
      const PointLoss l = point_loss(error, huber);
      const double w = weights ? weights[i] * share : share;
      means.loss += w * l.value, means.mean += q[k * rows + i];
      d_q[k * rows + i] = static_cast<float>(w * l.slope);
      td_errors[k * rows + i] = error;
    }
  means.mean *= share / static_cast<double>(networks);
  return means;
}

LossMeans min_q_loss(const float* q, int64_t networks, int64_t rows, float* d_q) {
  const float share = static_cast<float>(-1 / static_cast<double>(rows));
  LossMeans means;
  for (int64_t i = 0; i < rows; ++i) {
    int64_t least = 0;
    for (int64_t k = 1; k < networks; ++k)
      if (below(q[k * rows + i], q[least * rows + i])) least = k;
    for (int64_t k = 0; k < networks; ++k) d_q[k * rows + i] = k == least ? share : 0.0f;
    means.loss -= q[least * rows + i];
  }
  means.loss /= static_cast<double>(rows);
  return means;
}

LossMeans value_loss(const float* values, const float* returns, const float* old_values, double clip_range, double coef,
                     int64_t rows, float* d_values) {
  const double share = coef / static_cast<double>(rows);
  LossMeans means;
  for (int64_t i = 0; i < rows; ++i) {
    const double error = static_cast<double>(values[i]) - returns[i];
    double square = error * error, slope = error;
    if (old_values) {
      const double moved = static_cast<double>(values[i]) - old_values[i];
      const bool inside = moved >= -clip_range && moved <= clip_range;
      const double near = old_values[i] + (moved < -clip_range ? -clip_range : clip_range) - returns[i];
      // At a tie each has half of the gradient, as torch.max has it.
      if (!inside && near * near >= square) slope *= near * near > square ? 0.0 : 0.5, square = near * near;
    }
    means.loss += 0.5 * share * square, means.mean += values[i];
    d_values[i] = static_cast<float>(share * slope);
  }
  means.mean /= static_cast<double>(rows);
  return means;
}

PpoMeans ppo_categorical_loss(const float* logits, const int64_t* actions, const float* old_log_probs,
                              const float* advantages, const float* old_logits, const PpoSettings& s, int64_t rows,
                              int64_t columns, float* d_logits) {
  const Advantages advantage(advantages, rows, s.normalize);
  const double share = 1 / static_cast<double>(rows);
  static thread_local std::vector<double> work;
  const int64_t n = rows * columns;
  work.resize(static_cast<size_t>(2 * rows + (old_logits ? 4 : 2) * n));
  double *ratio = work.data(), *log_ratio = ratio + rows, *all_log_p = log_ratio + rows, *all_p = all_log_p + n;
  double *all_old_log_p = all_p + n, *all_old_p = all_old_log_p + n;
  log_softmax(logits, rows, columns, all_log_p, all_p, ratio);
  if (old_logits) log_softmax(old_logits, rows, columns, all_old_log_p, all_old_p, ratio);
  for (int64_t i = 0; i < rows; ++i) {
    const double log_prob = all_log_p[i * columns + actions[i]];
    ratio[i] = log_ratio[i] = log_prob - (old_log_probs ? old_log_probs[i] : log_prob);
  }
  exp_all(ratio, rows);
  PpoMeans means;
  double gain = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const double *log_p = all_log_p + i * columns, *p = all_p + i * columns;
    const Surrogate t = surrogate(ratio[i], log_ratio[i], advantage.at(i), s.clip_range);
    double entropy = 0, kl = t.kl;
    for (int64_t j = 0; j < columns; ++j) entropy -= times(p[j], log_p[j]);
    const double *old_log_p = all_old_log_p + i * columns, *old_p = all_old_p + i * columns;
    if (old_logits) {
      kl = 0;
      for (int64_t j = 0; j < columns; ++j) kl += times(old_p[j], old_log_p[j] - log_p[j]);
    }
    gain += t.value, means.entropy += entropy, means.kl += kl;
    for (int64_t j = 0; j < columns; ++j) {
      double d = -t.slope * ((j == actions[i]) - p[j]) + s.entropy_coef * times(p[j], log_p[j] + entropy);
      if (old_logits) d += s.kl_coef * (p[j] - old_p[j]);
      d_logits[i * columns + j] = static_cast<float>(d * share);
    }
  }
  means.entropy *= share, means.kl *= share;
  means.policy_loss = (old_logits ? s.kl_coef * means.kl : 0.0) - gain * share;
  means.loss = means.policy_loss - s.entropy_coef * means.entropy;
  return means;
}

PpoMeans ppo_normal_loss(const float* mean, const float* log_std, const float* actions, const float* old_log_probs,
                         const float* advantages, const float* old_mean, const float* old_log_std, const PpoSettings& s,
                         int64_t rows, int64_t columns, float* d_mean, float* d_log_std) {
  const Advantages advantage(advantages, rows, s.normalize);
  const double share = 1 / static_cast<double>(rows);
  static thread_local std::vector<double> work;
  work.assign(static_cast<size_t>(3 * columns + 2 * rows), 0.0);
  double *inverse = work.data(), *old_variance = inverse + columns, *sums = old_variance + columns;
  double *ratio = sums + columns, *log_ratio = ratio + rows;
  PpoMeans means;
  double constant = 0, gain = 0;
  for (int64_t j = 0; j < columns; ++j) {
    inverse[j] = exp_bounded(-static_cast<double>(log_std[j]));
    constant -= log_std[j] + kHalfLog2Pi;
    if (old_mean) old_variance[j] = exp_bounded(2 * static_cast<double>(old_log_std[j]));
  }
  for (int64_t i = 0; i < rows; ++i) {
    const float *m = mean + i * columns, *a = actions + i * columns;
    double log_prob = constant;
    for (int64_t j = 0; j < columns; ++j) {
      const double z = (static_cast<double>(a[j]) - m[j]) * inverse[j];
      log_prob -= 0.5 * z * z;
    }
    ratio[i] = log_ratio[i] = log_prob - (old_log_probs ? old_log_probs[i] : log_prob);
  }
  exp_all(ratio, rows);
  for (int64_t i = 0; i < rows; ++i) {
    const float *m = mean + i * columns, *a = actions + i * columns;
    const Surrogate t = surrogate(ratio[i], log_ratio[i], advantage.at(i), s.clip_range);
    double kl = 0;
    for (int64_t j = 0; j < columns; ++j) {
      const double z = (static_cast<double>(a[j]) - m[j]) * inverse[j];
      double d = -t.slope * z * inverse[j];
      sums[j] -= t.slope * (z * z - 1);
      if (old_mean) {
        const double moved = static_cast<double>(m[j]) - old_mean[i * columns + j], scale = inverse[j] * inverse[j];
        const double spread = (old_variance[j] + moved * moved) * scale;
        kl += static_cast<double>(log_std[j]) - old_log_std[j] + 0.5 * (spread - 1);
        d += s.kl_coef * moved * scale, sums[j] += s.kl_coef * (1 - spread);
      }
      d_mean[i * columns + j] = static_cast<float>(d * share);
    }
    gain += t.value, means.kl += old_mean ? kl : t.kl;
  }
  for (int64_t j = 0; j < columns; ++j) {
    means.entropy += log_std[j] + 0.5 + kHalfLog2Pi;
    d_log_std[j] = static_cast<float>(sums[j] * share - s.entropy_coef);
  }
  means.kl *= share;
  means.policy_loss = (old_mean ? s.kl_coef * means.kl : 0.0) - gain * share;
  means.loss = means.policy_loss - s.entropy_coef * means.entropy;
  return means;
}

}  // namespace fastrl

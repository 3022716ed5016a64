// What an update does with the outputs of its networks: losses, their gradients and targets, over one small batch.
// Arrays are contiguous; sums are in float64. fastrl/kernels/mlp has the equations.
#pragma once

#include <cstdint>

namespace fastrl {

struct LossMeans {
  double loss = 0, mean = 0;
};

// y = r + discount max_a next_q or, with `chooser`, next_q[argmax chooser]; mean w l(q_a - y), l = e^2 or Huber's.
LossMeans q_learning_loss(const float* q, const int64_t* actions, const float* rewards, const float* discounts,
                          const float* next_q, const float* chooser, const float* weights, bool huber, int64_t rows,
                          int64_t columns, float* d_q, float* td_errors);

// y = r + discount (min_k next_q_k - temperature log_prob).
void min_q_targets(const float* next_q, const float* rewards, const float* discounts, const float* log_prob,
                   float temperature, int64_t networks, int64_t rows, float* targets);

// sum_k mean w l(q_k - y).
LossMeans q_regression_loss(const float* q, const float* targets, const float* weights, bool huber, int64_t networks,
                            int64_t rows, float* d_q, float* td_errors);

// -mean min_k q_k.
LossMeans min_q_loss(const float* q, int64_t networks, int64_t rows, float* d_q);

// mean (v - G)^2 / 2, or the larger of that and the clipped one; times coef.
LossMeans value_loss(const float* values, const float* returns, const float* old_values, double clip_range, double coef,
                     int64_t rows, float* d_values);

struct PpoSettings {
  double clip_range;  // infinite: not clipped
  double kl_coef, entropy_coef;
  bool normalize;
};
struct PpoMeans {
  double loss = 0, policy_loss = 0, entropy = 0, kl = 0;
};
// old_logits, old_mean: for the KL penalty, else null.
PpoMeans ppo_categorical_loss(const float* logits, const int64_t* actions, const float* old_log_probs,
                              const float* advantages, const float* old_logits, const PpoSettings& settings,
                              int64_t rows, int64_t columns, float* d_logits);
PpoMeans ppo_normal_loss(const float* mean, const float* log_std, const float* actions, const float* old_log_probs,
                         const float* advantages, const float* old_mean, const float* old_log_std,
                         const PpoSettings& settings, int64_t rows, int64_t columns, float* d_mean, float* d_log_std);

}  // namespace fastrl

// Distributions of returns on fixed atoms (C51) and by quantiles (QR-DQN, IQN): a projection, and losses with their
// gradients. fastrl/kernels/distributional has the equations. Arrays are contiguous; sums are in float64.
#pragma once

#include <cstdint>

namespace fastrl {

// The atoms low + j step, j < n.
struct Support {
  double low, high, step;
  int64_t n;
  Support(double low, double high, int64_t n)
      : low(low), high(high), step((high - low) / static_cast<double>(n - 1)), n(n) {}
};

// What both losses take: x and after are [rows, actions, n] and [rows, actions, n_after]; `choose` has n_choose, and is
// the array by whose means the next action is chosen.
struct Transitions {
  const float* x;
  const int64_t* actions;
  const float *rewards, *discounts, *after, *choose, *weights;  // weights: null for 1
  int64_t rows, n_actions, n, n_after, n_choose;
};

struct DistributionalMeans {
  double loss = 0, mean_q = 0;
};

void categorical_projection(const float* probs, const float* rewards, const float* discounts, const Support& support,
                            int64_t rows, float* masses);

DistributionalMeans c51_loss(const Transitions& t, const Support& support, float* d_x, float* kl);

// -mean Q of logits x [rows, n], and its gradient.
double c51_actor_loss(const float* x, const Support& support, int64_t rows, float* d_x);

// `taus` [rows, n], null for the midpoints.
DistributionalMeans quantile_huber_loss(const Transitions& t, const float* taus, double kappa, float* d_x,
                                        float* errors);

}  // namespace fastrl

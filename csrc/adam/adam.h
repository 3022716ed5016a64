// Adam in place: one pass over n numbers that lie side by side.
#pragma once

#include <cstdint>

namespace fastrl {

struct AdamStep {
  double lr, beta1, beta2, eps, weight_decay;
  double bias1, bias2;  // 1 - beta^t
};

// The moments are rounded as torch's fused Adam rounds them; the parameter differs by the last bit of its update now
// and then, because 1 / sqrt(bias2) is multiplied with.
void adam_step(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t n, const AdamStep& step);
void adam_step(double* param, const double* grad, double* exp_avg, double* exp_avg_sq, int64_t n, const AdamStep& step);

}  // namespace fastrl

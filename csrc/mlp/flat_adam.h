// One update of a flat vector: clip the gradient's norm, Adam, and what follows the parameters.
#pragma once

#include "adam/adam.h"

namespace fastrl {

struct FlatAdam {
  float *param, *grad, *exp_avg, *exp_avg_sq;
  int64_t n;
  double max_norm;          // < 0: not clipped
  float *target, *average;  // null: there is none
  float tau, average_weight;
};

// The gradient's norm before clipping; NaN if it is not clipped.
double flat_adam_step(const FlatAdam& f, const AdamStep& step);

}  // namespace fastrl

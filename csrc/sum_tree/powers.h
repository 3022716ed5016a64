// The powers of prioritized replay, vectorised: priorities from errors, weights from priorities. In a file of their own
// because multiply-adds may be fused here (twice as fast), and must not be where sums decide a draw.
#pragma once

#include <cstdint>

namespace fastrl {

// td[i] <- (|td[i]| + eps)^alpha, in [low, high] where |td[i]| + eps > 0; 0^alpha is 0, and 1 for alpha = 0.
void td_to_priorities(double* td, int64_t n, double alpha, double eps, double low, double high);

// p[i] <- (smallest / p[i])^beta, exactly 1 where they are equal. All positive.
void priorities_to_weights(float* p, int64_t n, double beta, double smallest);
void priorities_to_weights(double* p, int64_t n, double beta, double smallest);

}  // namespace fastrl

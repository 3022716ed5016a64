// -1/2 |L^T (action - mean)|^2 a row, L lower triangular with the exponentials of its entries on the diagonal, and its
// gradients. fastrl/kernels/quadratic_advantage has the equations.
#pragma once

#include "core/common.h"
#include "heads/columns.h"

namespace fastrl {

// Rows [begin, end); the outputs are contiguous.
template <class T>
struct QuadraticAdvantage {
  int64_t columns;  // A
  Columns mean, cholesky, action;
  T* advantage;
  void operator()(int64_t begin, int64_t end) const;
};

template <class T>
struct QuadraticAdvantageGrad {
  int64_t columns;
  Columns mean, cholesky, action;
  const T* grad;  // [rows]
  T *grad_mean, *grad_cholesky;
  void operator()(int64_t begin, int64_t end) const;
};

}  // namespace fastrl

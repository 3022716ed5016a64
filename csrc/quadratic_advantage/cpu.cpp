#include "quadratic_advantage/quadratic_advantage.h"

#include <vector>

#include "core/levels.h"
#include "core/simd_math.h"
#include "heads/chunks.h"

namespace fastrl {
namespace {

// One row: d = action - mean, L row after row with its diagonal, and u = L^T d.
template <class T>
struct Row {
  explicit Row(int64_t columns)
      : numbers(static_cast<size_t>(columns * 2 + columns * (columns + 1) / 2)),
        d(numbers.data()),
        u(d + columns),
        factor(u + columns) {}
  std::vector<double> numbers;
  double *d, *u, *factor;

  template <class Q>
  FASTRL_INLINE void load(const Q& q, int64_t b) {
    const char* entry = q.cholesky.data + b * q.cholesky.row_stride;
    const char *x = q.action.data + b * q.action.row_stride, *m = q.mean.data + b * q.mean.row_stride;
    double* row = factor;
    for (int64_t i = 0; i < q.columns; row += ++i) {
      d[i] = static_cast<double>(load_item<T>(x + i * q.action.column_stride)) -
             static_cast<double>(load_item<T>(m + i * q.mean.column_stride));
      for (int64_t j = 0; j <= i; ++j, entry += q.cholesky.column_stride)
        row[j] = static_cast<double>(load_item<T>(entry));
      row[i] = exp_bounded(row[i]);
      u[i] = 0;
      for (int64_t j = 0; j <= i; ++j) u[j] += row[j] * d[i];
    }
  }
};

template <class T>
FASTRL_INLINE void forward(const QuadraticAdvantage<T>& q, int64_t begin, int64_t end, Row<T>& row) {
  for (int64_t b = begin; b < end; ++b) {
    row.load(q, b);
    double sum = 0;
    for (int64_t j = 0; j < q.columns; ++j) sum += row.u[j] * row.u[j];
    q.advantage[b] = static_cast<T>(-0.5 * sum);
  }
}

template <class T>
FASTRL_INLINE void backward(const QuadraticAdvantageGrad<T>& q, int64_t begin, int64_t end, Row<T>& row) {
  T *g_mean = q.grad_mean + begin * q.columns, *g = q.grad_cholesky + begin * (q.columns * (q.columns + 1) / 2);
  for (int64_t b = begin; b < end; ++b) {
    row.load(q, b);
    const auto grad = static_cast<double>(q.grad[b]);
    const double* factor = row.factor;
    for (int64_t i = 0; i < q.columns; factor += ++i) {
      double sum = 0;
      for (int64_t j = 0; j <= i; ++j) {
        sum += factor[j] * row.u[j];
        *g++ = static_cast<T>(-grad * row.u[j] * row.d[i] * (i == j ? factor[j] : 1.0));
      }
      *g_mean++ = static_cast<T>(grad * sum);
    }
  }
}

}  // namespace

template <class T>
void QuadraticAdvantage<T>::operator()(int64_t begin, int64_t end) const {
  Row<T> row(columns);
  at_level_256<forward<T>>(*this, begin, end, row);
}

template <class T>
void QuadraticAdvantageGrad<T>::operator()(int64_t begin, int64_t end) const {
  Row<T> row(columns);
  at_level_256<backward<T>>(*this, begin, end, row);
}

template struct QuadraticAdvantage<float>;
template struct QuadraticAdvantage<double>;
template struct QuadraticAdvantageGrad<float>;
template struct QuadraticAdvantageGrad<double>;

}  // namespace fastrl

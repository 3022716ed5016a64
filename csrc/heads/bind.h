// What the bindings of the policy heads share: arguments, and backward kernels that sum over rows. Gradients may be
// None.
#pragma once

#include <string>
#include <vector>

#include "binding/bind.h"
#include "core/parallel.h"
#include "heads/arguments.h"

namespace fastrl {

struct Head : HeadArguments<Head> {
  static Array load(py::handle x, const char* where, const Array* first, const char* first_name) {
    Array a = load_cpu(x.ptr(), where, {DType::f32, DType::f64});
    if (first) check_kind_like(a, where, *first, first_name);
    return a;
  }
};

// A gradient [B] that may be None: contiguous, whatever strides autograd gave it.
template <class T>
class RowGrad {
 public:
  RowGrad(py::handle g, const std::string& where, const Array& first, const char* first_name, int64_t rows) {
    if (g.is_none()) return;
    array_ = Head::rows(g, where, first, first_name, rows);
    numbers_.emplace_back(array_);
  }
  const T* data() const { return numbers_.empty() ? nullptr : numbers_[0].data(); }

 private:
  Array array_;
  std::vector<Contiguous<T>> numbers_;  // none or one
};

// Runs a backward kernel that sums over the rows where log_std has shape [A]; returns the gradient of log_std then.
template <class T, class Op>
py::object run_backward(Op& op, const Array& log_std, bool wanted, int64_t rows, double microseconds) {
  const bool shared = log_std.ndim == 1;
  Result grad;
  std::vector<double> sums;
  const int64_t columns = op.columns, pieces = (rows + kPieceRows - 1) / kPieceRows;
  if (wanted) {
    grad = allocate_like(log_std, log_std.dtype, log_std.shape.data(), log_std.ndim);
    if (!shared) op.grad_log_std = data_of<T>(grad);
    if (shared) sums.assign(static_cast<size_t>(pieces * columns), 0.0), op.sums = sums.data();
  }
  const Threads threads = threads_and_pieces(microseconds);
  {
    ReleaseGil release;
    parallel_for(pieces, threads, [&](int64_t begin, int64_t end) {
      op(begin * kPieceRows, end * kPieceRows < rows ? end * kPieceRows : rows);
    });
    if (wanted && shared)
      for (int64_t j = 0; j < columns; ++j) {
        double sum = 0;
        for (int64_t p = 0; p < pieces; ++p) sum += sums[p * columns + j];
        data_of<T>(grad)[j] = static_cast<T>(sum);
      }
  }
  if (!wanted) return py::none();
  return hand_back(std::move(grad), log_std);
}

}  // namespace fastrl

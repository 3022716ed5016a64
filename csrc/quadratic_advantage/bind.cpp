#include "heads/bind.h"
#include "quadratic_advantage/quadratic_advantage.h"

namespace fastrl {
namespace {

struct Arguments {
  Array mean, cholesky, action;
  Arguments(const std::string& op, py::handle m, py::handle l, py::handle x) : mean(Head::first(m, op + ": mean")) {
    if (mean.ndim != 2 || mean.shape[1] < 1)
      raise_value(op + ": mean must have shape [B, A] with A >= 1, got " + shape_text(mean.shape, mean.ndim));
    const int64_t a = mean.shape[1], wanted[2] = {mean.shape[0], a * (a + 1) / 2};
    cholesky = Head::like(l, op + ": cholesky", mean, "mean");
    if (cholesky.ndim != 2 || cholesky.shape[0] != wanted[0] || cholesky.shape[1] != wanted[1])
      raise_value(op + ": cholesky must have shape " + shape_text(wanted, 2) + ", [B, A (A + 1) / 2], got " +
                  shape_text(cholesky.shape, cholesky.ndim));
    action = Head::matrix(x, op + ": action", mean, "mean");
  }
  double microseconds() const { return 2e-3 * static_cast<double>(cholesky.size()) + 1e-2 * mean.shape[0]; }
};

template <class T>
py::object advantage_of(const Arguments& a) {
  Result out = allocate_like(a.mean, a.mean.dtype, a.mean.shape.data(), 1);
  const QuadraticAdvantage<T> op{a.mean.shape[1], columns_of(a.mean), columns_of(a.cholesky), columns_of(a.action),
                                 data_of<T>(out)};
  const Threads threads = threads_and_pieces(a.microseconds());
  {
    ReleaseGil release;
    parallel_for(a.mean.shape[0], threads, op);
  }
  return hand_back(std::move(out), a.mean);
}

py::object quadratic_advantage(py::handle mean, py::handle cholesky, py::handle action) {
  const Arguments a("quadratic_advantage", mean, cholesky, action);
  return a.mean.dtype == DType::f32 ? advantage_of<float>(a) : advantage_of<double>(a);
}

template <class T>
py::tuple backward_of(const Arguments& a, const Array& grad) {
  const Contiguous<T> g(grad);
  Result g_mean = allocate_like(a.mean, a.mean.dtype, a.mean.shape.data(), 2);
  Result g_cholesky = allocate_like(a.mean, a.mean.dtype, a.cholesky.shape.data(), 2);
  const QuadraticAdvantageGrad<T> op{a.mean.shape[1], columns_of(a.mean), columns_of(a.cholesky), columns_of(a.action),
                                     g.data(),        data_of<T>(g_mean), data_of<T>(g_cholesky)};
  const Threads threads = threads_and_pieces(2 * a.microseconds());
  {
    ReleaseGil release;
    parallel_for(a.mean.shape[0], threads, op);
  }
  return py::make_tuple(hand_back(std::move(g_mean), a.mean), hand_back(std::move(g_cholesky), a.mean));
}

py::tuple quadratic_advantage_backward(py::handle mean, py::handle cholesky, py::handle action, py::handle grad) {
  const std::string op = "quadratic_advantage_backward";
  const Arguments a(op, mean, cholesky, action);
  const Array g = Head::rows(grad, op + ": grad", a.mean, "mean", a.mean.shape[0]);
  return a.mean.dtype == DType::f32 ? backward_of<float>(a, g) : backward_of<double>(a, g);
}

void bind(py::handle m) {
  def<&quadratic_advantage>(m, "quadratic_advantage(mean, cholesky, action)");
  def<&quadratic_advantage_backward>(m, "quadratic_advantage_backward(mean, cholesky, action, grad)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl

// `state` is that of a Generator on the same device. The twin of bind.cpp.
#include "heads/bind_cuda.h"
#include "normal/cuda.h"

namespace fastrl {
namespace {

using Head = CudaHead<DType::f32, DType::f64, DType::f16, DType::bf16>;

CudaNormal call_of(const Array& first, const Array& log_std) {
  CudaNormal c{};
  c.dtype = cuda_float(first.dtype);
  c.rows = first.shape[0], c.columns = first.shape[1];
  c.log_std = columns_of(log_std);
  c.shared = log_std.ndim == 1;
  return c;
}

py::tuple normal_log_prob_entropy(py::handle mean, py::handle log_std, py::handle action) {
  const std::string op = "normal_log_prob_entropy";
  const Array m = Head::mean(mean, op + ": mean");
  const Array s = Head::log_std(log_std, op + ": log_std", m, "mean");
  const Array x = Head::matrix(action, op + ": action", m, "mean");
  CudaNormal c = call_of(m, s);
  c.mean = columns_of(m), c.action = columns_of(x);
  Result log_prob = allocate_like(m, m.dtype, m.shape.data(), 1);
  Result entropy = allocate_like(m, m.dtype, m.shape.data(), 1);
  c.log_prob = log_prob.data, c.entropy = entropy.data;
  launch(op, cuda_normal_log_prob_entropy, c, m);
  return py::make_tuple(std::move(log_prob.object), std::move(entropy.object));
}

py::tuple normal_log_prob_entropy_backward(py::handle mean, py::handle log_std, py::handle action,
                                           py::handle grad_log_prob, py::handle grad_entropy, bool want_mean,
                                           bool want_log_std, bool want_action) {
  const std::string op = "normal_log_prob_entropy_backward";
  const Array m = Head::mean(mean, op + ": mean");
  const Array s = Head::log_std(log_std, op + ": log_std", m, "mean");
  const Array x = Head::matrix(action, op + ": action", m, "mean");
  CudaNormal c = call_of(m, s);
  c.mean = columns_of(m), c.action = columns_of(x);
  c.grad_log_prob = Head::row_grad(grad_log_prob, op + ": grad_log_prob", m, "mean", c.rows);
  c.grad_entropy = Head::row_grad(grad_entropy, op + ": grad_entropy", m, "mean", c.rows);
  py::object g_mean = new_matrix(m, m.shape.data(), want_mean, c.grad_mean);
  py::object g_action = new_matrix(m, m.shape.data(), want_action, c.grad_action_out);
  LogStdGrad g_log_std(c, s, want_log_std);
  launch(op, cuda_normal_grad, c, m);
  return py::make_tuple(std::move(g_mean), std::move(g_log_std.grad), std::move(g_action));
}

py::tuple normal_sample(py::handle mean, py::handle log_std, py::handle noise, py::handle state, bool with_noise) {
  const std::string op = "normal_sample";
  const Array m = Head::mean(mean, op + ": mean");
  const Array s = Head::log_std(log_std, op + ": log_std", m, "mean");
  CudaNormal c = call_of(m, s);
  c.mean = columns_of(m);
  if (noise.is_none())
    c.state = load_cuda_state(state, m, "mean");
  else
    c.noise = columns_of(Head::matrix(noise, op + ": noise", m, "mean"));
  py::object action = new_matrix(m, m.shape.data(), true, c.out_action);
  Result log_prob = allocate_like(m, m.dtype, m.shape.data(), 1);
  py::object drawn = new_matrix(m, m.shape.data(), with_noise, c.noise_out);
  c.log_prob = log_prob.data;
  launch(op, cuda_normal_sample, c, m);
  return py::make_tuple(std::move(action), std::move(log_prob.object), std::move(drawn));
}

py::object normal_sample_backward(py::handle log_std, py::handle noise, py::handle grad_action,
                                  py::handle grad_log_prob) {
  const std::string op = "normal_sample_backward";
  const Array eps = Head::mean(noise, op + ": noise");
  const Array s = Head::log_std(log_std, op + ": log_std", eps, "noise");
  CudaNormal c = call_of(eps, s);
  c.noise = columns_of(eps);
  if (!grad_action.is_none()) c.grad_action = columns_of(Head::matrix(grad_action, op + ": grad_action", eps, "noise"));
  c.grad_log_prob = Head::row_grad(grad_log_prob, op + ": grad_log_prob", eps, "noise", c.rows);
  LogStdGrad g(c, s, true);
  launch(op, cuda_normal_sample_grad, c, eps);
  return std::move(g.grad);
}

void bind(py::handle m) {
  def<&normal_sample>(m, "normal_sample(mean, log_std, noise, state, with_noise)");
  def<&normal_sample_backward>(m, "normal_sample_backward(log_std, noise, grad_action, grad_log_prob)");
  def<&normal_log_prob_entropy>(m, "normal_log_prob_entropy(mean, log_std, action)");
  def<&normal_log_prob_entropy_backward>(
      m,
      "normal_log_prob_entropy_backward(mean, log_std, action, grad_log_prob, grad_entropy, want_mean, "
      "want_log_std, want_action)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl

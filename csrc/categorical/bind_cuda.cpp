// `state` is that of a Generator on the same device. The twin of bind.cpp.
#include "heads/bind_cuda.h"
#include "categorical/cuda.h"

namespace fastrl {
namespace {

using Head = CudaHead<DType::f32, DType::f64, DType::f16, DType::bf16>;

CudaCategorical call_of(const Array& logits) {
  CudaCategorical c{};
  c.dtype = cuda_float(logits.dtype);
  c.logits = {logits.data, logits.shape[0], logits.shape[1], logits.strides[0], logits.strides[1]};
  return c;
}

CudaIndices load_action(py::handle x, const std::string& where, const Array& logits) {
  const Array a = load_cuda(x, where.c_str(), &logits, "logits", {DType::i64, DType::i32});
  check_rows(a, where, logits.shape[0]);
  return {a.data, a.strides[0], a.dtype == DType::i32, 0};
}

py::tuple categorical_sample(py::handle logits, py::handle state, py::handle uniform) {
  const char* op = "categorical_sample";
  const Array z = Head::logits(logits, "categorical_sample: logits");
  CudaCategorical c = call_of(z);
  if (uniform.is_none()) {
    c.state = load_cuda_state(state, z, "logits");
  } else {
    const Array u = load_cuda(uniform, "categorical_sample: uniform", &z, "logits", {DType::f64});
    check_rows(u, "categorical_sample: uniform", z.shape[0]);
    c.uniform = u.data, c.uniform_stride = u.strides[0];
  }
  Result action = allocate_like(z, DType::i64, z.shape.data(), 1);
  Result log_prob = allocate_like(z, z.dtype, z.shape.data(), 1);
  c.drawn = reinterpret_cast<int64_t*>(action.data), c.log_prob = log_prob.data;
  launch(op, cuda_categorical_sample, c, z);
  return py::make_tuple(std::move(action.object), std::move(log_prob.object));
}

py::tuple categorical_log_prob_entropy(py::handle logits, py::handle action) {
  const char* op = "categorical_log_prob_entropy";
  const Array z = Head::logits(logits, "categorical_log_prob_entropy: logits");
  CudaCategorical c = call_of(z);
  c.action = load_action(action, "categorical_log_prob_entropy: action", z);
  Result log_prob = allocate_like(z, z.dtype, z.shape.data(), 1);
  Result entropy = allocate_like(z, z.dtype, z.shape.data(), 1);
  c.log_prob = log_prob.data, c.entropy = entropy.data;
  launch(op, cuda_categorical_log_prob_entropy, c, z);
  return py::make_tuple(std::move(log_prob.object), std::move(entropy.object));
}

py::object categorical_log_prob_entropy_backward(py::handle logits, py::handle action, py::handle grad_log_prob,
                                                 py::handle grad_entropy) {
  const std::string op = "categorical_log_prob_entropy_backward";
  const Array z = Head::logits(logits, "categorical_log_prob_entropy_backward: logits");
  CudaCategorical c = call_of(z);
  c.action = load_action(action, op + ": action", z);
  c.grad_log_prob = Head::row_grad(grad_log_prob, op + ": grad_log_prob", z, "logits", z.shape[0]);
  c.grad_entropy = Head::row_grad(grad_entropy, op + ": grad_entropy", z, "logits", z.shape[0]);
  Result grad = allocate_like(z, z.dtype, z.shape.data(), 2);
  c.grad_logits = grad.data;
  launch(op, cuda_categorical_grad, c, z);
  return std::move(grad.object);
}

void bind(py::handle m) {
  def<&categorical_sample>(m, "categorical_sample(logits, state, uniform)");
  def<&categorical_log_prob_entropy>(m, "categorical_log_prob_entropy(logits, action)");
  def<&categorical_log_prob_entropy_backward>(
      m, "categorical_log_prob_entropy_backward(logits, action, grad_log_prob, grad_entropy)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl

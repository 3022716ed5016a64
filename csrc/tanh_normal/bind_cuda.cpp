// The tanh-Gaussian head on a GPU; `state` is that of a Generator on the same device. The twin of bind.cpp.
#include <algorithm>
#include <cmath>

#include "binding/numpy.h"
#include "heads/bind_cuda.h"
#include "tanh_normal/cuda.h"

namespace fastrl {
namespace {

using Head = CudaHead<DType::f32, DType::f64, DType::f16, DType::bf16>;

CudaBound load_bound(py::handle x, const std::string& where, const Array& first, int64_t columns) {
  CudaBound b;
  if (is_real(x.ptr())) {
    b.number = to_double(x.ptr());
    return b;
  }
  if (!is_numpy(x.ptr()) && !exchange_api(Py_TYPE(x.ptr())) && !py::hasattr(py::type::handle_of(x), "__dlpack__"))
    raise_type(where + " must be a number or an array, got " + type_name(x.ptr()));
  const Array a = Head::like(x, where, first, "mean");
  if (a.ndim != 1 || a.shape[0] != columns)
    raise_value(where + " must have shape (" + std::to_string(columns) + ",), got " + shape_text(a.shape, a.ndim));
  b.data = a.data, b.stride = a.strides[0];
  return b;
}

struct Limits {
  double log_std_min, log_std_max, epsilon;
};

// A number as its dtype holds it.
double rounded(double x, DType t) {
  if (t == DType::f64 || !std::isfinite(x)) return x;
  if (t == DType::f32) return static_cast<double>(static_cast<float>(x));
  const bool half = t == DType::f16;  // else bfloat16: 8 bits, down to 2^-133
  int exponent;
  std::frexp(x, &exponent);
  const double ulp = std::ldexp(1.0, std::max(exponent - (half ? 11 : 8), half ? -24 : -133));
  const double nearest = std::nearbyint(x / ulp) * ulp;
  return std::abs(nearest) <= (half ? 65504.0 : 0x1.FEp127) ? nearest : std::copysign(kInf, x);
}

CudaTanhNormal call_of(const std::string& op, const Array& first, int64_t rows, int64_t columns, py::handle low,
                       py::handle high, const Limits& limits) {
  CudaTanhNormal c{};
  c.dtype = cuda_float(first.dtype);
  c.rows = rows, c.columns = columns;
  c.low = load_bound(low, op + ": low", first, columns);
  c.high = load_bound(high, op + ": high", first, columns);
  if (!c.low.data && !c.high.data && columns > 0) {
    const double l = rounded(c.low.number, first.dtype), h = rounded(c.high.number, first.dtype);
    if (!(-kInf < l && l < h && h < kInf))
      raise_value(op + ": low must be finite and below high, got " + repr(l) + " and " + repr(h) + " in dimension 0");
    // Their middle rounds to one of them where nothing is between.
    const double middle = rounded(0.5 * l + 0.5 * h, first.dtype);
    if (first.dtype == DType::f64 ? std::nextafter(l, h) == h : !(l < middle && middle < h))
      raise_value(op + ": low and high must have a number of their dtype between them, got " + repr(l) + " and " +
                  repr(h) + " in dimension 0");
  }
  c.log_std_min = limits.log_std_min, c.log_std_max = limits.log_std_max, c.epsilon = limits.epsilon;
  return c;
}

void set_log_std(CudaTanhNormal& c, const Array& log_std) {
  c.log_std = columns_of(log_std);
  c.shared = log_std.ndim == 1;
}

// ---------------------------------------------------------------- the ops
py::tuple tanh_normal_sample(py::handle mean, py::handle log_std, py::handle noise, py::handle state, py::handle low,
                             py::handle high, double log_std_min, double log_std_max, double epsilon, bool with_saved) {
  const std::string op = "tanh_normal_sample";
  const Array m = Head::mean(mean, op + ": mean");
  const int64_t rows = m.shape[0], columns = m.shape[1];
  const Array s = Head::log_std(log_std, op + ": log_std", m, "mean");
  Array eps;
  if (!noise.is_none()) eps = Head::matrix(noise, op + ": noise", m, "mean");
  CudaTanhNormal c = call_of(op, m, rows, columns, low, high, {log_std_min, log_std_max, epsilon});
  set_log_std(c, s);
  c.mean = columns_of(m);
  if (noise.is_none())
    c.state = load_cuda_state(state, m, "mean");
  else
    c.noise = columns_of(eps);
  py::object action = new_matrix(m, m.shape.data(), true, c.out_action);
  Result log_prob = allocate_like(m, m.dtype, m.shape.data(), 1);
  c.log_prob = log_prob.data;
  py::object kept = py::none();
  if (with_saved) {
    const int64_t shape[] = {2, rows, columns};
    const DType dtype = m.dtype == DType::f64 ? DType::f64 : DType::f32;
    Result r = allocate_like(m, dtype, shape, 3);
    c.u = r.data, c.scaled_noise = r.data + rows * columns * (dtype == DType::f64 ? 8 : 4);
    kept = std::move(r.object);
  }
  launch(op, cuda_tanh_normal_sample, c, m);
  return py::make_tuple(std::move(action), std::move(log_prob.object), std::move(kept));
}

py::tuple tanh_normal_sample_backward(py::handle saved, py::handle log_std, py::handle grad_action,
                                      py::handle grad_log_prob, py::handle low, py::handle high, double log_std_min,
                                      double log_std_max, double epsilon, bool want_mean, bool want_log_std) {
  const std::string op = "tanh_normal_sample_backward", name = op + ": saved";
  const Array s = Head::first(log_std, op + ": log_std");
  const DType kept_dtype = s.dtype == DType::f64 ? DType::f64 : DType::f32;
  const Array kept = load_cuda(saved, name.c_str(), &s, "log_std", {kept_dtype});
  if (kept.ndim != 3 || kept.shape[0] != 2 || !kept.is_contiguous())
    raise_value(name + " must have shape [2, B, A], got " + shape_text(kept.shape, kept.ndim));
  const int64_t rows = kept.shape[1], columns = kept.shape[2];
  Head::check_log_std(s, op + ": log_std", kept.shape.data() + 1, "saved");
  Array ga;
  if (!grad_action.is_none()) ga = Head::grad_action(grad_action, op + ": grad_action", s, "log_std", kept);
  const RowNumbers gl = Head::row_grad(grad_log_prob, op + ": grad_log_prob", s, "log_std", rows);
  CudaTanhNormal c = call_of(op, s, rows, columns, low, high, {log_std_min, log_std_max, epsilon});
  set_log_std(c, s);
  c.u = kept.data, c.scaled_noise = kept.data + rows * columns * kept.itemsize;
  if (ga.object) c.grad_action = columns_of(ga);
  c.grad_log_prob = gl;
  py::object grad_mean = new_matrix(s, kept.shape.data() + 1, want_mean, c.grad_mean);
  LogStdGrad grad_log_std(c, s, want_log_std);
  launch(op, cuda_tanh_normal_sample_grad, c, s);
  return py::make_tuple(std::move(grad_mean), std::move(grad_log_std.grad));
}

// mean, log_std and action of the two that follow.
CudaTanhNormal given_call(const std::string& op, const Array& m, const Array& s, const Array& x, py::handle low,
                          py::handle high, const Limits& limits) {
  CudaTanhNormal c = call_of(op, m, m.shape[0], m.shape[1], low, high, limits);
  set_log_std(c, s);
  c.mean = columns_of(m), c.action = columns_of(x);
  return c;
}

py::object tanh_normal_log_prob(py::handle mean, py::handle log_std, py::handle action, py::handle low, py::handle high,
                                double log_std_min, double log_std_max, double epsilon) {
  const std::string op = "tanh_normal_log_prob";
  const Array m = Head::mean(mean, op + ": mean"), s = Head::log_std(log_std, op + ": log_std", m, "mean");
  const Array x = Head::matrix(action, op + ": action", m, "mean");
  CudaTanhNormal c = given_call(op, m, s, x, low, high, {log_std_min, log_std_max, epsilon});
  Result log_prob = allocate_like(m, m.dtype, m.shape.data(), 1);
  c.log_prob = log_prob.data;
  launch(op, cuda_tanh_normal_log_prob, c, m);
  return std::move(log_prob.object);
}

py::tuple tanh_normal_log_prob_backward(py::handle mean, py::handle log_std, py::handle action,
                                        py::handle grad_log_prob, py::handle low, py::handle high, double log_std_min,
                                        double log_std_max, double epsilon, bool want_mean, bool want_log_std,
                                        bool want_action) {
  const std::string op = "tanh_normal_log_prob_backward";
  const Array m = Head::mean(mean, op + ": mean"), s = Head::log_std(log_std, op + ": log_std", m, "mean");
  const Array x = Head::matrix(action, op + ": action", m, "mean");
  CudaTanhNormal c = given_call(op, m, s, x, low, high, {log_std_min, log_std_max, epsilon});
  c.grad_log_prob = Head::row_grad(grad_log_prob, op + ": grad_log_prob", m, "mean", m.shape[0]);
  if (!c.grad_log_prob.data && c.rows > 0) raise_type(op + ": grad_log_prob must be an array, got NoneType");
  py::object grad_mean = new_matrix(m, m.shape.data(), want_mean, c.grad_mean);
  py::object grad = new_matrix(m, m.shape.data(), want_action, c.grad_action_out);
  LogStdGrad grad_log_std(c, s, want_log_std);
  launch(op, cuda_tanh_normal_log_prob_grad, c, m);
  return py::make_tuple(std::move(grad_mean), std::move(grad_log_std.grad), std::move(grad));
}

py::object tanh_normal_mode(py::handle mean, py::handle low, py::handle high) {
  const std::string op = "tanh_normal_mode";
  const Array m = Head::mean(mean, op + ": mean");
  CudaTanhNormal c = call_of(op, m, m.shape[0], m.shape[1], low, high, {});
  c.mean = columns_of(m);
  py::object action = new_matrix(m, m.shape.data(), true, c.out_action);
  launch(op, cuda_tanh_normal_mode, c, m);
  return action;
}

py::object tanh_normal_mode_backward(py::handle mean, py::handle grad_action, py::handle low, py::handle high) {
  const std::string op = "tanh_normal_mode_backward";
  const Array m = Head::mean(mean, op + ": mean");
  const Array g = Head::matrix(grad_action, op + ": grad_action", m, "mean");
  CudaTanhNormal c = call_of(op, m, m.shape[0], m.shape[1], low, high, {});
  c.mean = columns_of(m), c.grad_action = columns_of(g);
  py::object grad = new_matrix(m, m.shape.data(), true, c.grad_mean);
  launch(op, cuda_tanh_normal_mode, c, m);
  return grad;
}

void bind(py::handle m) {
  def<&tanh_normal_sample>(
      m, "tanh_normal_sample(mean, log_std, noise, state, low, high, log_std_min, log_std_max, epsilon, with_saved)");
  def<&tanh_normal_sample_backward>(
      m,
      "tanh_normal_sample_backward(saved, log_std, grad_action, grad_log_prob, low, high, log_std_min, "
      "log_std_max, epsilon, want_mean, want_log_std)");
  def<&tanh_normal_log_prob>(
      m, "tanh_normal_log_prob(mean, log_std, action, low, high, log_std_min, log_std_max, epsilon)");
  def<&tanh_normal_log_prob_backward>(
      m,
      "tanh_normal_log_prob_backward(mean, log_std, action, grad_log_prob, low, high, log_std_min, log_std_max, "
      "epsilon, want_mean, want_log_std, want_action)");
  def<&tanh_normal_mode>(m, "tanh_normal_mode(mean, low, high)");
  def<&tanh_normal_mode_backward>(m, "tanh_normal_mode_backward(mean, grad_action, low, high)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl

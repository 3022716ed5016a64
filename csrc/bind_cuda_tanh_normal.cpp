// The tanh-Gaussian head on a GPU; `state` is that of a Generator on the same device. The twin of bind_tanh_normal.cpp.
#include <cmath>

#include "bindings_cuda.h"
#include "tanh_normal_cuda.h"

namespace fastrl {
namespace {

const auto kFloats = {DType::f32, DType::f64, DType::f16, DType::bf16};

// ---------------------------------------------------------------- arguments
Array load_first(py::handle x, const std::string& where) { return load_cuda(x, where.c_str(), nullptr, "", kFloats); }

Array load_like(py::handle x, const std::string& where, const Array& first, const char* name) {
  Array a = load_cuda(x, where.c_str(), &first, name, kFloats);
  if (a.dtype != first.dtype)
    raise_value(where + " must have dtype " + dtype_name(first.dtype) + " like " + name + ", got " +
                dtype_name(a.dtype));
  return a;
}

Array load_mean(py::handle x, const std::string& where) {
  Array a = load_first(x, where);
  if (a.ndim != 2) raise_value(where + " must have shape [B, A], got " + shape_text(a.shape, a.ndim));
  return a;
}

Array load_matrix(py::handle x, const std::string& where, const Array& first, const char* name) {
  Array a = load_like(x, where, first, name);
  check_shape_like(a, where.c_str(), first, name);
  return a;
}

void check_log_std(const Array& a, const std::string& where, int64_t rows, int64_t columns, const char* name) {
  const std::array<int64_t, 2> shape{rows, columns};
  const bool shared = a.ndim == 1 && a.shape[0] == columns;
  if (!shared && !(a.ndim == 2 && a.shape[0] == rows && a.shape[1] == columns))
    raise_value(where + " must have shape (" + std::to_string(columns) + ",) or " + shape_text(shape, 2) + " like " +
                name + ", got " + shape_text(a.shape, a.ndim));
}

// A gradient [B] that may be None.
RowNumbers load_row_grad(py::handle g, const std::string& where, const Array& first, const char* name, int64_t rows) {
  if (g.is_none()) return {};
  const Array a = load_like(g, where, first, name);
  if (a.ndim != 1 || a.shape[0] != rows)
    raise_value(where + " must have shape (" + std::to_string(rows) + ",), got " + shape_text(a.shape, a.ndim));
  return {a.data, a.strides[0]};
}

Columns columns_of(const Array& a) {
  return a.ndim == 1 ? Columns{a.data, 0, a.strides[0]} : Columns{a.data, a.strides[0], a.strides[1]};
}

CudaBound load_bound(py::handle x, const std::string& where, const Array& first, int64_t columns) {
  CudaBound b;
  if (is_real(x.ptr())) {
    b.number = to_double(x.ptr());
    return b;
  }
  if (!py::detail::npy_api::get().PyArray_Check_(x.ptr()) && !exchange_api(Py_TYPE(x.ptr())) &&
      !py::hasattr(py::type::handle_of(x), "__dlpack__"))
    raise_type(where + " must be a number or an array, got " + type_name(x.ptr()));
  const Array a = load_like(x, where, first, "mean");
  if (a.ndim != 1 || a.shape[0] != columns)
    raise_value(where + " must have shape (" + std::to_string(columns) + ",), got " + shape_text(a.shape, a.ndim));
  b.data = a.data, b.stride = a.strides[0];
  return b;
}

struct Limits {
  double log_std_min, log_std_max, epsilon;
};

// A number as its dtype holds it; float16 and bfloat16 to a few ulp, which decides nothing but an error.
double rounded(double x, DType t) {
  if (t == DType::f64) return x;
  if (t == DType::f16) return std::abs(x) < 65520 ? x : x * kInf;
  return static_cast<double>(static_cast<float>(x));
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
  }
  c.log_std_min = limits.log_std_min, c.log_std_max = limits.log_std_max, c.epsilon = limits.epsilon;
  return c;
}

void set_log_std(CudaTanhNormal& c, const Array& log_std) {
  c.log_std = columns_of(log_std);
  c.shared = log_std.ndim == 1;
}

// The gradient of log_std, and what it is summed up in; kept until the kernels are launched.
struct LogStdGrad {
  py::object grad = py::none();
  Result sums;
  LogStdGrad(CudaTanhNormal& c, const Array& log_std, bool wanted) {
    if (!wanted) return;
    Result r = allocate_like(log_std, log_std.dtype, log_std.shape.data(), log_std.ndim);
    c.grad_log_std = r.data, grad = std::move(r.object);
    if (!c.shared) return;
    const int64_t size = cuda_pieces(c.rows) * c.columns;
    sums = allocate_like(log_std, DType::f64, &size, 1);
    c.sums = reinterpret_cast<double*>(sums.data);
  }
};

py::object new_matrix(const Array& like, const int64_t* shape, bool wanted, void*& data) {
  if (!wanted) return py::none();
  Result r = allocate_like(like, like.dtype, shape, 2);
  data = r.data;
  return std::move(r.object);
}

template <class F>
void launch(const std::string& op, F kernel, const CudaTanhNormal& c, const Array& first) {
  launch_on(first.api, first.device, op.c_str(), [&](cudaStream_t stream) { return kernel(c, stream); });
}

// ---------------------------------------------------------------- the ops
py::tuple tanh_normal_sample(py::handle mean, py::handle log_std, py::handle noise, py::handle state, py::handle low,
                             py::handle high, double log_std_min, double log_std_max, double epsilon, bool with_saved) {
  const std::string op = "tanh_normal_sample";
  const Array m = load_mean(mean, op + ": mean");
  const int64_t rows = m.shape[0], columns = m.shape[1];
  const Array s = load_like(log_std, op + ": log_std", m, "mean");
  check_log_std(s, op + ": log_std", rows, columns, "mean");
  Array eps;
  if (!noise.is_none()) eps = load_matrix(noise, op + ": noise", m, "mean");
  CudaTanhNormal c = call_of(op, m, rows, columns, low, high, {log_std_min, log_std_max, epsilon});
  set_log_std(c, s);
  c.mean = columns_of(m);
  if (noise.is_none()) {
    const Array g = load_cuda(state, "generator: state", &m, "mean", {DType::i64});
    if (g.ndim != 1 || g.shape[0] != 2 || g.strides[0] != 8) raise_value("generator: state must be int64 [2]");
    c.state = reinterpret_cast<uint64_t*>(g.data);  // the generator keeps it alive
  } else {
    c.noise = columns_of(eps);
  }
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
  const Array s = load_first(log_std, op + ": log_std");
  const DType kept_dtype = s.dtype == DType::f64 ? DType::f64 : DType::f32;
  const Array kept = load_cuda(saved, name.c_str(), &s, "log_std", {kept_dtype});
  if (kept.ndim != 3 || kept.shape[0] != 2 || !kept.is_contiguous())
    raise_value(name + " must have shape [2, B, A], got " + shape_text(kept.shape, kept.ndim));
  const int64_t rows = kept.shape[1], columns = kept.shape[2];
  const std::array<int64_t, 2> shape{rows, columns};
  check_log_std(s, op + ": log_std", rows, columns, "saved");
  Array ga;
  if (!grad_action.is_none()) {
    ga = load_like(grad_action, op + ": grad_action", s, "log_std");
    if (ga.ndim != 2 || ga.shape[0] != rows || ga.shape[1] != columns)
      raise_value(op + ": grad_action must have shape " + shape_text(shape, 2) + " like saved, got " +
                  shape_text(ga.shape, ga.ndim));
  }
  const RowNumbers gl = load_row_grad(grad_log_prob, op + ": grad_log_prob", s, "log_std", rows);
  CudaTanhNormal c = call_of(op, s, rows, columns, low, high, {log_std_min, log_std_max, epsilon});
  set_log_std(c, s);
  c.u = kept.data, c.scaled_noise = kept.data + rows * columns * kept.itemsize;
  if (ga.object) c.grad_action = columns_of(ga);
  c.grad_log_prob = gl;
  py::object grad_mean = new_matrix(s, shape.data(), want_mean, c.grad_mean);
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
  const Array m = load_mean(mean, op + ": mean"), s = load_like(log_std, op + ": log_std", m, "mean");
  check_log_std(s, op + ": log_std", m.shape[0], m.shape[1], "mean");
  const Array x = load_matrix(action, op + ": action", m, "mean");
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
  const Array m = load_mean(mean, op + ": mean"), s = load_like(log_std, op + ": log_std", m, "mean");
  check_log_std(s, op + ": log_std", m.shape[0], m.shape[1], "mean");
  const Array x = load_matrix(action, op + ": action", m, "mean");
  CudaTanhNormal c = given_call(op, m, s, x, low, high, {log_std_min, log_std_max, epsilon});
  c.grad_log_prob = load_row_grad(grad_log_prob, op + ": grad_log_prob", m, "mean", m.shape[0]);
  if (!c.grad_log_prob.data && c.rows > 0) raise_type(op + ": grad_log_prob must be an array, got NoneType");
  py::object grad_mean = new_matrix(m, m.shape.data(), want_mean, c.grad_mean);
  py::object grad = new_matrix(m, m.shape.data(), want_action, c.grad_action_out);
  LogStdGrad grad_log_std(c, s, want_log_std);
  launch(op, cuda_tanh_normal_log_prob_grad, c, m);
  return py::make_tuple(std::move(grad_mean), std::move(grad_log_std.grad), std::move(grad));
}

py::object tanh_normal_mode(py::handle mean, py::handle low, py::handle high) {
  const std::string op = "tanh_normal_mode";
  const Array m = load_mean(mean, op + ": mean");
  CudaTanhNormal c = call_of(op, m, m.shape[0], m.shape[1], low, high, {});
  c.mean = columns_of(m);
  py::object action = new_matrix(m, m.shape.data(), true, c.out_action);
  launch(op, cuda_tanh_normal_mode, c, m);
  return action;
}

py::object tanh_normal_mode_backward(py::handle mean, py::handle grad_action, py::handle low, py::handle high) {
  const std::string op = "tanh_normal_mode_backward";
  const Array m = load_mean(mean, op + ": mean");
  const Array g = load_matrix(grad_action, op + ": grad_action", m, "mean");
  CudaTanhNormal c = call_of(op, m, m.shape[0], m.shape[1], low, high, {});
  c.mean = columns_of(m), c.grad_action = columns_of(g);
  py::object grad = new_matrix(m, m.shape.data(), true, c.grad_mean);
  launch(op, cuda_tanh_normal_mode, c, m);
  return grad;
}

}  // namespace

void bind_cuda_tanh_normal(py::module_& m) {
  m.def("tanh_normal_sample", &tanh_normal_sample, py::arg("mean"), py::arg("log_std"), py::arg("noise"),
        py::arg("state"), py::arg("low"), py::arg("high"), py::arg("log_std_min"), py::arg("log_std_max"),
        py::arg("epsilon"), py::arg("with_saved"));
  m.def("tanh_normal_sample_backward", &tanh_normal_sample_backward, py::arg("saved"), py::arg("log_std"),
        py::arg("grad_action"), py::arg("grad_log_prob"), py::arg("low"), py::arg("high"), py::arg("log_std_min"),
        py::arg("log_std_max"), py::arg("epsilon"), py::arg("want_mean"), py::arg("want_log_std"));
  m.def("tanh_normal_log_prob", &tanh_normal_log_prob, py::arg("mean"), py::arg("log_std"), py::arg("action"),
        py::arg("low"), py::arg("high"), py::arg("log_std_min"), py::arg("log_std_max"), py::arg("epsilon"));
  m.def("tanh_normal_log_prob_backward", &tanh_normal_log_prob_backward, py::arg("mean"), py::arg("log_std"),
        py::arg("action"), py::arg("grad_log_prob"), py::arg("low"), py::arg("high"), py::arg("log_std_min"),
        py::arg("log_std_max"), py::arg("epsilon"), py::arg("want_mean"), py::arg("want_log_std"),
        py::arg("want_action"));
  m.def("tanh_normal_mode", &tanh_normal_mode, py::arg("mean"), py::arg("low"), py::arg("high"));
  m.def("tanh_normal_mode_backward", &tanh_normal_mode_backward, py::arg("mean"), py::arg("grad_action"),
        py::arg("low"), py::arg("high"));
}

}  // namespace fastrl

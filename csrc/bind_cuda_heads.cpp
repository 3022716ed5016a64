// The policy heads on a GPU; `state` is that of a Generator on the same device. The twin of bind_heads.cpp.
#include "bindings_cuda.h"
#include "heads_cuda.h"

namespace fastrl {
namespace {

const auto kFloats = {DType::f32, DType::f64};

// ---------------------------------------------------------------- arguments
Array load_like(py::handle x, const std::string& where, const Array& first, const char* name) {
  Array a = load_cuda(x, where.c_str(), &first, name, kFloats);
  if (a.dtype != first.dtype)
    raise_value(where + " must have dtype " + dtype_name(first.dtype) + " like " + name + ", got " +
                dtype_name(a.dtype));
  return a;
}

Array load_matrix(py::handle x, const std::string& where, const Array& first, const char* name) {
  Array a = load_like(x, where, first, name);
  check_shape_like(a, where.c_str(), first, name);
  return a;
}

void check_rows(const Array& a, const std::string& where, int64_t rows) {
  if (a.ndim != 1 || a.shape[0] != rows)
    raise_value(where + " must have shape (" + std::to_string(rows) + ",), got " + shape_text(a.shape, a.ndim));
}

// A gradient [B] that may be None.
RowNumbers load_row_grad(py::handle g, const std::string& where, const Array& first, const char* name) {
  if (g.is_none()) return {};
  const Array a = load_like(g, where, first, name);
  check_rows(a, where, first.shape[0]);
  return {a.data, a.strides[0]};
}

uint64_t* load_state(py::handle state, const Array& first, const char* name) {
  const Array s = load_cuda(state, "generator: state", &first, name, {DType::i64});
  if (s.ndim != 1 || s.shape[0] != 2 || s.strides[0] != 8) raise_value("generator: state must be int64 [2]");
  return reinterpret_cast<uint64_t*>(s.data);  // the generator keeps it alive
}

// ---------------------------------------------------------------- categorical
Array load_logits(py::handle x, const char* where) {
  Array a = load_cuda(x, where, nullptr, "", kFloats);
  if (a.ndim != 2 || a.shape[1] < 1)
    raise_value(std::string(where) + " must have shape [B, K] with K >= 1, got " + shape_text(a.shape, a.ndim));
  return a;
}

CudaCategorical call_of(const Array& logits) {
  CudaCategorical c{};
  c.float64 = logits.dtype == DType::f64;
  c.logits = {logits.data, logits.shape[0], logits.shape[1], logits.strides[0], logits.strides[1]};
  return c;
}

CudaIndices load_action(py::handle x, const std::string& where, const Array& logits) {
  const Array a = load_cuda(x, where.c_str(), &logits, "logits", {DType::i64, DType::i32});
  check_rows(a, where, logits.shape[0]);
  return {a.data, a.strides[0], a.dtype == DType::i32, 0};
}

template <class F>
void launch(const char* op, F kernel, const Array& first) {
  launch_on(first.api, first.device, op, kernel);
}

py::tuple categorical_sample(py::handle logits, py::handle state, py::handle uniform) {
  const char* op = "categorical_sample";
  const Array z = load_logits(logits, "categorical_sample: logits");
  CudaCategorical c = call_of(z);
  if (uniform.is_none()) {
    c.state = load_state(state, z, "logits");
  } else {
    const Array u = load_cuda(uniform, "categorical_sample: uniform", &z, "logits", {DType::f64});
    check_rows(u, "categorical_sample: uniform", z.shape[0]);
    c.uniform = u.data, c.uniform_stride = u.strides[0];
  }
  Result action = allocate_like(z, DType::i64, z.shape.data(), 1);
  Result log_prob = allocate_like(z, z.dtype, z.shape.data(), 1);
  c.drawn = reinterpret_cast<int64_t*>(action.data), c.log_prob = log_prob.data;
  launch(op, [&](cudaStream_t stream) { return cuda_categorical_sample(c, stream); }, z);
  return py::make_tuple(std::move(action.object), std::move(log_prob.object));
}

py::tuple categorical_log_prob_entropy(py::handle logits, py::handle action) {
  const char* op = "categorical_log_prob_entropy";
  const Array z = load_logits(logits, "categorical_log_prob_entropy: logits");
  CudaCategorical c = call_of(z);
  c.action = load_action(action, "categorical_log_prob_entropy: action", z);
  Result log_prob = allocate_like(z, z.dtype, z.shape.data(), 1);
  Result entropy = allocate_like(z, z.dtype, z.shape.data(), 1);
  c.log_prob = log_prob.data, c.entropy = entropy.data;
  launch(op, [&](cudaStream_t stream) { return cuda_categorical_log_prob_entropy(c, stream); }, z);
  return py::make_tuple(std::move(log_prob.object), std::move(entropy.object));
}

py::object categorical_log_prob_entropy_backward(py::handle logits, py::handle action, py::handle grad_log_prob,
                                                 py::handle grad_entropy) {
  const char* op = "categorical_log_prob_entropy_backward";
  const Array z = load_logits(logits, "categorical_log_prob_entropy_backward: logits");
  CudaCategorical c = call_of(z);
  c.action = load_action(action, std::string(op) + ": action", z);
  c.grad_log_prob = load_row_grad(grad_log_prob, std::string(op) + ": grad_log_prob", z, "logits");
  c.grad_entropy = load_row_grad(grad_entropy, std::string(op) + ": grad_entropy", z, "logits");
  Result grad = allocate_like(z, z.dtype, z.shape.data(), 2);
  c.grad_logits = grad.data;
  launch(op, [&](cudaStream_t stream) { return cuda_categorical_grad(c, stream); }, z);
  return std::move(grad.object);
}

// ---------------------------------------------------------------- normal
Array load_mean(py::handle x, const std::string& where) {
  Array a = load_cuda(x, where.c_str(), nullptr, "", kFloats);
  if (a.ndim != 2) raise_value(where + " must have shape [B, A], got " + shape_text(a.shape, a.ndim));
  return a;
}

Columns columns_of(const Array& a) {
  return a.ndim == 1 ? Columns{a.data, 0, a.strides[0]} : Columns{a.data, a.strides[0], a.strides[1]};
}

CudaNormal call_of(const Array& first, const Array& log_std) {
  CudaNormal c{};
  c.float64 = first.dtype == DType::f64;
  c.rows = first.shape[0], c.columns = first.shape[1];
  c.log_std = columns_of(log_std);
  c.shared = log_std.ndim == 1;
  return c;
}

Array load_log_std(py::handle x, const std::string& where, const Array& first, const char* name) {
  Array a = load_like(x, where, first, name);
  const bool shared = a.ndim == 1 && a.shape[0] == first.shape[1];
  if (!shared && !(a.ndim == 2 && a.shape[0] == first.shape[0] && a.shape[1] == first.shape[1]))
    raise_value(where + " must have shape (" + std::to_string(first.shape[1]) + ",) or " + shape_text(first.shape, 2) +
                " like " + name + ", got " + shape_text(a.shape, a.ndim));
  return a;
}

// The gradient of log_std, and what it is summed up in; kept until the kernels are launched.
struct LogStdGrad {
  Result grad, sums;
  LogStdGrad(CudaNormal& c, const Array& log_std) {
    grad = allocate_like(log_std, log_std.dtype, log_std.shape.data(), log_std.ndim);
    c.grad_log_std = grad.data;
    if (!c.shared) return;
    const int64_t size = cuda_pieces(c.rows) * c.columns;
    sums = allocate_like(log_std, DType::f64, &size, 1);
    c.sums = reinterpret_cast<double*>(sums.data);
  }
};

py::tuple normal_log_prob_entropy(py::handle mean, py::handle log_std, py::handle action) {
  const std::string op = "normal_log_prob_entropy";
  const Array m = load_mean(mean, op + ": mean");
  const Array s = load_log_std(log_std, op + ": log_std", m, "mean");
  const Array x = load_matrix(action, op + ": action", m, "mean");
  CudaNormal c = call_of(m, s);
  c.mean = columns_of(m), c.action = columns_of(x);
  Result log_prob = allocate_like(m, m.dtype, m.shape.data(), 1);
  Result entropy = allocate_like(m, m.dtype, m.shape.data(), 1);
  c.log_prob = log_prob.data, c.entropy = entropy.data;
  launch(op.c_str(), [&](cudaStream_t stream) { return cuda_normal_log_prob_entropy(c, stream); }, m);
  return py::make_tuple(std::move(log_prob.object), std::move(entropy.object));
}

py::tuple normal_log_prob_entropy_backward(py::handle mean, py::handle log_std, py::handle action,
                                           py::handle grad_log_prob, py::handle grad_entropy, bool want_mean,
                                           bool want_log_std, bool want_action) {
  const std::string op = "normal_log_prob_entropy_backward";
  const Array m = load_mean(mean, op + ": mean");
  const Array s = load_log_std(log_std, op + ": log_std", m, "mean");
  const Array x = load_matrix(action, op + ": action", m, "mean");
  CudaNormal c = call_of(m, s);
  c.mean = columns_of(m), c.action = columns_of(x);
  c.grad_log_prob = load_row_grad(grad_log_prob, op + ": grad_log_prob", m, "mean");
  c.grad_entropy = load_row_grad(grad_entropy, op + ": grad_entropy", m, "mean");
  py::object g_mean = py::none(), g_log_std = py::none(), g_action = py::none();
  if (want_mean) {
    Result r = allocate_like(m, m.dtype, m.shape.data(), 2);
    c.grad_mean = r.data, g_mean = std::move(r.object);
  }
  if (want_action) {
    Result r = allocate_like(m, m.dtype, m.shape.data(), 2);
    c.grad_action_out = r.data, g_action = std::move(r.object);
  }
  py::object sums;
  if (want_log_std) {
    LogStdGrad g(c, s);
    g_log_std = std::move(g.grad.object), sums = std::move(g.sums.object);
  }
  launch(op.c_str(), [&](cudaStream_t stream) { return cuda_normal_grad(c, stream); }, m);
  return py::make_tuple(std::move(g_mean), std::move(g_log_std), std::move(g_action));
}

py::tuple normal_sample(py::handle mean, py::handle log_std, py::handle noise, py::handle state, bool with_noise) {
  const std::string op = "normal_sample";
  const Array m = load_mean(mean, op + ": mean");
  const Array s = load_log_std(log_std, op + ": log_std", m, "mean");
  CudaNormal c = call_of(m, s);
  c.mean = columns_of(m);
  if (noise.is_none())
    c.state = load_state(state, m, "mean");
  else
    c.noise = columns_of(load_matrix(noise, op + ": noise", m, "mean"));
  Result action = allocate_like(m, m.dtype, m.shape.data(), 2);
  Result log_prob = allocate_like(m, m.dtype, m.shape.data(), 1);
  py::object drawn = py::none();
  if (with_noise) {
    Result r = allocate_like(m, m.dtype, m.shape.data(), 2);
    c.noise_out = r.data, drawn = std::move(r.object);
  }
  c.out_action = action.data, c.log_prob = log_prob.data;
  launch(op.c_str(), [&](cudaStream_t stream) { return cuda_normal_sample(c, stream); }, m);
  return py::make_tuple(std::move(action.object), std::move(log_prob.object), std::move(drawn));
}

py::object normal_sample_backward(py::handle log_std, py::handle noise, py::handle grad_action,
                                  py::handle grad_log_prob) {
  const std::string op = "normal_sample_backward";
  const Array eps = load_mean(noise, op + ": noise");
  const Array s = load_log_std(log_std, op + ": log_std", eps, "noise");
  CudaNormal c = call_of(eps, s);
  c.noise = columns_of(eps);
  if (!grad_action.is_none()) c.grad_action = columns_of(load_matrix(grad_action, op + ": grad_action", eps, "noise"));
  c.grad_log_prob = load_row_grad(grad_log_prob, op + ": grad_log_prob", eps, "noise");
  LogStdGrad g(c, s);
  launch(op.c_str(), [&](cudaStream_t stream) { return cuda_normal_sample_grad(c, stream); }, eps);
  return std::move(g.grad.object);
}

}  // namespace

void bind_cuda_heads(py::module_& m) {
  m.def("categorical_sample", &categorical_sample, py::arg("logits"), py::arg("state"), py::arg("uniform"));
  m.def("categorical_log_prob_entropy", &categorical_log_prob_entropy, py::arg("logits"), py::arg("action"));
  m.def("categorical_log_prob_entropy_backward", &categorical_log_prob_entropy_backward, py::arg("logits"),
        py::arg("action"), py::arg("grad_log_prob"), py::arg("grad_entropy"));
  m.def("normal_sample", &normal_sample, py::arg("mean"), py::arg("log_std"), py::arg("noise"), py::arg("state"),
        py::arg("with_noise"));
  m.def("normal_sample_backward", &normal_sample_backward, py::arg("log_std"), py::arg("noise"), py::arg("grad_action"),
        py::arg("grad_log_prob"));
  m.def("normal_log_prob_entropy", &normal_log_prob_entropy, py::arg("mean"), py::arg("log_std"), py::arg("action"));
  m.def("normal_log_prob_entropy_backward", &normal_log_prob_entropy_backward, py::arg("mean"), py::arg("log_std"),
        py::arg("action"), py::arg("grad_log_prob"), py::arg("grad_entropy"), py::arg("want_mean"),
        py::arg("want_log_std"), py::arg("want_action"));
}

}  // namespace fastrl

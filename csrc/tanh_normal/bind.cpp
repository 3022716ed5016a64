// The tanh-Gaussian policy head: tanh_normal.h. The limits (log_std_min, log_std_max, epsilon) were checked in Python.
#include <cmath>

#include "binding/numpy.h"
#include "heads/bind.h"
#include "random/bind.h"
#include "tanh_normal/tanh_normal.h"

namespace fastrl {
namespace {

bool is_array(PyObject* o) {
  return is_numpy(o) || exchange_api(Py_TYPE(o)) ||
         PyObject_HasAttrString(reinterpret_cast<PyObject*>(Py_TYPE(o)), "__dlpack__");
}

// low or high, a number or an array [A], of each dimension.
template <class T>
void load_bound(py::handle x, const std::string& where, const Array& first, double Bound::* member,
                std::vector<Bound>& bounds) {
  if (is_real(x.ptr())) {
    const auto number = static_cast<T>(to_double(x.ptr()));
    for (Bound& b : bounds) b.*member = static_cast<double>(number);
    return;
  }
  if (!is_array(x.ptr())) raise_type(where + " must be a number or an array, got " + type_name(x.ptr()));
  const Array a = Head::like(x, where, first, "mean");
  const auto columns = static_cast<int64_t>(bounds.size());
  if (a.ndim != 1 || a.shape[0] != columns)
    raise_value(where + " must have shape (" + std::to_string(columns) + ",), got " + shape_text(a.shape, a.ndim));
  for (int64_t j = 0; j < columns; ++j) {
    T number;
    std::memcpy(&number, a.data + j * a.strides[0], sizeof number);
    bounds[static_cast<size_t>(j)].*member = static_cast<double>(number);
  }
}

template <class T>
std::vector<Bound> load_bounds(const std::string& op, py::handle low, py::handle high, const Array& first,
                               int64_t columns) {
  std::vector<Bound> bounds(static_cast<size_t>(columns));
  load_bound<T>(low, op + ": low", first, &Bound::low, bounds);
  load_bound<T>(high, op + ": high", first, &Bound::high, bounds);
  for (size_t j = 0; j < bounds.size(); ++j) {
    Bound& b = bounds[j];
    if (!(-kInf < b.low && b.low < b.high && b.high < kInf))
      raise_value(op + ": low must be finite and below high, got " + repr(b.low) + " and " + repr(b.high) +
                  " in dimension " + std::to_string(j));
    const auto l = static_cast<T>(b.low), h = static_cast<T>(b.high);
    b.first_in = static_cast<double>(std::nextafter(l, h)), b.last_in = static_cast<double>(std::nextafter(h, l));
    if (b.first_in == b.high)
      raise_value(op + ": low and high must have a number of their dtype between them, got " + repr(b.low) + " and " +
                  repr(b.high) + " in dimension " + std::to_string(j));
  }
  return bounds;
}

struct Limits {
  double log_std_min, log_std_max, epsilon;
};

double microseconds(const Array& a, double nanoseconds) { return 1e-3 * nanoseconds * static_cast<double>(a.size()); }

// ---------------------------------------------------------------- sample
template <class T>
py::tuple sample_of(const std::string& op, const Array& mean, const Array& log_std, const Array& noise,
                    py::handle state_object, py::handle low, py::handle high, const Limits& limits, bool with_saved) {
  const int64_t rows = mean.shape[0], columns = mean.shape[1];
  const std::vector<Bound> bounds = load_bounds<T>(op, low, high, mean, columns);
  uint64_t* state = noise.object ? nullptr : load_state(state_object);
  Result action = allocate_like(mean, mean.dtype, mean.shape.data(), 2);
  Result log_prob = allocate_like(mean, mean.dtype, &rows, 1), saved;
  const int64_t shape[] = {2, rows, columns};
  if (with_saved) saved = allocate_like(mean, mean.dtype, shape, 3);
  TanhNormalSample<T> sample{};
  sample.columns = columns, sample.bounds = bounds.data();
  sample.log_std_min = limits.log_std_min, sample.log_std_max = limits.log_std_max, sample.epsilon = limits.epsilon;
  sample.mean = columns_of(mean), sample.log_std = columns_of(log_std);
  if (noise.object) sample.noise = columns_of(noise);
  sample.action = data_of<T>(action), sample.log_prob = data_of<T>(log_prob);
  if (with_saved) sample.u = data_of<T>(saved), sample.scaled_noise = sample.u + rows * columns;
  const Threads threads = threads_and_pieces(microseconds(mean, 3));
  {
    ReleaseGil release;
    if (state) sample.seed = state[0], sample.counter = take(state, normal_blocks(mean.size()));
    parallel_for(rows, threads, sample);
  }
  py::object kept = with_saved ? hand_back(std::move(saved), mean) : py::none();
  return py::make_tuple(hand_back(std::move(action), mean), hand_back(std::move(log_prob), mean), std::move(kept));
}

py::tuple tanh_normal_sample(py::handle mean, py::handle log_std, py::handle noise, py::handle state, py::handle low,
                             py::handle high, double log_std_min, double log_std_max, double epsilon, bool with_saved) {
  const std::string op = "tanh_normal_sample";
  const Array m = Head::mean(mean, op + ": mean");
  const Array s = Head::log_std(log_std, op + ": log_std", m, "mean");
  Array eps;
  if (!noise.is_none()) eps = Head::matrix(noise, op + ": noise", m, "mean");
  const auto call = m.dtype == DType::f32 ? sample_of<float> : sample_of<double>;
  return call(op, m, s, eps, state, low, high, {log_std_min, log_std_max, epsilon}, with_saved);
}

// ---------------------------------------------------------------- gradient of sample
template <class T>
py::tuple sample_backward_of(const std::string& op, const Array& saved, const Array& log_std, const Array& grad_action,
                             py::handle grad_log_prob, py::handle low, py::handle high, const Limits& limits,
                             bool want_mean, bool want_log_std) {
  const int64_t rows = saved.shape[1], columns = saved.shape[2];
  const RowGrad<T> gl(grad_log_prob, op + ": grad_log_prob", log_std, "log_std", rows);
  const std::vector<Bound> bounds = load_bounds<T>(op, low, high, log_std, columns);
  Result grad_mean;
  if (want_mean) grad_mean = allocate_like(log_std, log_std.dtype, saved.shape.data() + 1, 2);
  TanhNormalSampleGrad<T> grad{};
  grad.columns = columns, grad.bounds = bounds.data();
  grad.log_std_min = limits.log_std_min, grad.log_std_max = limits.log_std_max, grad.epsilon = limits.epsilon;
  grad.u = reinterpret_cast<const T*>(saved.data), grad.scaled_noise = grad.u + rows * columns;
  grad.log_std = columns_of(log_std);
  if (grad_action.object) grad.grad_action = columns_of(grad_action);
  grad.grad_log_prob = gl.data();
  grad.grad_mean = data_of<T>(grad_mean);
  py::object grad_log_std = run_backward<T>(grad, log_std, want_log_std, rows, microseconds(saved, 1));
  return py::make_tuple(want_mean ? hand_back(std::move(grad_mean), log_std) : py::none(), std::move(grad_log_std));
}

py::tuple tanh_normal_sample_backward(py::handle saved, py::handle log_std, py::handle grad_action,
                                      py::handle grad_log_prob, py::handle low, py::handle high, double log_std_min,
                                      double log_std_max, double epsilon, bool want_mean, bool want_log_std) {
  const std::string op = "tanh_normal_sample_backward", name = op + ": saved";
  const Array s = Head::first(log_std, op + ": log_std");
  const Array kept = Head::like(saved, name, s, "log_std");
  if (kept.ndim != 3 || kept.shape[0] != 2 || !kept.is_contiguous() || !kept.aligned)
    raise_value(name + " must have shape [2, B, A], got " + shape_text(kept.shape, kept.ndim));
  Head::check_log_std(s, op + ": log_std", kept.shape.data() + 1, "saved");
  Array ga;
  if (!grad_action.is_none()) ga = Head::grad_action(grad_action, op + ": grad_action", s, "log_std", kept);
  const auto call = s.dtype == DType::f32 ? sample_backward_of<float> : sample_backward_of<double>;
  return call(op, kept, s, ga, grad_log_prob, low, high, {log_std_min, log_std_max, epsilon}, want_mean, want_log_std);
}

// ---------------------------------------------------------------- log_prob
template <class T>
py::object log_prob_of(const std::string& op, const Array& mean, const Array& log_std, const Array& action,
                       py::handle low, py::handle high, const Limits& limits) {
  const std::vector<Bound> bounds = load_bounds<T>(op, low, high, mean, mean.shape[1]);
  Result log_prob = allocate_like(mean, mean.dtype, mean.shape.data(), 1);
  TanhNormalLogProb<T> call{};
  call.columns = mean.shape[1], call.bounds = bounds.data();
  call.log_std_min = limits.log_std_min, call.log_std_max = limits.log_std_max, call.epsilon = limits.epsilon;
  call.mean = columns_of(mean), call.log_std = columns_of(log_std), call.action = columns_of(action);
  call.log_prob = data_of<T>(log_prob);
  const Threads threads = threads_and_pieces(microseconds(mean, 12));
  {
    ReleaseGil release;
    parallel_for(mean.shape[0], threads, call);
  }
  return hand_back(std::move(log_prob), mean);
}

py::object tanh_normal_log_prob(py::handle mean, py::handle log_std, py::handle action, py::handle low, py::handle high,
                                double log_std_min, double log_std_max, double epsilon) {
  const std::string op = "tanh_normal_log_prob";
  const Array m = Head::mean(mean, op + ": mean");
  const Array s = Head::log_std(log_std, op + ": log_std", m, "mean");
  const Array x = Head::matrix(action, op + ": action", m, "mean");
  const auto call = m.dtype == DType::f32 ? log_prob_of<float> : log_prob_of<double>;
  return call(op, m, s, x, low, high, {log_std_min, log_std_max, epsilon});
}

template <class T>
py::tuple log_prob_backward_of(const std::string& op, const Array& mean, const Array& log_std, const Array& action,
                               py::handle grad_log_prob, py::handle low, py::handle high, const Limits& limits,
                               bool want_mean, bool want_log_std, bool want_action) {
  const std::vector<Bound> bounds = load_bounds<T>(op, low, high, mean, mean.shape[1]);
  const std::string where = op + ": grad_log_prob";
  const RowGrad<T> gl(grad_log_prob, where, mean, "mean", mean.shape[0]);
  Result grad_mean, grad_action;
  if (want_mean) grad_mean = allocate_like(mean, mean.dtype, mean.shape.data(), 2);
  if (want_action) grad_action = allocate_like(mean, mean.dtype, mean.shape.data(), 2);
  TanhNormalLogProbGrad<T> grad{};
  grad.columns = mean.shape[1], grad.bounds = bounds.data();
  grad.log_std_min = limits.log_std_min, grad.log_std_max = limits.log_std_max, grad.epsilon = limits.epsilon;
  grad.mean = columns_of(mean), grad.log_std = columns_of(log_std), grad.action = columns_of(action);
  grad.grad_log_prob = gl.data();
  grad.grad_mean = data_of<T>(grad_mean), grad.grad_action = data_of<T>(grad_action);
  py::object grad_log_std = run_backward<T>(grad, log_std, want_log_std, mean.shape[0], microseconds(mean, 15));
  return py::make_tuple(want_mean ? hand_back(std::move(grad_mean), mean) : py::none(), std::move(grad_log_std),
                        want_action ? hand_back(std::move(grad_action), mean) : py::none());
}

py::tuple tanh_normal_log_prob_backward(py::handle mean, py::handle log_std, py::handle action,
                                        py::handle grad_log_prob, py::handle low, py::handle high, double log_std_min,
                                        double log_std_max, double epsilon, bool want_mean, bool want_log_std,
                                        bool want_action) {
  const std::string op = "tanh_normal_log_prob_backward";
  const Array m = Head::mean(mean, op + ": mean");
  const Array s = Head::log_std(log_std, op + ": log_std", m, "mean");
  const Array x = Head::matrix(action, op + ": action", m, "mean");
  const auto call = m.dtype == DType::f32 ? log_prob_backward_of<float> : log_prob_backward_of<double>;
  return call(op, m, s, x, grad_log_prob, low, high, {log_std_min, log_std_max, epsilon}, want_mean, want_log_std,
              want_action);
}

// ---------------------------------------------------------------- mode
template <class T>
py::object mode_of(const std::string& op, const Array& mean, const Array& grad_action, py::handle low,
                   py::handle high) {
  const std::vector<Bound> bounds = load_bounds<T>(op, low, high, mean, mean.shape[1]);
  Result out = allocate_like(mean, mean.dtype, mean.shape.data(), 2);
  TanhNormalMode<T> call{};
  call.columns = mean.shape[1], call.bounds = bounds.data();
  call.mean = columns_of(mean);
  if (grad_action.object) call.grad_action = columns_of(grad_action);
  call.out = data_of<T>(out);
  const Threads threads = threads_and_pieces(microseconds(mean, 1));
  {
    ReleaseGil release;
    parallel_for(mean.shape[0], threads, call);
  }
  return hand_back(std::move(out), mean);
}

py::object tanh_normal_mode(py::handle mean, py::handle low, py::handle high) {
  const std::string op = "tanh_normal_mode";
  const Array m = Head::mean(mean, op + ": mean");
  return (m.dtype == DType::f32 ? mode_of<float> : mode_of<double>)(op, m, Array(), low, high);
}

py::object tanh_normal_mode_backward(py::handle mean, py::handle grad_action, py::handle low, py::handle high) {
  const std::string op = "tanh_normal_mode_backward";
  const Array m = Head::mean(mean, op + ": mean");
  const Array g = Head::matrix(grad_action, op + ": grad_action", m, "mean");
  return (m.dtype == DType::f32 ? mode_of<float> : mode_of<double>)(op, m, g, low, high);
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

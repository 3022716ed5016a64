// `state` is that of a Generator; gradients may be None.
#include "heads/bind.h"
#include "normal/normal.h"
#include "random/bind.h"

namespace fastrl {
namespace {

double normal_us(const Array& a, double nanoseconds) { return 1e-3 * nanoseconds * static_cast<double>(a.size()); }

template <class T>
py::tuple normal_log_prob_entropy_of(const Array& mean, const Array& log_std, const Array& action) {
  const int64_t rows = mean.shape[0];
  Result log_prob = allocate_like(mean, mean.dtype, &rows, 1), entropy = allocate_like(mean, mean.dtype, &rows, 1);
  const NormalLogProb<T> op{mean.shape[1],      columns_of(mean),     columns_of(log_std),
                            columns_of(action), data_of<T>(log_prob), data_of<T>(entropy)};
  const Threads threads = threads_and_pieces(normal_us(mean, 3));
  {
    ReleaseGil release;
    parallel_for(rows, threads, op);
  }
  return py::make_tuple(hand_back(std::move(log_prob), mean), hand_back(std::move(entropy), mean));
}

py::tuple normal_log_prob_entropy(py::handle mean, py::handle log_std, py::handle action) {
  const std::string op = "normal_log_prob_entropy";
  const Array m = Head::mean(mean, op + ": mean");
  const Array s = Head::log_std(log_std, op + ": log_std", m, "mean");
  const Array x = Head::matrix(action, op + ": action", m, "mean");
  return m.dtype == DType::f32 ? normal_log_prob_entropy_of<float>(m, s, x)
                               : normal_log_prob_entropy_of<double>(m, s, x);
}

template <class T>
py::tuple normal_sample_of(const Array& mean, const Array& log_std, const Array& noise, py::handle state_object,
                           bool with_noise) {
  const int64_t rows = mean.shape[0];
  uint64_t* state = noise.object ? nullptr : load_state(state_object);
  Result action = allocate_like(mean, mean.dtype, mean.shape.data(), 2);
  Result log_prob = allocate_like(mean, mean.dtype, &rows, 1), drawn;
  if (with_noise) drawn = allocate_like(mean, mean.dtype, mean.shape.data(), 2);
  NormalSample<T> op{
      mean.shape[1],      columns_of(mean),     columns_of(log_std), noise.object ? columns_of(noise) : Columns{}, 0, 0,
      data_of<T>(action), data_of<T>(log_prob), data_of<T>(drawn)};
  const Threads threads = threads_and_pieces(normal_us(mean, 8));
  {
    ReleaseGil release;
    if (state) op.seed = state[0], op.counter = take(state, normal_blocks(mean.size()));
    parallel_for(rows, threads, op);
  }
  py::object eps = with_noise ? hand_back(std::move(drawn), mean) : py::none();
  return py::make_tuple(hand_back(std::move(action), mean), hand_back(std::move(log_prob), mean), std::move(eps));
}

py::tuple normal_sample(py::handle mean, py::handle log_std, py::handle noise, py::handle state, bool with_noise) {
  const std::string op = "normal_sample";
  const Array m = Head::mean(mean, op + ": mean");
  const Array s = Head::log_std(log_std, op + ": log_std", m, "mean");
  Array eps;
  if (!noise.is_none()) eps = Head::matrix(noise, op + ": noise", m, "mean");
  return m.dtype == DType::f32 ? normal_sample_of<float>(m, s, eps, state, with_noise)
                               : normal_sample_of<double>(m, s, eps, state, with_noise);
}

template <class T>
py::object normal_sample_backward_of(const Array& noise, const Array& log_std, const Array& grad_action,
                                     py::handle grad_log_prob) {
  const RowGrad<T> gl(grad_log_prob, "normal_sample_backward: grad_log_prob", noise, "noise", noise.shape[0]);
  NormalSampleGrad<T> op{noise.shape[1],
                         columns_of(log_std),
                         columns_of(noise),
                         grad_action.object ? columns_of(grad_action) : Columns{},
                         gl.data(),
                         nullptr,
                         nullptr};
  return run_backward<T>(op, log_std, true, noise.shape[0], normal_us(noise, 3));
}

py::object normal_sample_backward(py::handle log_std, py::handle noise, py::handle grad_action,
                                  py::handle grad_log_prob) {
  const std::string op = "normal_sample_backward";
  const Array eps = Head::mean(noise, op + ": noise");
  const Array s = Head::log_std(log_std, op + ": log_std", eps, "noise");
  Array ga;
  if (!grad_action.is_none()) ga = Head::matrix(grad_action, op + ": grad_action", eps, "noise");
  return eps.dtype == DType::f32 ? normal_sample_backward_of<float>(eps, s, ga, grad_log_prob)
                                 : normal_sample_backward_of<double>(eps, s, ga, grad_log_prob);
}

template <class T>
py::tuple normal_backward_of(const Array& mean, const Array& log_std, const Array& action, py::handle grad_log_prob,
                             py::handle grad_entropy, bool want_mean, bool want_log_std, bool want_action) {
  const RowGrad<T> gl(grad_log_prob, "normal_log_prob_entropy_backward: grad_log_prob", mean, "mean", mean.shape[0]);
  const RowGrad<T> gh(grad_entropy, "normal_log_prob_entropy_backward: grad_entropy", mean, "mean", mean.shape[0]);
  Result g_mean, g_action;
  if (want_mean) g_mean = allocate_like(mean, mean.dtype, mean.shape.data(), 2);
  if (want_action) g_action = allocate_like(mean, mean.dtype, mean.shape.data(), 2);
  NormalGrad<T> op{mean.shape[1],
                   columns_of(mean),
                   columns_of(log_std),
                   columns_of(action),
                   gl.data(),
                   gh.data(),
                   data_of<T>(g_mean),
                   nullptr,
                   data_of<T>(g_action),
                   nullptr};
  py::object g_log_std = run_backward<T>(op, log_std, want_log_std, mean.shape[0], normal_us(mean, 5));
  return py::make_tuple(want_mean ? hand_back(std::move(g_mean), mean) : py::none(), std::move(g_log_std),
                        want_action ? hand_back(std::move(g_action), mean) : py::none());
}

py::tuple normal_log_prob_entropy_backward(py::handle mean, py::handle log_std, py::handle action,
                                           py::handle grad_log_prob, py::handle grad_entropy, bool want_mean,
                                           bool want_log_std, bool want_action) {
  const std::string op = "normal_log_prob_entropy_backward";
  const Array m = Head::mean(mean, op + ": mean");
  const Array s = Head::log_std(log_std, op + ": log_std", m, "mean");
  const Array x = Head::matrix(action, op + ": action", m, "mean");
  return m.dtype == DType::f32
             ? normal_backward_of<float>(m, s, x, grad_log_prob, grad_entropy, want_mean, want_log_std, want_action)
             : normal_backward_of<double>(m, s, x, grad_log_prob, grad_entropy, want_mean, want_log_std, want_action);
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

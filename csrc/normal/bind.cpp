// The fused policy heads: categorical.h and normal.h. `state` is that of a Generator; gradients may be None.
#include <atomic>

#include "categorical/categorical.h"
#include "heads/bind.h"
#include "normal/normal.h"

namespace fastrl {
namespace {

// ---------------------------------------------------------------- categorical
Logits logits_of(const Array& a) { return {a.data, a.shape[0], a.shape[1], a.strides[0], a.strides[1]}; }

double categorical_us(const Array& a) { return 2e-3 * static_cast<double>(a.size()); }

// A copy of the actions, each in [0, K).
Contiguous<int64_t> load_action(py::handle x, const std::string& op, const Array& logits) {
  const std::string where = op + ": action";
  const Array a = load_cpu(x.ptr(), where.c_str(), {DType::i64, DType::i32});
  check_kind_like(a, where.c_str(), logits, "logits");
  check_rows(a, where, logits.shape[0]);
  Contiguous<int64_t> action(a, /*copy=*/true);
  for (int64_t i = 0; i < action.size(); ++i)
    if (action.data()[i] < 0 || action.data()[i] >= logits.shape[1])
      throw py::index_error(where + "[" + std::to_string(i) + "] is " + std::to_string(action.data()[i]) +
                            ", outside [0, " + std::to_string(logits.shape[1]) + ")");
  return action;
}

template <class T>
py::tuple categorical_sample_of(const Array& logits, py::handle state_object, py::handle uniform_object) {
  const int64_t rows = logits.shape[0];
  uint64_t* state = nullptr;
  std::vector<Contiguous<double>> uniform;
  if (uniform_object.is_none()) {
    state = load_state(state_object);
  } else {
    const Array u = load_cpu(uniform_object.ptr(), "categorical_sample: uniform", {DType::f64});
    if (u.ndim != 1 || u.shape[0] != rows) raise_value("categorical_sample: uniform must have shape [B]");
    uniform.emplace_back(u);
  }
  Result action = allocate_like(logits, DType::i64, &rows, 1);
  Result log_prob = allocate_like(logits, logits.dtype, &rows, 1);
  CategoricalSample<T> sample{
      logits_of(logits),   0, 0, uniform.empty() ? nullptr : uniform[0].data(), data_of<int64_t>(action),
      data_of<T>(log_prob)};
  std::atomic<int64_t> bad{-1};
  const int threads = threads_for(categorical_us(logits) * 1.5);
  {
    ReleaseGil release;
    // Drawn first and taken after, so that logits without a distribution leave the generator as it was; again, should
    // another thread have drawn from it meanwhile.
    do {
      if (state) sample.seed = state[0], sample.counter = peek(state);
      parallel_for(rows, threads, [&](int64_t begin, int64_t end) {
        const int64_t row = sample(begin, end);
        if (row < 0) return;
        int64_t first = bad.load();
        while ((first < 0 || row < first) && !bad.compare_exchange_weak(first, row)) {
        }
      });
    } while (bad < 0 && state && !take_from(state, sample.counter, rows));
  }
  if (bad >= 0)
    raise_value("categorical_sample: logits[" + std::to_string(bad) +
                "] has NaN, +inf or only -inf: there is no action to draw");
  return py::make_tuple(hand_back(std::move(action), logits), hand_back(std::move(log_prob), logits));
}

py::tuple categorical_sample(py::handle logits, py::handle state, py::handle uniform) {
  const Array z = Head::logits(logits, "categorical_sample: logits");
  return z.dtype == DType::f32 ? categorical_sample_of<float>(z, state, uniform)
                               : categorical_sample_of<double>(z, state, uniform);
}

template <class T>
py::tuple categorical_log_prob_entropy_of(const Array& logits, const Contiguous<int64_t>& action) {
  const int64_t rows = logits.shape[0];
  Result log_prob = allocate_like(logits, logits.dtype, &rows, 1);
  Result entropy = allocate_like(logits, logits.dtype, &rows, 1);
  const CategoricalLogProb<T> op{logits_of(logits), action.data(), data_of<T>(log_prob), data_of<T>(entropy)};
  const int threads = threads_for(categorical_us(logits));
  {
    ReleaseGil release;
    parallel_for(rows, threads, op);
  }
  return py::make_tuple(hand_back(std::move(log_prob), logits), hand_back(std::move(entropy), logits));
}

py::tuple categorical_log_prob_entropy(py::handle logits, py::handle action) {
  const Array z = Head::logits(logits, "categorical_log_prob_entropy: logits");
  const Contiguous<int64_t> a = load_action(action, "categorical_log_prob_entropy", z);
  return z.dtype == DType::f32 ? categorical_log_prob_entropy_of<float>(z, a)
                               : categorical_log_prob_entropy_of<double>(z, a);
}

template <class T>
py::object categorical_backward_of(const Array& logits, const Contiguous<int64_t>& action, py::handle grad_log_prob,
                                   py::handle grad_entropy) {
  const RowGrad<T> gl(grad_log_prob, "categorical_log_prob_entropy_backward: grad_log_prob", logits, "logits",
                      logits.shape[0]);
  const RowGrad<T> gh(grad_entropy, "categorical_log_prob_entropy_backward: grad_entropy", logits, "logits",
                      logits.shape[0]);
  Result grad = allocate_like(logits, logits.dtype, logits.shape.data(), 2);
  const CategoricalGrad<T> op{logits_of(logits), action.data(), gl.data(), gh.data(), data_of<T>(grad)};
  const int threads = threads_for(categorical_us(logits) * 1.5);
  {
    ReleaseGil release;
    parallel_for(logits.shape[0], threads, op);
  }
  return hand_back(std::move(grad), logits);
}

py::object categorical_log_prob_entropy_backward(py::handle logits, py::handle action, py::handle grad_log_prob,
                                                 py::handle grad_entropy) {
  const Array z = Head::logits(logits, "categorical_log_prob_entropy_backward: logits");
  const Contiguous<int64_t> a = load_action(action, "categorical_log_prob_entropy_backward", z);
  return z.dtype == DType::f32 ? categorical_backward_of<float>(z, a, grad_log_prob, grad_entropy)
                               : categorical_backward_of<double>(z, a, grad_log_prob, grad_entropy);
}

// ---------------------------------------------------------------- normal
double normal_us(const Array& a, double nanoseconds) { return 1e-3 * nanoseconds * static_cast<double>(a.size()); }

template <class T>
py::tuple normal_log_prob_entropy_of(const Array& mean, const Array& log_std, const Array& action) {
  const int64_t rows = mean.shape[0];
  Result log_prob = allocate_like(mean, mean.dtype, &rows, 1), entropy = allocate_like(mean, mean.dtype, &rows, 1);
  const NormalLogProb<T> op{mean.shape[1],      columns_of(mean),     columns_of(log_std),
                            columns_of(action), data_of<T>(log_prob), data_of<T>(entropy)};
  const int threads = threads_for(normal_us(mean, 3));
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
  const int threads = threads_for(normal_us(mean, 8));
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

// n float64 numbers of a generator, for the ops of torch.compile, which draw apart from what they compute.
py::object draw(py::handle state_object, int64_t n, bool normal) {
  uint64_t* state = load_state(state_object);
  Array numpy;
  Result out = allocate_like(numpy, DType::f64, &n, 1);
  (normal ? fill_normal : fill_uniform)(state[0], take(state, normal ? normal_blocks(n) : n), n, data_of<double>(out));
  return std::move(out.object);
}

void bind(py::module_& m) {
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
  m.def("draw", &draw, py::arg("state"), py::arg("n"), py::arg("normal"));
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl

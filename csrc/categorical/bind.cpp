// `state` is that of a Generator; gradients may be None.
#include <atomic>

#include "categorical/categorical.h"
#include "heads/bind.h"
#include "random/bind.h"

namespace fastrl {
namespace {

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
  const Threads threads = threads_and_pieces(categorical_us(logits) * 1.5);
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
  const Threads threads = threads_and_pieces(categorical_us(logits));
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
  const Threads threads = threads_and_pieces(categorical_us(logits) * 1.5);
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

void bind(py::handle m) {
  def<&categorical_sample>(m, "categorical_sample(logits, state, uniform)");
  def<&categorical_log_prob_entropy>(m, "categorical_log_prob_entropy(logits, action)");
  def<&categorical_log_prob_entropy_backward>(
      m, "categorical_log_prob_entropy_backward(logits, action, grad_log_prob, grad_entropy)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl

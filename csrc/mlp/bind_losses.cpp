// The losses of losses.h: arguments are checked and made contiguous here.
#include "binding/call.h"
#include "mlp/losses.h"

namespace fastrl {
namespace {

py::tuple q_learning_loss_binding(py::handle q, py::handle actions, py::handle rewards, py::handle discounts,
                                  py::handle next_q, py::handle next_q_online, py::handle weights, bool huber) {
  const Call call("q_learning_loss");
  const auto values = call.floats(q, "q", {-1, -1});
  const int64_t rows = values.array.shape[0], n = values.array.shape[1];
  call.check_rows(std::min(rows, n), "q");
  const auto taken = call.actions(actions, rows, n);
  const auto r = call.floats(rewards, "rewards", {rows}), d = call.floats(discounts, "discounts", {rows});
  const auto next = call.floats(next_q, "next_q", {rows, n});
  const auto chooser = call.maybe(next_q_online, "next_q_online", {rows, n});
  const auto w = call.maybe(weights, "weights", {rows});
  Out d_q(values.array), errors(r.array);
  LossMeans m = without_gil([&] {
    return q_learning_loss(values.data, taken.data(), r.data, d.data, next.data, chooser.data, w.data, huber, rows, n,
                           d_q.data, errors.data);
  });
  return py::make_tuple(m.loss, d_q.take(values.array), errors.take(r.array), m.mean);
}

py::object min_q_targets_binding(py::handle next_q, py::handle rewards, py::handle discounts, py::handle next_log_prob,
                                 double temperature) {
  const Call call("min_q_targets");
  const auto next = call.floats(next_q, "next_q", {-1, -1}, true);
  const int64_t n = next.array.shape[0], rows = next.array.shape[1];
  call.check_rows(n, "next_q");
  const auto r = call.floats(rewards, "rewards", {rows}), d = call.floats(discounts, "discounts", {rows});
  const auto log_prob = call.maybe(next_log_prob, "next_log_prob", {rows});
  Out y(r.array);
  without_gil([&] {
    min_q_targets(next.data, r.data, d.data, log_prob.data, static_cast<float>(temperature), n, rows, y.data);
    return 0;
  });
  return y.take(r.array);
}

py::tuple q_regression_loss_binding(py::handle q, py::handle targets, py::handle weights, bool huber) {
  const Call call("q_regression_loss");
  const auto values = call.floats(q, "q", {-1, -1}, true);
  const int64_t n = values.array.shape[0], rows = values.array.shape[1];
  call.check_rows(std::min(rows, n), "q");
  const auto y = call.floats(targets, "targets", {rows});
  const auto w = call.maybe(weights, "weights", {rows});
  const int64_t shape[2] = {n, rows};
  Out d_q(values.array);
  Result errors = allocate_like(values.array, DType::f32, shape, 2);
  LossMeans m = without_gil([&] {
    return q_regression_loss(values.data, y.data, w.data, huber, n, rows, d_q.data,
                             reinterpret_cast<float*>(errors.data));
  });
  return py::make_tuple(m.loss, d_q.take(values.array), hand_back(std::move(errors), values.array), m.mean);
}

py::tuple min_q_loss_binding(py::handle q) {
  const Call call("min_q_loss");
  const auto values = call.floats(q, "q", {-1, -1}, true);
  const int64_t n = values.array.shape[0], rows = values.array.shape[1];
  call.check_rows(std::min(rows, n), "q");
  Out d_q(values.array);
  LossMeans m = without_gil([&] { return min_q_loss(values.data, n, rows, d_q.data); });
  return py::make_tuple(m.loss, d_q.take(values.array));
}

py::tuple value_loss_binding(py::handle values, py::handle returns, py::handle old_values, double clip_range,
                             double coef) {
  const Call call("value_loss");
  const auto v = call.floats(values, "values", {-1}, true);
  const int64_t rows = v.array.shape[0];
  call.check_rows(rows, "values");
  const auto g = call.floats(returns, "returns", {rows});
  const auto old = call.maybe(old_values, "old_values", {rows});
  Out d(v.array);
  LossMeans m = without_gil([&] { return value_loss(v.data, g.data, old.data, clip_range, coef, rows, d.data); });
  return py::make_tuple(m.loss, d.take(v.array));
}

py::tuple ppo_categorical_loss_binding(py::handle logits, py::handle actions, py::handle old_log_probs,
                                       py::handle advantages, py::handle old_logits, double clip_range, double kl_coef,
                                       double entropy_coef, bool normalize) {
  const Call call("ppo_categorical_loss");
  const auto z = call.floats(logits, "logits", {-1, -1});
  const int64_t rows = z.array.shape[0], n = z.array.shape[1];
  call.check_rows(std::min(rows, n), "logits");
  const auto taken = call.actions(actions, rows, n);
  const auto old = call.maybe(old_log_probs, "old_log_probs", {rows});
  const auto a = call.floats(advantages, "advantages", {rows});
  const auto before = call.maybe(old_logits, "old_logits", {rows, n});
  Out d(z.array);
  PpoMeans m = without_gil([&] {
    return ppo_categorical_loss(z.data, taken.data(), old.data, a.data, before.data,
                                {clip_range, kl_coef, entropy_coef, normalize}, rows, n, d.data);
  });
  return py::make_tuple(m.loss, m.policy_loss, m.entropy, m.kl, d.take(z.array));
}

py::tuple ppo_normal_loss_binding(py::handle mean, py::handle log_std, py::handle actions, py::handle old_log_probs,
                                  py::handle advantages, py::handle old_mean, py::handle old_log_std, double clip_range,
                                  double kl_coef, double entropy_coef, bool normalize) {
  const Call call("ppo_normal_loss");
  const auto m = call.floats(mean, "mean", {-1, -1});
  const int64_t rows = m.array.shape[0], n = m.array.shape[1];
  call.check_rows(std::min(rows, n), "mean");
  const auto std = call.floats(log_std, "log_std", {n});
  const auto taken = call.floats(actions, "actions", {rows, n});
  const auto old = call.maybe(old_log_probs, "old_log_probs", {rows});
  const auto a = call.floats(advantages, "advantages", {rows});
  const auto before = call.maybe(old_mean, "old_mean", {rows, n});
  const auto before_std = call.maybe(old_log_std, "old_log_std", {n});
  Out d(m.array), d_std(std.array);
  PpoMeans means = without_gil([&] {
    return ppo_normal_loss(m.data, std.data, taken.data, old.data, a.data, before.data, before_std.data,
                           {clip_range, kl_coef, entropy_coef, normalize}, rows, n, d.data, d_std.data);
  });
  return py::make_tuple(means.loss, means.policy_loss, means.entropy, means.kl, d.take(m.array), d_std.take(std.array));
}

void bind(py::handle m) {
  def<&q_learning_loss_binding>(
      m, "q_learning_loss(q, actions, rewards, discounts, next_q, next_q_online, weights, huber)");
  def<&min_q_targets_binding>(m, "min_q_targets(next_q, rewards, discounts, next_log_prob, temperature)");
  def<&q_regression_loss_binding>(m, "q_regression_loss(q, targets, weights, huber)");
  def<&min_q_loss_binding>(m, "min_q_loss(q)");
  def<&value_loss_binding>(m, "value_loss(values, returns, old_values, clip_range, coef)");
  def<&ppo_categorical_loss_binding>(
      m,
      "ppo_categorical_loss(logits, actions, old_log_probs, advantages, old_logits, clip_range, kl_coef, "
      "entropy_coef, normalize)");
  def<&ppo_normal_loss_binding>(
      m,
      "ppo_normal_loss(mean, log_std, actions, old_log_probs, advantages, old_mean, old_log_std, clip_range, "
      "kl_coef, entropy_coef, normalize)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl

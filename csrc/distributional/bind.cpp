// The ops of distributional.h: arguments are checked and made contiguous here.
#include "binding/call.h"
#include "distributional/distributional.h"

namespace fastrl {
namespace {

void check_atoms(const char* op, const char* name, int64_t n) {
  if (n < 2) raise_value(std::string(op) + ": " + name + " must have at least 2 atoms, got " + std::to_string(n));
}

py::object categorical_projection_binding(py::handle probs, py::handle rewards, py::handle discounts, double v_min,
                                          double v_max) {
  const Call call("categorical_projection", "BN");
  const auto p = call.floats(probs, "probs", {-1, -1});
  const int64_t rows = p.array.shape[0], n = p.array.shape[1];
  check_atoms("categorical_projection", "probs", n);
  const auto r = call.floats(rewards, "rewards", {rows}), d = call.floats(discounts, "discounts", {rows});
  Out masses(p.array);
  without_gil([&] {
    categorical_projection(p.data, r.data, d.data, Support(v_min, v_max, n), rows, masses.data);
    return 0;
  });
  return masses.take(p.array);
}

// The arrays of both losses, in the order in which they are checked.
struct Given {
  Call::Floats x;
  int64_t rows, n_actions, n;
  Contiguous<int64_t> actions;
  Call::Floats rewards, discounts, after, online, weights;

  Given(const Call& call, const char* op, const std::string& name, bool same_atoms, py::handle given,
        py::handle given_actions, py::handle given_rewards, py::handle given_discounts, py::handle given_after,
        py::handle given_online, py::handle given_weights)
      : x(call.floats(given, name.c_str(), {-1, -1, -1})),
        rows(x.array.shape[0]),
        n_actions(x.array.shape[1]),
        n(x.array.shape[2]),
        actions((call.check_rows(std::min(rows, n_actions), name.c_str()),
                 same_atoms ? check_atoms(op, name.c_str(), n) : void(), call.actions(given_actions, rows, n_actions))),
        rewards(call.floats(given_rewards, "rewards", {rows})),
        discounts(call.floats(given_discounts, "discounts", {rows})),
        after(call.floats(given_after, ("next_" + name).c_str(), {rows, n_actions, same_atoms ? n : -1})),
        online(call.maybe(given_online, ("next_" + name + "_online").c_str(), {rows, n_actions, same_atoms ? n : -1})),
        weights(call.maybe(given_weights, "weights", {rows})) {
    const auto check = [&](const Call::Floats& f, const std::string& what) {
      if (f.data && f.array.shape[2] < 1)
        raise_value(std::string(op) + ": " + what + " must have at least one quantile");
    };
    check(x, name), check(after, "next_" + name), check(online, "next_" + name + "_online");
  }

  Transitions transitions() const {
    const Call::Floats& choose = online.data ? online : after;
    return {x.data,
            actions.data(),
            rewards.data,
            discounts.data,
            after.data,
            choose.data,
            weights.data,
            rows,
            n_actions,
            n,
            after.array.shape[2],
            choose.array.shape[2]};
  }
};

py::tuple c51_loss_binding(py::handle logits, py::handle actions, py::handle rewards, py::handle discounts,
                           py::handle next_logits, py::handle next_logits_online, py::handle weights, double v_min,
                           double v_max) {
  const Call call("c51_loss", "BAN");
  const Given g(call, "c51_loss", "logits", true, logits, actions, rewards, discounts, next_logits, next_logits_online,
                weights);
  Out d(g.x.array), kl(g.rewards.array);
  const DistributionalMeans m =
      without_gil([&] { return c51_loss(g.transitions(), Support(v_min, v_max, g.n), d.data, kl.data); });
  return py::make_tuple(m.loss, d.take(g.x.array), kl.take(g.rewards.array), m.mean_q);
}

py::tuple c51_actor_loss_binding(py::handle logits, double v_min, double v_max) {
  const Call call("c51_actor_loss", "BN");
  const auto x = call.floats(logits, "logits", {-1, -1});
  const int64_t rows = x.array.shape[0], n = x.array.shape[1];
  call.check_rows(rows, "logits");
  check_atoms("c51_actor_loss", "logits", n);
  Out d(x.array);
  const double loss = without_gil([&] { return c51_actor_loss(x.data, Support(v_min, v_max, n), rows, d.data); });
  return py::make_tuple(loss, d.take(x.array));
}

py::tuple quantile_huber_loss_binding(py::handle quantiles, py::handle actions, py::handle rewards,
                                      py::handle discounts, py::handle next_quantiles, py::handle next_quantiles_online,
                                      py::handle weights, py::handle taus, double kappa) {
  const Call call("quantile_huber_loss", "BAN");
  const Given g(call, "quantile_huber_loss", "quantiles", false, quantiles, actions, rewards, discounts, next_quantiles,
                next_quantiles_online, weights);
  const auto tau = call.maybe(taus, "taus", {g.rows, g.n});
  Out d(g.x.array), errors(g.rewards.array);
  const DistributionalMeans m =
      without_gil([&] { return quantile_huber_loss(g.transitions(), tau.data, kappa, d.data, errors.data); });
  return py::make_tuple(m.loss, d.take(g.x.array), errors.take(g.rewards.array), m.mean_q);
}

void bind(py::handle m) {
  def<&categorical_projection_binding>(m, "categorical_projection(probs, rewards, discounts, v_min, v_max)");
  def<&c51_loss_binding>(
      m, "c51_loss(logits, actions, rewards, discounts, next_logits, next_logits_online, weights, v_min, v_max)");
  def<&c51_actor_loss_binding>(m, "c51_actor_loss(logits, v_min, v_max)");
  def<&quantile_huber_loss_binding>(
      m,
      "quantile_huber_loss(quantiles, actions, rewards, discounts, next_quantiles, next_quantiles_online, weights, "
      "taus, kappa)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl

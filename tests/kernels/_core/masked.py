"""A call of each op with one array masked; read by a process of its own, so it imports no other test."""

import numpy as np

import fastrl

MASKED = {
    "gather_rows: arrays": lambda m, x, i: fastrl.gather_rows(m(x), i),
    "gather_rows: arrays[1]": lambda m, x, i: fastrl.gather_rows([x, m(x)], i),
    "gather_rows: indices": lambda m, x, i: fastrl.gather_rows(x, m(i)),
    "gather_rows: out": lambda m, x, i: fastrl.gather_rows(x, i, out=m(x)),
    "sum_tree.update: indices": lambda m, x, i: fastrl.SumTree(8).update(m(i), x),
    "sum_tree.update: priorities": lambda m, x, i: fastrl.SumTree(8).update(i, m(x)),
    "sum_tree.find: prefix_sums": lambda m, x, i: fastrl.SumTree(8).find(m(x.astype(float))),
    "sum_tree.get: indices": lambda m, x, i: fastrl.SumTree(8)[m(i)],
    "conjugate_gradient: b": lambda m, x, i: fastrl.conjugate_gradient(lambda v: v, m(x)),
    "conjugate_gradient: x0": lambda m, x, i: fastrl.conjugate_gradient(lambda v: v, x, x0=m(x)),
    "conjugate_gradient: the result of matvec": lambda m, x, i: fastrl.conjugate_gradient(m, x),
    "conjugate_gradient: preconditioner": lambda m, x, i: fastrl.conjugate_gradient(np.eye(2), x, preconditioner=m(x)),
    "adam_step: params[0]": lambda m, x, i: adam([m(x)], [x]),
    "adam_step: grads[0]": lambda m, x, i: adam([x], [m(x)]),
    "categorical_log_prob_entropy: logits": lambda m, x, i: fastrl.categorical_log_prob_entropy(m(x[None]), i[:1]),
    "categorical_log_prob_entropy: action": lambda m, x, i: fastrl.categorical_log_prob_entropy(x[None], m(i[:1])),
    "normal_sample: mean": lambda m, x, i: fastrl.normal_sample(m(x[None]), x),
    "tanh_normal_sample: low": lambda m, x, i: fastrl.tanh_normal_sample(x[None], x, low=m(-x)),
    "n_step_gather: rewards": lambda m, x, i: fastrl.n_step_gather(m(x), x > 9, x > 9, i, 0, 2, gamma=1.0, n=1),
    "n_step_gather: terminated": lambda m, x, i: fastrl.n_step_gather(x, m(x > 9), x > 9, i, 0, 2, gamma=1.0, n=1),
    "replay.add: obs": lambda m, x, i: replay().add(m(x), 0, 0.0, x, False, False),
    "replay.add: reward": lambda m, x, i: replay().add(x, 0, np.ma.masked, x, False, False),
}


def adam(params, grads):
    fastrl.adam_step(params, grads, [np.zeros(2, "f4")], [np.zeros(2, "f4")], [np.zeros((), "f4")], lr=0.1)


def replay():
    return fastrl.ReplayBuffer(8, ((2,), np.float32), ((), np.int64))

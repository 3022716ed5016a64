"""Calls of many kernels that have one right answer, at any time and from any thread."""

import threading

import numpy as np

import fastrl
from fastrl.replay import PrioritizedReplay


def steps(seed):
    """Calls of objects that one thread has to itself; in turn they give the same results in every round."""
    rng = np.random.default_rng(seed)
    rows, count = 20 + seed % 7, 16 + seed % 5
    x, v, w, d = (rng.normal(size=(rows, count)).astype(np.float32) for _ in range(4))
    ends, cuts = rng.random((2, rows, count)) < 0.1
    done = ends, cuts & ~ends
    table, indices = rng.normal(size=(500, 12)), rng.integers(0, 500, 200)
    actions = rng.integers(0, count, rows)
    noise = rng.normal(size=x.shape).astype(np.float32)
    net = fastrl.MLP((count, 32, 4), seed=seed)
    tree, generator = fastrl.SumTree(1000, seed=seed), fastrl.Generator(seed)
    start, at_start = tree.state_dict(), generator.state_dict()
    leaves, priorities = rng.integers(0, 1000, 300), rng.random(300).astype(np.float32)

    def updated():
        tree.load_state_dict(start)
        tree.update(leaves, priorities)
        tree.update_from_td_errors(leaves[:50], priorities[:50] - 2, 0.6, 1e-6)
        return tree[np.arange(1000)], tree.total, tree.min, tree.max, len(tree)

    def drawn():
        generator.load_state_dict(at_start)
        return (*fastrl.categorical_sample(x, generator=generator), *fastrl.normal_sample(v, w, generator=generator))

    def trained():
        params, grads, means, squares, step = x.copy(), v.copy(), np.zeros_like(x), np.zeros_like(x), np.array(0.0)
        fastrl.adam_step([params], [grads], [means], [squares], [step], lr=0.1)
        return params, means, squares, step

    def learned():  # the caches of the network are this thread's alone
        out = net.forward_cached(x)
        return out, net.backward(np.ones_like(out), inputs=True), net.grad.copy()

    return [
        lambda: fastrl.gae(x, v, w, *done, gamma=0.9, lam=0.8),
        lambda: fastrl.vtrace(x, v, w, *done, d, gamma=0.9),
        lambda: fastrl.n_step_returns(x, v, *done, gamma=0.9, n=3),
        lambda: fastrl.lambda_returns(x, v, *done, gamma=0.9, lam=0.8),
        updated,
        lambda: tree.sample(64),
        lambda: tree.sample_weighted(33, 0.4, "tree"),
        lambda: tree.sample(5, replacement=False),
        lambda: fastrl.categorical_log_prob_entropy(x, actions),
        lambda: fastrl.normal_log_prob_entropy(x, v, w),
        lambda: fastrl.tanh_normal_sample(x, v, noise=noise),
        drawn,
        lambda: fastrl.gather_rows(table, indices),
        lambda: fastrl.gather_rows([x, v], actions),
        lambda: net.forward(x),
        learned,
        trained,
    ]


def shared(capacity=5000):
    """Calls of objects that all threads use at once; what they find is the same at any time."""
    rng = np.random.default_rng(0)
    tree, priorities = fastrl.SumTree(capacity, seed=0), rng.random(capacity).astype(np.float32) + 0.5
    tree.update(np.arange(capacity), priorities)
    part, sums = rng.integers(0, capacity, 300), rng.uniform(0, tree.total, 100)
    large, many = rng.normal(size=(20_000, 32)).astype(np.float32), rng.integers(0, 20_000, 20_000)
    net = fastrl.MLP((8, 64, 3), seed=0)
    x = rng.normal(size=(50, 8)).astype(np.float32)

    def draw():
        found, probabilities = tree.sample(64)
        assert np.array_equal(probabilities, priorities[found].astype(np.float64) / tree.total)
        return np.ones(64)  # so many were compared

    return [
        lambda: tree.update(part, priorities[part]),  # what they are
        lambda: tree.find(sums),
        lambda: tree[part],
        lambda: (tree.total, tree.min, tree.max, len(tree)),
        draw,
        lambda: fastrl.gather_rows(large, many),  # by two threads of its own
        lambda: net.forward(x),
    ]


class Shared:
    """A buffer that all threads fill and draw from: what belongs to one step stays together."""

    def __init__(self):
        self.buffer = PrioritizedReplay(500, ((3,), np.float32), ((), np.int64), seed=0)
        self.next, self.lock = 0, threading.Lock()
        for _ in range(100):
            self.add()

    def add(self):
        with self.lock:  # or the steps of one environment would be out of order
            k, self.next = self.next % 9800, self.next + 1
            obs = np.full(3, k, np.float32)
            self.buffer.add(obs, k, np.float32(k), obs + 1, k % 7 == 6, False)

    def draw(self):
        batch = self.buffer.sample(64)
        k = batch.action
        assert (batch.obs == k[:, None]).all() and (batch.next_obs == k[:, None] + 1).all()
        assert (batch.reward == k).all() and (batch.terminated == (k % 7 == 6)).all() and not batch.truncated.any()
        assert (batch.discount == np.where(batch.terminated, 0, np.float32(0.99))).all()
        assert (batch.weights > 0).all() and (batch.weights <= 1).all()
        self.buffer.update_priorities(batch.indices, k + 1.0)
        return 64 * 11  # numbers of a transition

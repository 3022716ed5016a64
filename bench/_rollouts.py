"""The problems of bench_scans.py: the arrays of a rollout, what fastrl is called with, and the plain float64 loops."""

import numpy as np

GAMMA, LAM, STEPS = 0.99, 0.95, 5


class Rollout:
    """The arrays of one size.  A subclass computes in `__call__`; `answer` makes a tuple of [T, N] of its result."""

    def __init__(self, T, N):
        rng = np.random.default_rng(0)
        self.T, self.N = T, N
        self.rewards = rng.standard_normal((T, N), np.float32)
        values = rng.standard_normal((T + 1, N), np.float32)
        self.values, self.next_values = values[:-1], values[1:]
        self.terminated = rng.random((T, N)) < 0.01
        self.truncated = np.zeros((T, N), np.bool_)
        self.log_rhos = 0.3 * rng.standard_normal((T, N), np.float32)
        self.build()

    def build(self):
        pass

    def exact(self):
        arrays = (self.rewards, self.values, self.next_values, self.log_rhos)
        return self.loop(*(x.astype(np.float64) for x in arrays), 1.0 - self.terminated)

    def answer(self, result):
        return result if isinstance(result, tuple) else (result,)


# ---- the ops: what fastrl is called with, and the loop in float64 that answers are compared with -------------------


class Gae(Rollout):
    """Advantages and returns."""

    op = "gae"
    arrays = ("rewards", "values", "next_values", "terminated", "truncated")
    numbers = (("gamma", GAMMA), ("lam", LAM))

    def loop(self, r, v, nv, _, alive):
        advantages, last = np.empty_like(r), 0.0
        for t in reversed(range(self.T)):
            advantages[t] = last = r[t] + GAMMA * alive[t] * nv[t] - v[t] + GAMMA * LAM * alive[t] * last
        return advantages, advantages + v


class Discounted(Rollout):
    op = "discounted_returns"
    arrays = ("rewards", "terminated", "truncated")
    numbers = (("gamma", GAMMA),)

    def loop(self, r, v, nv, _, alive):
        returns, last = np.empty_like(r), nv[-1]
        for t in reversed(range(self.T)):
            returns[t] = last = r[t] + GAMMA * alive[t] * last
        return (returns,)


class NStep(Rollout):
    """The returns alone are compared: fastrl gives discounts and last steps too."""

    op = "n_step_returns"
    arrays = ("rewards", "next_values", "terminated", "truncated")
    numbers = (("gamma", GAMMA), ("n", STEPS))

    def loop(self, r, v, nv, _, alive):
        returns = np.zeros_like(r)
        for t in range(self.T):
            weight = np.ones(self.N)
            for k in range(t, min(t + STEPS, self.T)):
                returns[t] += weight * r[k]
                weight *= GAMMA * alive[k]
            returns[t] += weight * nv[k]
        return (returns,)

    def answer(self, result):
        return super().answer(result)[:1]


class Vtrace(Rollout):
    """Targets and advantages of the policy gradient."""

    op = "vtrace"
    arrays = ("rewards", "values", "next_values", "terminated", "truncated", "log_rhos")
    numbers = (("gamma", GAMMA),)

    def loop(self, r, v, nv, log_rhos, alive):
        rho = np.minimum(np.exp(log_rhos), 1.0)
        vs, advantages, error = np.empty_like(r), np.empty_like(r), np.zeros(self.N)
        for t in reversed(range(self.T)):
            advantages[t] = rho[t] * (r[t] + GAMMA * alive[t] * (nv[t] + error) - v[t])
            delta = r[t] + GAMMA * alive[t] * nv[t] - v[t]
            error = rho[t] * (delta + GAMMA * alive[t] * error)
            vs[t] = v[t] + error
        return vs, advantages

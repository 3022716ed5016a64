"""`fastrl.SumTree` behind a prioritized replay buffer of NumPy arrays alone: torch is neither needed nor imported.

Run: python examples/numpy_replay.py   (tabular Q-learning on the Blind Cliffwalk, prioritized and uniform)
"""

import argparse

import numpy as np

import fastrl


class PrioritizedBuffer:
    """A ring of transitions; P(i) is proportional to (|td error| + eps)^alpha (Schaul et al. 2016)."""

    def __init__(self, capacity: int, alpha: float = 0.6, eps: float = 1e-6, seed: int = 0) -> None:
        self.capacity, self.alpha, self.eps = capacity, alpha, eps
        self.tree = fastrl.SumTree(capacity, seed=seed)
        self.arrays = {
            "state": np.zeros(capacity, np.int64),
            "action": np.zeros(capacity, np.int64),
            "reward": np.zeros(capacity, np.float32),
            "next_state": np.zeros(capacity, np.int64),
            "terminated": np.zeros(capacity, np.bool_),
        }
        self.next, self.size = 0, 0

    def add(self, **transition: float) -> None:
        """Write one transition over the oldest, with the largest priority so far."""
        for name, value in transition.items():
            self.arrays[name][self.next] = value
        self.tree[self.next] = self.tree.max if self.size else 1.0
        self.next, self.size = (self.next + 1) % self.capacity, min(self.size + 1, self.capacity)

    def sample(self, batch_size: int, beta: float) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Indices, importance weights (the largest is 1) and the transitions, drawn by priority."""
        indices, weights = self.tree.sample_weighted(batch_size, beta)
        return (
            indices,
            weights,
            dict(zip(self.arrays, fastrl.gather_rows(tuple(self.arrays.values()), indices), strict=True)),
        )

    def update(self, indices: np.ndarray, td_errors: np.ndarray) -> None:
        self.tree.update_from_td_errors(indices, td_errors, self.alpha, self.eps)


def learn(n: int, alpha: float, seed: int, batch_size: int = 8, most: int = 100_000) -> int:
    """Updates until Q is right on the Blind Cliffwalk (Schaul et al. 2016, section 3.1): n states in a row.

    In each of them one of two actions leads on and the other ends the episode; only the last step of all has a reward.
    The buffer holds the episodes of all 2^n sequences of actions: one transition in 2^(n + 1) has the reward.
    """
    gamma, rng = 1 - 1 / n, np.random.default_rng(seed)
    right = np.arange(n) % 2  # the action that leads on
    buffer = PrioritizedBuffer(2 ** (n + 1), alpha, seed=seed)
    for sequence in rng.permutation(2**n):
        for state in range(n):
            action = int(sequence >> state) & 1
            over = bool(action != right[state])
            last = state == n - 1
            buffer.add(
                state=state,
                action=action,
                reward=float(last and not over),
                next_state=min(state + 1, n - 1),
                terminated=over or last,
            )
            if over:
                break
    q, exact = np.zeros((n, 2)), np.zeros((n, 2))
    exact[np.arange(n), right] = gamma ** np.arange(n - 1, -1, -1)
    for update in range(1, most + 1):
        indices, weights, t = buffer.sample(batch_size, beta=0.5)
        target = t["reward"] + gamma * ~t["terminated"] * q[t["next_state"]].max(1)
        td_errors = target - q[t["state"], t["action"]]
        buffer.update(indices, td_errors)
        np.add.at(q, (t["state"], t["action"]), 0.25 * weights * td_errors)
        if np.square(q - exact).mean() < 1e-3:
            return update
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    for name, alpha in (("prioritized", 0.6), ("uniform", 0.0)):
        updates = np.median([learn(args.states, alpha, seed) for seed in range(args.seeds)])
        print(f"{name:12s} {updates:8.0f} updates (median of {args.seeds} seeds)")


if __name__ == "__main__":
    main()

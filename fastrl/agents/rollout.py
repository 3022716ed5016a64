"""What on-policy agents learn from: the last steps of N environments, in arrays that are made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.arrays import on_device, to_numpy
from fastrl.agents.envs import Envs
from fastrl.agents.policies import ActorCritic, RunningMoments
from fastrl.kernels import Generator, gae, gather_rows, reverse_affine_scan

Floats = NDArray[np.float32]
Finals = list[tuple[int, int, NDArray[Any]]]
"""t, n and the final observation of the truncated episodes."""


class Rollout:
    """T steps of N environments, written in place: arrays ``[T, N]``, ``[T, N, ...]`` of observations and actions.

    `mask` is None, or False where a step is not to be learned from, because it was no transition but a reset
    (NEXT_STEP autoreset).  `allowed` ``[T, N, K]`` are the action masks of the environments; None: they have none.
    """

    def __init__(self, envs: Envs, policy: ActorCritic, n_steps: int) -> None:
        self.envs, self.policy = envs, policy
        self.obs: NDArray[Any]
        self.action: NDArray[Any]
        self.log_prob: Floats
        self.reward: Floats
        self.terminated: NDArray[np.bool_]
        self.truncated: NDArray[np.bool_]
        self.mask: NDArray[np.bool_] | None = None
        self.allowed: NDArray[np.bool_] | None = None
        self._mask: NDArray[np.bool_]
        self.finals: Finals = []
        self._store: dict[str, NDArray[Any]] = {}
        self._capacity = 0
        self._grow(n_steps)

    def collect(self, generator: Generator, stepped: Callable[[], None] | None = None) -> None:
        """Fill the arrays with the policy's next T steps; `stepped` is called after each."""
        self.begin()
        for t in range(self._capacity):
            self.step(t, generator)
            if stepped is not None:
                stepped()

    def begin(self) -> None:
        """Forget the last rollout."""
        self._show(self._capacity)
        self.mask = None
        self._mask[:] = True
        self.finals.clear()

    def step(self, t: int, generator: Generator, active: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """Take one step with the policy and write it at t; returns whose episode it ended, ``[N]``.

        Environments that are not `active` are masked.
        """
        if t == self._capacity:
            self._grow(2 * t)
        self.obs[t] = obs = self.envs.obs
        action, log_prob = self.policy.act(obs, generator, self.envs.allowed)
        if self.allowed is not None:
            self.allowed[t] = self.envs.allowed
        step = self.envs.step(self.policy.to_env(action))
        self.action[t], self.log_prob[t] = action, log_prob
        self.reward[t], self.terminated[t], self.truncated[t] = step.reward, step.terminated, step.truncated
        for mask in (step.mask, active):
            if mask is not None:
                self._mask[t] &= mask
                self.mask = self._mask
        if np.count_nonzero(step.truncated):  # much faster than any()
            self.finals += [(t, int(n), step.next_obs[n]) for n in np.flatnonzero(step.truncated)]
        return step.terminated | step.truncated

    def end(self, length: int) -> None:
        """The rollout has this many steps: the arrays become ``[length, N]``."""
        self._show(length)

    def values(self) -> tuple[Floats, Floats]:
        """V(s_t) and V(s_{t+1}) ``[T, N]``, of the observations really reached, in one forward pass.

        V(s_{t+1}) is the next row's V, but where a limit cut the episode it is V of the final observation.
        """
        return state_values(self.policy, self.obs, self.envs.obs, self.finals)

    def advantages(self, gamma: float, lam: float, scaling: RewardScaling | None) -> tuple[Floats, Floats, Floats]:
        """GAE's advantages A_t, the value's targets G_t = A_t + V(s_t) and the values V(s_t) themselves, ``[T, N]``."""
        values, next_values = self.values()
        reward = self.reward if scaling is None else scaling(self)
        advantages, returns = gae(
            reward, values, next_values, self.terminated, self.truncated, gamma=gamma, lam=lam, mask=self.mask
        )
        return advantages, returns, values

    def batch(self, *arrays: NDArray[Any]) -> list[Any]:
        """Prepared observations, actions, log pi(a|s), and further arrays ``[T, N, ...]``: ``[B, ...]``, on the device.

        B counts the steps to learn from, in order of time.  On the CPU they share the arrays' memory if they can.
        """
        arrays = (self.policy.prepare(self.obs), self.action, self.log_prob, *arrays)
        return [self.policy.array(self.real(a)) for a in arrays]

    def real(self, array: NDArray[Any]) -> NDArray[Any]:
        """The rows ``[B, ...]`` of an array ``[T, N, ...]`` that are to be learned from."""
        return array.reshape(-1, *array.shape[2:]) if self.mask is None else array[self.mask]

    def _grow(self, capacity: int) -> None:
        n, envs, policy = self.envs.num_envs, self.envs, self.policy
        n_actions = (int(np.prod(envs.action_space.shape or ())),) if policy.multi or not policy.discrete else ()
        store = {
            "obs": np.zeros((capacity, n, *(envs.observation_space.shape or ())), policy.obs_dtype),
            "action": np.zeros((capacity, n, *n_actions), np.int64 if policy.discrete else np.float32),
            "log_prob": np.zeros((capacity, n), np.float32),
            "reward": np.zeros((capacity, n), np.float32),
            "terminated": np.zeros((capacity, n), np.bool_),
            "truncated": np.zeros((capacity, n), np.bool_),
            "_mask": np.ones((capacity, n), np.bool_),
        }
        if envs.allowed is not None:
            store["allowed"] = np.ones((capacity, *envs.allowed.shape), np.bool_)
        for name, array in self._store.items():
            store[name][: self._capacity] = array
        self._capacity, self._store = capacity, store
        self._show(capacity)

    def _show(self, length: int) -> None:
        for name, array in self._store.items():
            setattr(self, name, array[:length])
        if self.mask is not None:
            self.mask = self._mask


def state_values(
    policy: ActorCritic, obs: NDArray[Any], last_obs: NDArray[Any], finals: Finals
) -> tuple[Floats, Floats]:
    """`Rollout.values` of observations ``[T, N, ...]`` and those after the last step ``[N, ...]``."""
    rows = [obs.reshape(-1, *obs.shape[2:]), last_obs, *(final[None] for _, _, final in finals)]
    v = to_numpy(policy.value(policy.array(policy.prepare(np.concatenate(rows)))))
    n = len(last_obs)
    values = v[: (len(obs) + 1) * n].reshape(-1, n)
    next_values = values[1:].copy()
    for (t, i, _), final_value in zip(finals, v[values.size :], strict=True):
        next_values[t, i] = final_value
    return values[:-1], next_values


class Minibatches:
    """Each iteration is a pass over the rows of `batch` in a new random order, in `parts` equal parts.

    The parts are views of memory that the next pass overwrites.
    """

    def __init__(self, batch: Sequence[Any], parts: int, rng: np.random.Generator) -> None:
        self.batch, self.rng = list(batch), rng
        self.size = len(batch[0])
        self.bounds = np.linspace(0, self.size, min(parts, self.size) + 1).astype(int).tolist()
        self.shuffled = [np.empty_like(x) if isinstance(x, np.ndarray) else x.new_empty(x.shape) for x in batch]

    def __iter__(self) -> Iterator[list[Any]]:
        order: Any = self.rng.permutation(self.size)
        if not isinstance(self.batch[0], np.ndarray):
            order = on_device(order, str(self.batch[0].device))
        gather_rows(self.batch, order, out=self.shuffled)
        for i, j in pairwise(self.bounds):
            yield [x[i:j] for x in self.shuffled]


def normalized(advantage: Any) -> Any:
    """(A - mean) / (standard deviation + 1e-8), with the divisor B, not B - 1; of one alone, A itself."""
    if len(advantage) < 2:
        return advantage
    centred = advantage - advantage.mean()
    return centred / ((centred**2).mean() ** 0.5 + 1e-8)


class RewardScaling:
    """Divides rewards by the standard deviation of the discounted return, as it has been so far.

    g_t = r_t + gamma (1 - done_{t-1}) g_{t-1} in every environment; r_t / sqrt(Var g + 1e-8), clipped to [-10, 10].
    Masked steps have no r_t and are not counted.
    """

    def __init__(self, num_envs: int, gamma: float) -> None:
        self.gamma = gamma
        self.moments = RunningMoments()
        self.carry = np.zeros(num_envs)  # gamma (1 - done) g of the last step

    def __call__(self, rollout: Rollout) -> Floats:
        """The scaled rewards ``[T, N]`` of a rollout, which is counted in first."""
        reward = rollout.reward.astype(np.float64)
        if rollout.mask is not None:
            reward[~rollout.mask] = 0.0
        decay = self.gamma * ~(rollout.terminated | rollout.truncated)
        # Forward in time is backward in the reversed arrays: step t passes on what step t - 1 left.
        reward[0] += self.carry
        decay_before = np.concatenate([np.zeros_like(decay[:1]), decay[:-1]])
        g = reverse_affine_scan(decay_before[::-1], reward[::-1])[::-1]
        self.carry = decay[-1] * g[-1]
        self.moments.update(rollout.real(g))
        return self.scaled(rollout.reward)

    def scaled(self, reward: Floats) -> Floats:
        """By the returns seen so far."""
        scaled: Floats = np.clip(reward / np.sqrt(self.moments.var + 1e-8), -10.0, 10.0).astype(np.float32)
        return scaled

    def new_episodes(self) -> None:
        self.carry[:] = 0.0

    def state_dict(self) -> dict[str, object]:
        return {"moments": self.moments.state_dict(), "carry": self.carry.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments.load_state_dict(state["moments"])
        carry = np.asarray(state["carry"], np.float64)
        if not np.isfinite(carry).all():
            raise ValueError("carry must be finite")
        if carry.shape == self.carry.shape:  # else these are other environments, where new episodes begin
            self.carry = carry

"""Buffers for ``replay_buffer_class=`` and ``rollout_buffer_class=``, of these algorithms and the host's."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common import buffers as host
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from fastrl.kernels import SumTree, gae, gather_rows, n_step_gather


class RolloutBuffer(host.RolloutBuffer):  # type: ignore[misc]
    """``stable_baselines3.common.buffers.RolloutBuffer`` with advantages by `fastrl.gae`."""

    def compute_returns_and_advantage(self, last_values: Tensor, dones: Any) -> None:
        """A_t and the returns A_t + V_t ``[n_steps, n_envs]``; `dones`: whether the last step ended an episode."""
        rollout_gae(self, last_values, dones)


def rollout_gae(buffer: Any, last_values: Tensor, dones: Any) -> None:
    """`fastrl.gae` of a rollout buffer, whose rewards already hold gamma V(s') where a limit cut the episode."""
    last = last_values.detach().cpu().numpy().reshape(1, -1)
    ended = np.concatenate([buffer.episode_starts[1:], np.reshape(dones, (1, -1))]) > 0
    next_values = np.concatenate([buffer.values[1:], last])
    buffer.advantages, buffer.returns = gae(
        buffer.rewards, buffer.values, next_values, ended, np.zeros_like(ended),
        gamma=float(buffer.gamma), lam=float(buffer.gae_lambda),
    )  # fmt: skip


class ReplayBuffer(host.NStepReplayBuffer):  # type: ignore[misc]
    """``stable_baselines3.common.buffers.ReplayBuffer`` with returns of `n_steps`, sampled by compiled kernels.

    The samples are those of the host's ReplayBuffer and NStepReplayBuffer, of the same random numbers.  `n_steps` and
    `gamma` go through ``replay_buffer_kwargs``, because the host ignores its own ``n_steps`` beside a class.
    """

    def __init__(self, *args: Any, n_steps: int = 1, gamma: float = 0.99, **kwargs: Any) -> None:
        if not isinstance(n_steps, (int, np.integer)) or isinstance(n_steps, bool) or n_steps < 1:
            raise ValueError(f"{type(self).__name__}: n_steps must be an int >= 1, got {n_steps!r}")
        if not 0 <= gamma <= 1:
            raise ValueError(f"{type(self).__name__}: gamma must be in [0, 1], got {gamma!r}")
        super().__init__(*args, n_steps=n_steps, gamma=gamma, **kwargs)
        shape = (self.buffer_size, self.n_envs)
        self._terminated, self._truncated = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        at = self.pos
        super().add(obs, next_obs, action, reward, done, infos)
        self._truncated[at] = self.timeouts[at]
        self._terminated[at] = self.dones[at] * (1 - self.timeouts[at])

    def _get_samples(self, batch_inds: Any, env: Any = None) -> Any:
        env_indices = np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))
        return self._gather(batch_inds * self.n_envs + env_indices, env)

    def _gather(self, rows: Any, env: Any) -> Any:
        """The samples of flat rows, slot * n_envs + environment, normalised by a VecNormalize `env` or None."""
        last, discounts = rows, None
        if self.n_steps > 1:
            reward, _, last = n_step_gather(
                self.rewards, self._terminated, self._truncated, rows, self.pos, self.size(),
                gamma=self.gamma, n=self.n_steps,
            )  # fmt: skip
            steps = ((last // self.n_envs - rows // self.n_envs) % self.buffer_size + 1)[:, None]
            discounts = np.float32(self.gamma) ** steps.astype(np.float32)
            if env is not None:
                reward = self._normalized_returns(rows, steps, env)
        else:
            reward = self._normalize_reward(gather_rows(self.rewards.reshape(-1), rows), env)
        obs, action = gather_rows([self._flat(self.observations), self._flat(self.actions)], rows)
        next_obs, done = gather_rows([self._flat(self.next_observations), self._terminated.reshape(-1)], last)
        obs, next_obs = self._normalize_obs(obs, env), self._normalize_obs(next_obs, env)
        data = (obs, action, next_obs, done[:, None].astype(np.float32), reward[:, None])
        tensors = [self.to_torch(x, copy=False) for x in data]
        return ReplayBufferSamples(*tensors, None if discounts is None else self.to_torch(discounts, copy=False))

    def _normalized_returns(self, rows: Any, steps: Any, env: Any) -> Any:
        """Rewards are normalised, and clipped, before they are summed."""
        k = np.arange(self.n_steps)
        slots = (rows[:, None] // self.n_envs + k) % self.buffer_size
        rewards = self._normalize_reward(self.rewards[slots, rows[:, None] % self.n_envs], env)
        return (rewards * np.float32(self.gamma) ** k.astype(np.float32) * (k < steps)).sum(1)

    @staticmethod
    def _flat(x: Any) -> Any:
        return x.reshape(-1, *x.shape[2:])


class PrioritizedSamples(NamedTuple):
    """``ReplayBufferSamples`` with importance weights ``[B]`` and the indices that `update_priorities` takes."""

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    dones: Tensor
    rewards: Tensor
    discounts: Tensor | None
    weights: Tensor
    indices: Any


class PrioritizedReplayBuffer(ReplayBuffer):
    """`ReplayBuffer` that draws in proportion to (|TD error| + eps)^alpha (Schaul et al. 2016, arXiv:1511.05952).

    DQN, SAC, TD3 and DDPG of `fastrl.integrations.sb3` weight their losses with ``weights`` and give the TD errors back
    (of several critics the mean).  A class that does not do that draws new transitions forever: a warning says so.

    Args (besides those of `ReplayBuffer`):
        alpha: >= 0; 0 is uniform.
        beta, beta_end: >= 0: the exponent of the weights, from one to the other while `beta_steps` transitions are
            added.
        eps: > 0, so that no transition is lost.
        seed: of the draws; None: from NumPy's global generator, which the host seeds with the algorithm's ``seed``.
    """

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.6,
        beta: float = 0.4,
        beta_end: float = 1.0,
        beta_steps: int = 100_000,
        eps: float = 1e-6,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (("alpha", alpha), ("beta", beta), ("beta_end", beta_end), ("eps", eps)):
            if not 0 <= value < np.inf or (name == "eps" and value == 0):
                wanted = "> 0" if name == "eps" else ">= 0"
                raise ValueError(f"PrioritizedReplayBuffer: {name} must be finite and {wanted}, got {value!r}")
        if beta_steps < 1:
            raise ValueError(f"PrioritizedReplayBuffer: beta_steps must be >= 1, got {beta_steps!r}")
        super().__init__(*args, **kwargs)
        self.alpha, self.eps, self._betas, self._beta_steps = alpha, eps, (beta, beta_end), beta_steps
        seed = int(np.random.randint(2**31)) if seed is None else seed
        self.tree = SumTree(self.buffer_size * self.n_envs, seed=seed)
        self._new_priority, self._added = 1.0, 0
        self._waiting, self._warned = False, False  # for the TD errors of the last sample

    @property
    def beta(self) -> float:
        """The exponent of the weights now."""
        fraction = min(1.0, self._added / self._beta_steps)
        return self._betas[0] * (1 - fraction) + self._betas[1] * fraction

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        rows = self.pos * self.n_envs + np.arange(self.n_envs)
        super().add(obs, next_obs, action, reward, done, infos)
        self.tree.update(rows, np.full(self.n_envs, self._new_priority))
        self._added += self.n_envs

    def reset(self) -> None:
        super().reset()
        self.tree.clear()

    def sample(self, batch_size: int, env: Any = None) -> PrioritizedSamples:
        """`batch_size` transitions, one from each of as many equal slices of the priorities' sum."""
        if self._waiting and not self._warned:
            self._warned = True
            warnings.warn(
                "PrioritizedReplayBuffer: nobody calls update_priorities, so priorities and weights have no effect; "
                "DQN, SAC, TD3 and DDPG of fastrl.integrations.sb3 do where they are compiled",
                stacklevel=2,
            )
        self._waiting = True
        rows, weights = self.tree.sample_weighted(batch_size, self.beta)
        weights = self.to_torch(weights.astype(np.float32, copy=False), copy=False)
        samples: tuple[Any, ...] = self._gather(rows, env)
        return PrioritizedSamples._make((*samples, weights, rows))

    def update_priorities(self, indices: Any, td_errors: Any) -> None:
        """The priorities of a batch: (|td_error| + eps)^alpha; arrays ``[B]``, finite errors of any sign."""
        largest = self.tree.update_from_td_errors(indices, td_errors, self.alpha, self.eps, keep_zeros=True)
        self._new_priority, self._waiting = max(self._new_priority, largest), False

"""Policies with a memory, and the rollouts in which they act."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.envs import Envs
from fastrl.agents.masks import masked
from fastrl.agents.memory import Memory
from fastrl.agents.policies import ActorCritic
from fastrl.agents.rollout import Floats, Rollout
from fastrl.kernels import Generator


class Sequences(NamedTuple):
    """Prepared observations of T steps of B environments, and what they are unrolled with."""

    obs: NDArray[Any]
    """[T, B, *observation]."""
    state: Floats
    """[B, S], before them."""
    starts: NDArray[np.bool_]
    """[T, B]: where an episode begins."""
    mask: NDArray[np.bool_]
    """[T, B]: the steps whose outputs are wanted, M of them."""


class RecurrentPolicy(ActorCritic):
    """An `ActorCritic` whose one network, for pi and V, remembers.

    It acts by `memory`, which it brings up to date; what is learned from are `Sequences`.  `network`: a function (n_in,
    n_out, policy, seed) -> `RecurrentNetwork`.
    """

    memory: Memory
    last_value: Floats  # V ``[B]`` of the observations that were acted on last

    def _take_networks(self, given: Callable[..., Any], shape: Any, critic: bool, seed: int) -> None:
        self.shared = True
        self.actor = given(n_in=int(np.prod(shape)), n_out=self.n_out + 1, policy=self.n_out, seed=seed)

    @contextmanager
    def remembering(self, memory: Any) -> Iterator[None]:
        """Inside, it acts by `memory`."""
        own, self.memory = self.memory, memory
        try:
            yield
        finally:
            self.memory = own

    def forward_cached(self, sequences: Sequences, allowed: Any = None) -> tuple[Any, Any]:
        """Logits or mean ``[M, K or A]`` and V ``[M]``, and what `backward` needs is kept."""
        x, self._mask = self._inputs(sequences.obs), sequences.mask
        out = self.actor.unroll_cached(x, sequences.state, sequences.starts)[sequences.mask]
        return masked(out[:, :-1], allowed), out[:, -1]

    def backward(self, d_out: Any, d_value: Any, d_log_std: Any) -> None:
        d = np.zeros((*self._mask.shape, self.n_out + 1), np.float32)
        d[self._mask] = np.concatenate((d_out, d_value[:, None]), 1)
        self.actor.backward(d)
        if self._d_log_std is not None:
            self._d_log_std[...] = d_log_std

    def next_value(self, obs: NDArray[Any], state: Floats) -> Floats:
        """V ``[B]`` of observations ``[B, ...]`` seen in these states ``[B, S]``, which are not changed."""
        return self.actor.unroll(self._inputs(self.prepare(obs)[None]), state)[0][0, :, -1]  # type: ignore[no-any-return]

    def _inputs(self, obs: NDArray[Any]) -> Floats:
        return self.floats(obs.reshape(*obs.shape[:2], -1))  # type: ignore[no-any-return]

    def _outputs(self, obs: NDArray[Any], allowed: Any) -> Any:
        x = self._inputs(self.prepare(obs)[None])
        out, self.memory.state = self.actor.unroll(x, self.memory.state)
        self.last_value = out[0, :, -1]
        return masked(out[0, :, :-1], allowed)


class RecurrentRollout(Rollout):
    """A `Rollout` of a `RecurrentPolicy`: `state` ``[N, S]`` before it, and where episodes begin in it."""

    policy: RecurrentPolicy

    def __init__(self, envs: Envs, policy: RecurrentPolicy, n_steps: int) -> None:
        super().__init__(envs, policy, n_steps)
        self.state = policy.memory.state
        self.starts = np.zeros((n_steps, envs.num_envs), np.bool_)
        self.value = np.zeros((n_steps, envs.num_envs), np.float32)  # when it acted
        self.final_values: list[float] = []

    def begin(self) -> None:
        super().begin()
        self.state = self.policy.memory.state
        self.starts[:] = False
        self.final_values.clear()

    def step(self, t: int, generator: Generator, active: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        done, memory = super().step(t, generator, active), self.policy.memory
        self.value[t] = self.policy.last_value
        for _, i, obs in self.finals[len(self.final_values) :]:
            self.final_values.append(float(self.policy.next_value(obs[None], memory.state[i : i + 1])[0]))
        begins = done if self.mask is None else done | ~self.mask[t]
        if np.count_nonzero(begins):
            memory.new_episodes(begins)
            self.starts[t + 1 : t + 2] = begins
        return done

    def values(self) -> tuple[Floats, Floats]:
        """V(s_t) when it acted, and V(s_{t+1}), of the observations really reached, ``[T, N]``."""
        last = self.policy.next_value(self.envs.obs, self.policy.memory.state)
        next_values = np.concatenate((self.value[1:], last[None]))
        for (t, i, _), final_value in zip(self.finals, self.final_values, strict=True):
            next_values[t, i] = final_value
        return self.value, next_values

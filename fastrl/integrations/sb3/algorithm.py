"""What the compiled algorithms share: when they are compiled, when the host's own code runs, and how batches come."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

from fastrl.integrations._version import untested
from fastrl.integrations.sb3 import buffers
from fastrl.integrations.sb3.networks import CannotCompile, HostOnly, Learner
from fastrl.kernels import gather_rows

TESTED = "2.9"  # where train() of the host is what ours are checked against


class Compiled(ABC):
    """Mixin before a host's algorithm: `_learner` is what was compiled of its policy, or None."""

    _fastrl: Learner | None = None
    _home = "sb3"  # the module of `fastrl.integrations` that it is imported from

    @abstractmethod
    def _compile(self) -> Learner:
        """Compile the policy, or raise `CannotCompile`."""

    @abstractmethod
    def _act(self, nets: Any, x: Any, deterministic: bool) -> Any:
        """Actions ``[B, *action_space.shape]`` as the environment takes them, for the networks' inputs ``[B, n]``."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """The host's: the action of an observation or the actions of a batch, and `state` as it came."""
        nets = self._learner()
        found = None if nets is None else nets.inputs(observation)
        if found is None:
            result: tuple[Any, Any] = super().predict(observation, state, episode_start, deterministic)  # type: ignore[misc]
            return result
        x, batch = found
        actions = self._act(nets, x, deterministic)
        return (actions if batch else actions.squeeze(axis=0)), state

    def _learner(self) -> Any:
        """The compiled networks, bound to the policy as it is now; None: the host's own code runs, which is said once.

        Whatever was changed since the last call (parameters loaded or replaced, a layer exchanged, a copy of the model)
        is seen and taken over.
        """
        found = self._fastrl
        if found is None or not found.whole(self):
            found = self._fastrl = self._compiled_or_not()
        return found if found.compiled else None

    def _compiled_or_not(self) -> Learner:
        model: Any = self
        try:
            if reason := untested("stable-baselines3", TESTED):
                raise CannotCompile(reason)
            return self._compile()
        except CannotCompile as error:
            warnings.warn(
                f"fastrl.integrations.{self._home}.{type(self).__name__} is not compiled, Stable-Baselines3's own code "
                f"runs instead: {error}",
                stacklevel=4,
            )
            return HostOnly(model.policy)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_fastrl"]  # type: ignore[misc]


_COPYING = {ReplayBuffer.add, buffers.ReplayBuffer.add, buffers.PrioritizedReplayBuffer.add}


class OffPolicy(Compiled):
    """Of the classes with a replay buffer."""

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> Any:
        nets, collect = self._learner(), super().collect_rollouts  # type: ignore[misc]
        if nets is None:
            return collect(*args, **kwargs)
        with nets.methods(set_training_mode=nets.set_training_mode):
            return collect(*args, **kwargs)

    def _store_transition(
        self: Any, replay_buffer: Any, buffer_action: Any, new_obs: Any, reward: Any, dones: Any, infos: Any
    ) -> None:
        """The host's, without its copy of the observations where the buffer makes one anyway."""
        plain = type(replay_buffer).add in _COPYING and self._vec_normalize_env is None
        if plain and not np.count_nonzero(dones):
            self._last_original_obs = self._last_obs
            replay_buffer.add(self._last_obs, new_obs, buffer_action, reward, dones, infos)
            self._last_obs = new_obs
        else:
            super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)  # type: ignore[misc]


class Batch(NamedTuple):
    """NumPy arrays of B transitions, as losses take them; discount = gamma^m (1 - terminated)."""

    obs: Any
    action: Any  # [B, A]
    reward: Any
    discount: Any
    next_obs: Any
    weights: Any = None
    indices: Any = None


def sample(model: Any, nets: Learner, size: int) -> Batch:
    """The batch that the host would draw, of the same random numbers."""
    buffer, normalize = model.replay_buffer, model._vec_normalize_env
    if type(buffer) is ReplayBuffer and normalize is None and not buffer.optimize_memory_usage:
        return _gather(buffer, nets, size, model.gamma)
    b = buffer.sample(size, env=normalize)
    discount = (1 - b.dones) * (model.gamma if b.discounts is None else b.discounts)
    weights, indices = getattr(b, "weights", None), getattr(b, "indices", None)
    return Batch(
        nets.flat(b.observations.numpy()), b.actions.numpy(), b.rewards.numpy()[:, 0], discount.numpy()[:, 0],
        nets.flat(b.next_observations.numpy()), None if weights is None else weights.numpy(), indices,
    )  # fmt: skip


def _gather(buffer: Any, nets: Learner, size: int, gamma: float) -> Batch:
    rows = np.random.randint(0, buffer.buffer_size if buffer.full else buffer.pos, size=size)
    if (n := buffer.n_envs) > 1:  # one draws nothing
        rows = rows * n + np.random.randint(0, high=n, size=size)
    names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    columns = [(x := getattr(buffer, name)).reshape(-1, *x.shape[2:]) for name in names]
    obs, next_obs, action, reward, done, timeout = gather_rows(columns, rows)
    discount = (1 - done * (1 - timeout)) * np.float32(gamma)
    return Batch(nets.flat(obs), action, reward, discount, nets.flat(next_obs))


def learned(model: Any, batch: Batch, td_errors: Any) -> None:
    """Tell a prioritized buffer the TD errors of its batch."""
    if batch.indices is not None:
        model.replay_buffer.update_priorities(batch.indices, td_errors)

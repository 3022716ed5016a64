"""What agents that learn from a replay buffer share: the loop of acting, storing and rounds of updates.

The rule of an update is in the algorithm's own file.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Agent, Env
from fastrl.agents.arrays import on_device, to_numpy
from fastrl.agents.envs import Transition
from fastrl.agents.images import packed
from fastrl.agents.masks import Masks
from fastrl.agents.spaces import input_scale
from fastrl.agents.training import check_loss
from fastrl.kernels.mlp.losses import QLoss
from fastrl.replay import Batch, PrioritizedReplay, ReplayBuffer

C = TypeVar("C")


class OffPolicyAgent(Agent[C]):
    """Base of the agents with a replay buffer: act, store, and every `train_every` steps a round of updates.

    A subclass has `_act`, `_update`, and what `Agent` wants; its config has the settings that are used here.  On the
    CPU all arrays are NumPy's, on CUDA those of an update are tensors.
    """

    buffer: ReplayBuffer

    def __init__(self, env: Env, config: C | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c: Any = self.config
        space = self.envs.observation_space
        self._obs_shape: tuple[int, ...] = space.shape or ()
        self._n_obs = int(np.prod(self._obs_shape))
        self._cpu = self.device == "cpu"
        self._input_scale = input_scale(space)
        self._packed = packed(self._ready_made)
        self._as_they_are = space.dtype == np.float32 and len(self._obs_shape) == 1
        self._predict_rng = np.random.default_rng(self._predict_seed)
        # Of the initial weights of the networks, one after another.
        self._seeds = [int(x) for x in np.random.SeedSequence([c.seed, 2]).generate_state(8, np.uint64)]
        self._reached: NDArray[Any] | None = None  # the observations after the last step
        self._next_allowed: Any = None  # the action masks of a batch's next observations ``[B, K]``
        self._last: dict[str, Any] = {}  # of the last update, numbers not read from the device yet, for the log

    def _replay(self, action_space: Any) -> ReplayBuffer:
        """An empty buffer as the config wants it, for actions of `action_space`."""
        c: Any = self.config
        space = (c.buffer_size, self._kept_space(), action_space, c.num_envs)
        device = None if self._cpu else self.device
        settings: dict[str, Any] = {"n_step": c.n_step, "gamma": c.gamma, "device": device, "seed": c.seed}
        if self.envs.allowed is None:  # else an observation is a dict, of which not all are frames
            settings["frame_stack"] = self.envs.frame_stack
        priorities = self._priorities()
        if priorities is None:
            return ReplayBuffer(*space, **settings)
        return PrioritizedReplay(*space, **(settings | priorities))

    def _priorities(self) -> dict[str, Any] | None:
        """The settings of prioritized replay, None where replay is uniform."""
        c: Any = self.config
        if not c.prioritized:
            return None
        found = {"alpha": c.per_alpha, "eps": c.per_eps, "beta": c.per_beta, "beta_end": c.per_beta_end}
        return found if c.per_beta_steps is None else {**found, "beta_steps": c.per_beta_steps}

    def _kept_space(self) -> Any:
        """What the buffer keeps as an observation: with action masks a dict of the two."""
        space = self.envs.observation_space if self._packed is None else self._packed.space
        return (
            space if self.envs.allowed is None else {"obs": space, "allowed": (self.envs.allowed.shape[1:], np.bool_)}
        )

    def _kept(self, obs: NDArray[Any], allowed: Masks | None) -> Any:
        """Observations ``[B, ...]``, and their action masks if there are any, as the buffer keeps them."""
        kept = obs if self._packed is None else self._packed.pack(obs)
        return kept if allowed is None else {"obs": kept, "allowed": allowed}

    def _array(self, x: NDArray[Any]) -> Any:
        """An array as updates use them: NumPy's on the CPU, else a tensor on the device."""
        return on_device(x, self.device)

    def _inputs(self, obs: Any) -> Any:
        """Observations ``[B, ...]`` as the networks take them: float32 ``[B, n]``, and bytes 0..255 as 0..1."""
        if self._as_they_are:
            return obs
        x = np.asarray(obs, np.float32) if isinstance(obs, np.ndarray) else obs.float()
        x = x.reshape(len(x), -1)
        return x if self._input_scale is None else x * np.float32(self._input_scale)

    def _sample(self) -> Batch:
        """A batch, with its observations as the networks take them."""
        c: Any = self.config
        batch, self._next_allowed = self.buffer.sample(c.batch_size), None
        if isinstance(batch.obs, dict) and "allowed" in batch.obs:
            self._next_allowed = batch.next_obs["allowed"]
            batch = batch._replace(obs=batch.obs["obs"], next_obs=batch.next_obs["obs"])
        if self._packed is not None:
            batch = batch._replace(obs=self._packed.unpack(batch.obs), next_obs=self._packed.unpack(batch.next_obs))
        if self._as_they_are:
            return batch
        return batch._replace(obs=self._inputs(batch.obs), next_obs=self._inputs(batch.next_obs))

    def _forward(self, network: Any, obs: NDArray[Any], *more: Any) -> NDArray[np.float32]:
        """The network's output for observations ``[B, ...]``, and what it takes besides, as NumPy."""
        x = self._inputs(np.asarray(obs, np.float32))
        result: NDArray[np.float32] = to_numpy(network.forward(self._array(x), *more))
        return result

    def _begin(self, schedule_steps: int) -> None:
        c: Any = self.config
        super()._begin(schedule_steps)
        self._span_beta()
        if c.learning_starts >= schedule_steps:
            warnings.warn(
                f"learning_starts is {c.learning_starts}, so nothing is learned in {schedule_steps} steps", stacklevel=3
            )

    @abstractmethod
    def _act(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Actions ``[B, ...]`` of the exploring policy, as the buffer keeps them, for observations ``[B, ...]``."""

    @abstractmethod
    def _update(self) -> None:
        """One gradient step on a batch from the buffer."""

    def _to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        """Actions as the environment takes them, from those of `_act`."""
        return action

    def _kept_besides(self) -> dict[str, Any]:
        """What an algorithm's buffer keeps of a step besides the transition, as keywords of its `add`."""
        return {}

    def _after_step(self, transition: Transition) -> None:
        """For what an algorithm keeps from step to step besides the buffer."""

    def _iterate(self) -> None:
        c: Any = self.config
        obs = self.envs.obs
        if self._reached is not None and obs is not self._reached:
            self._new_episodes()  # somebody has reset the environments since
        allowed, action = self.envs.allowed, self._act(obs, self.rng)
        t = self.envs.step(self._to_env(action))
        self._reached = self.envs.obs
        kept, kept_next = self._kept(obs, allowed), self._kept(t.next_obs, t.next_allowed)
        self.buffer.add(kept, action, t.reward, kept_next, t.terminated, t.truncated, t.mask, **self._kept_besides())
        self._after_step(t)
        before, self.steps = self.steps, self.steps + c.num_envs
        if self.on_step is not None:
            self.on_step()
        rounds = self.steps // c.train_every - before // c.train_every  # several environments may need several
        if self.steps > c.learning_starts:
            for _ in range(rounds * c.updates):
                self._update()

    def _learned(self, batch: Batch, q: QLoss) -> None:
        """Keep an update's numbers for the log, and give its transitions their priorities, |TD error|."""
        self._last["loss"], self._last["mean_q"] = q.loss, q.mean_q
        if self._weighted:
            check_loss(float(q.loss), self.steps)  # no priority can be made of a NaN
            self._prioritize(batch, self._td_errors(q))

    @property
    def _weighted(self) -> bool:
        """Is replay prioritized?"""
        return isinstance(self.buffer, PrioritizedReplay)

    def _td_errors(self, q: QLoss) -> Any:
        """The TD errors ``[B]``, of twin critics the mean of both."""
        return q.td_errors if q.td_errors.ndim == 1 else abs(q.td_errors).mean(0)

    def _prioritize(self, batch: Batch, errors: Any) -> None:
        """Give the batch's transitions the priorities of these TD errors."""
        assert isinstance(self.buffer, PrioritizedReplay)
        self.buffer.update_priorities(batch.indices, errors)

    def metrics(self) -> dict[str, float]:
        """For the logs: numbers of the last update, and the learning rate now."""
        self._log |= {name: float(value) for name, value in self._last.items()}
        return super().metrics()

    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        self.metrics()  # brings the log up to date
        return super()._state()

    def _load_state(self, state: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        super()._load_state(state, tensors)
        self._span_beta()

    def _span_beta(self) -> None:
        c: Any = self.config
        if isinstance(self.buffer, PrioritizedReplay) and c.per_beta_steps is None and self.schedule_steps:
            self.buffer._beta_steps = self.schedule_steps

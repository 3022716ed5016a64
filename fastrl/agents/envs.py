"""Gymnasium environments as the training loops see them: vectorised, one meaning of `next_obs`, restorable."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray

from fastrl.agents.config import InputError

Array = NDArray[Any]
KEPT_ACTIONS = 100_000  # of an episode; the state of a longer one is not restored


class Transition(NamedTuple):
    """What one step of N environments did.  `next_obs` is the observation really reached, never that of a reset."""

    next_obs: Array  # [N, *observation]
    reward: NDArray[np.float64]  # [N]
    terminated: NDArray[np.bool_]  # [N]
    truncated: NDArray[np.bool_]  # [N]
    mask: NDArray[np.bool_] | None  # [N]; False: a reset, not a transition (NEXT_STEP autoreset); None: all True


def make_env(spec: str | EnvSpec) -> gym.Env[Any, Any]:
    """`gymnasium.make` with its errors (unknown name, missing package) as a one-line InputError."""
    try:
        return gym.make(spec)
    except (gym.error.Error, ImportError, ValueError) as error:
        name = spec if isinstance(spec, str) else spec.id
        raise InputError(f"cannot make environment {name!r}: {' '.join(str(error).split())}") from error


class Envs:
    """N environments with Gymnasium's three autoreset modes made alike, the episodes counted and the state saved.

    `env` is an id, an environment (N = 1) or a vector environment in any autoreset mode.  `obs` is always the
    observation to act on now.

    A saved state holds, for every environment, its random generator as of just before the episode's reset and the
    actions taken since; loading replays them, which brings wrappers back too, and compares the observation reached
    bit for bit.  That needs sub-environments that are at hand and reset from here: those made from an id or a single
    environment, and any SyncVectorEnv with autoreset DISABLED.  An episode of more than KEPT_ACTIONS steps is not
    brought back: its actions would fill memory and checkpoints without end.
    """

    def __init__(self, env: str | gym.Env[Any, Any] | VectorEnv[Any, Any, Any], num_envs: int, seed: int) -> None:
        if isinstance(env, VectorEnv):
            self.vec = env
        else:
            makers: list[Callable[[], gym.Env[Any, Any]]] = (
                [lambda: make_env(env)] * num_envs if isinstance(env, str) else [lambda: env]
            )
            # DISABLED: no step is spent on a reset, and the generator can be read just before one.
            self.vec = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
        self.num_envs = int(self.vec.num_envs)  # a NumPy integer could not be saved
        self.mode = AutoresetMode(self.vec.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self.observation_space = self.vec.single_observation_space
        self.action_space = self.vec.single_action_space
        self.made_from_id = isinstance(env, str)
        # Of an environment object: with its wrappers, if they can be made again.
        self.spec = env if isinstance(env, str) else _spec(self.vec)
        self.env_id = self.spec.id if isinstance(self.spec, EnvSpec) else self.spec
        self.restorable = isinstance(self.vec, SyncVectorEnv) and self.mode == AutoresetMode.DISABLED
        self.episodes = 0  # that have ended
        self.recent: deque[tuple[float, int]] = deque(maxlen=100)  # (return, length) of the last of them
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._done = np.zeros(self.num_envs, np.bool_)
        space = self.observation_space
        self._floats = isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating)
        self._rng_states: list[Any] = [None] * self.num_envs
        self._actions: list[list[Any]] = [[] for _ in range(self.num_envs)]
        # Vector environments with copy=False write the next observations where these are.
        self._copy = not getattr(self.vec, "copy", True)
        self.obs = self._own(self.vec.reset(seed=seed)[0])
        if self.restorable:  # a second reset, from the generator's state instead of a seed, as all later ones
            self._reset(np.ones(self.num_envs, np.bool_))
        self._check_finite(self.obs, np.zeros(1))

    def reset(self) -> None:
        """Begin a new episode in every environment; the running ones are abandoned."""
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._done[:] = False
        if self.restorable:
            self._reset(np.ones(self.num_envs, np.bool_))
        else:
            self.obs = self._own(self.vec.reset()[0])
        self._check_finite(self.obs, np.zeros(1))

    def step(self, actions: Array) -> Transition:
        """Take one step in every environment, and reset those whose episode ends."""
        obs, reward, terminated, truncated, info = self.vec.step(actions)
        obs = self._own(obs)
        self._check_finite(obs, reward)
        self._returns += reward
        self._lengths += 1
        if self.restorable:
            for log, action in zip(self._actions, actions, strict=True):
                if len(log) <= KEPT_ACTIONS:  # one more shows that there were too many
                    log.append(action)
        mask = None
        if self.mode == AutoresetMode.NEXT_STEP and self._done.any():
            mask = ~self._done
            self._returns[self._done] = 0.0
            self._lengths[self._done] = 0
        next_obs = self.obs = obs
        done = self._done = terminated | truncated
        if done.any():
            self.episodes += int(done.sum())
            self.recent.extend(zip(self._returns[done].tolist(), self._lengths[done].tolist(), strict=True))
            if self.mode == AutoresetMode.SAME_STEP:
                next_obs = obs.copy()
                for i in np.flatnonzero(done):
                    next_obs[i] = info["final_obs"][i]
                self._check_finite(next_obs, reward)
            elif self.mode == AutoresetMode.DISABLED:
                self._reset(done)
            if self.mode != AutoresetMode.NEXT_STEP:
                self._returns[done] = 0.0
                self._lengths[done] = 0
        return Transition(next_obs, reward, terminated, truncated, mask)

    def _own(self, obs: Array) -> Array:
        return np.array(obs) if self._copy else obs

    def _check_finite(self, obs: Array, reward: NDArray[np.float64]) -> None:
        """Raise InputError for a NaN or infinity, from which nothing can be learned."""
        total = reward.sum() + (obs.sum() if self._floats else 0.0)
        if not math.isfinite(total):  # one of them, or the sum has overflowed
            for name, values in (("reward", reward), ("observation", obs)):
                bad = values[~np.isfinite(values)]
                if len(bad):
                    raise InputError(f"the {name} of {self.env_id or 'this environment'} must be finite, got {bad[0]}")

    def _reset(self, which: NDArray[np.bool_]) -> None:
        if self.restorable:
            for i in np.flatnonzero(which):
                self._rng_states[i] = self._sub_envs[i].unwrapped.np_random.bit_generator.state
                self._actions[i] = []
        self.obs = self._own(self.vec.reset(options={"reset_mask": which})[0])

    @property
    def _sub_envs(self) -> list[gym.Env[Any, Any]]:
        assert isinstance(self.vec, SyncVectorEnv)
        return self.vec.envs

    def state_dict(self) -> dict[str, Any]:
        """JSON types only, without `obs`, which the caller keeps as an array."""
        restorable = self.restorable and max(map(len, self._actions)) <= KEPT_ACTIONS
        return {
            "num_envs": self.num_envs,
            "restorable": restorable,
            "episodes": self.episodes,
            "recent": list(self.recent),
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "rng_states": list(self._rng_states),
            "actions": [np.asarray(actions).tolist() for actions in self._actions] if restorable else [],
        }

    def load_state_dict(self, state: dict[str, Any], obs: Array) -> bool:
        """Go back to the saved moment; False: impossible, so new episodes have begun.

        Impossible for another number of environments, for some not made from an id, for some that do not repeat
        themselves, and in an episode of more than KEPT_ACTIONS steps.
        """
        self.episodes = state["episodes"]
        self.recent.extend((r, n) for r, n in state["recent"])
        if not (self.restorable and state["restorable"] and state["num_envs"] == self.num_envs):
            return False
        self._rng_states, self._actions = state["rng_states"], []
        reached = []
        for env, rng_state, actions in zip(self._sub_envs, self._rng_states, state["actions"], strict=True):
            env.unwrapped.np_random.bit_generator.state = rng_state
            last, _ = env.reset()
            # The same action types as SyncVectorEnv passes on.
            batch = np.asarray(actions, self.action_space.dtype).reshape(len(actions), *(self.action_space.shape or ()))
            self._actions.append(list(batch))
            for action in iterate(batch_space(self.action_space, len(actions)), batch) if actions else ():
                last, *_ = env.step(action)
            reached.append(np.asarray(last))
        if np.stack(reached).tobytes() != obs.tobytes():
            self._reset(np.ones(self.num_envs, np.bool_))
            return False
        self.obs = obs
        self._returns = np.asarray(state["returns"], np.float64)
        self._lengths = np.asarray(state["lengths"], np.int64)
        return True


def _spec(vec: VectorEnv[Any, Any, Any]) -> EnvSpec | None:
    """How to make one of the environments again, if that is known."""
    if isinstance(vec, SyncVectorEnv):
        return vec.envs[0].spec
    if vec.spec is None or "wrappers" in vec.spec.kwargs:
        return None
    spec = copy.deepcopy(vec.spec)
    for name in ("num_envs", "vectorization_mode", "vector_kwargs"):  # make_vec's, of the vector
        spec.kwargs.pop(name, None)
    if spec.kwargs.get("max_episode_steps") == spec.max_episode_steps:  # a vector_entry_point has no TimeLimit wrapper
        spec.kwargs.pop("max_episode_steps", None)
    return spec

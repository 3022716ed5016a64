"""What environments hand over, checked and converted; and single environments, stepped one after another."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fastrl.agents.config import InputError
from fastrl.agents.env_rewards import meter_of
from fastrl.agents.env_statistics import normalising, read, typed, write
from fastrl.agents.masks import KEY, MaskReader, Masks, source_of
from fastrl.agents.spaces import Flattened

Array = NDArray[Any]
KEPT_ACTIONS = 100_000  # of an episode; the state of a longer one is not restored
CHECK_ENV = "gymnasium.utils.env_checker.check_env tells more"
RETURNS = {
    "reset": "reset() must take seed= and return (obs, info)",
    "step": "step() must return (obs, reward, terminated, truncated, info)",
}
# An exception that arises here (or in libraries called from here), not in the environment itself, says that the
# environment does not keep to the API.
LIBRARIES = {"functools", "jax", "numpy", "torch"}
HOSTS = (
    "fastrl.agents.env",
    "fastrl.agents.evaluation",
    "gymnasium.core",
    "gymnasium.utils",
    "gymnasium.vector.sync_vector_env",
    "gymnasium.vector.utils",
    "gymnasium.vector.vector_env",
    "gymnasium.wrappers",
)
FLOAT64, BOOL = np.dtype(np.float64), np.dtype(np.bool_)
# float32 is what buffers, rollouts and networks hold.
LARGEST_SQUARE = float(np.finfo(np.float32).max) ** 2


def explain(error: Exception, call: str, name: str) -> NoReturn:
    """Raise `error`, or an InputError if it shows that an environment's `call` is not Gymnasium's."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = next(module for module in reversed(modules) if module.split(".")[0] not in LIBRARIES)
    if isinstance(error, InputError) or not module.startswith(HOSTS):
        raise error
    raise InputError(f"{name}: {RETURNS[call]}: {' '.join(str(error).split())}; {CHECK_ENV}") from error


def check_finite(values: Array, what: str, name: str) -> None:
    """Raise InputError for floats that are NaN, infinite or too large for float32: nothing can be learned from them."""
    if not float(np.vdot(values, values)) <= LARGEST_SQUARE:  # one of them, or only many large ones
        with np.errstate(over="ignore"):
            bad = values[~np.isfinite(values.astype(np.float32))]
        if bad.size:
            where = "finite in float32" if np.isfinite(bad[0]) else "finite"
            raise InputError(f"the {what} of {name} must be {where}, got {bad[0]}")


def to_numpy(x: Any) -> Array:
    """An array of any library, or a list, as NumPy; it may share memory."""
    if hasattr(x, "detach"):  # torch, on whatever device
        x = x.detach().cpu()
    return np.asarray(x)


def own_array(x: Any, shape: tuple[int, ...], dtype: np.dtype[Any], what: str, name: str) -> Array:
    """A copy of `x`, which the environment may reuse, in the shape and dtype of its space.

    Raises InputError for another shape, and for values that the dtype cannot hold.
    """
    if x.__class__ is np.ndarray and x.dtype == dtype and x.shape == shape:
        copied: Array = x.copy()
        return copied
    try:
        array = to_numpy(x)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"the {what} of {name} must be an array: {error}") from error
    if array.shape != shape:
        raise InputError(f"the {what} of {name} must have shape {shape}, got {array.shape}; {CHECK_ENV}")
    if np.can_cast(array.dtype, dtype):
        return array.astype(dtype)
    if array.dtype.kind == dtype.kind == "f":
        check_finite(array, what, name)  # while the values are the environment's
    try:
        with np.errstate(all="ignore"):
            converted = array.astype(dtype)
            same = np.can_cast(array.dtype, dtype, "same_kind") or dtype.kind == "b" or (converted == array).all()
    except (TypeError, ValueError):
        same = False
    if not same:
        raise InputError(f"the {what} of {name} must be {dtype} like its space, got {array.dtype}; {CHECK_ENV}")
    return converted


class EnvLoop:
    """Single environments, driven as by a plain loop of reset() and step(): nothing is asked of them but that.

    So infos are not read but for action masks, if there is a `reader`, nobody's arrays are kept, and no environment is
    reset but by `reset`.  What is kept is how to get back to this moment: of every environment the random generator,
    and the running statistics of Gymnasium's normalising wrappers, as of just before the episode's reset, and the
    actions taken since.

    `masks`: ``[N, K]`` of the last observations, in an array that is not changed later; None: there are none.
    `paid`: ``[N]``, what the environments themselves paid in the last step (`env_rewards`).
    """

    def __init__(
        self,
        envs: Sequence[gym.Env[Any, Any]],
        name: str,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        flat: Flattened | None = None,
        reader: MaskReader | None = None,
    ) -> None:
        self.envs, self.name, self._flat = list(envs), name, flat
        self.masks: Masks | None = None
        self._reader = reader
        self._sources: list[Any] = []  # of the masks
        self._shape: tuple[int, ...] = observation_space.shape or ()
        self._dtype: Any = observation_space.dtype
        self._action_space = action_space
        self._statistics = [normalising(env) for env in self.envs]
        self._meters = [meter_of(env) for env in self.envs]
        self.paid = np.zeros(len(self.envs))
        self._starts: list[dict[str, Any] | None] = [None] * len(self.envs)
        self._actions: list[list[Any]] = [[] for _ in self.envs]
        self._generators = False  # has every one a NumPy Generator? Known after the first reset.

    def seed(self, seed: int, *, again: bool) -> Array:
        """Reset environment i with ``seed + i``; the observations ``[N, ...]``.

        `again`: reset once more, from the generators' states instead of a seed, as all later resets.
        """
        obs = self._empty()
        for i in range(len(self.envs)):
            obs[i] = self._reset(i, seed=seed + i)
        self._generators = all(generator_of(env) is not None for env in self.envs)
        if again and self._generators:
            obs = self.reset(range(len(self.envs)), obs)
        return obs

    def reset(self, which: Iterable[int], obs: Array | None = None) -> Array:
        """Begin an episode in these environments; `obs` ``[N, ...]`` with their rows replaced, in a new array."""
        obs = self._empty() if obs is None else obs.copy()
        self.masks = None if self.masks is None else self.masks.copy()
        for i in which:
            self._starts[i], self._actions[i] = self._start(i), []
            obs[i] = self._reset(i)
        return obs

    def step(self, actions: Array) -> tuple[Array, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Take a step in every environment with its row of `actions`, which it may keep or change."""
        n = len(self.envs)
        obs, reward, terminated, truncated = self._empty(), np.empty(n), np.empty(n, np.bool_), np.empty(n, np.bool_)
        kept = actions.copy() if actions.ndim > 1 else actions  # of one dimension, the rows are numbers
        self.masks = None if self.masks is None else self.masks.copy()
        for i in range(n):
            obs[i], reward[i], terminated[i], truncated[i] = self._step(i, actions[i])
        self.paid = np.array([self._paid(i, reward[i]) for i in range(n)]) if any(self._meters) else reward
        if self._generators:
            for log, action in zip(self._actions, kept, strict=True):
                if len(log) <= KEPT_ACTIONS:  # one more shows that there were too many
                    log.append(action)
        return obs, reward, terminated, truncated

    @property
    def restorable(self) -> bool:
        """Can this moment be saved?"""
        return self._generators and None not in self._starts and max(map(len, self._actions)) <= KEPT_ACTIONS

    def state_dict(self) -> dict[str, Any]:
        """JSON types only."""
        starts = [start or {} for start in self._starts]
        return {
            "rng_states": [_plain(start.get("rng")) for start in starts],
            "statistics": [[typed(s) for s in start.get("statistics", [])] for start in starts],
            "actions": [np.asarray(actions).tolist() for actions in self._actions] if self.restorable else [],
        }

    def replay(self, state: dict[str, Any], obs: Array, returns: Sequence[float]) -> bool:
        """Go back to a saved moment, with the observations ``[N, ...]`` and returns ``[N]`` of then; False: impossible.

        After that, new episodes have to begin.
        """
        if "compiled" in state:  # a `CompiledLoop`'s
            return False
        reached, again = self._empty(), [0.0] * len(self.envs)
        statistics = state.get("statistics") or [[] for _ in self.envs]
        for i, env in enumerate(self.envs):
            generator = generator_of(env)
            if generator is None or len(statistics[i]) != len(self._statistics[i]):
                return False
            try:
                generator.bit_generator.state = state["rng_states"][i]
            except (TypeError, ValueError, KeyError):  # of another kind
                return False
            for wrapper, saved in zip(self._statistics[i], statistics[i], strict=True):
                write(wrapper, saved)
            self._starts[i] = self._start(i)
            reached[i] = self._reset(i)
            actions = state["actions"][i]
            shape = self._action_space.shape or ()
            batch = np.asarray(actions, self._action_space.dtype).reshape(len(actions), *shape)
            self._actions[i] = list(batch)
            for action in batch.copy():
                reached[i], reward, *ended = self._step(i, action)
                if any(ended):
                    return False
                again[i] += self._paid(i, reward)
        return reached.tobytes() == obs.tobytes() and again == list(returns)

    def _empty(self) -> Array:
        return np.empty((len(self.envs), *self._shape), self._dtype)

    def _reset(self, i: int, **kwargs: Any) -> Array:
        try:
            result = self.envs[i].reset(**kwargs)
        except Exception as error:
            explain(error, "reset", self.name)
        if not isinstance(result, tuple) or len(result) != 2:
            got = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
            raise InputError(f"{self.name}: {RETURNS['reset']}, got {got}; {CHECK_ENV}")
        if self._reader is not None:
            self._read_mask(i, result[1])
        self._paid(i, 0.0)  # a reset that takes steps is no part of the episode
        return self._row(result[0])

    def _paid(self, i: int, reward: float) -> float:
        meter = self._meters[i]
        return reward if meter is None else float(meter.take(reward))

    def _step(self, i: int, action: Any) -> tuple[Array, float, bool, bool]:
        reward: Any
        try:
            obs, reward, terminated, truncated, info = self.envs[i].step(action)
            if reward.__class__ is not float:
                if np.ndim(reward):
                    got = f"an array of shape {np.shape(reward)}"
                    raise InputError(f"the reward of {self.name} must be a number, got {got}; {CHECK_ENV}")
                reward = float(reward)
            if self._reader is not None:
                self._read_mask(i, info, bool(terminated or truncated))
            return self._row(obs), reward, bool(terminated), bool(truncated)
        except Exception as error:
            explain(error, "step", self.name)

    def _read_mask(self, i: int, info: Any, ended: bool = False) -> None:
        """Write row i of the masks, which all environments have if the first one has one at its first reset."""
        assert self._reader is not None
        if len(self._sources) <= i:
            self._sources.append(source_of(self.envs[i], info))
            if i == 0 and self._sources[0] is not None:
                self.masks = np.ones((len(self.envs), self._reader.size), np.bool_)
        if self.masks is not None:
            source = self._sources[i]
            self.masks[i] = self._reader(None if source is None else source(info), ended)
        elif isinstance(info, Mapping) and KEY in info:
            raise InputError(f'{self.name}: info["{KEY}"] must be there at reset too, not only at step')

    def _row(self, obs: Any) -> Array:
        if self._flat is not None:
            return self._flat(obs, f"the observation of {self.name}")
        if obs.__class__ is np.ndarray and obs.dtype == self._dtype and obs.shape == self._shape:
            row: Array = obs  # copied at once
            return row
        return own_array(obs, self._shape, self._dtype, "observation", self.name)

    def _start(self, i: int) -> dict[str, Any] | None:
        """Where the next reset of environment i begins."""
        generator = generator_of(self.envs[i]) if self._generators else None
        if generator is None:
            return None
        statistics = [read(wrapper) for wrapper in self._statistics[i]]
        return {"rng": generator.bit_generator.state, "statistics": statistics}


def generator_of(env: gym.Env[Any, Any]) -> np.random.Generator | None:
    """The environment's random generator, if it is one whose state can be read and set."""
    try:
        generator = env.unwrapped.np_random
    except Exception:
        return None
    return generator if isinstance(generator, np.random.Generator) else None


def _plain(x: Any) -> Any:
    """The state of a generator as JSON has it; what it is set from may have lists for arrays."""
    if isinstance(x, dict):
        return {name: _plain(value) for name, value in x.items()}
    return x.tolist() if isinstance(x, np.ndarray) else x

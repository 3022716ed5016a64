"""Gymnasium environments as the training loops see them: vectorised, one meaning of `next_obs`, restorable."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from numpy.typing import NDArray

from fastrl.agents.compiled_envs import CompiledLoop, make_compiled
from fastrl.agents.config import InputError, warn
from fastrl.agents.env_config import EnvConfig, make_plain
from fastrl.agents.env_loop import (
    BOOL,
    FLOAT64,
    RETURNS,
    Array,
    EnvLoop,
    check_finite,
    explain,
    generator_of,
    own_array,
    to_numpy,
)
from fastrl.agents.env_rewards import VectorMeters, reward_wrappers
from fastrl.agents.env_statistics import Statistics, lent_statistics
from fastrl.agents.images import stacked_frames
from fastrl.agents.masks import Masks, VectorMasks, reader_of, vector_masks
from fastrl.agents.spaces import OnlySpaces, check_bytes, flattened

FINAL_OBS = ("final_obs", "final_observation")  # the second is the key of Gymnasium before 1.0


class Transition(NamedTuple):
    """What one step of N environments did.  `next_obs` is the observation really reached, never that of a reset."""

    next_obs: Array  # [N, *observation]
    reward: NDArray[np.float64]  # [N]
    terminated: NDArray[np.bool_]  # [N]
    truncated: NDArray[np.bool_]  # [N]
    mask: NDArray[np.bool_] | None  # [N]; False: a reset, not a transition (NEXT_STEP autoreset); None: all True
    next_allowed: Masks | None = None  # [N, K], the action masks of next_obs; None: all actions are allowed


def make_env(spec: str | EnvSpec | EnvConfig, **kwargs: Any) -> gym.Env[Any, Any]:
    """`gymnasium.make` with its errors (unknown name, missing package) as a one-line InputError."""
    return spec.make(**kwargs) if isinstance(spec, EnvConfig) else make_plain(spec, kwargs)


class Envs:
    """N environments with Gymnasium's three autoreset modes made alike, the episodes counted and the state saved.

    `env` is an id, an `EnvConfig`, an environment (N = 1) or a vector environment in any autoreset mode.  `obs` is
    always the observation to act on now, in an array that is nobody else's.

    The environments of `fastrl.envs`, made from an id, are stepped together, and a saved state holds theirs.  Other
    single environments, and those of a SyncVectorEnv without NEXT_STEP autoreset, are stepped and reset from here, and
    can be brought back: a saved state holds the random generator as of just before the episode's reset and the actions
    taken since; loading replays them, which brings wrappers back too, and compares the observation and the return that
    are reached bit for bit.  An episode of more than KEPT_ACTIONS steps is not brought back: its actions would fill
    memory and checkpoints without end.

    `seeded`: did the user ask for this seed?  Then what ignores it may say so.
    `flatten`: observations that are not of a Box, as one.
    `masks`: read action masks, where there are some: `allowed` ``[N, K]`` are those of `obs`, else None.
    """

    def __init__(
        self,
        env: str | EnvConfig | gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
        num_envs: int,
        seed: int,
        *,
        seeded: bool = True,
        flatten: bool = True,
        masks: bool = False,
    ) -> None:
        self.made_from_id = isinstance(env, (str, EnvConfig))
        self._open: list[Any] = []  # what `close` closes
        if self.made_from_id:
            weakref.finalize(self, _close, self._open)
        self._loop: EnvLoop | CompiledLoop | None = None
        self.mode: AutoresetMode | None = AutoresetMode.DISABLED  # None: not known before an episode ends
        if isinstance(env, VectorEnv):
            self._open.append(env)
            self.mode = _mode(env)
            self.spec: str | EnvSpec | EnvConfig | None = _spec(env)
        else:
            compiled = make_compiled(env, num_envs) if isinstance(env, (str, EnvConfig)) else None
            for _ in range(num_envs if self.made_from_id and compiled is None else 1):
                self._open.append(compiled or (make_env(env) if isinstance(env, (str, EnvConfig)) else env))
            # Of an environment object: with its wrappers, if they can be made again.
            self.spec = env if isinstance(env, (str, EnvConfig)) else _env_spec(env)
        self.env_id = self.spec.id if isinstance(self.spec, (EnvSpec, EnvConfig)) else self.spec
        self.absent = isinstance(env, OnlySpaces)
        if isinstance(env, OnlySpaces):
            self.env_id = env.env_id
        self.name = self.env_id or name_of(env)  # in errors
        self._check_spaces(flatten)
        space, flat = self.observation_space, self.flattened
        reader = reader_of(self.action_space, self.name) if masks else None
        if isinstance(env, VectorEnv):
            self.num_envs = int(env.num_envs)  # a NumPy integer could not be saved
            plain = type(env).step is SyncVectorEnv.step and type(env).reset is SyncVectorEnv.reset
            if isinstance(env, SyncVectorEnv) and plain and self.mode != AutoresetMode.NEXT_STEP:
                # SAME_STEP comes to the same, and its final_obs are the environments' own arrays, which may be reused.
                self._loop = EnvLoop(env.envs, self.name, space, self.action_space, flat, reader)
        elif compiled is not None:
            self.num_envs, self._loop = num_envs, CompiledLoop(compiled)
        else:
            self.num_envs = len(self._open)
            self._loop = EnvLoop(self._open, self.name, space, self.action_space, flat, reader)
        self.vec: Any = self._open[0] if self._loop is None else self._loop
        self._meters = VectorMeters(self.vec, self._singles()) if self._loop is None else None
        wrappers = [w for outer in (self._open[0], *self._singles()[:1]) for w in reward_wrappers(outer)]
        self.changes_rewards = type(wrappers[-1]).__name__ if wrappers else ""  # the innermost; returns are beneath it
        self.frame_stack = 1 if flat is not None else stacked_frames(self._open[0])  # frames in an observation
        self.episodes = 0  # that have ended
        self.recent: deque[tuple[float, int]] = deque(maxlen=100)  # (return, length) of the last of them
        self.ended: Sequence[tuple[float, int]] = ()  # of those that the last step ended
        self.last: Transition | None = None  # the last step
        self.statistics = Statistics(self._open[0], self._singles())  # of normalising wrappers
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._done = np.zeros(self.num_envs, np.bool_)
        self._shape: tuple[int, ...] = space.shape or ()
        self._dtype: Any = space.dtype
        self._floats = isinstance(space, gym.spaces.Box) and np.issubdtype(self._dtype, np.floating)
        self.obs: Array = np.empty(0)
        self.allowed: Masks | None = None
        self._masks: VectorMasks | None = None  # of a vector environment that steps itself
        self._reader = reader
        if not isinstance(space, (gym.spaces.Box, gym.spaces.Discrete)):
            return  # agents refuse it, each in its own words
        if self._loop is not None:
            # A second reset makes the first episodes restorable too.
            self.obs = self._loop.seed(seed, again=self.mode == AutoresetMode.DISABLED)
            self.mode, self.allowed = AutoresetMode.DISABLED, self._loop.masks
        else:  # EnvPool warns of every seed
            self.obs = self._vector_reset(seed=seed if seeded or not _is_envpool(self.vec) else None)
        self._check_finite(self.obs)

    def reset(self) -> None:
        """Begin a new episode in every environment; the running ones are abandoned."""
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._done[:] = False
        if self._loop is not None:
            self.obs = self._loop.reset(range(self.num_envs))
            self.allowed = self._loop.masks
        else:
            self.obs = self._vector_reset()
        self._check_finite(self.obs)

    def step(self, actions: Array) -> Transition:
        """Take one step in every environment, and reset those whose episode ends.

        `actions` ``[N, ...]`` stay as they are; the environments get copies in the dtype of their space.
        """
        info: Any = {}
        sent = np.array(actions, self.action_space.dtype)
        if self._loop is not None:
            obs, reward, terminated, truncated = self._loop.step(sent)
            paid = self._loop.paid
        else:
            obs, reward, terminated, truncated, info = self._vector_step(sent)
            assert self._meters is not None
            paid = to_numpy(self._meters.take(reward))
        check_finite(reward, "reward", self.name)
        self._check_finite(obs)
        self._returns += paid
        self._lengths += 1
        mask = None
        if self.mode == AutoresetMode.NEXT_STEP and np.count_nonzero(self._done):  # much faster than any()
            mask = ~self._done
            self._returns[self._done] = 0.0
            self._lengths[self._done] = 0
        next_obs = self.obs = obs
        done = self._done = terminated | truncated
        self.ended = ()
        if self.mode is None and np.count_nonzero(done):
            self.mode = self._find_mode(info)
        next_allowed = self._take_masks(info, done)
        if np.count_nonzero(done):
            self.ended = list(zip(self._returns[done].tolist(), self._lengths[done].tolist(), strict=True))
            self.episodes += len(self.ended)
            self.recent.extend(self.ended)
            if self.mode == AutoresetMode.SAME_STEP:
                next_obs = self._final_obs(obs, info, done)
                self._check_finite(next_obs)
            elif self.mode == AutoresetMode.DISABLED:
                self.obs = self._reset(done)
                self._check_finite(self.obs)
            if self.mode != AutoresetMode.NEXT_STEP:
                self._returns[done] = 0.0
                self._lengths[done] = 0
        self.last = Transition(next_obs, reward, terminated, truncated, mask, next_allowed)
        return self.last

    def close(self) -> None:
        """Close the environments, the user's own too.

        Those made from an id are closed at the latest when this object goes, or the process ends.
        """
        _close(self._open)

    def same(self, env: gym.Env[Any, Any]) -> list[gym.Env[Any, Any]]:
        """Those of these environments that are `env`, whatever it is wrapped in."""
        return [own for own in self._singles() if own.unwrapped is env.unwrapped]

    @contextlib.contextmanager
    def lend_statistics(self, *envs: gym.Env[Any, Any], keep: bool = False) -> Iterator[None]:
        """While `envs` are evaluated, their normalising wrappers have what those of the first of these have learned."""
        learned = self.statistics.learned()
        with contextlib.ExitStack() as lent:
            complete = [lent.enter_context(lent_statistics(learned, env, keep)) for env in envs]
            if not all(complete):
                name = name_of(envs[0])
                warn(f"evaluate: env {name} lacks the NormalizeObservation that the agent was trained with")
            yield

    def _singles(self) -> list[gym.Env[Any, Any]]:
        """The single environments, where they are in this process."""
        inner: Any = self._loop or getattr(self.vec, "unwrapped", None)
        return list(getattr(inner, "envs", []))

    @contextlib.contextmanager
    def lend(self, env: gym.Env[Any, Any]) -> Iterator[bool]:
        """While `env` is played elsewhere; yields whether it is one of these.

        If it is, new episodes begin everywhere afterwards, from the random generators as they were.
        """
        own = self.same(env)
        generators = [generator_of(e) for e in own]
        try:
            yield bool(own)
        finally:
            for e, generator in zip(own, generators, strict=True):
                if generator is not None:
                    e.unwrapped.np_random = generator
            if own:
                self.reset()

    def _check_spaces(self, flatten: bool) -> None:
        single = "single_" if isinstance(self._open[0], VectorEnv) else ""
        for name in ("observation_space", "action_space"):
            spaces = [getattr(env, single + name, None) for env in self._open]
            if not isinstance(spaces[0], gym.Space):
                raise InputError(f"{self.name}: {single}{name} must be a gymnasium.Space, got {spaces[0]!r}")
            if any(space != spaces[0] for space in spaces):
                raise InputError(f"{self.name}: {name} must be the same every time it is made, got {spaces}")
        self.observation_space: gym.Space[Any] = getattr(self._open[0], single + "observation_space")
        self.action_space: gym.Space[Any] = getattr(self._open[0], single + "action_space")
        self.raw_space = self.observation_space  # what the environment gives and `predict` takes
        plain = isinstance(self.raw_space, gym.spaces.Box) or not flatten
        self.flattened = None if plain else flattened(self.raw_space)
        if self.flattened is not None:
            self.observation_space = self.flattened.space

    def _check_finite(self, obs: Array) -> None:
        if self._floats:
            check_finite(obs, "observation", self.name)

    def _reset(self, which: NDArray[np.bool_]) -> Array:
        """The observations with those of newly begun episodes, in a new array."""
        if self._loop is not None:
            obs = self._loop.reset(np.flatnonzero(which), self.obs)
            self.allowed = self._loop.masks
            return obs
        obs = self.obs.copy()
        obs[which] = self._vector_reset(options={"reset_mask": which.copy()})[which]
        return obs

    def given(self, obs: Any) -> tuple[Array, bool]:
        """An observation that the environment gives, or a batch of them, as ``[B, ...]``; and whether it is one.

        Raises InputError for what is neither, or is not finite.
        """
        flat = self.flattened
        returned = isinstance(obs, tuple) and obs and isinstance(obs[-1], dict)
        if returned and not isinstance(self.raw_space, gym.spaces.Tuple):
            raise InputError(
                "predict: obs must be an observation, got all that reset or step returned: obs, info = ..."
            )
        if flat is not None:
            n = flat.batch_of(obs)
            x: Array = np.zeros((0, flat.size), flat.dtype) if n == 0 else flat(obs, "predict: obs", n)
            one = n is None
        else:
            x = to_numpy(obs)
            if x.dtype.kind not in "fiub":
                raise InputError(f"predict: obs must be an array of numbers, got {_kind(x.dtype.type)}")
            check_bytes(self.raw_space, x, "predict: obs")
            one = x.shape == self._shape
            if not one and x.shape[1:] != self._shape:
                raise InputError(f"predict: obs must have shape {self._shape} or (B, *{self._shape}), got {x.shape}")
        # The first says much faster than the second that all are.
        if x.dtype.kind == "f" and not np.vdot(x, x) < np.inf and not (finite := np.isfinite(x)).all():
            raise InputError(f"predict: obs must be finite, got {x[~finite][0]}")
        return (x[None] if one else x), one

    def _own(self, obs: Any) -> Array:
        if self.flattened is not None:
            return self.flattened(obs, f"the observation of {self.name}", self.num_envs)
        return own_array(obs, (self.num_envs, *self._shape), self._dtype, "observation", self.name)

    def _vector_reset(self, **kwargs: Any) -> Array:
        try:
            result = self.vec.reset(**kwargs)
        except Exception as error:
            explain(error, "reset", self.name)
        if not isinstance(result, tuple) or len(result) != 2:
            raise InputError(f"{self.name}: {RETURNS['reset']}, got {type(result).__name__}")
        assert self._meters is not None
        self._meters.take(np.zeros(self.num_envs))  # a reset that takes steps is no part of an episode
        if self._masks is not None:
            which = (kwargs.get("options") or {}).get("reset_mask")
            self._masks.begin(result[1], np.ones(self.num_envs, np.bool_) if which is None else which)
            self.allowed = self._masks.now
        elif not self.obs.size:  # the first
            self._masks = vector_masks(self._reader, self.vec, self.num_envs, result[1])
            self.allowed = None if self._masks is None else self._masks.now
        return self._own(result[0])

    def _take_masks(self, info: Any, done: NDArray[np.bool_]) -> Masks | None:
        """Those of the observations to act on, as far as they are known; returns those of the ones really reached."""
        if self._masks is None:
            self.allowed = None if self._loop is None else self._loop.masks
            return self.allowed
        reached = self._masks.step(info, done, self.mode == AutoresetMode.SAME_STEP)
        self.allowed = self._masks.now
        return reached

    def _vector_step(self, actions: Array) -> tuple[Array, Array, Array, Array, Any]:
        try:
            obs, reward, terminated, truncated, info = self.vec.step(actions)
        except Exception as error:
            explain(error, "step", self.name)
        shape = (self.num_envs,)
        return (
            self._own(obs),
            own_array(reward, shape, FLOAT64, "reward", self.name),
            own_array(terminated, shape, BOOL, "terminated flag", self.name),
            own_array(truncated, shape, BOOL, "truncated flag", self.name),
            info,
        )

    def _final_obs(self, obs: Array, info: Any, done: NDArray[np.bool_]) -> Array:
        """The observations ``[N, ...]`` really reached, with SAME_STEP autoreset."""
        rows, next_obs = _final_rows(info), obs.copy()
        for i in np.flatnonzero(done):
            if rows is None or rows[i] is None:
                what = " and ".join(f"info[{key!r}]" for key in FINAL_OBS)
                raise InputError(f"{self.name}: with SAME_STEP autoreset {what} must not both be missing at an end")
            if self.flattened is None:
                next_obs[i] = own_array(rows[i], self._shape, self._dtype, "final observation", self.name)
            else:
                next_obs[i] = self.flattened(rows[i], f"the final observation of {self.name}")
        return next_obs

    def _find_mode(self, info: Any) -> AutoresetMode:
        """The autoreset mode of which the metadata say nothing, at the first end of an episode."""
        if _final_rows(info) is not None:
            return AutoresetMode.SAME_STEP
        raise InputError(
            f"{self.name}: metadata has no autoreset_mode and info no final_obs, so it is unknown when a new episode "
            'begins; set env.metadata = {**env.metadata, "autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP} '
            "(or SAME_STEP, or DISABLED)"
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON types only, without `obs`, which the caller keeps as an array."""
        loop: dict[str, Any] = {"rng_states": [], "actions": []}
        if self._loop is not None:
            loop = self._loop.state_dict()
        return {
            "num_envs": self.num_envs,
            "restorable": self._loop is not None and self._loop.restorable,
            "episodes": self.episodes,
            "recent": list(self.recent),
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "learned": self.statistics.state(),
            **loop,
        }

    def load_state_dict(self, state: dict[str, Any], obs: Array) -> bool:
        """Go back to the saved moment; False: impossible, so new episodes have begun.

        Impossible for another number of environments, for some not made from an id, for some that do not repeat
        themselves, and in an episode of more than KEPT_ACTIONS steps.  Running statistics come back even then.
        """
        self.episodes = state["episodes"]
        self.recent.extend((r, n) for r, n in state["recent"])
        replays = self._loop is not None and state["restorable"] and state["num_envs"] == self.num_envs
        if not (self._loop and replays and self._loop.replay(state, obs, state["returns"])):
            if self.load_statistics(state) or replays:
                self.reset()
            return False
        self.obs, self.allowed = obs, self._loop.masks
        self._returns = np.asarray(state["returns"], np.float64)
        self._lengths = np.asarray(state["lengths"], np.int64)
        return True

    def load_statistics(self, state: Mapping[str, Any]) -> bool:
        """Give normalising wrappers the saved statistics; False: there are none.  Episodes are not begun anew."""
        # Earlier versions kept those of the episode's start alone.
        given, complete = self.statistics.load(state.get("learned", state.get("statistics")) or [])
        if not (complete or self.absent):
            warn(f"env {self.name} lacks the NormalizeObservation that the agent was trained with")
        return given


def _close(environments: list[Any]) -> None:
    while environments:
        environments.pop().close()


def name_of(env: Any) -> str:
    """What errors call an environment without an id."""
    env = getattr(env, "unwrapped", env)
    return type(env.envs[0].unwrapped if isinstance(env, SyncVectorEnv) else env).__name__


def _is_envpool(vec: Any) -> bool:
    return any(cls.__module__.startswith("envpool.") for cls in type(vec).__mro__)


def _mode(vec: VectorEnv[Any, Any, Any]) -> AutoresetMode | None:
    """When `vec` begins new episodes; None: its metadata do not say."""
    metadata, inner = vec.metadata or {}, vec.unwrapped
    mode = metadata.get("autoreset_mode")
    of_class = metadata is getattr(type(inner), "metadata", None)  # another instance may have written there: ale-py's
    # Gymnasium 1.1's are those of the class of the environments in it.
    if of_class or (isinstance(inner, SyncVectorEnv | AsyncVectorEnv) and metadata is inner.metadata):
        mode = getattr(inner, "autoreset_mode", mode)
    if mode is None:  # EnvPool's metadata have it since 1.0
        return AutoresetMode.NEXT_STEP if _is_envpool(vec) else None
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        known = ", ".join(f"AutoresetMode.{m.name}" for m in AutoresetMode)
        raise InputError(f"{name_of(vec)}: metadata's autoreset_mode must be one of {known}, got {mode!r}") from error


def _final_rows(info: Any) -> Any:
    """By environment, the final observations of those whose episode ended; None: there are none."""
    if isinstance(info, Sequence):  # DictInfoToList
        listed = [next((one[key] for key in FINAL_OBS if key in one), None) for one in info]
        return None if all(row is None for row in listed) else listed
    rows = next((info[key] for key in FINAL_OBS if key in info), None)
    if isinstance(rows, Mapping):  # of Dict observations Gymnasium makes a dict of arrays
        return _by_environment(rows)
    return rows if rows is None or isinstance(rows, np.ndarray | Sequence) else to_numpy(rows)


def _by_environment(parts: Mapping[str, Any]) -> list[Any]:
    """A list of dicts, of a dict of arrays and, beside each, the mask ``_key`` of the environments that have one."""
    columns = {key: _by_environment(x) if isinstance(x, Mapping) else x for key, x in parts.items() if key[:1] != "_"}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _env_spec(env: gym.Env[Any, Any]) -> EnvSpec | None:
    return env.spec if isinstance(env.spec, EnvSpec) else None


def _spec(vec: VectorEnv[Any, Any, Any]) -> EnvSpec | None:
    """How to make one of the environments again, if that is known."""
    while isinstance(vec, VectorWrapper):
        if not isinstance(vec, (DictInfoToList, RecordEpisodeStatistics)):  # it may change what is seen, done or earned
            return None
        vec = vec.env
    if isinstance(vec, SyncVectorEnv):
        return _env_spec(vec.envs[0])
    if not isinstance(vec.spec, EnvSpec) or "wrappers" in vec.spec.kwargs:  # EnvPool's is of its own kind
        return None
    spec = copy.deepcopy(vec.spec)
    for name in ("num_envs", "vectorization_mode", "vector_kwargs", "autoreset_mode"):  # make_vec's, of the vector
        spec.kwargs.pop(name, None)
    # Of a vector_entry_point, which has no TimeLimit wrapper; of the others it is an argument of `make`, too.
    spec.max_episode_steps = spec.kwargs.pop("max_episode_steps", spec.max_episode_steps)
    return spec


def _kind(value: type) -> str:
    return f"the class {value.__name__}"

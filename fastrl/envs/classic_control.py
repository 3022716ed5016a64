"""Gymnasium's classic control environments as compiled vector environments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import utils
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from fastrl import _backend
from fastrl.envs import reference

Array = NDArray[Any]
LARGEST = 1e6  # of a state that is set: what comes of it stays finite
COLUMNS = ("state", "elapsed", "done", "fresh", "last_action")


class ClassicControlVectorEnv(VectorEnv[Array, Array, Array]):
    """N environments stepped in one compiled call, bit for bit as those of a `gymnasium.vector.SyncVectorEnv`.

    The same seed and actions give the same observations, rewards, flags and infos as Gymnasium's own environments under
    their TimeLimit, in all three autoreset modes: environment i is seeded with ``seed + i``, and new states are drawn
    from its own NumPy generator.  (Gymnasium 1.4 with NumPy 2 on x86-64 is what the tests hold this to.)

    Args:
        num_envs: N >= 1.
        max_episode_steps: steps after which an episode is truncated; None: as Gymnasium registers it; -1: never.
        render_mode: None or "rgb_array".
        autoreset_mode: `gymnasium.vector.AutoresetMode` or its value; in DISABLED mode ended episodes are reset by
            ``reset(options={"reset_mask": mask})``.

    Actions are int64 or int32 ``[N]``, or float32 ``[N, 1]``, which are clipped as Gymnasium's environments clip them.
    Observations are float32 ``[N, *]`` in new arrays, rewards float64 ``[N]``, flags bool ``[N]``.

    Raises:
        ValueError, TypeError: actions of another shape or dtype, outside a discrete space or not finite, bad seeds and
            options; nothing is changed then.
        gymnasium.error.ResetNeeded: a step before the first reset, or after the end of an episode in DISABLED mode.
    """

    name: ClassVar[str]
    _low: ClassVar[tuple[float, ...]]  # of new states
    _high: ClassVar[tuple[float, ...]]
    _state_size: ClassVar[int]
    _parameter: float = 0.0  # of the equations, which a subclass sets before it calls __init__

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        where = type(self).__name__
        self.num_envs = _integer(num_envs, f"{where}: num_envs", 1)
        if max_episode_steps is None:
            max_episode_steps = gym.spec(reference.GYMNASIUM[self.name][0]).max_episode_steps
        elif max_episode_steps != -1:
            max_episode_steps = _integer(max_episode_steps, f"{where}: max_episode_steps", 1)
        self._max_steps = 2**63 - 1 if max_episode_steps in (None, -1) else max_episode_steps
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"{where}: render_mode must be None or 'rgb_array', got {render_mode!r}")
        modes = {mode.value: mode for mode in AutoresetMode}
        if autoreset_mode not in (*modes, *modes.values()):
            raise ValueError(f"{where}: autoreset_mode must be one of {', '.join(modes)}, got {autoreset_mode!r}")
        self._mode, self.render_mode = AutoresetMode(autoreset_mode), render_mode
        self._env = reference.gymnasium_env(self.name, self._parameter, render_mode)
        self.metadata = {**self._env.metadata, "render_modes": ["rgb_array"], "autoreset_mode": self._mode}
        self.single_observation_space = self._env.observation_space
        self.single_action_space = self._env.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        n = self.num_envs
        self._columns: dict[str, Array] = {
            "state": np.zeros((n, self._state_size)),
            "elapsed": np.zeros(n, np.int64),
            "done": np.zeros(n, np.bool_),
            "fresh": np.zeros(n, np.bool_),
            "last_action": np.full(n, np.nan, np.float32),
        }
        self._generators: list[np.random.Generator] = []
        self._seeds: list[int | None] = [None] * n
        self._started = False
        self._make_core()

    def _make_core(self) -> None:
        cls = _core_class()
        self._defaults = np.array(self._low), np.array(self._high)
        self._core: Any = cls(
            self.name, *(self._columns[name] for name in COLUMNS), self._max_steps, self._mode.value,
            self._parameter, *self._defaults, np.sin, np.cos,
        )  # fmt: skip
        if self._generators:
            self._core.set_generators([g.bit_generator for g in self._generators])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_core", "_env")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._env = reference.gymnasium_env(self.name, self._parameter, self.render_mode)
        self._make_core()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin new episodes in all environments, or in those of ``options["reset_mask"]``, bool ``[N]``.

        Args:
            seed: environment i gets ``seed + i``, or ``seed[i]``; None: it goes on with its generator.
            options: besides "reset_mask" those of Gymnasium's environment: "low" and "high" ("x_init" and "y_init" of
                Pendulum), the bounds of the states to begin with.

        Returns:
            The observations ``[N, *]`` of all environments, and an empty info.
        """
        mask = self._reset_mask(options)
        others = {key: value for key, value in (options or {}).items() if key != "reset_mask"}
        low, high = self._bounds(others) if others else self._defaults
        if not self._started and mask is not None and not mask.all():
            raise ResetNeeded(f"{self.name}: the first reset must be of all environments")
        if seed is not None or not self._generators:
            self._seed(seed, mask)
        obs = self._core.reset(mask, low, high)
        self._started = True
        return obs, {}

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One step of every environment: observations, rewards, terminated, truncated, infos.

        With SAME_STEP, ``infos["final_obs"]`` holds, as SyncVectorEnv has it, the observations at the ends of episodes.
        """
        if not self._started:
            raise ResetNeeded(f"{self.name}: reset() must be called before step()")
        if isinstance(actions, (list, tuple)):
            actions = np.array(actions)
        try:
            obs, reward, terminated, truncated, final_obs = self._core.step(actions)
        except RuntimeError as error:
            if self._mode == AutoresetMode.DISABLED and self._columns["done"].any():
                raise ResetNeeded(f"{self.name}: {error}") from None
            raise
        if final_obs is None:
            return obs, reward, terminated, truncated, {}
        done = terminated | truncated
        rows = np.full(self.num_envs, None)
        for i in done.nonzero()[0].tolist():
            rows[i] = final_obs[i]
        infos = {"final_obs": rows, "_final_obs": done, "final_info": {}, "_final_info": done.copy()}
        return obs, reward, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """The pictures of all environments, drawn by Gymnasium's own class; None without a render_mode."""
        if self.render_mode is None:
            gym.logger.warn(f"{self.name}: render() needs render_mode='rgb_array'")
            return None
        if not self._started:
            raise ResetNeeded(f"{self.name}: reset() must be called before render()")
        frames = []
        columns = self._columns
        for state, fresh, last in zip(columns["state"], columns["fresh"], columns["last_action"], strict=True):
            reference.put_state(self._env, state, fresh)
            self._env.last_u = None if np.isnan(last) else np.clip(last, -2, 2)  # Pendulum's, which it draws
            frames.append(self._env.render())
        return tuple(frames)

    def state_dict(self) -> dict[str, Any]:
        """Where the environments are: everything that the next steps and resets depend on.

        ``state`` float64 ``[N, S]`` as Gymnasium's environments have it, ``elapsed`` int64, ``done`` bool, ``fresh``
        bool (of a reset), ``last_action`` float32 ``[N]``, and ``generators``, the states of NumPy's.  All are copies.
        """
        if not self._started:
            raise ResetNeeded(f"{self.name}: reset() must be called before state_dict()")
        columns = {name: column.copy() for name, column in self._columns.items()}
        return {**columns, "generators": [g.bit_generator.state for g in self._generators]}

    def load_state_dict(self, state: Mapping[str, Any]) -> Array:
        """Go where a `state_dict` was taken; the observations ``[N, *]`` there.

        Raises ValueError for another number of environments, wrong dtypes, and states that are not finite or beyond a
        million; nothing is changed then.
        """
        where = f"{self.name}: state_dict"
        if not isinstance(state, Mapping):
            raise TypeError(f"{where} must be a dict, got {type(state).__name__}")
        unlike = set(state) ^ {*COLUMNS, "generators"}
        if unlike:
            raise ValueError(f"{where} must have {', '.join(COLUMNS)} and generators; unlike: {sorted(unlike)}")
        for name, column in self._columns.items():
            new = np.asarray(state[name])
            if new.shape != column.shape or new.dtype != column.dtype:
                wanted, got = f"{column.dtype} {column.shape}", f"{new.dtype} {new.shape}"
                raise ValueError(f"{where}[{name!r}] must be {wanted}, got {got}")
        if not (np.abs(state["state"]) <= LARGEST).all():
            raise ValueError(f"{where}['state'] must be within +-{LARGEST:.0f}, got {state['state']}")
        if self._mode == AutoresetMode.SAME_STEP and np.any(state["done"]):
            raise ValueError(f"{where}['done'] must be False in SAME_STEP mode")
        if np.any(np.asarray(state["elapsed"]) < 0):
            raise ValueError(f"{where}['elapsed'] must be >= 0, got {state['elapsed']}")
        if len(state["generators"]) != self.num_envs:
            raise ValueError(f"{where}['generators'] must be {self.num_envs} states, got {len(state['generators'])}")
        generators = [_generator(one, f"{where}['generators']") for one in state["generators"]]
        for name, column in self._columns.items():
            column[...] = state[name]
        self._set_generators(generators, [-1] * self.num_envs)  # as Gymnasium has it for an unknown seed
        self._started = True
        obs: Array = self._core.observe()
        return obs

    @property  # type: ignore[misc]
    def np_random(self) -> Any:
        """The environments' generators, a tuple as SyncVectorEnv's."""
        if not self._generators:
            self._seed(None, None)
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> Any:
        """The seeds of the environments, a tuple as SyncVectorEnv's."""
        if not self._generators:
            self._seed(None, None)
        return tuple(self._seeds)

    def close_extras(self, **kwargs: Any) -> None:
        """Close what draws the pictures."""
        self._env.close()

    def _seed(self, seed: Any, mask: Array | None) -> None:
        n = self.num_envs
        if _is_int(seed):
            seeds: list[Any] = [int(seed) + i for i in range(n)]
        elif seed is None:
            seeds = [None] * n
        else:
            seeds = list(seed) if isinstance(seed, Sequence) and not isinstance(seed, str) else []
        if len(seeds) != n or not all(one is None or (_is_int(one) and one >= 0) for one in seeds):
            raise ValueError(f"{self.name}: seed must be an int >= 0 or a list of {n}, each such or None, got {seed!r}")
        generators: list[Any] = self._generators or [None] * n
        pairs = [(generators[i], self._seeds[i]) for i in range(n)]
        for i, one in enumerate(seeds):
            if generators[i] is None or (one is not None and (mask is None or mask[i])):
                pairs[i] = seeding.np_random(None if one is None else int(one))
        self._set_generators([generator for generator, _ in pairs], [s for _, s in pairs])

    def _set_generators(self, generators: list[np.random.Generator], seeds: Any) -> None:
        self._core.set_generators([g.bit_generator for g in generators])
        self._generators, self._seeds = generators, list(seeds)

    def _reset_mask(self, options: Mapping[str, Any] | None) -> Array | None:
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"{self.name}: options must be None or a dict, got {type(options).__name__}")
        if not options or "reset_mask" not in options:
            return None
        mask, got = options["reset_mask"], "none"
        if not isinstance(mask, np.ndarray):
            got = type(mask).__name__
        elif mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            got = f"{mask.dtype} {mask.shape}"
        elif np.count_nonzero(mask):  # much faster than any()
            return mask
        wanted = f"a bool array of shape ({self.num_envs},) with a True in it"
        raise ValueError(f"{self.name}: options['reset_mask'] must be {wanted}, got {got}")

    def _bounds(self, options: dict[str, Any]) -> tuple[Array, Array]:
        """The bounds of new states."""
        low, high = np.array(self._low), np.array(self._high)
        low[:], high[:] = utils.maybe_parse_reset_bounds(options, low[0], high[0])
        self._check_bounds(low, high)
        return low, high

    def _check_bounds(self, low: Array, high: Array) -> None:
        if not ((low >= -LARGEST) & (low <= high) & (high <= LARGEST)).all():
            got = f"{low.tolist()} to {high.tolist()}"
            raise ValueError(f"{self.name}: options must give bounds within +-{LARGEST:.0f}, in order, got {got}")


class CartPoleVectorEnv(ClassicControlVectorEnv):
    """CartPole-v1; `sutton_barto_reward`: 0 a step and -1 at a fall, instead of 1 a step.

    The other arguments are those of `ClassicControlVectorEnv`.
    """

    name, _low, _high, _state_size = "CartPole", (-0.05,) * 4, (0.05,) * 4, 4

    def __init__(self, *args: Any, sutton_barto_reward: bool = False, **kwargs: Any) -> None:
        self._parameter = bool(sutton_barto_reward)
        super().__init__(*args, **kwargs)


class PendulumVectorEnv(ClassicControlVectorEnv):
    """Pendulum-v1; `g`: the gravity.  The other arguments are those of `ClassicControlVectorEnv`."""

    name, _low, _high, _state_size = "Pendulum", (-math.pi, -1.0), (math.pi, 1.0), 2

    def __init__(self, *args: Any, g: float = 10.0, **kwargs: Any) -> None:
        self._parameter = _number(g, f"{type(self).__name__}: g")
        super().__init__(*args, **kwargs)

    def _bounds(self, options: dict[str, Any]) -> tuple[Array, Array]:
        high = np.array(self._high)
        for i, key in enumerate(("x_init", "y_init")):
            high[i] = utils.verify_number_and_cast(options.get(key, high[i]))
        self._check_bounds(-high, high)
        return -high, high


class AcrobotVectorEnv(ClassicControlVectorEnv):
    """Acrobot-v1.  The arguments are those of `ClassicControlVectorEnv`."""

    name, _low, _high, _state_size = "Acrobot", (-0.1,) * 4, (0.1,) * 4, 4


class MountainCarVectorEnv(ClassicControlVectorEnv):
    """MountainCar-v0; `goal_velocity`: the least at the goal.  The other arguments: `ClassicControlVectorEnv`'s."""

    name, _low, _high, _state_size = "MountainCar", (-0.6,), (-0.4,), 2

    def __init__(self, *args: Any, goal_velocity: float = 0.0, **kwargs: Any) -> None:
        self._parameter = _number(goal_velocity, f"{type(self).__name__}: goal_velocity")
        super().__init__(*args, **kwargs)


class MountainCarContinuousVectorEnv(MountainCarVectorEnv):
    """MountainCarContinuous-v0; the arguments are those of `MountainCarVectorEnv`."""

    name = "MountainCarContinuous"


def _core_class() -> Any:
    if _backend.CPU_BACKEND == "cpp":
        return _backend._C.ClassicControl
    if _backend.CPU_BACKEND == "numba":
        from fastrl.envs import _numba

        return _numba.ClassicControl
    return reference.ClassicControl


def _is_int(x: Any) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def _integer(x: Any, where: str, least: int) -> int:
    if not _is_int(x):
        raise TypeError(f"{where} must be an int, got {type(x).__name__}")
    if not least <= x < 2**31:
        raise ValueError(f"{where} must be in [{least}, {2**31}), got {x}")
    return int(x)


def _number(x: Any, where: str) -> float:
    if isinstance(x, bool) or not isinstance(x, (int, float, np.integer, np.floating)):
        raise TypeError(f"{where} must be a number, got {type(x).__name__}")
    number = float(x)
    if not abs(number) <= LARGEST:
        raise ValueError(f"{where} must be within +-{LARGEST:.0f}, got {x}")
    return number


def _generator(state: Any, where: str) -> np.random.Generator:
    generator, _ = seeding.np_random(0)
    try:
        generator.bit_generator.state = state
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{where} must be states of NumPy's PCG64: {error}") from error
    return generator

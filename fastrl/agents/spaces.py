"""Gymnasium's spaces: observations of every kind as flat arrays, and spaces in a checkpoint's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray

from fastrl.agents.config import InputError


def input_scale(space: gym.Space[Any]) -> float | None:
    """What networks multiply observations of `space` by: 1 / 255 where they are bytes 0..255, else None."""
    whole = isinstance(space, Box) and space.dtype == np.uint8
    return 1 / 255 if whole and (space.low == 0).all() and (space.high == 255).all() else None  # type: ignore[attr-defined]


class Part(NamedTuple):
    """A part of flattened observations, the numbers from `start` to `stop`."""

    name: str  # as one gets it from an observation: ['camera'], [0]
    space: gym.Space[Any]
    start: int
    stop: int


class Flattened:
    """Observations of Discrete, MultiBinary, MultiDiscrete, Tuple and Dict spaces as vectors of `space`, a Box.

    A Discrete(n) is one-hot: n numbers, as each part of a MultiDiscrete is; the parts of a Tuple, or of a Dict in the
    order of its keys, follow each other.  Bytes 0..255 become 0..1.  They are float32, or bytes if there is no Box.
    Raises InputError for a space that has another kind inside.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        self.raw = space
        names, leaves = zip(*_leaves(space), strict=True)
        bounds = [_bounds(leaf) for leaf in leaves]
        low, high = (np.concatenate(x) for x in zip(*bounds, strict=True))
        stops = np.cumsum([len(x) for x, _ in bounds]).tolist()
        self.parts = [Part(*part) for part in zip(names, leaves, [0, *stops], stops, strict=False)]
        # Zeros and ones in a byte each, as a replay buffer keeps them.
        boxes = any(isinstance(leaf, Box) for leaf in leaves)
        self.dtype: Any = np.dtype(np.float32 if boxes else np.uint8)
        self.space = Box(low.astype(self.dtype), high.astype(self.dtype), dtype=self.dtype.type)
        self.size = len(low)

    def __call__(self, obs: Any, what: str, n: int | None = None) -> NDArray[Any]:
        """One observation as ``[size]``, or a batch of `n` as Gymnasium stacks them (arrays by part) ``[n, size]``.

        Raises InputError, which begins with `what`, for one that is not of the space.
        """
        out = np.zeros((1 if n is None else n, self.size), self.dtype)
        end = self._fill(self.raw, obs, out, 0, n, what)
        assert end == self.size
        return out if n is not None else out[0]

    def batch_of(self, obs: Any) -> int | None:
        """How many observations these are; None: one."""
        space: Any = self.raw
        while isinstance(space, (Dict, Tuple)):
            parts: Any = space.spaces
            first: Any = next(iter(parts)) if isinstance(space, Dict) else 0
            space = parts[first]
            try:
                obs = obs[first]
            except (LookupError, TypeError):
                return None  # which the attempt to flatten it explains
        shape = np.shape(obs)
        return shape[0] if len(shape) == len(space.shape or ()) + 1 else None

    def _fill(self, space: Any, obs: Any, out: NDArray[Any], start: int, n: int | None, what: str) -> int:
        """Write the observations into the columns of `out` from `start` on; returns where they end."""
        if isinstance(space, Dict):
            if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
                got = f"{', '.join(map(str, obs))}" if isinstance(obs, Mapping) else type(obs).__name__
                raise InputError(f"{what} must be a dict with {', '.join(map(str, space.spaces))}, got {got}")
            for key, part in space.spaces.items():
                start = self._fill(part, obs[key], out, start, n, f"{what}[{key!r}]")
            return start
        if isinstance(space, Tuple):
            if not isinstance(obs, Sequence) or len(obs) != len(space.spaces):
                got = f"{len(obs)}" if isinstance(obs, Sequence) else type(obs).__name__
                raise InputError(f"{what} must be a tuple of {len(space.spaces)}, got {got}")
            for i, part in enumerate(space.spaces):
                start = self._fill(part, obs[i], out, start, n, f"{what}[{i}]")
            return start
        x = np.asarray(obs.detach().cpu() if hasattr(obs, "detach") else obs)
        shape = (*(() if n is None else (n,)), *(space.shape or ()))
        if x.shape != shape or x.dtype.kind not in "fiub":
            raise InputError(f"{what} must be numbers of shape {shape}, got {x.dtype} of shape {x.shape}")
        x = x.reshape(len(out), -1)
        if isinstance(space, (Discrete, MultiDiscrete)):
            return _one_hot(space, x, out, start, what)
        end = start + x.shape[1]
        out[:, start:end] = x
        check_bytes(space, x, what)
        if (scale := input_scale(space)) is not None:
            out[:, start:end] *= np.float32(scale)
        return end


def check_bytes(space: gym.Space[Any], x: NDArray[Any], what: str) -> None:
    """Raise InputError for other numbers than 0, 1, ..., 255 where observations of `space` are such bytes.

    They would be scaled a second time, and a replay buffer could not keep them.
    """
    if x.dtype == np.uint8 or not x.size or input_scale(space) is None:
        return
    with np.errstate(invalid="ignore"):
        same = np.array_equal(x.astype(np.uint8), x)
    if not same:
        got = f"{x.dtype} from {x.min()} to {x.max()}"
        raise InputError(f"{what} must be whole numbers from 0 to 255 like its space, got {got}")


def _one_hot(space: Any, x: NDArray[Any], out: NDArray[Any], start: int, what: str) -> int:
    sizes, firsts = values_of(space)
    index = x.astype(np.int64) - firsts
    wrong = (index < 0) | (index >= sizes) | (index + firsts != x)
    if wrong.any():
        raise InputError(f"{what} must be in {space}, got {x[wrong][0]}")
    columns = start + np.concatenate([[0], np.cumsum(sizes)[:-1]]) + index
    np.put_along_axis(out, columns, 1, 1)
    return start + int(sizes.sum())


def flattened(space: gym.Space[Any]) -> Flattened | None:
    """How observations of `space` are flattened; None if they cannot be."""
    try:
        return Flattened(space)
    except InputError:
        return None


def actions_fit(space: gym.Space[Any], *, discrete: bool, continuous: bool, multi: bool) -> bool:
    """Are these actions of a kind that an agent takes: Discrete, Box of floats, MultiDiscrete or MultiBinary?"""
    if isinstance(space, Box):
        return continuous and np.issubdtype(space.dtype, np.floating)
    return (discrete and isinstance(space, Discrete)) or (multi and isinstance(space, (MultiDiscrete, MultiBinary)))


def check_alike(what: str, given: tuple[Any, Any], mine: tuple[gym.Space[Any], gym.Space[Any]]) -> None:
    """Raise InputError, beginning with `what`, unless these are the agent's spaces, of observations and of actions.

    Bounds of float observations may differ: no policy depends on them.
    """
    if not _alike(given[0], mine[0]):
        raise InputError(f"{what}: observation_space must be {_line(mine[0])} like the agent's, got {_line(given[0])}")
    if given[1] != mine[1]:
        raise InputError(f"{what}: action_space must be {_line(mine[1])} like the agent's, got {_line(given[1])}")


def _line(space: Any) -> str:
    """NumPy prints long bounds over several."""
    return " ".join(str(space).split())


def _alike(space: Any, mine: Any) -> bool:
    if isinstance(mine, (Dict, Tuple)):
        if type(space) is not type(mine):
            return False
        if isinstance(mine, Dict):
            parts: Any = mine.spaces.items()
            return set(space.spaces) == set(mine.spaces) and all(_alike(space.spaces[key], part) for key, part in parts)
        return len(space.spaces) == len(mine.spaces) and all(map(_alike, space.spaces, mine.spaces))
    if isinstance(mine, Box) and isinstance(space, Box) and np.issubdtype(mine.dtype, np.floating):
        return space.shape == mine.shape and space.dtype == mine.dtype
    return bool(space == mine)


def check_spaces(agent: Any) -> None:
    """Raise InputError unless the environment's spaces are of the kinds that an agent says it takes."""
    observations, actions = agent.envs.observation_space, agent.envs.action_space
    this, env = type(agent).__name__, agent.envs.env_id or "this environment"
    if not actions_fit(actions, discrete=agent.discrete, continuous=agent.continuous, multi=agent.multi):
        kinds = ["discrete actions"] * agent.discrete + ["MultiDiscrete or MultiBinary ones"] * agent.multi
        kinds += ["Box actions of floats"] * agent.continuous
        raise InputError(f"{this} needs {' or '.join(kinds)}; {env} has action space {actions}")
    if agent.tabular:
        fits, wanted = isinstance(observations, Discrete), "Discrete observations"
    else:
        fits = isinstance(observations, Box) and bool(observations.shape)
        wanted = "Box observations [n, ...], or Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
    if not fits:
        raise InputError(f"{this} needs {wanted}; {env} has observation space {observations}")
    if 0 in (observations.shape or ()):
        raise InputError(f"{this} needs at least one number to observe; {env} has observation space {observations}")
    if isinstance(actions, Box) and 0 in actions.shape:
        raise InputError(f"{this} needs at least one action; {env} has action space {actions}")


def values_of(space: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many values each part of a Discrete, MultiDiscrete or MultiBinary has ``[K]``, and the first of each."""
    if isinstance(space, Discrete):
        return np.array([space.n], np.int64), np.array([space.start], np.int64)
    if isinstance(space, MultiBinary):
        n = int(np.prod(space.shape))
        return np.full(n, 2, np.int64), np.zeros(n, np.int64)
    start = getattr(space, "start", np.zeros_like(space.nvec))  # Gymnasium before 1.0 had none
    return space.nvec.astype(np.int64).ravel(), np.asarray(start).astype(np.int64).ravel()


def _leaves(space: gym.Space[Any], name: str = "") -> list[tuple[str, gym.Space[Any]]]:
    if isinstance(space, (Dict, Tuple)):
        parts = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        return [leaf for key, part in parts for leaf in _leaves(part, f"{name}[{key!r}]")]
    if not isinstance(space, (Box, Discrete, MultiBinary, MultiDiscrete)):
        raise InputError(f"{type(space).__name__} cannot be flattened")
    return [(name, space)]


def _bounds(space: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if isinstance(space, Box):
        scale = input_scale(space) or 1.0
        low, high = (np.asarray(x, np.float64).ravel() * scale for x in (space.low, space.high))
        with np.errstate(over="ignore"):  # what float32 does not have is infinite
            return low.astype(np.float32), high.astype(np.float32)
    n = int(np.prod(space.shape)) if isinstance(space, MultiBinary) else int(values_of(space)[0].sum())
    return np.zeros(n, np.float32), np.ones(n, np.float32)


class OnlySpaces(VectorEnv[Any, Any, Any]):
    """What stands for the environments of an agent that was loaded without them: it cannot be stepped."""

    def __init__(self, env_id: str | None, spaces: tuple[gym.Space[Any], gym.Space[Any]], num_envs: int) -> None:
        self.env_id, self.num_envs = env_id, num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space, self.single_action_space = spaces

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        space, n = self.single_observation_space, self.num_envs
        obs: Any = create_empty_array(space, n)
        return concatenate(space, [space.sample()] * n, obs), {}


# ---- in a checkpoint


def space_json(space: gym.Space[Any]) -> dict[str, Any] | None:
    """A space as JSON types, of which `space_of` makes it again; None: one that agents do not take."""
    if isinstance(space, Box):
        bounds = {name: _bound(x) for name, x in (("low", space.low), ("high", space.high))}
        return {"type": "Box", "shape": list(space.shape), "dtype": space.dtype.name, **bounds}
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, MultiDiscrete):
        start = values_of(space)[1].reshape(space.nvec.shape).tolist()
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": start, "dtype": space.dtype.name}
    if isinstance(space, (Dict, Tuple)):
        named = isinstance(space, Dict)
        parts = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        found = [[key, space_json(part)] for key, part in parts]
        usable = all(part is not None and isinstance(key, (str, int)) for key, part in found)
        return {"type": "Dict" if named else "Tuple", "spaces": found} if usable else None
    return None


def space_of(saved: Any) -> gym.Space[Any]:
    """The space that `space_json` has described.  Raises ValueError, LookupError or TypeError for anything else."""
    kind = saved["type"]
    if kind == "Box":
        dtype: Any = np.dtype(saved["dtype"]).type
        shape = tuple(map(int, saved["shape"]))
        low, high = (np.broadcast_to(np.asarray(saved[name], dtype), shape) for name in ("low", "high"))
        return Box(low, high, shape, dtype)
    if kind == "Discrete":
        return Discrete(saved["n"], start=saved["start"])
    if kind == "MultiBinary":
        return MultiBinary(saved["n"])
    if kind == "MultiDiscrete":
        nvec, start = (np.asarray(saved[name], np.int64) for name in ("nvec", "start"))
        extra: dict[str, Any] = {"start": start} if start.any() else {}
        return MultiDiscrete(nvec, dtype=np.dtype(saved["dtype"]).type, **extra)
    if kind == "Dict":
        return Dict([(key, space_of(part)) for key, part in saved["spaces"]])
    if kind == "Tuple":
        return Tuple([space_of(part) for _, part in saved["spaces"]])
    raise ValueError(f"no space of type {kind!r}")


def _bound(x: NDArray[Any]) -> Any:
    """One number where all are the same, as of images."""
    return _plain(x.flat[0].item() if x.size and (x == x.flat[0]).all() else x.tolist())


def _plain(x: Any) -> Any:
    """With infinities as text, which JSON has no numbers for."""
    if isinstance(x, list):
        return [_plain(one) for one in x]
    return str(x) if isinstance(x, float) and not np.isfinite(x) else x

"""Environments of the ids "fastrl/...", stepped in one compiled call, as `EnvLoop` steps single ones."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from fastrl.agents.config import InputError
from fastrl.agents.env_config import EnvConfig
from fastrl.agents.env_loop import Array

NAMESPACE = "fastrl/"


def compiled_id(env_id: str) -> str:
    """The id of the compiled environment that does the same as this one; raises InputError."""
    importlib.import_module("fastrl.envs")  # registers them
    name = env_id if env_id.startswith(NAMESPACE) else NAMESPACE + env_id
    compiled = [key for key, spec in gym.registry.items() if key.startswith(NAMESPACE) and spec.vector_entry_point]
    if name not in compiled:
        known = ", ".join(key.removeprefix(NAMESPACE) for key in compiled)
        raise InputError(f"there is no compiled environment for {env_id!r}; there are: {known}")
    return name


def make_compiled(env: str | EnvConfig, num_envs: int) -> Any:
    """N compiled environments, if this is the id of one; None: it is not, or has wrappers, which are of single ones."""
    config = EnvConfig(env) if isinstance(env, str) else env
    name = config.id.removeprefix("fastrl.envs:")
    if not name.startswith(NAMESPACE) or config.wrappers:
        return None
    importlib.import_module("fastrl.envs")  # registers them
    if name in gym.registry and not gym.registry[name].vector_entry_point:
        return None
    name, kwargs = compiled_id(name), config.kwargs or {}
    try:
        return gym.make_vec(name, num_envs, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
    except (TypeError, ValueError) as error:
        raise InputError(f"cannot make environment {name!r}: {error}") from error


class CompiledLoop:
    """As `EnvLoop`: the same seeds and actions give the same, and a moment is saved as the environments' own state."""

    restorable = True
    masks = None  # no actions are forbidden

    def __init__(self, env: Any) -> None:
        self.env, self.paid = env, np.zeros(env.num_envs)

    def seed(self, seed: int, *, again: bool) -> Array:
        obs, _ = self.env.reset(seed=seed)
        return self.reset(range(self.env.num_envs)) if again else obs

    def reset(self, which: Iterable[int], obs: Array | None = None) -> Array:
        mask = np.zeros(self.env.num_envs, np.bool_)
        mask[list(which)] = True
        new: Array = self.env.reset(options={"reset_mask": mask})[0]
        return new

    def step(self, actions: Array) -> tuple[Array, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        obs, reward, terminated, truncated, _ = self.env.step(actions)
        self.paid = reward
        return obs, reward, terminated, truncated

    def state_dict(self) -> dict[str, Any]:
        """JSON types only."""
        state = self.env.state_dict()
        columns = {name: column.tolist() for name, column in state.items() if name != "generators"}
        return {"rng_states": state["generators"], "actions": [], "compiled": columns}

    def replay(self, state: dict[str, Any], obs: Array, returns: Sequence[float]) -> bool:
        """Go back to a saved moment, with the observations of then; False: impossible.

        After that, new episodes have to begin.
        """
        try:
            columns = {
                name: np.asarray(state["compiled"][name], column.dtype)
                for name, column in self.env.state_dict().items()
                if name != "generators"
            }
            reached = self.env.load_state_dict({**columns, "generators": state["rng_states"]})
        except (TypeError, ValueError, KeyError):
            return False
        return bool(reached.tobytes() == obs.tobytes())

"""`load`: the agent of a checkpoint, whatever its algorithm."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import fastrl.agents
import fastrl.distributed
from fastrl.agents.checkpoint import load_checkpoint
from fastrl.agents.config import InputError
from fastrl.agents.saved import check_config, only_spaces, restored

if TYPE_CHECKING:
    from fastrl.agents.agent import Agent, Env


def load(
    folder: str | os.PathLike[str], env: Env | None = None, device: str | None = None, *, network: Any = None
) -> Agent[Any]:
    """The agent of a checkpoint or run folder, of the algorithm that it names.

    Without `env` it has no environment, and nothing but the checkpoint is needed, no package that has the environment
    and no replay buffer: it can `predict`, give its `policy_to_torch`, and `evaluate` in an environment that is given.
    With one, or with ``PPO.load(folder)``, it goes on training.  `env`, `device`, `network`: as in `Agent.load`.
    Raises InputError for a damaged checkpoint.

    >>> action = fastrl.agents.load("runs/mine/best").predict(observation)
    """
    with load_checkpoint(folder) as checkpoint:
        saved, where = checkpoint.config, f"checkpoint {checkpoint.folder}"
        check_config(saved, where)
        cls = algorithm_class(saved["algorithm"], f"{where}: ")
        given = only_spaces(saved, where) if env is None else env
        return restored(cls, checkpoint, given, device, network)


def algorithm_class(name: Any, where: str = "") -> type[Agent[Any]]:
    """The class of the algorithm `name`, of this package or `fastrl.distributed`; raises InputError."""
    for package in (fastrl.agents, fastrl.distributed):
        if name in package.CLASS_NAMES:
            cls: type[Agent[Any]] = getattr(package, package.CLASS_NAMES[name])
            return cls
    known = ", ".join([*fastrl.agents.CLASS_NAMES, *fastrl.distributed.CLASS_NAMES])
    raise InputError(f"{where}unknown algorithm {name!r}; known are {known}")

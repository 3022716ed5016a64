"""What recurrent agents remember of the episodes that they are playing."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrl.agents.config import InputError, check_int, import_torch, kind_of


class Memory:
    """The state ``[N, S]`` float32 of a recurrent network in N episodes that are being played; 0 where one begins.

    ``agent.memory(N)`` makes one, ``predict(..., memory=memory)`` brings it up to date, `new_episodes` clears it.
    """

    def __init__(self, n: int, size: int) -> None:
        if check_int("memory: n", n) < 1:
            raise InputError(f"memory: n must be >= 1, got {n}")
        self.state = np.zeros((int(n), size), np.float32)  # replaced, never written to

    def new_episodes(self, which: Any = True) -> None:
        """Episodes begin: in all N, or in those of `which`, bool ``[N]``; raises InputError for anything else."""
        new = np.ones(len(self.state), np.bool_) if which is True else np.asarray(which)
        if new.shape != (len(self.state),) or new.dtype != np.bool_:
            raise InputError(
                f"new_episodes: which must be True or bool [{len(self.state)}], got {new.dtype} {new.shape}"
            )
        self.state = np.where(new[:, None], np.float32(0.0), self.state)

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = np.asarray(state["state"], np.float32)
        if saved.shape[1:] != self.state.shape[1:] or not np.isfinite(saved).all():
            raise ValueError(f"memory must be finite numbers [N, {self.state.shape[1]}], got {saved.shape}")
        if saved.shape == self.state.shape:  # else these are other environments, where new episodes begin
            self.state = saved


def memory_given(agent: Any, memory: Any, n: int) -> Memory:
    """The `memory` of `predict` for `n` observations; raises InputError for one that does not fit."""
    this, like = type(agent).__name__, agent.memory(n)
    if like is None:
        raise InputError(f"predict: memory must be None, because {this} remembers nothing")
    if memory is None:
        raise InputError(f"predict: {this} needs memory=agent.memory(), made when the episode begins")
    if not isinstance(memory, Memory):
        raise InputError(f"predict: memory must be of agent.memory(), got {type(memory).__name__}")
    if memory.state.shape != like.state.shape:
        raise InputError(f"predict: memory must be agent.memory({n}), {like.state.shape}, got {memory.state.shape}")
    return memory


def check_network(agent: str, network: Any) -> None:
    """Raise InputError for a `network` that is no name, and where PyTorch is not installed."""
    if not isinstance(network, (str, type(None))):
        raise InputError(f"{agent}: network must be lstm or gru, got {kind_of(network)}")
    import_torch(agent)

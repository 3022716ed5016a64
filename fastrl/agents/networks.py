"""Networks that the agents share: `fastrl.MLP`, or a torch module of the user's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastrl
from fastrl import _backend
from fastrl.agents.config import import_torch
from fastrl.agents.network_kinds import Network, OwnNetwork

__all__ = ["Network", "OwnNetwork", "Policy", "evaluating", "own_network", "threads_for"]

Policy = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def own_network(given: Any, what: str, shapes: Sequence[Sequence[int]], n_out: int, **how: Any) -> Any:
    """The network that the user gave, see `torch_networks.own_network`; raises InputError."""
    import_torch("network=")
    from fastrl.agents import torch_networks

    return torch_networks.own_network(given, what, shapes, n_out, **how)


SMALL = 1_000_000  # parameters: in networks below that, threads wait for each other longer than they work


def _torch_threads() -> int | None:
    """Torch's number of threads, if it is loaded."""
    get = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return None if get is None else int(get())


_default_threads = _torch_threads()  # what torch chose itself, as far as is known


@contextmanager
def threads_for(networks: Iterable[Any]) -> Iterator[None]:
    """Inside, one thread works if all `networks` are small ones on the CPU and nobody has chosen a number.

    Chosen is what `fastrl.set_num_threads`, FASTRL_NUM_THREADS, OMP_NUM_THREADS, MKL_NUM_THREADS or, if torch was
    loaded before this module, ``torch.set_num_threads`` says.  What the first two say is torch's number, too, unless
    the last says another.  Afterwards all is as before.
    """
    global _default_threads
    torch, before, of_environment = sys.modules.get("torch"), _torch_threads(), _of_environment()
    _default_threads = _default_threads or before
    vectors = [network.vector for network in networks]
    small = sum(map(len, vectors)) <= SMALL and all(isinstance(x, np.ndarray) for x in vectors)
    threads = of_environment if torch is None else 0  # which torch, and so the kernels, would heed
    chosen = _backend.chosen_threads()
    n = chosen or threads or (1 if small and not of_environment else 0)
    if not n or before != _default_threads:
        yield
        return
    fastrl.set_num_threads(n)
    if torch is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        fastrl.set_num_threads(chosen)
        if torch is not None:
            torch.set_num_threads(before)


def _of_environment() -> int:
    """The number that OMP_NUM_THREADS or MKL_NUM_THREADS gives, else 0."""
    numbers = [os.environ.get(f"{name}_NUM_THREADS", "") for name in ("OMP", "MKL")]
    return next((int(text) for text in numbers if text.isdecimal()), 0)


@contextmanager
def evaluating(networks: Iterable[Any]) -> Iterator[None]:
    """Inside, the user's own among them are in evaluation mode: no dropout, and batch statistics that stand still."""
    own = [network.module for network in networks if isinstance(network, OwnNetwork)]
    changed = [m for module in own for m in module.modules() if m.training]
    for m in changed:
        m.training = False
    try:
        yield
    finally:
        for m in changed:
            m.training = True

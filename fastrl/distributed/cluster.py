"""Ray: there or not, on this machine or elsewhere, started and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

from fastrl.agents.config import InputError


def import_ray(who: str) -> Any:
    """The module `ray`; raises InputError where it is not installed."""
    if "ray" not in sys.modules:
        # Ray reads both when it is imported.  Without a cluster of several machines it listens on 127.0.0.1 alone;
        # with one, on all interfaces, whatever address it is given.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError(f'{who} needs Ray, which is not installed: pip install "fastrl-kernels[ray]"') from None
    return ray


@contextlib.contextmanager
def connected(ray: Any, address: str | None, cpus: int) -> Iterator[None]:
    """While connected to the cluster at `address`, or None: to one on this machine with `cpus`, stopped at the end.

    A program that has called ``ray.init`` itself is left with its own cluster.  Raises InputError if there is none.
    """
    if ray.is_initialized():
        yield
        return
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        how |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    else:
        how |= {"address": address}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address is not None:
            _knock(address)
        ray.init(**how)
    except Exception as error:  # of a node that does not start in time Ray raises Exception itself
        what = " ".join(str(error).split())
        where = "address: no Ray cluster answers at " + address if address else "Ray does not start on this machine"
        raise InputError(f"{where}: {what}") from None
    try:
        with contextlib.suppress(ValueError):  # not in the main thread, where Ray sets none either
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray's own ends the program without a checkpoint
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at host:port: Ray would try again for minutes, deaf to signals."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()

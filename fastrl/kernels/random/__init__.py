"""Counter-based random numbers: the same seed gives the same numbers on every backend and at every thread count."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrl import _fork

_MASK64 = 0xFFFFFFFFFFFFFFFF


def device_name(device: Any, where: str) -> str:
    """ "cpu" or "cuda:N" for every way to name the device; RuntimeError where there is no such device."""
    if not isinstance(device, str) and type(device).__module__ != "torch":
        raise TypeError(f"{where}: device must be a str or torch.device, got {type(device).__name__}")
    kind, _, index = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ValueError(f"{where}: device must be cpu or cuda, got {device}")
    if kind == "cpu":
        return "cpu"
    try:
        import torch
    except ImportError:
        raise RuntimeError(f'{where}: device {device} needs torch: pip install "fastrl-kernels[torch]"') from None
    if not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count():
        raise RuntimeError(f"{where}: device is {device}, but torch finds no such CUDA device")
    return f"cuda:{int(index) if index else torch.cuda.current_device()}"


class Generator:
    """A counter-based random stream: Philox 4x32-10 with state (seed, counter).

    A kernel that draws n elements uses the blocks counter .. counter + n - 1 and advances the counter by n (normal
    numbers: four to a block, so by n / 4, rounded up), so the numbers depend on neither the backend nor the number of
    threads.  Safe to share between threads and objects.  Raises TypeError or ValueError for a seed or device that is
    none, and RuntimeError for a CUDA device that is not there.  A pickle, copy or deepcopy is another generator that
    goes on where this one stands.

    Args:
        seed: int in [0, 2^64); None takes one from the operating system, and another one in a forked child (a stream
            that was seeded or loaded goes on in both).
        device: "cpu", or a CUDA device: then the state lives in device memory (int64 tensor [3]: its third word counts
            the blocks of threads of a call that runs), the kernels advance it there, and a captured CUDA graph draws
            anew at every replay.  Reading it back waits for the device.  It belongs to one stream at a time: kernels on
            two streams that do not wait for each other may draw the same numbers, also in calls that follow.  Where
            that has left a trace, `state_dict` raises RuntimeError, and `manual_seed` or `load_state_dict` mends it.
            Give each stream its own, or let one wait: ``torch.cuda.current_stream().wait_stream(other)``.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
    """

    def __init__(self, seed: int | None = None, device: Any = "cpu") -> None:
        self._allocate(device)
        if seed is not None:
            self.manual_seed(seed)
            return
        self.reseed()
        if self.device == "cpu":  # no forked child can use CUDA
            _fork.unseeded.add(self)

    def _allocate(self, device: Any) -> None:
        self.device = device_name(device, "Generator")
        self.state: Any
        if self.device == "cpu":
            self.state = np.zeros(2, np.uint64)
        else:
            import torch

            self.state = torch.zeros(3, dtype=torch.int64, device=self.device)

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of `seed` from its beginning; returns self."""
        self._set(_uint64(seed, "Generator: seed"), 0)
        _fork.unseeded.discard(self)
        return self

    def reseed(self) -> None:
        """Start a stream of a seed from the operating system."""
        self._set(secrets.randbits(64), 0)

    @property
    def seed(self) -> int:
        return int(self.state[0]) & _MASK64

    @property
    def counter(self) -> int:
        return int(self.state[1]) & _MASK64

    def state_dict(self) -> dict[str, int]:
        """{"seed", "counter"}: all that decides the numbers to come."""
        if self.device != "cpu" and int(self.state[2]):
            raise RuntimeError(
                f"Generator: kernels on two streams that did not wait for each other used this one on {self.device}; "
                "give each stream its own, and start this one anew with manual_seed or load_state_dict"
            )
        return {"seed": self.seed, "counter": self.counter}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was taken; ValueError or TypeError, and no change, for anything else."""
        if not isinstance(state, Mapping) or set(state) != {"seed", "counter"}:
            raise ValueError(f"Generator: state must have exactly the keys seed and counter, got {state!r}")
        self._set(_uint64(state["seed"], "Generator: seed"), _uint64(state["counter"], "Generator: counter"))
        _fork.unseeded.discard(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"device": self.device, **self.state_dict()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._allocate(state["device"])
        self._set(state["seed"], state["counter"])

    def _set(self, seed: int, counter: int) -> None:
        if self.device == "cpu":
            self.state[:] = (seed, counter)
        else:  # torch has no full uint64 support: the same 64 bits as int64
            for i, word in enumerate((seed, counter, 0)):
                self.state[i] = word - (1 << 64) if word >> 63 else word

    def __repr__(self) -> str:
        return f"fastrl.Generator(seed={self.seed}, counter={self.counter}, device={self.device!r})"


def _uint64(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not 0 <= int(value) <= _MASK64:
        raise ValueError(f"{name} must be in [0, 2**64), got {value}")
    return int(value)


_default: dict[str, Generator] = {}
_default_seed: int | None = None  # of default generators still to be made


def default_generator(device: Any = "cpu") -> Generator:
    """The generator that is used when neither a seed nor a generator is given."""
    name = device_name(device, "default_generator")
    if name not in _default:
        _default.setdefault(name, Generator(_default_seed, name))  # of two threads the first wins
    return _default[name]


def manual_seed(seed: int) -> None:
    """Seed the default generators of all devices, those made later too."""
    global _default_seed
    _default_seed = _uint64(seed, "manual_seed: seed")
    for generator in _default.values():
        generator.manual_seed(seed)


def state_of(generator: Generator | None, first: Any, op: str) -> Any:
    """The state of `generator`, or of the default one, on the device of the array `first`."""
    device = str(first.device) if getattr(first, "is_cuda", False) else "cpu"
    if generator is None:
        generator = _default.get(device)
        return generator.state if generator is not None else default_generator(device).state
    if not isinstance(generator, Generator):
        raise TypeError(f"{op}: generator must be a fastrl.Generator, got {type(generator).__name__}")
    if generator.device != device:
        raise ValueError(f"{op}: generator must be on {device} like the arrays, got {generator.device}")
    return generator.state

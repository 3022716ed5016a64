"""Who computes an op: one way for all of them, and resolved once."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from typing import Any

from fastrl import _backend


class Backend:
    """The modules that serve an op, each with the functions that its `reference` names in `__all__`.

    CPU arrays: the extension, else the op's `_numba` if it has one, else its `reference`.  CUDA tensors: the extension
    (or the op's `_cuda`, where some of the work is the host's), else the `fallback` in the op's `_torch`.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        # None until they are needed, because finding them may import Numba or torch.
        self.cpu: Any = None
        self.cuda: Any = None

    def of(self, first: Any) -> Any:
        """What serves a call whose first array this is."""
        if getattr(first, "is_cuda", False):
            return self.cuda or self._find_cuda()
        return self.cpu or self._find_cpu()

    def on(self, device: str) -> Any:
        """What serves arrays on a device, "cpu" or a CUDA one."""
        return self.cpu or self._find_cpu() if device == "cpu" else self.cuda or self._find_cuda()

    def _find_cpu(self) -> Any:
        self.cpu = self.named(self._cpu_name())  # without a look for what serves CUDA tensors, which imports torch
        return self.cpu

    def _find_cuda(self) -> Any:
        if self._cuda_name() == "reference":
            torch = self._module("_torch")
            self.cuda = getattr(torch, "fallback", torch)
        else:
            self.cuda = self._module("_cuda") if self._has("_cuda") else _backend._C_cuda
        return self.cuda

    def named(self, name: str) -> Any:
        """The CPU backend "cpp", "numba" or "reference"."""
        return _backend._C if name == "cpp" else self._module("_numba" if name == "numba" else name)

    def names(self) -> tuple[str, str]:
        """The names of what serves CPU arrays and CUDA tensors."""
        return self._cpu_name(), self._cuda_name()

    def _cpu_name(self) -> str:
        missing = _backend.CPU_BACKEND == "numba" and not self._has("_numba")
        return "reference" if missing else _backend.CPU_BACKEND

    def _cuda_name(self) -> str:
        kernels = self._module("reference").__all__
        compiled = all(hasattr(_backend._C_cuda, kernel) for kernel in kernels)
        return _backend.cuda_backend()[0] if compiled else "reference"

    def _has(self, name: str) -> bool:
        return importlib.util.find_spec(f"{self.package}.{name}") is not None

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")


@functools.cache
def choose(package: str) -> Backend:
    """The backend of the op whose folder is the package of this name: ``choose(__package__)``."""
    return Backend(package)


def ops() -> dict[str, Backend]:
    """The ops by name: the folders beside this one that hold a reference."""
    kernels = __name__.rsplit(".", 2)[0]
    folder = importlib.import_module(kernels).__path__
    found = [m.name for m in pkgutil.iter_modules(folder) if m.ispkg]
    return {n: choose(f"{kernels}.{n}") for n in found if importlib.util.find_spec(f"{kernels}.{n}.reference")}

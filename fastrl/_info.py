"""What this install is made of, and who computes what in it: `fastrl info`."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from fastrl import _backend
from fastrl.kernels._core import backends


def info() -> dict[str, Any]:
    """Versions, backends per op and why, threads, SIMD level, CUDA devices.

    Imports torch and numba if they are installed, to report their versions.
    """
    packages = {"fastrl": "fastrl-kernels"} | {name: name for name in ("numpy", "numba", "torch", "gymnasium", "jax")}
    versions: dict[str, str] = {}
    for name, package in packages.items():
        try:
            versions[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
        if name == "fastrl":
            versions["python"] = platform.python_version()
    extension = _backend._C
    return {
        "version": versions,
        "op": {name: _served(op) for name, op in backends.ops().items()},
        "threads": _backend.get_num_threads(),
        "SIMD": str(extension.simd_level()) if extension is not None else "none (no compiled extension)",
        "CUDA devices": [] if _backend._C_cuda is None else list(_backend._C_cuda.devices()),
    }


def _served(op: backends.Backend) -> dict[str, tuple[str, str]]:
    """Who serves an op's CPU arrays and CUDA tensors, and why."""
    cpu, cuda = op.names()
    if os.environ.get("FASTRL_BACKEND"):
        why = f"{_backend.CPU_BACKEND} (forced by FASTRL_BACKEND)"
    elif _backend.CPU_BACKEND == "cpp":
        why = "compiled extension fastrl._C"
    elif _backend.CPU_BACKEND == "numba":
        why = f"fastrl._C: {_backend.C_ERROR}; Numba serves"
    else:
        numba = "installed" if _backend.HAVE_NUMBA else "not installed"
        why = f"fastrl._C: {_backend.C_ERROR}; Numba: {numba}; NumPy serves"
    if cpu != _backend.CPU_BACKEND:
        why = f"{why}; this op has NumPy's only"
    wanted, reason = _backend.cuda_backend()
    if cuda != wanted:
        reason = "torch operations on the GPU: this op has no compiled CUDA kernel"
    return {"cpu": (cpu, why), "cuda": (cuda, reason)}

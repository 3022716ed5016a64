"""Which compiled backend serves the kernels, decided once at import.

``CPU_BACKEND`` is ``"cpp"`` (the extension ``fastrl._C``), ``"numba"`` or ``"reference"`` (NumPy).  CUDA
tensors are served by the extension ``fastrl._C_cuda`` or, without it, by PyTorch on the GPU.  Environment variables:

``FASTRL_BACKEND``
    ``cpp``, ``numba`` or ``reference``: use this one for CPU arrays, or fail.
``FASTRL_REQUIRE_EXT``
    ``1``: a missing ``fastrl._C`` is an ImportError instead of a fallback.
``FASTRL_NUM_THREADS``
    What `set_num_threads` starts with.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

_NOT_BUILT = "not built in this install"
_CUDA_HINT = "to have it, reinstall from source where nvcc and the GPU are, or with FASTRL_CUDA=ON where nvcc is"
_INSTALL_HINT = 'reinstall with a C++ compiler present, or `pip install "fastrl-kernels[numba]"`'


def _try_import(name: str) -> tuple[Any, str]:
    """The extension module and "", or None and why it cannot be imported."""
    try:
        return importlib.import_module(f"fastrl.{name}"), ""
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == f"fastrl.{name}"
        return None, _NOT_BUILT if missing else str(error)


def _checkout() -> Path | None:
    """The source tree that this module lies in, or None for an installed one."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "CMakeLists.txt").is_file() and (root / "csrc").is_dir() else None


def _choose_cpu_backend() -> str:
    wanted = os.environ.get("FASTRL_BACKEND", "")
    available = {"cpp": _C is not None, "numba": HAVE_NUMBA, "reference": True}
    if wanted:
        if wanted not in available:
            raise RuntimeError(f"FASTRL_BACKEND must be one of {', '.join(available)}, got {wanted!r}")
        if not available[wanted]:
            raise RuntimeError(f"FASTRL_BACKEND={wanted}, but that backend is not installed: {_INSTALL_HINT}")
        return wanted
    if _C is not None:
        return "cpp"
    if C_ERROR != _NOT_BUILT:
        warnings.warn(f"fastrl._C is there but cannot be loaded: {C_ERROR}", RuntimeWarning, stacklevel=2)
    if os.environ.get("FASTRL_REQUIRE_EXT", "0") not in ("", "0"):
        raise ImportError(f"FASTRL_REQUIRE_EXT is set, but fastrl._C is missing ({C_ERROR}): {_INSTALL_HINT}")
    if C_ERROR == _NOT_BUILT and (checkout := _checkout()) is not None:
        warnings.warn(
            f"fastrl is imported from its source tree {checkout}, which has no compiled fastrl._C: the kernels are "
            "slower. Start Python in another folder if fastrl is installed, or install it from here with "
            "`pip install -e .`",
            RuntimeWarning,
            stacklevel=2,
        )
        return "numba" if HAVE_NUMBA else "reference"
    if HAVE_NUMBA:
        return "numba"
    warnings.warn(
        f"fastrl runs its slow NumPy reference kernels, because neither fastrl._C ({C_ERROR}) nor Numba is here; "
        + _INSTALL_HINT,
        RuntimeWarning,
        stacklevel=2,
    )
    return "reference"


def _refuse_subinterpreter() -> None:
    """pybind11 takes the main interpreter's GIL; before Python 3.12 a sub-interpreter waits for it for ever."""
    if sys.version_info >= (3, 12):
        return
    interpreters = importlib.import_module("_xxsubinterpreters")
    if interpreters.get_current() != interpreters.get_main():
        version = platform.python_version()
        raise ImportError(f"fastrl cannot be imported in a sub-interpreter of Python {version}: that needs Python 3.12")


_refuse_subinterpreter()
_C, C_ERROR = _try_import("_C")
# find_spec instead of import: a NumPy code base should not pay for Numba before a kernel needs it.
HAVE_NUMBA = importlib.util.find_spec("numba") is not None
CPU_BACKEND = _choose_cpu_backend()

_C_cuda, C_CUDA_ERROR = _try_import("_C_cuda")


def cuda_backend() -> tuple[str, str]:
    """What serves CUDA tensors, and why: "cuda" (the extension) or "reference" (torch on the GPU).  Imports torch."""
    if _C_cuda is None:
        hint = f" ({_CUDA_HINT})" if C_CUDA_ERROR == _NOT_BUILT else ""
        return "reference", f"fastrl._C_cuda: {C_CUDA_ERROR}{hint}; torch operations serve"
    try:
        import torch
    except ImportError:
        return "cuda", "compiled extension fastrl._C_cuda (but torch is not installed)"
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        return "reference", f"fastrl._C_cuda needs torch 2.10, this is {torch.__version__}; torch operations serve"
    return "cuda", "compiled extension fastrl._C_cuda"


_python_num_threads = 0  # what set_num_threads said last; the extension keeps it for its kernels


def set_num_threads(n: int) -> None:
    """Let the kernels use `n` threads (``FASTRL_NUM_THREADS`` at start-up does the same); 0 goes back to the default.

    The default is PyTorch's setting when torch is loaded, else ``OMP_NUM_THREADS``, else the number of cores this
    process may use.  Only calls above about 200 us of work leave the calling thread.  Results do not depend on it.
    """
    global _python_num_threads
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"set_num_threads: n must be an int, got {type(n).__name__}")
    if not 0 <= n <= 1024:
        raise ValueError(f"set_num_threads: n must be in [0, 1024], got {n}")
    _python_num_threads = n
    if _C is not None:
        _C.set_num_threads(n)


def chosen_threads() -> int:
    """What `set_num_threads` or FASTRL_NUM_THREADS said, else 0."""
    return _python_num_threads


def get_num_threads() -> int:
    """The number of threads that a large kernel call may use now."""
    if _C is not None:
        return int(_C.get_num_threads())
    if _python_num_threads:
        return _python_num_threads
    of_torch = getattr(sys.modules.get("torch"), "get_num_threads", None)  # none while another thread imports torch
    if of_torch is not None:
        return int(of_torch())
    omp = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if omp.isdecimal() and int(omp) > 0:
        return min(int(omp), 1024)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_num_threads() -> None:
    text = os.environ.get("FASTRL_NUM_THREADS", "")
    if not text:
        return
    if not text.isdecimal() or int(text) > 1024:
        raise RuntimeError(f"FASTRL_NUM_THREADS must be a number in [0, 1024], got {text!r}")
    set_num_threads(int(text))


_read_num_threads()

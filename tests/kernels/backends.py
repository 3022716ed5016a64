"""The kernels of one backend, for the fixtures."""

import importlib
import os

import pytest

from fastrl.kernels._core.backends import choose

BACKENDS = ("reference", "numba", "cpp")


def check_installed(name):
    """A backend that is not installed skips; a missing C++ one fails if it is required."""
    if name == "numba":
        pytest.importorskip("numba", reason="the Numba backend needs numba, which is not installed")
    if name == "cpp":
        try:
            importlib.import_module("fastrl._C")
        except ImportError as error:
            if os.environ.get("FASTRL_REQUIRE_EXT", "0") not in ("", "0"):
                pytest.fail(f"FASTRL_REQUIRE_EXT is set, but the C++ extension does not import: {error}")
            pytest.skip(f"the C++ extension is not built: {error}")


def load_kernels(op, name):
    """The kernels of an op by one CPU backend."""
    check_installed(name)
    return choose(f"fastrl.kernels.{op}").named(name)

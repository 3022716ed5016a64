"""Agents whose actors, replay and learner are processes of their own, on Ray (extra ``ray``)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrl.distributed.apex import ApeX, ApeXDPG, ApeXR2D2
    from fastrl.distributed.impala import IMPALA

__all__ = ["IMPALA", "ApeX", "ApeXDPG", "ApeXR2D2"]

CLASS_NAMES = {"apex": "ApeX", "apex_dpg": "ApeXDPG", "apex_r2d2": "ApeXR2D2", "impala": "IMPALA"}
_MODULES = {"ApeX": "apex", "ApeXDPG": "apex", "ApeXR2D2": "apex", "IMPALA": "impala"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Agents whose actors, replay and learner are processes of their own, on Ray (extra ``ray``)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrl.distributed.apex import ApeX

__all__ = ["ApeX"]

CLASS_NAMES = {"apex": "ApeX"}


def __getattr__(name: str) -> Any:
    if name != "ApeX":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastrl.distributed.apex import ApeX

    return ApeX


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

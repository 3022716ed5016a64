"""Agents whose actors, replay and learner are processes of their own, on Ray (extra ``ray``)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrl.agents.agent import Agent
    from fastrl.distributed.apex import ApeX

    ALGORITHMS: dict[str, type[Agent[Any]]]

__all__ = ["ALGORITHMS", "ApeX"]

CLASS_NAMES = {"apex": "ApeX"}
_MODULES = {"ApeX": "apex"}


def __getattr__(name: str) -> Any:
    value: Any
    if name == "ALGORITHMS":
        value = {algorithm: getattr(import_module(__name__), agent) for algorithm, agent in CLASS_NAMES.items()}
    elif name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

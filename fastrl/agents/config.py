"""What agents and the command line share about settings: checked values, and errors that fit on one line."""

from __future__ import annotations

import math
import operator
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class InputError(ValueError):
    """The user's input is at fault: a bad setting, environment, folder or checkpoint.  The message is one line."""


def make_config(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """The config dataclass `cls` with `values` (from JSON or keywords) over its defaults.

    Raises InputError, beginning with `where`, for an unknown name or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    checked = {}
    for name, value in values.items():
        if name not in hints:
            raise InputError(f"{where}: unknown setting {name!r}; known are {', '.join(hints)}")
        checked[name] = _convert(value, hints[name], f"{where}: {name}")
    return cls(**checked)


def _convert(value: Any, hint: Any, what: str) -> Any:
    """`value` if it fits the annotation; an int also fits a float and a list a tuple, because JSON has no other way."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for choice in args:
            try:
                return _convert(value, choice, what)
            except InputError:
                pass
    elif origin is typing.Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(v, args[0], what) for v in value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", str(hint)) if origin is None else str(hint).replace("typing.", "")
    raise InputError(f"{what} must be {wanted}, got {value!r}")


def check_range(config: Any, low: float, high: float, *names: str) -> None:
    """Raise InputError unless every named setting (or item of it) is finite and in [low, high]; None is let through."""
    for name in names:
        value = getattr(config, name)
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and (not (low <= item <= high and math.isfinite(item))):
                at_least = "finite" if low == -math.inf else f"finite and >= {low:g}"
                bounds = at_least if high == math.inf else f"in [{low:g}, {high:g}]"
                raise InputError(f"{type(config).__name__}: {name} must be {bounds}, got {item!r}")


def check_int(name: str, value: Any) -> int:
    """`value` as an int, which NumPy's integers are too; raises InputError for anything else, bools among it."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be an int, got {value!r}") from None


def resolve_device(name: str) -> torch.device:
    """``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"auto"`` (cuda if there is one) as a torch device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device must be cpu, cuda or auto, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu, cuda or auto, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r} was asked for, but PyTorch finds no CUDA device here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return device

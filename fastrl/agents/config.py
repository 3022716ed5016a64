"""What agents and the command line share about settings: checked values, and errors that fit on one line."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import operator
import re
import sys
import textwrap
import types
import typing
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class InputError(ValueError):
    """The user's input is at fault: a bad setting, environment, folder or checkpoint.  The message is one line."""


def warn(message: str) -> None:
    """A UserWarning at the line outside of this package that led here."""
    frame, level = sys._getframe(1), 2
    while str(frame.f_globals.get("__name__")).split(".")[0] in ("fastrl", "contextlib", "copy") and frame.f_back:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def make_config(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """The config dataclass `cls` with `values` (from JSON or keywords) over its defaults.

    Raises InputError, beginning with `where`, for an unknown name or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    checked = {}
    for name, value in values.items():
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, 1)
            meant = f"did you mean {close[0]}? " if close else ""
            raise InputError(f"{where}: unknown setting {name!r}; {meant}known are {', '.join(hints)}")
        checked[name] = _convert(value, hints[name], f"{where}: {name}")
    return cls(**checked)


def settings_of(cls: type[Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint for `cls`; those from before there were convolutional networks have an MLP."""
    return {"network": "mlp", **saved} if "network" in cls.__dataclass_fields__ else dict(saved)


def _convert(value: Any, hint: Any, what: str) -> Any:
    """`value` if it fits the annotation; also an int for a float, 1e5 for an int, and a list for a tuple."""
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
    elif isinstance(value, (bool, np.bool_)):
        if hint is bool:
            return bool(value)
    elif hint is float and isinstance(value, (int, float, np.integer, np.floating)):
        return float(value)
    elif hint is int and (number := _integral(value)) is not None:
        return number
    elif isinstance(value, hint):
        return value
    raise InputError(f"{what} must be {_wanted(hint)}, got {value!r}")


def _wanted(hint: Any) -> str:
    """The values of an annotation, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"a list of {_wanted(args[0])}, as [64, 64]" if args[0] is int else f"a list of {_wanted(args[0])}"
    if origin is typing.Literal:
        return " or ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_wanted, args))
    return "None" if hint is type(None) else _name(hint)


def describe_settings(cls: type[Any]) -> str:
    """The settings of a config dataclass with their defaults and meanings, a line or two each, for a docstring."""
    texts, lines = meanings(cls), []
    for field in fields(cls):
        text = " ".join(texts.get(field.name, "").split())
        entry = f"{field.name}: {_name(field.type)} = {field.default!r}. {text}".rstrip()
        lines += textwrap.wrap(entry, 114, initial_indent=" " * 4, subsequent_indent=" " * 8)
    return "\n".join(lines)


def meanings(cls: type[Any]) -> dict[str, str]:
    """What the fields of a dataclass mean, its bases' too."""
    return {name: text for base in reversed(cls.__mro__[:-1]) for name, text in _meanings(base).items()}


@cache
def _meanings(cls: type[Any]) -> dict[str, str]:
    """The strings under the fields of a class, which only its source has: of none in a program without sources."""
    try:
        source = inspect.getsource(sys.modules[cls.__module__])  # of a class it would parse the file
    except (OSError, TypeError, KeyError):
        return {}
    _, *rest = re.split(rf"^class {cls.__name__}\b", source, maxsplit=1, flags=re.MULTILINE)
    own = re.split(r"^class ", "".join(rest), maxsplit=1, flags=re.MULTILINE)[0]
    return dict(re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""$', own, re.MULTILINE | re.DOTALL))


def _name(hint: Any) -> str:
    return hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))


def check_kept(config: Any, given: Mapping[str, Any]) -> None:
    """Raise InputError if a switch or number of `given` became another in `config`, by `rainbow`, which implies it."""
    for name, value in given.items():
        kept = getattr(config, name)
        if isinstance(value, (int, float, np.bool_)) and kept != value:
            raise InputError(f"{type(config).__name__}: {name} must be {kept!r} with rainbow, got {value!r}")


def check_range(config: Any, low: float, high: float, *names: str) -> None:
    """Raise InputError unless every named setting (or item of it) is finite and in [low, high]; None is let through."""
    for name in names:
        value = getattr(config, name)
        if value == ():
            raise InputError(f"{type(config).__name__}: {name} must name at least one layer, got ()")
        if isinstance(value, tuple) and len(value) > 62:  # `MLP` has 64 sizes at most
            raise InputError(f"{type(config).__name__}: {name} must name at most 62 layers, got {len(value)}")
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and (not (low <= item <= high and math.isfinite(item))):
                at_least = "finite" if low == -math.inf else f"finite and >= {low:g}"
                bounds = at_least if high == math.inf else f"in [{low:g}, {high:g}]"
                raise InputError(f"{type(config).__name__}: {name} must be {bounds}, got {item!r}")


def check_buffer(config: Any) -> None:
    """Raise InputError for a replay buffer that is smaller than a batch, which would only repeat itself."""
    if config.buffer_size < config.batch_size:
        raise InputError(
            f"{type(config).__name__}: buffer_size must be >= batch_size, got {config.buffer_size} and "
            f"{config.batch_size}"
        )


def check_int(name: str, value: Any) -> int:
    """`value` as an int, which NumPy's integers and 1e5 are too; raises InputError for all else, bools among it."""
    number = _integral(value)
    if number is None:
        raise InputError(f"{name} must be an int, got {value!r}")
    if abs(number) >= 2**63:
        raise InputError(f"{name} must be an int of 64 bits, got {value!r}")
    return number


def _integral(value: Any) -> int | None:
    """`value` as an int if it is a whole number and no bool, else None."""
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, (float, np.floating)):
        return int(value) if float(value).is_integer() else None
    try:
        return operator.index(value)
    except TypeError:
        return None


def shown_env(saved: Mapping[str, Any]) -> str:
    """The environment of a config.json or run.json for people: ``Id-v0 (key=value, Wrapper)``."""
    return in_parentheses(env_name(saved), setting_parts(*env_settings(saved)))


def env_name(saved: Mapping[str, Any]) -> str:
    """The environment's id, or what else there is to call it: of one without an id its class; "" if nothing."""
    given = saved.get("given")
    return str(saved.get("env") or (given.get("name") if isinstance(given, dict) else None) or "")


def setting_parts(kwargs: Mapping[str, Any], wrappers: Sequence[str]) -> list[str]:
    """Each keyword argument and wrapper for people."""
    return [f"{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in kwargs.items()] + list(wrappers)


def in_parentheses(name: str, parts: Sequence[str]) -> str:
    return f"{name} ({', '.join(parts)})" if parts else name


def env_settings(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The keyword arguments and wrappers that a config.json or run.json has; those that are unusable are none."""
    given = saved.get("given")  # of an environment that was made elsewhere
    saved = given if isinstance(given, dict) else saved
    kwargs, wrappers = saved.get("env_kwargs"), saved.get("wrappers")
    return kwargs if isinstance(kwargs, dict) else {}, list(map(str, wrappers)) if isinstance(wrappers, list) else []


def kind_of(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def import_torch(what: str) -> Any:
    """The module; raises InputError, which says that `what` needs it, where it is not installed."""
    try:
        import torch
    except ImportError:
        raise InputError(f'{what} needs PyTorch; to install: pip install "fastrl-kernels[torch]"') from None
    return torch


def resolve_device(name: str) -> str:
    """``"cpu"`` or ``"cuda:N"`` for ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"auto"`` (cuda if there is one).

    Raises InputError for another name, or a device that is not there.  Imports torch for all but the CPU.
    """
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "auto") or (index and (kind == "auto" or not index.isdecimal())):
        raise InputError(f"device must be cpu, cuda or auto, got {name!r}")
    if kind == "cpu":
        return "cpu"
    try:
        torch = import_torch(f"device {name!r}")
    except InputError:
        if kind == "auto":
            return "cpu"
        raise
    if not torch.cuda.is_available():
        if kind == "auto":
            return "cpu"
        raise InputError(f"device {name!r} was asked for, but PyTorch finds no CUDA device here")
    if int(index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return f"cuda:{int(index)}" if index else "cuda"

"""An environment's id with its keyword arguments and wrappers: what agents can be made from, and checkpoints keep."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from fastrl.agents.config import InputError, in_parentheses, setting_parts

WRAPPERS = "gymnasium.wrappers"
WRITES = ("RecordVideo",)  # files, where a checkpoint says
# What registers the environments of a namespace, and how to install it.
PACKAGES = {"ALE": ("ale_py", "ale-py"), "fastrl": ("fastrl.envs", "fastrl-kernels")}


@dataclass(frozen=True)
class EnvConfig:
    """An environment to be made, as often as it is needed, by ``gymnasium.make(id, **kwargs)`` and then the wrappers.

    `id`: Gymnasium's, or ``module:Id``, which imports the module.  `kwargs`: JSON types.  `wrappers`, the innermost
    first: ``module:Name`` of a wrapper or a function from environment to environment, without a module one of
    gymnasium.wrappers, with keyword arguments in parentheses if it needs any: ``"TimeLimit(max_episode_steps=100)"``.

    In `Agent.load`, `kwargs` and `wrappers` that are None are those of the checkpoint; else None is none.
    Raises InputError.

    >>> agent = PPO(EnvConfig("FrozenLake-v1", {"is_slippery": False}, ["FlattenObservation"]))
    """

    id: str
    kwargs: Mapping[str, Any] | None = None
    wrappers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise InputError(f"EnvConfig: id must be a str, got {self.id!r}")
        kwargs, wrappers = self.kwargs, self.wrappers
        if kwargs is not None:
            if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
                raise InputError(f"EnvConfig: kwargs must be a dict with str keys, got {kwargs!r}")
            try:
                object.__setattr__(self, "kwargs", json.loads(json.dumps(dict(kwargs))))
            except (TypeError, ValueError) as error:
                raise InputError(f"EnvConfig: kwargs must hold JSON types, as checkpoints keep them: {error}") from None
        if wrappers is not None:
            if not isinstance(wrappers, (list, tuple)) or not all(isinstance(wrapper, str) for wrapper in wrappers):
                raise InputError(f"EnvConfig: wrappers must be a list of str, got {wrappers!r}")
            object.__setattr__(self, "wrappers", tuple(wrappers))
            for wrapper in self.wrappers or ():
                parsed(wrapper)

    def imports(self) -> list[str]:
        """What of this runs code that was not chosen here: a module's id, foreign wrappers, those that write files."""
        foreign = [self.id] if ":" in self.id else []
        for wrapper in self.wrappers or ():
            module, name, _ = parsed(wrapper)
            if module != WRAPPERS or name in WRITES or name not in gym.wrappers.__all__:
                foreign.append(wrapper)
        return foreign

    def make(self, **more: Any) -> gym.Env[Any, Any]:
        """The environment; `more` keyword arguments, as of render_mode, come before those that are kept."""
        env = make_plain(self.id, {**(self.kwargs or {}), **more})
        for wrapper in self.wrappers or ():
            env = _wrapped(env, wrapper, self.id)
        return env


def shown(spec: Any, name: str) -> str:
    """`name`, and what it was made with if `spec` is an `EnvConfig`, for people."""
    parts = setting_parts(spec.kwargs or {}, spec.wrappers or ()) if isinstance(spec, EnvConfig) else []
    return in_parentheses(name, parts)


def told(spec: EnvSpec) -> tuple[dict[str, Any], list[str]]:
    """What an environment was made with besides what its id stands for, as JSON: keyword arguments and wrappers."""
    usual = gym.registry.get(spec.id)
    default = {"max_episode_steps": usual.max_episode_steps, **usual.kwargs} if usual is not None else {}
    kwargs = {"max_episode_steps": spec.max_episode_steps, **spec.kwargs}
    kwargs = {name: _told(value) for name, value in kwargs.items() if name != "render_mode"}
    kwargs = {name: value for name, value in kwargs.items() if value != _told(default.get(name))}
    wrappers = []
    for wrapper in spec.additional_wrappers:
        parts = setting_parts({name: _told(value) for name, value in (wrapper.kwargs or {}).items()}, ())
        wrappers.append(wrapper.name + (f"({', '.join(parts)})" if parts else ""))
    return kwargs, wrappers


def _told(value: Any) -> Any:
    """A value that JSON takes; of another, as of a function, its name."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return str(getattr(value, "__name__", type(value).__name__))


def make_plain(spec: str | EnvSpec, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """`gymnasium.make` with its errors (unknown name, missing package, wrong arguments) as a one-line InputError."""
    name = spec if isinstance(spec, str) else spec.id
    if name.count(":") > 1:
        raise InputError(f"cannot make environment {name!r}: its form is [module:][namespace/]Name-v0")
    namespace = name.rpartition(":")[2].rpartition("/")[0]
    module, package = PACKAGES.get(namespace, ("", ""))
    if module and not any(other.startswith(f"{namespace}/") for other in gym.registry):
        if importlib.util.find_spec(module) is None:
            raise InputError(f"cannot make environment {name!r}: it is of {package}; to install: pip install {package}")
        importlib.import_module(module)
    try:
        return gym.make(spec, **kwargs)
    except Exception as error:
        expected = (gym.error.Error, ImportError, ValueError)
        if not kwargs and not isinstance(error, expected):
            raise
        what = " ".join(str(error).split())
        what = what if isinstance(error, (*expected, TypeError)) else f"{type(error).__name__}: {what}"
        raise InputError(f"cannot make environment {name!r}: {what}") from error


def parsed(wrapper: str) -> tuple[str, str, dict[str, Any]]:
    """The module, the name and the keyword arguments of ``module:Name(key=value)``; raises InputError."""
    target, parenthesis, rest = wrapper.partition("(")
    module, colon, name = target.rpartition(":")
    module = module if colon else WRAPPERS
    kwargs = {}
    try:
        if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
            raise ValueError
        if parenthesis:
            call = ast.parse(f"f({rest}", mode="eval").body
            if (
                not isinstance(call, ast.Call)
                or not isinstance(call.func, ast.Name)
                or call.args
                or any(keyword.arg is None for keyword in call.keywords)
            ):
                raise ValueError
            kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"wrapper must be module:Name or module:Name(key=value), got {wrapper!r}") from None
    return module, name, kwargs


def _wrapped(env: gym.Env[Any, Any], wrapper: str, env_id: str) -> gym.Env[Any, Any]:
    module, name, kwargs = parsed(wrapper)
    try:
        found = importlib.import_module(module)
        wrap = getattr(found, name)
    except ImportError as error:
        raise InputError(f"wrapper {wrapper!r}: {error}") from error
    except AttributeError as error:
        close = get_close_matches(name, [other for other in dir(found) if other[0].isupper()], 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"wrapper {wrapper!r}: {module} has no {name}{meant}") from error
    try:
        wrapped = wrap(env, **kwargs)
    except Exception as error:
        what = " ".join(str(error).split())
        raise InputError(f"wrapper {wrapper!r} does not fit {env_id}: {type(error).__name__}: {what}") from error
    if not isinstance(wrapped, gym.Env):
        raise InputError(f"wrapper {wrapper!r} must give a gymnasium.Env, got {type(wrapped).__name__}")
    return wrapped

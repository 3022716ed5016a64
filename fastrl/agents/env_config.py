"""An environment's id with its keyword arguments and wrappers: what agents can be made from, and checkpoints keep."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import CodeType, FunctionType, MethodType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper

from fastrl.agents.config import InputError, in_parentheses, setting_parts

WRAPPERS = "gymnasium.wrappers"
WRITES = ("RecordVideo",)  # files, where a checkpoint says
# Wrappers that leave the task as it is.
ASIDE = ("DictInfoToList", "HumanRendering", "OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics", *WRITES)
OF_VECTORS = ("autoreset_mode", "num_envs", "vector_kwargs", "vectorization_mode")  # arguments of make_vec's
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
    kwargs = {name: _told(value)[0] for name, value in kwargs.items() if name not in ("render_mode", *OF_VECTORS)}
    kwargs = {name: value for name, value in kwargs.items() if value != _told(default.get(name))[0]}
    return kwargs, [_call(wrapper.name, wrapper.kwargs or {}) for wrapper in spec.additional_wrappers]


def told_of(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> dict[str, Any]:
    """What an environment that was given was made with, as JSON, so that other tasks are told apart.

    Its `name` (the id, or the class), env_kwargs, wrappers (the innermost first, those of vectors, too), and what is
    `unknown`: what was made with arguments of which nothing is known.
    """
    layers: list[Any] = []
    outer: Any = env
    while isinstance(outer, VectorWrapper):
        layers.append(outer)
        outer = outer.env
    outer = outer.envs[0] if isinstance(outer, SyncVectorEnv) else outer
    spec = outer.spec if isinstance(outer.spec, EnvSpec) else None
    inner, single = outer, []
    while isinstance(inner, gym.Wrapper):
        single.append(inner)
        inner = inner.env
    layers += single if spec is None else single[: len(spec.additional_wrappers)]  # the others are those of `make`
    wrappers, unknown = [], []
    for layer in reversed([layer for layer in layers if type(layer).__name__ not in ASIDE]):
        made = dict(layer._saved_kwargs) if isinstance(layer, RecordConstructorArgs) else {}
        made.pop("env", None)
        wrappers.append(_call(type(layer).__name__, made))
        if not _told(made)[1] or (not isinstance(layer, RecordConstructorArgs) and _takes(type(layer)) > 1):
            unknown.append(type(layer).__name__)
    if spec is not None:
        name, kwargs = spec.id, told(spec)[0]
        unknown += [key for key, value in spec.kwargs.items() if not _told(value)[1]]
        return {"name": name, "env_kwargs": kwargs, "wrappers": wrappers, "unknown": unknown}
    maker: Any = outer.env_fns[0] if isinstance(outer, AsyncVectorEnv) else type(inner)
    name, known = _told(maker)
    if not known or (isinstance(maker, type) and _takes(maker)):
        unknown.append(name)
    if isinstance(maker, type) and maker.__module__ != "__main__":
        name = f"{maker.__module__}.{name}"
    return {"name": name, "env_kwargs": {}, "wrappers": wrappers, "unknown": unknown}


def _takes(cls: type[Any]) -> int:
    """How many arguments that could make another task of it."""
    if cls.__init__ is object.__init__:
        return 0
    try:
        return len(set(inspect.signature(cls.__init__).parameters) - {"self", "render_mode", "num_envs"})
    except (TypeError, ValueError):
        return 9


def _call(name: str, kwargs: Mapping[str, Any]) -> str:
    parts = setting_parts(_told(dict(kwargs))[0], ())
    return name + (f"({', '.join(parts)})" if parts else "")


def _told(value: Any) -> tuple[Any, bool]:
    """A value as JSON, of an array a digest, of a function its name; and whether that tells all of it."""
    if isinstance(value, Mapping):
        items = {str(key): _told(item) for key, item in value.items()}
        return {key: item for key, (item, _) in items.items()}, all(known for _, known in items.values())
    if isinstance(value, (list, tuple)):
        told = [_told(item) for item in value]
        return [item for item, _ in told], all(known for _, known in told)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)} {digest(value.tobytes())}", not value.dtype.hasobject
    try:
        return json.loads(json.dumps(value)), True
    except (TypeError, ValueError, RecursionError):
        pass
    name = str(getattr(value, "__qualname__", getattr(value, "__name__", type(value).__name__)))
    if isinstance(value, FunctionType) and "<" in name:  # of a function without a name in a module, what it does
        code = value.__code__
        inside = [item for item in code.co_consts if isinstance(item, CodeType)]
        alone = not (code.co_names or code.co_freevars or value.__defaults__ or value.__kwdefaults__ or inside)
        plain = [item for item in code.co_consts if isinstance(item, (int, float, str, bytes))]
        return f"{value.__name__} {digest(code.co_code + repr((code.co_names, plain)).encode())}", alone
    return name, (callable(value) and hasattr(value, "__name__") and not isinstance(value, MethodType))


def digest(data: bytes) -> str:
    """A few characters that tell one from another, the same in every process."""
    return hashlib.sha256(data).hexdigest()[:8]


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

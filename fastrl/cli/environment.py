"""The environment that the options describe."""

from __future__ import annotations

import ast
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrl.agents.config import InputError

if TYPE_CHECKING:
    from fastrl.agents import EnvConfig


def described(env: str, kwargs: Sequence[str], wrappers: Sequence[str]) -> EnvConfig:
    """`--env`, `--env-kwargs` and `--wrapper`; those that are not given are None.  Raises InputError.

    Modules are looked for in the current folder, too, behind all others: nothing there is in the way of a package.
    """
    from fastrl.agents import EnvConfig

    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    return EnvConfig(env, keyword_arguments(kwargs) if kwargs else None, wrappers or None)


def of_run(run: Path, env: str | None, kwargs: Sequence[str], wrappers: Sequence[str]) -> EnvConfig | None:
    """What the options say of a saved agent's environment; None: nothing."""
    from fastrl.agents.checkpoint import load_config

    if env is None and not kwargs and not wrappers:
        return None
    saved = load_config(run).get("env")
    if env is None and (not isinstance(saved, str) or ":" in saved):
        return None  # loading it says that --env is missing
    return described(str(saved) if env is None else env, kwargs, wrappers)


def keyword_arguments(words: Sequence[str]) -> dict[str, Any]:
    """``key=value`` (JSON, Python's True, False, None, or text) and JSON objects as one dict; raises InputError."""
    result: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if word.lstrip().startswith("{"):
            try:
                result |= json.loads(word)
            except (ValueError, RecursionError, TypeError) as error:
                raise InputError(f"--env-kwargs must be key=value or a JSON object, got {word!r}: {error}") from None
        elif equals and name.isidentifier():
            result[name] = _value(value)
        else:
            raise InputError(f"--env-kwargs must be key=value or a JSON object, got {word!r}")
    return result


def _value(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass
    return text


def flags(spec: Any) -> str:
    """What has to be said again to go on with a run: ids and wrappers that import modules."""
    from fastrl.agents import EnvConfig

    config = EnvConfig(spec) if isinstance(spec, str) else spec
    if not isinstance(config, EnvConfig) or not (foreign := config.imports()):
        return ""
    env = f" --env {config.id}" if config.id in foreign else ""
    again = [] if foreign in ([], [config.id]) else ["", "--wrapper", *map(shlex.quote, config.wrappers or ())]
    return env + " ".join(again)

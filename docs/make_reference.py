"""Write what shows every hyperparameter of every agent, from the config classes: docs/reference-agents.md, and
fastrl/agents/__init__.pyi for editors and type checkers.

python docs/make_reference.py
"""

import inspect
import sys
from dataclasses import fields
from pathlib import Path

import fastrl.agents
from fastrl.agents.config import describe_settings, meanings
from fastrl.agents.hyperparameters import CONFIGS
from fastrl.agents.loading import algorithm_class

BAR = "\\|"  # in a cell of a table
PAGE = Path(__file__).with_name("reference-agents.md")
NO_MODULES = {"R2D2", "RecurrentPPO", "CrossQ", "QLearning", "SARSA", "ExpectedSARSA", "FQI"}  # as network=
STUB = Path(__file__).parents[1] / "fastrl" / "agents" / "__init__.pyi"
HEAD = """\
# Hyperparameters

Each is a keyword of the agent's constructor (`SAC("Pendulum-v1", tau=0.01)`), a field of its config class
(`SACConfig(tau=0.01)`) and an option of the command line (`fastrl train sac --tau 0.01`). `help(SAC)` and editors show
them, too. This page is made by `python docs/make_reference.py`. What the agents have in common is in
[agents.md](agents.md).
"""


def page():
    """The text of the page."""
    parts = [HEAD]
    for name, config in CONFIGS.items():
        agent = algorithm_class(name)
        summary = " ".join(agent.__doc__.split("\n\n")[0].split()).replace("``", "`")
        parts.append(f"## {agent.__name__}\n\n`{name}`, `{config.__name__}`. {summary}\n")
        rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
        told = meanings(config)
        for field in fields(config):
            cells = f"`{field.name}`", f"`{field.type}`", f"`{field.default!r}`", " ".join(told[field.name].split())
            rows.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def stub():
    """The text of fastrl/agents/__init__.pyi: the constructors with a keyword for each setting."""
    agents = dict(fastrl.agents.CLASS_NAMES)
    lines = [
        "# Made by `python docs/make_reference.py`: the constructors as editors and type checkers see them.",
        "from collections.abc import Sequence",
        "from typing import Any, Literal",
        "",
        "from fastrl.agents.agent import Env",
        "from fastrl.agents.config import InputError as InputError",
    ]
    modules = fastrl.agents._MODULES
    for name in sorted(modules, key=lambda name: (modules[name], name)):
        other = f"_{name}" if name in agents.values() else name
        lines.append(f"from fastrl.agents.{modules[name]} import {name} as {other}")
    configs = sorted(name for name in fastrl.agents.__all__ if name.endswith("Config") and name not in modules)
    lines += [f"from fastrl.agents.hyperparameters import {name} as {name}" for name in configs]
    lines += ["", f"__all__ = {sorted(fastrl.agents.__all__)!r}", "", "CLASS_NAMES: dict[str, str]"]
    lines += ["ALGORITHMS: dict[str, type[Agent[Any]]]"]
    for algorithm, name in agents.items():
        lines += ["", *_constructor(name, CONFIGS[algorithm], algorithm_class(algorithm))]
    return "\n".join(lines) + "\n"


def _constructor(name, config, agent):
    kept = inspect.Parameter.KEYWORD_ONLY
    more = [p.name for p in inspect.signature(agent.__init__).parameters.values() if p.kind == kept]
    settings = dict.fromkeys([*["network"] * (name not in NO_MODULES), *more], "Any = None")
    for field in fields(config):
        modules = [sys.modules[base.__module__] for base in config.__mro__[:-1]]
        alias = next((vars(module)[field.type] for module in modules if field.type in vars(module)), None)
        kind = (
            str(field.type if alias is None else alias)
            .replace("typing.", "")
            .replace("tuple[int, ...]", "Sequence[int]")
        )
        takes_objects = name not in NO_MODULES if field.name == "network" else field.name in more
        settings[field.name] = f"{'Any' if takes_objects else kind} = {field.default!r}"
    yield f"class {name}(_{name}):"
    yield "    def __init__("
    yield f"        self, env: Env, config: {config.__name__} | None = None, *,"
    yield from (f"        {option}: {told}," for option, told in settings.items())
    yield "    ) -> None:"
    yield '        """Hyperparameters:'
    yield ""
    yield from (f"    {line}" for line in describe_settings(config).splitlines())
    yield '        """'


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    STUB.write_text(stub(), encoding="utf-8")

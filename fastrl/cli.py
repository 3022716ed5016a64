"""The `fastrl` command.  Whatever the user gets wrong is one line on stderr beginning with ``fastrl: `` and exit 2."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import fastrl

if TYPE_CHECKING:
    from fastrl.agents import DQN

USAGE = """\
usage: fastrl train ALGORITHM --env ENV [--total-steps N] [--seed S] [--out DIR] ...   train an agent
       fastrl train ALGORITHM --resume RUN                                             go on with a run
       fastrl eval RUN [--episodes 20]                                                 greedy returns of a saved agent
       fastrl info                                                                     versions and backends
       fastrl --version

`fastrl train dqn --help` lists the hyperparameters."""
AGENT_PACKAGES = ("gymnasium", "rich", "safetensors", "tensorboard", "torch", "tyro")
DEFAULT_STEPS = 50_000

C = TypeVar("C")


@dataclasses.dataclass
class Train(Generic[C]):
    """Train an agent.  Logs (CSV, TensorBoard) and the checkpoint go to a new run folder."""

    hyperparameters: C
    env: str | None = None
    """Gymnasium environment id."""
    total_steps: int | None = None
    """Environment steps from the start of training (50000; when resuming, the run's own)."""
    out: Path | None = None
    """Run folder; must not exist or be empty (runs/ENV-ALGORITHM-seedS-TIME)."""
    resume: Path | None = None
    """Run folder to go on with, exactly where it stopped."""
    config: Path | None = None
    """JSON file of hyperparameters, or a checkpoint's config.json; flags go before it."""
    save_every: int = 10_000
    """Environment steps from one checkpoint to the next."""
    threads: int = 1
    """PyTorch's threads on the CPU; more than one pays only for large networks, and slows small ones down."""


@dataclasses.dataclass
class Eval:
    """Returns of a saved agent's greedy policy in fresh environments."""

    run: Path
    """Run or checkpoint folder."""
    episodes: int = 20
    seed: int = 1_000_000
    """Episode i begins with reset(seed + i)."""
    device: str | None = None
    """Another device than the agent was trained on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 (the user's input is at fault) or 130 (Ctrl-C)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] == "--version":
        print(f"fastrl {fastrl.__version__}")
        return 0
    if args[0] == "info":
        return _info()
    if args[0] not in ("train", "eval"):
        return _fail(f"unknown command {args[0]!r}; known are train, eval, info")
    missing = [name for name in AGENT_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f'agents need {", ".join(missing)}; to install: pip install "fastrl-kernels[agents]"')
    from fastrl.agents.config import InputError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return _train(args[1:]) if args[0] == "train" else _eval(args[1:])
    except InputError as error:
        return _fail(str(error))
    except MemoryError as error:
        return _fail(f"not enough memory: {error}")
    except RuntimeError as error:  # how torch says it
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        return _fail(f"not enough memory: {str(error).splitlines()[0]}")
    except KeyboardInterrupt as error:
        print(f"fastrl: interrupted{error}", file=sys.stderr)
        return 130


def _train(args: list[str]) -> int:
    from fastrl.agents import ALGORITHMS
    from fastrl.agents.config import InputError

    known = ", ".join(ALGORITHMS)
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: fastrl train ALGORITHM ...; the algorithms are: {known}")
        return 0 if args else 2
    name, *flags = args
    if name not in ALGORITHMS:
        raise InputError(f"unknown algorithm {name!r}; known are {known}")
    algorithm = ALGORITHMS[name]
    config_class = algorithm.config_class
    command: type[Train[Any]] = Train[config_class]  # type: ignore[valid-type]

    options = _parse(command, flags, f"fastrl train {name}", Train(config_class()))
    if options.config is not None:
        from_file = _hyperparameters(algorithm, _read_config(options.config), f"--config {options.config}")
        options = _parse(command, flags, f"fastrl train {name}", Train(from_file))
    if options.threads < 1:
        raise InputError(f"--threads must be >= 1, got {options.threads}")
    import torch

    torch.set_num_threads(options.threads)
    if options.resume is not None:
        return _resume(algorithm, command, flags, options)
    if options.env is None:
        raise InputError("--env ENV is missing, for instance --env CartPole-v1")
    agent = algorithm(options.env, options.hyperparameters)
    out = options.out
    if out is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        run = f"{options.env.replace('/', '_')}-{name}-seed{agent.config.seed}-{stamp}"
        out = Path("runs") / run
    _check_new(out)
    return _run(agent, out, DEFAULT_STEPS if options.total_steps is None else options.total_steps, options.save_every)


def _resume(algorithm: type[DQN], command: type[Train[Any]], flags: list[str], options: Train[Any]) -> int:
    from fastrl.agents.checkpoint import load_checkpoint
    from fastrl.agents.config import InputError

    assert options.resume is not None
    saved = _hyperparameters(algorithm, load_checkpoint(options.resume).config, str(options.resume))
    # The same flags over the saved hyperparameters: whatever then differs was asked for anew.
    wanted = _parse(command, flags, "fastrl train", Train(saved)).hyperparameters
    changed = [f.name for f in dataclasses.fields(wanted) if getattr(wanted, f.name) != getattr(saved, f.name)]
    if options.config is not None or set(changed) - {"device"}:
        what = "--config" if options.config is not None else ", ".join(changed)
        raise InputError(f"--resume takes the hyperparameters of the run; {what} cannot be changed")
    agent = algorithm.load(options.resume, env=options.env, device=wanted.device)
    if options.out is not None:
        _check_new(options.out)
    out = options.out or (options.resume.parent if options.resume.name == "checkpoint" else options.resume)
    total = agent.total_steps if options.total_steps is None else options.total_steps
    return _run(agent, out, total, options.save_every)


def _run(agent: DQN, out: Path, total_steps: int, save_every: int) -> int:
    began, first = time.perf_counter(), agent.steps
    try:
        agent.learn(total_steps, folder=out, save_every=save_every)
    except KeyboardInterrupt as error:
        if not error.args:  # a second Ctrl-C did not wait for the save
            raise KeyboardInterrupt(f" at step {agent.steps}; nothing saved since the last checkpoint") from None
        go_on = f"fastrl train {agent.algorithm} --resume {out}"
        raise KeyboardInterrupt(f" at step {agent.steps}; {error}; go on with: {go_on}") from None
    seconds = time.perf_counter() - began
    returns = agent.evaluate()
    rows = {
        "agent": _describe(agent),
        "environment steps": f"{agent.steps:,} ({agent.envs.episodes:,} episodes)",
        "training": f"{seconds:.1f} s, {(agent.steps - first) / seconds:,.0f} steps/s",
        "return, last episodes of training": _mean([r for r, _ in agent.envs.recent]),
        f"return, greedy, {len(returns)} episodes": _mean(returns),
        "saved in": str(out),
    }
    _table("result", rows)
    return 0


def _eval(args: list[str]) -> int:
    from fastrl.agents import ALGORITHMS
    from fastrl.agents.checkpoint import load_checkpoint
    from fastrl.agents.config import InputError

    options = _parse(Eval, args, "fastrl eval", None)
    name = load_checkpoint(options.run).config.get("algorithm")
    if name not in ALGORITHMS:
        raise InputError(f"{options.run}: unknown algorithm {name!r}; known are {', '.join(ALGORITHMS)}")
    agent = ALGORITHMS[name].load(options.run, device=options.device)
    returns = agent.evaluate(options.episodes, options.seed)
    rows = {
        "agent": _describe(agent),
        "trained for": f"{agent.steps:,} environment steps",
        "episodes": str(len(returns)),
        "return": _mean(returns),
        "least, most": f"{min(returns):.1f}, {max(returns):.1f}",
    }
    _table(str(options.run), rows)
    return 0


def _info() -> int:
    from fastrl import _backend

    info = _backend.info()
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for name, value in _flat(info):
            print(f"{name}: {value}")
        return 0
    table = Table("", "", title="fastrl info", show_header=False)
    for name, value in _flat(info):
        table.add_row(name, value)
    Console().print(table, markup=False)
    return 0


def _flat(info: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested dictionaries as rows: ``("ops sum_tree cpu", "cpp (compiled extension)")``."""
    rows: list[tuple[str, str]] = []
    for key, value in info.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key} ")
        elif isinstance(value, tuple):
            rows.append((prefix + key, f"{value[0]} ({value[1]})"))
        else:
            rows.append(
                (prefix + key, (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value))
            )
    return rows


def _parse(cls: Any, args: list[str], prog: str, default: Any) -> Any:
    """tyro's parse, with its boxed error message as a one-line InputError."""
    import tyro

    from fastrl.agents.config import InputError

    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            markers = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs)
            extra = {} if default is None else {"default": default}
            return tyro.cli(cls, prog=prog, args=args, config=markers, **extra)
    except SystemExit as error:
        if not error.code:  # --help
            raise
        _, *lines = (line.strip("│╭╮╰╯─|+- ") for line in stderr.getvalue().splitlines())  # without the box's title
        raise InputError(" ".join(line for line in lines if line)) from None


def _read_config(path: Path) -> dict[str, Any]:
    from fastrl.agents.config import InputError

    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"--config {path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"--config {path} must hold a JSON object of hyperparameters, got {type(values).__name__}")
    return values


def _hyperparameters(algorithm: type[DQN], values: dict[str, Any], where: str) -> Any:
    """The config in `values`: the settings themselves, or a checkpoint's config.json, which wraps them."""
    from fastrl.agents.config import InputError, make_config

    if "algorithm" in values:
        if values["algorithm"] != algorithm.algorithm:
            raise InputError(f"{where} is of algorithm {values['algorithm']!r}, not {algorithm.algorithm!r}")
        values = values.get("config")  # type: ignore[assignment]
        if not isinstance(values, dict):
            raise InputError(f"{where}: config must be an object of hyperparameters, got {values!r}")
    return make_config(algorithm.config_class, values, where)


def _check_new(out: Path) -> None:
    from fastrl.agents.config import InputError

    with contextlib.suppress(NotADirectoryError):  # the attempt to make the folder says that better
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"--out {out} exists and is not an empty folder; nothing is overwritten")


def _describe(agent: DQN) -> str:
    c = agent.config
    switches = [name for name in ("double", "dueling", "prioritized") if getattr(c, name)]
    return f"{agent.algorithm.upper()}{' (' + ', '.join(switches) + ')' if switches else ''} on {agent.envs.env_id}"


def _mean(returns: Any) -> str:
    import numpy as np

    return f"{np.mean(returns):.1f} +- {np.std(returns):.1f}" if len(returns) else "none"


def _table(title: str, rows: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=False)
    for name, value in rows.items():
        table.add_row(name, Text(value, overflow="fold"))
    Console().print(table)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"fastrl: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str) -> int:
    print(f"fastrl: {message}", file=sys.stderr)
    return 2

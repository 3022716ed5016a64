"""The `fastrl` command.  Whatever the user gets wrong is one line on stderr beginning with ``fastrl: `` and exit 2."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import fastrl

if TYPE_CHECKING:
    import gymnasium as gym

    from fastrl import bench
    from fastrl.agents.agent import Agent

USAGE = """\
usage: fastrl train ALGORITHM --env ENV [--total-steps N] [--seed S] [--out DIR] ...   train an agent
       fastrl train --resume RUN                                                       go on with a run
       fastrl eval RUN [--episodes 20] [--video DIR]                                   greedy returns of a saved agent
       fastrl plot RUN [RUN ...] -o curves.png                                         learning curves over seeds
       fastrl bench [-o FOLDER] [--kernels gae sum_tree ...] [--quick]                 the kernels' speed here
       fastrl info                                                                     versions and backends
       fastrl --version

`fastrl train --help` lists the algorithms, and `fastrl train dqn --help` the hyperparameters of one."""
AGENT_PACKAGES = ("gymnasium", "rich", "safetensors", "tensorboard", "torch", "tyro")
DEFAULT_STEPS = {"dqn": 50_000, "reinforce": 200_000, "a2c": 500_000, "actor_critic": 500_000}
OTHERS_STEPS = 100_000
COMMANDS = ("train", "eval", "plot", "bench", "info")

C = TypeVar("C")


@dataclasses.dataclass
class Train(Generic[C]):
    """Train an agent.  Logs (CSV, TensorBoard) and the checkpoint go to a new run folder."""

    hyperparameters: C
    env: str | None = None
    """Gymnasium environment id."""
    total_steps: int | None = None
    """Environment steps from the start of training (`fastrl train --help` has the defaults; resumed: the run's own)."""
    out: Path | None = None
    """Run folder; must not exist or be empty (runs/ENV-ALGORITHM-seedS-TIME)."""
    resume: Path | None = None
    """Run folder to go on with, exactly where it stopped."""
    config: Path | None = None
    """JSON file of hyperparameters, or a checkpoint's config.json; flags override it."""
    save_every: int = 10_000
    """Environment steps from one checkpoint to the next."""
    threads: int = 1
    """PyTorch's threads on the CPU; more than one pays only for large networks, and slows small ones down."""
    max_episode_steps: int = 30_000
    """Steps after which an episode of the evaluation at the end is cut; 0: never."""


@dataclasses.dataclass
class Eval:
    """Returns of a saved agent's greedy policy in fresh environments."""

    run: Path
    """Run or checkpoint folder."""
    episodes: int = 20
    seed: int = 1_000_000
    """Episode i begins with reset(seed + i)."""
    env: str | None = None
    """The run's environment again; needed only where its id names a module to import (module:Id)."""
    max_episode_steps: int = 30_000
    """Steps after which an episode is cut; 0: never."""
    device: str | None = None
    """Another device than the agent was trained on."""
    video: Path | None = None
    """Folder for videos of the first episodes."""
    video_episodes: int = 1
    """How many episodes to film, with --video."""


@dataclasses.dataclass
class Plot:
    """Learning curves: interquartile mean over the seeds, and its 95 % bootstrap interval as a band."""

    runs: tuple[Path, ...]
    """Run folders, evaluation logs (CSV), folders that hold several, or patterns of them."""
    out: Path | None = None
    """The picture (-o for short): .png, .pdf or .svg."""
    y: str | None = None
    """Column of the logs to draw (episode_return, or greedy_return of an evaluation's log)."""
    csv: Path | None = None
    """Write the plotted numbers to this file, too."""
    title: str | None = None
    """Over all of the picture."""


@dataclasses.dataclass
class Bench:
    """The kernels' speed on this machine, beside plain code and the libraries that are installed."""

    kernels: tuple[str, ...] = ()
    """Only these (all)."""
    quick: bool = False
    """One tiny size each: shows that it works, not how fast it is."""
    out: Path | None = None
    """Folder for bench.csv and bench.png (-o for short); must not exist or be empty."""
    threads: int = 1
    """CPU threads, for us and for the others."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0; 1: the environment raised; 2: the user's input is at fault; 130: Ctrl-C; 141: nobody reads the output any more;
    143: SIGTERM.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _main(args)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `| head -1`; what is left to be written at exit goes nowhere
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except KeyboardInterrupt as error:
        print(f"fastrl: interrupted{error}", file=sys.stderr)
        return 130


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] == "--version":
        print(f"fastrl {fastrl.__version__}")
        return 0
    if args[0] == "info":
        return _info(args[1:])
    if args[0] not in COMMANDS:
        return _fail(f"unknown command {args[0]!r}; known are {', '.join(COMMANDS)}")
    missing = [name for name in AGENT_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f'agents need {", ".join(missing)}; to install: pip install "fastrl-kernels[agents]"')
    from fastrl.agents.config import InputError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return {"train": _train, "eval": _eval, "plot": _plot, "bench": _bench}[args[0]](args[1:])
    except InputError as error:
        return _fail(str(error))
    except Failure as error:
        return _fail(str(error), 1)
    except MemoryError as error:
        return _fail(f"not enough memory: {error}")
    except RuntimeError as error:
        if not _no_memory(error):
            raise
        return _fail(f"not enough memory: {str(error).splitlines()[0]}")


class Failure(Exception):
    """The environment raised: one line, and exit code 1."""


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """What an evaluation raises as a `Failure`."""
    from fastrl.agents.config import InputError

    try:
        yield
    except (BrokenPipeError, InputError, MemoryError):
        raise
    except Exception as error:
        if _no_memory(error):
            raise
        raise Failure(f"{_one_line(error)} in an evaluation") from error


def _no_memory(error: BaseException) -> bool:
    """Is it torch's way of saying so?"""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def _train(args: list[str]) -> int:
    from fastrl.agents.checkpoint import load_config
    from fastrl.agents.config import InputError

    if not args or args[0] in ("-h", "--help"):
        print("usage: fastrl train ALGORITHM --env ENV ...\n       fastrl train --resume RUN ...\n")
        print("The algorithms, and how many steps they take by default:")
        for name in _algorithms():
            print(f"  {name:<16}{DEFAULT_STEPS.get(name, OTHERS_STEPS):>9,}")
        print("\n`fastrl train ALGORITHM --help` lists the hyperparameters.")
        return 0 if args else 2
    name, *flags = args
    if name.startswith("-"):
        run = _value_of("--resume", args)
        if run is None:
            if any(arg.partition("=")[0] == "--resume" for arg in args):
                raise InputError("--resume RUN: the run's folder is missing")
            raise InputError(f"the algorithm comes before {name}: fastrl train ALGORITHM ...")
        name, flags = load_config(run).get("algorithm", ""), args  # a checkpoint names its algorithm
        algorithm = _algorithm(name, f"{run}: ")
    else:
        algorithm = _algorithm(name)
    config_class = algorithm.config_class
    command: type[Train[Any]] = Train[config_class]  # type: ignore[valid-type]

    options = _parse(command, flags, f"fastrl train {name}", Train(config_class()))
    if options.config is not None:
        from_file = _hyperparameters(algorithm, _read_config(options.config), f"--config {options.config}")
        options = _parse(command, flags, f"fastrl train {name}", Train(from_file))
    _check_threads(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    if options.resume is not None:
        return _resume(algorithm, command, flags, options)
    if options.env is None:
        raise InputError("--env ENV is missing, for instance --env CartPole-v1")
    if options.out is not None:
        _check_new(options.out)
    make: Any = algorithm
    agent: Agent[Any] = make(options.env, options.hyperparameters)
    total = DEFAULT_STEPS.get(name, OTHERS_STEPS) if options.total_steps is None else options.total_steps
    with _closing(agent):
        if options.out is not None:
            return _run(agent, options.out, total, options)
        out = _new_folder(f"{re.sub('[/:]', '_', options.env)}-{name}-seed{agent.config.seed}")
        try:
            return _run(agent, out, total, options)
        finally:
            with contextlib.suppress(OSError):  # something came of the run
                out.rmdir()


def _new_folder(name: str) -> Path:
    """An empty folder in runs/ that nobody else has: of two commands in one second, one gets a number."""
    from fastrl.agents.config import InputError

    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        Path("runs").mkdir(exist_ok=True)
        for number in count(1):
            out = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
            with contextlib.suppress(FileExistsError):
                out.mkdir()
                return out
    except OSError as error:
        raise InputError(f"cannot write to {Path('runs') / stem}: {error.strerror or error}") from error
    raise AssertionError


@contextlib.contextmanager
def _closing(agent: Agent[Any]) -> Iterator[None]:
    """Close the environments in the end: simulators and windows may outlive the command else."""
    try:
        yield
    finally:
        close = getattr(agent, "close", None) or agent.envs.vec.close
        close()


def _value_of(flag: str, args: list[str]) -> str | None:
    """The value that follows `flag`, or an = behind it; the last one counts."""
    pairs = zip(args, [*args[1:], None], strict=True)
    values = [arg.partition("=")[2] or following for arg, following in pairs if arg.partition("=")[0] == flag]
    return values[-1] if values and values[-1] and not values[-1].startswith("-") else None


def _resume(algorithm: type[Agent[Any]], command: type[Train[Any]], flags: list[str], options: Train[Any]) -> int:
    from fastrl._files import locked
    from fastrl.agents.checkpoint import load_config
    from fastrl.agents.config import InputError
    from fastrl.agents.training import LOCK

    assert options.resume is not None
    saved = _hyperparameters(algorithm, load_config(options.resume), str(options.resume))
    # The same flags over the saved hyperparameters: whatever then differs was asked for anew.
    wanted = _parse(command, flags, "fastrl train", Train(saved)).hyperparameters
    changed = [f.name for f in dataclasses.fields(wanted) if getattr(wanted, f.name) != getattr(saved, f.name)]
    if options.config is not None or set(changed) - {"device"}:
        what = "--config" if options.config is not None else ", ".join(changed)
        raise InputError(f"--resume takes the hyperparameters of the run; {what} cannot be changed")
    if options.out is not None:
        _check_new(options.out)
    out = options.out or (options.resume.parent if options.resume.name == "checkpoint" else options.resume)
    try:  # a run that is in use is not at its end: what is loaded now would be old by then
        with locked(out / LOCK, wait=False) if options.out is None else contextlib.nullcontext():
            agent = algorithm.load(options.resume, env=options.env, device=wanted.device)
    except BlockingIOError:
        raise InputError(f"{out} is in use: another process trains there") from None
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}") from error
    with _closing(agent):
        total = agent.total_steps if options.total_steps is None else options.total_steps
        if agent.steps >= total > 0:
            print(
                f"{options.resume} is finished: {agent.steps:,} of {total:,} steps; "
                f"for its returns: fastrl eval {options.resume}; to go on: --total-steps N"
            )
            return 0
        if options.total_steps is None and total == 0:
            raise InputError(f"{options.resume} does not say how far it was to go: give --total-steps N")
        return _run(agent, out, total, options)


def _run(agent: Agent[Any], out: Path, total_steps: int, options: Train[Any]) -> int:
    from fastrl.agents.config import InputError

    began, first = time.perf_counter(), agent.steps
    go_on = f"fastrl train --resume {out}"
    if ":" in str(agent.envs.env_id):
        go_on += f" --env {agent.envs.env_id}"
    try:
        agent.learn(total_steps, folder=out, save_every=options.save_every)
    except KeyboardInterrupt as error:
        if not error.args:  # a second Ctrl-C did not wait for the save
            raise KeyboardInterrupt(f" at step {agent.steps}; nothing saved since the last checkpoint") from None
        raise KeyboardInterrupt(f" at step {agent.steps}; {error}; go on with: {go_on}") from None
    except SystemExit as stop:
        if stop.code != 128 + signal.SIGTERM:
            raise
        return _fail(f"terminated at step {agent.steps}; {_what_is_saved(agent, out, go_on)}", 128 + signal.SIGTERM)
    except InputError as error:
        if agent.steps == first:
            raise
        raise InputError(f"{error}; {_what_is_saved(agent, out, go_on)}") from error
    except Exception as error:
        if isinstance(error, (BrokenPipeError, MemoryError)) or _no_memory(error):
            raise
        raise Failure(f"{_one_line(error)} at step {agent.steps}; {_what_is_saved(agent, out, go_on)}") from error
    seconds = time.perf_counter() - began
    rows = {
        "agent": agent.describe(),
        "environment steps": f"{agent.steps:,} ({agent.envs.episodes:,} episodes)",
        "training": f"{seconds:.1f} s, {(agent.steps - first) / seconds:,.0f} steps/s",
        "return, last episodes of training": _mean([r for r, _ in agent.envs.recent]),
    }
    returns = []
    try:
        with _failures():
            returns = _evaluate(agent, 20, 1_000_000, options.max_episode_steps)
    finally:
        rows[f"return, greedy, {len(returns)} episodes"] = _mean(returns)
        _table("result", {**rows, "saved in": str(out)})
    return 0 if len(returns) == 20 else 130


def _what_is_saved(agent: Agent[Any], out: Path, go_on: str) -> str:
    from fastrl.agents.checkpoint import load_checkpoint
    from fastrl.agents.config import InputError

    try:
        with load_checkpoint(out) as checkpoint:
            step = checkpoint.state.get("steps")
    except InputError:
        return "nothing is saved"
    return f"saved up to step {step}; go on with: {go_on}"


def _one_line(error: BaseException) -> str:
    """The error and where it was raised: most likely in the user's environment."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})" if trace is not None else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def _evaluate(
    agent: Agent[Any], episodes: int, seed: int, max_steps: int, env: gym.Env[Any, Any] | None = None
) -> list[float]:
    """Returns of the episodes, or those up to a Ctrl-C; says how far it is when that takes long."""
    last = time.monotonic()

    def tick(episode: int, step: int) -> None:
        nonlocal last
        if time.monotonic() - last > 2:
            print(f"evaluating: step {step:,} of episode {episode} of {episodes}", file=sys.stderr)
            last = time.monotonic() + 8

    returns, cut = [], 0
    try:
        for episode in agent._play(episodes, seed, env, max_steps, tick):
            returns.append(episode.reward)
            cut += episode.cut
    except KeyboardInterrupt:
        print(f"fastrl: interrupted after {len(returns)} of {episodes} episodes", file=sys.stderr)
    if cut:
        _warn(f"{cut} of {len(returns)} episodes were cut at {max_steps:,} steps (--max-episode-steps)")
    return returns


def _eval(args: list[str]) -> int:
    from fastrl.agents.checkpoint import load_config
    from fastrl.agents.config import InputError

    options = _parse(Eval, args, "fastrl eval", None)
    if options.episodes < 1:
        raise InputError(f"--episodes must be >= 1, got {options.episodes}")
    if options.seed < 0:
        raise InputError(f"--seed must be >= 0, got {options.seed}")
    if options.video_episodes < 1:
        raise InputError(f"--video-episodes must be >= 1, got {options.video_episodes}")
    if options.max_episode_steps < 0:
        raise InputError(f"--max-episode-steps must be >= 0, got {options.max_episode_steps}")
    algorithm = _algorithm(load_config(options.run).get("algorithm"), f"{options.run}: ")
    agent = algorithm.load(options.run, env=options.env, device=options.device)
    videos: list[Path] = []
    with _closing(agent), _failures():
        if options.video is None:
            returns = _evaluate(agent, options.episodes, options.seed, options.max_episode_steps)
        else:
            returns, videos = _film(agent, options)
    rows = {
        "agent": agent.describe(),
        "trained for": f"{agent.steps:,} environment steps",
        "episodes": str(len(returns)),
        "return": _mean(returns),
    }
    if returns:
        rows["least, most"] = f"{min(returns):.1f}, {max(returns):.1f}"
    if videos:
        rows["video"] = "\n".join(map(str, videos))
    _table(str(options.run), rows)
    return 0 if len(returns) == options.episodes else 130


def _film(agent: Agent[Any], options: Eval) -> tuple[list[float], list[Path]]:
    """Returns of all episodes, and the videos (MP4) of the first of them."""
    from fastrl.agents.config import InputError
    from fastrl.agents.envs import make_env

    spec = agent.envs.spec
    assert spec is not None and options.video is not None  # a checkpoint that loads without `env` names one
    name = str(agent.envs.env_id)
    if importlib.util.find_spec("moviepy") is None:
        raise InputError('--video needs moviepy; to install: pip install "fastrl-kernels[video]"')
    with contextlib.closing(make_env(spec)) as env:
        modes = env.metadata.get("render_modes") or []
        if "rgb_array" not in modes:
            raise InputError(
                f"{name} cannot be filmed: of render modes it has {', '.join(modes) or 'none'}, not rgb_array"
            )
    prefix = f"{name.replace('/', '_').replace(':', '_')}-{agent.algorithm}-step{agent.steps}-seed{options.seed}"
    videos = [options.video / f"{prefix}-episode-{i}.mp4" for i in range(min(options.video_episodes, options.episodes))]
    for video in videos:
        if video.exists():
            raise InputError(f"{video} exists; nothing is overwritten")
    # pygame else greets on stdout, and looks for a display and a sound card that no video needs.
    for key, value in {
        "PYGAME_HIDE_SUPPORT_PROMPT": "1",
        "SDL_VIDEODRIVER": "dummy",
        "SDL_AUDIODRIVER": "dummy",
    }.items():
        os.environ.setdefault(key, value)
    import gymnasium as gym

    try:
        warnings.filterwarnings("ignore", ".*Overwriting existing videos")  # the folder exists; the videos do not
        warnings.filterwarnings("ignore", ".*Ignored saving a video")  # an error follows that says why
        with contextlib.closing(
            gym.wrappers.RecordVideo(
                gym.make(spec, render_mode="rgb_array"),
                str(options.video),
                episode_trigger=lambda episode: episode < len(videos),
                name_prefix=prefix,
            )
        ) as env:
            returns = _evaluate(agent, options.episodes, options.seed, options.max_episode_steps, env)
    except OSError as error:
        raise InputError(f"cannot write to {options.video}: {error.strerror or error}") from error
    except gym.error.DependencyNotInstalled as error:
        what = f"{name} cannot be filmed: {' '.join(str(error).split())}"
        raise InputError(f'{what}; for classic control: pip install "fastrl-kernels[video]"') from error
    return returns, videos


def _plot(args: list[str]) -> int:
    from fastrl.agents.config import InputError

    options = _parse(Plot, _long_out(args), "fastrl plot", None)
    missing = [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'plots need {", ".join(missing)}; to install: pip install "fastrl-kernels[plot]"')
    if not options.runs:
        raise InputError("no run to plot; usage: fastrl plot RUN [RUN ...] -o curves.png")
    if options.out is None:
        raise InputError("-o FILE is missing, for instance -o curves.png")
    from fastrl import plot

    plot.check_outputs(options.out, options.csv)
    files = [path for path in (options.out, options.csv) if path is not None]
    there = [path for path in files if path.exists()]
    groups = plot.group_runs(plot.read_runs(options.runs, options.y))
    plot.draw(groups, options.out, options.title)
    if options.csv is not None:
        plot.write_table(groups, options.csv)
    rows = {}
    for group in groups:
        interval = "" if group.low is None or group.high is None else f" [{group.low[-1]:.4g}, {group.high[-1]:.4g}]"
        what = f"{group.iqm[-1]:.4g}{interval} at step {group.steps[-1]:,.0f}"
        rows[" ".join((group.environment, group.label)).strip()] = f"{what}, {_seeds(group.seeds)}"
    saved = [f"{path} (replaced)" if path in there else str(path) for path in files]
    _table(", ".join(dict.fromkeys(group.column for group in groups)), {**rows, "saved in": "\n".join(saved)})
    return 0


def _long_out(args: list[str]) -> list[str]:
    """-o FILE, -oFILE and -o=FILE as --out FILE."""
    return [re.sub(r"^-o=?(?=[^=])", "--out=", "--out" if arg == "-o" else arg) for arg in args]


def _bench(args: list[str]) -> int:
    from fastrl import bench
    from fastrl.agents.config import InputError

    options = _parse(Bench, _long_out(args), "fastrl bench", None)
    unknown = [name for name in options.kernels if name not in bench.KERNELS]
    if unknown:
        raise InputError(f"unknown kernel {unknown[0]!r}; known are {', '.join(bench.KERNELS)}")
    _check_threads(options.threads)
    if options.out is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise InputError('-o needs matplotlib; to install: pip install "fastrl-kernels[plot]"')
        _check_new(options.out)
    warnings.showwarning = lambda *_, **__: None  # the others deprecate much, and reset filters
    bench.set_threads(options.threads)
    title = bench.machine()
    kernels = list(dict.fromkeys(options.kernels)) or list(bench.KERNELS)
    left_out: dict[str, str] = {}
    rows = list(bench.run(kernels, options.quick, lambda line: print(f"timing {line}", file=sys.stderr), left_out))
    _bench_table(title, rows)
    for contender, why in left_out.items():
        print(f"left out: {contender}: {why}")
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            bench.write_csv(rows, options.out / "bench.csv")
            bench.draw(rows, options.out / "bench.png", title)
        except OSError as error:
            raise InputError(f"cannot write to {options.out}: {error.strerror or error}") from None
        print(f"saved in {options.out}")
    return 0


def _bench_table(title: str, rows: Sequence[bench.Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fastrl import bench

    caption = "us: a call takes so many microseconds; x: how many times longer than fastrl"
    table = Table(title=Text(title), caption=Text(caption))
    table.add_column("kernel", no_wrap=True)
    table.add_column("size")
    table.add_column("contender", no_wrap=True)
    table.add_column("us", justify="right", no_wrap=True)
    table.add_column("x", justify="right", no_wrap=True)
    last = None
    for row in rows:
        new = (row.kernel, row.size) != last
        if new and last is not None:
            table.add_section()
        last = (row.kernel, row.size)
        first = (row.kernel, row.size) if new else ("", "")
        cells = (*first, row.contender, bench.microseconds(row.us), f"{row.ratio:.2f}")
        table.add_row(*map(Text, cells))
    Console().print(table)


def _algorithms() -> dict[str, type[Agent[Any]]]:
    from fastrl.agents import ALGORITHMS

    return cast("dict[str, type[Agent[Any]]]", ALGORITHMS)


def _algorithm(name: Any, where: str = "") -> type[Agent[Any]]:
    from fastrl.agents.config import InputError

    known = _algorithms()
    if name not in known:
        raise InputError(f"{where}unknown algorithm {name!r}; known are {', '.join(known)}")
    return known[name]


def _info(args: list[str]) -> int:
    from fastrl import _backend

    if args and args[0] in ("-h", "--help"):
        print("usage: fastrl info\n\nVersions, the backend of each kernel and why, threads, SIMD level, CUDA devices.")
        return 0
    if args:
        return _fail(f"info takes no arguments, got {args[0]!r}; usage: fastrl info")
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
        raise InputError(_without_box(stderr.getvalue())) from None


def _without_box(text: str) -> str:
    """The text of a box that rules divide into sections, in one line and without the box's title."""
    sections: list[list[str]] = [[]]
    for line in text.splitlines()[1:]:
        inside = line.strip(" │|")
        if inside.strip("─╭╮╰╯+-"):
            sections[-1].append(inside)
        else:
            sections.append([])
    return ". ".join(" ".join(section).rstrip(".") for section in sections if section)


def _read_config(path: Path) -> dict[str, Any]:
    from fastrl.agents.config import InputError

    try:
        if path.exists() and not path.is_file():  # a pipe may never end
            raise InputError(f"--config {path} is not a regular file")
        values = json.loads(path.read_text())
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from None
    except RecursionError:
        raise InputError(f"--config {path} is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"--config {path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"--config {path} must hold a JSON object of hyperparameters, got {type(values).__name__}")
    return values


def _hyperparameters(algorithm: type[Agent[Any]], values: dict[str, Any], where: str) -> Any:
    """The config in `values`: the settings themselves, or a checkpoint's config.json, which wraps them."""
    from fastrl.agents.config import InputError, make_config

    if "algorithm" in values:
        if values["algorithm"] != algorithm.algorithm:
            raise InputError(f"{where} is of algorithm {values['algorithm']!r}, not {algorithm.algorithm!r}")
        values = values.get("config")  # type: ignore[assignment]
        if not isinstance(values, dict):
            raise InputError(f"{where}: config must be an object of hyperparameters, got {values!r}")
    return make_config(algorithm.config_class, values, where)


def _check_threads(threads: int) -> None:
    from fastrl.agents.config import InputError

    if not 1 <= threads <= 1024:
        raise InputError(f"--threads must be in [1, 1024], got {threads}")


def _check_new(out: Path) -> None:
    from fastrl.agents.config import InputError

    try:
        used = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except NotADirectoryError:  # the attempt to make the folder says that better
        return
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None
    if used:
        raise InputError(f"--out {out} exists and is not an empty folder; nothing is overwritten")


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


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


def _fail(message: str, code: int = 2) -> int:
    print(f"fastrl: {message}", file=sys.stderr)
    return code

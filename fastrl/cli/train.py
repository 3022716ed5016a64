"""`fastrl train`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import sys
import time
import warnings
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastrl
from fastrl.agents.config import InputError, check_kept, make_config, settings_of
from fastrl.agents.hyperparameters import CONFIGS
from fastrl.agents.hyperparameters.needs import Need, changed, idle, idle_now
from fastrl.agents.logs import RUN
from fastrl.cli import runs, seeds
from fastrl.cli.algorithms import ALGORITHMS, CONTINUOUS, WITH_ACTORS, algorithm_name, print_algorithms
from fastrl.cli.common import check_new, check_threads, closing, device_option, failures, mean, table
from fastrl.cli.environment import described, flags, of_run
from fastrl.cli.errors import Failure, fail, no_memory, one_line
from fastrl.cli.eval import evaluate
from fastrl.cli.options import as_flags, as_options, option, parse, value_of, without

if TYPE_CHECKING:
    from fastrl.agents import Agent, EnvConfig


# Options that --resume goes on with.
KEPT = ("save_every", "eval_every", "eval_episodes", "stop_at", "max_episode_steps")


@dataclasses.dataclass
class Train:
    """Train an agent.  Logs (CSV, TensorBoard) and the checkpoint go to a new run folder."""

    env: str | None = None
    """Gymnasium environment id, or module:Id; modules are looked for in the current folder, too."""
    env_kwargs: tuple[str, ...] = ()
    """Keyword arguments of the environment: key=value ..., or a JSON object."""
    wrapper: tuple[str, ...] = ()
    """Wrappers, the innermost first: module:Name, or Name of gymnasium.wrappers; 'Name(key=value)' with arguments."""
    frame_stack: int | None = None
    """Observations are the environment's last so many frames; a replay buffer without action masks keeps each once."""
    fast_env: bool = False
    """Step the compiled environment that equals --env (classic control): --env fastrl/ENV."""
    total_steps: int | None = None
    """Environment steps (fqi: iterations) from the start (`fastrl train --help`: the defaults; resumed: the run's)."""
    out: Path | None = None
    """Run folder; must not exist or be empty (runs/ENV-ALGORITHM-seedS-TIME)."""
    resume: Path | None = None
    """Run folder, or that of several --seeds, to go on with, exactly where it stopped, and with its own options."""
    config: Path | None = None
    """JSON file of hyperparameters, or a checkpoint's config.json; flags override it."""
    seeds: int | None = None
    """Train with so many seeds, from --seed on, side by side: a run folder each, one table, one plot."""
    jobs: int | None = None
    """How many of the --seeds run at a time (about as many as there are cores)."""
    save_every: int | None = None
    """Environment steps from one checkpoint to the next (10000; fqi: 10 iterations)."""
    eval_every: int | None = None
    """Environment steps from one greedy evaluation to the next; evaluations.csv, and the best agent in RUN/best."""
    eval_episodes: int = 5
    """Episodes in an evaluation."""
    stop_at: float | None = None
    """Mean return of an evaluation with which the training ends; --eval-every is 5000 then (fqi: 10), if not given."""
    threads: int = 1
    """Threads on the CPU; more than one pays only for large networks, and slows small ones down."""
    max_episode_steps: int = 30_000
    """Steps after which an episode of the evaluation at the end is cut; 0: never."""


def command(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print("usage: fastrl train ALGORITHM --env ENV ...\n       fastrl train --resume RUN ...\n")
        print_algorithms()
        return 0 if args else 2
    name, *flags = args
    if name.startswith("-"):
        run = value_of("--resume", args)
        if run is None:
            if any(arg.partition("=")[0] == "--resume" for arg in args):
                raise InputError("--resume RUN: the run's folder is missing")
            raise InputError(f"the algorithm comes before {name}: fastrl train ALGORITHM ...")
        name, flags = _algorithm_of(Path(run)), args
    else:
        name = _meant(algorithm_name(name), flags)
    prog, config_class = f"fastrl train {name}", CONFIGS[name]
    options, given = parse(Train, flags, prog, config_class, stray="--env")
    if options.resume is not None:
        defaults = _of_the_run(next(iter(seeds.of(options.resume)), _folder(options.resume)))
        options, given = parse(Train, flags, prog, config_class, defaults=defaults)
    _check(options)
    if options.resume is not None:
        if seeds.of(options.resume):
            return _resume_seeds(name, flags, options, given)
        if options.jobs is not None:
            raise InputError(f"--jobs is of several seeds, and {options.resume} is one run")
        return _resume(name, options, given)
    if options.env is None:
        raise InputError("--env ENV is missing, for instance --env CartPole-v1")
    if options.frame_stack is not None:
        options.wrapper += (f"FrameStackObservation(stack_size={options.frame_stack})",)
    if options.fast_env:
        options.env = _fast_env(options.env, options.wrapper)
    config = _config(name, options.config, given)
    if options.out is not None:
        check_new(options.out)
    total = ALGORITHMS[name].total_steps if options.total_steps is None else options.total_steps
    _check_evaluations(options, total)
    if options.seeds is not None:
        return _run_seeds(name, flags, options, config.seed, total)
    from fastrl.agents.loading import algorithm_class

    make: Any = algorithm_class(name)
    fastrl.set_num_threads(options.threads)
    env = described(options.env, options.env_kwargs, options.wrapper)
    try:
        with device_option():
            agent: Agent[Any] = make(env, config)
    except InputError as error:
        raise as_options(error, CONFIGS[name]) from None
    _warn_of_found(agent, config, given, options.config)
    with closing(agent):
        if options.out is not None:
            return _run(agent, options.out, total, options)
        out = _new_folder(f"{_stem(options.env)}-{name}-seed{agent.config.seed}")
        try:
            return _run(agent, out, total, options)
        finally:
            with contextlib.suppress(OSError):  # something came of the run
                out.rmdir()


def _meant(name: str, flags: list[str]) -> str:
    """The algorithm that `name` stands for with these options, or in the environment that they describe."""
    if name in WITH_ACTORS and any(flag.partition("=")[0] == "--actors" for flag in flags):
        return WITH_ACTORS[name]
    if name not in CONTINUOUS or {"-h", "--help"} & set(flags):
        return name
    options, _ = parse(Train, flags, f"fastrl train {name}", others=True)
    if options.env is None:
        return name
    import gymnasium

    with contextlib.closing(described(options.env, options.env_kwargs, options.wrapper).make()) as env:
        return CONTINUOUS[name] if isinstance(env.action_space, gymnasium.spaces.Box) else name


def _fast_env(env: str, wrappers: tuple[str, ...]) -> str:
    """The id of the compiled environment."""
    from fastrl.agents.compiled_envs import compiled_id

    if wrappers:
        raise InputError("--fast-env takes neither --wrapper nor --frame-stack: wrappers are of single environments")
    try:
        return compiled_id(env)
    except InputError as error:
        raise InputError(f"--fast-env: {error}") from None


def _folder(resume: Path) -> Path:
    """The run folder of what --resume names, which may be its checkpoint."""
    return resume.parent if resume.name == "checkpoint" else resume


def _of_the_run(folder: Path) -> dict[str, Any]:
    """The options in `KEPT` as the run in `folder` had them last; raises InputError."""
    values = runs.read(folder).get("options", {})
    if not isinstance(values, dict):
        raise InputError(f"{folder / RUN}: options must be an object, got {values!r}")
    kept = {name: value for name, value in values.items() if name in KEPT}
    made = make_config(Train, kept, str(folder / RUN))
    return {name: getattr(made, name) for name in kept}


def _check(options: Train) -> None:
    check_threads(options.threads)
    at_least_1 = ("total_steps", "seeds", "jobs", "save_every", "eval_every", "eval_episodes")
    for name, least in (*((name, 1) for name in at_least_1), ("max_episode_steps", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"{option(name)} must be >= {least}, got {value}")
    if options.stop_at is not None and not math.isfinite(options.stop_at):
        raise InputError(f"--stop-at must be finite, got {options.stop_at}")
    if options.jobs is not None and options.seeds is None and options.resume is None:
        raise InputError("--jobs is of --seeds, which is missing")
    if options.frame_stack is not None and not 2 <= options.frame_stack <= 256:
        raise InputError(f"--frame-stack must be in 2..256, got {options.frame_stack}")
    if options.frame_stack is not None and options.resume is not None:
        raise InputError("--resume takes the environment of the run; --frame-stack cannot be changed")
    if options.resume is not None and options.seeds is not None:
        raise InputError("--resume goes on with the seeds that there are; --seeds begins new ones")


def _check_evaluations(options: Train, total_steps: int) -> None:
    """Warn of options that ask for evaluations which there will not be; raise InputError if the end depends on them."""
    if options.eval_every is None and options.stop_at is None and options.eval_episodes != Train.eval_episodes:
        warnings.warn("--eval-episodes has no effect without --eval-every or --stop-at", stacklevel=1)
    if options.eval_every is not None and options.eval_every > total_steps:
        what = f"--eval-every {options.eval_every} is more than --total-steps {total_steps}"
        if options.stop_at is not None:
            raise InputError(f"{what}: there is no evaluation in training, of which --stop-at could see the return")
        warnings.warn(f"{what}: there is no evaluation in training", stacklevel=1)


def _run_seeds(name: str, flags: list[str], options: Train, first: int, total_steps: int) -> int:
    assert options.env is not None and options.seeds is not None
    numbers = range(first, first + options.seeds)
    out = options.out or _new_folder(f"{_stem(options.env)}-{name}-seeds{numbers[0]}-{numbers[-1]}")
    alike = without(flags, ("--seeds", "--jobs", "--seed", "--out", "-o"))
    return seeds.train(out, ["train", name, *alike], numbers, options.jobs, total_steps)


def _resume_seeds(name: str, flags: list[str], options: Train, given: dict[str, Any]) -> int:
    assert options.resume is not None
    if options.out is not None:
        raise InputError("--out takes one run; seeds go on where they are")
    run = seeds.of(options.resume)[0]
    total = options.total_steps or runs.read(run).get("total_steps")
    begin = _begin_like(name, run, options, given, total) if seeds.waiting(options.resume) else []
    args = ["train", name, *without(flags, ("--resume", "--jobs"))]
    return seeds.resume(options.resume, args, begin, options.jobs, total if isinstance(total, int) else 1)


def _begin_like(name: str, run: Path, options: Train, given: dict[str, Any], total_steps: Any) -> list[str]:
    """The command that begins a run like `run`, but for --seed and --out; raises InputError."""
    from fastrl.agents import EnvConfig
    from fastrl.agents.saved import env_of

    saved, told = _unchanged(name, run, options, given)
    env = env_of(saved, told, str(run))
    env = EnvConfig(env) if isinstance(env, str) else env
    if env.id != saved["env"]:
        raise InputError("--resume takes the environment of the run; --env cannot be changed")
    values = {key: getattr(options, key) for key in (*KEPT, "threads")} | given
    values |= {} if total_steps is None else {"total_steps": total_steps}
    return [
        "train", name, "--config", str(run / "checkpoint" / "config.json"), "--env", env.id,
        *(["--env-kwargs", json.dumps(dict(env.kwargs))] if env.kwargs else []),
        *(["--wrapper", *env.wrappers] if env.wrappers else []),
        *(f"{option(key)}={value}" for key, value in values.items()),
    ]  # fmt: skip


def _stem(env: str) -> str:
    """The id as the beginning of a folder's name."""
    return re.sub("[/:]", "_", env)


def _config(name: str, file: Path | None, given: dict[str, Any]) -> Any:
    """The hyperparameters: the options that were given over the file's over the defaults."""
    config = CONFIGS[name]() if file is None else _hyperparameters(name, _read_config(file), f"--config {file}")
    try:
        config = dataclasses.replace(config, **given)
        check_kept(config, given)
    except InputError as error:
        raise as_options(error, CONFIGS[name]) from None
    _warn_of_idle(config, idle(config, given | changed(config)), given, file)
    if "num_envs" in given and getattr(config, "dataset", None) is not None:
        warnings.warn("--num-envs has no effect with --dataset", stacklevel=1)
    return config


def _warn_of_idle(config: Any, found: Iterable[tuple[str, Need]], given: dict[str, Any], file: Path | None) -> None:
    """Of those settings `found` to have no effect in `config`: options that were given, or values in the `file`."""
    for setting, need in found:
        what = option(setting) if setting in given else f"--config {file}: {setting}"
        warnings.warn(f"{what} has no effect {as_flags(need, config)}", stacklevel=1)


def _warn_of_found(agent: Agent[Any], config: Any, given: dict[str, Any], file: Path | None) -> None:
    """`_warn_of_idle` of what only the environment tells, by what settings that are auto stand for."""
    found = {}
    if getattr(config, "regressor", None) == "auto":
        found["regressor"] = getattr(agent, "regressor", "auto")
    if getattr(config, "network", None) == "auto" and agent._ready_made is not None:
        found["network"] = agent._ready_made.kind
    idle_here = idle_now(config, found, given | changed(config))
    _warn_of_idle(dataclasses.replace(config, **found), idle_here, given, file)


def _new_folder(name: str) -> Path:
    """An empty folder in runs/ that nobody else has: of two commands in one second, one gets a number."""
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


def _algorithm_of(run: Path) -> str:
    """The name of a checkpoint's algorithm, or that of several seeds."""
    if group := seeds.of(run):
        return algorithm_name(runs.read(group[0]).get("algorithm"), f"{run}: ")
    return algorithm_name(runs.config_of(run).get("algorithm"), f"{run}: ")


def _unchanged(name: str, run: Path, options: Train, given: dict[str, Any]) -> tuple[dict[str, Any], EnvConfig | None]:
    """The config.json of a run, and what the options say of its environment; raises InputError for what they change."""
    config = runs.config_of(run)
    saved = _hyperparameters(name, config, str(run))
    changed = [option(key) for key, value in given.items() if value != getattr(saved, key)]
    if options.config is not None or set(changed) - {"--device"}:
        what = "--config" if options.config is not None else ", ".join(changed)
        raise InputError(f"--resume takes the hyperparameters of the run; {what} cannot be changed")
    if options.fast_env and not str(config.get("env")).startswith("fastrl/"):
        raise InputError("--resume takes the environment of the run; --fast-env cannot be changed")
    env = of_run(run, options.env, options.env_kwargs, options.wrapper)
    for what, now, then in (
        ("--env-kwargs", env and env.kwargs, config.get("env_kwargs", {})),
        ("--wrapper", env and env.wrappers and list(env.wrappers), config.get("wrappers", [])),
    ):
        if now is not None and now != then:
            raise InputError(f"--resume takes the environment of the run; {what} cannot be changed")
    return config, env


def _resume(name: str, options: Train, given: dict[str, Any]) -> int:
    from fastrl._files import locked
    from fastrl.agents.loading import algorithm_class
    from fastrl.agents.training import LOCK

    assert options.resume is not None
    algorithm = algorithm_class(name)
    fastrl.set_num_threads(options.threads)
    _, env = _unchanged(name, options.resume, options, given)
    if options.out is not None:
        check_new(options.out)
    out = options.out or _folder(options.resume)
    try:  # a run that is in use is not at its end: what is loaded now would be old by then
        with locked(out / LOCK, wait=False) if options.out is None else contextlib.nullcontext(), device_option():
            agent = algorithm.load(options.resume, env=env, device=given.get("device"))
    except BlockingIOError:
        raise InputError(f"{out} is in use: another process trains there") from None
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}") from error
    with closing(agent):
        total = agent.total_steps if options.total_steps is None else options.total_steps
        if finished := _finished(options.resume, agent.steps, total, options):
            told = runs.read(out)
            if options.out is None and told.get("history") and not runs.greedy_returns(told):
                print(f"{out} is trained; the evaluation at the end is made up for", file=sys.stderr)
                return _judge(agent, out, options, _go_on(agent, out), {})
            print(f"{options.resume} {finished}")
            return 0
        if options.total_steps is None and total == 0:
            raise InputError(f"{options.resume} does not say how far it was to go: give --total-steps N")
        _check_evaluations(options, total)
        return _run(agent, out, total, options)


def _finished(resume: Path, steps: int, total: int, options: Train) -> str:
    """Why there is nothing left to do for a run, and how to go on nevertheless; empty: there is."""
    if steps >= total > 0:
        if options.total_steps is not None and steps > total:
            asked = f"already has {steps:,} steps, more than --total-steps {total:,}: nothing was done"
            return f"{asked}; for its returns: fastrl eval {resume}; to go on: a larger --total-steps N"
        done = f"is finished: {steps:,} of {total:,} steps"
        return f"{done}; for its returns: fastrl eval {resume}; to go on: --total-steps N"
    run, stop_at = _folder(resume), options.stop_at
    if stop_at is not None and stop_at == _of_the_run(run).get("stop_at"):
        reached = any(step == steps and value >= stop_at for step, value in runs.evaluations(run))
        if reached:
            ended = f"is finished: its return has reached {stop_at:g} (--stop-at) at step {steps:,}"
            return f"{ended}; to go on: --stop-at none"
    return ""


def _go_on(agent: Agent[Any], out: Path) -> str:
    return f"fastrl train --resume {out}{flags(agent.envs.spec)}"


def _run(agent: Agent[Any], out: Path, total_steps: int, options: Train) -> int:
    from fastrl.agents.training import ENDING

    began, first = time.perf_counter(), agent.steps
    evaluates = options.eval_every is not None or options.stop_at is not None
    options.save_every = options.save_every or agent.save_every
    go_on, made = _go_on(agent, out), not out.exists()
    try:
        agent.learn(
            total_steps,
            folder=out,
            save_every=options.save_every,
            callback=runs.Told(out, {name: getattr(options, name) for name in KEPT}),
            eval_every=options.eval_every,
            eval_episodes=options.eval_episodes if evaluates else Train.eval_episodes,
            stop_at=options.stop_at,
        )
    except KeyboardInterrupt as error:
        if not error.args:  # a second Ctrl-C did not wait for the save
            raise KeyboardInterrupt(f" at step {agent.steps}; nothing saved since the last checkpoint") from None
        raise KeyboardInterrupt(f" at step {agent.steps}; {error}; go on with: {go_on}") from None
    except SystemExit as stop:
        if not isinstance(stop.code, int) or stop.code - 128 not in ENDING:
            raise
        return fail(f"terminated at step {agent.steps}; {_what_is_saved(out, go_on)}", stop.code)
    except InputError as error:
        if agent.steps == first:
            names = "|".join(("total_steps", *KEPT))  # `learn` calls them so
            raise InputError(re.sub(rf"\b({names})\b", lambda m: option(m[0]), str(error))) from error
        raise InputError(f"{error}; {_what_is_saved(out, go_on)}") from error
    except Exception as error:
        if isinstance(error, (BrokenPipeError, MemoryError)) or no_memory(error):
            raise
        raise Failure(f"{one_line(error)} at step {agent.steps}; {_what_is_saved(out, go_on)}") from error
    finally:
        runs.remove_if_nothing_came(out, made)
    seconds = time.perf_counter() - began
    training = f"{seconds:.1f} s, {(agent.steps - first) / seconds:,.0f} steps/s"
    return _judge(agent, out, options, go_on, {"training": training})


def _judge(agent: Agent[Any], out: Path, options: Train, go_on: str, more: dict[str, str]) -> int:
    """The evaluation at the end, and the result in run.json; returns the exit code."""
    rows = {
        "agent": agent.describe(),
        agent.counts: f"{agent.steps:,} ({agent.envs.episodes:,} episodes)",
        **more,
        "return, last episodes of training": mean([r for r, _ in agent.envs.recent]),
    }
    returns: list[float] = []
    try:
        with seeds.signals_raise(), failures():
            returns = evaluate(agent, 20, 1_000_000, options.max_episode_steps)
    except SystemExit as stop:  # no result, so that --resume makes up for it
        what = "terminated in the evaluation at the end, which is made up for with"
        return fail(f"{what}: {go_on}", int(stop.code or 0))
    except BaseException:
        _conclude(agent, out, rows, [])
        raise
    _conclude(agent, out, rows, returns)
    return 0 if len(returns) == 20 else 130


def _conclude(agent: Agent[Any], out: Path, rows: dict[str, str], returns: list[float]) -> None:
    from fastrl.agents.training import BEST

    best = {"best agent": str(out / BEST)} if (out / BEST).is_dir() else {}
    greedy = {f"return, greedy, {len(returns)} episodes": mean(returns)}
    table("result", {**rows, **greedy, "saved in": str(out), **best})
    runs.end(out, agent.steps, returns)


def _what_is_saved(out: Path, go_on: str) -> str:
    from fastrl.agents.checkpoint import load_checkpoint

    try:
        with load_checkpoint(out) as checkpoint:
            step = checkpoint.state.get("steps")
    except InputError:
        return "nothing is saved"
    return f"saved up to step {step}; go on with: {go_on}"


def _read_config(path: Path) -> dict[str, Any]:
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


def _hyperparameters(name: str, values: dict[str, Any], where: str) -> Any:
    """The config in `values`: the settings themselves, or a checkpoint's config.json, which wraps them."""
    if "algorithm" in values:
        if values["algorithm"] != name:
            raise InputError(f"{where} is of algorithm {values['algorithm']!r}, not {name!r}")
        values = values.get("config")  # type: ignore[assignment]
        if not isinstance(values, dict):
            raise InputError(f"{where}: config must be an object of hyperparameters, got {values!r}")
        values = settings_of(CONFIGS[name], values)
    return make_config(CONFIGS[name], values, where)

"""The `fastrl` command.  Whatever the user gets wrong is one line on stderr beginning with ``fastrl: `` and exit 2."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence

import fastrl
from fastrl.cli import info
from fastrl.cli.errors import Failure, fail, no_memory, warn

USAGE = """\
usage: fastrl train ALGORITHM --env ENV [--total-steps N] [--seed S] [--out DIR] ...   train an agent
       fastrl train ALGORITHM --env ENV --seeds 5                                      several, side by side
       fastrl train --resume RUN                                                       go on with a run
       fastrl eval RUN [--episodes 20] [--video DIR]                                   greedy returns of a saved agent
       fastrl plot RUN [RUN ...] -o curves.png                                         learning curves over seeds
       fastrl list [RUNS]                                                              the algorithms, or the runs
       fastrl bench [-o FOLDER] [--kernels gae sum_tree ...] [--quick]                 the kernels' speed here
       fastrl info                                                                     versions and backends
       fastrl info STORAGE                                                             what a replay buffer's folder has
       fastrl --version

`fastrl train --help` lists the algorithms, and `fastrl train dqn --help` the hyperparameters of one."""
AGENT_PACKAGES = ("gymnasium", "rich", "safetensors", "tensorboard")
COMMANDS = {name: name for name in ("train", "eval", "plot", "list", "bench", "info")} | {"list": "listing"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0; 1: the environment raised; 2: the user's input is at fault; 129: SIGHUP; 130: Ctrl-C; 141: nobody reads the
    output any more; 143: SIGTERM.
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
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] == "--version":
        print(f"fastrl {fastrl.__version__}")
        return 0
    if args[0] == "info":
        return info.command(args[1:])
    if args[0] not in COMMANDS:
        from fastrl.cli.options import did_you_mean

        meant = did_you_mean(args[0], COMMANDS)
        did = f"did you mean {meant}? " if meant else ""
        return fail(f"unknown command {args[0]!r}; {did}known are {', '.join(COMMANDS)}")
    missing = [name for name in AGENT_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return fail(f'agents need {", ".join(missing)}; to install: pip install "fastrl-kernels[agents]"')
    from fastrl.agents.config import InputError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn
            code: int = importlib.import_module(f"fastrl.cli.{COMMANDS[args[0]]}").command(args[1:])
            return code
    except InputError as error:
        return fail(str(error))
    except Failure as error:
        return fail(str(error), 1)
    except MemoryError as error:
        return fail(f"not enough memory: {error}")
    except RuntimeError as error:
        if not no_memory(error):
            raise
        return fail(f"not enough memory: {str(error).splitlines()[0]}")

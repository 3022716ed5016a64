"""`fastrl eval`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrl.agents.config import InputError
from fastrl.cli import runs
from fastrl.cli.algorithms import algorithm_name
from fastrl.cli.common import closing, device_option, failures, mean, table
from fastrl.cli.environment import of_run
from fastrl.cli.errors import warn
from fastrl.cli.options import parse

if TYPE_CHECKING:
    import gymnasium as gym

    from fastrl.agents import Agent


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
    env_kwargs: tuple[str, ...] = ()
    """Other keyword arguments of the environment than the run's: key=value ..., or a JSON object."""
    wrapper: tuple[str, ...] = ()
    """Other wrappers than the run's; those that import a module of yours have to be said again."""
    max_episode_steps: int = 30_000
    """Steps after which an episode is cut; 0: never."""
    device: str | None = None
    """Another device than the agent was trained on."""
    video: Path | None = None
    """Folder for videos of the first episodes."""
    video_episodes: int = 1
    """How many episodes to film, with --video."""


def command(args: list[str]) -> int:
    options, _ = parse(Eval, args, "fastrl eval")
    if options.episodes < 1:
        raise InputError(f"--episodes must be >= 1, got {options.episodes}")
    if options.seed < 0:
        raise InputError(f"--seed must be >= 0, got {options.seed}")
    if options.video_episodes < 1:
        raise InputError(f"--video-episodes must be >= 1, got {options.video_episodes}")
    if options.max_episode_steps < 0:
        raise InputError(f"--max-episode-steps must be >= 0, got {options.max_episode_steps}")
    if options.video is None and options.video_episodes != Eval.video_episodes:
        warnings.warn("--video-episodes has no effect without --video", stacklevel=1)
    if options.video is not None and options.video_episodes > options.episodes:
        what = f"--video-episodes {options.video_episodes} is more than --episodes {options.episodes}"
        warnings.warn(f"{what}: {options.episodes} are filmed", stacklevel=1)
    from fastrl.agents.loading import algorithm_class

    algorithm = algorithm_class(algorithm_name(runs.config_of(options.run).get("algorithm"), f"{options.run}: "))
    env = of_run(options.run, options.env, options.env_kwargs, options.wrapper)
    with device_option():
        agent = algorithm.load(options.run, env=env, device=options.device)
    videos: list[Path] = []
    with closing(agent), failures():
        if options.video is None:
            returns = evaluate(agent, options.episodes, options.seed, options.max_episode_steps)
        else:
            returns, videos = _film(agent, options)
    rows = {
        "agent": agent.describe(),
        "trained for": f"{agent.steps:,} {agent.counts}",
        "episodes": str(len(returns)),
        "return": mean(returns),
    }
    if returns:
        rows["least, most"] = f"{min(returns):.1f}, {max(returns):.1f}"
    if videos:
        rows["video"] = "\n".join(map(str, videos))
    table(str(options.run), rows)
    return 0 if len(returns) == options.episodes else 130


def evaluate(
    agent: Agent[Any], episodes: int, seed: int, max_steps: int, env: gym.Env[Any, Any] | None = None
) -> list[float]:
    """Returns of the episodes, or those up to a Ctrl-C; says how far it is when that takes long."""
    last = time.monotonic()

    def tick(episode: int, step: int) -> None:
        nonlocal last
        if time.monotonic() - last > 2:
            print(f"evaluating: step {step:,} of episode {episode} of {episodes}", file=sys.stderr)
            last = time.monotonic() + 8

    from fastrl.agents.networks import threads_for

    returns, cut = [], 0
    try:
        with threads_for(agent._all_networks()):
            for episode in agent._play(episodes, seed, env, max_steps, tick):
                returns.append(episode.reward)
                cut += episode.cut
    except KeyboardInterrupt:
        print(f"fastrl: interrupted after {len(returns)} of {episodes} episodes", file=sys.stderr)
    if cut:
        warn(f"{cut} of {len(returns)} episodes were cut at {max_steps:,} steps (--max-episode-steps)")
    return returns


def _film(agent: Agent[Any], options: Eval) -> tuple[list[float], list[Path]]:
    """Returns of all episodes, and the videos (MP4) of the first of them."""
    import gymnasium as gym

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
    try:
        warnings.filterwarnings("ignore", ".*Overwriting existing videos")  # the folder exists; the videos do not
        warnings.filterwarnings("ignore", ".*Ignored saving a video")  # an error follows that says why
        with contextlib.closing(
            gym.wrappers.RecordVideo(
                make_env(spec, render_mode="rgb_array"),
                str(options.video),
                episode_trigger=lambda episode: episode < len(videos),
                name_prefix=prefix,
            )
        ) as env:
            returns = evaluate(agent, options.episodes, options.seed, options.max_episode_steps, env)
    except OSError as error:
        raise InputError(f"cannot write to {options.video}: {error.strerror or error}") from error
    except gym.error.DependencyNotInstalled as error:
        what = f"{name} cannot be filmed: {' '.join(str(error).split())}"
        raise InputError(f'{what}; for classic control: pip install "fastrl-kernels[video]"') from error
    return returns, videos

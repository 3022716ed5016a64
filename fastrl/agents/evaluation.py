"""Greedy returns: episodes of a policy, one after another, and the evaluations of a training run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fastrl.agents.config import InputError, check_int
from fastrl.agents.env_config import EnvConfig
from fastrl.agents.envs import Envs, make_env, name_of
from fastrl.agents.masks import reader_of, source_of

Policy = Callable[..., Any]  # observation (, action_masks, memory) -> action
MAX_EPISODE_STEPS = 30_000  # of an evaluation's episode; those of Atari have 27,000
EVERY = 5_000  # environment steps from one evaluation to the next, where only `stop_at` is given
SEED = 2_000_000  # of a run's evaluations; the best agent is not judged by the episodes that it was chosen by


class Episode(NamedTuple):
    """One of an evaluation."""

    reward: float
    """The undiscounted sum of its rewards."""
    cut: bool
    """Did it end because of `max_steps`, not by itself?"""
    length: int = 0
    """Its steps."""


class Evaluation(NamedTuple):
    """One of a training run: of the agent as it was at environment step `step`."""

    step: int
    returns: NDArray[np.float64]
    """Of the episodes, undiscounted."""
    lengths: NDArray[np.int64]
    """Their steps."""
    cut: int
    """Episodes that were cut after 30,000 steps."""
    best: bool
    """Is the mean return larger than that of all evaluations before?"""

    @property
    def mean(self) -> float:
        """The mean return."""
        return float(self.returns.mean())

    def row(self) -> dict[str, float]:
        """For the logs."""
        r = self.returns
        return {
            "step": self.step, "episodes": len(r), "return_mean": self.mean, "return_std": float(r.std()),
            "return_min": float(r.min()), "return_max": float(r.max()),
            "length_mean": float(self.lengths.mean()), "cut": self.cut,
        }  # fmt: skip


class Evaluator:
    """Evaluations every `every` steps in an environment of their own.

    `env`: None makes one more of the agent's; an id, an `EnvConfig` or an environment is another, which the agent must
    not train in.
    `stop_at`: the mean return with which the training ends.  Raises InputError for what cannot work.
    """

    def __init__(self, envs: Envs, every: Any, episodes: Any, env: Any = None, stop_at: Any = None) -> None:
        self.every = check_int("eval_every", EVERY if every is None else every)
        self.episodes = check_int("eval_episodes", episodes)
        for name, value in (("eval_every", self.every), ("eval_episodes", self.episodes)):
            if value < 1:
                raise InputError(f"{name} must be >= 1, got {value}")
        number = isinstance(stop_at, (int, float, np.number)) and not isinstance(stop_at, bool)
        if stop_at is not None and not (number and math.isfinite(stop_at)):
            raise InputError(f"stop_at must be a finite number, got {stop_at!r}")
        self.stop_at = None if stop_at is None else float(stop_at)
        self.best = -math.inf
        self._envs, self._given, self._env = envs, env, None
        if env is None and envs.spec is None:
            raise InputError("eval_env is missing: the agent was made from an environment without a spec")
        if env is not None and not isinstance(env, (str, EnvConfig, gym.Env)):
            raise InputError(
                f"eval_env must be an environment id, an EnvConfig or a gymnasium.Env, got {type(env).__name__}"
            )
        if isinstance(env, gym.Env) and envs.same(env):
            raise InputError("eval_env must be another environment than the agent trains in")

    def open(self) -> None:
        """Make the environment; raises InputError if that cannot be, or if it has other spaces than the agent's."""
        given = self._envs.spec if self._given is None else self._given
        assert given is not None
        env: gym.Env[Any, Any] = given if isinstance(given, gym.Env) else make_env(given, disable_env_checker=True)
        self._env = env  # type: ignore[assignment]
        for name, mine in (("observation_space", self._envs.raw_space), ("action_space", self._envs.action_space)):
            other = getattr(env, name)
            if other != mine:
                self.close()
                raise InputError(f"eval_env: {name} must be {mine} like the agent's, got {other}")

    def close(self) -> None:
        """Close the environment, unless it was given as an object."""
        if self._env is not None and not isinstance(self._given, gym.Env):
            self._env.close()
        self._env = None

    def __call__(
        self, policy: Policy, step: int, tick: Callable[[int, int], None], memory: Callable[[], Any] | None = None
    ) -> Evaluation:
        """An evaluation now; `tick` and `memory` are those of `episodes_of`."""
        assert self._env is not None
        self._envs.share_statistics(self._env)
        masks = self._envs.allowed is not None
        played = list(episodes_of(policy, self._env, self.episodes, SEED, MAX_EPISODE_STEPS, tick, masks, memory))
        returns = np.array([episode.reward for episode in played])
        lengths = np.array([episode.length for episode in played])
        best = bool(returns.mean() > self.best)
        self.best = max(self.best, float(returns.mean()))
        return Evaluation(step, returns, lengths, sum(episode.cut for episode in played), best)


def episodes_of(
    policy: Policy,
    env: gym.Env[Any, Any],
    episodes: int,
    seed: int,
    max_steps: int | None = None,
    tick: Callable[[int, int], None] | None = None,
    masks: bool = False,
    memory: Callable[[], Any] | None = None,
) -> Iterator[Episode]:
    """Episodes of `policy` (observation -> action) as they end; episode i begins with ``env.reset(seed + i)``.

    Each is cut after `max_steps` steps (None or 0: never).  `tick` gets the numbers of the episode (from 1) and of the
    step in it, every 100 steps.  With `masks` the policy gets the environment's, if it has some, as `action_masks`, and
    as `memory` what ``memory()`` has made for the episode, unless that is None.
    """
    reader = reader_of(env.action_space, name_of(env)) if masks else None
    for i in range(episodes):
        obs, info = env.reset(seed=seed + i)
        total, steps, done = 0.0, 0, False
        source = None if reader is None else source_of(env, info)
        remembered = None if memory is None else memory()
        how = {} if remembered is None else {"memory": remembered}
        while not done and (not max_steps or steps < max_steps):
            if source is not None:
                how["action_masks"] = reader(source(info))  # type: ignore[misc]
            action = policy(obs, **how)
            obs, reward, terminated, truncated, info = env.step(action)
            total += float(reward)
            steps += 1
            done = bool(terminated or truncated)
            if tick is not None and steps % 100 == 0:
                tick(i + 1, steps)
        yield Episode(total, not done, steps)


def evaluate(
    policy: Policy,
    env: gym.Env[Any, Any],
    episodes: int,
    seed: int,
    max_steps: int | None = MAX_EPISODE_STEPS,
) -> NDArray[np.float64]:
    """Returns ``[episodes]`` of `policy`, as in `episodes_of`."""
    return np.array([episode.reward for episode in episodes_of(policy, env, episodes, seed, max_steps)])

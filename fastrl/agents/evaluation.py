"""Greedy returns: episodes of a policy, one after another, and the evaluations of a training run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray

from fastrl.agents.compiled_envs import make_compiled
from fastrl.agents.config import InputError, check_int
from fastrl.agents.env_config import EnvConfig
from fastrl.agents.env_loop import explain
from fastrl.agents.env_rewards import meter_of
from fastrl.agents.envs import Envs, make_env, name_of
from fastrl.agents.masks import reader_of, source_of
from fastrl.agents.spaces import check_alike

Policy = Callable[..., Any]  # observation (, action_masks, memory) -> action
MAX_EPISODE_STEPS = 30_000  # of an evaluation's episode; those of Atari have 27,000
SIDE_BY_SIDE = 16  # environments of an evaluation at the most
SEED = 2_000_000  # of a run's evaluations; the best agent is not judged by the episodes that it was chosen by


class Episode(NamedTuple):
    """One of an evaluation."""

    reward: float
    """The undiscounted sum of the rewards of the environment itself (`env_rewards`)."""
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
        self.every = check_int("eval_every", every)
        self.episodes = check_int("eval_episodes", episodes)
        for name, value in (("eval_every", self.every), ("eval_episodes", self.episodes)):
            if value < 1:
                raise InputError(f"{name} must be >= 1, got {value}")
        number = isinstance(stop_at, (int, float, np.number)) and not isinstance(stop_at, bool)
        if stop_at is not None and not (number and math.isfinite(stop_at)):
            raise InputError(f"stop_at must be a finite number, got {stop_at!r}")
        self.stop_at = None if stop_at is None else float(stop_at)
        self.best = -math.inf
        self._envs, self._given = envs, env
        self._singles: list[gym.Env[Any, Any]] = []
        self._compiled: Any = None  # as a vector environment, instead of these
        if env is None and envs.spec is None:
            raise InputError(
                "eval_env is missing: the agent was made from an environment without a spec, or in wrappers of vectors"
            )
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
        if isinstance(given, gym.Env):
            env = given
        else:
            env = _made("eval_env is missing" if self._given is None else "", given, disable_env_checker=True)
        self._singles = [env]
        try:
            check_alike("eval_env", _spaces(env), (self._envs.raw_space, self._envs.action_space))
        except InputError:
            self.close()
            raise
        if isinstance(given, gym.Env):
            return
        n = min(self.episodes, SIDE_BY_SIDE)
        self._compiled = make_compiled(given, n) if isinstance(given, (str, EnvConfig)) else None
        if self._compiled is None and _may_be_many(given, env):
            for _ in range(n - 1):  # one by one: if one cannot be made, the others are closed
                self._singles.append(make_env(given, disable_env_checker=True))

    def close(self) -> None:
        """Close the environments, unless one was given as an object."""
        if self._compiled is not None:
            self._compiled.close()
        if not isinstance(self._given, gym.Env):
            for env in self._singles:
                env.close()
        self._singles, self._compiled = [], None

    def __call__(
        self, policy: Policy, step: int, tick: Callable[[int, int], None], memory: Callable[[], Any] | None = None
    ) -> Evaluation:
        """An evaluation now; `tick` and `memory` are those of `episodes_of`."""
        with contextlib.ExitStack() as lent:
            if self._singles:
                lent.enter_context(self._envs.lend_statistics(*self._singles, keep=True))
            played = self._play(policy, tick, memory)
        returns = np.array([episode.reward for episode in played])
        lengths = np.array([episode.length for episode in played])
        best = bool(returns.mean() > self.best)
        self.best = max(self.best, float(returns.mean()))
        return Evaluation(step, returns, lengths, sum(episode.cut for episode in played), best)

    def _play(
        self, policy: Policy, tick: Callable[[int, int], None], memory: Callable[[], Any] | None
    ) -> list[Episode]:
        masks = self._envs.allowed is not None
        remembers = memory is not None and memory() is not None
        if self._compiled is not None and not remembers:
            return _compiled_episodes(policy, self._compiled, self.episodes, tick)
        if len(self._singles) > 1 and not remembers:
            return _episodes_at_once(policy, self._singles, self.episodes, tick, masks)
        env = self._singles[0]
        return list(episodes_of(policy, env, self.episodes, SEED, MAX_EPISODE_STEPS, tick, masks, memory))


def _spaces(env: Any) -> tuple[Any, Any]:
    return getattr(env, "observation_space", None), getattr(env, "action_space", None)


def _may_be_many(given: Any, env: gym.Env[Any, Any]) -> bool:
    """Do several of these disturb nobody?  Gymnasium's own; not simulators of which there can be one, nor wrappers that
    write files, nor windows."""
    spec = env.spec
    if (
        env.render_mode == "human"
        or spec is None
        or spec.additional_wrappers
        or (isinstance(given, EnvConfig) and given.wrappers)
    ):
        return False
    return isinstance(spec.entry_point, str) and spec.entry_point.startswith("gymnasium.envs.")


def _reset(env: gym.Env[Any, Any], seed: int) -> tuple[Any, Any]:
    """An observation and an info; raises InputError where it shows that the API is not Gymnasium's."""
    try:
        obs, info = env.reset(seed=seed)
    except Exception as error:
        explain(error, "reset", name_of(env))
    return obs, info


def _step(env: gym.Env[Any, Any], action: Any) -> tuple[Any, float, Any, Any, Any]:
    try:
        obs, reward, terminated, truncated, info = env.step(action)
        return obs, float(reward), terminated, truncated, info
    except Exception as error:
        explain(error, "step", name_of(env))


def _episode(env: gym.Env[Any, Any], total: float, cut: bool, steps: int) -> Episode:
    if not math.isfinite(total):
        raise InputError(f"the rewards of {name_of(env)} must be finite, got {total} as their sum in an episode")
    return Episode(total, cut, steps)


class _Running:
    """An episode that goes on."""

    def __init__(self, number: int, env: gym.Env[Any, Any], reader: Any) -> None:
        self.number, self.env = number, env
        self.obs, self.info = _reset(env, SEED + number)
        self.source = None if reader is None else source_of(env, self.info)
        self.total, self.steps, self.done = 0.0, 0, False

    def step(self, action: Any) -> bool:
        """Whether it is over, or is cut."""
        self.obs, reward, terminated, truncated, self.info = _step(self.env, action)
        self.total += reward
        self.steps += 1
        self.done = bool(terminated or truncated)
        return self.done or self.steps == MAX_EPISODE_STEPS


def _episodes_at_once(
    policy: Policy, envs: list[gym.Env[Any, Any]], episodes: int, tick: Callable[[int, int], None], masks: bool
) -> list[Episode]:
    """What `episodes_of` gives, in several environments, whose actions come from one call."""
    space, actions = envs[0].observation_space, envs[0].action_space
    reader = reader_of(actions, name_of(envs[0])) if masks else None
    numbers = iter(range(episodes))
    running = [_Running(number, env, reader) for env, number in zip(envs, numbers, strict=False)]
    found: dict[int, Episode] = {}
    steps = 0
    while running:
        batch: Any = create_empty_array(space, len(running))
        obs = concatenate(space, [one.obs for one in running], batch)
        sources = [one.source for one in running]
        how = {}
        if reader is not None and None not in sources:
            how["action_masks"] = np.stack([reader(one.source(one.info)) for one in running])  # type: ignore[misc]
        chosen = policy(obs, **how)
        still = []
        for one, action in zip(running, chosen, strict=True):
            if not one.step(int(action) if isinstance(actions, gym.spaces.Discrete) else action):
                still.append(one)
                continue
            found[one.number] = _episode(one.env, one.total, not one.done, one.steps)
            if (number := next(numbers, None)) is not None:
                still.append(_Running(number, one.env, reader))
        running = still
        steps += 1
        if steps % 100 == 0:
            tick(len(found) + 1, steps)
    return [found[number] for number in range(episodes)]


def _compiled_episodes(policy: Policy, env: Any, episodes: int, tick: Callable[[int, int], None]) -> list[Episode]:
    """The same in a compiled vector environment that resets nothing by itself."""
    found: list[Episode] = []
    for first in range(0, episodes, env.num_envs):
        numbers = first + np.arange(env.num_envs)
        obs, _ = env.reset(seed=(SEED + numbers).tolist())
        totals, lengths = np.zeros(len(numbers)), np.zeros(len(numbers), np.int64)
        runs, steps = numbers < episodes, 0
        while runs.any() and steps < MAX_EPISODE_STEPS:
            obs, reward, terminated, truncated, _ = env.step(policy(obs))
            totals[runs] += reward[runs]
            lengths += runs
            done = terminated | truncated
            runs = runs & ~done
            if done.any():  # those that are over go on for nobody
                obs, _ = env.reset(options={"reset_mask": done})
            steps += 1
            if steps % 100 == 0:
                tick(len(found) + 1, steps)
        found += [Episode(float(totals[i]), bool(runs[i]), int(lengths[i])) for i in np.flatnonzero(numbers < episodes)]
    return found


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
    as `memory` what ``memory()`` has made for the episode, unless that is None.  Rewards are those that the environment
    itself pays, beneath wrappers that change them (`env_rewards`).
    """
    meter = meter_of(env)
    reader = reader_of(env.action_space, name_of(env)) if masks else None
    for i in range(episodes):
        obs, info = _reset(env, seed + i)
        total, steps, done = 0.0, 0, False
        if meter is not None:
            meter.take(0.0)  # a reset that takes steps is no part of the episode
        source = None if reader is None else source_of(env, info)
        remembered = None if memory is None else memory()
        how = {} if remembered is None else {"memory": remembered}
        while not done and (not max_steps or steps < max_steps):
            if source is not None:
                how["action_masks"] = reader(source(info))  # type: ignore[misc]
            action = policy(obs, **how)
            obs, reward, terminated, truncated, info = _step(env, action)
            total += reward if meter is None else float(meter.take(reward))
            steps += 1
            done = bool(terminated or truncated)
            if tick is not None and steps % 100 == 0:
                tick(i + 1, steps)
        yield _episode(env, total, not done, steps)


def evaluation_of(
    agent: Any,
    episodes: int,
    seed: int,
    env: Any,
    max_steps: int | None,
    tick: Callable[[int, int], None] | None = None,
) -> Iterator[Episode]:
    """The episodes of `Agent.evaluate`, one by one as they end; `tick` is that of `episodes_of`."""
    if check_int("episodes", episodes) < 1:
        raise InputError(f"episodes must be >= 1, got {episodes}")
    if check_int("seed", seed) < 0:
        raise InputError(f"seed must be >= 0, got {seed}")
    if max_steps is not None and check_int("max_steps", max_steps) < 0:
        raise InputError(f"max_steps must be >= 0 or None, got {max_steps}")
    envs, given = agent.envs, env is not None
    if env is None and envs.spec is None:
        made = "made from an environment without a spec, or in wrappers of vectors"
        made = "loaded without its environment" if envs.absent else made
        raise InputError(f"evaluate: give it `env`, because the agent was {made}")
    if given and not isinstance(env, (str, EnvConfig, gym.Env)):
        wanted = "an environment id, an EnvConfig or a gymnasium.Env"
        one = "; of a vector environment give one of those in it" if isinstance(env, VectorEnv) else ""
        raise InputError(f"evaluate: env must be {wanted}, got {type(env).__name__}{one}")
    with contextlib.ExitStack() as ends:
        if not isinstance(env, gym.Env):
            env = make_env(env) if given else _made("evaluate: give it `env`", envs.spec)
            ends.callback(env.close)
        if given:
            check_alike("evaluate: env", _spaces(env), (envs.raw_space, envs.action_space))
        if ends.enter_context(envs.lend(env)):
            agent._new_episodes()
        else:
            ends.enter_context(envs.lend_statistics(env))
        yield from episodes_of(agent.predict, env, episodes, seed, max_steps, tick, agent.masks, agent.memory)


def _made(advice: str, spec: Any, **kwargs: Any) -> gym.Env[Any, Any]:
    """One environment; raises InputError, with the advice, if there is one, for what can be done."""
    try:
        return make_env(spec, **kwargs)
    except InputError as error:
        if not advice:
            raise
        raise InputError(f"{advice}, because the agent's own cannot be made again: {error}") from error


def evaluate(
    policy: Policy,
    env: gym.Env[Any, Any],
    episodes: int,
    seed: int,
    max_steps: int | None = MAX_EPISODE_STEPS,
) -> NDArray[np.float64]:
    """Returns ``[episodes]`` of `policy`, as in `episodes_of`."""
    return np.array([episode.reward for episode in episodes_of(policy, env, episodes, seed, max_steps)])

"""What runs in the processes of actors, which do not import Ray themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl import set_num_threads
from fastrl.agents.dqn import DQN
from fastrl.agents.hyperparameters.distributed import ApeXConfig
from fastrl.distributed.shard import Chunk
from fastrl.kernels._core.arrays import assign
from fastrl.replay import ReplayBuffer


@dataclass(frozen=True)
class Report:
    """What a chunk is, besides its transitions."""

    transitions: int
    version: int
    """How many updates had been made when the weights were sent that it was played with."""
    episodes: list[tuple[float, int]]
    """Return and length of those that ended in it."""


def epsilons(config: ApeXConfig) -> NDArray[np.float64]:
    """Of all N environments of a run: epsilon_i = epsilon_start^(1 - i / (N - 1)) epsilon_end^(i / (N - 1))."""
    n = config.actors * config.num_envs
    share = np.arange(n) / max(1, n - 1)
    own: NDArray[np.float64] = config.epsilon_start ** (1 - share) * config.epsilon_end**share
    return own


class Explorer(DQN):
    """DQN's policy, with an epsilon for each environment, and its loss, for the priorities of what it has played."""

    config: ApeXConfig
    config_class = ApeXConfig
    masks = False

    def __init__(self, env: Any, config: ApeXConfig, network: Any, first: int) -> None:
        super().__init__(env, config, network=network)
        self._own = epsilons(config)[first : first + config.num_envs]

    @property
    def epsilon(self) -> Any:
        """Of each environment, ``[num_envs]``."""
        c = self.config
        return np.zeros(c.num_envs) if c.noisy else 1 + (self._own - 1) * min(1.0, self.steps / c.epsilon_steps)

    def _replay(self, action_space: Any) -> ReplayBuffer:
        c = self.config  # of one chunk
        return ReplayBuffer(
            c.chunk * c.num_envs, self.envs.observation_space, action_space, n_step=c.n_step, gamma=c.gamma
        )

    def play(self) -> tuple[list[tuple[float, int]], Chunk]:
        """The episodes that ended, and the chunk."""
        c, steps = self.config, []
        episodes: list[tuple[float, int]] = []
        for _ in range(c.chunk):
            obs = self.envs.obs
            action = self._act(obs, self.rng)
            t = self.envs.step(self._to_env(action))
            steps.append((obs, action, t.reward, t.next_obs, t.terminated, t.truncated))
            episodes += self.envs.ended
        columns = [np.stack(column, axis=1) for column in zip(*steps, strict=True)]  # [num_envs, chunk, ...]
        begins = np.zeros((c.num_envs, c.chunk), np.bool_)
        begins[:, 0] = True
        flat = [x.reshape(-1, *x.shape[2:]) for x in (*columns, begins)]
        return episodes, (*flat, self._errors(flat))

    def _errors(self, flat: list[NDArray[Any]]) -> NDArray[np.float32]:
        """|TD error| of the n-step transitions, with the weights that were played with, as their first priorities."""
        obs, action, reward, next_obs, terminated, truncated, begins = flat
        self.buffer.extend(obs, action, reward, next_obs, terminated, truncated, episode_start=begins)
        n = len(reward)
        b = self.buffer[np.arange(self.buffer._added - n, self.buffer._added)]
        b = b._replace(obs=self._inputs(b.obs), next_obs=self._inputs(b.next_obs))
        errors: NDArray[np.float32] = abs(self._td_errors(self._loss(b)))
        return errors


class Actor:
    """Plays chunk after chunk.  The environment is made with the first one, whose error is then that of a call."""

    def __init__(self, made_of: tuple[Any, Any], config: ApeXConfig, number: int, seed: int) -> None:
        set_num_threads(1)
        env, network = made_of
        self._made_of = env, replace(config, seed=seed, device="cpu"), network, number * config.num_envs
        self._explorer: Explorer | None = None
        self._version = -1

    def collect(self, steps: int, weights: tuple[int, NDArray[np.float32]]) -> tuple[Report, Chunk]:
        """A chunk of the policy with `weights`, the newest ones, of step `steps` of the run."""
        if self._explorer is None:
            self._explorer = Explorer(*self._made_of)
        agent, (version, vector) = self._explorer, weights
        if version != self._version:
            for network in (agent.online, agent.target):
                assign(network.vector, vector)
            self._version = version
        agent.steps = steps
        episodes, chunk = agent.play()
        return Report(len(chunk[0]), version, episodes), chunk

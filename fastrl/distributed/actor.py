"""What runs in the processes of actors, which do not import Ray themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fastrl import set_num_threads
from fastrl.agents.a2c import A2C
from fastrl.agents.dqn import DQN
from fastrl.agents.hyperparameters.distributed import ApeXConfig, ApeXDPGConfig, ApeXR2D2Config, IMPALAConfig
from fastrl.agents.off_policy import OffPolicyAgent
from fastrl.agents.r2d2 import R2D2
from fastrl.agents.td3 import TD3
from fastrl.distributed.shard import COLUMNS, Chunk, sequences
from fastrl.kernels._core.arrays import assign
from fastrl.replay import ReplayBuffer
from fastrl.replay.sequences import mixed_errors

Episodes = list[tuple[float, int]]
"""Return and length of those that have ended."""


@dataclass(frozen=True)
class Report:
    """What a chunk is, besides its transitions."""

    transitions: int
    version: int
    """How many updates had been made when the weights were sent that it was played with."""
    episodes: Episodes


class Player(Protocol):
    """An agent that plays with the learner's weights."""

    steps: int

    def take(self, vector: NDArray[np.float32]) -> None:
        """Take over the learner's weights."""

    def play(self) -> tuple[int, Episodes, Any]:
        """How many transitions were played, the episodes that ended, and the chunk."""


class Explorer(OffPolicyAgent[Any]):
    """The policy of an agent with replay, and its TD errors, for the priorities of what it has played."""

    networks: ClassVar[dict[str, str]]  # whose weights are sent, and their targets, which are the same here
    masks = False

    def __init__(self, env: Any, config: Any, network: Any, number: int) -> None:
        super().__init__(env, config, network=network)

    def take(self, vector: NDArray[np.float32]) -> None:
        at = 0
        for online, target in self.networks.items():
            for network in (getattr(self, online), getattr(self, target)):
                end = at + len(network.vector)
                assign(network.vector, vector[at:end])
            at = end

    def _replay(self, action_space: Any) -> ReplayBuffer:
        c = self.config  # of one chunk
        return ReplayBuffer(
            c.chunk * c.num_envs, self.envs.observation_space, action_space, n_step=c.n_step, gamma=c.gamma
        )

    def play(self) -> tuple[int, Episodes, Chunk]:
        c, steps = self.config, []
        episodes: Episodes = []
        for _ in range(c.chunk):
            obs = self.envs.obs
            action = self._act(obs, self.rng)
            t = self.envs.step(self._to_env(action))
            besides = self._kept_besides().values()
            steps.append((obs, action, t.reward, t.next_obs, t.terminated, t.truncated, *besides))
            episodes += self.envs.ended
            self._after_step(t)
        columns = [np.stack(column, axis=1) for column in zip(*steps, strict=True)]  # [num_envs, chunk, ...]
        begins = np.zeros((c.num_envs, c.chunk), np.bool_)
        begins[:, 0] = True
        flat = [x.reshape(-1, *x.shape[2:]) for x in (*columns[:6], begins, *columns[6:])]
        return len(flat[0]), episodes, (*flat, self._errors(flat))

    def _errors(self, flat: list[NDArray[Any]]) -> NDArray[np.float32]:
        """|TD error| of the n-step transitions, with the weights that were played with, as their first priorities."""
        obs, action, reward, next_obs, terminated, truncated, begins = flat
        self.buffer.extend(obs, action, reward, next_obs, terminated, truncated, episode_start=begins)
        n = len(reward)
        b = self.buffer[np.arange(self.buffer._added - n, self.buffer._added)]
        b = b._replace(obs=self._inputs(b.obs), next_obs=self._inputs(b.next_obs))
        algorithm: Any = self
        errors: NDArray[np.float32] = abs(self._td_errors(algorithm._loss(b)))
        return errors


def epsilons(config: ApeXConfig | ApeXR2D2Config) -> NDArray[np.float64]:
    """Of all N environments of a run: epsilon_i = epsilon_start^(1 - i / (N - 1)) epsilon_end^(i / (N - 1))."""
    n = config.actors * config.num_envs
    share = np.arange(n) / max(1, n - 1)
    own: NDArray[np.float64] = config.epsilon_start ** (1 - share) * config.epsilon_end**share
    return own


class EpsilonExplorer(Explorer):
    """With an epsilon for each environment."""

    def __init__(self, env: Any, config: Any, network: Any, number: int) -> None:
        super().__init__(env, config, network, number)
        first = number * config.num_envs
        self._own = epsilons(config)[first : first + config.num_envs]

    @property
    def epsilon(self) -> Any:
        """Of each environment, ``[num_envs]``."""
        c: Any = self.config
        noisy = getattr(c, "noisy", False)
        return np.zeros(c.num_envs) if noisy else 1 + (self._own - 1) * min(1.0, self.steps / c.epsilon_steps)


class DQNExplorer(EpsilonExplorer, DQN):
    """DQN's."""

    config: ApeXConfig
    config_class = ApeXConfig
    networks: ClassVar = {"online": "target"}


class R2D2Explorer(EpsilonExplorer, R2D2):
    """R2D2's: chunks are cut into sequences, the last of which ends with the chunk."""

    config: ApeXR2D2Config
    config_class = ApeXR2D2Config
    networks: ClassVar = {"online": "target"}

    def _replay(self, action_space: Any) -> Any:
        c = self.config
        return sequences(c, c.chunk * c.num_envs, self.envs.observation_space, action_space)

    def _errors(self, flat: list[NDArray[Any]]) -> NDArray[np.float32]:
        """Mixed errors of the sequences, where they begin; -1 elsewhere."""
        terminated, truncated, begins = flat[4:7]
        truncated |= np.roll(begins, -1) & ~terminated  # for the buffer, which then gives the sequence at once
        buffer, n = self.buffer, len(begins)
        buffer.extend(**dict(zip(COLUMNS, flat, strict=True)))
        numbers = np.arange(buffer._added - n, buffer._added)
        rows, _ = buffer._locate("replay", numbers)
        begin = np.flatnonzero(buffer._tree[rows] > 0)
        errors = np.full(n, -1, np.float32)
        if not len(begin):  # all episodes ended within the burn-in
            return errors
        b: Any = buffer[numbers[begin]]
        td_errors = self._loss(b).td_errors
        errors[begin] = mixed_errors(self.config.eta, b.indices, td_errors, b.mask[:, self.config.burn_in :])[1]
        return errors


class TD3Explorer(Explorer, TD3):
    """TD3's."""

    config: ApeXDPGConfig
    config_class = ApeXDPGConfig
    networks: ClassVar = {"actor": "target_actor", "critics": "target_critics"}


class RolloutPlayer(A2C):
    """Plays A2C's rollouts.

    A chunk: obs, action, log mu(a|s), reward, terminated, truncated ``[T, N, ...]``; the observations after the last
    step ``[N, ...]``; t, n and final observation of the truncated episodes; action masks ``[T, N, K]`` or None.
    """

    config: IMPALAConfig
    config_class = IMPALAConfig

    def __init__(self, env: Any, config: IMPALAConfig, network: Any, number: int) -> None:
        super().__init__(env, config, network=network)

    def take(self, vector: NDArray[np.float32]) -> None:
        assign(self.policy.vector, vector)

    def play(self) -> tuple[int, Episodes, Any]:
        episodes: Episodes = []
        self.rollout.collect(self.generator, lambda: episodes.extend(self.envs.ended))
        r = self.rollout
        chunk = r.obs, r.action, r.log_prob, r.reward, r.terminated, r.truncated, self.envs.obs, r.finals, r.allowed
        return r.reward.size, episodes, chunk


class Actor:
    """Plays chunk after chunk.  The environment is made with the first one, whose error is then that of a call.

    `made_of`: the class of the player, environment and network.
    """

    def __init__(self, made_of: tuple[Any, Any, Any], config: Any, number: int, seed: int) -> None:
        set_num_threads(1)
        self._player_class, env, network = made_of
        self._made_of = env, replace(config, seed=seed, device="cpu"), network, number
        self._player: Player | None = None
        self._version = -1

    def collect(self, steps: int, weights: tuple[int, NDArray[np.float32]]) -> tuple[Report, Any]:
        """A chunk of the policy with `weights`, the newest ones, of step `steps` of the run."""
        if self._player is None:
            self._player = self._player_class(*self._made_of)
        player, (version, vector) = self._player, weights
        if version != self._version:
            player.take(vector)
            self._version = version
        player.steps = steps
        transitions, episodes, chunk = player.play()
        return Report(transitions, version, episodes), chunk

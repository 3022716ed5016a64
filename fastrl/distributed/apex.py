"""Ape-X (Horgan et al. 2018, arXiv:1803.00933): actors, prioritized replay and learner as processes of their own.

The updates are those of `fastrl.agents.dqn`, `fastrl.agents.td3` and `fastrl.agents.r2d2`.
"""

from __future__ import annotations

from typing import Any

from fastrl.agents.dqn import DQN
from fastrl.agents.hyperparameters.distributed import ApeXConfig, ApeXDPGConfig, ApeXR2D2Config
from fastrl.agents.r2d2 import R2D2
from fastrl.agents.td3 import TD3
from fastrl.distributed.actor import DQNExplorer, R2D2Explorer, TD3Explorer, epsilons
from fastrl.distributed.learner import ReplayLearner
from fastrl.distributed.shard import SequenceShard
from fastrl.replay.sequences import mixed_errors


class ApeX(ReplayLearner[Any], DQN):
    """Ape-X DQN (Horgan et al. 2018, arXiv:1803.00933) on Ray: `actors` that play, `shards` of a prioritized replay
    buffer, and this process, which learns with the update of `DQN`.

    Environment i of N has epsilon_i = epsilon_start^(1 - i / (N - 1)) epsilon_end^(i / (N - 1)).  Actors send chunks
    with their own |TD error| as first priorities.  A batch is drawn from one shard, chosen in proportion to the sum of
    its priorities p, so that P(i) = p_i / sum of p over all shards; its weights are (N P(i))^-beta / max_j (N
    P(j))^-beta.

    `env`: an id or an `EnvConfig`, which the actors can make.  `network` as in `DQN`.  Checkpoints hold all but the
    replay buffer: what is loaded goes on after learning_starts new transitions.  What is learned depends on who is
    faster, so that no run repeats another.  Raises InputError for anything that cannot work.

    >>> agent = ApeX("CartPole-v1", actors=2, seed=0).learn(50_000)
    """

    algorithm = "apex"
    config: ApeXConfig
    config_class = ApeXConfig
    player_class = DQNExplorer
    masks = False

    @property
    def epsilon(self) -> float:
        """The mean over all environments; with `noisy` 0."""
        return 0.0 if self.config.noisy else float(epsilons(self.config).mean())


class ApeXDPG(ReplayLearner[Any], TD3):
    """Ape-X DPG (Horgan et al. 2018, arXiv:1803.00933) on Ray: `ApeX` for continuous actions, with the update of
    `TD3`.

    With policy_delay=1, target_noise=0 and one critic it would be the paper's.  All else is as in `ApeX`; `network` as
    in `TD3`.

    >>> agent = ApeXDPG("Pendulum-v1", actors=2, seed=0).learn(20_000)
    """

    algorithm = "apex_dpg"
    config: ApeXDPGConfig
    config_class = ApeXDPGConfig
    player_class = TD3Explorer


class ApeXR2D2(ReplayLearner[Any], R2D2):
    """R2D2 (Kapturowski et al. 2019) on Ray: `ApeX` with replayed sequences and the update of `fastrl.agents.R2D2`.

    An actor's chunk is cut into sequences, in each environment from its first step on, and the last one ends with the
    chunk; the network's states go on from chunk to chunk, and are stored.  All else is as in `ApeX`.  Needs PyTorch.

    >>> agent = ApeXR2D2("fastrl/TMaze-v0", actors=2, seed=0).learn(30_000)
    """

    algorithm = "apex_r2d2"
    config: ApeXR2D2Config
    config_class = ApeXR2D2Config
    player_class = R2D2Explorer
    shard_class = SequenceShard

    @property
    def epsilon(self) -> float:
        """The mean over all environments."""
        return float(epsilons(self.config).mean())

    def _update(self) -> None:
        self._learn()

    def _as_inputs(self, b: Any) -> Any:
        return b._replace(
            state=b.state.copy()
        )  # torch takes no array that cannot be written to; observations R2D2 copies

    def _prioritize(self, batch: Any, errors: Any) -> None:
        mask = batch.mask[:, self.config.burn_in :]
        super()._prioritize(batch, mixed_errors(self.config.eta, batch.indices, errors, mask)[1])

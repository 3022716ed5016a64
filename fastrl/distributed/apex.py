"""Ape-X (Horgan et al. 2018, arXiv:1803.00933): actors, prioritized replay and learner as processes of their own.

The updates are those of `fastrl.agents.dqn` and `fastrl.agents.td3`.
"""

from __future__ import annotations

from typing import Any

from fastrl.agents.dqn import DQN
from fastrl.agents.hyperparameters.distributed import ApeXConfig, ApeXDPGConfig
from fastrl.agents.td3 import TD3
from fastrl.distributed.actor import DQNExplorer, TD3Explorer, epsilons
from fastrl.distributed.learner import ReplayLearner


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

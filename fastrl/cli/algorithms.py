"""The algorithms as the command line knows them, without importing them."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastrl.agents.config import InputError
from fastrl.cli.options import did_you_mean


class Algorithm(NamedTuple):
    total_steps: int
    """Environment steps of a run, of fqi iterations, unless a number is given."""
    line: str
    """What it is, and for which actions."""


ALGORITHMS = {
    "dqn": Algorithm(50_000, "deep Q-network with Double, C51, QR, ...: all of Rainbow; discrete actions"),
    "r2d2": Algorithm(50_000, "DQN with a memory (LSTM or GRU), from replayed sequences; discrete actions"),
    "reinforce": Algorithm(
        200_000, "policy gradient of whole episodes, with a baseline; discrete or continuous actions"
    ),
    "actor_critic": Algorithm(500_000, "one-step actor-critic; discrete or continuous actions"),
    "a2c": Algorithm(500_000, "advantage actor-critic; discrete or continuous actions"),
    "a3c": Algorithm(500_000, "asynchronous A2C, in several processes; discrete or continuous actions"),
    "ppo": Algorithm(
        100_000, "proximal policy optimization, clipped or with a KL penalty; discrete or continuous actions"
    ),
    "recurrent_ppo": Algorithm(100_000, "PPO with a memory (LSTM or GRU); discrete or continuous actions"),
    "trpo": Algorithm(100_000, "trust region policy optimization; discrete or continuous actions"),
    "q_prop": Algorithm(100_000, "TRPO with an off-policy critic as control variate; continuous actions"),
    "cem": Algorithm(100_000, "policy search by the cross-entropy method; discrete or continuous actions"),
    "naf": Algorithm(100_000, "normalized advantage functions; continuous actions"),
    "qt_opt": Algorithm(100_000, "Q-learning with a search for the best action; continuous actions"),
    "ddpg": Algorithm(100_000, "deep deterministic policy gradient; continuous actions"),
    "d4pg": Algorithm(100_000, "DDPG with a distribution of returns; continuous actions"),
    "td3": Algorithm(100_000, "twin delayed DDPG; continuous actions"),
    "sac": Algorithm(100_000, "soft actor-critic; continuous actions"),
    "sac_discrete": Algorithm(50_000, "soft actor-critic; discrete actions"),
    "tqc": Algorithm(100_000, "SAC with truncated distributions of returns; continuous actions"),
    "crossq": Algorithm(100_000, "SAC with batch normalisation and no target networks; continuous actions"),
    "q_learning": Algorithm(100_000, "Q-learning on a table; discrete observations and actions"),
    "sarsa": Algorithm(100_000, "SARSA(lambda) on a table; discrete observations and actions"),
    "expected_sarsa": Algorithm(100_000, "expected SARSA on a table; discrete observations and actions"),
    "fqi": Algorithm(200, "fitted Q iteration on stored transitions or random play, 200 iterations; discrete actions"),
    "apex": Algorithm(
        100_000, "Ape-X on Ray, actors and replay in processes of their own: DQN, or apex_dpg for continuous actions"
    ),
    "apex_dpg": Algorithm(30_000, "Ape-X DPG on Ray; continuous actions"),
    "apex_r2d2": Algorithm(50_000, "R2D2 on Ray, also as r2d2 --actors N; discrete actions"),
    "impala": Algorithm(300_000, "IMPALA on Ray, actors in processes of their own; discrete or continuous actions"),
}
ALSO = {"nfq": "fqi", "qdn": "dqn", "ac": "actor_critic", "vpg": "reinforce", "ape_x": "apex", "cross_q": "crossq"}
CONTINUOUS = {"apex": "apex_dpg"}  # what the name stands for where actions are continuous
WITH_ACTORS = {"r2d2": "apex_r2d2"}  # and with --actors


def algorithm_name(word: Any, where: str = "") -> str:
    """The name, however it is written (PPO, actor-critic); raises InputError."""
    name = str(word).lower().replace("-", "_")
    if name not in ALGORITHMS:
        meant = ALSO.get(name) or did_you_mean(name, ALGORITHMS)
        raise InputError(
            f"{where}unknown algorithm {word!r}; "
            + (f"did you mean {meant}? " if meant else "")
            + f"known are {', '.join(ALGORITHMS)}"
        )
    return name


def print_algorithms() -> None:
    print("The algorithms, and how many steps they take by default:")
    for name, algorithm in ALGORITHMS.items():
        print(f"  {name:<15}{algorithm.total_steps:>8,}  {algorithm.line}")
    print("\n`fastrl train ALGORITHM --help` lists the hyperparameters.")

"""What `learning.py` trains: algorithm -> variant -> environment -> steps, bar and hyperparameters."""

from __future__ import annotations

from typing import Any, NamedTuple

SB3 = "sb3"


class Task(NamedTuple):
    steps: int  # of the environments
    wanted: float | None  # what the interquartile mean over the seeds must reach; None: that of the variant `beside`
    overrides: dict[str, Any]  # of the algorithm's default hyperparameters
    beside: str = SB3  # or of another algorithm: algorithm/variant

    def evaluate_every(self, algorithm: str) -> int:
        return 5_000 if algorithm == "dqn" else self.steps // 10


# Returns of several steps are not corrected for old actions: a buffer of the whole run keeps those of its random start.
N_STEP = {"n_step": 3, "buffer_size": 10_000}
THREE = {"double": True, "dueling": True, "prioritized": True}
DQN = {
    "plain": {},
    "double": {"double": True},
    "dueling": {"dueling": True},
    "prioritized": {"prioritized": True},
    "n_step": N_STEP,
    "c51": {"distributional": "c51"},
    "qr": {"distributional": "qr"},
    "iqn": {"distributional": "iqn"},
    "noisy": {"noisy": True},
    "rainbow": {"rainbow": True},
    "all": THREE,  # all but n_step, with which it is all_n_step
    "all_n_step": {**THREE, **N_STEP},
}
ACROBOT = {"learning_rate_steps": 50_000, "per_beta_steps": 50_000}
PPO_PENDULUM = {  # gamma and gae_lambda as in rl-baselines3-zoo
    "gamma": 0.9,
    "gae_lambda": 0.95,
    "num_envs": 4,
    "n_steps": 256,
    "epochs": 10,
    "minibatches": 8,
    "normalize_rewards": True,
}
PPO_LUNAR_LANDER = {  # most of them as in rl-baselines3-zoo
    "gamma": 0.999,
    "gae_lambda": 0.98,
    "num_envs": 16,
    "n_steps": 1024,
    "epochs": 4,
    "minibatches": 256,
    "entropy_coef": 0.01,
    "learning_rate": 3e-4,
    "learning_rate_steps": 1_000_000,
}
TRPO_CHEETAH = {  # of sb3-contrib
    "num_envs": 1, "n_steps": 2048, "gamma": 0.99, "max_kl": 0.01, "max_kl_end": 0.01, "cg_damping": 0.1,
    "value_epochs": 10, "minibatches": 16,
}  # fmt: skip
TRPO_PENDULUM = {  # gamma as in rl-baselines3-zoo; cg_damping, value_epochs and minibatches of 128 as in sb3-contrib
    "gamma": 0.9,
    "max_kl": 0.015,
    "n_steps": 256,  # more than an episode: an update that sees a part of it only forgets the others
    "cg_damping": 0.1,
    "value_epochs": 10,
    "minibatches": 16,
    "normalize_rewards": True,
}
A2C_PENDULUM = {  # as in rl-baselines3-zoo, for 1M steps there, but for gamma (that of TRPO here) and gSDE
    "num_envs": 8, "n_steps": 8, "gamma": 0.9, "gae_lambda": 0.9, "learning_rate": 7e-4, "optimizer": "rmsprop",
    "value_coef": 0.4, "max_grad_norm": 0.5, "normalize_advantages": False, "normalize_obs": True,
    "normalize_rewards": True,
}  # fmt: skip
OFF_POLICY_PENDULUM = {"hidden": (64, 64), "batch_size": 128}  # small enough for a slow machine
TD3_CHEETAH = {**OFF_POLICY_PENDULUM, "learning_starts": 10_000}  # as in rl-baselines3-zoo
D4PG_CHEETAH = {**TD3_CHEETAH, "v_min": -100.0, "v_max": 900.0}
# SB3 has one rate for all: its default.  An update every second step, again for slow machines.
SAC_CHEETAH = {**TD3_CHEETAH, "learning_rate": 3e-4, "actor_learning_rate": 3e-4, "train_every": 2}
# algorithm -> variant -> environment -> Task
TASKS: dict[str, dict[str, dict[str, Task]]] = {
    "dqn": {
        variant: {
            "CartPole-v1": Task(50_000, 475, switches),
            "Acrobot-v1": Task(100_000, -100, {**ACROBOT, **switches}),
            # No policy without a memory has more than 0 there in the mean.
            **({} if switches else {"fastrl/TMaze-v0": Task(20_000, None, {})}),
        }
        for variant, switches in DQN.items()
    },
    "r2d2": {
        "lstm": {"fastrl/TMaze-v0": Task(20_000, 0.9, {}), "fastrl/PositionCartPole-v1": Task(50_000, 400, {})},
        "gru": {"fastrl/TMaze-v0": Task(20_000, 0.9, {"network": "gru"})},
    },
    "reinforce": {
        "baseline": {"CartPole-v1": Task(200_000, 450, {})},
        "no_baseline": {"CartPole-v1": Task(200_000, 450, {"baseline": False})},
    },
    "actor_critic": {
        "one_step": {"CartPole-v1": Task(500_000, 475, {})},
    },
    "a2c": {
        "pendulum": {"Pendulum-v1": Task(100_000, None, A2C_PENDULUM)},
        "gae": {"CartPole-v1": Task(500_000, 475, {}), "Acrobot-v1": Task(500_000, -100, {})},
    },
    "a3c": {
        "two_workers": {"CartPole-v1": Task(300_000, 450, {"workers": 2})},
    },
    "trpo": {
        "default": {
            "CartPole-v1": Task(100_000, 475, {}),
            "Pendulum-v1": Task(100_000, -200, TRPO_PENDULUM),
            "HalfCheetah-v5": Task(500_000, None, TRPO_CHEETAH),  # needs the extra mujoco
        },
        SB3: {"HalfCheetah-v5": Task(500_000, None, TRPO_CHEETAH)},  # sb3-contrib's
    },
    "q_prop": {
        variant: {"Pendulum-v1": Task(100_000, -200, {**TRPO_PENDULUM, "control": variant})}
        for variant in ("conservative", "aggressive")
    },
    "ppo": {
        "clip": {
            "CartPole-v1": Task(100_000, 490, {}),
            "Acrobot-v1": Task(100_000, -100, {}),
            "Pendulum-v1": Task(100_000, -200, PPO_PENDULUM),
            "LunarLander-v3": Task(1_000_000, 200, PPO_LUNAR_LANDER),  # needs the extra box2d
            "fastrl/TMaze-v0": Task(50_000, None, {}),  # as of DQN
        },
        "penalty": {"CartPole-v1": Task(100_000, 475, {"objective": "penalty"})},
    },
    "recurrent_ppo": {
        "lstm": {"fastrl/TMaze-v0": Task(200_000, 0.9, {}), "fastrl/PositionCartPole-v1": Task(100_000, 400, {})},
        "gru": {"fastrl/TMaze-v0": Task(200_000, 0.9, {"network": "gru"})},
    },
    "cem": {
        "default": {"CartPole-v1": Task(100_000, 475, {})},
    },
    "naf": {
        "gaussian": {"Pendulum-v1": Task(30_000, -200, {**OFF_POLICY_PENDULUM, "reward_scale": 0.03})},
    },
    "qt_opt": {
        "gaussian": {"Pendulum-v1": Task(30_000, -200, {**OFF_POLICY_PENDULUM, "cem_samples": 16, "cem_elites": 4})},
    },
    "ddpg": {
        "gaussian": {
            "Pendulum-v1": Task(20_000, -180, OFF_POLICY_PENDULUM),
            "HalfCheetah-v5": Task(200_000, None, TD3_CHEETAH, "ddpg/gaussian"),
        },
        "ou": {"Pendulum-v1": Task(20_000, -180, {**OFF_POLICY_PENDULUM, "noise": "ou"})},
    },
    "d4pg": {
        "default": {
            "Pendulum-v1": Task(20_000, -180, {**OFF_POLICY_PENDULUM, "v_min": -400.0, "v_max": 0.0}),
            "HalfCheetah-v5": Task(200_000, None, {**D4PG_CHEETAH, "n_step": 1}, "ddpg/gaussian"),
        },
        "five_steps": {
            "HalfCheetah-v5": Task(200_000, None, D4PG_CHEETAH, "ddpg/gaussian")
        },  # the paper's, of many actors
    },
    "sac": {
        "automatic": {
            "Pendulum-v1": Task(20_000, -180, {**OFF_POLICY_PENDULUM, "actor_learning_rate": 1e-3}),
            "HalfCheetah-v5": Task(100_000, None, SAC_CHEETAH),  # needs the extra mujoco
        },
        SB3: {"HalfCheetah-v5": Task(100_000, None, SAC_CHEETAH)},
    },
    "sac_discrete": {
        "default": {"CartPole-v1": Task(50_000, 475, {})},
    },
    "tqc": {  # two critics, as in sb3-contrib
        "default": {
            "Pendulum-v1": Task(
                20_000,
                -180,
                {**OFF_POLICY_PENDULUM, "n_critics": 2, "learning_rate": 1e-3, "actor_learning_rate": 1e-3},
            )
        },
    },
    "crossq": {
        "default": {"Pendulum-v1": Task(20_000, -180, {**OFF_POLICY_PENDULUM, "critic_hidden": (64, 64)})},
    },
    "fqi": {  # from 20,000 transitions of random play; the steps are iterations
        "network": {"CartPole-v1": Task(200, 400, {})},
    },
    "td3": {
        "default": {
            "Pendulum-v1": Task(20_000, -180, OFF_POLICY_PENDULUM),
            "HalfCheetah-v5": Task(100_000, None, TD3_CHEETAH),
        },
        "lap": {"Pendulum-v1": Task(20_000, -180, {**OFF_POLICY_PENDULUM, "lap": True})},
        SB3: {"HalfCheetah-v5": Task(100_000, None, TD3_CHEETAH)},
    },
}
# The published comparison of DQN and Double DQN with prioritized replay (SLM-Lab 2026: 195 and 266 on LunarLander-v3,
# -94 and -84 on Acrobot-v1, means of the last 100 episodes of training), and an hour of MinAtar on two cores.
PER_STUDY = {
    "LunarLander-v3": {"epsilon_steps": 50_000, "averaging": False},  # needs the extra box2d
    "Acrobot-v1": {"averaging": False},
}
MINATAR = {  # Young and Tian 2019, appendix, but for Adam; SB3's DQN has all of it
    "hidden": (128,), "learning_rate": 2.5e-4, "learning_rate_end": 2.5e-4, "batch_size": 32, "learning_starts": 5_000,
    "train_every": 4, "target_every": 250, "tau": 1.0, "epsilon_steps": 100_000, "epsilon_end": 0.1, "loss": "huber",
    "max_grad_norm": 10.0, "averaging": False,
}  # fmt: skip
STUDIES: dict[str, dict[str, dict[str, Task]]] = {
    "per": {
        "dqn": {env: Task(300_000, None, how, "dqn") for env, how in PER_STUDY.items()},
        "double_per": {
            env: Task(300_000, None, {**how, "double": True, "prioritized": True}, "dqn")
            for env, how in PER_STUDY.items()
        },
        "double_per_n_step": {
            "LunarLander-v3": Task(
                300_000, 240, {**PER_STUDY["LunarLander-v3"], "double": True, "prioritized": True, "n_step": 3}, "dqn"
            )
        },
    },
    "minatar": {  # needs minatar
        "dqn": {"MinAtar/Breakout-v1": Task(1_000_000, None, MINATAR)},
        "all_n_step": {"MinAtar/Breakout-v1": Task(1_000_000, None, {**MINATAR, **THREE, "n_step": 3})},
        SB3: {"MinAtar/Breakout-v1": Task(1_000_000, None, MINATAR)},
    },
}
ALL = {**TASKS, **STUDIES}
CLASSES = dict.fromkeys(STUDIES, "dqn")  # the algorithm of a study
VARIANTS = tuple(dict.fromkeys(variant for variants in ALL.values() for variant in variants))
ENVS = tuple(dict.fromkeys(env for variants in ALL.values() for envs in variants.values() for env in envs))

"""Every algorithm trained for a few hundred steps, saved, loaded and evaluated, in a process of any kind."""

import fastrl.agents

OFF = {"hidden": (8,), "learning_starts": 50, "batch_size": 8, "prioritized": True}
ON = {"hidden": (8,), "num_envs": 2, "normalize_obs": True}
NEED_TORCH = {"r2d2", "recurrent_ppo"}
SETTINGS = {
    "dqn": {**OFF, "noisy": True, "distributional": "c51", "atoms": 5},
    "reinforce": {"hidden": (8,)},
    "actor_critic": {"hidden": (8,)},
    "a2c": {**ON, "optimizer": "rmsprop"},
    "ppo": {**ON, "n_steps": 32, "objective": "penalty"},
    "trpo": {**ON, "n_steps": 64, "activation": "relu"},
    "cem": {"hidden": (8,), "population": 4, "elites": 2},
    "fqi": {"hidden": (8,), "transitions": 300},
    "qt_opt": {**OFF, "cem_samples": 8},
    "d4pg": {**OFF, "n_atoms": 11},
    **dict.fromkeys(("naf", "ddpg", "td3", "sac", "sac_discrete", "tqc", "crossq"), OFF),
}


def env_of(cls):
    if cls.tabular:
        return "FrozenLake-v1"
    return "CartPole-v1" if cls.discrete and cls.algorithm != "trpo" else "Pendulum-v1"


def train_all(folder):
    """Checkpoints in folder/ALGORITHM; returns by algorithm the returns of the agent that was loaded from there.

    Of those that need no torch.
    """
    returns = {}
    for name, cls in fastrl.agents.ALGORITHMS.items():
        if name in NEED_TORCH:
            continue
        agent = cls(env_of(cls), seed=0, **SETTINGS.get(name, {})).learn(300, progress=False)
        assert agent.n_updates > 0, name
        agent.save(f"{folder}/{name}")
        returns[name] = fastrl.agents.load(f"{folder}/{name}", env_of(cls)).evaluate(2).tolist()
    return returns

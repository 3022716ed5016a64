"""Settings that have an effect only with another one: they have none without it, and whoever gives them is told."""

import dataclasses
import warnings

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from fastrl.agents import ALGORITHMS, DQN, FQI, PPO
from fastrl.agents.hyperparameters import CONFIGS
from fastrl.agents.hyperparameters.needs import NEEDS, idle

# Other values than the defaults, of what the need itself does not say.
OTHER = {
    "activation": "relu", "atoms": 7, "batch_size": 16, "clip_range": 1e-4, "epochs": 1, "epsilon_end": 0.5,
    "epsilon_start": 0.5, "epsilon_steps": 5, "extra_std_steps": 5, "hidden": (9,), "initial_temperature": 3.0,
    "lap_alpha": 0.9, "learning_rate": 0.1, "learning_rate_end": 0.1, "learning_rate_horizon": 9.0,
    "learning_rate_steps": 7, "loss": "huber", "min_split": 50, "networks": 1, "num_quantile_samples": 3,
    "num_tau_prime_samples": 3, "num_tau_samples": 3, "ou_theta": 0.9, "penalty_beta": 9.0, "penalty_kl": 1e-6,
    "per_alpha": 0.9, "per_beta": 0.9, "per_beta_end": 0.5, "per_beta_steps": 7, "per_eps": 0.5,
    "quantile_embedding_dim": 3, "sigma": 3.0, "target_entropy": 0.3, "temperature": 9.0, "trees": 1, "v_max": 7.0,
    "v_min": -7.0, "value_coef": 9.0, "worker_timeout": 1.0,
}  # fmt: skip
SMALL = {"learning_starts": 20, "hidden": (8, 8), "n_steps": 8, "episodes": 1, "population": 4, "elites": 2, "seed": 1}
SMALL |= {
    "transitions": 200,
    "batch_size": 32,
    "num_envs": 1,
    "trees": 3,
    "networks": 2,
    "epochs": 2,
    "minibatches": 1,
    "epsilon_steps": 40,
}
SMALL |= {"initial_value": 1.0}


def off(need, config):
    """A value of its setting with which the need is not met."""
    if need.but:
        return need.values[0]
    other = {"exploration": ("boltzmann", "epsilon-greedy"), "objective": ("clip", "penalty"), "temperature": (0.2,)}
    other |= {"distributional": (None,), "noise": ("gaussian",), "regressor": ("table", "network")}
    return next(v for v in other.get(need.setting, (False, True)) if v not in need.values)


def on(need):
    """A value with which it is."""
    if not need.but:
        return need.values[0]
    other = {"extra_std": 0.1, "learning_rate_power": 0.5, "learning_rate_end": 1e-5, "distributional": None}
    return (other | {"noisy": False, "regressor": "network"})[need.setting]


def cases():
    for name, needs in NEEDS.items():
        for need in needs:
            for algorithm, config in CONFIGS.items():
                fields = {f.name for f in dataclasses.fields(config)}
                if algorithm not in ALGORITHMS or not {name, need.setting} <= fields or need.setting == "network":
                    continue  # images take a network of their own
                hint = next(f.type for f in dataclasses.fields(config) if f.name == need.setting)
                if (need.values[0] is not None or "None" in hint) and (algorithm, name) != (
                    "recurrent_ppo",
                    "clip_range",
                ):
                    yield pytest.param(algorithm, name, need, id=f"{algorithm}-{name}-{need.setting}")


def trained(cls, **settings):
    own = {
        name: value for name, value in SMALL.items() if name in {f.name for f in dataclasses.fields(cls.config_class)}
    }
    env = "FrozenLake-v1" if cls.tabular or settings.get("regressor") == "table" else "CartPole-v1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agent = cls(env if cls.discrete else "Pendulum-v1", **{**own, **settings})
        agent.learn(2 if cls.algorithm == "fqi" else 80, progress=False)
    state, tensors = agent._state()
    agent.close()
    return [state["envs"], state["table"] if cls.tabular else {name: x.tolist() for name, x in tensors.items()}]


@pytest.mark.parametrize(("algorithm", "name", "need"), list(cases()))
def test_without_what_it_needs_a_setting_changes_nothing(algorithm, name, need):
    cls = ALGORITHMS[algorithm]
    settings = {need.setting: off(need, cls.config_class)}
    changed = {**settings, name: OTHER[name]}
    assert [found for found, _ in idle(cls.config_class(**changed), {name: 0})] == [name]
    assert trained(cls, **changed) == trained(cls, **settings)
    quiet = name in ("worker_timeout", "num_quantile_samples")  # they need not show in so few steps
    if not quiet and algorithm not in ("recurrent_ppo", "fqi"):  # one has the objective clip alone, one a constant rate
        settings = {need.setting: on(need)}
        assert trained(cls, **settings, **{name: OTHER[name]}) != trained(cls, **settings)


def test_every_need_is_of_a_setting_that_there_is():
    every = {field.name for config in CONFIGS.values() for field in dataclasses.fields(config)}
    assert set(NEEDS) <= every and {need.setting for needs in NEEDS.values() for need in needs} <= every
    assert set(OTHER) == set(NEEDS)


def test_settings_without_effect_on_what_is_chosen_by_the_environment():
    """auto is a table for Discrete observations: what networks alone have does nothing."""
    with pytest.warns(UserWarning, match="has no effect with regressor='table'$") as said:
        FQI("FrozenLake-v1", hidden=(32,), epochs=3, gamma=0.9, transitions=50)
    assert [str(w.message).split()[1] for w in said] == ["hidden", "epochs"]
    assert {w.filename for w in said} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FQI("CartPole-v1", hidden=(32,), epochs=3, transitions=50)


def test_who_gives_a_setting_without_effect_is_told():
    small = {"hidden": (8,), "n_steps": 8}
    with pytest.warns(UserWarning, match=r"^PPOConfig: penalty_kl has no effect without objective='penalty'$") as said:
        PPO("CartPole-v1", penalty_kl=0.5, **small)
    assert len(said) == 1 and said[0].filename == __file__
    with pytest.warns(UserWarning, match=r"^DQNConfig: epsilon_end has no effect with noisy=True$") as said:
        DQN("CartPole-v1", noisy=True, epsilon_end=0.5)
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PPO("CartPole-v1", penalty_kl=0.5, objective="penalty", **small)
        DQN("CartPole-v1", per_alpha=0.6)  # the default
        DQN("CartPole-v1", **dataclasses.asdict(DQN("CartPole-v1").config))


NEW = {"hidden": (8,), "activation": "relu", "shared_network": True}


@pytest.mark.parametrize(
    ("algorithm", "networks", "idle_settings"),
    [
        ("dqn", lambda: torch.nn.Linear(4, 2), ["hidden"]),
        ("ppo", lambda: torch.nn.Linear(4, 3), ["activation", "hidden", "shared_network"]),
        ("a2c", {"actor": torch.nn.Linear(4, 2), "critic": torch.nn.Linear(4, 1)}, ["activation", "hidden"]),
        ("sac_discrete", {"actor": torch.nn.Linear(4, 2)}, []),  # the critics are MLPs
    ],
)
def test_settings_of_networks_beside_networks_of_the_users_own(algorithm, networks, idle_settings):
    cls = ALGORITHMS[algorithm]
    settings = {name: NEW[name] for name in idle_settings or ["hidden"]}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cls("CartPole-v1", network=networks, **settings).close()
    names = [str(w.message) for w in said]
    assert names == [
        f"{cls.config_class.__name__}: {name} has no effect with networks of your own" for name in idle_settings
    ]
    assert {w.filename for w in said} <= {__file__}


def test_settings_of_networks_where_auto_takes_convolutions():
    class Seen(gym.Env):
        observation_space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros((36, 36, 3), np.uint8), {}

    with pytest.warns(UserWarning, match=r"^PPOConfig: hidden has no effect with network='nature'$") as said:
        PPO(Seen(), hidden=(8,), n_steps=8)
    assert len(said) == 1 and said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        PPO(Seen(), n_steps=8)

"""What all on-policy agents share: exact resume, seeds, prediction, logs, and errors that say what is wrong."""

import copy
import csv
import random
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastrl.agents import A2C, A3C, ALGORITHMS, PPO, REINFORCE, TRPO, OneStepActorCritic
from fastrl.agents.config import InputError

ON_POLICY = [A2C, OneStepActorCritic, PPO, REINFORCE, TRPO]
NORMALIZED = {"normalize_obs": True, "normalize_rewards": True}
SMALL = {"hidden": (8,), "num_envs": 2, "learning_rate_steps": 700}
PPO_SMALL = {**SMALL, "n_steps": 16, "epochs": 2, "minibatches": 3}
CASES = {
    "a2c": (A2C, "CartPole-v1", SMALL),
    "a2c_all": (A2C, "Pendulum-v1", {**SMALL, **NORMALIZED, "gae_lambda": None, "shared_network": True}),
    "a3c": (A3C, "CartPole-v1", {**SMALL, "n_steps": 5}),
    "a2c_rmsprop": (A2C, "CartPole-v1", {**SMALL, "optimizer": "rmsprop", "n_steps": 5}),
    "actor_critic": (OneStepActorCritic, "CartPole-v1", SMALL),
    "ppo": (PPO, "CartPole-v1", PPO_SMALL),
    "ppo_penalty": (PPO, "Pendulum-v1", {**PPO_SMALL, "objective": "penalty"}),
    "ppo_all": (PPO, "Pendulum-v1", {**PPO_SMALL, **NORMALIZED, "clip_value": 0.2, "target_kl": 0.02}),
    "reinforce": (REINFORCE, "CartPole-v1", {**SMALL, "episodes": 2}),
    "reinforce_plain": (REINFORCE, "CartPole-v1", {**SMALL, "num_envs": 1, "baseline": False}),
    "trpo": (TRPO, "CartPole-v1", {**SMALL, "n_steps": 16, "value_epochs": 2}),
    "trpo_all": (TRPO, "Pendulum-v1", {**SMALL, **NORMALIZED, "n_steps": 50, "value_epochs": 2}),
}


def tensors(agent):
    return agent._state()[1]


def assert_same(a, b):
    x, y = tensors(a), tensors(b)
    assert x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)
    assert a.rng.bit_generator.state == b.rng.bit_generator.state
    assert a.generator.state_dict() == b.generator.state_dict()
    assert a.envs.obs.tobytes() == b.envs.obs.tobytes()
    assert (a.steps, a.n_updates, a.envs.episodes) == (b.steps, b.n_updates, b.envs.episodes)
    assert a.envs.recent == b.envs.recent
    assert a.metrics() == b.metrics()
    for part in ("penalty", "scale_rewards"):
        if getattr(a, part, None) is not None:
            assert getattr(a, part).state_dict() == getattr(b, part).state_dict()
    if a.policy.moments is not None:
        assert a.policy.moments.state_dict() == b.policy.moments.state_dict()


@pytest.mark.parametrize("case", CASES)
def test_resume_is_exact(case, tmp_path):
    cls, env, settings = CASES[case]
    straight = cls(env, **settings).learn(900, progress=False)
    broken = cls(env, **settings).learn(450, progress=False)
    broken.save(tmp_path / "a")
    loaded = cls.load(tmp_path / "a")
    assert_same(broken, loaded)
    assert_same(straight, loaded.learn(900, progress=False))
    assert_same(straight, broken.learn(900, progress=False))  # to save does not disturb


@pytest.mark.parametrize("cls", [A2C, PPO, TRPO])
def test_returns_of_abandoned_episodes_do_not_scale_rewards(cls, tmp_path):
    def env():
        return SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)

    agent = cls(env(), hidden=(8,), n_steps=4, normalize_rewards=True).learn(8, progress=False)
    assert agent.scale_rewards.carry.all()
    agent.save(tmp_path / "a")
    with pytest.warns(UserWarning, match="new episodes begin"):
        loaded = cls.load(tmp_path / "a", env=env())
    assert not loaded.scale_rewards.carry.any()
    assert loaded.scale_rewards.moments.state_dict() == agent.scale_rewards.moments.state_dict()


def test_resume_in_a_new_process_is_exact(tmp_path):
    cls, env, settings = CASES["ppo_all"]
    straight = cls(env, **settings).learn(300, progress=False)
    cls(env, **settings).learn(150, progress=False).save(tmp_path / "a")
    code = (
        "import sys; from fastrl.agents import PPO; PPO.load(sys.argv[1]).learn(300, progress=False).save(sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a", tmp_path / "b"], check=True)
    assert_same(straight, cls.load(tmp_path / "b"))


@pytest.mark.parametrize("cls", ON_POLICY)
def test_same_seed_same_training_other_seed_other_and_global_generators_untouched(cls):
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002

    def weights(seed, evaluate=False):
        agent = cls("CartPole-v1", seed=seed, hidden=(8,)).learn(100, progress=False)
        if evaluate:
            assert (agent.evaluate(2, seed=7) == agent.evaluate(2, seed=7)).all()
            agent.predict(np.zeros(4), deterministic=False)
        return agent.learn(agent.steps + 100, progress=False).policy.vector

    first = weights(0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert np.array_equal(first, weights(0, evaluate=True))
    assert not np.array_equal(first, weights(1))


@pytest.mark.parametrize("cls", ON_POLICY)
def test_predict(cls, target_env):
    agent = cls("CartPole-v1", hidden=(8,))
    obs = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    logits = agent.policy.output(obs)
    assert agent.predict(obs).dtype == np.int64 and (agent.predict(obs) == logits.argmax(1)).all()
    assert isinstance(agent.predict(obs[0]), int)
    assert 20 < agent.predict(obs, deterministic=False).sum() < 180  # nearly uniform at the start
    with pytest.raises(ValueError, match=r"obs must have shape \(4,\) or \(B, \*\(4,\)\), got \(3,\)"):
        agent.predict(np.zeros(3))
    agent = cls(target_env(), hidden=(8,), log_std=1.0)
    one, many = agent.predict(np.zeros((2, 2))), agent.predict(np.zeros((5, 2, 2)), deterministic=False)
    assert one.shape == (2, 2) and many.shape == (5, 2, 2) and one.dtype == many.dtype == np.float32
    assert np.abs(one).max() < 0.1 and many.max() == 0.5 and many[:, 1, 1].max() <= 0.25  # clipped to the Box


@pytest.mark.parametrize("cls", ON_POLICY)
def test_logs_and_checkpoints_of_a_run(cls, tmp_path):
    agent = cls("CartPole-v1", hidden=(8,), learning_rate_end=0.0)
    assert "loss" in agent.metrics()
    agent.learn(1500, folder=tmp_path, progress=False, save_every=400)
    cls.load(tmp_path).learn(agent.steps + 500, folder=tmp_path, progress=False)
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps)) and steps[0] >= 400 and steps[-1] == cls.load(tmp_path).steps >= 2000
    for row in rows:
        assert all(np.isfinite(float(value)) for value in row.values())
    assert float(rows[-1]["entropy"]) > 0 and float(rows[-1]["learning_rate"]) < float(rows[0]["learning_rate"])


def test_algorithms_and_descriptions():
    assert {name: cls.algorithm for name, cls in ALGORITHMS.items()} == {name: name for name in ALGORITHMS}
    others = {"cem", "fqi", "q_learning", "sarsa", "expected_sarsa"}
    values = {"dqn", "r2d2", "naf", "qt_opt", "ddpg", "d4pg", "td3", "sac", "sac_discrete", "tqc", "crossq"}
    on_policy = {"reinforce", "a2c", "a3c", "actor_critic", "ppo", "recurrent_ppo", "trpo", "q_prop"}
    assert set(ALGORITHMS) == others | values | on_policy
    assert PPO("CartPole-v1").describe() == "PPO on CartPole-v1"
    assert PPO("CartPole-v1", objective="penalty").describe() == "PPO (penalty) on CartPole-v1"
    assert (
        A2C("CartPole-v1", gae_lambda=None, shared_network=True).describe()
        == "A2C (n-step, shared network) on CartPole-v1"
    )
    assert REINFORCE("CartPole-v1", baseline=False).describe() == "REINFORCE (no baseline) on CartPole-v1"
    assert OneStepActorCritic("CartPole-v1").describe() == "OneStepActorCritic on CartPole-v1"


BAD = [
    {"gamma": 1.5},
    {"num_envs": 0},
    {"hidden": ()},
    {"hidden": (0,)},
    {"learning_rate": float("nan")},
    {"learning_rate": 0.0},
    {"learning_rate_steps": 0},
    {"activation": "gelu"},
    {"entropy_coef": -1.0},
    {"max_grad_norm": 0.0},
    {"log_std": 50.0},
    {"seed": -1},
    {"device": "tpu"},
    {"nonsense": 1},
]
OWN = [
    (PPO, {"objective": "kl"}),
    (PPO, {"n_steps": 1}),
    (PPO, {"epochs": 0}),
    (PPO, {"minibatches": 2.5}),
    (PPO, {"minibatches": 100_000}),
    (PPO, {"gae_lambda": 1.5}),
    (PPO, {"clip_range": 0.0}),
    (PPO, {"clip_value": -1.0}),
    (PPO, {"target_kl": 0.0}),
    (PPO, {"penalty_kl": 0.0}),
    (PPO, {"penalty_beta": float("inf")}),
    (A2C, {"n_steps": 0}),
    (A2C, {"gae_lambda": -0.1}),
    (A2C, {"optimizer": "sgd"}),
    (A2C, {"optimizer_eps": 0.0}),
    (REINFORCE, {"episodes": 0}),
    (REINFORCE, {"baseline": 1}),
]


@pytest.mark.parametrize(
    ("cls", "settings"),
    [(cls, settings) for cls in ON_POLICY for settings in BAD] + OWN,
    ids=lambda x: x.algorithm if isinstance(x, type) else next(iter(x)),
)
def test_bad_hyperparameters_are_named(cls, settings):
    with pytest.raises(InputError, match=next(iter(settings))) as error:
        cls("CartPole-v1", **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cls", ON_POLICY)
def test_unsuitable_environments(cls):
    texts = gym.wrappers.TransformObservation(gym.make("CartPole-v1"), str, gym.spaces.Text(9))
    with pytest.raises(InputError, match=rf"{cls.__name__} needs Box observations .*; CartPole-v1 has observation"):
        cls(texts)
    env = gym.wrappers.TransformAction(gym.make("CartPole-v1"), lambda a: a[0], gym.spaces.Box(0, 1, (1,), np.int32))
    with pytest.raises(InputError, match=rf"{cls.__name__} needs discrete actions .*or Box actions of floats; "):
        cls(env)
    with pytest.raises(InputError, match="cannot make environment 'NoSuchEnv-v0'"):
        cls("NoSuchEnv-v0")


class Broken(gym.Env):
    """From the 20th step on, the reward or the observation is not finite."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, what, value):
        self.what, self.value, self.t = what, value, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        obs, reward = np.zeros(3, np.float32), 1.0
        if self.t >= 20 and self.what == "reward":
            reward = self.value
        elif self.t >= 20:
            obs[1] = self.value
        return obs, reward, self.t % 5 == 0, False, {}


@pytest.mark.parametrize("cls", [*ON_POLICY, ALGORITHMS["dqn"]])
@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_an_error_that_says_so(cls, what, value):
    agent = cls(Broken(what, value), hidden=(4,))
    with pytest.raises(InputError, match=f"the {what} of Broken must be finite, got {value}"):
        agent.learn(300, progress=False)


@pytest.mark.parametrize("cls", ON_POLICY)
def test_divergence_is_an_input_error_and_keeps_the_last_checkpoint(cls, tmp_path):
    agent = cls("CartPole-v1", hidden=(8,)).learn(100, folder=tmp_path, progress=False)
    steps = agent.steps
    agent.policy.critic.parameters()["2.bias"][:] = np.nan  # the actor still acts
    with pytest.raises(InputError, match=r"^loss is not finite at step \d+, but nan: training diverged"):
        agent.learn(3000, folder=tmp_path, progress=False)
    assert cls.load(tmp_path).steps == steps


def test_infinite_gradients_are_noticed_before_they_act():
    def network():
        net = torch.nn.Linear(4, 3)
        net.weight.register_hook(lambda gradient: gradient * float("inf"))
        return net

    agent = A2C("CartPole-v1", network=network, num_envs=8, n_steps=5)
    with pytest.raises(InputError, match="loss is not finite at step 40, but nan: training diverged"):
        agent.learn(100, progress=False)


@pytest.mark.parametrize("cls", ON_POLICY)
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_environments_in_every_autoreset_mode(cls, mode, tmp_path):
    vec = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=mode)
    agent = cls(vec, hidden=(8,)).learn(600, progress=False)
    assert agent.config.num_envs == 3 and agent.envs.episodes > 5 and np.isfinite(agent.metrics()["loss"])
    agent.save(tmp_path / "a")
    with pytest.raises(InputError, match="give `env`"):
        cls.load(tmp_path / "a")


def test_other_algorithm_and_environment_are_refused(tmp_path):
    PPO("CartPole-v1", hidden=(8,)).save(tmp_path / "a")
    with pytest.raises(InputError, match="is of algorithm 'ppo', not 'a2c'"):
        A2C.load(tmp_path / "a")
    with pytest.raises(InputError, match="is of CartPole-v1, not Acrobot-v1"):
        PPO.load(tmp_path / "a", env="Acrobot-v1")


def test_image_observations():
    class Images(gym.Env):
        observation_space = gym.spaces.Box(0, 255, (4, 4, 1), np.uint8)
        action_space = gym.spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return self.observation_space.sample() * 0, {}

        def step(self, action):
            self.t += 1
            return self.np_random.integers(0, 256, (4, 4, 1), np.uint8), float(action), False, self.t == 7, {}

    for cls in ON_POLICY:
        agent = cls(Images(), hidden=(8,)).learn(60, progress=False)
        assert agent.rollout.obs.shape[1:] == (agent.config.num_envs, 4, 4, 1)
        with pytest.raises(InputError, match="give it `env`"):
            agent.evaluate(2)
        assert agent.evaluate(2, env=Images()).shape == (2,)


# ---- the user's own networks -------------------------------------------------------------------------------------


class Own(torch.nn.Module):
    """LayerNorm and GELU, which no MLP has; the observations come in their own shape."""

    def __init__(self, n_in, n_out):
        super().__init__()
        nn = torch.nn
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(n_in, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, n_out))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, obs):
        return self.net(obs)


def pair():
    return {"actor": Own(4, 2), "critic": Own(4, 1)}


NETWORKS = {
    "ppo": (PPO, "CartPole-v1", lambda: Own(4, 3), {**PPO_SMALL, "normalize_obs": True}),
    "ppo_pair": (PPO, "CartPole-v1", pair, PPO_SMALL),
    "ppo_box": (PPO, "Pendulum-v1", lambda: Own(3, 2), PPO_SMALL),
    "a2c": (A2C, "CartPole-v1", lambda: Own(4, 3), {**SMALL, "optimizer": "rmsprop"}),
    "reinforce": (REINFORCE, "CartPole-v1", lambda: Own(4, 2), {**SMALL, "baseline": False, "episodes": 2}),
    "trpo": (TRPO, "CartPole-v1", pair, {**SMALL, "n_steps": 16, "value_epochs": 2}),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_own_networks_train_and_resume(case, tmp_path):
    cls, env, make, settings = NETWORKS[case]
    torch.manual_seed(3)
    network = make()
    weight = (network["actor"] if isinstance(network, dict) else network).net[1].weight
    before = weight.clone()
    straight = cls(env, network=network, **settings)
    vector = straight.policy.vector.copy()
    straight.learn(900, progress=False)
    assert not np.array_equal(vector, straight.policy.vector)
    assert torch.equal(before, weight)  # a copy was trained
    broken = cls(env, network=network, **settings).learn(450, progress=False)
    broken.save(tmp_path / "a")
    with pytest.raises(InputError, match="give `network` again"):
        cls.load(tmp_path / "a")
    loaded = cls.load(tmp_path / "a", network=network)
    assert_same(broken, loaded)
    assert_same(straight, loaded.learn(900, progress=False))
    copied = copy.deepcopy(broken).learn(900, progress=False)
    assert_same(straight, copied)


@pytest.mark.parametrize("cls", [PPO, A2C])
def test_an_own_network_of_the_same_layers_trains_as_the_mlp(cls):
    """Autograd and the compiled backward pass; a change of rounding grows with the steps, so there are few."""
    settings = {"hidden": (8,), "num_envs": 2, "n_steps": 16, "learning_rate": 1e-3, "seed": 1}
    plain = cls("Pendulum-v1", **settings)
    networks = {name: copy.deepcopy(getattr(plain.policy, name).to_torch()) for name in ("actor", "critic")}
    own = cls("Pendulum-v1", network=networks, **settings)
    assert np.array_equal(plain.policy.vector, own.policy.vector)
    start = plain.policy.vector.copy()
    for agent in (plain, own):
        agent.learn(64, progress=False)
    assert np.abs(plain.policy.vector - start).max() > 3e-4
    np.testing.assert_allclose(own.policy.vector, plain.policy.vector, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("cls", "network", "message"),
    [
        (PPO, lambda: Own(4, 2), r"must map \[B, 4\] to \[B, 3\], got \[2, 2\]"),
        (PPO, lambda: Own(3, 3), r"must take \[B, 4\]"),
        (PPO, {"actor": Own(4, 2)}, "the dict must have actor and critic, got"),
        (PPO, 3, "must be a torch.nn.Module or a function that makes one, got int"),
        (TRPO, Own(4, 3), "TRPO needs a dict of actor and critic, got one network"),
    ],
    ids=["outputs", "inputs", "dict", "number", "trpo"],
)
def test_networks_that_do_not_fit_are_named(cls, network, message):
    with pytest.raises(InputError, match=f"^network: .*{message}") as error:
        cls("CartPole-v1", network=network)
    assert "\n" not in str(error.value)


# ---- deployment --------------------------------------------------------------------------------------------------


class Far(gym.Env):
    """Bytes in; actions far from [-2, 2] in one dimension."""

    observation_space = gym.spaces.Box(0, 255, (5,), np.uint8)
    action_space = gym.spaces.Box(np.float32([0, -1]), np.float32([100, 1]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.integers(0, 256, 5, np.uint8), {}

    def step(self, action):
        return self.np_random.integers(0, 256, 5, np.uint8), float(-abs(action[0] - 50)), False, True, {}


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", Far])
@pytest.mark.parametrize("settings", [{}, {"shared_network": True}, {"normalize_obs": True}], ids=str)
def test_policy_to_torch_acts_as_the_agent(env, settings):
    agent = PPO(env if isinstance(env, str) else env(), hidden=(8,), n_steps=16, seed=1, **settings)
    agent.learn(200, progress=False)
    module = agent.policy_to_torch()
    agent.envs.observation_space.seed(1)
    obs = np.stack([agent.envs.observation_space.sample() for _ in range(50)])
    if obs.dtype != np.uint8:
        obs = np.clip(obs, -3, 3)
    expected = agent.predict(obs)
    found = module(torch.from_numpy(obs)).numpy()
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    agent.policy.vector[:] = 7  # it shares nothing
    assert np.array_equal(module(torch.from_numpy(obs)).numpy(), found)

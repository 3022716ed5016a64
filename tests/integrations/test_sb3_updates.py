"""Every update of fastrl.integrations.sb3 is that of Stable-Baselines3, from the same state and random numbers."""

# ruff: noqa: NPY002 (the host draws from NumPy's global generator)
import copy

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import gymnasium as gym
import stable_baselines3 as host
import torch
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from fastrl.integrations import sb3 as ours

UPDATES = 50
CLOSE = {"rtol": 1e-4, "atol": 2e-6}  # after one update from the same state: sums in float32, whose terms may cancel


def envs(name, n=2, limit=13):
    return DummyVecEnv([lambda: gym.make(name, max_episode_steps=limit)] * n)


def pair(algorithm, env, **settings):
    """The host's and ours, equal, with the same transitions in their buffers."""
    settings = {"seed": 3, "device": "cpu", **settings}
    settings.setdefault("policy_kwargs", {"net_arch": [32, 16]})
    if issubclass(getattr(host, algorithm), (host.PPO, host.A2C)):
        return [getattr(m, algorithm)("MlpPolicy", env(), **settings) for m in (host, ours)]
    settings = {"batch_size": 32, "buffer_size": 150, "learning_starts": 10**6, **settings}
    models = []
    for module in (host, ours):
        model = getattr(module, algorithm)("MlpPolicy", env(), **settings)
        model.learn(200)  # beyond the buffer's size
        models.append(model)
    return models


def state(model):
    """Name -> tensor of all that is trained, with the state of the optimizers."""
    found = {}
    names, variables = model._get_torch_save_params()
    for name in names:
        tensors = model.get_parameters()[name]
        if "state" in tensors:
            for key, moments in tensors["state"].items():
                found |= {f"{name}.{key}.{kind}": torch.as_tensor(value) for kind, value in moments.items()}
        else:
            found |= {f"{name}.{key}": value for key, value in tensors.items()}
    return found | {name: getattr(model, name) for name in variables}


def assert_same(theirs, mine):
    """And make them equal to the bit, in place, so that rounding does not add up over updates."""
    theirs, mine = state(theirs), state(mine)
    assert set(theirs) == set(mine)
    for name, value in theirs.items():
        np.testing.assert_allclose(mine[name].detach(), value.detach(), **CLOSE, err_msg=name)
        mine[name].data.copy_(value.data)


def assert_same_logs(theirs, mine):
    theirs, mine = (m.logger.name_to_value for m in (theirs, mine))
    wanted = {name for name in theirs if name.startswith("train/")}
    assert wanted == {name for name in mine if name.startswith("train/")}
    for name in wanted:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)


def pendulum(**how):
    return lambda: envs("Pendulum-v1", **how)


def cartpole(**how):
    return lambda: envs("CartPole-v1", **how)


def normalized():
    return VecNormalize(envs("Pendulum-v1"), gamma=0.9)


SGD = {"net_arch": [32, 16], "optimizer_class": torch.optim.SGD}
SILU = {"net_arch": {"pi": [16], "qf": [8, 24]}, "activation_fn": torch.nn.SiLU, "n_critics": 3}
DECAY = {"net_arch": [24], "optimizer_kwargs": {"weight_decay": 1e-2, "betas": (0.8, 0.99)}}
OFF_POLICY = {
    "dqn": ("DQN", cartpole(), {"target_update_interval": 8, "tau": 0.7}),
    "dqn schedule": ("DQN", cartpole(n=1), {"learning_rate": lambda p: 1e-3 * p, "max_grad_norm": 0.1}),
    "dqn n-step": ("DQN", cartpole(), {"n_steps": 3, "policy_kwargs": DECAY}),
    "dqn linear": ("DQN", cartpole(), {"policy_kwargs": {"net_arch": []}}),
    "sac": ("SAC", pendulum(), {}),
    "sac fixed": ("SAC", pendulum(n=1), {"ent_coef": 0.2, "target_update_interval": 3, "gradient_steps": 5}),
    "sac normalized": ("SAC", normalized, {"learning_rate": lambda p: 1e-3 * p}),
    "sac silu": ("SAC", pendulum(), {"policy_kwargs": SILU, "ent_coef": "auto_0.3"}),
    "td3": ("TD3", pendulum(), {"tau": 0.05}),
    "td3 n-step": ("TD3", pendulum(), {"n_steps": 3, "policy_kwargs": SGD}),
    "ddpg": ("DDPG", pendulum(), {}),
}


@pytest.mark.parametrize("case", OFF_POLICY)
def test_off_policy_updates(case):
    algorithm, env, settings = OFF_POLICY[case]
    pair_ = pair(algorithm, env, **settings)
    n = pair_[0].gradient_steps
    for update in range(UPDATES // n):
        for model in pair_:
            model._current_progress_remaining = 1 - update / UPDATES
            np.random.seed(update)
            torch.manual_seed(update)
            model.train(n, batch_size=32)
            for _ in range(4):
                model._on_step()
        assert_same(*pair_)
        assert_same_logs(*pair_)
    assert pair_[1]._learner() is not None
    assert pair_[0]._n_updates == pair_[1]._n_updates > 0


ON_POLICY = {
    "ppo discrete": ("PPO", cartpole(), {"batch_size": 16, "n_epochs": 4, "ent_coef": 0.01}),
    "ppo box": ("PPO", pendulum(), {"batch_size": 16, "n_epochs": 2, "clip_range": lambda p: 0.2 * p}),
    "ppo clips": ("PPO", cartpole(), {"batch_size": 32, "n_epochs": 8, "clip_range_vf": 0.1, "clip_range": 0.02}),
    "ppo target_kl": ("PPO", pendulum(), {"batch_size": 16, "n_epochs": 20, "target_kl": 1e-3, "learning_rate": 3e-3}),
    "ppo plain": ("PPO", pendulum(), {"normalize_advantage": False, "batch_size": 32, "policy_kwargs": SGD}),
    "a2c": ("A2C", cartpole(), {"ent_coef": 0.01}),
    "a2c box": ("A2C", pendulum(), {"normalize_advantage": True, "ent_coef": 0.01}),
    "a2c adam": ("A2C", pendulum(), {"use_rms_prop": False, "max_grad_norm": float("inf")}),
}


@pytest.mark.parametrize("case", ON_POLICY)
def test_on_policy_rollouts_and_updates(case):
    """The rollouts, too: actions, values, log-probabilities and advantages, through episodes that end and are cut."""
    algorithm, env, settings = ON_POLICY[case]
    models = pair(algorithm, env, n_steps=16, **settings)
    callbacks = {model: model._setup_learn(1000)[1] for model in models}
    for update in range(10):
        for model in models:
            model._current_progress_remaining = 1 - update / 10
            np.random.seed(update)
            torch.manual_seed(update)
            model.collect_rollouts(model.env, callbacks[model], model.rollout_buffer, n_rollout_steps=16)
        theirs, mine = (m.rollout_buffer for m in models)
        for name in ("observations", "actions", "rewards", "values", "log_probs", "advantages", "returns"):
            np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), **CLOSE, err_msg=name)
        for model in models:
            np.random.seed(update)
            model.train()
        assert_same(*models)
        assert_same_logs(*models)
    assert models[1]._learner() is not None
    assert models[0]._n_updates == models[1]._n_updates


@pytest.mark.parametrize("clip", [0.0, -0.01])  # where a schedule ends
def test_a_clip_range_of_nothing(clip):
    model = ours.PPO("MlpPolicy", cartpole()(), n_steps=16, batch_size=16, clip_range=lambda _: clip, device="cpu")
    model.learn(64)
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())


@pytest.mark.parametrize("algorithm", ["A2C", "PPO"])
def test_a_negative_entropy_coefficient_is_the_hosts(algorithm):
    models = pair(
        algorithm, cartpole(), n_steps=16, ent_coef=-0.01, **({"batch_size": 16} if algorithm == "PPO" else {})
    )
    for model in models:
        np.random.seed(0)
        torch.manual_seed(0)
        model.learn(32)
    assert_same(*models)


def test_the_update_goes_on_where_the_hosts_own_left_off():
    """Torch's optimizer steps in between; a loaded state and other settings of the optimizer are taken over."""
    theirs, mine = pair("SAC", pendulum())
    for update in range(12):
        for model in (theirs, mine):
            np.random.seed(update)
            torch.manual_seed(update)
            if update % 3 == 2:
                host.SAC.train(model, 1, 32)
            else:
                model.train(1, 32)
            if update == 6:
                model.set_parameters(copy.deepcopy(theirs.get_parameters()))  # torch's would share tensors
                model.actor.optimizer.param_groups[0]["betas"] = (0.5, 0.9)
        assert_same(theirs, mine)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_replay_buffer_samples_what_the_hosts_does(n_steps, n_envs, full, normalize):
    env = VecNormalize(envs("Pendulum-v1", n_envs)) if normalize else None
    if env is not None:
        env.obs_rms.mean, env.ret_rms.var = np.array([0.5, 0.1, -1.0]), np.array(0.04)
    spaces = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (1,))
    kwargs = {"n_steps": n_steps, "gamma": 0.9}
    plain = ReplayBuffer(60, *spaces, n_envs=n_envs)
    theirs = plain if n_steps == 1 else NStepReplayBuffer(60, *spaces, n_envs=n_envs, **kwargs)
    mine = ours.ReplayBuffer(60, *spaces, n_envs=n_envs, **kwargs)
    rng = np.random.default_rng(0)
    for _ in range(47 if full else 11):
        obs, next_obs = rng.normal(size=(2, n_envs, 3))
        done, cut = rng.random((2, n_envs)) < 0.3
        infos = [{"TimeLimit.truncated": bool(c and d)} for c, d in zip(cut, done, strict=True)]
        for buffer in (theirs, mine):
            buffer.add(obs, next_obs, rng.normal(size=(n_envs, 1)) * 0, done * 1.5 - obs[:, 0], done, infos)
    for seed in range(5):
        samples = []
        for buffer in (theirs, mine):
            np.random.seed(seed)
            samples.append(buffer.sample(64, env=env))
        for name, wanted in samples[0]._asdict().items():
            got = getattr(samples[1], name)
            assert (got is None) == (wanted is None), name
            if wanted is not None:
                assert got.shape == wanted.shape and got.dtype == wanted.dtype, name
                np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6, err_msg=name)

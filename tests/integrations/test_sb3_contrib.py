"""fastrl.integrations.sb3_contrib is sb3-contrib: updates, whole runs, files, and what falls back."""

# ruff: noqa: NPY002 (the host draws from NumPy's global generator)
import operator
import warnings

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

import gymnasium as gym
import sb3_contrib as host
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from fastrl.integrations import _version
from fastrl.integrations import sb3_contrib as ours

OFF = {"learning_starts": 40, "batch_size": 16, "buffer_size": 300, "learning_rate": 1e-3, "seed": 3, "device": "cpu"}
ON = {"n_steps": 64, "batch_size": 32, "learning_rate": 1e-3, "seed": 3, "device": "cpu"}
# A normalisation takes the bias of a unit that no ReLU cuts away again: its gradient is rounding, which Adam divides by
# its own size unless eps is larger.
ADAM = {"betas": (0.5, 0.999), "eps": 1e-4}
CASES = {
    "QRDQN": (
        "CartPole-v1",
        {**OFF, "train_freq": 2, "exploration_fraction": 0.5, "target_update_interval": 20},
        {"net_arch": [24, 16], "n_quantiles": 10},
    ),
    "TQC": ("Pendulum-v1", OFF, {"net_arch": [24, 16], "n_quantiles": 7}),
    "TRPO": ("CartPole-v1", ON, {"net_arch": [24, 16]}),
    "CrossQ": ("Pendulum-v1", OFF, {"net_arch": [24, 16], "renorm_warmup_steps": 4, "optimizer_kwargs": ADAM}),
}


def make(module, algorithm, n=1, policy=None, **settings):
    name, own, small = CASES[algorithm]
    env = DummyVecEnv([lambda: gym.make(name, max_episode_steps=30)] * n)
    policy = {**small, **(policy or {})}
    return getattr(module, algorithm)("MlpPolicy", env, policy_kwargs=policy, **{**own, **settings})


def parameters(model):
    return {name: p.detach().clone() for name, p in model.policy.state_dict().items()}


def assert_close(mine, theirs, **tolerance):
    mine, theirs = parameters(mine), parameters(theirs)
    assert set(mine) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_allclose(mine[name], value, err_msg=name, **tolerance)


def assert_states_close(mine, theirs):
    """Of every optimizer, with its numbers of steps."""
    names = [name for name in theirs._get_torch_save_params()[0] if "optimizer" in name]
    assert names
    for name in names:
        states = [operator.attrgetter(name)(model).state_dict()["state"] for model in (mine, theirs)]
        assert set(states[0]) == set(states[1])
        for k, state in states[1].items():
            assert set(states[0][k]) == set(state)
            for key, value in state.items():
                scale = float(value.abs().max())
                np.testing.assert_allclose(
                    states[0][k][key], value, rtol=1e-3, atol=1e-4 * scale, err_msg=f"{name} {k} {key}"
                )


@pytest.fixture(autouse=True)
def no_fallback():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not compiled.*")
        yield


UPDATES = {
    "qrdqn": ("QRDQN", {}),
    "qrdqn of two environments": ("QRDQN", {"n": 2, "tau": 0.7}),
    "qrdqn n-step, clipped": ("QRDQN", {"n_steps": 3, "max_grad_norm": 0.1}),
    "qrdqn tanh": ("QRDQN", {"policy": {"activation_fn": torch.nn.Tanh}}),
    "tqc": ("TQC", {}),
    "tqc n-step, fixed": ("TQC", {"n": 2, "n_steps": 3, "ent_coef": 0.2}),
    "tqc of three": ("TQC", {"policy": {"n_critics": 3}, "top_quantiles_to_drop_per_net": 0, "tau": 0.1}),
    "crossq": ("CrossQ", {"policy_delay": 2}),
    "crossq before renormalisation": ("CrossQ", {"policy": {"renorm_warmup_steps": 100}, "policy_delay": 1}),
    "crossq n-step, fixed": ("CrossQ", {"n": 2, "n_steps": 3, "ent_coef": 0.2, "policy_delay": 1}),
    "crossq of three, one hidden layer": ("CrossQ", {"policy": {"n_critics": 3, "net_arch": [40]}}),
    "crossq, its statistics": ("CrossQ", {"policy": {"batch_norm_momentum": 0.3, "batch_norm_eps": 0.1}}),
}


@pytest.mark.parametrize("case", UPDATES)
def test_updates_are_the_hosts(case):
    algorithm, settings = UPDATES[case]
    models = [make(module, algorithm, **{**settings, "learning_starts": 10**6}).learn(200) for module in (host, ours)]
    theirs, mine = models
    for update in range(6):
        for model in models:
            np.random.seed(update)
            torch.manual_seed(update)
            model.train(1, batch_size=32)
            for _ in range(12):
                model._on_step()
        assert_close(mine, theirs, rtol=1e-4, atol=2e-6)
        assert_states_close(mine, theirs)
        for p, q in zip(mine.policy.parameters(), theirs.policy.parameters(), strict=True):
            p.data.copy_(q.data)  # so that rounding does not add up
        logs, wanted = (m.logger.name_to_value for m in (mine, theirs))
        assert {name for name in logs if "train/" in name} == {name for name in wanted if "train/" in name}
        for name in wanted:
            if "train/" in name:
                assert logs[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-5), name
    assert mine._learner() is not None


@pytest.mark.parametrize("algorithm", CASES)
def test_a_whole_run_is_the_hosts_and_files_are_read_by_both(algorithm, tmp_path):
    theirs, mine = (make(module, algorithm).learn(150) for module in (host, ours))
    assert isinstance(mine, getattr(host, algorithm)) and mine._n_updates == theirs._n_updates > 0
    assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    obs = np.random.default_rng(0).normal(size=(20, *mine.observation_space.shape)).astype(np.float32)
    mine.save(tmp_path / "mine")
    again = getattr(host, algorithm).load(tmp_path / "mine")
    actions = [model.predict(obs, deterministic=True)[0] for model in (mine, again)]
    np.testing.assert_allclose(*actions, rtol=1e-5, atol=1e-6)
    theirs.save(tmp_path / "theirs")
    assert_close(getattr(ours, algorithm).load(tmp_path / "theirs"), theirs, rtol=0, atol=0)


@pytest.mark.parametrize("algorithm", CASES)
def test_what_is_not_compiled_is_the_hosts_and_said_once(algorithm):
    policy = {"activation_fn": torch.nn.ELU}
    with pytest.warns(UserWarning, match=rf"sb3_contrib\.{algorithm} is not compiled.*ELU") as said:
        mine = make(ours, algorithm, policy=policy).learn(100)
    assert len([w for w in said if "is not compiled" in str(w.message)]) == 1
    assert_close(mine, make(host, algorithm, policy=policy).learn(100), rtol=0, atol=0)


@pytest.mark.parametrize("algorithm", CASES)
def test_another_version_is_the_hosts_own_code(algorithm, monkeypatch):
    monkeypatch.setattr(_version, "version", {"stable-baselines3": "2.9.2", "sb3-contrib": "2.11.0"}.get)
    with pytest.warns(UserWarning, match=r"sb3-contrib is 2\.11\.0, and 2\.9 is what was tested"):
        make(ours, algorithm).learn(60)


class TwoActions(gym.Env):
    """Rewards for being near a direction that the observation has."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-2, 2, (2,))

    def _observe(self):
        self.obs = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        reward = -float(((action - self.obs[:2]) ** 2).sum())
        return self._observe(), reward, False, bool(self.np_random.random() < 0.1), {}


TRPOS = {
    "discrete": {},
    "two environments, tanh": {"n": 2, "policy": {"activation_fn": torch.nn.Tanh}, "target_kl": 0.002},
    "part of the rollout": {"sub_sampling_factor": 3, "normalize_advantage": False},
    "no step": {"line_search_max_iter": 0},
}


@pytest.mark.parametrize("box", [False, True], ids=["discrete", "box"])
@pytest.mark.parametrize("case", TRPOS)
def test_trpo_updates_are_the_hosts(case, box):
    settings = {**ON, **TRPOS[case]}
    n, policy = settings.pop("n", 1), {"net_arch": [24, 16], **settings.pop("policy", {})}
    env = TwoActions if box else lambda: gym.make("CartPole-v1", max_episode_steps=30)
    models = [
        module.TRPO("MlpPolicy", DummyVecEnv([env] * n), policy_kwargs=policy, **settings) for module in (host, ours)
    ]
    theirs, mine = models
    start = parameters(mine)
    for update in range(1, 4):
        for model in models:
            model.set_random_seed(update)
            model.learn(64 * n, reset_num_timesteps=update == 1)
        assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
        for p, q in zip(mine.policy.parameters(), theirs.policy.parameters(), strict=True):
            p.data.copy_(q.data)  # so that rounding does not add up
        logs, wanted = (m.logger.name_to_value for m in (mine, theirs))
        assert {name for name in logs if "train/" in name} == {name for name in wanted if "train/" in name}
        for name in wanted:
            if "train/" in name:
                assert logs[name] == pytest.approx(wanted[name], rel=2e-3, abs=1e-5), name
        assert logs["train/is_line_search_success"] == (case != "no step")
    moved = {name for name, p in parameters(mine).items() if not torch.equal(p, start[name])}
    pi = {name for name in start if "value" not in name}
    assert moved == (set(start) - pi if case == "no step" else set(start))
    assert mine._learner() is not None


def test_trpo_with_weight_decay_is_the_hosts():
    policy = {"optimizer_kwargs": {"weight_decay": 0.1}}
    with pytest.warns(UserWarning, match=r"sb3_contrib\.TRPO is not compiled.*weight_decay"):
        mine = make(ours, "TRPO", policy=policy).learn(64)
    assert_close(mine, make(host, "TRPO", policy=policy).learn(64), rtol=0, atol=0)


def test_trpo_goes_on_from_the_hosts_file(tmp_path):
    make(host, "TRPO").learn(64).save(tmp_path / "theirs")
    models = [module.TRPO.load(tmp_path / "theirs", env=make(module, "TRPO").env) for module in (host, ours)]
    for model in models:
        model.set_random_seed(7)
        model.learn(64, reset_num_timesteps=False)
    theirs, mine = models
    assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    mine.save(tmp_path / "mine")
    again = host.TRPO.load(tmp_path / "mine", env=make(host, "TRPO").env).learn(64, reset_num_timesteps=False)
    assert again._n_updates == 3


@pytest.mark.parametrize("policy", [{"batch_norm": False}, {"activation_fn": torch.nn.Tanh}, {"net_arch": []}])
def test_crossq_of_other_networks_is_the_hosts(policy):
    with pytest.warns(UserWarning, match=r"sb3_contrib\.CrossQ is not compiled.*where it is BatchRenorm1d"):
        mine = make(ours, "CrossQ", policy=policy).learn(60)
    assert_close(mine, make(host, "CrossQ", policy=policy).learn(60), rtol=0, atol=0)


def test_crossqs_statistics_are_the_hosts_buffers():
    model = make(ours, "CrossQ").learn(80)
    norms = [m for m in model.policy.modules() if hasattr(m, "ra_mean")]
    assert len(norms) == 9 and {int(norm.steps) for norm in norms} == {40, 40 // 3}
    obs = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    first = model.predict(obs, deterministic=True)[0]
    norm = model.actor.latent_pi[0]
    for change in (
        lambda: norm.ra_mean.fill_(0.7),
        lambda: setattr(norm, "ra_mean", torch.full((3,), -2.0)),
        lambda: setattr(norm.ra_var, "data", torch.full((3,), 9.0)),
    ):
        change()
        mine = model.predict(obs, deterministic=True)[0]
        np.testing.assert_allclose(mine, host.CrossQ.predict(model, obs, deterministic=True)[0], rtol=1e-5, atol=1e-6)
        assert abs(mine - first).max() > 1e-3 and model._learner() is not None
        first = mine
    model.learn(20, reset_num_timesteps=False)
    assert int(norm.steps) == 60 // 3 and model.actor.latent_pi[0].ra_var.max() < 9


@pytest.mark.parametrize("call", ["predict", "train"])
def test_crossqs_modules_are_left_as_the_hosts(call, tmp_path):
    """Calls of them do not move the statistics."""
    make(ours, "CrossQ").learn(80).save(tmp_path / "model")
    obs = np.random.default_rng(0).normal(size=(1, 3)).astype(np.float32)
    found = []
    for library in (ours, host):
        model = library.CrossQ.load(tmp_path / "model", env=make(library, "CrossQ").get_env())
        if call == "predict":
            model.predict(obs, deterministic=True)
        else:
            model.learn(50, reset_num_timesteps=False)
        before = {name: x.clone() for name, x in model.policy.state_dict().items()}
        with torch.no_grad():
            found.append(model.critic(torch.as_tensor(obs), torch.zeros(1, 1))[0].numpy())
        assert all(torch.equal(x, before[name]) for name, x in model.policy.state_dict().items())
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)


def test_crossq_of_constant_units_stays_finite():
    """The host's gradient is NaN there where no ReLU hides it."""
    model = make(ours, "CrossQ", policy={"renorm_warmup_steps": 0}).learn(60)
    for network in model.critic.q_networks:
        with torch.no_grad():
            network[1].weight.zero_()
            network[1].bias.fill_(1.0)
    model.train(5, 32)
    assert model._learner() is not None
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())

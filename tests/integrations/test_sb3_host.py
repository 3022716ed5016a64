"""fastrl.integrations.sb3 is Stable-Baselines3: whole runs, files, callbacks, copies, and what falls back."""

# ruff: noqa: NPY002 (the host draws from NumPy's global generator)
import copy
import json
import warnings
import zipfile

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import gymnasium as gym
import stable_baselines3 as host
import torch
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from fastrl.integrations import _version
from fastrl.integrations import sb3 as ours

SMALL = {"net_arch": [16, 16]}
OFF = {"learning_starts": 40, "batch_size": 16, "buffer_size": 300}
CASES = {
    "DQN": ("CartPole-v1", {**OFF, "train_freq": 2, "exploration_fraction": 0.5, "target_update_interval": 20}),
    "SAC": ("Pendulum-v1", OFF),
    "TD3": ("Pendulum-v1", OFF),
    "DDPG": ("Pendulum-v1", OFF),
    "PPO": ("CartPole-v1", {"n_steps": 32, "batch_size": 16, "n_epochs": 2}),
    "A2C": ("Pendulum-v1", {}),
}


def lake():
    return gym.make("FrozenLake-v1", max_episode_steps=30)


def make(algorithm, module=ours, env=None, **settings):
    name, own = CASES[algorithm]
    settings = {"seed": 1, "device": "cpu", "policy_kwargs": copy.deepcopy(SMALL), **own, **settings}
    env = gym.make(name, max_episode_steps=30) if env is None else env
    return getattr(module, algorithm)("MlpPolicy", env, **settings)


@pytest.fixture(autouse=True)
def no_fallback():
    """Every warning of a fallback that a test does not expect is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not compiled.*")
        yield


def parameters(model):
    return {name: p.detach().clone() for name, p in model.policy.state_dict().items()}


def assert_close(mine, theirs, **tolerance):
    assert set(mine) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_allclose(mine[name], value, err_msg=name, **tolerance)


@pytest.mark.parametrize("algorithm", CASES)
def test_a_whole_run_is_the_hosts(algorithm):
    """The same seed gives the same actions and, but for rounding, the same parameters."""
    models = [make(algorithm, module).learn(150) for module in (host, ours)]
    theirs, mine = models
    assert isinstance(mine, getattr(host, algorithm))
    assert_close(parameters(mine), parameters(theirs), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mine._last_obs, theirs._last_obs, rtol=1e-3, atol=1e-3)
    assert mine._n_updates == theirs._n_updates > 0
    assert set(mine.logger.name_to_value) == set(theirs.logger.name_to_value)
    for p in mine.policy.parameters():  # views of flat vectors: the module is true
        assert p.grad is None or p.grad.shape == p.shape


@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
def test_discrete_observations(algorithm):
    models = [make(algorithm, module, lake()).learn(150) for module in (host, ours)]
    assert_close(parameters(models[1]), parameters(models[0]), rtol=1e-3, atol=1e-4)
    for obs in (np.arange(16), np.array(3), np.int64(3)):
        theirs, mine = (m.predict(obs, deterministic=True)[0] for m in models)
        assert mine.shape == theirs.shape
        np.testing.assert_array_equal(mine, theirs)
    assert models[1]._learner() is not None


@pytest.mark.parametrize("algorithm", CASES)
def test_predict_is_the_hosts(algorithm):
    model = make(algorithm)
    space = model.observation_space
    batch = np.stack([space.sample() for _ in range(5)])
    for deterministic in (True, False):
        for obs in (batch, batch[0], batch.astype(np.float64), batch[::2], batch[:1]):
            found = []
            for predict in (getattr(host, algorithm).predict, type(model).predict):
                np.random.seed(0)
                torch.manual_seed(0)
                model.action_space.seed(0)
                model.exploration_rate = 0.5
                found.append(predict(model, obs, state=("kept",), deterministic=deterministic))
            (theirs, _), (mine, kept) = found
            assert kept == ("kept",)
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype and type(mine) is type(theirs)
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    for wrong in (batch[:, :2], (batch[0], {}), batch[None]):
        errors = []
        for predict in (getattr(host, algorithm).predict, type(model).predict):
            with pytest.raises(Exception) as error:
                predict(model, wrong, deterministic=True)
            errors.append((type(error.value), str(error.value)))
        assert errors[0] == errors[1]


@pytest.mark.parametrize("algorithm", CASES)
def test_files_are_the_hosts_both_ways(algorithm, tmp_path):
    """A run that is saved and goes on in the other library is the run that went on."""
    first = make(algorithm).learn(80)
    first.save(tmp_path / "ours.zip")
    with zipfile.ZipFile(tmp_path / "ours.zip") as file:
        assert "fastrl" not in file.read("data").decode()
        assert json.loads(file.read("data"))["seed"] == 1
    theirs = getattr(host, algorithm).load(tmp_path / "ours.zip", device="cpu")
    assert_close(parameters(theirs), parameters(first), rtol=0, atol=0)
    theirs.save(tmp_path / "theirs.zip")
    back = getattr(ours, algorithm).load(tmp_path / "theirs.zip", device="cpu")
    assert_close(parameters(back), parameters(first), rtol=0, atol=0)
    models = [theirs, back, getattr(ours, algorithm).load(tmp_path / "ours.zip", device="cpu")]
    name, _ = CASES[algorithm]
    for model in models:
        model.set_env(gym.make(name, max_episode_steps=30))
        model.env.seed(5)
        model.set_random_seed(5)
        model.learn(60, reset_num_timesteps=False)
        assert model.num_timesteps >= 140
    for model in models[1:]:
        assert model._learner() is not None
        assert_close(parameters(model), parameters(theirs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("algorithm", CASES)
def test_copies_and_changes_are_seen(algorithm):
    model = make(algorithm).learn(80)
    obs = model.observation_space.sample()
    twin = copy.deepcopy(model.policy)
    other = make(algorithm, seed=2)
    before, _ = model.predict(obs, deterministic=True)
    model.set_parameters(copy.deepcopy(other.get_parameters()))
    assert_close(parameters(model), parameters(other), rtol=0, atol=0)
    wanted, _ = other.predict(obs, deterministic=True)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], wanted)
    model.policy.load_state_dict(twin.state_dict())
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], before)
    with torch.no_grad():  # other memory, as load_from_vector and vector_to_parameters give it
        for p in model.policy.parameters():
            p.data = p.data * 0.5
    halved, _ = model.policy.predict(obs, deterministic=True)
    np.testing.assert_allclose(model.predict(obs, deterministic=True)[0], halved, rtol=1e-5, atol=1e-6)
    model.learn(40, reset_num_timesteps=False)
    theirs, _ = model.policy.predict(obs, deterministic=True)
    np.testing.assert_allclose(model.predict(obs, deterministic=True)[0], theirs, rtol=1e-5, atol=1e-6)
    other = copy.deepcopy(model)
    model.policy = twin
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], before)
    np.testing.assert_allclose(other.predict(obs, deterministic=True)[0], theirs, rtol=1e-5, atol=1e-6)
    other.learn(40, reset_num_timesteps=False)
    assert other._learner() is not None and other._learner().policy is other.policy


def test_callbacks_and_normalisation(tmp_path):
    class Look(BaseCallback):
        def _on_step(self):
            values = self.model.policy.predict_values(torch.as_tensor(self.model._last_obs))
            assert values.requires_grad  # a call outside no_grad is the host's
            return self.num_timesteps < 120

    def env():
        made = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=30)] * 2))
        made.seed(7)
        return made

    runs = []
    for module in (host, ours):
        callbacks = [
            EvalCallback(env(), eval_freq=20, n_eval_episodes=1, verbose=0, log_path=tmp_path / module.__name__),
            CheckpointCallback(30, tmp_path, name_prefix=module.__name__),
            Look(),
        ]
        model = make("PPO", module, env=env(), batch_size=64, n_steps=16).learn(200, callback=callbacks)
        assert model.num_timesteps == 120
        runs.append((model, np.load(tmp_path / module.__name__ / "evaluations.npz")["results"]))
    (theirs, results), (mine, ours_results) = runs
    np.testing.assert_allclose(ours_results, results, rtol=1e-3)
    assert_close(parameters(mine), parameters(theirs), rtol=1e-3, atol=1e-4)
    assert list(tmp_path.glob("fastrl*.zip"))
    found = [evaluate_policy(m, env(), n_eval_episodes=2)[0] for m in (theirs, mine)]
    np.testing.assert_allclose(*found, rtol=1e-2)


class Extractor(FlattenExtractor):
    pass


def pairs():
    space = gym.spaces.MultiDiscrete([16, 16])
    return gym.wrappers.TransformObservation(gym.make("FrozenLake-v1"), lambda obs: np.array([obs, obs]), space)


NOT_COMPILED = {
    "activation": ("SAC", {"policy_kwargs": {"activation_fn": torch.nn.ELU}}, "activation is ELU"),
    "extractor": ("DQN", {"policy_kwargs": {"features_extractor_class": Extractor}}, "extractor is Extractor"),
    "sde": ("SAC", {"use_sde": True}, "use_sde"),
    "ppo sde": ("A2C", {"use_sde": True}, "use_sde"),
    "space": ("PPO", {"env": pairs}, "observation space is MultiDiscrete"),
    "unshared": ("PPO", {"policy_kwargs": {"share_features_extractor": False}}, "share_features_extractor"),
}


@pytest.mark.parametrize("case", NOT_COMPILED)
def test_what_is_not_compiled_runs_as_the_hosts_own_and_says_so_once(case):
    algorithm, settings, reason = NOT_COMPILED[case]
    settings = {**settings, "env": settings["env"]() if "env" in settings else None}
    models = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for module in (host, ours):
            models.append(make(algorithm, module, **copy.deepcopy(settings)).learn(70))
            models[-1].predict(models[-1].observation_space.sample())
    said = [str(w.message) for w in said if "fastrl" in str(w.message)]
    assert len(said) == 1 and f"sb3.{algorithm} is not compiled" in said[0] and reason in said[0]
    assert_close(parameters(models[1]), parameters(models[0]), rtol=0, atol=0)


def test_frozen_layers_hooks_and_other_classes_are_the_hosts():
    def freeze(policy):
        policy.actor.latent_pi[0].weight.requires_grad_(False)

    def hook(policy):
        policy.critic.register_forward_hook(lambda *_: None)

    def exchange(policy):
        policy.actor.latent_pi[1] = torch.nn.ELU()

    for change, reason in ((freeze, "does not require"), (hook, "hooks"), (exchange, "ELU")):
        model = make("SAC").learn(60)
        change(model.policy)
        before = parameters(model)["actor.latent_pi.0.weight"]
        with pytest.warns(UserWarning, match=reason):
            model.learn(10, reset_num_timesteps=False)
        changed = not torch.equal(parameters(model)["actor.latent_pi.0.weight"], before)
        assert changed == (change is not freeze)


def test_another_version_of_the_host_is_not_compiled(monkeypatch):
    monkeypatch.setattr(_version, "version", lambda package: "3.0.0")
    with pytest.warns(UserWarning, match="stable-baselines3 is 3.0.0, and 2.9 is what was tested"):
        make("TD3").learn(50)


@pytest.mark.parametrize("algorithm", ["DQN", "SAC", "TD3", "DDPG"])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_prioritized_replay(algorithm, n_steps):
    """What is drawn again and again has priorities of its own, weights below 1, and the run learns from them."""
    kwargs = {"n_steps": n_steps, "beta_steps": 100, "alpha": 0.7}
    model = make(algorithm, replay_buffer_class=ours.PrioritizedReplayBuffer, replay_buffer_kwargs=kwargs)
    model.learn(120)
    buffer = model.replay_buffer
    priorities = buffer.tree[np.arange(buffer.size())]
    assert len(buffer.tree) == buffer.size() == 120 and len(set(priorities.tolist())) > 20
    assert buffer.beta == 1
    samples = buffer.sample(50)
    found = buffer.tree[samples.indices] ** -1.0
    np.testing.assert_allclose(samples.weights, found / found.max(), rtol=1e-5)
    plain = make(algorithm).learn(120)
    assert not torch.equal(next(model.policy.parameters()), next(plain.policy.parameters()))


def test_prioritized_replay_without_importance_is_uniform_replay_of_the_same_rows():
    """With alpha = 0 weights are 1, and an update is that of the host from the same rows."""
    kwargs = {"alpha": 0.0, "seed": 5}
    models = [make("SAC", replay_buffer_class=ours.PrioritizedReplayBuffer, replay_buffer_kwargs=kwargs) for _ in "ab"]
    for model, train in zip(models, (host.SAC.train, ours.SAC.train), strict=True):
        model.learning_starts = 1000
        model.learn(100)
        torch.manual_seed(0)
        train(model, 1, 16)
    assert_close(parameters(models[1]), parameters(models[0]), rtol=1e-4, atol=2e-6)


def test_prioritized_replay_tells_who_ignores_it(tmp_path):
    model = make("SAC", host, replay_buffer_class=ours.PrioritizedReplayBuffer)
    with pytest.warns(UserWarning, match="nobody calls update_priorities"):
        model.learn(50)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make("SAC")
    other.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_array_equal(other.replay_buffer.tree[np.arange(50)], model.replay_buffer.tree[np.arange(50)])
    spaces = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (1,))
    for wrong in ({"alpha": -1}, {"beta": np.nan}, {"eps": 0}, {"beta_steps": 0}, {"n_steps": 0}, {"gamma": 1.5}):
        with pytest.raises(ValueError, match=f"PrioritizedReplayBuffer: {next(iter(wrong))} must be"):
            ours.PrioritizedReplayBuffer(10, *spaces, **wrong)


@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
def test_rollout_buffer(algorithm):
    models = [
        make(algorithm, module, rollout_buffer_class=buffer).learn(100)
        for module, buffer in ((host, None), (host, ours.RolloutBuffer), (ours, ours.RolloutBuffer))
    ]
    for model in models[1:]:
        assert_close(parameters(model), parameters(models[0]), rtol=1e-3, atol=1e-4)
        for name in ("advantages", "returns"):
            found, wanted = (getattr(m.rollout_buffer, name) for m in (model, models[0]))
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)

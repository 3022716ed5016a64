"""Settings mean what a user thinks: schedules, actions' and observations' units, dtypes, threads, help and errors."""

import dataclasses
import inspect
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from algorithms import DEEP

import fastrl
from fastrl import _backend
from fastrl.agents import (
    A2C,
    ALGORITHMS,
    DQN,
    PPO,
    REINFORCE,
    SAC,
    TD3,
    TRPO,
    DQNConfig,
    InputError,
    SACConfig,
    networks,
)
from fastrl.agents.off_policy import OffPolicyAgent
from fastrl.agents.policies import box_units
from fastrl.cli.eval import evaluate

ALL = pytest.mark.parametrize("cls", DEEP.values(), ids=DEEP)
OFF_POLICY = [name for name, cls in ALGORITHMS.items() if issubclass(cls, OffPolicyAgent)]
# The others 100_000.
LENGTHS = {"dqn": 50_000, "r2d2": 50_000, "reinforce": 200_000, "a2c": 500_000, "actor_critic": 500_000}
SWITCH = {name: {"prioritized": True} for name in OFF_POLICY if name != "r2d2"}  # whose replay always is


OWN = {
    "reinforce": {"episodes": 1},
    "cem": {"population": 2, "elites": 1},
    "ppo": {"n_steps": 8, "epochs": 2},
    "recurrent_ppo": {"n_steps": 8, "epochs": 2},
    "trpo": {"n_steps": 8, "value_epochs": 2},
    "q_prop": {"n_steps": 8, "value_epochs": 2, "batch_size": 8},
}
OWN |= {name: {"learning_starts": 10, "batch_size": 8} for name in OFF_POLICY}
OWN["r2d2"] |= {"num_envs": 1, "length": 8, "train_every": 2}


def make(cls, env=None, **settings):
    own = OWN.get(cls.algorithm, {})
    return cls(env or ("CartPole-v1" if cls.discrete else "Pendulum-v1"), hidden=(8,), **{**own, **settings})


# ---- schedules ---------------------------------------------------------------------------------------------------


@ALL
def test_schedules_span_the_run(cls):
    agent = make(cls, learning_rate=1e-2, learning_rate_end=2e-3)
    assert agent.learning_rate == 1e-2
    agent.learn(400, progress=False)
    assert agent.total_steps == agent.schedule_steps == 400
    agent.steps = 100
    assert agent.learning_rate == pytest.approx(8e-3)
    agent.steps = 400
    assert agent.learning_rate == pytest.approx(2e-3)
    agent.learn(800, progress=False)  # a larger total stretches it
    agent.steps = 400
    assert agent.learning_rate == pytest.approx(6e-3)
    number = make(cls, learning_rate=1e-2, learning_rate_end=2e-3, learning_rate_steps=200)
    number.learn(400, progress=False)
    number.steps = 100
    assert number.learning_rate == pytest.approx(6e-3)


@pytest.mark.parametrize("cls", [DQN, SAC])
def test_beta_spans_the_run(cls, tmp_path):
    agent = make(cls, prioritized=True, per_beta=0.4, per_beta_end=1.0).learn(200, schedule_steps=400, progress=False)
    assert agent.buffer.beta == pytest.approx(0.7)
    agent.save(tmp_path / "a")
    assert cls.load(tmp_path / "a").buffer.beta == pytest.approx(0.7)
    assert agent.learn(400, progress=False).buffer.beta == pytest.approx(1.0)
    agent = make(cls, prioritized=True, per_beta=0.4, per_beta_end=1.0, per_beta_steps=100).learn(50, progress=False)
    assert agent.buffer.beta == pytest.approx(0.7)


@ALL
def test_the_default_length_has_the_schedule_of_before(cls):
    """When every default was a number: a run of the default length is the same with it."""
    length = LENGTHS.get(cls.algorithm, 100_000)
    of_now = SWITCH.get(cls.algorithm, {})
    settings = {"per_beta_steps": length, **of_now} if cls.algorithm in OFF_POLICY else {}
    runs = [make(cls, learning_rate_steps=length, **settings), make(cls, **of_now)]
    for agent in runs:
        agent.learn(60, schedule_steps=length, progress=False)
    (_, a), (_, b) = (agent._state() for agent in runs)
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@ALL
def test_parts_make_a_whole(cls, tmp_path):
    settings = SWITCH.get(cls.algorithm, {})
    straight = make(cls, **settings).learn(300, progress=False)
    parts = make(cls, **settings).learn(100, schedule_steps=300, progress=False)
    parts.save(tmp_path / "a")
    for agent in (parts, cls.load(tmp_path / "a")):
        assert agent.schedule_steps == 300
        (_, a), (_, b) = straight._state(), agent.learn(300, progress=False)._state()
        assert all(np.array_equal(a[name], b[name]) for name in a) and straight.metrics() == agent.metrics()


def test_a_schedule_that_is_shorter_than_the_run_is_refused():
    agent = make(PPO)
    with pytest.raises(InputError, match="^schedule_steps must be >= total_steps, got 50 and 100$"):
        agent.learn(100, schedule_steps=50, progress=False)
    with pytest.raises(InputError, match="^schedule_steps must be an int, got 'all'$"):
        agent.learn(100, schedule_steps="all", progress=False)
    assert (agent.steps, agent.total_steps, agent.schedule_steps) == (0, 0, 0)


@ALL
def test_a_learning_rate_that_is_0_before_the_end_is_said(cls):
    agent = make(cls, learning_rate_end=0.0, learning_rate_steps=100)
    with pytest.warns(UserWarning, match=r"^the learning rate is 0 from step 100 \(learning_rate_steps\) of 300 on"):
        agent.learn(300, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(cls, learning_rate_end=0.0, learning_rate_steps=300).learn(300, progress=False)
        make(cls, learning_rate_end=0.0).learn(300, progress=False)


@pytest.mark.parametrize("cls", [DQN, TD3])
def test_a_run_that_ends_before_learning_starts_is_said(cls):
    with pytest.warns(UserWarning, match="^learning_starts is 100, so nothing is learned in 50 steps"):
        assert make(cls, learning_starts=100).learn(50, progress=False).n_updates == 0


# ---- actions -----------------------------------------------------------------------------------------------------


class Valve(gym.Env):
    """One step an episode; the best action is 0.3 of the way from the middle of the Box to its upper bound."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, low, high):
        self.action_space = gym.spaces.Box(np.float32(low), np.float32(high), (1,), np.float32)
        self.best, self.half = (high + low) / 2 + 0.15 * (high - low), (high - low) / 2

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return np.zeros(1, np.float32), -abs(float(action[0]) - self.best) / self.half, True, False, {}


@pytest.mark.parametrize(("low", "high"), [(100.0, 200.0), (-0.01, 0.01), (-1000.0, 1000.0), (-30.0, -20.0)])
@pytest.mark.parametrize(("cls", "settings"), [(PPO, {"n_steps": 64}), (A2C, {}), (TRPO, {}), (REINFORCE, {})])
def test_boxes_in_any_units_are_learned(cls, settings, low, high):
    agent = cls(Valve(low, high), seed=0, **settings)
    before = agent.evaluate(1, env=Valve(low, high))[0]
    after = agent.learn(4000, progress=False).evaluate(1, env=Valve(low, high))[0]
    assert before == pytest.approx(-0.3, abs=0.05) and after > -0.15


def test_which_boxes_are_scaled():
    def units(low, high, dtype=np.float32):
        return box_units(gym.spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype))

    for low, high in (([-1.0], [1.0]), ([-2.0], [2.0]), ([-0.4], [0.4]), ([0.0], [1.0]), ([-3.0, 0.0], [3.0, 1.0])):
        assert units(low, high) is None  # as they are, bit for bit
    middle, half = units([100.0, -1.0], [200.0, 1.0])
    assert middle.tolist() == [150.0, 0.0] and half.tolist() == [50.0, 1.0]
    assert units([-np.inf, -3e38], [np.inf, 3e38]) is None  # no bounds
    with pytest.warns(UserWarning, match=r"^most actions of the first policy.*outside Box.*TransformAction"):
        assert units([100.0], [np.inf]) is None
    with pytest.warns(UserWarning, match="outside Box"):
        middle, half = units([100.0, 100.0], [np.inf, 200.0])
    assert middle.tolist() == [0.0, 150.0] and half.tolist() == [1.0, 50.0]


# ---- observations ------------------------------------------------------------------------------------------------


class Pixel(gym.Env):
    """The right action is whether the image is bright."""

    def __init__(self, continuous, shape=(8, 8, 3), high=255):
        self.observation_space = gym.spaces.Box(0, high, shape, np.uint8)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32) if continuous else gym.spaces.Discrete(2)

    def _image(self):
        self.bright = int(self.np_random.integers(2))
        space = self.observation_space
        return self.np_random.integers(100 * self.bright, 150 + 100 * self.bright, space.shape, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._image(), {}

    def step(self, action):
        right = int(np.asarray(action).reshape(-1)[0] > 0) == self.bright
        return self._image(), float(right), True, False, {}


@ALL
def test_bytes_become_fractions_and_images_are_said(cls):
    with pytest.warns(UserWarning, match=rf"^{cls.__name__}: observations of shape \(8, 8, 3\) look like images"):
        agent = make(cls, Pixel(cls.continuous))
    image = agent.envs.observation_space.sample()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = make(cls, Pixel(cls.continuous, shape=(192,)))  # the memory of a game, say: no image
        raw = make(cls, Pixel(cls.continuous, high=254))  # not bytes 0..255: as they are

    def output(agent, obs):
        if cls.algorithm == "recurrent_ppo":
            return agent.policy.next_value(obs, agent.memory().state)
        if hasattr(agent, "policy"):
            return agent.policy.output(agent.policy.prepare(obs))
        if cls.algorithm == "qt_opt":  # whose network takes actions, too
            return agent._mode(obs)
        if agent.memory() is not None:
            return agent._values(agent.online, obs, agent.memory())
        return agent._forward(agent.actor if hasattr(agent, "actor") else agent.online, obs)

    scaled = output(agent, image[None])
    np.testing.assert_array_equal(scaled, output(same, image.reshape(1, 192)))
    np.testing.assert_allclose(scaled, output(raw, image.reshape(1, 8, 8, 3) / 255), rtol=1e-4, atol=1e-5)
    agent.learn(agent.config.num_envs * 40, progress=False)
    assert np.isfinite(agent.metrics()["loss"])


@pytest.mark.filterwarnings("ignore:.*look like images")
@pytest.mark.parametrize(("cls", "steps"), [(PPO, 4000), (DQN, 3000)])
def test_what_is_in_the_pixels_is_learned(cls, steps):
    settings = {"n_steps": 64} if cls is PPO else {"learning_starts": 100, "epsilon_steps": 1000}
    agent = cls(Pixel(False), seed=0, hidden=(32,), gamma=0.5, **settings).learn(steps, progress=False)
    assert agent.evaluate(20, env=Pixel(False)).mean() == 1.0


# ---- torch's defaults --------------------------------------------------------------------------------------------


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@ALL
def test_networks_are_float32_whatever_the_default(cls, tmp_path, request):
    settings = {"normalize_obs": True} if cls.algorithm in ("a2c", "ppo", "trpo", "actor_critic") else {}
    straight = make(cls, **settings).learn(200, progress=False)
    request.getfixturevalue("float64")
    agent = make(cls, **settings).learn(100, schedule_steps=200, progress=False)
    agent.save(tmp_path / "a")
    agent = cls.load(tmp_path / "a").learn(200, progress=False)
    assert torch.get_default_dtype() == torch.float64
    (_, a), (_, b) = straight._state(), agent._state()
    assert all(a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in a)
    assert straight.metrics() == agent.metrics()
    agent.predict(agent.envs.obs, deterministic=False, memory=agent.memory(agent.envs.num_envs))


@ALL
def test_networks_are_made_on_their_device_whatever_the_default(cls):
    with torch.device("meta"):
        agent = make(cls)
    (_, a), (_, b) = agent._state(), make(cls)._state()
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["cem", "r2d2", "recurrent_ppo", "q_learning", "sarsa", "expected_sarsa"])
def test_agents_of_the_cpu_alone(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    cls, env = ALGORITHMS[name], "FrozenLake-v1" if ALGORITHMS[name].tabular else "CartPole-v1"
    assert cls(env, device="auto").device == "cpu"
    for device in ("cuda", "tpu"):
        with pytest.raises(InputError, match=f"^{cls.__name__}: device must be cpu, got '{device}'$"):
            cls(env, device=device)


@pytest.mark.parametrize("chosen", [False, True])
def test_threads_of_small_networks(chosen, monkeypatch):
    agent, seen = PPO("CartPole-v1", network=torch.nn.Linear(4, 3), num_envs=2, n_steps=16), []
    before = torch.get_num_threads()
    for name in ("OMP", "MKL"):
        monkeypatch.delenv(f"{name}_NUM_THREADS", raising=False)
    iterate = agent._iterate
    monkeypatch.setattr(agent, "_iterate", lambda: (seen.append(torch.get_num_threads()), iterate()))
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(networks, "_default_threads", 2 if chosen else 3)
        agent.learn(100, progress=False)
        assert set(seen) == {3 if chosen else 1} and torch.get_num_threads() == 3
        monkeypatch.setattr(networks, "SMALL", 10)
        seen.clear()
        agent.learn(600, progress=False)
        assert set(seen) == {3}
    finally:
        torch.set_num_threads(before)


def test_a_chosen_number_of_threads_is_torchs_too(monkeypatch):
    """As that of --threads, in the evaluation at the end as well."""
    agent = PPO("CartPole-v1", network=torch.nn.Linear(4, 3), num_envs=2, n_steps=16)
    before, chosen, seen = torch.get_num_threads(), _backend.chosen_threads(), []
    look = lambda *_: seen.append(torch.get_num_threads())  # noqa: E731
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(networks, "_default_threads", 3)
        for n, small in ((2, 10), (1, 10), (2, networks.SMALL)):
            monkeypatch.setattr(networks, "SMALL", small)
            fastrl.set_num_threads(n)
            agent.learn(agent.steps + 32, progress=False, callback=look)
            evaluate(agent, 1, 0, 5, gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda r: look() or r))
            assert (
                len(seen) > 16 and set(seen) == {n} and torch.get_num_threads() == 3 and _backend.chosen_threads() == n
            )
            seen.clear()
    finally:
        torch.set_num_threads(before)
        fastrl.set_num_threads(chosen)


# ---- what people see ---------------------------------------------------------------------------------------------


@ALL
def test_help_and_signature_have_every_hyperparameter(cls):
    text, signature = " ".join(cls.__doc__.split()), inspect.signature(cls).parameters
    assert list(signature)[:2] == ["env", "config"]
    for name in cls.config_class.__dataclass_fields__:
        default = getattr(cls.config_class, name)
        assert signature[name].default == default and f" {name}: " in text and f" = {default!r}. " in text
    assert "Args:" in text and " seed: int = 0. Of everything random" in text
    assert cls.__doc__.count("\n    seed: ") == 1


def test_repr_says_what_the_agent_is():
    agent = make(DQN, double=True)
    assert repr(agent) == "<DQN (double) on CartPole-v1: 0 steps, 0 updates>"
    agent.steps = 12_345
    assert repr(agent) == "<DQN (double) on CartPole-v1: 12,345 steps, 0 updates>"
    assert "on an environment without an id" in repr(make(PPO, Valve(-1.0, 1.0)))


@ALL
def test_predict_of_all_that_reset_returned(cls):
    agent, env = make(cls), gym.make("CartPole-v1" if cls.discrete else "Pendulum-v1")
    with pytest.raises(InputError, match="^predict: obs must be an observation, got all that reset or step returned"):
        agent.predict(env.reset())
    for obs in ({"a": 1}, "obs", None):
        with pytest.raises(InputError, match="^predict: obs must be an array of numbers, got "):
            agent.predict(obs)


@pytest.mark.parametrize("cls", [cls for cls in ALGORITHMS.values() if cls.algorithm in OFF_POLICY])
def test_a_buffer_smaller_than_a_batch(cls):
    text = f"^{cls.__name__}Config: buffer_size must be >= batch_size, got 10 and 64$"
    with pytest.raises(InputError, match=text):
        make(cls, buffer_size=10, batch_size=64)
    make(cls, buffer_size=64, batch_size=64)


def test_whole_numbers_in_any_type():
    c = DQN("CartPole-v1", buffer_size=1e3, batch_size=np.int64(8), gamma=np.float32(0.5), double=np.True_).config
    assert (c.buffer_size, c.batch_size, c.gamma, c.double) == (1000, 8, 0.5, True)
    assert type(c.buffer_size) is int and type(c.batch_size) is int and type(c.gamma) is float and c.double is True
    for bad in (1.5, True, "3", float("inf")):
        with pytest.raises(InputError, match="^DQN: buffer_size must be int, got "):
            DQN("CartPole-v1", buffer_size=bad)
    for config in (DQNConfig, SACConfig):
        with pytest.raises(InputError, match=f"^{config.__name__}: hidden must name at least one layer"):
            config(hidden=())


@ALL
def test_no_integer_trains_for_ever(cls):
    config = cls.config_class
    integers = [f.name for f in dataclasses.fields(config) if f.type in ("int", "int | None") or f.name == "hidden"]
    assert {"seed", "num_envs", "hidden", "learning_rate_steps"} <= set(integers)
    for name in integers:
        value = (2**70,) if name == "hidden" else 2**70
        with pytest.raises(InputError, match=rf"{name} must be in \["):
            config(**{name: value})


def test_no_run_is_of_more_than_64_bits():
    agent = make(DQN)
    for settings in ({"total_steps": 2**63}, {"total_steps": 10, "schedule_steps": 2**70}):
        with pytest.raises(InputError, match="must be an int of 64 bits, got "):
            agent.learn(**settings, progress=False)
    assert agent.steps == 0

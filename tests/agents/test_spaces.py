"""Observations and actions of every kind of space: flattened ones, factored policies, and agents that learn so."""

import json
import operator

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from fastrl.agents import A2C, DQN, PPO, REINFORCE, SAC, TRPO, InputError
from fastrl.agents.envs import Envs
from fastrl.agents.policies import ActorCritic
from fastrl.agents.spaces import Flattened, flattened, space_json, space_of
from fastrl.kernels import Generator

TAXI = "Taxi-v4" if "Taxi-v4" in gym.registry else "Taxi-v3"
NESTED = Dict(
    {
        "b": Tuple([Discrete(3, start=-1), MultiBinary((2, 2))]),
        "a": Box(np.float32([-1, 0]), np.float32([np.inf, 2]), (2,), np.float32),
        "image": Box(0, 255, (2, 3), np.uint8),
        "m": MultiDiscrete([2, 4]),
        "scalar": Box(-1.0, 1.0, (), np.float64),
    }
)
SPACES = [
    Discrete(4),
    Discrete(3, start=5),
    MultiBinary(3),
    MultiDiscrete([3, 2], start=[1, -1]),
    MultiDiscrete([[2, 3], [4, 2]]),
    Tuple([Discrete(32), Discrete(11), Discrete(2)]),
    NESTED,
]


@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
def test_flattened_is_gymnasiums(space):
    space.seed(3)
    flat, samples = Flattened(space), [space.sample() for _ in range(7)]
    rows = [flat(sample, "obs") for sample in samples]
    assert all(row.dtype == flat.space.dtype and row in flat.space for row in rows)
    assert flat.space.dtype == (np.float32 if space is NESTED else np.uint8)
    expected = np.stack([gym.spaces.utils.flatten(space, sample) for sample in samples]).astype(np.float64)
    if space is NESTED:  # bytes are scaled here
        at = 2 + 3 + 4
        expected[:, at : at + 6] /= 255
    np.testing.assert_allclose(np.stack(rows), expected, rtol=1e-6)
    stacked = concatenate(space, samples, create_empty_array(space, 7))
    assert (flat(stacked, "obs", 7) == np.stack(rows)).all()
    assert flat.batch_of(stacked) == 7 and flat.batch_of(samples[0]) is None


@pytest.mark.parametrize(
    "space", [*SPACES, Box(-1, 1, (3,)), Box(0, 255, (4, 4, 3), np.uint8)], ids=lambda s: repr(s)[:20]
)
def test_spaces_go_through_json(space):
    text = json.dumps(space_json(space), allow_nan=False)
    assert space_of(json.loads(text)) == space


def test_others_have_no_json_and_are_not_flattened():
    for space in (Text(5), Graph(Box(0, 1, (2,)), None), Dict({"x": Text(3)})):
        assert space_json(space) is None and flattened(space) is None
    with pytest.raises(ValueError, match="no space of type 'Odd'"):
        space_of({"type": "Odd"})


@pytest.mark.parametrize(
    ("obs", "text"),
    [
        (3, r"obs must be a dict with a, b, image, m, scalar, got int"),
        ({"a": 1}, r"obs must be a dict with a, b, image, m, scalar, got a"),
        ({**NESTED.sample(), "b": 3}, r"obs\['b'\] must be a tuple of 2, got int"),
        ({**NESTED.sample(), "b": (1,)}, r"obs\['b'\] must be a tuple of 2, got 1"),
        ({**NESTED.sample(), "b": (2, np.zeros((2, 2)))}, r"obs\['b'\]\[0\] must be in Discrete\(3, start=-1\), got 2"),
        ({**NESTED.sample(), "m": [0, 4]}, r"obs\['m'\] must be in MultiDiscrete\(\[2 4\]\), got 4"),
        ({**NESTED.sample(), "m": [0.5, 1]}, r"obs\['m'\] must be in MultiDiscrete\(\[2 4\]\), got 0.5"),
        ({**NESTED.sample(), "a": [1, 2, 3]}, r"obs\['a'\] must be numbers of shape \(2,\), got int64 of shape \(3,\)"),
        ({**NESTED.sample(), "a": ["x", "y"]}, r"obs\['a'\] must be numbers of shape \(2,\), got <U1 of shape \(2,\)"),
    ],
)
def test_observations_of_another_space(obs, text):
    with pytest.raises(InputError, match=f"^{text}$"):
        Flattened(NESTED)(obs, "obs")


class Nested(gym.Env):
    """Observations in `NESTED`, a new one a step; the reward of a step is its number, an episode has 4 of them."""

    observation_space, action_space = NESTED, Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def _obs(self):
        NESTED.seed(int(self.np_random.integers(2**31)))
        return NESTED.sample()

    def step(self, action):
        self.t += 1
        return self._obs(), float(self.t), False, self.t == 4, {}


class Foreign(SyncVectorEnv):
    """One that agents do not look into."""

    def step(self, actions):
        return super().step(actions)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_vector_environments_give_what_single_ones_do(mode):
    make = lambda cls: Envs(cls([Nested, Nested], autoreset_mode=mode), 2, 0)  # noqa: E731
    foreign = make(Foreign)
    assert foreign._loop is None and foreign.obs.shape == (2, Flattened(NESTED).size)
    singles = [Nested(), Nested()]
    flat = Flattened(NESTED)
    expected = np.stack([flat(env.reset(seed=i)[0], "obs") for i, env in enumerate(singles)])
    assert (foreign.obs == expected).all()
    for t in range(1, 13):
        step = foreign.step(np.zeros(2, np.int64))
        if mode == AutoresetMode.NEXT_STEP and t % 5 == 0:  # its own step
            assert not step.mask.any()
            expected = np.stack([flat(env.reset()[0], "obs") for env in singles])
            continue
        results = [env.step(0) for env in singles]
        assert (step.next_obs == np.stack([flat(result[0], "obs") for result in results])).all()
        assert step.truncated.tolist() == [result[3] for result in results]
        if mode == AutoresetMode.SAME_STEP and results[0][3]:
            expected = np.stack([flat(env.reset()[0], "obs") for env in singles])
            assert (foreign.obs == expected).all()


# ---- policies of several categoricals

MULTI = [MultiDiscrete([3, 2, 4], start=[1, 0, -2]), MultiBinary((2, 2))]


def _joint(policy, out):
    logits = torch.split(torch.as_tensor(out), policy.sizes.tolist(), 1)
    return [torch.distributions.Categorical(logits=part) for part in logits]


@pytest.mark.parametrize("space", MULTI, ids=["MultiDiscrete", "MultiBinary"])
def test_a_factored_policy_is_a_product_of_categoricals(space, rng):
    policy = ActorCritic(Box(-1, 1, (5,)), space, (16,), seed=1)
    obs = rng.normal(size=(2000, 5)).astype(np.float32)
    policy.vector[...] = rng.normal(size=policy.vector.shape).astype(np.float32)
    out = policy.output(obs)
    action, log_prob = policy.act(obs, Generator(0))
    parts, chosen = _joint(policy, out), torch.from_numpy(action)
    expected = sum(part.log_prob(chosen[:, i]) for i, part in enumerate(parts))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-5)
    log_prob, entropy = policy.log_prob_entropy(out, action)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy, sum(part.entropy() for part in parts), rtol=1e-5, atol=1e-5)
    other = policy.output(rng.normal(size=(2000, 5)).astype(np.float32))
    kl = sum(torch.distributions.kl_divergence(p, q) for p, q in zip(parts, _joint(policy, other), strict=True))
    np.testing.assert_allclose(policy.kl(out, None, other), kl, rtol=1e-4, atol=1e-5)
    for i, part in enumerate(parts):  # how often each value comes is its mean probability
        counts = np.bincount(action[:, i], minlength=policy.sizes[i]) / len(action)
        assert (np.abs(counts - part.probs.mean(0).numpy()) < 5 * 0.5 / len(action) ** 0.5).all()
    sent = policy.to_env(action)
    assert sent.shape == (2000, *space.shape) and all(one in space for one in sent[:50])
    assert (policy.mode(obs) == np.stack([part.probs.argmax(1) for part in parts], 1)).all()


@pytest.mark.parametrize("objective", ["clip", "kl"])
def test_its_loss_is_autograds(objective, rng):
    policy = ActorCritic(Box(-1, 1, (5,)), MULTI[0], (16,), seed=1)
    n, k = 64, policy.n_out
    out, old_out = (rng.normal(size=(n, k)).astype(np.float32) for _ in range(2))
    action = np.stack([rng.integers(size, size=n) for size in policy.sizes], 1)
    advantage = rng.normal(size=n).astype(np.float32)
    old_log_prob = np.asarray(policy.log_prob_entropy(old_out, action)[0])
    how = {"clip_range": 0.2} if objective == "clip" else {"old": (old_out, None), "kl_coef": 0.7}
    found = policy.loss(out, action, old_log_prob, advantage, entropy_coef=0.1, normalize_advantages=True, **how)
    x = torch.tensor(out, dtype=torch.float64, requires_grad=True)
    parts, a = _joint(policy, x), torch.tensor(advantage, dtype=torch.float64)
    a = (a - a.mean()) / (a.std(unbiased=False) + 1e-8)
    log_prob = sum(part.log_prob(torch.from_numpy(action[:, i])) for i, part in enumerate(parts))
    ratio = torch.exp(log_prob - torch.from_numpy(old_log_prob))
    entropy = sum(part.entropy() for part in parts).mean()
    if objective == "clip":
        policy_loss = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).mean()
    else:
        old = _joint(policy, torch.tensor(old_out, dtype=torch.float64))
        kl = sum(torch.distributions.kl_divergence(p, q) for p, q in zip(old, parts, strict=True)).mean()
        np.testing.assert_allclose(found.kl, kl.item(), rtol=1e-5)
        policy_loss = -(ratio * a).mean() + 0.7 * kl
    loss = policy_loss - 0.1 * entropy
    loss.backward()
    for name, value in (("loss", loss), ("policy_loss", policy_loss), ("entropy", entropy)):
        np.testing.assert_allclose(getattr(found, name), value.item(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.d_out, x.grad, rtol=1e-4, atol=1e-7)


# ---- agents


class Match(gym.Env):
    """One step an episode: the action must say what the observation, a Dict, shows.  The reward is 1 a part."""

    observation_space = Dict({"shown": MultiDiscrete([3, 2], start=[1, 0]), "noise": Box(-1, 1, (2,))})

    def __init__(self, actions):
        self.action_space = actions

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shown = np.array([self.np_random.integers(1, 4), self.np_random.integers(2)])
        return {"shown": self.shown, "noise": self.np_random.uniform(-1, 1, 2).astype(np.float32)}, {}

    def step(self, action):
        assert action in self.action_space
        first = self.shown[0] - 1
        wanted = {
            MultiDiscrete: lambda: self.shown - [1, 0] + self.action_space.start,
            MultiBinary: lambda: np.array([first >= 1, first == 2, self.shown[1]]),
            Discrete: lambda: self.action_space.start + first,
        }[type(self.action_space)]()
        reward = float(np.mean(np.asarray(action) == wanted))
        return self.reset()[0], reward, True, False, {}


ACTIONS = {
    "MultiDiscrete": MultiDiscrete([3, 2], start=[-1, 4]),
    "MultiBinary": MultiBinary(3),
    "Discrete": Discrete(3, start=7),
}
SMALL = {
    PPO: {"num_envs": 1, "n_steps": 64, "minibatches": 2, "learning_rate": 5e-3, "hidden": (32,)},
    A2C: {"n_steps": 32, "learning_rate": 2e-2, "hidden": (32,)},
    REINFORCE: {"episodes": 32, "learning_rate": 2e-2, "hidden": (32,)},
    TRPO: {"n_steps": 128, "hidden": (32,), "max_kl": 0.03},
    DQN: {"epsilon_steps": 500, "learning_starts": 100, "hidden": (32,), "gamma": 0.0, "learning_rate": 5e-3},
}


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("cls", SMALL, ids=operator.attrgetter("__name__"))
def test_they_learn(cls, name, tmp_path, capsys):
    env = Match(ACTIONS[name])
    if name != "Discrete" and cls is DQN:
        with pytest.raises(InputError, match=rf"^{cls.__name__} needs .*; this environment has action space {name}"):
            cls(env, **SMALL[cls])
        return
    agent = cls(env, seed=1, **SMALL[cls]).learn(2000)
    assert "are flattened to 7 numbers" in capsys.readouterr().err
    assert agent.evaluate(60, env=Match(ACTIONS[name])).mean() > 0.8  # by chance 1/3 or 1/2 a part
    space = env.observation_space
    single, obs = space.sample(), [space.sample() for _ in range(9)]
    batch = concatenate(space, obs, create_empty_array(space, 9))
    assert agent.predict(single) in env.action_space and agent.predict(single, deterministic=False) in env.action_space
    actions = agent.predict(batch)
    assert (actions == np.stack([agent.predict(one) for one in obs])).all()
    assert actions.shape == (9, *env.action_space.shape)
    tensors = {key: torch.from_numpy(x) for key, x in batch.items()}
    assert (agent.policy_to_torch()(tensors).numpy() == actions).all()
    agent.save(tmp_path / "a")
    loaded = cls.load(tmp_path / "a", env=Match(ACTIONS[name]))
    assert (loaded.predict(batch) == actions).all()


@pytest.mark.parametrize("env", ["FrozenLake-v1", TAXI, "Blackjack-v1"])
@pytest.mark.parametrize("cls", [PPO, DQN])
def test_gymnasiums_toy_texts(cls, env, tmp_path):
    settings = {"n_steps": 32, "num_envs": 2, "minibatches": 2} if cls is PPO else {"learning_starts": 50}
    whole = cls(env, **settings).learn(256, progress=False)
    cls(env, **settings).learn(128, schedule_steps=256, folder=tmp_path, progress=False)
    parts = cls.load(tmp_path).learn(256, progress=False)
    (_, a), (_, b) = whole._state(), parts._state()
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert len(whole.evaluate(2)) == 2


def test_what_is_refused():
    class Odd(Match):
        observation_space = Dict({"text": Text(3)})

    with pytest.raises(InputError, match="^PPO needs Box observations .*Dict or Tuple; this environment has "):
        PPO(Odd(Discrete(2)))
    with pytest.raises(InputError, match="^SAC needs Box actions of floats; this environment has action space D"):
        SAC(Match(Discrete(2)))
    agent = DQN(Match(Discrete(3)), hidden=(8,))
    with pytest.raises(InputError, match="^predict: obs must be an observation, got all that reset"):
        agent.predict(agent.envs.vec.envs[0].reset())
    with pytest.raises(InputError, match=r"^predict: obs\['shown'\] must be in MultiDiscrete"):
        agent.predict({"shown": [0, 0], "noise": [0.0, 0.0]})
    with pytest.raises(InputError, match="^predict: obs must be finite, got nan"):
        agent.predict({"shown": [1, 0], "noise": [0.0, np.nan]})

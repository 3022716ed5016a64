"""Evaluations during training: what they see, what they leave alone, the best agent, and the end at a return."""

import copy
import csv
import os
import signal

import gymnasium as gym
import numpy as np
import pytest
import torch
from odd_envs import Sees, Stands

import fastrl.agents
from fastrl.agents import DQN, PPO, SAC, Callback, EnvConfig, InputError, evaluation
from fastrl.agents.evaluation import SEED, Evaluator, episodes_of

SMALL = {"hidden": (16,), "learning_starts": 100, "train_every": 10, "updates": 1, "batch_size": 16}
SMALL |= {"learning_rate_steps": 5000, "seed": 4}


def table(folder):
    with (folder / "evaluations.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


class Keep(Callback):
    """The evaluations, and the greedy weights at each."""

    def __init__(self):
        self.all, self.weights = [], []

    def on_evaluation(self, agent, evaluation):
        self.all.append(evaluation)
        self.weights.append(agent.greedy.vector.copy())


def test_they_are_what_evaluate_gives_and_the_best_is_kept(tmp_path):
    keep, agent = Keep(), DQN("CartPole-v1", **SMALL)
    agent.learn(3000, folder=tmp_path, progress=False, eval_every=500, eval_episodes=3, callback=keep)
    rows = table(tmp_path)
    assert [row["step"] for row in rows] == [e.step for e in keep.all] == [500, 1000, 1500, 2000, 2500, 3000]
    for row, e in zip(rows, keep.all, strict=True):
        assert (row["episodes"], row["cut"]) == (3, 0) and (e.returns == e.lengths).all()  # CartPole's rewards are 1
        expected = [e.mean, e.returns.std(), e.returns.min(), e.returns.max(), e.lengths.mean()]
        assert [row[f"return_{x}"] for x in ("mean", "std", "min", "max")] + [row["length_mean"]] == expected
    best = int(np.argmax([e.mean for e in keep.all]))
    assert [i for i, e in enumerate(keep.all) if e.best][-1] == best
    kept = DQN.load(tmp_path / "best")
    assert kept.steps == keep.all[best].step and kept.greedy.vector.tobytes() == keep.weights[best].tobytes()
    assert kept.evaluate(3, SEED).tolist() == keep.all[best].returns.tolist()
    assert not (tmp_path / "best" / "replay").exists() and len(kept.buffer) == 0
    kept.learn(kept.steps + 200, progress=False)  # from an empty buffer


@pytest.mark.parametrize("make", [DQN, PPO, SAC])
def test_training_is_the_same_with_them_and_so_is_a_resumed_one(make, tmp_path):
    env = "Pendulum-v1" if make is SAC else "CartPole-v1"
    settings = {"hidden": (8,), "n_steps": 64, "num_envs": 2, "minibatches": 2, "epochs": 1} if make is PPO else SMALL
    if make is SAC:
        settings = {"hidden": (8,), "learning_starts": 50, "train_every": 10, "batch_size": 16}
    judged = {"eval_every": 128, "eval_episodes": 1, "progress": False}
    plain = make(env, **settings).learn(768, progress=False)
    whole = make(env, **settings).learn(768, folder=tmp_path / "whole", **judged)
    make(env, **settings).learn(384, schedule_steps=768, folder=tmp_path / "parts", **judged)
    parts = make.load(tmp_path / "parts").learn(768, folder=tmp_path / "parts", **judged)
    states = [agent._state() for agent in (plain, whole, parts)]
    for state, tensors in states[1:]:
        assert state["envs"] == states[0][0]["envs"] and state["rng"] == states[0][0]["rng"]
        assert all(np.array_equal(tensors[name], x) for name, x in states[0][1].items())
    same = [[(r["step"], r["return_mean"]) for r in table(tmp_path / name)] for name in ("whole", "parts")]
    assert same[0] == same[1] and [step for step, _ in same[0]] == [128, 256, 384, 512, 640, 768]


def test_a_resumed_run_knows_its_best(tmp_path):
    agent = DQN("CartPole-v1", **SMALL).learn(500, folder=tmp_path, progress=False, eval_every=500)
    text = (tmp_path / "evaluations.csv").read_text().splitlines()
    values = text[1].split(",")
    values[3] = "1000.0"  # more than there can be
    late = ",".join(["9000", *values[1:]])  # behind the checkpoint: will be made again
    (tmp_path / "evaluations.csv").write_text("\r\n".join([text[0], ",".join(values), late, ""]))
    keep = Keep()
    agent.learn(1000, folder=tmp_path, progress=False, eval_every=500, callback=keep)
    assert [row["step"] for row in table(tmp_path)] == [500, 1000]
    assert [e.best for e in keep.all] == [False] and DQN.load(tmp_path / "best").steps == 500


def test_it_ends_at_a_return(tmp_path, capsys):
    agent = DQN("CartPole-v1", **SMALL).learn(30_000, folder=tmp_path, eval_every=200, stop_at=9)
    assert agent.steps < 30_000 and table(tmp_path)[-1]["return_mean"] >= 9
    assert agent.steps == table(tmp_path)[-1]["step"] == DQN.load(tmp_path).steps
    err = capsys.readouterr().err
    assert "evaluated at step 200: return" in err and "the return has reached 9 (stop_at): training ends" in err


def test_without_a_number_they_are_every_5000_steps():
    keep = Keep()
    DQN("CartPole-v1", **SMALL).learn(5100, progress=False, stop_at=1e9, callback=keep)
    assert [e.step for e in keep.all] == [5000]


def test_an_environment_of_their_own(tmp_path):
    made = []

    class Cut(gym.Wrapper):
        def __init__(self, env):
            super().__init__(gym.wrappers.TimeLimit(env, 7))
            made.append(self)
            self.resets = []

        def reset(self, **kwargs):
            self.resets.append(kwargs)
            return super().reset(**kwargs)

    env, keep = Cut(gym.make("CartPole-v1").unwrapped), Keep()
    agent = DQN("CartPole-v1", **SMALL)
    agent.learn(1000, progress=False, eval_every=500, eval_episodes=2, eval_env=env, callback=keep)
    assert len(made) == 1 and all((e.lengths <= 7).all() for e in keep.all)
    assert [k["seed"] for k in env.resets] == [SEED, SEED + 1] * 2
    env.reset()  # it was given, so it is not closed
    env.step(0)
    keep = Keep()
    agent.learn(1500, progress=False, eval_every=500, eval_env="CartPole-v0", callback=keep)
    assert keep.all[0].lengths.max() <= 200


def test_normalising_wrappers_have_what_training_knows():
    seen = []

    class Policy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 3)

        def forward(self, x):
            if not self.training:
                seen.append(float(x[0, 0]))
            return self.layer(x)

    wrap = lambda: gym.wrappers.NormalizeObservation(gym.wrappers.TimeLimit(Stands(), 50))  # noqa: E731
    training, other = wrap(), wrap()
    agent = PPO(training, network=Policy, n_steps=100, minibatches=1, epochs=1)
    agent.learn(1000, progress=False, eval_every=500, eval_episodes=1, eval_env=other)
    count = other.obs_rms.count
    assert count == training.obs_rms.count > 1000  # of the second evaluation, at step 1000
    assert other.update_running_mean
    assert abs(np.mean(seen)) < 1  # 100 before it is normalised; with statistics of its own the first would be 0
    assert len(seen) == 100 and np.std(seen) > 0.5


def test_a_given_environment_has_the_statistics_of_the_training_meanwhile(tmp_path):
    def make():
        return Sees(gym.wrappers.NormalizeObservation(gym.wrappers.TimeLimit(Stands(), 50)))

    agent = PPO(make(), hidden=(8,), n_steps=64, minibatches=2, epochs=1, seed=0).learn(320, progress=False)
    agent.save(tmp_path)
    for which in (agent, fastrl.agents.load(tmp_path), copy.deepcopy(fastrl.agents.load(tmp_path))):
        env, other = make(), make()
        which.evaluate(1, env=env)
        # With statistics of its own the first would be 0, and the spread of few.
        assert env.seen[0] != 0 and abs(np.mean(env.seen)) < 0.5 and 0.5 < np.std(env.seen) < 2
        assert env.env.update_running_mean and vars(env.env.obs_rms) == vars(other.env.obs_rms)  # as it was
        if which is agent:
            continue
        with pytest.warns(UserWarning, match="^evaluate: env Stands lacks the NormalizeObservation that the agent was"):
            which.evaluate(1, env=gym.wrappers.TimeLimit(Stands(), 50))


def test_an_agent_without_an_environment_says_what_evaluates_it(tmp_path):
    PPO(gym.make("CartPole-v1").unwrapped, hidden=(8,)).save(tmp_path)
    with pytest.raises(InputError, match="^evaluate: give it `env`, because the agent was loaded without its"):
        fastrl.agents.load(tmp_path).evaluate(1)


def test_networks_of_ones_own_stand_still_in_predictions():
    def network():
        return torch.nn.Sequential(
            torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 2)
        )

    agent = DQN("CartPole-v1", network=network, averaging=False, num_envs=2, **SMALL)
    agent.learn(300, progress=False)
    obs, module = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32), agent.online.module
    before = {name: x.clone() for name, x in module.state_dict().items()}
    expected = agent.policy_to_torch()(torch.from_numpy(obs)).numpy()
    assert all((agent.predict(obs) == expected).all() for _ in range(3))
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    assert all(m.training for m in module.modules())


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_leaves_one_and_it_is_made_up_for(tmp_path):
    class Interrupting(gym.Wrapper):
        steps, at = 0, 150

        def step(self, action):
            self.steps += 1
            if self.steps == self.at:
                os.kill(os.getpid(), signal.SIGINT)
            return self.observation_space.sample(), 1.0, False, self.steps % 400 == 0, {}

    env = Interrupting(gym.make("CartPole-v1").unwrapped)
    judged = {"eval_every": 300, "eval_env": env, "eval_episodes": 1, "folder": tmp_path, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        DQN("CartPole-v1", **SMALL).learn(900, **judged)
    assert env.steps == 200 and not (tmp_path / "evaluations.csv").exists() and DQN.load(tmp_path).steps == 300
    agent = DQN.load(tmp_path).learn(600, schedule_steps=900, folder=tmp_path, progress=False, eval_every=300)
    # There was no table yet, which would tell of the one that is missing.
    assert [row["step"] for row in table(tmp_path)] == [600.0] and agent.steps == 600
    env.steps = 0
    with pytest.raises(KeyboardInterrupt):
        DQN.load(tmp_path).learn(1200, **judged)
    assert DQN.load(tmp_path).steps == 900 and len(table(tmp_path)) == 1
    DQN.load(tmp_path).learn(1200, folder=tmp_path, progress=False, eval_every=300)
    assert [row["step"] for row in table(tmp_path)] == [600, 900, 1200]


def test_what_cannot_work_starts_nothing(tmp_path):
    env = gym.make("CartPole-v1")
    agent = DQN(env, **SMALL)
    for settings, text in (
        ({"eval_every": 0}, "eval_every must be >= 1, got 0"),
        ({"eval_every": 1.5}, "eval_every must be an int, got 1.5"),
        ({"eval_every": 10, "eval_episodes": 0}, "eval_episodes must be >= 1, got 0"),
        ({"eval_every": 10, "stop_at": float("nan")}, "stop_at must be a finite number, got nan"),
        ({"stop_at": "475"}, "stop_at must be a finite number, got '475'"),
        ({"eval_every": 10, "eval_env": env}, "eval_env must be another environment than the agent trains in"),
        ({"eval_every": 10, "eval_env": gym.Wrapper(env.unwrapped)}, "eval_env must be another environment"),
        (
            {"eval_every": 10, "eval_env": 3},
            "eval_env must be an environment id, an EnvConfig or a gymnasium.Env, got int",
        ),
        ({"eval_every": 10, "eval_env": "Nothing-v0"}, "cannot make environment 'Nothing-v0'"),
        ({"eval_every": 10, "eval_env": "Acrobot-v1"}, "eval_env: observation_space must be .* like the agent's, got"),
        ({"eval_env": "CartPole-v1"}, "eval_env is given, but neither eval_every nor stop_at"),
    ):
        with pytest.raises(InputError, match=f"^{text}"):
            agent.learn(100, folder=tmp_path / "run", progress=False, **settings)
        assert agent.steps == agent.total_steps == 0 and not (tmp_path / "run").exists()
    without = DQN(env.unwrapped.__class__(), **SMALL)
    assert without.envs.spec is None
    with pytest.raises(InputError, match="^eval_env is missing: the agent was made from an environment without a spec"):
        without.learn(100, progress=False, eval_every=10)


@pytest.mark.parametrize("env", ["CartPole-v1", "fastrl/CartPole-v1", "Blackjack-v1", "FrozenLake-v1", "Pendulum-v1"])
@pytest.mark.parametrize("episodes", [2, 21])
def test_at_once_is_one_after_another(env, episodes, monkeypatch):
    """Gymnasium's own environments and the compiled ones play side by side; some of these episodes are cut."""
    monkeypatch.setattr(evaluation, "MAX_EPISODE_STEPS", 40)
    monkeypatch.setattr(evaluation, "SIDE_BY_SIDE", 5)
    agent = PPO(env, hidden=(8,), seed=1)
    evaluator, ticks = Evaluator(agent.envs, 100, episodes), []
    evaluator.open()
    assert (evaluator._compiled is not None) == env.startswith("fastrl/")
    assert len(evaluator._singles) == (1 if env.startswith("fastrl/") else min(episodes, 5))
    for _ in range(2):  # the second like the first
        got = evaluator(agent.predict, 7, lambda episode, step: ticks.append((episode, step)))
        wanted = list(episodes_of(agent.predict, gym.make(env), episodes, SEED, 40))
        # A batch may round in another way.
        np.testing.assert_allclose(got.returns, [episode.reward for episode in wanted], rtol=1e-4)
        assert got.lengths.tolist() == [episode.length for episode in wanted]
        assert got.cut == sum(episode.cut for episode in wanted) and got.step == 7
    evaluator.close()
    assert evaluator._singles == [] and evaluator._compiled is None


def test_masks_of_environments_at_once():
    agent = DQN("CliffWalking-v1", hidden=(8,), learning_starts=50)
    evaluator = Evaluator(agent.envs, 100, 3)
    evaluator.open()
    agent.envs.allowed = np.ones((1, 4), bool)  # as if this one had masks
    for env in evaluator._singles:
        env.unwrapped.action_masks = lambda: np.array([True, False, False, False])
    seen = []

    def policy(obs, action_masks):
        seen.append(action_masks)
        return np.zeros(len(obs), int)

    with pytest.raises(RuntimeError, match="enough"):
        evaluator(policy, 0, lambda episode, step: (_ for _ in ()).throw(RuntimeError("enough")))
    assert len(evaluator._singles) == 3 and all((m == [[True, False, False, False]] * 3).all() for m in seen)


class Alone(gym.Env):
    """Of which there may be two, one to train in and one to be judged in."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
    made = 0

    def __init__(self):
        Alone.made += 1
        assert Alone.made <= 2

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, bool(self.np_random.random() < 0.1), False, {}


def test_of_other_environments_one_is_made(monkeypatch):
    gym.register("Alone-v0", Alone)
    keep = Keep()
    agent = DQN("Alone-v0", **SMALL).learn(200, progress=False, eval_every=100, eval_episodes=4, callback=keep)
    assert Alone.made == 2 and agent.steps == 200 and [len(e.returns) for e in keep.all] == [4, 4]
    gym.registry.pop("Alone-v0")


def test_of_environments_with_a_window_one_is_made(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    from gymnasium.envs.classic_control import CartPoleEnv

    made, init = [], CartPoleEnv.__init__
    monkeypatch.setattr(CartPoleEnv, "__init__", lambda self, **how: made.append(how) or init(self, **how))
    monkeypatch.setattr(CartPoleEnv, "render", lambda self: None)
    window = EnvConfig("CartPole-v1", kwargs={"render_mode": "human"})
    DQN(window, **SMALL).learn(60, progress=False, eval_every=50, eval_episodes=4)
    assert [how["render_mode"] for how in made] == ["human", "human"]


def test_environments_are_closed_if_a_later_one_cannot_be_made(monkeypatch):
    from gymnasium.envs.classic_control import CartPoleEnv

    agent = DQN("CartPole-v1", **SMALL)
    made, closed, init = [], [], CartPoleEnv.__init__

    def third_fails(self, **how):
        if len(made) == 2:
            raise RuntimeError("no more")
        init(self, **how)
        made.append(self)

    monkeypatch.setattr(CartPoleEnv, "__init__", third_fails)
    monkeypatch.setattr(CartPoleEnv, "close", lambda self: closed.append(self))
    with pytest.raises(InputError, match="no more"):
        agent.learn(60, progress=False, eval_every=50, eval_episodes=4)
    assert len(made) == 2 and closed == made and agent.steps == 0


class Unlike(gym.Env):
    """CartPole's spaces, and what a test says for the rest."""

    observation_space, action_space = gym.make("CartPole-v1").observation_space, gym.spaces.Discrete(2)

    def __init__(self, reset=lambda seed: (np.zeros(4, np.float32), {}), reward=1.0, step=None):
        self._reset, self._reward, self._step = reset, reward, step

    def reset(self, *, seed=None, options=None):
        return self._reset(seed)

    def step(self, action):
        return self._step or (np.zeros(4, np.float32), self._reward, True, False, {})


@pytest.mark.parametrize(
    ("env", "text"),
    [
        (
            Unlike(reset=lambda seed: np.zeros(4, np.float32)),
            r"Unlike: reset\(\) must take seed= and return",
        ),
        (Unlike(step=(np.zeros(4, np.float32), 1.0, True, {})), r"Unlike: step\(\) must return \(obs, reward, "),
        (Unlike(reward=None), r"Unlike: step\(\) must return \(obs, reward, .*NoneType"),
        (Unlike(reward=float("nan")), "the rewards of Unlike must be finite, got nan as their sum in an episode$"),
        (Unlike(reward=-np.inf), "the rewards of Unlike must be finite, got -inf as their sum in an episode$"),
    ],
)
def test_environments_that_cannot_be_evaluated_in(env, text):
    agent = DQN("CartPole-v1", **SMALL)
    with pytest.raises(InputError, match=f"^{text}"):
        agent.evaluate(1, env=env)
    with pytest.raises(InputError, match=f"^{text}"):
        agent.learn(500, progress=False, eval_every=200, eval_env=env)
    with pytest.raises(ZeroDivisionError):  # the environment's own errors are its own
        agent.evaluate(1, env=Unlike(reset=lambda seed: 1 / 0))

"""Returns are of the environment's own rewards, whatever wrappers make of them for learning."""

import copy
import csv

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import ClipReward, MaxAndSkipObservation, NormalizeReward, TimeLimit, TransformReward

from fastrl.agents import DQN, PPO, InputError
from fastrl.agents.env_rewards import Meter, meter_of, reward_wrappers

SMALL = {"hidden": (8,), "n_steps": 32, "minibatches": 2, "epochs": 1, "seed": 0}


class Pays(gym.Env):
    """3 for each of the 10 steps of an episode."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 3.0, self.t == 10, False, {}


class Mine(gym.RewardWrapper):
    def reward(self, reward):
        return -reward


class Noop(gym.Wrapper):
    """Takes a step at each reset, as AtariPreprocessing does."""

    def reset(self, **kwargs):
        self.env.reset(**kwargs)
        obs, *_, info = self.env.step(0)
        return obs, info


WRAPPERS = {
    "NormalizeReward": (NormalizeReward, 30.0, 10),
    "TransformReward": (lambda env: TransformReward(env, lambda reward: reward / 10), 30.0, 10),
    "RewardWrapper": (Mine, 30.0, 10),
    "several": (lambda env: TimeLimit(NormalizeReward(TimeLimit(ClipReward(env, -1, 1), 9)), 5), 15.0, 5),
    "repeated": (lambda env: MaxAndSkipObservation(ClipReward(env, -1, 1), skip=2), 30.0, 5),
    "at reset": (lambda env: Noop(ClipReward(env, -1, 1)), 27.0, 9),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_all_returns(kind, tmp_path, capsys):
    wrap, paid, length = WRAPPERS[kind]
    heard = []

    class Hear(gym.Wrapper):  # what is learned from
        def step(self, action):
            result = self.env.step(action)
            heard.append(result[1])
            return result

    agent = PPO(Hear(wrap(Pays())), **SMALL)
    agent.learn(256, folder=tmp_path, eval_every=128, eval_env=wrap(Pays()))
    for name, column in (("progress", "episode_return"), ("evaluations", "return_mean")):
        with (tmp_path / f"{name}.csv").open() as file:
            assert {float(row[column]) for row in csv.DictReader(file)} == {paid}
    assert set(agent.envs.recent) == {(paid, length)}
    assert not np.isin(heard, [paid / length, 3.0]).any() and len(heard) == 256
    assert (
        agent.evaluate(2, env=wrap(Pays())).tolist() == agent.evaluate(2, env=agent._made_from).tolist() == [paid] * 2
    )
    err = capsys.readouterr().err
    assert "returns are of the environment's own rewards, beneath " in err and f"return {paid} +- 0.0 (best)" in err
    other = copy.deepcopy(agent).learn(agent.steps + 64, progress=False)
    assert set(other.envs.recent) == {(paid, length)}


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("kind", WRAPPERS)
def test_in_vector_environments(kind, mode):
    wrap, paid, length = WRAPPERS[kind]
    vec = SyncVectorEnv([lambda: wrap(Pays())] * 2, autoreset_mode=mode)
    assert set(PPO(vec, **SMALL).learn(128, progress=False).envs.recent) == {(paid, length)}


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("make", [SyncVectorEnv, AsyncVectorEnv])
def test_wrappers_of_vectors(make, mode):
    vec = make([Pays] * 2, autoreset_mode=mode)  # ClipReward writes into the array of rewards
    vec = gym.wrappers.vector.NormalizeReward(gym.wrappers.vector.ClipReward(vec, -1, 1))
    with PPO(vec, **SMALL) as agent:
        assert set(agent.learn(128, progress=False).envs.recent) == {(30.0, 10)}


def test_a_resume_goes_on_with_them(tmp_path):
    gym.register("fastrl-test/Pays-v0", Pays)
    made = gym.make("fastrl-test/Pays-v0")
    agent = PPO(NormalizeReward(made), **SMALL).learn(64, progress=False)
    assert agent.envs._returns.tolist() == [12.0]  # in the middle of an episode
    agent.save(tmp_path / "a")
    other = PPO.load(tmp_path / "a", NormalizeReward(gym.make("fastrl-test/Pays-v0")))
    assert other.envs._returns.tolist() == [12.0] and other.envs._loop.state_dict() == agent.envs._loop.state_dict()


def test_what_is_inside_of_an_environment_is_its_own():
    gym.register("fastrl-test/Inside-v0", lambda: Mine(Pays()))
    env = gym.make("fastrl-test/Inside-v0")
    assert reward_wrappers(env) == [] and meter_of(env) is None
    agent = DQN("fastrl-test/Inside-v0", hidden=(8,))
    assert agent.envs.changes_rewards == "" and agent.evaluate(1).tolist() == [-30.0]


def test_the_wrapped_environment_stays_what_it_is():
    inner = Pays()
    env = ClipReward(inner, -1, 1)
    assert meter_of(env) is meter_of(TimeLimit(env, 3)) is inner.step and isinstance(inner.step, Meter)
    assert env.env is inner
    env.reset(seed=0)
    assert env.step(0)[1] == 1.0 and inner.step.take(1.0) == 3.0 and inner.step.take(1.0) == 1.0
    copied = copy.deepcopy(env)
    copied.step(0)
    assert (copied.env.t, inner.t) == (2, 1) and copied.env.step.take(0) == 3.0 and inner.step.take(0) == 0


def test_rewards_of_several_numbers_are_those_of_the_wrapper():
    class Several(Pays):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, np.array([reward, 1.0]), *rest

    agent = PPO(TransformReward(Several(), np.sum), **SMALL).learn(32, progress=False)
    assert set(agent.envs.recent) == {(40.0, 10)}


def test_evaluate_takes_environments_with_the_agents_spaces_alone():
    agent = DQN("CartPole-v1", hidden=(8,), seed=0)
    assert agent.evaluate(2, env="CartPole-v1").tolist() == agent.evaluate(2).tolist()
    wide = gym.make("CartPole-v1")
    wide.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)  # bounds that no policy depends on
    assert agent.evaluate(2, env=wide).tolist() == agent.evaluate(2).tolist()
    for env, name in (("Acrobot-v1", "observation"), ("MountainCar-v0", "observation")):
        with pytest.raises(
            InputError, match=rf"^evaluate: env: {name}_space must be Box\(.* like the agent's, got Box"
        ):
            agent.evaluate(1, env=env)
    with pytest.raises(
        InputError, match=r"^evaluate: env must be an .*, got SyncVectorEnv; of a vector environment give"
    ):
        agent.evaluate(1, env=gym.make_vec("CartPole-v1", 2, "sync"))
    with pytest.raises(InputError, match=r"^evaluate: env must be an environment id, .*, got int"):
        agent.evaluate(1, env=3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)),
        lambda env: gym.wrappers.TransformAction(env, lambda a: a, gym.spaces.Box(-2, 2, (1,), np.float64)),
        lambda env: gym.wrappers.TransformAction(env, lambda a: a[:1], gym.spaces.Box(-2, 2, (2,))),
        lambda env: gym.wrappers.DiscretizeAction(env, 5),
    ],
)
def test_evaluate_refuses_other_actions(wrap):
    agent = PPO("Pendulum-v1", **SMALL)
    with pytest.raises(InputError, match=r"^evaluate: env: action_space must be Box\(-2\.0, 2\.0, \(1,\), float32"):
        agent.evaluate(1, env=wrap(gym.make("Pendulum-v1")))


@pytest.mark.parametrize("around", [False, True])
def test_environments_some_of_which_change_rewards(around):
    vec = SyncVectorEnv([Pays, lambda: ClipReward(Pays(), -1, 1), Pays])  # NEXT_STEP
    agent = PPO(gym.wrappers.vector.TransformReward(vec, lambda reward: reward / 10) if around else vec, **SMALL)
    agent.learn(300, progress=False)
    assert set(agent.envs.recent) == {(30.0, 10)} and len(agent.envs.recent) >= 24

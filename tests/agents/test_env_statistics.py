"""Running statistics of normalising wrappers: around vector environments, in them and in their processes."""

import copy
import functools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, TimeLimit
from gymnasium.wrappers import vector as of_vectors
from odd_envs import Sees, Stands

import fastrl.agents
from fastrl.agents import PPO, EnvConfig, InputError

SMALL = {"hidden": (8,), "n_steps": 32, "minibatches": 2, "epochs": 1, "seed": 0}


def bare():
    return TimeLimit(Stands(), 50)


def single():
    return NormalizeObservation(NormalizeReward(bare()))


def around(fns):
    return of_vectors.NormalizeReward(of_vectors.NormalizeObservation(SyncVectorEnv(fns)))


KINDS = {
    "inside": lambda: SyncVectorEnv([single] * 2),
    "around": lambda: around([bare] * 2),
    "processes": lambda: AsyncVectorEnv([single] * 2),
    "around processes": lambda: of_vectors.NormalizeObservation(AsyncVectorEnv([lambda: NormalizeReward(bare())] * 2)),
}
TRAINED = pytest.mark.parametrize("kind", KINDS)


def statistics(vec):
    """By name, of each environment or of all."""
    found = {}
    while isinstance(vec, gym.vector.VectorWrapper):
        found |= {f"around {name}": [x] for name, x in vars(vec).items() if name.endswith("_rms")}
        vec = vec.env
    for name in ("obs_rms", "return_rms"):
        if all(vec.call("has_wrapper_attr", name)):
            found[name] = vec.get_attr(name)
    return {name: [(np.mean(x.mean), np.mean(x.var), x.count) for x in each] for name, each in found.items()}


def stand_still(vec):
    while isinstance(vec, gym.vector.VectorWrapper):
        if hasattr(vec, "update_running_mean"):
            vec.update_running_mean = False
        vec = vec.env
    if all(vec.call("has_wrapper_attr", "update_running_mean")):
        vec.set_attr("update_running_mean", False)
    for env in getattr(vec, "envs", []):
        while isinstance(env, gym.Wrapper):
            env.update_running_mean, env = False, env.env


@TRAINED
def test_they_come_back_where_episodes_do_not(kind, tmp_path):
    with PPO(KINDS[kind](), **SMALL) as agent:
        agent.learn(640, folder=tmp_path / "a", progress=False)
        saved = statistics(agent._made_from)
        assert len(saved) == 2 and all(count > 300 for each in saved.values() for _, _, count in each)
        vec = KINDS[kind]()
        if kind != "processes":  # whose inner wrappers cannot be reached, so they learn from a reset
            stand_still(vec)
        with pytest.warns(UserWarning, match="new episodes begin") as warned:
            loaded = PPO.load(tmp_path / "a", env=vec)
        assert [w.filename for w in warned] == [__file__]
        with loaded:
            if kind != "processes":
                assert statistics(vec) == saved
            for name, each in statistics(vec).items():
                for (mean, var, count), old in zip(each, saved[name], strict=True):
                    assert count - old[2] in (0, 1) and np.allclose([mean, var], old[:2], rtol=0.1)
            assert np.all(np.abs(loaded.envs.obs) < 3)  # normalised by them
            loaded.learn(704, progress=False)


@TRAINED
def test_evaluations_have_them(kind, tmp_path):
    given = Sees(NormalizeObservation(bare()))
    with PPO(KINDS[kind](), **SMALL) as agent:
        agent.learn(640, folder=tmp_path / "a", progress=False, eval_every=640, eval_episodes=1, eval_env=given)
        for which in (agent, fastrl.agents.load(tmp_path / "a"), copy.deepcopy(fastrl.agents.load(tmp_path / "a"))):
            env = Sees(NormalizeObservation(bare()))
            which.evaluate(1, env=env)
            assert env.env.update_running_mean and env.env.obs_rms.count < 1  # as it was
            for seen in (env.seen, given.seen):
                # With statistics of its own the first would be 0, and the spread of few.
                assert len(seen) == 51 and seen[0] != 0 and abs(np.mean(seen)) < 0.5 and 0.5 < np.std(seen) < 2
            with pytest.warns(UserWarning, match="evaluate: env Stands lacks the NormalizeObservation") as warned:
                which.evaluate(1, env=bare())
            assert [w.filename for w in warned] == [__file__]
        assert given.env.update_running_mean


@pytest.mark.parametrize("num_envs", [1, 3])
def test_another_number_of_environments_has_those_of_the_first(num_envs, tmp_path):
    agent = PPO(EnvConfig("CartPole-v1", wrappers=["NormalizeObservation"]), num_envs=4, **SMALL)
    agent.learn(512, folder=tmp_path / "a", progress=False)
    rms = agent.envs._singles()[0].obs_rms

    def make():
        env = NormalizeObservation(gym.make("CartPole-v1"))
        env.update_running_mean = False
        return env

    env = make() if num_envs == 1 else SyncVectorEnv([make] * num_envs)
    with pytest.warns(UserWarning, match="new episodes begin"):
        loaded = PPO.load(tmp_path / "a", env=env)
    assert loaded.envs.num_envs == num_envs
    for one in [*loaded.envs._singles(), gym.Wrapper(env).env if num_envs == 1 else env.envs[0]]:
        assert one.obs_rms.count == rms.count > 128
        assert np.array_equal(one.obs_rms.mean, rms.mean) and np.array_equal(one.obs_rms.var, rms.var)
    with pytest.warns(UserWarning) as warned:
        PPO.load(tmp_path / "a", env=gym.make("CartPole-v1"))
    assert any("env CartPole-v1 lacks the NormalizeObservation that" in str(w.message) for w in warned)


def test_an_agent_without_environment_knows_those_of_the_last_step(tmp_path):
    env = NormalizeObservation(Stands())  # one episode for ever
    PPO(env, **SMALL).learn(320, progress=False).save(tmp_path / "a")
    for agent in (fastrl.agents.load(tmp_path / "a"), copy.copy(fastrl.agents.load(tmp_path / "a"))):
        (state,) = agent.envs.statistics.learned()
        mean = np.array(state["obs_rms"]["mean"]["values"])
        assert state["obs_rms"]["count"] == env.obs_rms.count > 320 and np.array_equal(mean, env.obs_rms.mean)


def test_processes_that_have_ended_leave_those_that_were_read_last(tmp_path):
    agent = PPO(KINDS["processes"](), **SMALL).learn(320, progress=False)
    agent.save(tmp_path / "a")
    agent.close()
    with pytest.warns(UserWarning, match="^the AsyncVectorEnv no longer answers") as warned:
        agent.save(tmp_path / "b")
    assert {w.filename for w in warned} == {__file__}
    one, other = (fastrl.agents.load(tmp_path / name).envs.statistics.learned() for name in "ab")
    assert one == other and one[0]["obs_rms"]["count"] > 160


class Halves(gym.ObservationWrapper):
    """Nothing says how to make it again."""

    def __init__(self, env, by):
        super().__init__(env)
        self.by = by

    def observation(self, obs):
        return obs / np.float32(self.by)


def test_an_environment_that_cannot_be_made_again_is_asked_for():
    agent = PPO(Halves(gym.make("CartPole-v1"), 2), **SMALL)
    with pytest.raises(InputError, match="^evaluate: give it `env`, because the agent's own cannot be made again: "):
        agent.evaluate(1)
    with pytest.raises(InputError, match="^eval_env is missing, because the agent's own cannot be made again: "):
        agent.learn(64, progress=False, eval_every=32)
    assert agent.evaluate(1, env=Halves(gym.make("CartPole-v1"), 2)).shape == (1,)


def test_other_spaces_are_named_in_one_line():
    wide = functools.partial(gym.spaces.Box, -np.arange(40.0), np.arange(40.0) + 1, dtype=np.float64)
    env = TimeLimit(Stands(), 5)
    env.observation_space = wide()
    with pytest.raises(InputError, match="^evaluate: env: observation_space must be Box") as error:
        PPO(bare(), **SMALL).evaluate(1, env=env)
    assert "\n" not in str(error.value)

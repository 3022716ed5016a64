"""Environments and vector environments of all kinds: loosely typed, unlabelled, at odds with the API, closed."""

import gc
import random
import subprocess
import sys
import textwrap
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from algorithms import DEEP
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from odd_envs import Sim, Steps, register

from fastrl.agents import DQN, PPO, SAC
from fastrl.agents.config import InputError
from fastrl.agents.envs import Envs

BOTH = [DQN, PPO]
SMALL = {DQN: {"hidden": (4,), "learning_starts": 100}, PPO: {"hidden": (4,), "n_steps": 32}}


def steps_of(buffer):
    batch = buffer.transitions()
    return np.unique(batch.next_obs - batch.obs).tolist()


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("copy", [True, False])
def test_a_wrapped_vector_that_reuses_its_array(copy, mode):
    envs = gym.wrappers.vector.RecordEpisodeStatistics(SyncVectorEnv([Steps] * 3, copy=copy, autoreset_mode=mode))
    agent = DQN(envs, seed=0, learning_starts=1000).learn(600, progress=False)
    assert steps_of(agent.buffer) == [1.0]
    assert len(agent.buffer) == 600 - (75 if mode == AutoresetMode.NEXT_STEP else 0)


@pytest.mark.parametrize("cls", list(DEEP.values()))
def test_evaluating_in_the_training_environment_begins_new_episodes(cls):
    class Either(Steps):
        action_space = gym.spaces.Discrete(2) if cls.discrete else gym.spaces.Box(-1, 1, (1,), np.float32)
        starts = []  # noqa: RUF012

        def reset(self, *, seed=None, options=None):
            obs, info = super().reset(seed=seed)
            self.starts.append((seed, self.np_random.random()))
            return obs, info

    env = Either()
    one = {"n_step": 1} if hasattr(cls.config_class, "n_step") else {}  # D4PG has 5
    agent = cls(env, seed=0, hidden=(4,), **one)
    for i in range(1, 6):
        agent.learn(max(101 * i, agent.steps + 1), progress=False)
        assert agent.evaluate(2, env=gym.wrappers.TimeLimit(env, 5)).tolist() == [5.0, 5.0]
        assert agent.envs.obs.tolist() == [[0.0]]
    assert {length for _, length in agent.envs.recent} == {7}
    if agent.buffer is not None:
        assert steps_of(agent.buffer) == [1.0]
    training = [x for seed, x in Either.starts if seed is None]
    assert len(set(training)) == len(training)  # the evaluations' seeds are not the training's


def test_evaluating_in_another_environment_disturbs_nothing():
    agent = DQN(Steps(), seed=0, learning_starts=1000).learn(17, progress=False)
    agent.evaluate(1, env=Steps())
    assert agent.envs.obs.tolist() == [[3.0]]


@pytest.mark.parametrize("key", ["final_obs", "final_observation"])
@pytest.mark.parametrize("mode", [None, AutoresetMode.SAME_STEP, "SameStep"])
@pytest.mark.parametrize("flags", [np.bool_, np.int64, np.uint8])
@pytest.mark.parametrize("out", [np.array, torch.tensor, np.ndarray.tolist], ids=["numpy", "torch", "lists"])
def test_the_final_observation_is_found(key, mode, flags, out):
    agent = DQN(Sim(key, flags, out, mode), seed=0, learning_starts=1000).learn(630, progress=False)
    assert steps_of(agent.buffer) == [1.0] and len(agent.buffer) == 630
    assert set(agent.envs.recent) == {(7.0, 7)}
    assert PPO(Sim(key, flags, out, mode), seed=0, n_steps=32).learn(300, progress=False).envs.recent[-1] == (7.0, 7)


@pytest.mark.parametrize("cls", BOTH)
def test_what_is_unknown_is_an_error(cls):
    with pytest.raises(InputError, match=r"^Sim: metadata has no autoreset_mode .*NEXT_STEP.*SAME_STEP, or DISABLED"):
        cls(Sim(mode=None, hide=True), **SMALL[cls]).learn(300, progress=False)
    with pytest.raises(InputError, match=r"^Sim: with SAME_STEP autoreset info\['final_obs'\] and .* missing"):
        cls(Sim(hide=True), **SMALL[cls]).learn(300, progress=False)
    with pytest.raises(InputError, match="^Sim: metadata's autoreset_mode must be one of .*got 'often'"):
        cls(Sim(mode="often"))


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_mode_is_the_environments_own(wrapped):
    class Shared(Sim):
        """As ale-py's: its mode is written into the metadata of the class."""

        metadata = {}  # noqa: RUF012

        def __init__(self, mode):
            super().__init__(mode=None)
            del self.metadata  # the instance's
            self.autoreset_mode = mode
            self.metadata["autoreset_mode"] = mode

    vec = Shared(AutoresetMode.SAME_STEP)
    assert Shared(AutoresetMode.NEXT_STEP).metadata is vec.metadata
    agent = DQN(gym.vector.VectorWrapper(vec) if wrapped else vec, seed=0, learning_starts=1000)
    assert agent.envs.mode == AutoresetMode.SAME_STEP
    assert steps_of(agent.learn(630, progress=False).buffer) == [1.0] and len(agent.buffer) == 630
    vec.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # what the caller says of this one goes first
    assert Envs(vec, 3, seed=0).mode == AutoresetMode.NEXT_STEP


def test_the_mode_is_gymnasiums_where_metadata_are_shared():
    """As in Gymnasium 1.1, whose vector environments write into the metadata of the environments' class."""
    vec = SyncVectorEnv([Steps] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    vec.metadata = shared = {"autoreset_mode": AutoresetMode.SAME_STEP}
    shared["autoreset_mode"] = AutoresetMode.NEXT_STEP
    wrapper = gym.vector.VectorWrapper(vec)  # without one it would be taken apart
    assert Envs(wrapper, 2, seed=0).mode == AutoresetMode.SAME_STEP
    wrapper.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # what the caller says goes first
    assert Envs(wrapper, 2, seed=0).mode == AutoresetMode.NEXT_STEP


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("flags", [np.bool_, np.int64])
def test_flags_of_integers_in_every_mode(mode, flags):
    class Ints(gym.vector.VectorWrapper):
        def step(self, actions):
            obs, reward, terminated, truncated, info = self.env.step(actions)
            return obs, reward.astype(np.int32), terminated.astype(flags), truncated.astype(flags), info

    for cls in BOTH:
        agent = cls(Ints(SyncVectorEnv([Steps] * 2, autoreset_mode=mode)), **SMALL[cls]).learn(200, progress=False)
        assert set(agent.envs.recent) == {(7.0, 7)}


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("wrapper", ["DictInfoToList", "NumpyToTorch"])
@pytest.mark.parametrize("cls", BOTH)
def test_wrappers_that_convert(wrapper, cls, mode):
    if wrapper == "NumpyToTorch":
        pytest.importorskip("array_api_compat")
    vec = getattr(gym.wrappers.vector, wrapper)(SyncVectorEnv([Steps] * 2, autoreset_mode=mode))
    if wrapper == "NumpyToTorch" and mode == AutoresetMode.SAME_STEP:  # it cannot convert its own final_obs
        with pytest.raises(InputError, match=r"^Steps: step\(\) must return .*DLPack"):
            cls(vec, **SMALL[cls]).learn(200, progress=False)
        return
    agent = cls(vec, **SMALL[cls]).learn(200, progress=False)
    assert set(agent.envs.recent) == {(7.0, 7)}
    if cls is DQN:
        assert steps_of(agent.buffer) == [1.0]


@pytest.mark.parametrize("cls", BOTH)
def test_vector_environments_of_jax(cls):
    pytest.importorskip("jax")
    agent = cls(gym.make_vec("phys2d/CartPole-v1", num_envs=2), **SMALL[cls]).learn(200, progress=False)
    assert agent.envs.episodes > 0 and agent.envs.obs.flags.writeable


def test_the_seed_that_envpool_ignores():
    envpool = pytest.importorskip("envpool")
    with pytest.warns(UserWarning, match="seed"):
        DQN(envpool.make_gymnasium("CartPole-v1", num_envs=2), hidden=(4,), seed=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*seed")
        DQN(envpool.make_gymnasium("CartPole-v1", num_envs=2), hidden=(4,))


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("value", [None, float("nan"), 2**70, "word", {"a": []}], ids=repr)
def test_infos_that_nobody_reads(value, num_envs):
    class Info(gym.Wrapper):
        def step(self, action):
            obs, reward, terminated, truncated, _ = self.env.step(action)
            return obs, reward, terminated, truncated, {"target": 3 if action else value, "final_obs": value}

    register("fastrl-test/Info-v0", lambda: Info(gym.make("CartPole-v1")))
    for cls in BOTH:
        assert cls("fastrl-test/Info-v0", num_envs=num_envs, **SMALL[cls]).learn(200, progress=False).steps >= 200


@pytest.mark.parametrize("rng", [np.random.RandomState, random.Random])
def test_a_generator_that_is_not_numpys(rng, tmp_path):
    class Legacy(Steps):
        def __init__(self):
            self.np_random = rng(0)

        def reset(self, *, seed=None, options=None):
            if seed is not None:
                self.np_random = rng(seed)
            self.t = 0
            return np.zeros(1, np.float32), {}

    for cls in BOTH:
        agent = cls(Legacy(), **SMALL[cls]).learn(150, progress=False)
        agent.save(tmp_path / cls.__name__)
        with pytest.warns(UserWarning, match="new episodes begin"):
            cls.load(tmp_path / cls.__name__, env=Legacy()).learn(200, progress=False)


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("what, value", [("reward", -1e39), ("observation", 1e39), ("observation", 1e308)])
def test_finite_in_float64_but_not_in_float32(what, value, cls, dtype, vector):
    class Large(Steps):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), dtype)

        def step(self, action):
            obs, reward, *rest = super().step(action)
            obs = obs.astype(np.float64)
            if self.t == 5 and what == "reward":
                reward = value
            elif self.t == 5:
                obs[:] = value
            return obs, reward, *rest

        def reset(self, **kwargs):
            return super().reset(**kwargs)[0].astype(dtype), {}

    if vector and dtype == np.float32:
        return  # Gymnasium's concatenation makes it an infinity
    env = SyncVectorEnv([Large] * 2) if vector else Large()
    with warnings.catch_warnings(), pytest.raises(InputError) as error:
        warnings.simplefilter("error")
        cls(env, **SMALL[cls]).learn(300, progress=False)
    assert str(error.value) == f"the {what} of Large must be finite in float32, got {value}"


def test_a_reset_that_is_not_finite_is_named():
    class Late(Steps):
        def reset(self, **kwargs):
            self.count = getattr(self, "count", 0) + 1
            return super().reset(**kwargs)[0] * (np.nan if self.count == 4 else 1), {}

    with pytest.raises(InputError, match="the observation of Late must be finite, got nan"):
        DQN(Late(), **SMALL[DQN]).learn(300, progress=False)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8])
def test_discrete_actions_are_of_the_spaces_dtype(dtype):
    class Strict(Steps):
        action_space = gym.spaces.Discrete(2, dtype=dtype)

        def step(self, action):
            assert self.action_space.contains(action) and action.dtype == dtype
            return super().step(action)

    for cls in BOTH:
        cls(Strict(), **SMALL[cls]).learn(150, progress=False)
        cls(SyncVectorEnv([Strict] * 2), **SMALL[cls]).learn(150, progress=False)


class Push(gym.Env):
    """Changes its action in place; `out` is how it hands over observations."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, out, bits=np.random.PCG64):
        self.out, self.bits = out, bits

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.np_random = np.random.Generator(self.bits(seed))
        self.t, self.x = 0, self.np_random.normal()
        return self.out([self.x]), {}

    def step(self, action):
        action *= 0.1
        self.x += float(action[0])
        self.t += 1
        return self.out([self.x]), -abs(self.x), False, self.t >= 30, {}


OUT = {
    "float32": np.float32,
    "float64": np.array,
    "list": list,
    "tuple": tuple,
    "torch": torch.tensor,
    "longdouble": np.longdouble,
}
BITS = [np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM]
WRAPPED = {
    "NormalizeObservation": gym.wrappers.NormalizeObservation,
    "NormalizeReward": gym.wrappers.NormalizeReward,
    "both": lambda env: gym.wrappers.NormalizeReward(gym.wrappers.NormalizeObservation(env)),
    "FrameStackObservation": lambda env: gym.wrappers.FrameStackObservation(env, 3),
    "TimeLimit": lambda env: gym.wrappers.TimeLimit(env, 20),
    "RescaleAction": lambda env: gym.wrappers.RescaleAction(env, np.float32(-2), np.float32(2)),
    "StickyAction": lambda env: gym.wrappers.StickyAction(env, 0.5),
}
RESUMED = [*((out, None, None) for out in OUT), *(("float32", bits, None) for bits in BITS)]
RESUMED += [(out, None, wrapper) for wrapper in WRAPPED for out in ("float32", "float64")]


@pytest.mark.parametrize("cls", [SAC, PPO])
@pytest.mark.parametrize("out, bits, wrapper", RESUMED)
def test_a_resume_is_exact(out, bits, wrapper, cls, tmp_path):
    def make():
        env = Push(OUT[out], bits or np.random.PCG64)
        return WRAPPED[wrapper](env) if wrapper else env

    register("fastrl-test/Push-v0", make)
    settings = {"learning_starts": 50, "batch_size": 32} if cls is SAC else {"n_steps": 43, "num_envs": 2}
    agent = cls("fastrl-test/Push-v0", seed=0, hidden=(8,), **settings).learn(215, progress=False)
    agent.save(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*new episodes")
        other = cls.load(tmp_path / "a")
    for one in (agent, other):
        one.learn(one.steps + 100, progress=False)
    for name, part in agent._parts().items():
        if hasattr(part, "vector"):
            assert np.array_equal(part.vector, other._parts()[name].vector), name
    assert agent.envs.recent == other.envs.recent and agent.envs.obs.tobytes() == other.envs.obs.tobytes()


def test_a_reward_that_does_not_repeat_itself_is_noticed(tmp_path):
    class Drifts(gym.Wrapper):
        total = 0

        def step(self, action):
            obs, reward, *rest = self.env.step(action)
            Drifts.total += 1
            return obs, reward + Drifts.total, *rest

    register("fastrl-test/Drifts-v0", lambda: Drifts(Push(np.float32)))
    PPO("fastrl-test/Drifts-v0", seed=0, n_steps=43, hidden=(4,)).learn(43, progress=False).save(tmp_path / "a")
    with pytest.warns(UserWarning, match="new episodes begin"):
        PPO.load(tmp_path / "a")


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_actions_belong_to_the_agent(mode):
    class Vec(gym.vector.VectorWrapper):
        def step(self, actions):
            result = self.env.step(actions)
            actions[:] = 0
            return result

    for wrapper in (Vec, lambda vec: vec):
        agent = SAC(wrapper(SyncVectorEnv([lambda: Push(np.float32)] * 2, autoreset_mode=mode)), hidden=(4,))
        actions = np.abs(agent.learn(60, progress=False).buffer.sample(500).action)
        assert actions.mean() > 0.3 and actions.min() > 0


class Counts(gym.Wrapper):
    closed = 0

    def close(self):
        Counts.closed += 1
        super().close()


@pytest.fixture
def counts():
    gc.collect()
    Counts.closed = 0
    register("fastrl-test/Counts-v0", lambda: Counts(gym.make("CartPole-v1")))
    return Counts


@pytest.mark.parametrize("cls", BOTH)
def test_environments_made_from_an_id_are_closed_with_the_agent(cls, counts):
    agent = cls("fastrl-test/Counts-v0", num_envs=2, **SMALL[cls]).learn(100, progress=False)
    agent.evaluate(1)
    assert counts.closed == 1
    agent.close()
    agent.close()
    assert counts.closed == 3
    agent = cls("fastrl-test/Counts-v0", num_envs=2, **SMALL[cls])
    del agent
    gc.collect()
    assert counts.closed == 5
    with cls("fastrl-test/Counts-v0", num_envs=1, **SMALL[cls]):
        assert counts.closed == 5
    assert counts.closed == 6
    with pytest.raises(InputError):
        SAC("fastrl-test/Counts-v0")  # whose actions are discrete
    gc.collect()
    assert counts.closed == 7


def test_the_users_own_environments_are_closed_by_close_alone(counts):
    env, sim = counts(gym.make("CartPole-v1")), Sim()
    for one in (env, sim):
        agent = DQN(one, hidden=(4,))
        del agent
        gc.collect()
    assert (counts.closed, sim.closed_times) == (0, 0)
    for one in (env, sim, SyncVectorEnv([lambda: counts(gym.make("CartPole-v1"))] * 2)):
        DQN(one, hidden=(4,)).close()
    assert (counts.closed, sim.closed_times) == (3, 1)


def test_environments_are_closed_when_the_process_ends():
    code = """
        import gymnasium as gym
        from fastrl.agents import DQN
        class Says(gym.Wrapper):
            def close(self): print("closed"); super().close()
        gym.register("Says-v0", lambda: Says(gym.make("CartPole-v1")))
        agent = DQN("Says-v0", num_envs=2, hidden=(4,)).learn(50, progress=False)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["closed"] * 2, run.stderr


def test_environments_that_differ_each_time_are_refused():
    class Grows(Steps):
        sizes = iter(range(1, 9))

        def __init__(self):
            self.observation_space = gym.spaces.Box(0, 1, (next(self.sizes),), np.float32)

    register("fastrl-test/Grows-v0", Grows)
    with pytest.raises(InputError, match="^fastrl-test/Grows-v0: observation_space must be the same every time"):
        Envs("fastrl-test/Grows-v0", 2, seed=0)

"""Whatever an environment hands over or does with what it is handed, agents learn from what a plain loop would see."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.agents import DQN, SAC
from fastrl.agents.envs import Envs
from fastrl.agents.policies import ActorCritic
from fastrl.agents.rollout import Rollout
from fastrl.kernels import Generator

ACTIONS = {
    "int64": gym.spaces.Discrete(3),
    "int32": gym.spaces.Discrete(3, dtype=np.int32),
    "box": gym.spaces.Box(-1, 1, (2,), np.float32),
}
EMIT = {  # how an observation is handed over, from the array that the environment keeps and goes on to change
    "array": np.copy,
    "reused": lambda x: x,
    "list": lambda x: x.tolist(),
    "tuple": lambda x: tuple(x.tolist()),
    "float64": lambda x: x.astype(np.float64),
    "torch": torch.tensor,
}
REWARDS = {"float": float, "int": int, "float32": np.float32, "0-d": np.array, "torch": torch.tensor}
FLAGS = {"bool": bool, "np.bool": np.bool_, "int": int}
INFOS = [{}, {"x": None}, {"x": float("nan")}, {"x": 2**70}, {"x": "word"}, {"final_obs": 3}, {1: {"y": []}}]


class Script(gym.Env):
    """Observation = (episode, step, noise); episodes of random lengths end by a termination, a time limit or both."""

    def __init__(self, dtype, emit, reward, flag, action, infos):
        self.observation_space = gym.spaces.Box(0, 255, (3,), dtype)
        self.action_space = ACTIONS[action]
        self.emit, self.reward, self.flag, self.infos = EMIT[emit], REWARDS[reward], FLAGS[flag], infos
        self.episode, self.obs = 0, np.zeros(3, dtype)

    def info(self):
        return dict(INFOS[self.np_random.integers(len(INFOS))]) if self.infos else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t, self.length = self.episode + 1, 0, self.np_random.integers(1, 8)
        self.obs[:] = self.episode, 0, self.np_random.integers(256)
        return self.emit(self.obs), self.info()

    def step(self, action):
        assert self.action_space.contains(action)
        if isinstance(action, np.ndarray):
            action *= 0  # its own, to do with what it likes
        self.t += 1
        self.obs[1:] = self.t, self.np_random.integers(256)
        end, how = self.t >= self.length, self.np_random.integers(3)
        terminated, truncated = end and how != 1, end and how != 0
        reward = self.reward(self.np_random.integers(-9, 9))
        return self.emit(self.obs), reward, self.flag(terminated), self.flag(truncated), self.info()


class Tape(gym.Wrapper):
    """Keeps copies of all that passes: episodes are lists of (obs, action, reward, next_obs, terminated, truncated)."""

    def __init__(self, env):
        super().__init__(env)
        self.episodes = []

    def copy(self, obs):
        return np.array(obs.numpy() if torch.is_tensor(obs) else obs, self.observation_space.dtype)

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        self.last = self.copy(obs)
        self.episodes.append([])
        return obs, info

    def step(self, action):
        sent = np.array(action)
        obs, reward, terminated, truncated, info = self.env.step(action)
        row = (self.last, sent, float(reward), self.copy(obs), bool(terminated), bool(truncated))
        self.episodes[-1].append(row)
        self.last = row[3]
        return obs, reward, terminated, truncated, info


class Reusing(VectorEnv):
    """A vector environment of one's own: all its arrays are made once, and changed in place."""

    def __init__(self, envs, mode, tell, key, flags, tensors):
        self.envs, self.mode, self.num_envs, self.key = envs, mode, len(envs), key
        self.metadata = {"autoreset_mode": mode} if tell else {}
        self.single_observation_space, self.single_action_space = envs[0].observation_space, envs[0].action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, self.num_envs)
        self.obs = np.zeros(self.observation_space.shape, self.single_observation_space.dtype)
        self.final = self.obs.copy()
        self.rewards = np.zeros(self.num_envs, np.float32)
        self.ends = np.zeros((2, self.num_envs), flags)
        self.out = torch.from_numpy if tensors else lambda x: x

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        for i in np.flatnonzero(mask):
            self.obs[i] = torch.as_tensor(self.envs[i].reset(seed=None if seed is None else seed + int(i))[0]).numpy()
        self.ends[:, mask] = 0
        mask[:] = False
        return self.out(self.obs), {}

    def step(self, actions):
        done = self.ends.any(0)
        for i, env in enumerate(self.envs):
            if self.mode == AutoresetMode.NEXT_STEP and done[i]:
                self.obs[i] = torch.as_tensor(env.reset()[0]).numpy()
                self.rewards[i], self.ends[:, i] = 77, 0
                continue
            obs, self.rewards[i], self.ends[0, i], self.ends[1, i], _ = env.step(actions[i].copy())
            self.obs[i] = torch.as_tensor(obs).numpy()
            if self.mode == AutoresetMode.SAME_STEP and self.ends[:, i].any():
                self.final[i] = self.obs[i]
                self.obs[i] = torch.as_tensor(env.reset()[0]).numpy()
        actions[:] = 0
        info = {self.key: self.out(self.final)} if self.mode == AutoresetMode.SAME_STEP else {}
        return self.out(self.obs), self.out(self.rewards), self.out(self.ends[0]), self.out(self.ends[1]), info


WRAPPERS = {
    "statistics": gym.wrappers.RecordEpisodeStatistics,
    "limit": lambda env: gym.wrappers.TimeLimit(env, 4),
    "obs": gym.wrappers.NormalizeObservation,
    "reward": gym.wrappers.NormalizeReward,
}


@st.composite
def environments(draw):
    """``(tapes, env)``: what passes, and an environment or vector environment to give to an agent."""
    dtype = draw(st.sampled_from([np.float32, np.float64, np.uint8, np.int32]))
    script = {
        "dtype": dtype,
        "emit": draw(st.sampled_from(sorted(EMIT))),
        "reward": draw(st.sampled_from(sorted(REWARDS))),
        "flag": draw(st.sampled_from(sorted(FLAGS))),
        "action": draw(st.sampled_from(sorted(ACTIONS))),
    }
    kind = draw(st.sampled_from(["single", "sync", "reusing"]))
    if kind == "sync":  # Gymnasium's takes less
        script |= {"emit": draw(st.sampled_from(["array", "reused"])), "reward": "float"}
    wrappers = draw(st.lists(st.sampled_from(["statistics", "limit"]), unique=True))
    if script["emit"] in ("array", "reused") and script["reward"] != "torch":
        wrappers += draw(st.lists(st.sampled_from(["obs", "reward"]), unique=True))
    tapes = []

    def make():
        env = Script(**script, infos=kind != "sync" and "statistics" not in wrappers)
        for name in wrappers:
            env = WRAPPERS[name](env)
        tapes.append(Tape(env))
        return tapes[-1]

    if kind == "single":
        return tapes, make()
    n, mode = draw(st.integers(1, 3)), draw(st.sampled_from(list(AutoresetMode)))
    if kind == "sync":
        vec = SyncVectorEnv([make] * n, copy=draw(st.booleans()), autoreset_mode=mode)
        # DictInfoToList takes no options, and SyncVectorEnv's own final_obs change with an array that is reused.
        reused = mode == AutoresetMode.SAME_STEP and script["emit"] == "reused" and "obs" not in wrappers
        if mode != AutoresetMode.DISABLED and not reused:
            outer = [gym.wrappers.vector.RecordEpisodeStatistics, gym.wrappers.vector.DictInfoToList]
            for wrapper in outer["statistics" in wrappers : draw(st.integers(0, 2))]:
                vec = wrapper(vec)
        return tapes, vec
    tell = mode != AutoresetMode.SAME_STEP or draw(st.booleans())
    key = draw(st.sampled_from(["final_obs", "final_observation"]))
    flags = draw(st.sampled_from([np.bool_, np.int64, np.uint8]))
    return tapes, Reusing([make() for _ in range(n)], mode, tell, key, flags, draw(st.booleans()))


def as_bytes(row):
    return b"|".join(np.asarray(x, np.float32).tobytes() for x in row)


@settings(max_examples=60, deadline=None)
@given(environments(), st.integers(0, 9))
def test_the_buffer_holds_what_a_plain_loop_sees(given, seed):
    tapes, env = given
    cls = DQN if isinstance(tapes[0].action_space, gym.spaces.Discrete) else SAC
    extra = {"epsilon_start": 1.0, "epsilon_end": 1.0} if cls is DQN else {}
    agent = cls(env, seed=seed, hidden=(4,), learning_starts=1000, **extra)
    skipped = [len(tape.episodes) - 1 for tape in tapes]  # resets without a step, before the first
    agent.learn(40 * len(tapes), progress=False)
    episodes = [episode for tape, n in zip(tapes, skipped, strict=True) for episode in tape.episodes[n:]]
    seen = [as_bytes(row) for episode in episodes for row in episode]
    assert len(agent.buffer) == len(seen)
    b = agent.buffer.sample(3000)
    columns = [b.obs, b.action, b.reward, b.next_obs, b.terminated, b.truncated]
    assert {as_bytes(row) for row in zip(*columns, strict=True)} == set(seen)


@settings(max_examples=60, deadline=None)
@given(environments(), st.integers(0, 9))
def test_a_rollout_holds_what_a_plain_loop_sees(given, seed):
    tapes, env = given
    envs = Envs(env, 1, seed)
    skipped = [len(tape.episodes) - 1 for tape in tapes]
    rollout = Rollout(envs, ActorCritic(envs.observation_space, envs.action_space, (4,)), 30)
    rollout.collect(Generator(seed))
    final = {(t, n): obs for t, n, obs in rollout.finals}
    after = np.concatenate([rollout.obs[1:], envs.obs[None].astype(np.float32)])
    for n, (tape, first) in enumerate(zip(tapes, skipped, strict=True)):
        real = np.ones(30, bool) if rollout.mask is None else rollout.mask[:, n]
        seen = [row for episode in tape.episodes[first:] for row in episode]
        assert len(seen) == real.sum()
        for t, (obs, action, reward, next_obs, terminated, truncated) in zip(np.flatnonzero(real), seen, strict=True):
            assert rollout.obs[t, n].astype(np.float32).tobytes() == obs.astype(np.float32).tobytes()
            assert np.array_equal(np.clip(rollout.action[t, n], -1, 2 if rollout.policy.discrete else 1), action)
            assert rollout.reward[t, n] == np.float32(reward)
            assert (rollout.terminated[t, n], rollout.truncated[t, n]) == (terminated, truncated)
            if truncated or not terminated:
                reached = final[t, n] if truncated else after[t, n]
                assert reached.astype(np.float32).tobytes() == next_obs.astype(np.float32).tobytes()


@settings(max_examples=60, deadline=None)
@given(environments(), st.integers(0, 9), st.integers(0, 40), st.data())
def test_what_is_driven_from_here_can_be_brought_back(given, seed, steps, data):
    _, env = given
    envs = Envs(env, 1, seed)
    if envs._loop is None:
        return
    envs.reset()  # those of a vector with SAME_STEP can be brought back from their second episode on
    rng = np.random.default_rng(seed)
    discrete = isinstance(envs.action_space, gym.spaces.Discrete)

    def drive(count):
        for _ in range(count):
            n = envs.num_envs
            yield envs.step(rng.integers(3, size=n) if discrete else rng.uniform(-1, 1, (n, 2)).astype(np.float32))

    list(drive(steps))
    state, obs, now = envs.state_dict(), envs.obs.copy(), rng.bit_generator.state
    scripts = [e.unwrapped for e in envs._loop.envs]
    numbers = [script.episode for script in scripts]
    later = [[np.copy(x) for x in t if x is not None] for t in drive(20)]
    for script, number in zip(scripts, numbers, strict=True):
        script.episode = number - 1  # what this environment carries from one to the next is not its generator's
    rng.bit_generator.state = now
    assert envs.load_state_dict(state, obs)
    for expected, got in zip(later, drive(20), strict=True):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(expected, (x for x in got if x is not None), strict=True))


@pytest.mark.parametrize("module, make", [("envpool", "make_gymnasium"), ("ale_py", "AtariVectorEnv"), ("gymnax", "")])
@pytest.mark.parametrize("mode", ["same", "next"])
def test_vector_environments_of_other_packages(module, make, mode):
    package = pytest.importorskip(module)
    if module == "gymnax":
        from gymnax.wrappers.gym import GymnaxToVectorGymWrapper

        vec = GymnaxToVectorGymWrapper(*_swap(package.make("CartPole-v1")))
    elif module == "ale_py":
        modes = {"same": AutoresetMode.SAME_STEP, "next": AutoresetMode.NEXT_STEP}
        vec = package.AtariVectorEnv("breakout", num_envs=2, autoreset_mode=modes[mode], max_num_frames_per_episode=60)
    else:
        vec = getattr(package, make)("CartPole-v1", num_envs=2)
    agent = DQN(vec, hidden=(8,), learning_starts=50).learn(400, progress=False)
    assert agent.envs.episodes > 0 and agent.n_updates > 0
    vec.close()


def _swap(made):
    env, params = made
    return env, 2, params

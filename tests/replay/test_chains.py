"""Where n-step chains are cut and what is held: against plain lists of episodes, on the compiled and the plain ring."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_worlds import RINGS, with_ring

from fastrl.replay import PrioritizedReplay, ReplayBuffer

OBS = ((2,), np.float32)
ACTION = ((), np.int64)
BOTH = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplay])
EACH_RING = pytest.mark.parametrize("ring", RINGS)


def make(ring, cls, *args, **kwargs):
    with with_ring(ring):
        return cls(*args, **kwargs)


class Episodes:
    """Per environment all episodes, each a list of (number, obs, reward, next_obs, terminated, truncated)."""

    def __init__(self, num_envs, share):
        self.share = share
        self.episodes = [[] for _ in range(num_envs)]
        self.count = [0] * num_envs
        self.cut = [True] * num_envs

    def add(self, env, item, start):
        if self.cut[env] if start is None else start:
            self.episodes[env].append([])
        number = self.count[env] * len(self.count) + env
        self.episodes[env][-1].append((number, *item))
        self.cut[env] = item[3] or item[4]
        self.count[env] += 1

    def batch(self, n, gamma):
        """Of every transition held, by its number."""
        found = {}
        for env, episodes in enumerate(self.episodes):
            for episode in episodes:
                for t, (number, obs, *_) in enumerate(episode):
                    if number // len(self.count) < self.count[env] - self.share:
                        continue
                    steps = episode[t : t + n]
                    for m, step in enumerate(steps):  # an explicit continuation after an end is none for a return
                        if step[4] or step[5]:
                            steps = steps[: m + 1]
                            break
                    reward = math.fsum(gamma**k * step[2] for k, step in enumerate(steps))
                    last = steps[-1]
                    discount = 0.0 if last[4] else gamma ** len(steps)
                    found[number] = (obs, reward, last[3], last[4], last[5], discount)
        return found


def check(batch, wanted, tolerance):
    for b, number in enumerate(batch.indices.tolist()):
        obs, reward, next_obs, terminated, truncated, discount = wanted[number]
        assert batch.obs[b].tobytes() == obs.tobytes() and batch.next_obs[b].tobytes() == next_obs.tobytes()
        np.testing.assert_allclose(batch.reward[b], reward, **tolerance("float32"))
        np.testing.assert_allclose(batch.discount[b], discount, **tolerance("float32"))
        assert (batch.terminated[b], batch.truncated[b]) == (terminated, truncated)


STEP = st.sampled_from(["goes on"] * 5 + ["differs"] * 3 + ["terminated", "truncated", "masked", "start", "stay"])


@EACH_RING
@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 14),
    steps=st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(STEP, min_size=n, max_size=n), min_size=1, max_size=50)
    ),
    n=st.integers(1, 5),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    apart=st.booleans(),
    say=st.booleans(),
)
def test_against_plain_lists_of_episodes(tolerance, ring, capacity, steps, n, gamma, apart, say):
    """With and without a word about where episodes start, whatever the bytes of the observations are."""
    num_envs = len(steps[0])
    settings = {"n_step": n, "gamma": gamma, "store_next_obs": apart, "seed": 0}
    buffers = [
        make(ring, cls, capacity, OBS, ACTION, num_envs, **settings) for cls in (PrioritizedReplay, ReplayBuffer)
    ]
    oracle = Episodes(num_envs, -(-capacity // num_envs))
    obs = np.zeros((num_envs, 2), np.float32)
    for t, events in enumerate(steps):
        reached = np.full((num_envs, 2), t % 3 + 1, np.float32)  # few different ones: equal by chance too
        flags = np.array([[event == name for event in events] for name in ("terminated", "truncated")])
        mask = np.array([event != "masked" for event in events])
        start = np.array([event == "start" for event in events]) if say else None
        reward = np.arange(num_envs) + 10.0 * t
        for buffer in buffers:
            buffer.add(obs, np.zeros(num_envs, int), reward, reached, *flags, mask, start)
        for env in range(num_envs):
            if mask[env]:
                item = (obs[env].copy(), reward[env], reached[env], *map(bool, flags[:, env]))
                oracle.add(env, item, None if start is None else bool(start[env]) or not oracle.count[env])
            else:
                oracle.cut[env] = True
        obs = np.where([[event == "differs"] for event in events], reached + np.float32(0.5), reached)
        if any(event == "stay" for event in events):
            obs = np.where([[event == "stay"] for event in events], np.float32(-0.0), obs)
        wanted = oracle.batch(n, gamma)
        assert len(buffers[0]) == len(buffers[1]) == len(wanted)
        if not wanted:
            continue
        everything = buffers[0].sample(2 * len(wanted))  # one stratum each, and none is missed
        assert set(everything.indices.tolist()) == set(wanted)
        check(everything, wanted, tolerance)
        check(buffers[1].sample(4), wanted, tolerance)
        held = buffers[1].transitions()
        assert held.indices.tolist() == sorted(wanted)
        check(held, oracle.batch(1, gamma), tolerance)
        check(buffers[0][held.indices[::2]], wanted, tolerance)


@EACH_RING
@BOTH
@pytest.mark.filterwarnings("ignore:replay.add. most observations")  # see test_who_says_nothing_is_told_once
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("apart", [False, True])
def test_a_running_normalisation_between_next_obs_and_obs_cuts_nothing(ring, cls, num_envs, apart):
    rng, mean = np.random.default_rng(0), 0.0
    buffer = make(ring, cls, 300 * num_envs, OBS, ACTION, num_envs, n_step=3, gamma=1.0, store_next_obs=apart, seed=0)
    x, no = np.zeros((num_envs, 2)), np.zeros(num_envs, bool)
    for t in range(250):
        mean += (x.mean() - mean) / (t + 1)
        after = x + rng.standard_normal(x.shape)
        buffer.add(x - mean, np.zeros(num_envs, int), np.ones(num_envs), after - mean, no, no)
        x = after
    batch = buffer[np.arange(250 * num_envs)]
    assert len(buffer) == 250 * num_envs
    assert (batch.reward[: 248 * num_envs] == 3).all()
    assert batch.reward[248 * num_envs :].tolist() == [2.0] * num_envs + [1.0] * num_envs


@EACH_RING
@BOTH
@pytest.mark.parametrize("apart", [False, True])
def test_transitions_in_random_order(ring, cls, apart):
    """Capacity for 1000 holds 1000, and nothing is chained that the caller says is not."""
    buffer = make(ring, cls, 1000, OBS, ACTION, n_step=3, gamma=1.0, store_next_obs=apart, seed=0)
    order = np.random.default_rng(0).permutation(1000)
    for t in order:
        buffer.add(np.full(2, t), 0, t, np.full(2, t + 1), False, False, episode_start=True)
    assert len(buffer) == 1000
    held = buffer.transitions()
    np.testing.assert_array_equal(held.reward, order)
    for batch in (held, buffer.sample(500), buffer[np.arange(1000)]):
        assert (batch.obs == batch.reward[:, None]).all() and (batch.next_obs == batch.obs + 1).all()


@EACH_RING
def test_who_says_nothing_is_told_once(ring):
    """Most observations differ from the next_obs before them: once, naming both ways out; and never to who says."""
    no = np.zeros(2, bool)

    def play(steps, share, **word):
        options = {"store_next_obs": True} if word.pop("apart", False) else {}
        buffer = make(ring, ReplayBuffer, 100, OBS, ACTION, 2, seed=0, **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for t in range(steps):
                shift = 0.5 if t % 10 < 10 * share else 0.0
                buffer.add(np.full((2, 2), t + shift), [0, 0], [0, 0], np.full((2, 2), t + 1), no, no, **word)
        return [str(warning.message) for warning in caught]

    (message,) = play(1000, 1.0)
    assert "episode_start=" in message and "store_next_obs=True" in message
    assert len(play(1000, 0.7)) == 1
    assert play(1000, 0.3) == play(50, 1.0) == play(1000, 1.0, apart=True) == []
    assert play(1000, 1.0, episode_start=no) == []


@EACH_RING
@BOTH
def test_new_episodes_cut_every_chain(ring, cls):
    buffer = make(ring, cls, 100, OBS, ACTION, n_step=5, gamma=1.0, seed=0)
    for t in range(6):
        if t == 3:
            buffer.new_episodes()
        buffer.add(np.full(2, t), 0, 1.0, np.full(2, t + 1), False, False)
    assert buffer[np.arange(6)].reward.tolist() == [3, 2, 1, 3, 2, 1]


@BOTH
def test_an_explicit_continuation_after_a_step_left_out(cls):
    """Environments that answer at different times: who was left out has not moved, and the caller says so."""
    no = np.zeros(2, bool)
    for start, rewards in ((None, [1, 2, 1, 1]), (no, [2, 2, 1, 1])):
        buffer = cls(100, OBS, ACTION, 2, n_step=2, gamma=1.0, seed=0)
        for mask in ([True, True], [False, True], [True, False]):
            buffer.add(np.zeros((2, 2)), [0, 0], [1, 1], np.zeros((2, 2)), no, no, np.array(mask), start)
        assert buffer.transitions().indices.tolist() == [0, 1, 2, 3]
        assert buffer[[0, 1, 2, 3]].reward.tolist() == rewards


@pytest.mark.skipif(len(RINGS) == 1, reason="there is one ring, the plain one")
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("capacity", [1, 2, 7, 30])
@pytest.mark.parametrize("apart", [False, True])
def test_both_rings_keep_the_same(tmp_path, num_envs, capacity, apart):
    """Byte for byte, in add and extend, whatever is left out, differs, ends or is cleared."""
    rng = np.random.default_rng(capacity)
    buffers = [
        make(ring, PrioritizedReplay, capacity, OBS, ACTION, num_envs, n_step=3, store_next_obs=apart, seed=0)
        for ring in RINGS
    ]
    for t in range(150):
        steps = int(rng.integers(1, 6))
        shape = (steps, num_envs)
        obs, next_obs = rng.integers(2, size=(2, *shape, 2)).astype(np.float32)
        action, reward = rng.integers(4, size=shape), rng.standard_normal(shape)
        flags = rng.random((4, *shape)) < 0.2
        mask = ~flags[2] if t % 3 else None
        start = flags[3] if t % 5 == 0 else None
        for buffer in buffers:
            if t % 2:
                buffer.extend(obs, action, reward, next_obs, *flags[:2], mask, start)
            else:
                for k in range(steps):
                    rest = (None if x is None else x[k] for x in (mask, start))
                    buffer.add(obs[k], action[k], reward[k], next_obs[k], *flags[:2, k], *rest)
            if t in (50, 51, 100):
                buffer.clear()
        if len(buffers[0]):
            a, b = (buffer.sample(8) for buffer in buffers)
            assert [x.tobytes() for x in a] == [x.tobytes() for x in b]
            stale = {buffer.update_priorities(a.indices // 2, a.reward) for buffer in buffers}
            assert len(stale) == 1
        for i, buffer in enumerate(buffers):
            buffer.save(tmp_path / str(i))
        assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()

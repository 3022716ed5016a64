"""n-step returns, against whole episodes in plain lists."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_worlds import ACTION, BOTH, EVENTS, OBS, Oracle, World, fill

from fastrl.replay import PrioritizedReplay, ReplayBuffer


class Episodes:
    """Per environment a list of episodes, each a list of items; their actions are unique numbers."""

    def __init__(self, num_envs):
        self.episodes = [[] for _ in range(num_envs)]

    def add(self, env, item):
        episodes = self.episodes[env]
        last = episodes[-1][-1] if episodes and episodes[-1] else None
        if not episodes or (last is not None and (last.terminated or last.truncated)):
            self.cut(env)
        episodes[-1].append(item)

    def cut(self, env):
        """What comes next does not continue the last item."""
        self.episodes[env].append([])

    def find(self, action):
        for episodes in self.episodes:
            for episode in episodes:
                for t, item in enumerate(episode):
                    if item.action == action:
                        return episode, t
        raise AssertionError(f"no item {action}")

    def check(self, batch, n, gamma, tolerance):
        for b, action in enumerate(np.asarray(batch.action)):
            episode, t = self.find(action)
            steps = episode[t : t + n]  # to the end of the episode, or to the newest item
            reward = math.fsum(gamma**k * item.reward for k, item in enumerate(steps))
            np.testing.assert_array_equal(batch.obs[b], steps[0].obs)
            np.testing.assert_array_equal(batch.next_obs[b], steps[-1].next_obs)
            assert batch.terminated[b] == steps[-1].terminated and batch.truncated[b] == steps[-1].truncated
            np.testing.assert_allclose(batch.reward[b], reward, **tolerance("float32"))
            discount = 0.0 if steps[-1].terminated else gamma ** len(steps)
            np.testing.assert_allclose(batch.discount[b], discount, **tolerance("float32"))
        assert batch.reward.dtype == batch.discount.dtype == np.float32


class NumberedWorld(World):
    """Its actions are unique also where all observations are equal."""

    def step(self, events):
        items = super().step(events)
        return [item._replace(action=np.int64(item.action * 10 + env)) for env, item in enumerate(items)]


@settings(max_examples=100, deadline=None)
@given(
    capacity=st.integers(1, 14),
    steps=st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(st.sampled_from(EVENTS), min_size=n, max_size=n), min_size=1, max_size=50)
    ),
    n=st.integers(1, 6),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    constant=st.booleans(),
)
def test_n_step_against_whole_episodes(tolerance, capacity, steps, n, gamma, constant):
    num_envs = len(steps[0])
    buffers = [
        cls(capacity, OBS, ACTION, num_envs, n_step=n, gamma=gamma, seed=0) for cls in (PrioritizedReplay, ReplayBuffer)
    ]
    episodes, visible, world = Episodes(num_envs), Oracle(capacity, num_envs), NumberedWorld(num_envs, constant)
    for events in steps:
        items = world.step(events)
        mask = np.array([event != "masked" for event in events])
        columns = [np.array(column) for column in zip(*items, strict=True)]
        for buffer in buffers:
            buffer.add(*columns, mask=None if mask.all() else mask)
        for env in range(num_envs):
            if mask[env]:
                episodes.add(env, items[env])  # "reset" is not told here: the chain goes on
                visible.add(env, items[env])
            else:
                episodes.cut(env)
        held = {item.action for item in visible.contents().values()}
        if held:
            everything = buffers[0].sample(2 * len(held))  # one stratum each, and none is missed
            assert set(everything.action.tolist()) == held, "a start state is missing"
            episodes.check(everything, n, gamma, tolerance)
            episodes.check(buffers[1].sample(4), n, gamma, tolerance)


def play(buffer, ends, obs=None):
    """One environment whose reward is 2^t; `ends` maps t to what happens after it."""
    obs = np.zeros(3, np.float32)
    for t in range(max(ends) + 1):
        event = ends.get(t)
        reached = np.full(3, t + 1, np.float32)
        start = ends.get(t - 1) == "reset" or None
        buffer.add(obs, t, 2.0**t, reached, event == "terminated", event == "truncated", episode_start=start)
        obs = reached if event is None else np.full(3, -t - 1, np.float32)
    return buffer


def rows(batch):
    found = zip(
        batch.action, batch.reward, batch.next_obs[:, 0], batch.terminated, batch.truncated, batch.discount, strict=True
    )
    return {int(action): tuple(float(x) for x in rest) for action, *rest in found}


@pytest.mark.parametrize("end", ["terminated", "truncated"])
@BOTH
def test_the_tail_of_every_episode_is_kept_with_its_shorter_n(cls, end):
    """CleanRL's Rainbow drops the last n - 1 start states, AgileRL crosses the end; truncation is no termination."""
    buffer = play(cls(100, OBS, ACTION, n_step=3, gamma=0.5, seed=0), {4: end, 5: None})
    found = rows(buffer.sample(300))
    is_end, flags = end == "terminated", (float(end == "terminated"), float(end == "truncated"))
    assert found == {
        0: (1 + 1 + 1, 3, 0, 0, 0.125),
        1: (2 + 2 + 2, 4, 0, 0, 0.125),
        2: (4 + 4 + 4, 5, *flags, 0 if is_end else 0.125),
        3: (8 + 8, 5, *flags, 0 if is_end else 0.25),
        4: (16, 5, *flags, 0 if is_end else 0.5),
        5: (32, 6, 0, 0, 0.5),
    }


@BOTH
def test_no_return_goes_on_into_an_episode_start(cls):
    buffer = play(cls(100, OBS, ACTION, n_step=3, gamma=1.0, seed=0), {2: "reset", 4: None})
    found = rows(buffer.sample(300))
    assert [found[t][0] for t in range(5)] == [7, 6, 4, 24, 16]
    assert [found[t][1] for t in range(5)] == [3, 3, 3, 5, 5]
    assert all(row[2:] == (0, 0, 1) for row in found.values())


@BOTH
@pytest.mark.parametrize("steps", range(5, 25))
def test_no_return_crosses_the_write_cursor(cls, steps):
    """An endless episode in a ring of 6 slots: the newest items are followed in memory by the oldest."""
    buffer = play(cls(5, OBS, ACTION, n_step=4, gamma=1.0, seed=0), {steps - 1: None})
    found = rows(buffer.sample(200))
    assert sorted(found) == list(range(steps - 5, steps))
    for t, (reward, reached, *_) in found.items():
        last = min(t + 3, steps - 1)
        assert reward == sum(2.0**k for k in range(t, last + 1)) and reached == last + 1


def test_environments_with_cursors_of_their_own(tolerance):
    """Masks and ends let the rings of a vector environment drift apart."""
    rng = np.random.default_rng(0)
    buffer, world, episodes = PrioritizedReplay(40, OBS, ACTION, 4, n_step=5, seed=0), NumberedWorld(4), Episodes(4)
    for _ in range(200):
        events = ["masked" if rng.random() < 0.2 * env else rng.choice(EVENTS) for env in range(4)]
        mask = np.array([event != "masked" for event in events])
        items = world.step(events)
        buffer.add(*(np.array(column) for column in zip(*items, strict=True)), mask=mask)
        for env in range(4):
            episodes.add(env, items[env]) if mask[env] else episodes.cut(env)
    assert len(set(buffer._store.cursor.tolist())) > 1
    batch = buffer.sample(2 * len(buffer))
    episodes.check(batch, 5, 0.99, tolerance)
    buffer.update_priorities(batch.indices, rng.random(len(batch.indices)))
    episodes.check(buffer.sample(64), 5, 0.99, tolerance)


@pytest.mark.parametrize("num_envs", [1, 3])
@BOTH
def test_n_step_changes_nothing_but_the_returns(cls, num_envs):
    """The same items with the same priorities and weights; n_step=1 only adds the discount."""
    one, three = (fill(cls(30, OBS, ACTION, num_envs, n_step=n, gamma=0.9, seed=0), 50) for n in (1, 3))
    a, b = one.sample(64), three.sample(64)
    for name in ("obs", "action", "indices", "weights"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.discount, np.where(a.terminated, 0, np.float32(0.9)))
    default = fill(cls(30, OBS, ACTION, num_envs, seed=0), 50).sample(64)
    for name in a._fields[:-1]:
        np.testing.assert_array_equal(getattr(a, name), getattr(default, name))
    assert a._fields[-1] == "discount" and default.discount.max() == np.float32(0.99)
    assert not np.array_equal(a.reward, b.reward)


@BOTH
def test_n_step_torch_tensors(cls):
    torch = pytest.importorskip("torch")
    plain = fill(cls(50, OBS, ACTION, 2, n_step=3, seed=0), 40).sample(16)
    batch = fill(cls(50, OBS, ACTION, 2, n_step=3, seed=0, device="cpu"), 40).sample(16)
    for name, tensor, array in zip(plain._fields, batch, plain, strict=True):
        assert isinstance(tensor, torch.Tensor), name
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype, name


@BOTH
def test_n_step_with_one_writer_and_several_samplers(cls):
    """With n = 3 every field of item k is made of k, and nothing tears while rows are overwritten."""
    buffer = cls(24, ((8,), np.float32), ACTION, 3, n_step=3, gamma=1.0, seed=0)
    stop, faults = threading.Event(), []

    def add(k):
        obs = np.repeat(np.arange(k, k + 3, dtype=np.float32)[:, None], 8, 1)
        end = np.full(3, k // 3 % 5 == 4)
        buffer.add(obs, obs[:, 0].astype(int), obs[:, 0], obs + 3, end, np.zeros(3, bool))

    def sampler():
        try:
            while not stop.is_set():
                batch = buffer.sample(32)
                k, m = batch.action, (batch.next_obs[:, 0] - batch.action) / 3
                assert ((m == 1) | (m == 2) | (m == 3)).all()
                assert (batch.reward == m * k + 3 * m * (m - 1) / 2).all()
                assert (batch.next_obs == batch.next_obs[:, :1]).all() and (batch.obs == k[:, None]).all()
                assert (batch.terminated == ((k // 3 + m - 1) % 5 == 4)).all()
                assert (batch.discount == ~batch.terminated).all()
                assert (k // 3 // 5 == (k // 3 + m - 1) // 5).all(), "across an episode's end"
        except BaseException as error:
            faults.append(error)

    add(0)
    threads = [threading.Thread(target=sampler) for _ in range(2)]
    for thread in threads:
        thread.start()
    for k in range(1, 1500):
        add(3 * k)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]

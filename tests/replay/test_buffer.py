"""ReplayBuffer.add and sample: against the oracle, the faults of other libraries by name, bad input, threads."""

import math
import subprocess
import sys
import threading
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.replay import PrioritizedReplay, ReplayBuffer

Item = namedtuple("Item", "obs action reward next_obs terminated truncated")

OBS = ((3,), np.float32)
ACTION = ((), np.int64)


class Oracle:
    """The last transitions of each environment, in plain lists."""

    def __init__(self, capacity, num_envs):
        self.share = -(-capacity // num_envs)
        self.items = [[] for _ in range(num_envs)]

    def add(self, env, item):
        self.items[env].append(item)

    def contents(self):
        """The transitions that can be drawn, by their reward (the tests make it unique)."""
        return {item.reward: item for items in self.items for item in items[-self.share :]}


def items_of(batch):
    return [Item(*(np.asarray(column)[i] for column in batch[:6])) for i in range(len(batch.reward))]


def assert_same(item, wanted):
    for name, a, b in zip(Item._fields, item, wanted, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def contents(buffer):
    """All transitions of a PrioritizedReplay whose priorities are equal, by their reward.

    2 n strata over n equal priorities: each transition has one stratum for itself, so none is missed.
    """
    if len(buffer) == 0:
        return {}
    return {float(item.reward): item for item in items_of(buffer.sample(2 * len(buffer)))}


@pytest.fixture
def state(tmp_path):
    """The bytes of the saved file: all that decides what a buffer will do, generator included."""

    def read(buffer):
        path = tmp_path / "state"
        buffer.save(path)
        return path.read_bytes()

    return read


def fill(buffer, n, rng=0, end_every=7):
    """Add n steps of unique transitions to a buffer over OBS and ACTION; every end_every-th step ends an episode."""
    rng = np.random.default_rng(rng)
    envs = buffer.num_envs
    obs = rng.standard_normal((envs, 3), np.float32)
    for t in range(n):
        next_obs = rng.standard_normal((envs, 3), np.float32)
        end = np.full(envs, t % end_every == end_every - 1)
        terminated = end & (rng.random(envs) < 0.5)
        buffer.add(obs, rng.integers(4, size=envs), rng.standard_normal(envs), next_obs, terminated, end & ~terminated)
        obs = rng.standard_normal((envs, 3), np.float32) if end[0] else next_obs
    return buffer


BOTH = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplay])


class World:
    """Environments whose every transition is unique, stepped the way a test says."""

    def __init__(self, num_envs, constant=False):
        self.constant = constant  # all observations equal
        self.count = 0
        self.obs = [self.fresh() for _ in range(num_envs)]

    def fresh(self):
        self.count += 1
        return np.zeros(3, np.float32) if self.constant else np.array([self.count, -self.count, np.nan], np.float32)

    def step(self, events):
        items = []
        for env, event in enumerate(events):
            item = Item(
                self.obs[env],
                np.int64(self.count),
                float(self.count),
                self.fresh(),
                event in ("terminated", "both"),
                event in ("truncated", "both"),
            )
            items.append(item)
            if event != "masked":
                self.obs[env] = item.next_obs if event == "goes on" else self.fresh()
        return items


EVENTS = ["goes on"] * 6 + ["terminated", "truncated", "both", "masked", "reset"]


@settings(max_examples=150, deadline=None)
@given(
    capacity=st.integers(1, 14),
    steps=st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(st.sampled_from(EVENTS), min_size=n, max_size=n), min_size=1, max_size=60)
    ),
    constant=st.booleans(),
)
def test_holds_exactly_what_the_oracle_holds(capacity, steps, constant):
    n = len(steps[0])
    buffer = PrioritizedReplay(capacity, OBS, ACTION, n, seed=0)
    uniform = ReplayBuffer(capacity, OBS, ACTION, n, seed=0)
    oracle, world = Oracle(capacity, n), World(n, constant)
    for events in steps:
        items = world.step(events)
        mask = np.array([event != "masked" for event in events])
        columns = [np.array(column) for column in zip(*items, strict=True)]
        for b in (buffer, uniform):
            b.add(*columns, mask=None if mask.all() else mask)
        for env in np.flatnonzero(mask):
            oracle.add(env, items[env])
        wanted = oracle.contents()
        assert len(buffer) == len(uniform) == len(wanted)
        found = contents(buffer)
        assert set(found) == set(wanted)
        for reward, item in found.items():
            assert_same(item, wanted[reward])
        if wanted:
            for item in items_of(uniform.sample(8)):
                assert_same(item, wanted[float(item.reward)])


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("num_envs", [1, 2, 3, 5])
def test_holds_capacity_transitions_while_no_episode_ends(capacity, num_envs):
    buffer = PrioritizedReplay(capacity, OBS, ACTION, num_envs, seed=0)
    world = World(num_envs)
    for t in range(3 * capacity + 3):
        items = world.step(["goes on"] * num_envs)
        buffer.add(*(np.array(column) for column in zip(*items, strict=True)))
        held = len(buffer)
        assert held == min((t + 1) * num_envs, -(-capacity // num_envs) * num_envs)
    assert capacity <= held < capacity + num_envs
    # and they are the newest: the rewards count on
    newest = max(contents(buffer))
    assert min(contents(buffer)) == newest - held + 1


def test_an_end_costs_nothing():
    buffer = PrioritizedReplay(10, OBS, ACTION, seed=0)
    world = World(1)
    for t in range(60):
        buffer.add(*world.step(["terminated" if t % 3 == 2 else "goes on"])[0])
        assert len(buffer) == min(t + 1, 10)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_one_episode_longer_than_the_ring(num_envs):
    buffer = PrioritizedReplay(3 * num_envs, OBS, ACTION, num_envs, seed=0)
    oracle, world = Oracle(3 * num_envs, num_envs), World(num_envs)
    for t in range(50):
        items = world.step(["terminated" if t == 47 else "goes on"] * num_envs)
        buffer.add(*(np.array(column) for column in zip(*items, strict=True)))
        for env, item in enumerate(items):
            oracle.add(env, item)
        assert set(contents(buffer)) == set(oracle.contents())


def test_one_path_for_one_environment_and_for_many():
    """num_envs = 1 has code of its own: a buffer of two environments must hold the same, twice."""
    one, two = PrioritizedReplay(5, OBS, ACTION, 1, seed=0), PrioritizedReplay(10, OBS, ACTION, 2, seed=0)
    world, rng = World(1), np.random.default_rng(0)
    for _ in range(100):
        (item,) = world.step([rng.choice(EVENTS[:-2])])
        one.add(*item)
        two.add(*(np.array([a, a]) for a in item))
        assert 2 * len(one) == len(two)
        found, wanted = contents(two), contents(one)
        assert set(found) == set(wanted)
        for reward, other in found.items():
            assert_same(other, wanted[reward])


# ---- faults of other libraries ------------------------------------------------------------------------------------


@BOTH
def test_next_obs_of_a_truncated_step_is_the_final_observation(cls):
    """Not the reset observation, whose value other libraries bootstrap from; and truncated is not terminated."""
    buffer = cls(100, OBS, ACTION, seed=0)
    final, reset = np.full(3, 7.0), np.full(3, -1.0)
    buffer.add(np.zeros(3), 0, 1.0, final, False, True)
    buffer.add(reset, 0, 2.0, np.ones(3), True, False)
    buffer.add(reset, 0, 3.0, np.ones(3), True, True)
    for item in items_of(buffer.sample(100)):
        if item.reward == 1.0:
            assert_same(item, Item(np.zeros(3), 0, 1.0, final, False, True))
        else:
            assert_same(item, Item(reset, 0, item.reward, np.ones(3), True, item.reward == 3.0))


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_gymnasium_autoreset(mode, num_envs):
    """The step after an end is a dummy under NEXT_STEP and must not be learned from; both modes give the same items."""
    gym = pytest.importorskip("gymnasium")

    class Count(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        action_space = gym.spaces.Discrete(3)

        def __init__(self, limit):
            self.limit, self.episode = limit, 0

        def reset(self, *, seed=None, options=None):
            self.episode, self.t = self.episode + 1, 0
            return np.array([self.episode, self.t], np.float64), {}

        def step(self, action):
            self.t += 1
            end = self.t == self.limit
            obs = np.array([self.episode, self.t], np.float64)
            return obs, float(self.t), end and self.episode % 2 == 0, end and self.episode % 2 == 1, {}

    limits = [3, 4, 5][:num_envs]
    envs = gym.vector.SyncVectorEnv(
        [lambda limit=limit: Count(limit) for limit in limits], autoreset_mode=gym.vector.AutoresetMode[mode]
    )
    buffer = PrioritizedReplay(
        1000 * num_envs, envs.single_observation_space, envs.single_action_space, num_envs, seed=0
    )
    obs, _ = envs.reset()
    ended, n_steps = np.zeros(num_envs, bool), np.zeros(num_envs, int)
    for _ in range(60):
        action = envs.action_space.sample()
        next_obs, reward, terminated, truncated, info = envs.step(action)
        reached = next_obs.copy()
        if mode == "SAME_STEP":
            for env in np.flatnonzero(terminated | truncated):
                reached[env] = info["final_obs"][env]
        mask = ~ended if mode == "NEXT_STEP" else None
        buffer.add(obs, action, reward, reached, terminated, truncated, mask)
        n_steps += True if mask is None else mask
        if mode == "NEXT_STEP":
            ended = terminated | truncated
        obs = next_obs
    assert len(buffer) == n_steps.sum()
    batch = buffer.sample(2 * len(buffer))  # all of them
    assert len(np.unique(batch.indices)) == len(buffer)
    assert (batch.obs[:, 0] == batch.next_obs[:, 0]).all(), "an item crosses the end of an episode"
    assert (batch.obs[:, 1] + 1 == batch.next_obs[:, 1]).all()
    assert (batch.reward == batch.next_obs[:, 1]).all()
    ends = batch.terminated | batch.truncated
    assert np.isin(batch.next_obs[ends, 1], limits).all()
    assert (batch.terminated[ends] == (batch.obs[ends, 0] % 2 == 0)).all()
    if num_envs == 1:
        assert (ends == (batch.next_obs[:, 1] == 3)).all()


def test_a_reset_without_a_flag_does_not_corrupt_the_last_item():
    """A loop left early, or an agent resumed with new environments, resets where no episode ended."""
    for num_envs in (1, 2):
        buffer = PrioritizedReplay(20, OBS, ACTION, num_envs, seed=0)
        batch = np.ones((num_envs, 1))
        buffer.add(
            0 * batch * [1, 1, 1], [0] * num_envs, [1] * num_envs, 5 * batch * [1, 1, 1], *[[False] * num_envs] * 2
        )
        buffer.add(
            9 * batch * [1, 1, 1], [0] * num_envs, [2] * num_envs, 6 * batch * [1, 1, 1], *[[False] * num_envs] * 2
        )
        found = contents(buffer)
        assert found[1.0].next_obs.tolist() == [5, 5, 5] and found[2.0].obs.tolist() == [9, 9, 9]


@BOTH
def test_the_same_seed_gives_the_same_batches(cls):
    def batches(seed):
        buffer = fill(cls(50, OBS, ACTION, 2, seed=seed), 40)
        return [column.tobytes() for _ in range(5) for column in buffer.sample(16)]

    assert batches(3) == batches(3)
    assert batches(3) != batches(4)


def test_manual_seed_seeds_a_buffer_without_a_seed():
    import fastrl

    drawn = []
    for _ in range(2):
        fastrl.manual_seed(5)
        drawn.append(fill(ReplayBuffer(50, OBS, ACTION), 40).sample(16).indices.tolist())
    assert drawn[0] == drawn[1]


@BOTH
def test_arrays_are_the_callers_own(cls, state):
    """Neither what was added nor what was drawn shares memory with the buffer."""
    touched, twin = (fill(cls(50, OBS, ACTION, seed=1), 40) for _ in range(2))
    for column in touched.sample(16):
        column[...] = 0
    twin.sample(16)
    obs, next_obs = np.zeros(3, np.float32), np.ones(3, np.float32)
    for buffer in (touched, twin):
        buffer.add(obs, 0, 0.0, next_obs, False, False)
    before = state(twin)
    obs[:], next_obs[:] = 9, 9
    assert state(touched) == state(twin) == before


def test_uniform_draws_are_uniform():
    buffer = fill(ReplayBuffer(40, OBS, ACTION, 2, seed=11), 100)
    n, draws = len(buffer), 200_000
    _, counts = np.unique(buffer.sample(draws).indices, return_counts=True)
    assert len(counts) == n
    chi2 = ((counts - draws / n) ** 2 / (draws / n)).sum()
    assert chi2 < n - 1 + 6 * np.sqrt(2 * (n - 1))  # the seed is fixed: no false alarm comes and goes
    batch = buffer.sample(64)
    assert batch.weights.dtype == np.float32 and (batch.weights == 1).all()


# ---- spaces and dtypes --------------------------------------------------------------------------------------------


def test_gymnasium_spaces():
    gym = pytest.importorskip("gymnasium")
    s = gym.spaces
    for obs_space, action_space in [
        (s.Box(0, 255, (2, 4, 4), np.uint8), s.Discrete(4)),
        (s.Discrete(9), s.MultiDiscrete([2, 3])),
        (s.Box(-1, 1, (), np.float64), s.MultiBinary(5)),
        (s.Box(-1, 1, (3,), np.float16), s.Box(-1, 1, (2,), np.float32)),
        (s.MultiBinary((2, 2)), s.Discrete(3, start=-1)),
    ]:
        for num_envs in (1, 3):
            buffer = ReplayBuffer(10, obs_space, action_space, num_envs, seed=0)
            rewards = {}
            for t in range(30):
                obs = np.array([obs_space.sample() for _ in range(num_envs)])
                action = np.array([action_space.sample() for _ in range(num_envs)])
                next_obs = np.array([obs_space.sample() for _ in range(num_envs)])
                reward = np.arange(num_envs) + t * num_envs
                rewards.update({r: (o, a, x) for r, o, a, x in zip(reward, obs, action, next_obs, strict=True)})
                if num_envs == 1:
                    obs, action, next_obs, reward = obs[0], action[0], next_obs[0], float(reward[0])
                no = False if num_envs == 1 else np.zeros(num_envs, np.uint8)
                buffer.add(obs, action, reward, next_obs, no, no)
            batch = buffer.sample(7)
            assert batch.obs.dtype == obs_space.dtype and batch.obs.shape == (7, *obs_space.shape)
            assert batch.next_obs.dtype == obs_space.dtype and batch.next_obs.shape == (7, *obs_space.shape)
            assert batch.action.shape == (7, *action_space.shape) and batch.action.dtype == action_space.dtype
            assert batch.reward.dtype == np.float32 and batch.reward.shape == (7,)
            assert batch.terminated.dtype == batch.truncated.dtype == np.bool_
            for o, a, r, x in zip(batch.obs, batch.action, batch.reward, batch.next_obs, strict=True):
                for got, wanted in zip((o, a, x), rewards[int(r)], strict=True):
                    np.testing.assert_array_equal(got, wanted)


def test_discrete_actions_are_int64_whatever_the_space_says():
    buffer = ReplayBuffer(4, OBS, ((), np.int32), seed=0)
    buffer.add(np.zeros(3), np.int8(3), 0, np.zeros(3), False, False)
    assert buffer.sample(1).action.dtype == np.int64


@BOTH
def test_spaces_that_are_not_one_array(cls):
    for space in (None, 3, "Box", (3, np.float32), ((3,), object), ((3,), None), ((3,), "U5"), ((2.5,), np.float32)):
        with pytest.raises(TypeError, match="obs_space must be a Box"):
            cls(10, space, ACTION)
        with pytest.raises(TypeError, match="action_space must be a Box"):
            cls(10, OBS, space)
    with pytest.raises(ValueError, match="obs_space must have no empty axis"):
        cls(10, ((3, 0), np.float32), ACTION)
    gym = pytest.importorskip("gymnasium")
    discrete = gym.spaces.Discrete(2)
    for space in (gym.spaces.Dict(a=discrete), gym.spaces.Tuple([discrete, discrete]), gym.spaces.Text(4)):
        with pytest.raises(TypeError, match="flatten a Dict or Tuple space"):
            cls(10, space, ACTION)


@BOTH
@pytest.mark.parametrize("name", ["capacity", "num_envs"])
def test_bad_sizes(cls, name):
    for value, error in ((0, ValueError), (-3, ValueError), (2.0, TypeError), ("4", TypeError), (True, TypeError)):
        arguments = {"capacity": 10, "num_envs": 2, name: value}
        with pytest.raises(error, match=f"{name} must be"):
            cls(obs_space=OBS, action_space=ACTION, **arguments)


# ---- bad input ------------------------------------------------------------------------------------------------------

GOOD = {
    "obs": np.zeros((2, 3), np.float32),
    "action": np.array([0, 1]),
    "reward": np.array([0.0, 1.0]),
    "next_obs": np.ones((2, 3), np.float32),
    "terminated": np.array([False, True]),
    "truncated": np.array([False, False]),
    "mask": np.array([True, True]),
}
BAD = [
    ("obs", np.zeros((2, 4)), ValueError, r"obs must have shape \(2, 3\), got \(2, 4\)"),
    ("obs", np.zeros(3), ValueError, "obs must have shape"),
    ("obs", np.zeros((3, 3)), ValueError, "obs must have shape"),
    ("obs", np.zeros((2, 3), complex), ValueError, "obs must have dtype float32, got complex128"),
    ("obs", None, TypeError, "obs must be numbers"),
    ("obs", "abc", TypeError, "obs must be numbers"),
    ("obs", [[1, 2, 3], [1, 2]], ValueError, "obs setting an array element"),
    ("obs", {"a": 1}, TypeError, "obs must be numbers"),
    ("next_obs", np.zeros((2, 3, 1)), ValueError, "next_obs must have shape"),
    ("action", np.array([0.0, 1.0]), ValueError, "action must have dtype int64, got float64"),
    ("action", np.array([[0], [1]]), ValueError, r"action must have shape \(2,\), got \(2, 1\)"),
    ("action", np.array([0, 2**63], np.uint64), ValueError, "action must fit in dtype int64"),
    ("reward", np.array([0.0, np.nan]), ValueError, r"reward\[1\] must be finite in float32, got nan"),
    ("reward", np.array([-np.inf, 0.0]), ValueError, r"reward\[0\] must be finite in float32, got -inf"),
    ("reward", 1.0, ValueError, "reward must have shape"),
    ("terminated", np.array([0.0, 1.0]), ValueError, "terminated must have dtype bool, got float64"),
    ("terminated", np.array([0, 2]), ValueError, "terminated must fit in dtype bool"),
    ("truncated", np.array([False]), ValueError, "truncated must have shape"),
    ("mask", np.array([True, True, True]), ValueError, "mask must have shape"),
    ("mask", np.array([0.5, 1]), ValueError, "mask must have dtype bool"),
]  # fmt: skip


@BOTH
@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_bad_items_leave_the_buffer_as_it_was(cls, state, name, value, error, message):
    buffer = fill(cls(10, OBS, ACTION, 2, seed=0), 9)
    before = state(buffer)
    with pytest.raises(error, match=f"replay.add: {message}"):
        buffer.add(**{**GOOD, name: value})
    assert state(buffer) == before
    buffer.add(**GOOD)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("obs", np.zeros(4), ValueError),
        ("obs", np.zeros((2, 3)), ValueError),
        ("action", [0, 1], ValueError),
        ("action", 1.5, ValueError),
        ("reward", np.nan, ValueError),
        ("reward", None, TypeError),
        ("terminated", "no", TypeError),
        ("truncated", 2, ValueError),
    ],
)
def test_bad_items_of_one_environment(state, name, value, error):
    buffer = fill(ReplayBuffer(10, OBS, ACTION, seed=0), 9)
    before = state(buffer)
    good = {
        "obs": np.zeros(3),
        "action": 0,
        "reward": 0,
        "next_obs": np.ones(3),
        "terminated": False,
        "truncated": False,
    }
    with pytest.raises(error, match=f"replay.add: {name}"):
        buffer.add(**{**good, name: value})
    assert state(buffer) == before


def test_a_reward_beyond_float32(state):
    buffer = fill(ReplayBuffer(10, OBS, ACTION, seed=0), 9)
    before = state(buffer)
    with pytest.raises(ValueError, match=r"reward must be finite in float32, got 1e\+39"):
        buffer.add(np.zeros(3), 0, 1e39, np.zeros(3), False, False)
    assert state(buffer) == before


def test_a_masked_dummy_may_be_nonsense():
    buffer = ReplayBuffer(10, OBS, ACTION, 2, seed=0)
    buffer.add(**{**GOOD, "reward": np.array([np.nan, 1.0]), "mask": np.array([False, True])})
    assert len(buffer) == 1
    one = ReplayBuffer(10, OBS, ACTION, seed=0)
    for mask in (False, np.array([False]), np.bool_(False)):
        one.add(np.zeros(3), 0, np.nan, np.zeros(3), False, False, mask)
    assert len(one) == 0


@BOTH
def test_sampling_nothing(cls, state):
    buffer = cls(10, OBS, ACTION, seed=0)
    before = state(buffer)
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="the buffer is empty"):
        buffer.sample(4)
    assert state(buffer) == before


@BOTH
def test_bad_batch_sizes(cls, state):
    buffer = fill(cls(10, OBS, ACTION, seed=0), 9)
    before = state(buffer)
    for value, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (None, TypeError), (True, TypeError)):
        with pytest.raises(error, match="batch_size"):
            buffer.sample(value)
    assert state(buffer) == before
    assert len(buffer.sample(np.int64(3)).reward) == 3


# ---- torch ----------------------------------------------------------------------------------------------------------


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    for device in ("cpu", torch.device("cpu")):
        plain = fill(PrioritizedReplay(50, OBS, ACTION, 2, seed=0), 40)
        buffer = fill(PrioritizedReplay(50, OBS, ACTION, 2, seed=0, device=device), 40)
        batch, wanted = buffer.sample(16), plain.sample(16)
        for name, tensor, array in zip(batch._fields, batch, wanted, strict=True):
            assert isinstance(tensor, torch.Tensor), name
            np.testing.assert_array_equal(tensor.numpy(), array)
            assert tensor.numpy().dtype == array.dtype, name
        assert batch.action.dtype == torch.int64 and batch.reward.dtype == torch.float32
        batch.obs.add_(1)  # the caller's own
        buffer.update_priorities(batch.indices, torch.ones(16, requires_grad=True, dtype=torch.bfloat16))


def test_torch_inputs():
    torch = pytest.importorskip("torch")
    buffer = ReplayBuffer(50, OBS, ACTION, 2, seed=0)
    buffer.add(torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2), torch.ones(2, 3), [False, True], [False, False])
    with pytest.raises(ValueError, match="replay.add: obs"):
        buffer.add(torch.zeros(2, 3, requires_grad=True), [0, 1], [0, 0], torch.ones(2, 3), [False] * 2, [False] * 2)
    assert len(buffer) == 2


def test_cuda(state):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="finds no CUDA device"):
            ReplayBuffer(50, OBS, ACTION, device="cuda")
        pytest.skip("needs a CUDA device")
    plain = fill(PrioritizedReplay(50, OBS, ACTION, 2, seed=0), 40)
    buffer = fill(PrioritizedReplay(50, OBS, ACTION, 2, seed=0, device="cuda"), 40)
    batches = [(buffer.sample(16), plain.sample(16)) for _ in range(100)]  # pinned blocks are used again
    steps = fill(ReplayBuffer(50, OBS, ACTION, 2, seed=0, n_step=3), 40).sample(16)
    batches.append((fill(ReplayBuffer(50, OBS, ACTION, 2, seed=0, n_step=3, device="cuda"), 40).sample(16), steps))
    for batch, wanted in batches[::-1]:
        for name, tensor, array in zip(batch._fields, batch, wanted, strict=True):
            assert tensor.is_cuda == (name != "indices")
            np.testing.assert_array_equal(tensor.cpu().numpy(), array)
    errors = torch.ones(16, device="cuda")
    buffer.update_priorities(batch.indices.cuda(), errors)
    plain.update_priorities(wanted.indices, errors.cpu())
    assert state(buffer) == state(plain)


def test_bad_devices():
    pytest.importorskip("torch")
    for device in ("nonsense", 1.5):
        with pytest.raises(ValueError, match="device must be None or a torch device"):
            ReplayBuffer(50, OBS, ACTION, device=device)


def test_importing_replay_imports_neither_torch_nor_gymnasium():
    code = "import sys, fastrl.replay; print([m for m in ('torch', 'gymnasium', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, fastrl\n"
        "b = fastrl.ReplayBuffer(9, ((3,), np.float32), ((), np.int64))\n"
        "b.add(np.zeros(3), 0, 0, np.zeros(3), False, False); b.sample(4)\n"
        "try: fastrl.ReplayBuffer(9, ((3,), np.float32), ((), np.int64), device='cpu')\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "a device needs torch: pip install" in done.stdout


# ---- priorities -----------------------------------------------------------------------------------------------------


def by_row(batch, values):
    return dict(zip(batch.indices.tolist(), np.asarray(values).tolist(), strict=True))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("normalize", ["batch", "tree"])
def test_the_law_of_prioritized_replay(tolerance, alpha, normalize):
    """P(i) = p_i / sum p with p_i = (|delta_i| + eps)^alpha, alpha once; w_i = (N P(i))^-beta / max."""
    beta, eps, rng = 0.7, 0.01, np.random.default_rng(0)
    buffer = PrioritizedReplay(
        30, OBS, ACTION, seed=2, alpha=alpha, beta=beta, beta_end=beta, eps=eps, normalize=normalize
    )
    fill(buffer, 60)
    everything = buffer.sample(2 * len(buffer))
    rows = np.unique(everything.indices)
    assert len(rows) == len(buffer)
    errors = rng.standard_normal(len(rows)).astype(np.float32)
    errors[3] = 0  # eps keeps it alive
    buffer.update_priorities(rows, errors)
    p = (np.abs(errors.astype(np.float64)) + eps) ** alpha
    probability = dict(zip(rows.tolist(), p / p.sum(), strict=True))

    draws = 100_000
    batch = buffer.sample(draws)
    drawn, counts = np.unique(batch.indices, return_counts=True)
    for row, count in zip(drawn.tolist(), counts.tolist(), strict=True):
        # stratified: a count differs from its expectation by less than 2
        assert abs(count - draws * probability[row]) < 2
    assert set(drawn) == set(rows) or draws * (p / p.sum()).min() < 2

    batch = buffer.sample(8)
    P = np.array([probability[row] for row in batch.indices.tolist()])
    w = (len(buffer) * P) ** -beta
    w /= w.max() if normalize == "batch" else ((len(buffer) * p / p.sum()) ** -beta).max()
    np.testing.assert_allclose(batch.weights, w, **tolerance("float32"))
    if normalize == "batch":
        assert batch.weights.max() == 1


def test_alpha_is_applied_once_to_new_items_too(tolerance):
    """A new item enters at the largest p, not at its power (and not at 1 when larger ones have been seen)."""
    buffer = PrioritizedReplay(100, OBS, ACTION, seed=0, alpha=0.5, eps=1e-6, beta=1.0, normalize="tree")
    fill(buffer, 3, end_every=100)
    buffer.update_priorities([0, 1, 2], [16.0, 1.0, 4.0])  # p = 4, 1, 2
    buffer.add(np.zeros(3), 0, 77.0, np.ones(3), True, False)
    batch = buffer.sample(1000)
    weight = by_row(batch, batch.weights)
    (new,) = set(weight) - {0, 1, 2}
    np.testing.assert_allclose(
        [weight[row] for row in (0, 1, 2, new)], [1 / 4, 1, 1 / 2, 1 / 4], **tolerance("float32")
    )
    # that it shrinks again does not take back the largest p seen
    buffer.update_priorities([0, new], [1.0, 1.0])
    buffer.add(np.full(3, 5.0), 0, 78.0, np.ones(3), True, False)
    batch = buffer.sample(1000)
    weight = by_row(batch, batch.weights)
    (newest,) = set(weight) - {0, 1, 2, new}
    np.testing.assert_allclose(weight[newest], 1 / 4, **tolerance("float32"))


def test_weights_follow_a_minimum_that_rises(tolerance):
    """normalize="tree": the smallest priority is that of now, not the smallest ever (tianshou)."""
    buffer = PrioritizedReplay(100, OBS, ACTION, seed=0, alpha=1.0, beta=1.0, normalize="tree")
    fill(buffer, 2, end_every=100)
    buffer.update_priorities([0, 1], [0.001, 2.0])
    assert by_row(batch := buffer.sample(50), batch.weights)[1] < 0.001
    buffer.update_priorities([0], [8.0])
    batch = buffer.sample(50)
    np.testing.assert_allclose(by_row(batch, batch.weights)[0], 0.25, **tolerance("float32"))
    np.testing.assert_allclose(by_row(batch, batch.weights)[1], 1.0, **tolerance("float32"))


def test_weights_and_sampling_exclude_the_same_rows():
    """Rows that cannot be drawn count neither in P nor in N (RLlib's weights forget its excluded tail)."""
    buffer = fill(PrioritizedReplay(20, OBS, ACTION, 2, seed=0, beta=1.0), 100, end_every=3)
    assert len(buffer) == 20 < buffer._tree.capacity
    batch = buffer.sample(2 * len(buffer))
    assert (batch.weights == 1).all() and len(np.unique(batch.indices)) == len(buffer)


def test_update_does_not_bring_back_what_was_overwritten():
    buffer = PrioritizedReplay(6, OBS, ACTION, seed=0)
    world = World(1)
    for _ in range(6):
        buffer.add(*world.step(["goes on"])[0])
    old = np.unique(buffer.sample(100).indices)
    assert len(old) == 6
    buffer.add(*world.step(["terminated"])[0])  # the oldest is gone
    held = contents(buffer)
    assert buffer.update_priorities(old, np.full(6, 3.0)) == 1
    assert len(buffer) == 6 and set(contents(buffer)) == set(held)


def test_the_largest_priority_of_a_lost_row_is_not_seen():
    buffer = fill(PrioritizedReplay(6, OBS, ACTION, seed=0, alpha=1.0), 9, end_every=100)
    assert buffer.update_priorities([2], [100.0]) == 1  # overwritten
    assert buffer._new_priority == 1.0 and len(buffer) == 6


def test_the_last_of_equal_indices_wins(tolerance):
    buffer = fill(PrioritizedReplay(6, OBS, ACTION, seed=0, alpha=1.0, beta=1.0, normalize="tree"), 2, end_every=100)
    buffer.update_priorities([0, 1, 0], [9.0, 2.0, 1.0])
    batch = buffer.sample(50)
    np.testing.assert_allclose(by_row(batch, batch.weights)[1], 0.5, **tolerance("float32"))


def test_beta_grows_with_the_transitions_added(tolerance):
    buffer = PrioritizedReplay(6, OBS, ACTION, 2, seed=0, beta=0.4, beta_end=1.0, beta_steps=10)
    betas = [buffer.beta]
    for _ in range(7):
        fill(buffer, 1)
        buffer.sample(3)
        betas.append(buffer.beta)
    np.testing.assert_allclose(betas, [0.4, 0.52, 0.64, 0.76, 0.88, 1.0, 1.0, 1.0], **tolerance("float64"))
    assert betas[-1] == 1.0
    one = PrioritizedReplay(6, OBS, ACTION, 2, seed=0, beta=0.4, beta_end=1.0, beta_steps=10)
    one.add(**{**GOOD, "mask": np.array([False, True])})  # a dummy is no step
    np.testing.assert_allclose(one.beta, 0.46, **tolerance("float64"))
    assert ReplayBuffer(6, OBS, ACTION).beta == 0


def test_extreme_errors_neither_lose_a_transition_nor_overflow():
    buffer = fill(PrioritizedReplay(6, OBS, ACTION, seed=0, alpha=3.0, eps=1e-30), 3, end_every=100)
    buffer.update_priorities([0, 1, 2], [0.0, 1e30, 1.7e308])
    assert len(buffer) == 3
    assert np.isfinite(buffer.sample(100).weights).all()


@pytest.mark.parametrize(
    ("indices", "errors", "error", "message"),
    [
        ([0, 1], [1.0, np.nan], ValueError, r"td_errors\[1\] is nan"),
        ([0, 1], [-np.inf, 1.0], ValueError, r"td_errors\[0\] is -inf"),
        ([0, 1], [1.0], ValueError, r"shape \[B\], got \(2,\) and \(1,\)"),
        ([0, 1], [[1.0], [2.0]], ValueError, r"shape \[B\]"),
        ([[0, 1]], [[1.0, 2.0]], ValueError, r"shape \[B\]"),
        ([0, 99], [1.0, 2.0], IndexError, r"indices\[1\] is 99, outside"),
        ([-1, 0], [1.0, 2.0], IndexError, r"indices\[0\] is -1, outside"),
        ([0.0, 1.0], [1.0, 2.0], ValueError, "indices must have dtype"),
        ([True, False], [1.0, 2.0], ValueError, "indices must have dtype"),
        ([0, 1], [1j, 2.0], ValueError, "td_errors must be real"),
        ([0, 1], ["a", "b"], ValueError, "td_errors must be real"),
        ([0, 1], None, ValueError, "shape"),
    ],
)
def test_bad_priorities_change_nothing(state, indices, errors, error, message):
    buffer = fill(PrioritizedReplay(10, OBS, ACTION, seed=0), 9)
    before = state(buffer)
    with pytest.raises(error, match=message):
        buffer.update_priorities(indices, errors)
    assert state(buffer) == before


def test_arguments_of_an_update_are_not_changed():
    buffer = fill(PrioritizedReplay(10, OBS, ACTION, seed=0), 9)
    rows, errors = np.array([1, 0, 1]), np.array([-1.0, 2.0, -3.0])
    for array in (rows, errors):
        array.flags.writeable = False
    buffer.update_priorities(rows, errors)
    batch = buffer.sample(16)
    before = batch.indices.copy()
    buffer.update_priorities(batch.indices, np.ones(16))
    np.testing.assert_array_equal(batch.indices, before)
    buffer.update_priorities(np.zeros(0, np.int64), np.zeros(0))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("alpha", -0.1, ValueError),
        ("alpha", np.nan, ValueError),
        ("alpha", "0.6", TypeError),
        ("beta", np.inf, ValueError),
        ("beta_end", -1, ValueError),
        ("beta_steps", 0, ValueError),
        ("beta_steps", 10.0, TypeError),
        ("eps", 0.0, ValueError),
        ("eps", None, TypeError),
        ("normalize", "max", ValueError),
        ("seed", -1, ValueError),
        ("n_step", 0, ValueError),
        ("n_step", 2.0, TypeError),
        ("n_step", True, TypeError),
        ("gamma", 1.1, ValueError),
        ("gamma", -0.1, ValueError),
        ("gamma", np.nan, ValueError),
        ("gamma", "0.9", TypeError),
    ],
)
def test_bad_hyperparameters(name, value, error):
    with pytest.raises(error, match=f"{name} must be"):
        PrioritizedReplay(10, OBS, ACTION, **{name: value})


# ---- n-step, against whole episodes in plain lists ------------------------------------------------------------------


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
    assert len(set(buffer._cursor.tolist())) > 1
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


# ---- save and load --------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("steps", [0, 1, 4, 9, 10, 11, 40])
def test_save_and_load_go_on_bit_for_bit(tmp_path, state, cls, num_envs, steps, n_step):
    def go_on(buffer):
        out = []
        for i in range(8):
            fill(buffer, 3, rng=i)
            batch = buffer.sample(16)
            out += [column.tobytes() for column in batch]
            if cls is PrioritizedReplay:
                buffer.update_priorities(batch.indices, batch.reward)
        return out

    original = fill(cls(10 * num_envs, OBS, ACTION, num_envs, n_step=n_step, seed=4), steps)
    if steps and cls is PrioritizedReplay:
        original.update_priorities(original.sample(5).indices, [0.1, 3.0, 0.0, 1e3, 7.0])
    path = tmp_path / "buffer"
    original.save(path)
    restored = fill(cls(10 * num_envs, OBS, ACTION, num_envs, n_step=n_step, seed=99), 5, rng=1)
    restored.load(str(path))
    assert state(restored) == path.read_bytes()
    assert len(restored) == len(original)
    assert go_on(restored) == go_on(original)


def test_only_what_was_written_is_saved(tmp_path):
    buffer = fill(ReplayBuffer(100_000, OBS, ACTION, seed=0), 10)
    buffer.save(tmp_path / "small")
    assert (tmp_path / "small").stat().st_size < 2000


def test_load_restores_the_default_generator(tmp_path):
    import fastrl

    fastrl.manual_seed(3)
    buffer = fill(ReplayBuffer(10, OBS, ACTION), 10)
    buffer.save(tmp_path / "buffer")
    drawn = buffer.sample(8).indices.tolist()
    buffer.load(tmp_path / "buffer")
    assert buffer.sample(8).indices.tolist() == drawn


def test_a_device_loads_what_none_has_saved(tmp_path):
    pytest.importorskip("torch")
    plain = fill(ReplayBuffer(10, OBS, ACTION, seed=0), 10)
    plain.save(tmp_path / "buffer")
    buffer = ReplayBuffer(10, OBS, ACTION, device="cpu")
    buffer.load(tmp_path / "buffer")
    np.testing.assert_array_equal(buffer.sample(8).obs.numpy(), plain.sample(8).obs)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: PrioritizedReplay(11, OBS, ACTION, 2), r"capacity 10 \(here 11\)"),
        (lambda: PrioritizedReplay(10, OBS, ACTION, 1), r"num_envs 2 \(here 1\)"),
        (lambda: PrioritizedReplay(10, ((4,), np.float32), ACTION, 2), r"obs_shape \[3\] \(here \[4\]\)"),
        (lambda: PrioritizedReplay(10, ((3,), np.float64), ACTION, 2), r"obs_dtype 'float32' \(here 'float64'\)"),
        (lambda: PrioritizedReplay(10, OBS, ((2,), np.int64), 2), r"action_shape \[\] \(here \[2\]\)"),
        (lambda: PrioritizedReplay(10, OBS, ((), np.float32), 2), "action_dtype"),
        (lambda: PrioritizedReplay(10, OBS, ACTION, 2, alpha=0.7), r"alpha 0.6 \(here 0.7\)"),
        (lambda: PrioritizedReplay(10, OBS, ACTION, 2, eps=0.1), "eps"),
        (lambda: PrioritizedReplay(10, OBS, ACTION, 2, n_step=3), r"n_step 1 \(here 3\)"),
        (lambda: PrioritizedReplay(10, OBS, ACTION, 2, gamma=0.9), r"gamma 0.99 \(here 0.9\)"),
        (lambda: ReplayBuffer(10, OBS, ACTION, 2), "class 'PrioritizedReplay' .*, alpha 0.6 "),
    ],
)
def test_load_into_another_configuration(tmp_path, state, other, difference):
    fill(PrioritizedReplay(10, OBS, ACTION, 2, seed=0), 10).save(tmp_path / "buffer")
    buffer = fill(other(), 0)
    before = state(buffer)
    with pytest.raises(ValueError, match=f"replay.load: .*buffer is of a buffer with .*{difference}"):
        buffer.load(tmp_path / "buffer")
    assert state(buffer) == before
    # the schedule of beta may change, the data do not depend on it
    PrioritizedReplay(10, OBS, ACTION, 2, beta=0.5, beta_steps=7).load(tmp_path / "buffer")


def test_a_damaged_file_is_refused(tmp_path, state):
    """Every byte flipped in turn, every length cut: a clear error, and the buffer as it was."""
    buffer = fill(PrioritizedReplay(4, OBS, ACTION, 1, seed=0), 10)
    path = tmp_path / "buffer"
    buffer.save(path)
    good = path.read_bytes()
    fill(buffer, 2)
    before = state(buffer)
    rng = np.random.default_rng(0)
    damaged = [good[:i] + bytes([good[i] ^ (1 << rng.integers(8))]) + good[i + 1 :] for i in range(len(good))]
    damaged += [good[:n] for n in range(len(good))] + [good + b"\0", b"", b"\0" * 500, good[::-1], good * 2]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"replay.load: .*buffer is (damaged|not a file|of format version)"):
            buffer.load(path)
    assert state(buffer) == before
    path.write_bytes(good)
    buffer.load(path)
    assert state(buffer) == good


def test_foreign_and_missing_files(tmp_path, state):
    buffer = fill(ReplayBuffer(4, OBS, ACTION, 1, seed=0), 10)
    before = state(buffer)
    np.savez(tmp_path / "foreign.npz", a=np.zeros(1000))
    (tmp_path / "text").write_text('{"config": {}}' * 99)
    for name in ("foreign.npz", "text"):
        with pytest.raises(ValueError, match="is not a file of a fastrl replay buffer"):
            buffer.load(tmp_path / name)
    for name, error in (("missing", FileNotFoundError), (".", OSError)):
        with pytest.raises(error):
            buffer.load(tmp_path / name)
    with pytest.raises(OSError, match="nowhere"):
        buffer.save(tmp_path / "nowhere" / "buffer")
    assert state(buffer) == before


# ---- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 3])
def test_one_writer_and_several_samplers_never_see_half_a_transition(num_envs):
    """Every field of item k is made of k; the ring is small, so that rows are overwritten all the time."""
    width = 64
    buffer = PrioritizedReplay(8 * num_envs, ((width,), np.float32), ACTION, num_envs, seed=0)
    stop, faults = threading.Event(), []

    def add(k):
        obs = np.repeat(np.arange(k, k + num_envs, dtype=np.float32)[:, None], width, 1)
        end = np.full(num_envs, k // num_envs % 5 == 4)
        buffer.add(obs, obs[:, 0].astype(int), obs[:, 0], obs + num_envs, end, ~end & (obs[:, 0] % 11 == 0))

    def sampler(seed):
        rng = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                batch = buffer.sample(32)
                k = batch.reward
                assert (batch.obs == k[:, None]).all() and (batch.next_obs == k[:, None] + num_envs).all()
                assert (batch.action == k).all() and (batch.terminated == (k // num_envs % 5 == 4)).all()
                buffer.update_priorities(batch.indices, rng.random(32))
        except BaseException as error:
            faults.append(error)

    add(0)
    threads = [threading.Thread(target=sampler, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for k in range(1, 1500):
        add(k * num_envs)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]
    assert 8 * num_envs * 0.7 < len(buffer) <= 8 * num_envs

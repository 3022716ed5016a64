"""Many transitions in one call, reading out, clearing, stale indices, and what is refused."""

import sys
import warnings

import numpy as np
import pytest

from fastrl.replay import PrioritizedReplay, ReplayBuffer

OBS = ((2,), np.float32)
ACTION = ((), np.int64)
BOTH = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplay])


def columns(steps, *lead, seed=0):
    """Arguments of `extend`, in which the observations go on."""
    rng = np.random.default_rng(seed)
    obs = rng.standard_normal((steps + 1, *lead, 2)).astype(np.float32)
    ends = rng.random((2, steps, *lead)) < 0.2
    return [obs[:-1], rng.integers(4, size=(steps, *lead)), rng.random((steps, *lead)), obs[1:], *ends]


def saved(buffer, path):
    buffer.save(path)
    return path.read_bytes()


# ---- extend ---------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("steps", [0, 1, 5, 40, 20_000])
def test_extend_is_add_many_times(tmp_path, cls, num_envs, steps):
    one, many = (cls(60, OBS, ACTION, num_envs, n_step=3, seed=0) for _ in range(2))
    lead = (num_envs,) if num_envs > 1 else ()
    items = columns(steps, *lead)
    rng = np.random.default_rng(1)
    for mask, start in ((None, None), rng.random((2, steps, *lead)) < 0.5):
        for t in range(max(0, steps - 200) if mask is None else 0, min(steps, 200) if mask is not None else steps):
            rest = (None if x is None else x[t] for x in (mask, start))
            one.add(*(column[t] for column in items), *rest)
        if mask is None:
            many.extend(*(column[-200:] for column in items))
        else:
            many.extend(*(column[:200] for column in items), mask[:200], start[:200])
        assert saved(one, tmp_path / "one") == saved(many, tmp_path / "many")
    if steps:
        many.extend(*items)
        assert len(many) <= 60 and np.float32(items[2].reshape(-1)[-1]) in many.transitions().reward


def test_extend_of_an_offline_dataset_with_the_environments_axis():
    buffer = ReplayBuffer(10, OBS, ACTION, seed=0)
    buffer.extend(*columns(6, 1))
    buffer.extend(*columns(6))
    assert len(buffer) == 10


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": np.zeros((5, 3))}, r"obs must have shape \(5, 2\), got \(5, 3\)"),
        ({"action": np.zeros(4, int)}, r"action must have shape \(5,\), got \(4,\)"),
        ({"action": np.zeros(5)}, "action must have dtype int64"),
        ({"reward": np.array([0, 1, np.nan, 3, 4])}, r"reward\[2\] must be finite in float32, got nan"),
        ({"next_obs": np.full((5, 2), 1e300)}, r"next_obs must fit in dtype float32, got 1e\+300"),
        ({"truncated": False}, r"truncated must have shape \[K\] or \[K, num_envs\], got \(\)"),
        ({"mask": np.ones(6, bool)}, "mask must have shape"),
        ({"episode_start": np.ones(5)}, "episode_start must have dtype bool"),
    ],
)
def test_a_bad_extend_changes_nothing(tmp_path, cls, change, message):
    names = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
    buffer = cls(10, OBS, ACTION, seed=0)
    buffer.extend(*columns(7))
    before = saved(buffer, tmp_path / "a")
    with pytest.raises(ValueError, match=f"replay.extend: {message}"):
        buffer.extend(**{**dict(zip(names, columns(5), strict=True)), **change})
    assert saved(buffer, tmp_path / "a") == before


# ---- read-out, clear, stale indices ---------------------------------------------------------------------------------


@BOTH
def test_transitions_go_into_another_buffer(cls):
    buffer = cls(30, OBS, ACTION, n_step=3, seed=0)
    buffer.extend(*columns(50))
    held = buffer.transitions()
    assert held.indices.tolist() == list(range(20, 50)) and (held.weights == 1).all()
    other = ReplayBuffer(30, OBS, ACTION, n_step=3, seed=0)
    other.extend(*held[:6])
    for mine, its in zip(other[np.arange(30)][:6], buffer[held.indices][:6], strict=True):
        np.testing.assert_array_equal(mine, its)
    assert len(cls(30, OBS, ACTION).transitions().reward) == 0


@BOTH
@pytest.mark.parametrize("num_envs", [1, 3])
def test_by_number(cls, num_envs):
    buffer = cls(6 * num_envs, OBS, ACTION, num_envs, n_step=2, seed=0)
    buffer.extend(*columns(10, *([num_envs] if num_envs > 1 else [])))
    batch = buffer.sample(32)
    for drawn, read in zip(batch, buffer[batch.indices], strict=True):
        np.testing.assert_array_equal(drawn, read)
    assert len(buffer[[]].reward) == 0
    for bad, message in (
        ([5 * num_envs, num_envs], rf"indices\[1\] is {num_envs}, a transition that is not held any more"),
        ([10 * num_envs], rf"indices\[0\] is {10 * num_envs}, outside the transitions added so far"),
        ([-1], r"indices\[0\] is -1, outside"),
    ):
        with pytest.raises(IndexError, match=message):
            buffer[bad]
    with pytest.raises(ValueError, match=r"indices must have shape \[B\], got \(\)"):
        buffer[5]
    with pytest.raises(TypeError):
        iter(buffer)


@BOTH
@pytest.mark.parametrize("num_envs", [1, 2])
def test_clear(tmp_path, cls, num_envs):
    buffer = cls(10 * num_envs, OBS, ACTION, num_envs, n_step=3, seed=0)
    lead = (num_envs,) if num_envs > 1 else ()
    buffer.extend(*columns(17, *lead))
    old = buffer.sample(8).indices
    beta = buffer.beta
    buffer.clear()
    assert len(buffer) == 0 and len(buffer.transitions().reward) == 0 and buffer.beta == beta
    with pytest.raises(ValueError, match="the buffer is empty"):
        buffer.sample(1)
    if cls is PrioritizedReplay:
        assert buffer.update_priorities(old, np.full(8, 9.0)) == 8
    with pytest.raises(IndexError, match="not held any more"):
        buffer[old]
    items = columns(4, *lead, seed=5)
    buffer.extend(*items)
    fresh = cls(10 * num_envs, OBS, ACTION, num_envs, n_step=3, seed=0)
    fresh.extend(*items)
    for name, a, b in zip(fresh.transitions()._fields, buffer.transitions(), fresh.transitions(), strict=True):
        np.testing.assert_array_equal(a, b + 17 * num_envs if name == "indices" else b)
    if cls is PrioritizedReplay:
        assert buffer.update_priorities(old, np.full(8, 9.0)) == 8
        assert (buffer.sample(50).weights == 1).all()
    restored = cls(10 * num_envs, OBS, ACTION, num_envs, n_step=3)
    buffer.save(tmp_path / "cleared")
    restored.load(tmp_path / "cleared")
    for a, b in zip(buffer.sample(50), restored.sample(50), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_stale_priority_goes_to_nobody(num_envs):
    """A batch drawn before its rows were overwritten: other libraries give its errors to the newer transitions."""
    buffer = PrioritizedReplay(8 * num_envs, OBS, ACTION, num_envs, seed=0, alpha=1.0, eps=0.5, beta=1.0)
    lead = (num_envs,) if num_envs > 1 else ()
    buffer.extend(*columns(8, *lead))
    batch = buffer.transitions()
    buffer.extend(*columns(3, *lead, seed=1))
    errors = np.zeros(8 * num_envs)
    errors[: 3 * num_envs] = 99.5  # of those overwritten
    assert buffer.update_priorities(batch.indices, errors) == 3 * num_envs
    drawn = buffer.sample(2000)
    new = drawn.indices >= 8 * num_envs
    np.testing.assert_array_equal(drawn.weights, np.where(new, np.float32(0.5), np.float32(1)))
    buffer.extend(*columns(1, *lead))
    assert buffer._new_priority == 1.0  # the 100 was seen by nobody
    with pytest.raises(ValueError, match=r"td_errors\[4\] is nan"):
        buffer.update_priorities(batch.indices, np.where(np.arange(8 * num_envs) == 4, np.nan, 1))
    assert buffer.update_priorities(buffer.sample(4).indices, np.ones(4)) == 0


# ---- what is refused, and how ---------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize(("dtype", "value"), [(np.float16, 1e6), (np.float16, 70000), (np.float32, -1e300)])
def test_observations_that_overflow(cls, num_envs, dtype, value):
    """As for rewards; an infinity of the caller's own is stored."""
    buffer = cls(10, ((2,), dtype), ((2,), dtype), num_envs, seed=0)
    good = {name: np.zeros((num_envs, 2)) for name in ("obs", "action", "next_obs")}
    flags = {name: np.zeros(num_envs, bool) for name in ("terminated", "truncated")}
    for name in good:
        bad = np.zeros((num_envs, 2), type(value))
        bad[-1, 1] = value
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=f"replay.add: {name} must fit in dtype {np.dtype(dtype)}, got"):
                buffer.add(**{**good, name: bad}, reward=np.zeros(num_envs), **flags)
    assert len(buffer) == 0
    buffer.add(**{**good, "obs": np.full((num_envs, 2), np.inf)}, reward=np.zeros(num_envs), **flags)
    assert np.isinf(buffer.sample(1).obs).all()


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("action_space", [ACTION, ((2,), np.float32)])
def test_the_order_of_other_libraries(num_envs, action_space):
    """obs, next_obs, action, reward, done, infos, also where an action looks like an observation."""
    buffer = ReplayBuffer(8, OBS, action_space, num_envs, seed=0)
    obs = np.zeros((num_envs, 2), np.float32)
    action, reward, done = (
        np.zeros((num_envs, *action_space[0]), action_space[1]),
        np.ones(num_envs),
        np.zeros(num_envs, bool),
    )
    for lead in {num_envs: [slice(None)], 1: [slice(None), 0]}[num_envs]:
        with pytest.raises(ValueError, match="the order is obs, action, reward, next_obs.*: name the arguments"):
            buffer.add(*(x[lead] for x in (obs, obs, action, reward, done)), [{}] * num_envs)
    assert len(buffer) == 0
    buffer.add(next_obs=obs, obs=obs, reward=reward, action=action, truncated=done, terminated=done)
    with pytest.raises(ValueError) as caught:
        buffer.add(obs, action, reward[:0], obs, done, done)
    assert "the order" not in str(caught.value)


def test_sizes_that_cannot_be():
    with pytest.raises(
        ValueError, match=r"replay: capacity must be at most 2147483645 with num_envs=1, got 2147483648"
    ):
        ReplayBuffer(2**31, OBS, ACTION)
    with pytest.raises(ValueError, match=r"replay: capacity must be at most .* with num_envs=1000, got 2147483000"):
        PrioritizedReplay(2147483000, OBS, ACTION, 1000)
    with pytest.raises(ValueError, match=r"replay: num_envs must be at most 715827882, got 1180591620717411303424"):
        ReplayBuffer(20, OBS, ACTION, 2**70)
    with pytest.raises(ValueError, match=r"replay: capacity must be at most 2147483642 with num_envs=1, got"):
        ReplayBuffer(2**31, ((4,), np.uint8), ACTION, frame_stack=4)
    for name, spaces in (
        ("obs_space", (((1,) * 16, np.float32), ACTION)),
        ("action_space", (OBS, ((1,) * 16, np.float32))),
    ):
        with pytest.raises(ValueError, match=f"replay: {name} must have at most 15 axes, got 16"):
            ReplayBuffer(4, *spaces)
    buffer = ReplayBuffer(4, ((1,) * 15, np.float32), ((1,) * 15, np.int8), seed=0)
    buffer.add(np.zeros((1,) * 15), np.zeros((1,) * 15, np.int8), 0, np.zeros((1,) * 15), False, False)
    assert buffer.sample(3).obs.shape == (3, *(1,) * 15)
    for value in (1, None, "yes"):
        with pytest.raises(TypeError, match="store_next_obs must be a bool"):
            ReplayBuffer(4, OBS, ACTION, store_next_obs=value)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given out before it is used only on Linux")
def test_more_than_the_memory_of_this_machine(monkeypatch):
    """It fills as it is used: a warning with the sum, and an error where there is no room even for the promise."""
    names = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", lambda name: names[name])
    with pytest.warns(
        UserWarning, match=r"replay: 1002 rows of 8000 \(observations\) \+ 8 \(action\) \+ 20 bytes take 0.0 GiB"
    ):
        ReplayBuffer(1000, ((1000,), np.float64), ACTION)
    with pytest.warns(UserWarning, match="rows of 16000"):
        ReplayBuffer(1000, ((1000,), np.float64), ACTION, store_next_obs=True)
    with pytest.warns(UserWarning), pytest.raises(MemoryError, match="replay: 102 rows of .* more than there is"):
        ReplayBuffer(100, ((2**30, 2**15), np.float64), ACTION)


def test_actions_are_stored_as_they_are():
    s = pytest.importorskip("gymnasium").spaces
    for space in (
        s.MultiDiscrete([3, 4], np.int32),
        s.MultiDiscrete([[3, 4], [5, 6]]),
        s.MultiBinary(3),
        s.MultiBinary([2, 2]),
        s.Discrete(5, start=-2),
        s.Discrete(5, start=7),
    ):
        space.seed(0)
        for num_envs in (1, 2):
            buffer = ReplayBuffer(20, s.Discrete(9), space, num_envs, seed=0)
            actions = [np.stack([space.sample() for _ in range(num_envs)]) for _ in range(10)]
            for t, action in enumerate(actions):
                no = np.zeros(num_envs, bool)
                buffer.add(np.full(num_envs, t % 9), action, np.zeros(num_envs), np.full(num_envs, t % 9), no, no)
            held = buffer.transitions()
            assert held.action.dtype == (np.int64 if space.shape == () else space.dtype)
            np.testing.assert_array_equal(held.action, np.concatenate(actions))
            if num_envs == 1:
                buffer.add(0, space.sample(), 0.5, 1, False, np.bool_(True))
                assert len(buffer) == 11


def test_every_way_of_giving_one_transition():
    """What needs no conversion takes a short cut in compiled code: it must store what the other way stores."""
    buffer = ReplayBuffer(200, OBS, ACTION, seed=0)
    wanted = []
    a = np.arange(2, dtype=np.float32)
    obs = [
        a,
        a[None],
        a.astype(np.float64),
        a.astype(">f4"),
        np.arange(4, dtype=np.float32)[::2] / 2,
        [0, 1],
        a.astype(np.int8),
    ]
    actions = [3, np.int64(3), np.int32(3), np.array(3), np.array([3]), np.array([3], np.uint8), np.array(3, ">i8")]
    rewards = [
        2.5,
        np.float64(2.5),
        np.float32(2.5),
        np.array(2.5),
        np.array([2.5], np.float32),
        np.array([2.5], ">f8"),
        [2.5],
    ]
    flags = [True, np.bool_(True), np.array(True), np.array([True]), 1, np.uint8(1), [True]]
    for i in range(7):
        for args in (
            (obs[i], 3, 2.5, a, True, False),
            (a, actions[i], 2.5, obs[i], True, False),
            (a, 3, rewards[i], a, True, False),
            (a, 3, 2.5, a, flags[i], False),
            (a, 3, 2.5, a, True, False, flags[i]),
            (a, 3, 2.5, a, True, False, None, flags[i]),
        ):
            buffer.add(*args)
            wanted.append(args)
    held = buffer.transitions()
    assert len(held.reward) == len(wanted)
    assert (held.obs == a).all() and (held.next_obs == a).all() and (held.action == 3).all()
    assert (held.reward == 2.5).all() and held.terminated.all() and not held.truncated.any()
    for bad in (2**63, -(2**63) - 1):
        with pytest.raises((ValueError, TypeError), match="replay.add: action"):
            buffer.add(a, bad, 0.0, a, False, False)
    with pytest.raises(ValueError, match="reward must be finite"):
        buffer.add(a, 0, 1e39, a, False, False)


@BOTH
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("method", ["add", "extend"])
def test_ctrl_c_between_the_ring_and_the_tree(tmp_path, monkeypatch, cls, num_envs, method):
    """What is held can be drawn and nothing else, and a file of it is read."""
    lead = (num_envs,) if num_envs > 1 else ()
    buffer = cls(10 * num_envs, OBS, ACTION, num_envs, seed=0)
    buffer.extend(*columns(17, *lead))
    with monkeypatch.context() as patch:
        patch.setattr(buffer, "_ring", Interrupting(buffer._ring))
        with pytest.raises(KeyboardInterrupt):
            getattr(buffer, method)(*(c if method == "extend" else c[0] for c in columns(1, *lead)))
    assert len(buffer) == 10 * num_envs
    assert (
        set(buffer.sample(500).indices) <= set(buffer.transitions().indices) == set(range(8 * num_envs, 18 * num_envs))
    )
    buffer.save(tmp_path / "file")
    other = cls(10 * num_envs, OBS, ACTION, num_envs)
    other.load(tmp_path / "file")
    buffer.add(*(c[0] for c in columns(1, *lead)))
    assert len(buffer) == len(other) == 10 * num_envs


class Interrupting:
    """A ring that is interrupted when it has done its work."""

    def __init__(self, ring):
        self._ring = ring

    def try_add(self, *args):
        if (written := self._ring.try_add(*args)) is None:  # left to `write`
            return written
        raise KeyboardInterrupt

    def write(self, *args):
        self._ring.write(*args)
        raise KeyboardInterrupt

    def __getattr__(self, name):
        return getattr(self._ring, name)

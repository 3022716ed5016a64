"""Dict and Tuple observations and actions: what comes back, on which devices, and what is refused."""

import numpy as np
import pytest

from fastrl.replay import PrioritizedReplay, ReplayBuffer

BOTH = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplay])
ROBOT = {"camera": ((4, 5), np.uint8), "joints": ((3,), np.float32), "gripper": ((), np.bool_)}
ACTION = ((), np.int64)


def robot(num_envs, t):
    """An observation of each environment, in another order of the keys."""
    rng = np.random.default_rng(t)
    return {
        "joints": rng.standard_normal((num_envs, 3)).astype(np.float32),
        "gripper": rng.random(num_envs) < 0.5,
        "camera": rng.integers(256, size=(num_envs, 4, 5), dtype=np.uint8),
    }


def play(buffer, steps):
    n = buffer.num_envs
    for t in range(steps):
        ends = np.full(n, t % 7 == 6)
        buffer.add(robot(n, t), np.full(n, t), np.ones(n), robot(n, t + 1), ends, np.zeros(n, bool))
    return buffer


@BOTH
@pytest.mark.parametrize("num_envs", [1, 3])
def test_dicts_come_back(cls, num_envs):
    buffer = play(cls(10 * num_envs, ROBOT, ACTION, num_envs, n_step=2, seed=0), 25)
    batch = buffer.sample(50)
    assert list(batch.obs) == list(batch.next_obs) == list(ROBOT)
    for b, (t, number) in enumerate(zip(batch.action.tolist(), batch.indices.tolist(), strict=True)):
        reached = t + (1 if t % 7 == 6 or t == 24 else 2)
        for key, (shape, dtype) in ROBOT.items():
            for got, when in ((batch.obs[key], t), (batch.next_obs[key], reached)):
                assert got.dtype == dtype and got.shape == (50, *shape) and got.flags.c_contiguous
                np.testing.assert_array_equal(got[b], robot(num_envs, when)[key][number % num_envs])
    assert "camera" in repr(buffer) and "uint8[4, 5]" in repr(buffer)


@BOTH
def test_through_a_vector_environment(cls):
    """Nested spaces of Gymnasium, and actions that are a Dict."""
    gym = pytest.importorskip("gymnasium")
    s = gym.spaces
    obs_space = s.Dict(
        image=s.Box(0, 255, (3, 3), np.uint8),
        rest=s.Tuple([s.Discrete(5, start=-2), s.Dict(m=s.MultiBinary(4), d=s.MultiDiscrete([3, 4], np.int32))]),
    )
    action_space = s.Dict(move=s.Box(-1, 1, (2,), np.float32), gear=s.Discrete(4))
    obs_space.seed(0), action_space.seed(0)
    buffer = cls(20, obs_space, action_space, 2, seed=0)
    seen = [gym.vector.utils.batch_space(obs_space, 2).sample() for _ in range(11)]
    actions = [gym.vector.utils.batch_space(action_space, 2).sample() for _ in range(10)]
    no = np.zeros(2, bool)
    for t in range(10):
        buffer.add(seen[t], actions[t], no.astype(float), seen[t + 1], no, no)
    held = buffer.transitions()

    def same(got, wanted):
        if isinstance(got, dict):
            assert set(got) == set(wanted[0])
            return all(same(got[key], [w[key] for w in wanted]) for key in got)
        if isinstance(got, tuple):
            return all(same(part, [w[i] for w in wanted]) for i, part in enumerate(got))
        return np.array_equal(got, np.concatenate(wanted))

    assert same(held.obs, seen[:10]) and same(held.next_obs, seen[1:]) and same(held.action, actions)
    assert held.obs["rest"][1]["d"].dtype == np.int32 and held.action["gear"].dtype == np.int64


@BOTH
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda o: o.pop("joints"), TypeError, r"must be a dict with keys \['camera', .*\], got keys \['camera', 'g"),
        (lambda o: o.update(x=1), TypeError, "must be a dict with keys"),
        (
            lambda o: o.update(joints=np.zeros((2, 4))),
            ValueError,
            r"\['joints'\] must have shape \(2, 3\), got \(2, 4\)",
        ),
        (lambda o: o.update(camera=np.full((2, 4, 5), 256)), ValueError, r"\['camera'\] must fit in dtype uint8"),
        (lambda o: o.update(joints=np.full((2, 3), 1e300)), ValueError, r"\['joints'\] must fit in dtype float32"),
        (lambda o: o.update(gripper=np.zeros(2)), ValueError, r"\['gripper'\] must have dtype bool, got float64"),
        (
            lambda o: o.update(gripper=np.ma.masked_array([0, 1])),
            TypeError,
            r"\['gripper'\] must not be a masked array",
        ),
    ],
)
def test_bad_dicts_change_nothing(cls, change, error, message, state):
    buffer = play(cls(10, ROBOT, ACTION, 2, seed=0), 4)
    before = state(buffer)
    for name in ("obs", "next_obs"):
        arguments = {"obs": robot(2, 9), "next_obs": robot(2, 10)}
        change(arguments[name])
        with pytest.raises(error, match=f"replay.add: {name} ?{message}"):
            buffer.add(
                action=np.zeros(2, int), reward=np.zeros(2), terminated=np.zeros(2, bool), truncated=np.zeros(2, bool),
                **arguments,
            )  # fmt: skip
    with pytest.raises(TypeError, match="replay.add: obs must be a dict with keys .*, got ndarray"):
        buffer.add(np.zeros((2, 3)), np.zeros(2, int), np.zeros(2), robot(2, 0), np.zeros(2, bool), np.zeros(2, bool))
    assert state(buffer) == before


def test_files_of_other_dicts_are_refused(tmp_path):
    play(ReplayBuffer(10, ROBOT, ACTION, 2, seed=0), 4).save(tmp_path / "file")
    for change in ({"joints": ((3,), np.float64)}, {"more": ((), np.int8)}, {"joints": ((4,), np.float32)}):
        other = ReplayBuffer(10, {**ROBOT, **change}, ACTION, 2, seed=0)
        with pytest.raises(ValueError, match="replay.load: .* is of a buffer with obs_"):
            other.load(tmp_path / "file")
        assert len(other) == 0


def test_torch_tensors_of_dicts():
    torch = pytest.importorskip("torch")
    plain, buffer = (play(ReplayBuffer(10, ROBOT, ACTION, 2, seed=0, device=d), 8) for d in (None, "cpu"))
    batch, wanted = buffer.sample(16), plain.sample(16)
    for key, (shape, _) in ROBOT.items():
        assert isinstance(batch.obs[key], torch.Tensor) and batch.obs[key].shape == (16, *shape)
        np.testing.assert_array_equal(batch.obs[key].numpy(), wanted.obs[key])
        np.testing.assert_array_equal(batch.next_obs[key].numpy(), wanted.next_obs[key])
    with pytest.raises(TypeError):
        ReplayBuffer(10, {"a": ((2,), np.longdouble)}, ACTION, device="cpu")


@BOTH
def test_every_way_of_giving_a_dict(cls):
    """What needs no conversion is packed in fewer steps: the same must be stored."""
    space = {"x": ((2,), np.float32), "n": ((), np.int64)}
    good = {"x": np.array([1, 2], np.float32), "n": np.array(3)}
    ways = [
        good,
        {"n": np.int64(3), "x": good["x"]},
        {"n": 3, "x": [1, 2]},
        {"n": np.array([3]), "x": good["x"][None]},
        {"n": np.array(3, np.int32), "x": good["x"].astype(">f4")},
        {"n": np.array(3), "x": np.array([1, 0, 2, 0], np.float32)[::2]},
        {"n": np.array(3), "x": good["x"].astype(np.float64)},
    ]
    for stacked in (False, True):
        frames = 2 if stacked else 1
        lead = (frames,) if stacked else ()
        spaces = {key: ((*lead, *shape), dtype) for key, (shape, dtype) in space.items()}
        buffer = cls(50, spaces, space, frame_stack=frames, seed=0)
        for way in ways[:3] if stacked else ways:
            obs = {key: np.stack([value] * 2) if stacked else value for key, value in way.items()}
            buffer.add(obs, way, 1.0, obs, False, False)
        held = buffer.transitions()
        for found in (held.obs, held.next_obs, held.action):
            assert (found["x"] == good["x"]).all() and (found["n"] == 3).all() and len(found["n"]) == len(held.reward)

"""Minari datasets and saved buffers as buffers."""

from types import SimpleNamespace

import numpy as np
import pytest

from fastrl.replay import PrioritizedReplay, ReplayBuffer, SequenceReplay, from_minari, from_saved


def episode(i, steps, terminated):
    rng = np.random.default_rng(i)
    ends = np.arange(steps) == steps - 1
    return SimpleNamespace(
        id=i,
        observations={
            "a": rng.standard_normal((steps + 1, 2)).astype(np.float32),
            "b": (np.arange(steps + 1) + 100 * i,),
        },
        actions=rng.integers(3, size=steps),
        rewards=rng.standard_normal(steps),
        terminations=ends & terminated,
        truncations=np.zeros(steps, bool),  # some datasets have episodes without an end
    )


class Dataset:
    """What is used of a `minari.MinariDataset`."""

    action_space = ((), np.int64)

    def __init__(self, episodes):
        gym = pytest.importorskip("gymnasium")
        s = gym.spaces
        self.observation_space = s.Dict(a=s.Box(-9, 9, (2,), np.float32), b=s.Tuple([s.Discrete(1000)]))
        self.episodes, self.total_steps = episodes, sum(len(e.rewards) for e in episodes)

    def iterate_episodes(self):
        return iter(self.episodes)


@pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplay])
def test_every_transition_of_every_episode(cls):
    episodes = [episode(0, 4, True), episode(1, 1, False), episode(2, 6, False)]
    buffer = from_minari(Dataset(episodes), cls, n_step=3, gamma=1.0, seed=0)
    assert type(buffer) is cls and len(buffer) == buffer.capacity == 11
    held, n_step = buffer.transitions(), buffer[np.arange(11)]
    k = 0
    for e in episodes:
        for t in range(len(e.rewards)):
            for key in ("obs", "next_obs"):
                at = t + (key == "next_obs")
                np.testing.assert_array_equal(getattr(held, key)["a"][k], e.observations["a"][at])
                assert getattr(held, key)["b"][0][k] == e.observations["b"][0][at]
            assert held.action[k] == e.actions[t] and held.terminated[k] == e.terminations[t]
            assert held.reward[k] == np.float32(e.rewards[t])
            np.testing.assert_allclose(n_step.reward[k], e.rewards[t : t + 3].sum(), rtol=1e-5, atol=1e-6)
            k += 1
    assert len(from_minari(Dataset(episodes), capacity=5)) == 5


def test_bad_datasets():
    with pytest.raises(ValueError, match="dataset must have a step, got none"):
        from_minari(Dataset([]))
    short = episode(3, 4, True)
    short.observations["b"] = (short.observations["b"][0][:-1],)
    with pytest.raises(ValueError, match="episode 3 must have 5 observations of 4 steps, got 4"):
        from_minari(Dataset([episode(0, 2, True), short]))


def test_a_dataset_on_this_machine(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    gym = pytest.importorskip("gymnasium")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        from_minari("fastrl/none-v0")
    buffers = [
        minari.data_collector.EpisodeBuffer(
            observations=list(np.arange(i, i + 4, dtype=np.float32)[:, None]), actions=[0, 1, 2], rewards=[0.5, 1.0, i],
            terminations=[False, False, True], truncations=[False] * 3,
        )
        for i in (0, 10)
    ]  # fmt: skip
    minari.create_dataset_from_buffers(
        "fastrl/test-v0", buffers, observation_space=gym.spaces.Box(-9, 99, (1,)), action_space=gym.spaces.Discrete(3)
    )
    held = from_minari("fastrl/test-v0", seed=0).transitions()
    assert held.obs[:, 0].tolist() == [0, 1, 2, 10, 11, 12] and held.next_obs[:, 0].tolist() == [1, 2, 3, 11, 12, 13]
    assert held.reward.tolist() == [0.5, 1, 0, 0.5, 1, 10] and held.terminated.tolist() == [False, False, True] * 2


def test_buffers_that_are_refused_by_name(tmp_path):
    sequences = SequenceReplay(100, ((4,), np.float32), ((), np.int64), length=4)
    sequences.save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a must be of ReplayBuffer or PrioritizedReplay, got SequenceReplay$"):
        from_saved(tmp_path / "a")
    for space in ({"x": {"y": ((4,), np.float32)}}, {"x y": ((4,), np.float32)}, {0: ((4,), np.float32)}):
        ReplayBuffer(5, space, ((), np.int64)).save(tmp_path / "b")
        with pytest.raises(ValueError, match="b must have observations and actions that are arrays or dicts of them, "):
            from_saved(tmp_path / "b")


@pytest.mark.parametrize("frames", [1, 2])
def test_a_dict_of_arrays_by_name_is_opened(tmp_path, frames):
    stack = (frames,) if frames > 1 else ()
    space = {"x": ((*stack, 3), np.float32), "image_2": ((*stack, 5, 4), np.uint8)}
    buffer = ReplayBuffer(9, space, {"a": ((), np.int64), "b": ((2,), np.float32)}, seed=0, frame_stack=frames)
    rng = np.random.default_rng(0)
    obs = {name: (rng.random(shape) * 255).astype(dtype) for name, (shape, dtype) in space.items()}
    for _ in range(12):
        last = {name: (rng.random(shape) * 255).astype(dtype) for name, (shape, dtype) in space.items()}
        nxt = {name: np.concatenate((obs[name][1:], last[name][-1:])) if stack else last[name] for name in obs}
        buffer.add(obs, {"a": 1, "b": np.ones(2, np.float32)}, 0.5, nxt, False, False)
        obs = nxt
    buffer.save(tmp_path / "b")
    opened, wanted = from_saved(tmp_path / "b").transitions(), buffer.transitions()
    for one, other in ((opened.obs, wanted.obs), (opened.next_obs, wanted.next_obs), (opened.action, wanted.action)):
        assert list(one) == list(other)
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])

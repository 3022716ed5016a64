"""Minari datasets as buffers."""

from types import SimpleNamespace

import numpy as np
import pytest

from fastrl.replay import PrioritizedReplay, ReplayBuffer, from_minari


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

"""RLlib's prioritized episode buffer beside ours, and DQN of RLlib with it."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if find_spec("ray") is None:  # which importing it would keep from listening on 127.0.0.1 alone, see import_ray
    pytest.skip("needs Ray", allow_module_level=True)
pytest.importorskip("tree")

from fastrl.distributed.cluster import import_ray

ray = import_ray("tests")  # before anything else imports it, so that it listens on 127.0.0.1 alone

import gymnasium as gym  # noqa: E402

host = pytest.importorskip("ray.rllib.utils.replay_buffers.prioritized_episode_buffer")
from ray.rllib.env.single_agent_episode import SingleAgentEpisode  # noqa: E402

from fastrl.integrations import rllib as ours  # noqa: E402

SPACES = {"observation_space": gym.spaces.Box(-9, 9, (3,)), "action_space": gym.spaces.Discrete(4)}


def episodes(rng, lengths, numpy=True):
    made = []
    for n in lengths:
        one = SingleAgentEpisode(
            observations=list(rng.normal(size=(n + 1, 3)).astype(np.float32)), actions=list(rng.integers(4, size=n)),
            rewards=list(rng.normal(size=n)), terminated=bool(n % 2), truncated=not n % 2, len_lookback_buffer=0,
            **SPACES,
        )  # fmt: skip
        made.append(one.to_numpy() if numpy else one)
    return made


def pair(capacity=120, lengths=(7, 30, 1, 25, 40), numpy=True, alpha=0.6):
    """The two, with the same episodes and random numbers."""
    both = (
        host.PrioritizedEpisodeReplayBuffer(capacity, alpha=alpha),
        ours.PrioritizedEpisodeReplayBuffer(capacity, alpha=alpha),
    )
    added = episodes(np.random.default_rng(0), lengths, numpy)
    for buffer in both:
        buffer.add(added)
        buffer.rng = np.random.default_rng(1)
    return both


def same(a, b):
    """Are these sampled episodes the same, but for their ids?"""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert type(y) is type(x) and len(x) == len(y) == 1 and x.id_ != y.id_
        for name in ("observations", "actions", "rewards", "infos"):
            one, other = getattr(x, name), getattr(y, name)
            np.testing.assert_array_equal(one.data, other.data)
            assert (one.lookback, one.finalized, one.space) == (other.lookback, other.finalized, other.space)
            assert one.space_struct == other.space_struct
        assert set(x.extra_model_outputs) == set(y.extra_model_outputs) == {"weights", "n_step"}
        for key, value in x.extra_model_outputs.items():
            np.testing.assert_allclose(value.data, y.extra_model_outputs[key].data, rtol=1e-12)
        for name in ("is_terminated", "is_truncated", "t", "t_started", "observation_space", "action_space"):
            assert getattr(x, name) == getattr(y, name), name
        assert set(x.to_numpy().get_state()) == set(y.to_numpy().get_state())


@pytest.mark.parametrize(("n_step", "numpy"), [(None, True), (1, False), (3, True)])
def test_samples_weights_and_priorities_are_the_hosts(n_step, numpy):
    both, rng = pair(numpy=numpy), np.random.default_rng(2)
    assert isinstance(both[1], host.PrioritizedEpisodeReplayBuffer)
    for round_ in range(6):
        if round_ == 3:  # the first episodes make room
            added = episodes(np.random.default_rng(9), (12, 33))
            for buffer in both:
                buffer.add(added)
        drawn = [b.sample(num_items=50, n_step=n_step, gamma=0.9, beta=0.5, sample_episodes=True) for b in both]
        same(*drawn)
        assert both[0]._last_sampled_indices == both[1]._last_sampled_indices
        priorities = rng.random(50) * 3 + 0.1
        priorities[0] = 0.0
        for buffer in both:
            buffer.update_priorities(priorities)
        assert both[0]._max_priority == both[1]._max_priority > 1
        assert both[0]._min_segment.min() == both[1]._min_segment.min()
        assert both[0]._sum_segment.sum() == pytest.approx(both[1]._sum_segment.sum(), rel=1e-12)
    assert both[0].get_num_timesteps() == both[1].get_num_timesteps() <= 120
    assert both[0].sampled_timesteps == both[1].sampled_timesteps == 300
    a, b = (x.get_metrics() for x in both)
    assert set(a) == set(b) and "num_env_steps_sampled" in str(a)
    for key in a:
        assert repr(a[key]) == repr(b[key]) or not isinstance(a[key], (int, float))


@pytest.mark.parametrize("options", [{"n_step": (1, 4)}, {"include_infos": True}, {"to_numpy": True}])
def test_rare_options_are_the_hosts_code_on_the_same_tree(options):
    both = pair()
    drawn = [b.sample(num_items=30, gamma=0.9, beta=0.5, **options) for b in both]
    for x, y in zip(*drawn, strict=True):
        np.testing.assert_array_equal(x.get_observations(), y.get_observations())
        assert x.get_extra_model_outputs("n_step", 0) == y.get_extra_model_outputs("n_step", 0)
    assert both[0]._last_sampled_indices == both[1]._last_sampled_indices


def test_states_are_read_by_either():
    both = pair()
    for buffer in both:
        buffer.sample(num_items=40, beta=0.4)
        buffer.update_priorities(np.linspace(0.1, 2.0, 40))
    states = [buffer.get_state() for buffer in both]
    for name in ("_sum_segment", "_min_segment"):
        np.testing.assert_allclose(states[0][name][1:], states[1][name][1:], rtol=1e-12)
    crossed = pair(lengths=())  # into one that holds any the host reads no episodes
    for buffer, state in zip(crossed, states[::-1], strict=True):
        buffer.set_state(state)
        buffer.rng = np.random.default_rng(5)
    same(*[buffer.sample(num_items=60, beta=1.0) for buffer in crossed])
    assert crossed[1].get_num_timesteps() == 103


def test_a_state_takes_the_place_of_all_that_was_held():
    source, used = pair()[0], pair(lengths=(5, 7))[1]
    used.set_state(source.get_state())
    assert [x.id_ for x in used.episodes] == [x.id_ for x in source.episodes] and used.get_num_timesteps() == 103
    drawn = [(setattr(b, "rng", np.random.default_rng(5)), b.sample(num_items=60, beta=1.0))[1] for b in (source, used)]
    same(*drawn)


def test_draws_are_seeded():
    drawn = []
    for seed in (3, 3, 4):
        buffer = ours.PrioritizedEpisodeReplayBuffer(100, seed=seed)
        buffer.add(episodes(np.random.default_rng(0), (20, 30)))
        buffer.sample(num_items=20)
        drawn.append(buffer._last_sampled_indices)
    assert drawn[0] == drawn[1] != drawn[2]


def test_another_version_is_the_hosts_own_code(monkeypatch):
    monkeypatch.setattr("fastrl.integrations._version.version", lambda _: "2.59.0")
    with pytest.warns(UserWarning, match=r"rllib.PrioritizedEpisodeReplayBuffer: ray is 2.59.0, and 2.60 is what was"):
        buffer = ours.PrioritizedEpisodeReplayBuffer(100)
    assert type(buffer._sum_segment).__name__ == "SumSegmentTree"
    buffer.add(episodes(np.random.default_rng(0), (20, 30)))
    assert len(buffer.sample(num_items=20)) == 20
    buffer.update_priorities(np.ones(20))


def test_the_recipe_runs():
    text = (Path(__file__).parents[2] / "docs" / "from-your-library.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "ray.rllib" in b]
    assert len(block.splitlines()) <= 10
    shorter = "config.reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=150)\nalgorithm ="
    names, torch = {}, pytest.importorskip("torch")
    threads = torch.get_num_threads()
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
        object_store_memory=2**27,
    )  # fmt: skip
    try:
        torch.set_num_threads(1)
        exec(compile(block.replace("algorithm =", shorter, 1), "docs", "exec"), names)
        buffer = names["algorithm"].local_replay_buffer
        assert type(buffer) is ours.PrioritizedEpisodeReplayBuffer and buffer.get_num_timesteps() >= 150
        assert len(buffer._tree) == buffer.get_num_timesteps() and buffer._tree.min < buffer._tree.max  # TD errors came
        names["algorithm"].stop()
    finally:
        torch.set_num_threads(threads)
        ray.shutdown()

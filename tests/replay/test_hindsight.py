"""Hindsight goals against plain lists of episodes."""

import numpy as np
import pytest

from fastrl.replay import HindsightReplay

GOAL, ACTION = ((2,), np.float32), ((), np.int64)
SPACE = {"observation": ((3,), np.float32), "achieved_goal": GOAL, "desired_goal": GOAL}


def reward_of(achieved, desired, info):
    assert info == {}
    return -np.abs(achieved - desired).sum(axis=1)


def make(capacity=100, num_envs=1, **options):
    options = {"compute_reward": reward_of, "seed": 0, **options}
    return HindsightReplay(capacity, SPACE, ACTION, num_envs, **options)


def play(buffer, steps, lengths=(7, 1, 4)):
    """Per environment and transition: the goals achieved from it to the end of its episode, or to the newest."""
    N, rng = buffer.num_envs, np.random.default_rng(0)
    later = [[] for _ in range(N)]
    running = [[] for _ in range(N)]
    achieved = rng.standard_normal((N, 2)).astype(np.float32)
    desired, episode, t = rng.standard_normal((N, 2)).astype(np.float32), 0, 0
    for step in range(steps):
        reached = rng.standard_normal((N, 2)).astype(np.float32)
        t += 1
        end = t == lengths[episode % len(lengths)]
        obs = {"observation": np.full((N, 3), step), "achieved_goal": achieved, "desired_goal": desired}
        next_obs = {"observation": np.full((N, 3), step + 1), "achieved_goal": reached, "desired_goal": desired}
        ends = np.full((2, N), False)
        ends[episode % 2] = end
        buffer.add(obs, np.full(N, step), np.full(N, 100.0), next_obs, *ends)
        for e in range(N):
            running[e].append([])
            later[e].append(running[e][-1])
            for goals in running[e]:
                goals.append(reached[e].tolist())
        achieved = reached
        if end:
            achieved, desired = rng.standard_normal((2, N, 2)).astype(np.float32)
            episode, t, running = episode + 1, 0, [[] for _ in range(N)]
    return later


@pytest.mark.parametrize("strategy", ["future", "final"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_goals_are_those_achieved_later_in_the_episode(strategy, num_envs):
    buffer = make(10 * num_envs, num_envs, strategy=strategy)
    later = play(buffer, 31)  # wrapped, and in the middle of an episode
    batch = buffer.sample(3000)
    raw = buffer[batch.indices]
    changed = (batch.obs["desired_goal"] != raw.obs["desired_goal"]).any(axis=1)
    assert changed.sum() == 2400 and (raw.reward == 100).all()
    counts = {}
    for b in range(3000):
        step, env = divmod(int(batch.indices[b]), num_envs)
        goal = batch.obs["desired_goal"][b]
        np.testing.assert_array_equal(goal, batch.next_obs["desired_goal"][b])
        if not changed[b]:
            assert batch.reward[b] == 100
            continue
        choices = later[env][step]
        k = choices.index(goal.tolist())
        assert strategy == "future" or k == len(choices) - 1
        counts.setdefault(len(choices), np.zeros(len(choices)))[k] += 1
        reached = raw.next_obs["achieved_goal"][b]
        np.testing.assert_allclose(batch.reward[b], -np.abs(reached - goal).sum(), rtol=1e-5, atol=1e-6)
    if strategy == "future":
        for n, found in counts.items():  # uniform: 6 standard deviations
            expected = found.sum() / n
            assert (np.abs(found - expected) <= 6 * np.sqrt(expected) + 1).all()
    for name in ("action", "terminated", "truncated", "discount", "indices", "weights"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(raw, name))
    for key in ("observation", "achieved_goal"):
        np.testing.assert_array_equal(batch.obs[key], raw.obs[key])
        np.testing.assert_array_equal(batch.next_obs[key], raw.next_obs[key])


def test_without_goals_nothing_is_relabelled_and_copies_go_on(tmp_path):
    buffer = make(goals=0)
    play(buffer, 20)
    assert (buffer.sample(50).reward == 100).all()
    buffer, other = make(), make(seed=5)
    play(buffer, 20)
    buffer.save(tmp_path / "file")
    other.load(tmp_path / "file")
    for _ in range(3):
        a, b = buffer.sample(40), other.sample(40)
        np.testing.assert_array_equal(a.reward, b.reward)
        np.testing.assert_array_equal(a.obs["desired_goal"], b.obs["desired_goal"])
    with pytest.raises(ValueError, match="of a buffer with strategy 'future' .here 'final'."):
        make(strategy="final").load(tmp_path / "file")


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    plain, buffer = make(), make(device="cpu")
    play(plain, 20), play(buffer, 20)
    a, b = buffer.sample(30), plain.sample(30)
    assert isinstance(a.obs["desired_goal"], torch.Tensor)
    np.testing.assert_array_equal(a.obs["desired_goal"].numpy(), b.obs["desired_goal"])
    np.testing.assert_array_equal(a.reward.numpy(), b.reward)


def test_bad_arguments():
    for options, error, message in (
        ({"strategy": "past"}, ValueError, 'strategy must be "future" or "final", got \'past\''),
        ({"goals": -1}, ValueError, "goals must be >= 0"),
        ({"n_step": 2}, ValueError, "n_step must be 1 in a HindsightReplay, got 2"),
        ({"compute_reward": 3}, TypeError, "compute_reward must be callable, got int"),
    ):
        with pytest.raises(error, match=f"replay: {message}"):
            make(**options)
    for space in (GOAL, {**SPACE, "more": GOAL}, {**SPACE, "desired_goal": ((3,), np.float32)}):
        with pytest.raises(ValueError, match="obs_space must be a Dict of .observation."):
            HindsightReplay(10, space, ACTION, compute_reward=reward_of)


class OnADevice:
    """As a CUDA tensor: what NumPy asks of it raises."""

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")


@pytest.mark.parametrize(
    ("rewards", "error", "text"),
    [
        (lambda a: np.nan * a[:, 0], ValueError, "must be finite in float32, got nan"),
        (lambda a: [*[1.0] * 7, 1e300], ValueError, "must be finite in float32, got 1e+300"),
        (lambda a: a, ValueError, "must have shape (8,), got (8, 2)"),
        (lambda a: 0.0, ValueError, "must have shape (8,), got ()"),
        (lambda a: [["1"], [1, 2]], ValueError, ""),
        (lambda a: ["1"] * 8, TypeError, "must be numbers of dtype float32, got dtype <U1"),
        (lambda a: None, TypeError, "must be numbers of dtype float32, got dtype object"),
        (lambda a: np.ma.masked_array(a[:, 0]), TypeError, "must not be a masked array"),
        (lambda a: 1j * a[:, 0], ValueError, "must have dtype float32, got complex64"),
        (lambda a: OnADevice(), TypeError, "can't convert cuda:0 device type tensor to numpy."),
    ],
)
def test_rewards_that_are_none(rewards, error, text):
    buffer = make(compute_reward=lambda achieved, desired, info: rewards(achieved))
    play(buffer, 5)
    with pytest.raises(error) as raised:
        buffer.sample(10)
    assert str(raised.value).startswith(f"replay.sample: what compute_reward gives {text}")
    assert len(buffer) == 5


@pytest.mark.parametrize("kind", ["float64", "int32", "bool", "list", "torch"])
def test_rewards_of_other_kinds(kind):
    def reward(achieved, desired, info):
        signs = achieved[:, 0] > 0
        if kind == "torch":
            return pytest.importorskip("torch").from_numpy(signs)
        return signs.tolist() if kind == "list" else signs.astype(kind)

    buffer = make(compute_reward=reward)
    play(buffer, 5)
    batch = buffer.sample(10)
    np.testing.assert_array_equal(batch.reward[:8], batch.next_obs["achieved_goal"][:8, 0] > 0)

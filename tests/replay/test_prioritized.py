"""PrioritizedReplay: its law, its weights, priorities that are stale, extreme or wrong."""

import numpy as np
import pytest
from replay_worlds import ACTION, GOOD, OBS, World, contents, fill

from fastrl.replay import PrioritizedReplay, ReplayBuffer


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


def test_alpha_is_checked_where_it_is_set():
    replay = PrioritizedReplay(8, ((2,), np.float32), ((), np.int64), alpha=0.5, eps=1e-6, seed=0)
    for value, error in ((-1.0, ValueError), (np.nan, ValueError), ("0.5", TypeError)):
        with pytest.raises(error, match="replay: alpha must be"):
            replay.alpha = value
        assert replay.alpha == 0.5
    for _ in range(3):
        replay.add(np.zeros(2, np.float32), 0, 1.0, np.zeros(2, np.float32), False, False)
    replay.update_priorities(np.array([0]), np.array([4.0]))
    replay.alpha = 1
    replay.update_priorities(np.array([1]), np.array([4.0]))
    np.testing.assert_allclose(replay._tree[[0, 1]], [2, 4], rtol=1e-5)

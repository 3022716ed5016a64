"""Rollouts: what is written, which value follows a step in every autoreset mode, and which steps are left out."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from fastrl.agents.envs import Envs
from fastrl.agents.policies import ActorCritic, RunningMoments
from fastrl.agents.rollout import RewardScaling, Rollout
from fastrl.kernels import Generator

T, LENGTHS = 17, (3, 5)


def make(vec, n_steps=T, **settings):
    envs = Envs(vec, 1, seed=0)
    policy = ActorCritic(envs.observation_space, envs.action_space, (8,), **settings)
    return envs, policy, Rollout(envs, policy, n_steps)


def value(policy, obs):
    """V(s) of one observation in float64, by the formula."""
    x = np.asarray(obs, np.float64)
    p = {name: view.astype(np.float64) for name, view in policy.critic.parameters().items()}
    x = p["2.weight"] @ np.tanh(p["0.weight"] @ x + p["0.bias"]) + p["2.bias"]
    return x[0]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_values_are_of_the_observations_really_reached(mode, counters, tolerance):
    _, policy, rollout = make(counters(mode))
    for _ in range(2):  # the second begins in the middle of episodes
        rollout.collect(Generator(1))
        values, next_values = rollout.values()
        real = np.ones((T, 2), bool) if rollout.mask is None else rollout.mask
        assert real.sum() >= T
        for t, n in zip(*np.nonzero(real), strict=True):
            episode, step = rollout.obs[t, n]
            end = step + 1 == LENGTHS[n]
            assert rollout.terminated[t, n] == (end and episode % 2 == 0)
            assert rollout.truncated[t, n] == (end and episode % 2 == 1)
            assert rollout.reward[t, n] == step + 1 + 0.125 * episode
            np.testing.assert_allclose(values[t, n], value(policy, (episode, step)), **tolerance("float32"))
            if not rollout.terminated[t, n]:  # behind a terminal state nothing is read
                expected = value(policy, (episode, step + 1))  # never V of the reset's observation
                np.testing.assert_allclose(next_values[t, n], expected, **tolerance("float32"))


def test_dummy_steps_are_masked_and_left_out(counters):
    envs, _, rollout = make(counters(AutoresetMode.NEXT_STEP))
    rollout.collect(Generator(1))
    dummy = [(t, n) for t in range(T) for n in range(2) if rollout.obs[t, n, 1] == LENGTHS[n]]
    assert dummy and {(int(t), int(n)) for t, n in zip(*np.nonzero(~rollout.mask), strict=True)} == set(dummy)
    marks = np.arange(2.0 * T, dtype=np.float32).reshape(T, 2)
    obs, action, log_prob, batch_marks = rollout.batch(marks)
    kept = [k for k in range(2 * T) if divmod(k, 2) not in dummy]
    assert batch_marks.tolist() == kept
    assert len(obs) == len(action) == len(log_prob) == len(kept)
    assert obs.tobytes() == rollout.obs.reshape(-1, 2)[kept].tobytes()
    assert (rollout.real(marks) == kept).all()
    # A rollout without an episode's end has no mask left from the one before.
    short = Rollout(envs, rollout.policy, 1)
    while True:
        short.collect(Generator(1))
        if not envs._done.any() and (short.obs[0, :, 1] < LENGTHS).all():
            break
    assert short.mask is None


@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.SAME_STEP])
def test_no_step_is_lost_without_dummies(mode, counters):
    _, _, rollout = make(counters(mode))
    rollout.collect(Generator(1))
    assert rollout.mask is None and len(rollout.batch()[0]) == 2 * T


def test_arrays_are_made_once_and_grow(counters):
    _, _, rollout = make(counters(AutoresetMode.DISABLED), n_steps=4)
    before = rollout.obs
    rollout.collect(Generator(1))
    assert rollout.obs is before or np.shares_memory(rollout.obs, before)
    rollout.begin()
    seen = []
    for t in range(11):
        seen.append(rollout.envs.obs.copy())
        rollout.step(t, Generator(1), np.array([True, t < 9]))
    rollout.end(11)
    assert rollout.obs.shape == (11, 2, 2) and rollout.reward.shape == (11, 2)
    np.testing.assert_array_equal(rollout.obs, seen)
    np.testing.assert_array_equal(rollout.mask, [[True, t < 9] for t in range(11)])


def test_log_probs_are_those_of_the_actions_taken(counters, target_env, tolerance):
    _, policy, rollout = make(counters(AutoresetMode.DISABLED))
    rollout.collect(Generator(1))
    obs, action, log_prob = rollout.batch()
    logits = torch.from_numpy(policy.output(obs)).double()
    expected = torch.distributions.Categorical(logits=logits).log_prob(torch.from_numpy(action))
    np.testing.assert_allclose(log_prob, expected, **tolerance("float32"))
    assert set(action.tolist()) == {0, 1}
    _, policy, rollout = make(target_env(), log_std=0.5)
    rollout.collect(Generator(1))
    obs, action, log_prob = rollout.batch()
    assert action.shape == (T, 4) and obs.shape == (T, 2, 2)
    mean, log_std = (torch.from_numpy(x).double() for x in (policy.output(obs), policy.log_std))
    normal = torch.distributions.Normal(mean, log_std.exp())
    expected = normal.log_prob(torch.from_numpy(action).double()).sum(1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-5)
    # The actions learned from are not clipped; those that the environment was sent are.
    space, sent = target_env.action_space, np.stack(target_env.actions)
    assert (action > 0.5).any()
    np.testing.assert_array_equal(sent, np.clip(action.reshape(T, 2, 2), space.low, space.high))


@pytest.mark.parametrize(
    "change",
    [{"mean": [0.0] * 4}, {"var": [[1.0]]}, {"mean": [np.nan] * 5}, {"var": [-1.0] * 5}, {"count": -1}, {"count": "9"}],
)
def test_moments_that_cannot_be_are_refused(change, rng):
    moments = RunningMoments((5,))
    moments.update(rng.normal(size=(9, 5)))
    before = moments.state_dict()
    with pytest.raises(ValueError, match="^moments must "):
        moments.load_state_dict({**before, **change})
    assert moments.state_dict() == before
    moments.load_state_dict(before)


def test_running_moments_are_those_of_all_data(rng):
    x = rng.normal(3.0, 2.0, (100, 5)).astype(np.float32)
    moments = RunningMoments((5,))
    for part in np.split(x, [1, 7, 7, 60]):
        moments.update(part)
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.var, x.astype(np.float64).var(0), rtol=1e-12)
    expected = (x - x.astype(np.float64).mean(0)) / x.astype(np.float64).std(0)
    np.testing.assert_allclose(moments.normalize(x), expected, rtol=1e-5, atol=1e-5)
    assert moments.normalize(np.full((1, 5), 1e9)).max() == 10
    again = RunningMoments((5,))
    again.load_state_dict(moments.state_dict())
    assert again.count == 100 and (again.normalize(x) == moments.normalize(x)).all()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_reward_scaling_against_a_loop(mode, counters):
    _, _, rollout = make(counters(mode), n_steps=7)
    scale, g, seen = RewardScaling(2, 0.9), np.zeros(2), []
    for _ in range(3):  # returns go on from one rollout to the next
        rollout.collect(Generator(1))
        scaled = scale(rollout)
        for t in range(7):
            for n in range(2):
                if rollout.mask is None or rollout.mask[t, n]:
                    g[n] = rollout.reward[t, n] + 0.9 * g[n]
                    seen.append(g[n])
                    if rollout.terminated[t, n] or rollout.truncated[t, n]:
                        g[n] = 0.0
        np.testing.assert_allclose(scaled, rollout.reward / np.std(seen), rtol=1e-6)


def test_a_masked_step_has_no_part_in_the_reward_scaling(counters):
    """Two episodes of rewards 1 1 with a step between them that is none, and whatever reward that has."""
    _, _, rollout = make(counters(AutoresetMode.NEXT_STEP), n_steps=5)
    for dummy in (1.0, -7.0):
        rollout.reward[:] = np.array([1, 1, dummy, 1, 1])[:, None]
        rollout.terminated[:] = np.array([0, 1, 0, 0, 1], bool)[:, None]
        rollout.truncated[:] = False
        rollout.mask = np.array([[1, 1, 0, 1, 1]], bool).T.repeat(2, 1)
        scale = RewardScaling(2, 0.5)
        scaled = scale(rollout)
        std = np.std([1, 1.5, 1, 1.5])
        assert scale.moments.count == 8 and scale.moments.mean == 1.25
        np.testing.assert_allclose(scaled[rollout.mask], 1 / std, rtol=1e-6)
        assert not scale.carry.any()


def test_environments_may_reuse_the_memory_of_their_observations(counters):
    def run(copy):
        vec = counters(AutoresetMode.DISABLED)
        vec.copy = copy
        _, _, rollout = make(vec)
        rollout.collect(Generator(1))
        return rollout.obs

    np.testing.assert_array_equal(run(False), run(True))

"""REINFORCE: whole episodes, reward-to-go, baseline and gradient against computations by hand; it must learn."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from fastrl.agents import REINFORCE

LENGTHS, GAMMA = (3, 5), 0.9


def record_batches(agent, monkeypatch):
    seen, loss = [], agent._loss

    def record(*batch):
        seen.append(batch)
        return loss(*batch)

    monkeypatch.setattr(agent, "_loss", record)
    return seen


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("baseline", [False, True])
def test_whole_episodes_and_reward_to_go(mode, baseline, counters, monkeypatch):
    agent = REINFORCE(counters(mode), hidden=(8,), episodes=3, baseline=baseline, gamma=GAMMA, seed=1)
    seen = record_batches(agent, monkeypatch)
    for _ in range(3):
        values = {}
        if baseline:
            for episode in range(40):
                for k in range(6):
                    values[episode, k] = agent.policy.value(np.array([[episode, k]], np.float32)).item()
        agent.learn(agent.steps + 1, progress=False)
        obs, _, advantage, target = seen[-1]
        # Three whole episodes of each environment, all steps of them and no other.
        found = sorted(map(tuple, obs.astype(int).tolist()))
        starts = [episode for episode, k in found if k == 0]
        assert len(starts) == 6 and len(found) == 3 * sum(LENGTHS)
        lengths = [sum(1 for e, _ in found if e == episode) for episode in set(starts)]
        assert sum(lengths) == 24
        for (episode, k), a, g in zip(obs.astype(int).tolist(), advantage.tolist(), target.tolist(), strict=True):
            possible = []
            for length in LENGTHS:  # the observation does not say of which environment it is
                rewards = [j + 1 + 0.125 * episode for j in range(k, length)]
                expected = sum(GAMMA**m * reward for m, reward in enumerate(rewards))
                if baseline and episode % 2 == 1:  # cut by a limit: the baseline stands in for the rest
                    expected += GAMMA ** len(rewards) * values[episode, length]
                possible.append(expected)
            assert np.isclose(possible, g, rtol=1e-4, atol=1e-5).any()
            np.testing.assert_allclose(a, g - values.get((episode, k), 0.0), rtol=1e-4, atol=1e-5)


def test_steps_of_waiting_environments_count_but_teach_nothing(counters, monkeypatch):
    agent = REINFORCE(counters(AutoresetMode.DISABLED), hidden=(4,), episodes=1)
    seen = record_batches(agent, monkeypatch)
    agent.learn(1, progress=False)
    assert agent.steps == 10 and len(seen[0][0]) == 8  # 2 x 5 steps, of which 3 + 5 are of the episodes
    assert agent.envs.episodes == 2


def test_one_environment_wastes_nothing(counters, monkeypatch):
    agent = REINFORCE(counters(AutoresetMode.DISABLED, (3,)), hidden=(4,), episodes=4)
    seen = record_batches(agent, monkeypatch)
    agent.learn(20, progress=False)
    assert agent.steps == 24 and [len(batch[0]) for batch in seen] == [12, 12]


def test_a_long_episode_is_kept_whole(counters, monkeypatch):
    agent = REINFORCE(counters(AutoresetMode.DISABLED, (1500,)), hidden=(4,), episodes=1, gamma=1.0, baseline=False)
    seen = record_batches(agent, monkeypatch)
    agent.learn(1, progress=False)
    obs, _, _, target = seen[0]
    assert obs[:, 1].tolist() == list(range(1500))
    episode = obs[0, 0].item()
    expected = np.cumsum((np.arange(1500) + 1 + 0.125 * episode)[::-1])[::-1]
    np.testing.assert_allclose(target, expected, rtol=1e-6)


def test_a_single_advantage_is_not_normalised_away(counters):
    agent = REINFORCE(counters(AutoresetMode.DISABLED, (1,)), hidden=(4,), episodes=1, baseline=False, seed=0)
    before = agent.policy.vector.copy()
    agent.learn(1, progress=False)
    assert agent.metrics()["policy_loss"] > 0.1  # -A log pi, A about 1
    assert not np.array_equal(before, agent.policy.vector)


@pytest.mark.parametrize("baseline", [False, True])
def test_gradient(baseline, rng):
    """The gradient of -mean A log pi + c_v mean (V - G)^2 / 2 - c_h mean H, by autograd in float64 on the formulas."""
    settings = {"value_coef": 0.7, "entropy_coef": 0.03, "normalize_advantages": True}
    agent = REINFORCE("CartPole-v1", hidden=(8,), baseline=baseline, seed=3, **settings)
    obs = torch.from_numpy(rng.normal(size=(6, 4)).astype(np.float32))
    action = torch.from_numpy(rng.integers(2, size=6))
    advantage, target = (torch.from_numpy(x) for x in rng.normal(size=(2, 6)).astype(np.float32))
    p = {k: torch.from_numpy(v).double().requires_grad_() for k, v in agent.policy.state_dict().items()}

    def net(name):
        hidden = torch.tanh(obs.double() @ p[f"{name}.0.weight"].T + p[f"{name}.0.bias"])
        return hidden @ p[f"{name}.2.weight"].T + p[f"{name}.2.bias"]

    a = advantage.double()
    a = (a - a.mean()) / torch.sqrt(((a - a.mean()) ** 2).mean())
    dist = torch.distributions.Categorical(logits=net("actor"))
    expected = -(a * dist.log_prob(action)).mean() - 0.03 * dist.entropy().mean()
    if baseline:
        expected = expected + 0.7 * ((net("critic").squeeze(1) - target) ** 2).mean() / 2
    expected.backward()
    agent.policy.grad[:] = np.nan
    terms = agent._loss(*(x.numpy() for x in (obs, action, advantage, target)))
    np.testing.assert_allclose(terms["loss"], expected.item(), rtol=1e-5)
    for name, gradient in agent.policy.parameters(agent.policy.grad).items():
        np.testing.assert_allclose(gradient, p[name].grad.numpy(), rtol=1e-4, atol=1e-5)
    assert (agent.policy.critic is not None) == baseline


@pytest.mark.parametrize("baseline", [False, True])
def test_learns_cartpole(baseline):
    """One fast seed; `bench/learning.py` has the five of each."""
    agent = REINFORCE("CartPole-v1", baseline=baseline, seed=0).learn(25_000, progress=False)
    assert agent.evaluate(10).mean() >= 100

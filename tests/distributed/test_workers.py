"""Ape-X without Ray: what its actors and shards do is plain Python."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from commands import fails

import fastrl.agents
from fastrl.agents import DQN, InputError
from fastrl.agents.hyperparameters import ApeXConfig
from fastrl.distributed import ApeX
from fastrl.distributed.actor import Actor, Explorer, epsilons
from fastrl.distributed.shard import Shard

SMALL = {"hidden": (8,), "chunk": 20, "num_envs": 3, "actors": 2, "batch_size": 16, "buffer_size": 240}


def a_chunk(seed=5, **settings):
    """An actor's report and chunk, and the agent that it played with."""
    config = ApeXConfig(**{**SMALL, **settings})
    actor = Actor(("CartPole-v1", None), config, 1, seed)
    weights = ApeX("CartPole-v1", config, seed=9).online.vector
    report, chunk = actor.collect(0, (7, weights))
    assert report.version == 7 and report.transitions == len(chunk[0]) == 60
    return report, chunk, actor._explorer


def test_a_chunk_holds_each_environments_steps_one_after_another():
    report, (obs, action, reward, next_obs, terminated, truncated, begins, errors), _ = a_chunk()
    assert obs.shape == next_obs.shape == (60, 4) and action.dtype == np.int64 and (reward == 1).all()
    assert np.flatnonzero(begins).tolist() == [0, 20, 40] and not truncated.any()
    follows = ~(terminated | truncated)[:-1] & ~begins[1:]
    assert (obs[1:][follows] == next_obs[:-1][follows]).all() and follows.sum() > 40
    assert len(report.episodes) == terminated.sum() > 0
    assert errors.shape == (60,) and (errors >= 0).all()


def test_the_first_priorities_are_the_n_step_td_errors():
    """Against a loop over the chunk, in float64, with the network's own outputs."""
    _, (obs, action, reward, next_obs, terminated, _, begins, errors), agent = a_chunk(gamma=0.9, n_step=3)
    q, q_next = agent.online.forward(obs).astype(np.float64), agent.online.forward(next_obs).astype(np.float64)
    expected = np.empty(60)
    for i in range(60):
        target, discount, k = 0.0, 1.0, i
        while True:
            target, discount = target + discount * reward[k], 0.9 * discount
            if terminated[k] or k + 1 == 60 or begins[k + 1] or k - i == 2:
                break
            k += 1
        expected[i] = abs(target + discount * (not terminated[k]) * q_next[k].max() - q[i, action[i]])
    np.testing.assert_allclose(errors, expected, rtol=1e-4, atol=1e-5)


def test_epsilons_fall_geometrically_over_all_environments():
    own = epsilons(ApeXConfig(**SMALL))
    assert own.shape == (6,) and own[0] == pytest.approx(0.4) and own[-1] == pytest.approx(0.4**8)
    np.testing.assert_allclose(own, [0.4 ** (1 + 7 * i / 5) for i in range(6)])
    agent = Explorer("CartPole-v1", ApeXConfig(**SMALL, epsilon_steps=10), None, 3)
    assert (agent.epsilon == 1).all()
    agent.steps = 10
    np.testing.assert_allclose(agent.epsilon, own[3:])
    np.testing.assert_allclose(ApeX("CartPole-v1", **SMALL).epsilon, own.mean())
    assert epsilons(ApeXConfig(actors=1, num_envs=1)) == pytest.approx([0.4])


def frozen(arrays):
    """Copies that cannot be written to, as Ray gives them."""
    copies = tuple(np.array(x) for x in arrays)
    for x in copies:
        x.flags.writeable = False
    return copies


def test_a_shard_takes_priorities_and_gives_batches():
    config = ApeXConfig(**SMALL, per_alpha=1.0, per_eps=1e-12)
    spaces = gym.make("CartPole-v1").observation_space, gym.make("CartPole-v1").action_space
    shard = Shard(config, *spaces, 3)
    _, chunk, _ = a_chunk()
    held = shard.add(frozen(chunk))
    assert (held.added, held.size) == (60, 60) and held.total == pytest.approx(chunk[-1].sum(), rel=1e-5)
    errors = np.zeros(60, np.float32)
    errors[[4, 50]] = 1.0, 3.0
    assert shard.update(np.arange(60), errors) == 0
    _, batch = shard.sample(16, 4)
    assert set(batch.indices.tolist()) == {4, 50}
    # Each of the four batches is stratified: a quarter of each is transition 4, within a draw.
    counts = (batch.indices.reshape(4, 16) == 4).sum(1)
    assert counts.tolist() == [4, 4, 4, 4]
    weights = batch.weights[[np.flatnonzero(batch.indices == i)[0] for i in (4, 50)]]
    np.testing.assert_allclose(weights, [1.0, 1 / 3], rtol=1e-5)  # of beta = 1
    for _ in range(4):  # 240 more: all of before are gone
        shard.add(frozen(chunk))
    assert shard.update(np.arange(60), errors) == 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prioritized": False}, "prioritized must be True, got False; per_alpha=0 draws uniformly"),
        ({"actors": 0}, r"actors must be in \[1, 10000\], got 0"),
        ({"chunk": 1000, "num_envs": 100, "shards": 2}, "buffer_size must be >= 200000, so that each of 2 shards"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(InputError, match=message):
        ApeX("CartPole-v1", **settings)


def test_an_environment_object_cannot_be_made_by_actors():
    with pytest.raises(InputError, match="ApeX: env must be an id or an EnvConfig, which actors make, got TimeLimit"):
        ApeX(gym.make("CartPole-v1"))


def test_without_ray_one_line_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    line = 'ApeX needs Ray, which is not installed: pip install "fastrl-kernels[ray]"'
    fails(["train", "apex", "--env", "CartPole-v1"], f"^fastrl: {line}".replace("[", r"\["), capsys)
    assert [path.name for path in tmp_path.rglob("*") if path.name != "runs"] == []


def test_an_agent_is_saved_and_loaded_without_ray(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    agent = ApeX("CartPole-v1", **SMALL)
    agent.save(tmp_path / "a")
    obs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    for loaded in (ApeX.load(tmp_path / "a"), fastrl.agents.load(tmp_path / "a")):
        assert loaded.config == agent.config and (loaded.predict(obs) == agent.predict(obs)).all()
    assert isinstance(loaded, DQN) and agent.evaluate(2).shape == (2,)

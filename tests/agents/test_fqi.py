"""Fitted Q iteration: exact on tables, its regressions against plain ones, datasets of every kind, checkpoints."""

import copy
import os
import re

import gymnasium as gym
import numpy as np
import pytest
import torch

import fastrl.agents
from fastrl.agents import DQN, FQI, InputError
from fastrl.agents.trees import Forest, grow
from fastrl.kernels.random import default_generator
from fastrl.replay import PrioritizedReplay, ReplayBuffer, from_saved

SMALL = {
    "network": {"hidden": (8,), "networks": 2, "transitions": 300},
    "trees": {"trees": 3, "transitions": 300},
    "table": {"transitions": 2_000},
}
KINDS = pytest.mark.parametrize("kind", SMALL)


def make(kind, **how):
    env = "CliffWalking-v1" if kind == "table" else "CartPole-v1"
    return FQI(env, seed=0, regressor=kind, **SMALL[kind], **how)


def every_outcome(env):
    """A buffer with every outcome of every state and action of a toy-text environment, as often as it is likely."""
    rows = []
    for s, actions in env.unwrapped.P.items():
        for a, outcomes in actions.items():
            least = min(p for p, *_ in outcomes)
            for p, after, r, terminated in outcomes:
                rows += [(s, a, r, after, terminated)] * round(p / least)
    s, a, r, after, terminated = (np.array(x) for x in zip(*rows, strict=True))
    buffer = ReplayBuffer(len(s), env.observation_space, env.action_space)
    buffer.extend(s, a, r, after, terminated, np.zeros(len(s), bool), episode_start=np.ones(len(s), bool))
    return buffer


@pytest.mark.parametrize("name", ["FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4"])
def test_a_table_of_every_outcome_is_the_exact_optimum(name):
    env = gym.make(name)
    agent = FQI(env, dataset=every_outcome(env), gamma=0.9).learn(400, progress=False)
    q = np.zeros(agent.model.q.shape)
    for _ in range(400):  # value iteration, from the environment's own probabilities
        v = q.max(1)
        q = np.array([
            [sum(p * (r + 0.9 * v[after] * (not end)) for p, after, r, end in outcomes) for outcomes in row.values()]
            for row in env.unwrapped.P.values()
        ])  # fmt: skip
    np.testing.assert_allclose(agent.model.q, q, rtol=1e-9, atol=1e-9)


def test_random_play_finds_the_way_along_the_cliff():
    agent = FQI("CliffWalking-v1", seed=0).learn(60, progress=False)
    assert agent.evaluate(2).tolist() == [-13, -13] and len(agent.buffer) == 20_000 == agent.config.transitions
    assert agent.steps == agent.n_updates == 60 and agent.envs.episodes > 0


def one_step_back(agent):
    """What an iteration of `agent` should fit, of its present Q."""
    b = agent.buffer.transitions()
    value = agent.model(agent._inputs(b.next_obs)).max(1)
    return b, b.reward + agent.config.gamma * np.where(b.terminated, 0, value)


@KINDS
def test_targets_are_of_the_q_before(kind, monkeypatch):
    agent = make(kind).learn(3, progress=False)
    b, y = one_step_back(agent)
    seen, fit = [], agent.model.fit
    monkeypatch.setattr(agent.model, "fit", lambda x, a, y, *rest: seen.append((a, y)) or fit(x, a, y, *rest))
    agent.learn(4, progress=False)
    np.testing.assert_array_equal(seen[0][0], b.action)
    np.testing.assert_allclose(seen[0][1], y, rtol=1e-6)
    assert agent.metrics()["mean_q"] == pytest.approx(y.mean())


def test_targets_do_not_leave_what_returns_can_be():
    agent = make("network", gamma=0.5).learn(1, progress=False)
    agent.model.net.vector[...] *= 100
    agent.learn(2, progress=False)
    assert agent._y.max() == 2.0 and agent._y.min() >= 0


def test_q_is_the_least_of_the_networks():
    agent = make("network").learn(2, progress=False)
    x = agent._inputs(agent.buffer.transitions().obs)
    each = [np.asarray(network(torch.as_tensor(x)).detach()) for network in agent.model.net.to_torch()]
    assert len(each) == 2 and not np.allclose(*each)
    np.testing.assert_allclose(agent.model(x), np.minimum(*each), rtol=1e-4, atol=1e-5)


def test_networks_are_fitted_to_the_targets():
    agent = make("network")
    rng = np.random.default_rng(0)
    x, action = rng.standard_normal((512, 4), np.float32), rng.integers(2, size=512)
    y = np.where(action == 1, x[:, 0], -x[:, 1]).astype(np.float64)
    for _ in range(100):
        agent.model.fit(x, action, y, rng, 3e-3)
    q = agent.model.net.forward(x)[:, np.arange(512), action]
    assert np.square(q - y).mean() < 0.02 * y.var()


# ---- trees


def walk(nodes, root, x):
    at = root
    while nodes.child[at]:
        at = nodes.child[at] + (x[nodes.feature[at]] >= nodes.threshold[at])
    return at


@pytest.mark.parametrize("min_split", [2, 7])
def test_trees_are_means_of_their_leaves(min_split):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((101, 3), np.float32), rng.standard_normal(101)
    nodes = grow(x, y, 4, min_split, rng)
    for root in range(4):
        leaves = np.array([walk(nodes, root, row) for row in x])
        for leaf in np.unique(leaves):
            rows = leaves == leaf
            assert nodes.value[leaf] == pytest.approx(y[rows].mean())
            assert min_split > 2 or rows.sum() == 1  # all y differ
        assert len(np.unique(leaves)) > 101 / 3 / min_split
    assert (nodes.child[:4] > 0).all() and len(set(nodes.threshold[:4].tolist())) == 4  # each its own cuts


def test_a_cut_that_separates_is_preferred():
    """Of two features, one decides y: it is cut first nearly always, though both are cut at random."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(400, 2)).astype(np.float32)
    nodes = grow(x, (x[:, 1] > 0.5).astype(np.float64), 100, 2, rng)
    assert (nodes.feature[:100] == 1).mean() > 0.9


def test_forests_against_walks_of_each_tree():
    rng = np.random.default_rng(2)
    x, action, y = rng.standard_normal((90, 3), np.float32), np.repeat([0, 2], 45), rng.standard_normal(90)
    forest = Forest(3, 3, 4, 2)
    assert not forest(x).any()
    forest.fit(x, action, y, rng)
    by_hand = [[np.mean([forest.nodes.value[walk(forest.nodes, 4 * a + m, row)] for m in range(4)]) for a in range(3)]
               for row in x]  # fmt: skip
    q = forest(x)
    np.testing.assert_allclose(q, by_hand, rtol=1e-6)
    np.testing.assert_allclose(q[np.arange(90), action], y, rtol=1e-5)  # a leaf for each row
    assert not q[:, 1].any()  # never taken
    same = np.ones((5, 3), np.float32)
    forest.fit(same, np.zeros(5, np.int64), np.arange(5.0), rng)  # nothing separates them
    np.testing.assert_allclose(forest(same)[:, 0], 2.0)


# ---- datasets


def filled(cls=ReplayBuffer, env="CartPole-v1", capacity=150, **how):
    e = gym.make(env)
    buffer, rng = cls(capacity, e.observation_space, e.action_space, seed=0, **how), np.random.default_rng(0)
    obs, _ = e.reset(seed=0)
    for _ in range(100):
        action = int(rng.integers(e.action_space.n))
        after, reward, terminated, truncated, _ = e.step(action)
        buffer.add(obs, action, reward, after, terminated, truncated)
        obs = e.reset()[0] if terminated or truncated else after
    return buffer


@pytest.mark.parametrize(("cls", "how"), [(ReplayBuffer, {"n_step": 3}), (PrioritizedReplay, {"alpha": 0.7})])
@pytest.mark.parametrize("folder", [False, True])
def test_saved_buffers(cls, how, folder, tmp_path):
    where = tmp_path / "buffer"
    buffer = filled(cls, **how, storage=where if folder else None)
    wanted = buffer.transitions()
    if folder:
        buffer.close()
    else:
        buffer.save(where)
    opened = from_saved(where)
    assert type(opened) is cls and len(opened) == 100 and opened.n_step == how.get("n_step", 1)
    if folder:
        with pytest.raises(InputError, match=r"^FQIConfig: dataset must be .*\[Errno"):  # in use
            FQI("CartPole-v1", dataset=str(where))
        opened.close()
    agent = FQI("CartPole-v1", dataset=str(where), hidden=(8,), seed=0)
    assert agent.config.transitions == 100 and agent.steps == 0 == agent.envs.episodes
    found = agent.buffer.transitions()
    for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    newest = FQI("CartPole-v1", dataset=str(where), transitions=30, hidden=(8,), seed=0).learn(1, progress=False)
    np.testing.assert_array_equal(newest.buffer.transitions().obs, wanted.obs[-30:])
    agent.learn(2, progress=False)
    assert agent.envs.episodes == 0


@pytest.mark.parametrize("folder", [False, True])
def test_saved_buffers_of_frame_stacks(folder, tmp_path):
    where, rng = tmp_path / "buffer", np.random.default_rng(0)
    buffer = ReplayBuffer(20, ((3, 4), np.float32), ((), np.int64), frame_stack=3, storage=where if folder else None)
    frames = rng.standard_normal((23, 4), np.float32)
    for k in range(20):
        buffer.add(frames[k : k + 3], k % 2, k, frames[k + 1 : k + 4], False, k == 19)
    wanted = buffer.transitions()
    if folder:
        buffer.close()
    else:
        buffer.save(where)
    opened = from_saved(where)
    found = opened.transitions()
    assert opened.frame_stack == 3 and found.obs.shape == (20, 3, 4)
    for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    if folder:
        opened.close()
    with pytest.raises(InputError, match=r"^FQIConfig: dataset must have observations of shape \(4,\), got \(3, 4\)$"):
        FQI("CartPole-v1", dataset=str(where))
    env = gym.wrappers.FrameStackObservation(gym.make("CartPole-v1"), 3)
    agent = FQI(env, dataset=str(where), hidden=(8,), seed=0).learn(1, progress=False)
    np.testing.assert_array_equal(agent.buffer.transitions().next_obs.reshape(20, 3, 4), wanted.next_obs)


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_not_stored_is_given(folder, tmp_path):
    where, options = tmp_path / "buffer", {"beta": 0.5, "beta_end": 0.9, "beta_steps": 300, "normalize": "tree"}
    buffer = filled(PrioritizedReplay, alpha=0.7, **options, storage=where if folder else None)
    buffer.update_priorities(np.arange(100), np.arange(100) / 50)
    if folder:
        buffer.flush()
        beta, wanted = buffer.beta, buffer.sample(8)
        buffer.close()
    else:
        buffer.save(where)
        beta, wanted = buffer.beta, buffer.sample(8)
    state = default_generator().state_dict()
    for name in ("alpha", "gamma", "capacity", *["storage"] * folder):
        with pytest.raises(TypeError, match=f"^replay.from_saved: {name} is that of .*buffer, and must be left out$"):
            from_saved(where, **{name: 0.3})
    with pytest.raises(ValueError, match="replay: normalize must be"):
        from_saved(where, normalize="all")
    opened = from_saved(where, seed=1, **options)
    assert opened.alpha == 0.7 and opened.beta == beta and default_generator().state_dict() == state
    if not folder:  # whose generator went on until it was closed
        for a, b in zip(opened.sample(8), wanted, strict=True):
            np.testing.assert_array_equal(a, b)
        copied = from_saved(where, storage=tmp_path / "folder", seed=1, **options)
        np.testing.assert_array_equal(copied.sample(8).weights, wanted.weights)
        copied.close()
    else:
        opened.close()


def test_the_buffer_of_an_agent_is_a_dataset(tmp_path):
    """Also of Discrete observations, which an agent keeps one-hot."""
    DQN("FrozenLake-v1", hidden=(8,), learning_starts=100, seed=0).learn(200, progress=False).save(tmp_path / "dqn")
    agent = FQI("FrozenLake-v1", dataset=str(tmp_path / "dqn" / "replay")).learn(3, progress=False)
    assert agent.regressor == "table" and len(agent.buffer) == 200


def test_minari_datasets(monkeypatch):
    e = filled(env="FrozenLake-v1").transitions()
    data = ReplayBuffer(100, gym.spaces.Discrete(16), gym.spaces.Discrete(4, start=0))
    data.extend(e.obs, e.action, e.reward, e.next_obs, e.terminated, e.truncated)
    monkeypatch.setattr("fastrl.agents.fqi.from_minari", lambda name: {"frozen-v0": data}[name])
    agent = FQI("FrozenLake-v1", dataset="frozen-v0").learn(2, progress=False)
    np.testing.assert_array_equal(agent.buffer.transitions().obs.argmax(1), e.obs)


def bad_actions():
    buffer = ReplayBuffer(1, ((4,), np.float32), ((), np.int64))
    buffer.add(np.zeros(4), 7, 0.0, np.zeros(4), False, False)
    return buffer


def other_shape():
    buffer = ReplayBuffer(1, ((3,), np.float32), ((), np.int64))
    buffer.add(np.zeros(3), 0, 0.0, np.zeros(3), False, False)
    return buffer


def box_actions():
    buffer = ReplayBuffer(1, ((4,), np.float32), ((2,), np.float32))
    buffer.add(np.zeros(4), np.zeros(2), 0.0, np.zeros(4), False, False)
    return buffer


def closed_buffer(folder):
    buffer = ReplayBuffer(5, ((4,), np.float32), ((), np.int64), storage=folder / "closed")
    buffer.close()
    return buffer


@pytest.mark.parametrize(
    ("make_buffer", "message"),
    [
        (bad_actions, "FQIConfig: dataset must have actions from 0 to 1, got 7..7"),
        (other_shape, "FQIConfig: dataset must have observations of shape (4,), got (3,)"),
        (box_actions, "FQIConfig: dataset must have discrete actions, got float32 (2,)"),
        (
            lambda: ReplayBuffer(5, ((4,), np.float32), ((), np.int64)),
            "FQIConfig: dataset must have a transition, got none",
        ),
    ],
)
def test_datasets_of_another_environment(make_buffer, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        FQI("CartPole-v1", dataset=make_buffer())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"dataset": "no/such/thing"},
            "or an id that Minari has on this machine: no such file or folder: no/such/thing; .",
        ),
        (
            {"dataset": "./nothing.bin"},
            r"or an id that Minari has on this machine: no such file or folder: ./nothing.bin$",
        ),
        ({"dataset": os.path.dirname(__file__)}, "machine: the folder .* holds none$"),
        ({"dataset": __file__}, "dataset must be a replay buffer, .*not a file of a fastrl replay buffer"),
        ({"dataset": 3}, "^FQI: dataset must be a replay buffer, its file or .*, got int$"),
        ({"regressor": "table"}, "regressor table needs Discrete observations, got Box"),
        ({"regressor": "forest"}, "regressor must be 'auto' or 'table' or 'trees' or 'network', got 'forest'"),
        ({"network": torch.nn.Linear(4, 2)}, "network must be left out"),
        ({"transitions": 0}, "transitions must be"),
        ({"networks": 0}, "networks must be"),
        ({"min_split": 1}, "min_split must be"),
        ({"device": "cuda"}, "device must be cpu"),
    ],
)
def test_bad_settings(how, message, tmp_path):
    with pytest.raises(InputError, match=message):
        FQI("CartPole-v1", **how)
    with pytest.raises(InputError, match="an id that Minari has on this machine: replay: the buffer is closed$"):
        FQI("CartPole-v1", dataset=closed_buffer(tmp_path))
    with pytest.raises(InputError, match="FQI needs discrete actions"):
        FQI("Pendulum-v1")


@pytest.mark.parametrize("regressor", ["network", "trees"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_datasets_that_are_not_finite(regressor, bad):
    buffer = ReplayBuffer(9, ((4,), np.float32), ((), np.int64))
    for _ in range(3):
        buffer.add(np.zeros(4), 0, 0.0, np.full(4, bad), False, False)
    with pytest.raises(InputError, match=f"^FQIConfig: dataset must have finite observations, got {bad}$"):
        FQI("CartPole-v1", dataset=buffer, regressor=regressor)


def test_a_given_buffer_that_was_not_saved(tmp_path):
    agent = FQI("CartPole-v1", dataset=filled(), hidden=(8,)).learn(1, progress=False)
    agent.save(tmp_path / "saved", replay=False)
    loaded = FQI.load(tmp_path / "saved")
    with pytest.raises(InputError, match="^FQI: the dataset was a buffer that is not here: give it again, or save it"):
        loaded.learn(2, progress=False)
    assert loaded.steps == 1 and loaded.predict(np.zeros(4, np.float32)) in (0, 1)


def test_rows_evaluations_and_checkpoints_count_iterations(tmp_path):
    how = {"hidden": (8,), "networks": 1, "transitions": 100}
    agent = FQI("CartPole-v1", **how).learn(30, folder=tmp_path / "run", progress=False, stop_at=1.0)
    assert agent.steps == 10  # at the first look
    lines = (tmp_path / "run" / "progress.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [str(i) for i in range(1, 11)]
    with pytest.raises(InputError, match="^stop_at is looked at in evaluations: .* <= total_steps, got 10 and 5$"):
        FQI("CartPole-v1", **how).learn(5, progress=False, stop_at=1.0)


@pytest.mark.parametrize("regressor", ["network", "trees"])
def test_observations_of_two_dimensions_as_torch(regressor):
    space = gym.spaces.Box(-2, 2, (2, 3), np.float64)
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(99, space, gym.spaces.Discrete(3))
    for _ in range(99):
        obs, action = rng.uniform(-2, 2, (2, 3)), int(rng.integers(3))
        buffer.add(obs, action, obs[1, action], rng.uniform(-2, 2, (2, 3)), True, False)

    class Still(gym.Env):
        observation_space, action_space = space, gym.spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            return np.zeros((2, 3)), {}

    agent = FQI(Still(), dataset=buffer, regressor=regressor, hidden=(8,), trees=3).learn(5, progress=False)
    obs = rng.uniform(-2, 2, (50, 2, 3))
    actions = agent.predict(obs)
    assert len(set(actions.tolist())) > 1
    np.testing.assert_array_equal(agent.policy_to_torch()(torch.as_tensor(obs)).numpy(), actions)


# ---- what all agents can


@KINDS
def test_checkpoints_and_copies_go_on_exactly(kind, tmp_path):
    straight = make(kind).learn(6, progress=False)
    first = make(kind).learn(3, schedule_steps=6, progress=False)
    first.save(tmp_path / "saved")
    for other in (copy.deepcopy(first), fastrl.agents.load(tmp_path / "saved", first.envs.env_id)):
        other.learn(6, progress=False)
        (_, a), (_, b) = straight._state(), other._state()
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a if name != "obs")


@KINDS
def test_the_first_row_after_a_resume_is_that_of_an_unbroken_run(kind, tmp_path):
    first = make(kind).learn(3, schedule_steps=6, progress=False)
    first.save(tmp_path / "saved")
    loaded = FQI.load(tmp_path / "saved")
    rows = [agent.learn(4, schedule_steps=6, progress=False).metrics() for agent in (loaded, first)]
    assert rows[0] == rows[1] and rows[0]["loss"] > 0


@KINDS
def test_loaded_without_its_environment_and_as_torch(kind, tmp_path):
    agent = make(kind).learn(4, progress=False)
    agent.save(tmp_path / "saved")
    obs = agent.buffer.transitions().obs
    actions = agent._predict(obs, True)
    assert len(set(actions.tolist())) > 1
    np.testing.assert_array_equal(fastrl.agents.load(tmp_path / "saved")._predict(obs, True), actions)
    raw = obs.argmax(1) if agent.envs.flattened is not None else obs
    np.testing.assert_array_equal(agent.policy_to_torch()(torch.as_tensor(raw)).numpy(), actions)
    assert set(agent._predict(obs, False).tolist()) == set(range(agent.n_actions))


def test_damaged_trees():
    forest = Forest(2, 1, 1, 2)
    rng = np.random.default_rng(0)
    forest.fit(rng.standard_normal((9, 2), np.float32), np.zeros(9, np.int64), rng.standard_normal(9), rng)
    good = forest.state_dict()
    for bad in (
        {"child": np.zeros_like(good["child"])[:-1]},
        {"child": np.where(good["child"] > 0, 0, good["child"]) + (np.arange(len(good["child"])) == 0) * 10**6},
        {"child": np.ones_like(good["child"])},
        {"value": good["value"] + np.nan},
        {"feature": good["feature"] - 5},
        {"feature": good["feature"] + 2},
        {"threshold": good["threshold"] + np.nan},
    ):
        with pytest.raises(ValueError, match="must be|damaged"):
            Forest(2, 1, 1, 2).load_state_dict({**good, **bad})
    with pytest.raises(ValueError, match="must have"):
        Forest(2, 1, 1, 2).load_state_dict({"value": good["value"]})


@pytest.mark.parametrize("mode", list(gym.vector.AutoresetMode))
def test_random_play_of_vector_environments(mode, counters):
    agent = FQI(counters(mode), transitions=50, hidden=(8,), seed=0).learn(1, progress=False)
    b = agent.buffer.transitions()
    assert len(b.obs) == 50
    np.testing.assert_array_equal(b.next_obs - b.obs, np.tile([0, 1], (50, 1)))  # no reset among them
    assert b.terminated.any() and b.truncated.any() and set(b.action.tolist()) == {0, 1}


@pytest.mark.slow
def test_neural_fqi_learns_cartpole_from_random_play():
    assert FQI("CartPole-v1", seed=1).learn(200, progress=False).evaluate(10).mean() >= 400


def test_the_command_line(tmp_path, capsys):
    from fastrl.cli import main

    filled(env="CliffWalking-v1").save(tmp_path / "data")
    command = ["train", "fqi", "--env", "CliffWalking-v1", "--out", str(tmp_path / "run")]
    assert main([*command, "--total-steps", "4", "--dataset", str(tmp_path / "data"), "--max-episode-steps", "5"]) == 0
    assert re.search(r"iterations\W+4 \(0 episodes\)", capsys.readouterr().out)
    (tmp_path / "data").unlink()  # the checkpoint has it
    assert main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "6", "--max-episode-steps", "5"]) == 0
    assert re.search(r"iterations\W+6 \(0 episodes\)", capsys.readouterr().out)
    command[-1] = str(tmp_path / "other")
    assert main([*command, "--dataset", str(tmp_path / "data")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fastrl: --dataset must be a replay buffer, its file or folder, or an id that Minari has ")
    assert err.count("--") == 1 and err.rstrip().endswith(f": no such file or folder: {tmp_path / 'data'}")
    (tmp_path / "run" / "checkpoint" / "replay").touch()
    for folder in ("run", "run/checkpoint"):
        assert main([*command, "--dataset", str(tmp_path / folder)]) == 2
        line = f"{tmp_path / folder} is not one, but {tmp_path / 'run' / 'checkpoint' / 'replay'} is"
        assert capsys.readouterr().err.endswith(f": {line}\n")

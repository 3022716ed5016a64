"""What actors, shards and learners do without Ray, which is plain Python."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from commands import fails

import fastrl.agents
from fastrl.agents import A2C, DQN, TD3, EnvConfig, InputError
from fastrl.agents.hyperparameters import ApeXConfig, ApeXDPGConfig, ApeXR2D2Config, IMPALAConfig
from fastrl.distributed import IMPALA, ApeX, ApeXDPG, ApeXR2D2
from fastrl.distributed.actor import Actor, DQNExplorer, R2D2Explorer, RolloutPlayer, TD3Explorer, epsilons
from fastrl.distributed.cluster import connected
from fastrl.distributed.fleet import Fleet
from fastrl.distributed.replay import ReplayFleet
from fastrl.distributed.shard import Held, SequenceShard, Shard
from fastrl.kernels import tanh_normal_mode

SMALL = {"hidden": (8,), "chunk": 20, "num_envs": 3, "actors": 2, "batch_size": 16, "buffer_size": 240}


def a_chunk(seed=5, **settings):
    """An actor's report and chunk, and the agent that it played with."""
    config = ApeXConfig(**{**SMALL, **settings})
    actor = Actor((DQNExplorer, "CartPole-v1", None), config, 1, seed)
    weights = ApeX("CartPole-v1", config, seed=9).online.vector
    report, chunk = actor.collect(0, (7, weights))
    assert report.version == 7 and report.transitions == len(chunk[0]) == 60
    return report, chunk, actor._player


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
    agent = DQNExplorer("CartPole-v1", ApeXConfig(**SMALL, epsilon_steps=10), None, 1)
    assert (agent.epsilon == 1).all()
    agent.steps = 10
    np.testing.assert_allclose(agent.epsilon, own[3:])
    np.testing.assert_allclose(ApeX("CartPole-v1", **SMALL).epsilon, own.mean())
    assert epsilons(ApeXConfig(actors=1, num_envs=1)) == pytest.approx([0.4])


def test_dpg_has_td3s_errors_as_first_priorities():
    """Against a loop over the chunk, in float64, with the outputs of the networks that were sent."""
    config = ApeXDPGConfig(**SMALL, target_noise=0.0, gamma=0.9, n_step=3, learning_starts=0)
    learner, actor = ApeXDPG("Pendulum-v1", config, seed=9), Actor((TD3Explorer, "Pendulum-v1", None), config, 0, 5)
    report, chunk = actor.collect(100, (7, np.concatenate(learner._sent())))
    obs, action, reward, next_obs, terminated, truncated, _, errors = chunk
    assert report.transitions == 60 and action.shape == (60, 1) and abs(action).max() <= 1
    assert not (terminated | truncated).any()
    online, critics = learner.actor, learner.critics
    noise = action - tanh_normal_mode(online.forward(obs))
    assert 0.03 < noise.std() < 0.2  # exploration_noise is 0.1
    q = critics.forward((obs, action))[..., 0].astype(np.float64)
    q_next = critics.forward((next_obs, tanh_normal_mode(online.forward(next_obs))))[..., 0].min(0).astype(np.float64)
    expected = np.empty(60)
    for i in range(60):
        last = min(i // 20 * 20 + 19, i + 2)
        m = last - i + 1
        y = sum(0.9**k * reward[i + k] for k in range(m)) + 0.9**m * q_next[last]
        expected[i] = abs(q[:, i] - y).mean()
    np.testing.assert_allclose(errors, expected, rtol=1e-4, atol=1e-5)
    shard = Shard(config, *learner._spaces, 3)
    assert shard.add(frozen(chunk)).size == 60
    assert shard.sample(16, 1)[1].action.shape == (16, 1)


RECURRENT = {"hidden": (8,), "memory_size": 6, "chunk": 20, "num_envs": 3, "length": 8, "burn_in": 2, "batch_size": 8}


def test_a_chunk_of_r2d2_is_cut_into_sequences_with_states():
    """The states, TD errors and priorities against the learner's network, a sequence after another."""
    pytest.importorskip("torch")
    config = ApeXR2D2Config(**RECURRENT, actors=2, buffer_size=2000, n_step=3)
    learner = ApeXR2D2("CartPole-v1", config, seed=9)
    actor = Actor((R2D2Explorer, "CartPole-v1", None), config, 1, 5)
    weights = 0, np.concatenate(learner._sent())
    _, first = actor.collect(0, weights)
    report, chunk = actor.collect(60, weights)
    obs, _, reward, _, terminated, truncated, _, state, errors = chunk
    assert report.transitions == 60 == len(errors) and state.shape == (60, 12) and reward.sum() == 60
    assert (terminated | truncated)[19::20].all() and terminated.any()
    for k in range(3):  # the state goes on from step to step, and from the last chunk, and begins anew behind an end
        before = first[7][20 * k + 19 : 20 * k + 20]
        _, carried = learner.online.unroll(first[0][20 * k + 19][None, None], before)
        for i in range(20 * k, 20 * k + 20):
            over = (first[4] if i == 20 * k else terminated)[20 * k + 19 if i == 20 * k else i - 1]
            expected = np.zeros_like(carried) if over else carried
            np.testing.assert_allclose(state[i], expected[0], rtol=1e-4, atol=1e-6)
            _, carried = learner.online.unroll(obs[i][None, None], expected)
    shard = SequenceShard(config, *learner._spaces, 3)
    held = shard.add(frozen(chunk))
    starts = np.flatnonzero(errors >= 0)
    assert (held.added, held.size) == (60, 60) and {0, 20, 40} <= set(starts.tolist())
    assert held.total == pytest.approx(((errors[starts] + 1e-6) ** 0.9).sum(), rel=1e-5)
    assert held.added == 60 and len(shard._buffer) == len(starts)
    b = shard._buffer[starts]
    np.testing.assert_array_equal(b.state, state[starts])
    assert (b.mask.sum(1) > 2).all() and b.obs.shape == (len(starts), 10, 4)
    learner.target.vector[:] = learner.online.vector
    td_errors = abs(learner._loss(b).td_errors)
    mask = b.mask[:, 2:]
    mixed = 0.9 * td_errors.max(1) + 0.1 * td_errors.sum(1) / mask.sum(1)
    np.testing.assert_allclose(errors[starts], mixed, rtol=1e-4, atol=1e-6)
    _, drawn = shard.sample(8, 2)
    assert drawn.obs.shape == (16, 10, 4) and set(drawn.indices.tolist()) <= set(starts.tolist())
    assert shard.update(starts, np.ones(len(starts), np.float32)) == 0
    assert shard._held().total == pytest.approx(len(starts), rel=1e-4)


def test_episodes_that_end_within_the_burn_in_are_no_error():
    """Chunks without a sequence to train on: nothing is drawn of them, and all goes on."""
    pytest.importorskip("torch")
    config = ApeXR2D2Config(**{**RECURRENT, "burn_in": 10, "num_envs": 1}, actors=1)
    env = EnvConfig("CartPole-v1", {"max_episode_steps": 8})
    learner = ApeXR2D2(env, config, seed=9)
    actor = Actor((R2D2Explorer, env, None), config, 0, 5)
    shard = SequenceShard(replace(config, buffer_size=100), *learner._spaces, 3)
    for _ in range(3):
        _, chunk = actor.collect(0, (0, np.concatenate(learner._sent())))
        assert (chunk[-1] == -1).all()
        held = shard.add(frozen(chunk))
    assert (held.size, held.total) == (60, 0.0)
    fleet, asked = a_fleet(config, SequenceShard), []
    fleet.shards[0].handle = SimpleNamespace(sample=SimpleNamespace(remote=lambda *_: asked.append(0) or len(asked)))
    fleet.shards[0].held = held
    fleet.request()
    assert not asked
    fleet.shards[0].held = Held(60, 60, 0.5)
    fleet.request()
    assert len(asked) == 2


def test_actors_play_on_while_there_is_nothing_to_draw():
    """Of R2D2, say, whose episodes end within the burn-in: the limiter would wait for draws that never come."""
    agent = ApeX("CartPole-v1", **{**SMALL, "actors": 1, "learning_starts": 60})
    agent._fleet, asked = a_fleet(agent.config), []
    agent._limit(agent._fleet)
    (actor,), (shard,) = agent._fleet.actors, agent._fleet.shards

    def collect(actor, steps):
        actor.calls += 1
        asked.append(steps)

    def poll(timeout):
        actor.calls = 0
        return []

    agent._fleet.collect, agent._fleet.poll, agent._fleet.request = collect, poll, lambda: None
    shard.held = Held(240, 240, 0.0)
    for _ in range(100):
        agent._iterate()
    assert len(asked) == 200
    shard.held = Held(240, 240, 1.0)
    agent._iterate()
    assert len(asked) == 200  # and wait where there is


ROLLOUTS = {"hidden": (8,), "num_envs": 3, "n_steps": 40, "max_grad_norm": 0.5}


def a_rollout(env, weights, **settings):
    actor = Actor((RolloutPlayer, env, None), IMPALAConfig(**ROLLOUTS, **settings), 0, 5)
    report, chunk = actor.collect(0, (0, weights))
    assert report.transitions == 120 and report.version == 0
    return report, chunk


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_on_policy_impalas_update_is_that_of_a2c(env):
    """With rho = 1 V-trace's advantages are GAE's with the same lambda, of lambda = 1 those of returns."""
    learner = IMPALA(env, **ROLLOUTS, seed=9)
    a2c = A2C(env, **ROLLOUTS, gae_lambda=1.0, gamma=0.99, normalize_advantages=False, seed=5)
    a2c.policy.vector[:] = learner.policy.vector
    before = learner.policy.vector.copy()
    for _ in range(2 if env == "CartPole-v1" else 5):  # to where Pendulum's episodes are cut
        a2c._collect()
    episodes, chunk = [], None
    player = RolloutPlayer(env, IMPALAConfig(**ROLLOUTS, seed=5), None, 0)
    player.take(before)
    for _ in range(2 if env == "CartPole-v1" else 5):
        n, ended, chunk = player.play()
        episodes += ended
    assert n == 120 and len(episodes) > 0 and (chunk[0] == a2c.rollout.obs).all()
    assert len(chunk[7]) == len(a2c.rollout.finals) and (env == "CartPole-v1" or len(chunk[7]) == 3)
    a2c._update()
    learner._learn(chunk)
    assert (learner.policy.vector != before).any() and learner.n_updates == 1
    np.testing.assert_allclose(learner.policy.vector, a2c.policy.vector, rtol=1e-5, atol=1e-6)


def test_impala_corrects_for_the_policy_that_was_played_with():
    """The gradient of the loss with targets and advantages by a loop in float64."""
    learner = IMPALA("CartPole-v1", **ROLLOUTS, seed=9, rho_clip=1.1, c_clip=0.9, pg_rho_clip=1.05, gae_lambda=0.9)
    other = IMPALA("CartPole-v1", **ROLLOUTS, seed=2)
    for policy in (learner.policy, other.policy):
        policy.vector[: policy.n_policy] *= 20  # so that they differ
    _, chunk = a_rollout("CartPole-v1", other.policy.vector)
    obs, action, log_mu, reward, terminated, truncated, last_obs, finals, _ = frozen(chunk[:7]) + chunk[7:]
    assert finals == [] and terminated.any() and not truncated.any()
    policy, c = learner.policy, learner.config
    out, v = (x.astype(np.float64) for x in policy.forward(np.concatenate([obs, last_obs[None]]).reshape(-1, 4)))
    log_pi = out - np.log(np.exp(out).sum(1, keepdims=True))
    rho = np.exp(np.take_along_axis(log_pi[:120], action.reshape(120, 1), 1).reshape(40, 3) - log_mu)
    assert rho.max() > 1.2 and rho.min() < 0.8
    v, lives = v.reshape(41, 3), 1.0 - terminated
    e, vs, advantage = np.zeros(3), np.empty((40, 3)), np.empty((40, 3))
    for t in reversed(range(40)):
        delta = reward[t] + c.gamma * lives[t] * v[t + 1] - v[t]
        advantage[t] = np.minimum(1.05, rho[t]) * (delta + c.gamma * lives[t] * e)
        e = np.minimum(1.1, rho[t]) * delta + c.gamma * 0.9 * np.minimum(0.9, rho[t]) * lives[t] * e
        vs[t] = v[t] + e
    args = obs.reshape(-1, 4), action.ravel(), advantage.ravel().astype(np.float32), vs.ravel().astype(np.float32)
    learner._loss(*args)
    expected = learner.policy.grad.copy()
    learner.optimizer.step = lambda **_: None
    learner._learn((obs, action, log_mu, reward, terminated, truncated, last_obs, finals, None))
    assert np.linalg.norm(expected) > 0.01
    np.testing.assert_allclose(learner.policy.grad, expected, rtol=1e-3, atol=1e-5)


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
        ({"chunk": 1000, "num_envs": 100, "shards": 2}, "buffer_size must be >= 200000, got .*: each of 2 shards"),
        ({"timeout": 0.5}, r"timeout must be in \[1, 1e\+06\], got 0.5"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(InputError, match=f"ApeXConfig: {message}"):
        ApeX("CartPole-v1", **settings)
    if "prioritized" in settings:
        with pytest.raises(InputError, match=f"ApeXDPGConfig: {message}"):
            ApeXDPG("Pendulum-v1", **settings)


@pytest.mark.parametrize(("name", "value", "wanted"), [("lap", True, "False"), ("lap_alpha", 0.6, "0.4")])
def test_loss_adjusted_priorities_are_not_those_of_shards(name, value, wanted):
    with pytest.raises(InputError, match=f"^ApeXDPGConfig: {name} must be {wanted}, got {value}: shards have other "):
        ApeXDPGConfig(**{name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actors": 0}, r"actors must be in \[1, 10000\], got 0"),
        ({"rho_clip": -1.0}, "rho_clip must be finite and >= 0, got -1.0"),
        ({"normalize_obs": True}, "normalize_obs must be False, got True: actors' statistics would differ"),
        ({"normalize_rewards": True}, "normalize_rewards must be False, got True"),
    ],
)
def test_settings_of_impala_that_cannot_work(settings, message):
    with pytest.raises(InputError, match=f"IMPALAConfig: {message}"):
        IMPALA("CartPole-v1", **settings)


def test_what_apex_and_r2d2_stand_for(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    for env, agent in (("Pendulum-v1", "ApeXDPG"), ("CartPole-v1", "ApeX")):
        line = f"{agent} needs Ray, which is not installed"
        fails(["train", "apex", "--hidden", "8", "8", "--env", env], f"^fastrl: {line}", capsys)
    line = "unknown option --policy-delay"  # of DPG alone
    fails(["train", "apex", "--env", "CartPole-v1", "--policy-delay", "2"], f"^fastrl: {line}", capsys)
    fails(["train", "r2d2", "--env", "CartPole-v1", "--actors", "2"], "^fastrl: ApeXR2D2 needs Ray", capsys)
    with pytest.raises(InputError, match="chunk must be >= burn_in \\+ length = 60, got 50"):
        ApeXR2D2("CartPole-v1", chunk=50, length=60)
    with pytest.raises(InputError, match="ApeX needs discrete actions; Pendulum-v1 has action space Box"):
        ApeX("Pendulum-v1")


def test_ray_that_does_not_start_in_time_is_one_line():
    """Ray raises Exception itself then."""

    def init(**_):
        raise Exception("The current node timed out\nduring startup.")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    line = "^Ray does not start on this machine: The current node timed out during startup."
    with pytest.raises(InputError, match=line), connected(ray, None, 2):
        pass


def test_an_actor_that_ray_has_ended_to_save_memory_is_replaced():
    """Of it there is an OutOfMemoryError, which is no RayActorError."""
    names = "RayActorError OutOfMemoryError WorkerCrashedError RayTaskError ObjectLostError GetTimeoutError"
    faults = {name: type(name, (Exception,), {}) for name in names.split()}
    started = []

    def start(*_):
        started.append(SimpleNamespace(collect=SimpleNamespace(remote=lambda *_: object())))
        return started[-1]

    ray = SimpleNamespace(put=lambda x: x, exceptions=SimpleNamespace(**faults))
    ray.remote = lambda **_: lambda cls: SimpleNamespace(remote=start)
    fleet = Fleet(ray, IMPALAConfig(actors=2), (RolloutPlayer, "CartPole-v1", None))
    with pytest.warns(UserWarning, match="actor 1 has died and was replaced: the node is low on memory"):
        fleet._raised("collect", fleet.actors[1], 0, faults["OutOfMemoryError"]("the node is low on memory"))
    assert fleet.lost.actors == 1 and len(started) == 3 and fleet.actors[1].handle is started[2]
    assert [actor.calls for actor in fleet.actors] == [0, 1]  # it has been asked for the chunk again


def a_fleet(config, shard=Shard, steps=0):
    """One whose actors and shards are the seeds they were started with."""
    ray = SimpleNamespace(put=id, remote=lambda **_: lambda cls: SimpleNamespace(remote=lambda *args: args[-1]))
    ray.wait = lambda refs, num_returns, timeout: ([], refs)
    return ReplayFleet(ray, config, (DQNExplorer, "CartPole-v1", None), (shard, None, None), steps)


def test_a_run_that_goes_on_has_other_seeds():
    def seeds(steps):
        fleet = a_fleet(ApeXConfig(actors=2, seed=7), steps=steps)
        return [member.handle for member in fleet._members()], fleet._rng.random()

    first, again, later = seeds(0), seeds(0), seeds(50)
    assert first == again and len(set(first[0])) == 3
    assert not set(first[0]) & set(later[0]) and first[1] != later[1]


@pytest.mark.parametrize("make", [IMPALA, ApeX])
def test_the_fleet_of_a_run_is_made_with_its_steps(make, monkeypatch):
    made = []
    for cls in (Fleet, ReplayFleet):
        monkeypatch.setattr(cls, "_new", lambda self, kind, number: made.append(self._steps))
    monkeypatch.setattr("fastrl.distributed.learner.ReplayLearner._limit", lambda *_: None)
    agent = make("CartPole-v1", actors=1, hidden=(8,))
    agent.steps = 40
    ray = SimpleNamespace(put=id, remote=lambda **_: lambda cls: None)
    agent._make_fleet(ray, (None, None, None))
    assert set(made) == {40}


def test_who_was_not_asked_is_not_waited_for(monkeypatch):
    """The learner may be busy for longer than the timeout, which counts from when somebody is asked."""
    now = [100.0]
    monkeypatch.setattr("fastrl.distributed.fleet.time.monotonic", lambda: now[0])
    fleet = a_fleet(ApeXConfig(actors=1, timeout=2.0))
    now[0] += 10
    fleet._call("sample", fleet.actors[0], "ref", None)
    assert fleet.poll(0.0) == []
    now[0] += 1
    fleet._call("sample", fleet.actors[0], "another", None)
    assert fleet.poll(0.0) == []
    now[0] += 1.5  # since the first
    with pytest.raises(RuntimeError, match="no actor and no shard has answered for 2 s"):
        fleet.poll(0.0)


def test_an_older_answer_of_a_shard_does_not_hide_a_newer_one():
    """A shard has several threads; with too few transitions held the learner would wait for ever."""
    fleet = a_fleet(ApeXConfig(actors=1))
    (shard,) = fleet.shards
    fleet._answered("add", shard, None, Held(400, 240, 31.0))
    fleet._answered("add", shard, None, Held(50, 50, 9.0))
    assert fleet.held == 240
    fleet._answered("add", shard, None, Held(450, 240, 35.0))
    assert shard.held.total == 35.0


def test_an_environment_object_cannot_be_made_by_actors():
    with pytest.raises(InputError, match="ApeX: env must be an id or an EnvConfig, which actors make, got TimeLimit"):
        ApeX(gym.make("CartPole-v1"))


def test_without_ray_one_line_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    line = 'ApeX needs Ray, which is not installed: pip install "fastrl-kernels[ray]"'
    fails(["train", "apex", "--env", "CartPole-v1"], f"^fastrl: {line}".replace("[", r"\["), capsys)
    assert [path.name for path in tmp_path.rglob("*") if path.name != "runs"] == []


@pytest.mark.parametrize(
    ("cls", "env", "base", "settings"),
    [(ApeX, "CartPole-v1", DQN, SMALL), (ApeXDPG, "Pendulum-v1", TD3, SMALL), (IMPALA, "CartPole-v1", A2C, ROLLOUTS)],
)
def test_an_agent_is_saved_and_loaded_without_ray(cls, env, base, settings, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    agent = cls(env, **settings)
    agent.save(tmp_path / "a")
    shape = (5, *agent.envs.observation_space.shape)
    obs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for loaded in (cls.load(tmp_path / "a"), fastrl.agents.load(tmp_path / "a")):
        assert loaded.config == agent.config and (loaded.predict(obs) == agent.predict(obs)).all()
    assert isinstance(loaded, base) and agent.evaluate(2).shape == (2,)

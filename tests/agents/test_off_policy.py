"""What DDPG, TD3 and SAC share: networks and their gradients, bounds, switches, exact resume, vector environments."""

import copy
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from fastrl.agents import D4PG, DDPG, NAF, SAC, TD3, TQC, CrossQ, QTOpt, SACDiscrete, sac
from fastrl.agents.config import InputError
from fastrl.agents.hyperparameters.off_policy import ContinuousConfig
from fastrl.agents.parts import parts_state
from fastrl.replay import Batch, PrioritizedReplay

AGENTS = [DDPG, TD3, SAC]
SMALL = {"hidden": (16, 16), "learning_starts": 40, "batch_size": 16, "buffer_size": 150, "per_beta_steps": 400}
CASES = {
    "naf": (NAF, {}),
    "naf_all": (NAF, {"noise": "ou", "prioritized": True, "n_step": 3, "num_envs": 2, "max_grad_norm": 1.0}),
    "qt_opt": (QTOpt, {"cem_samples": 16, "lag": 50}),
    "qt_opt_all": (QTOpt, {"cem_samples": 8, "lag": 7, "noise": "ou", "prioritized": True, "n_step": 3, "num_envs": 2}),
    "d4pg": (D4PG, {"noise": "ou"}),
    "d4pg_all": (D4PG, {"n_atoms": 21, "prioritized": True, "num_envs": 2, "max_grad_norm": 1.0}),
    "ddpg": (DDPG, {}),
    "ddpg_ou": (DDPG, {"noise": "ou", "noise_std": 0.3, "num_envs": 2, "prioritized": True}),
    "td3": (TD3, {}),
    "td3_all": (TD3, {"prioritized": True, "n_step": 3, "num_envs": 2, "updates": 2, "max_grad_norm": 1.0}),
    "td3_lap": (TD3, {"lap": True, "lap_alpha": 0.7, "num_envs": 2}),
    "sac": (SAC, {}),
    "sac_all": (
        SAC,
        {
            "prioritized": True,
            "n_step": 3,
            "num_envs": 2,
            "learning_rate_end": 1e-4,
            "learning_rate_steps": 400,
            "updates": 3,
        },
    ),
    "tqc": (TQC, {"n_critics": 2, "n_quantiles": 5}),
    "tqc_all": (TQC, {"n_critics": 3, "n_quantiles": 4, "drop_per_critic": 1, "prioritized": True, "num_envs": 2}),
    "crossq": (CrossQ, {"norm_warmup": 100}),
    "crossq_all": (
        CrossQ,
        {
            "critic_hidden": (24,),
            "prioritized": True,
            "n_step": 3,
            "num_envs": 2,
            "policy_delay": 1,
        },
    ),
    "sac_discrete": (SACDiscrete, {"learning_rate_steps": 400}),
    "sac_discrete_all": (
        SACDiscrete,
        {"temperature": None, "prioritized": True, "n_step": 3, "num_envs": 2, "learning_rate_end": None},
    ),
    "sac_fixed": (SAC, {"temperature": 0.1, "train_every": 2, "max_grad_norm": 0.5}),
}


def make(case, **more):
    cls, settings = CASES[case]
    return cls("Pendulum-v1" if cls.continuous else "CartPole-v1", **{**SMALL, **settings, **more})


def tensors(agent):
    """Everything of the checkpoint that is a tensor, and the states of the rest."""
    states, found = parts_state(agent._parts())
    return found, states


def assert_same(a, b):
    (x, states_a), (y, states_b) = tensors(a), tensors(b)
    assert x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)
    assert states_a == states_b
    assert a.rng.bit_generator.state == b.rng.bit_generator.state
    assert a.envs.obs.tobytes() == b.envs.obs.tobytes()
    assert (a.steps, a.n_updates, a.envs.episodes) == (b.steps, b.n_updates, b.envs.episodes)
    assert a.envs.recent == b.envs.recent and a.metrics() == b.metrics()
    x, y = copy.deepcopy(a.buffer.sample(64)), b.buffer.sample(64)
    assert all(map(np.array_equal, x, y))


def test_resume_in_a_new_process_is_exact(tmp_path):
    for case in CASES:
        agent = make(case).learn(230, progress=False)
        assert agent.buffer._added > agent.buffer.capacity  # the ring has come round
        agent.save(tmp_path / case)
    code = (
        "import sys, fastrl.agents as f\n"
        "for case, name in zip(sys.argv[2::2], sys.argv[3::2]):\n"
        "    agent = f.ALGORITHMS[name].load(f'{sys.argv[1]}/{case}')\n"
        "    agent.learn(330, progress=False).save(f'{sys.argv[1]}/{case}_on')"
    )
    cases = [word for case, (cls, _) in CASES.items() for word in (case, cls.algorithm)]
    subprocess.run([sys.executable, "-c", code, tmp_path, *cases], check=True)
    for case, (cls, _) in CASES.items():
        assert_same(make(case).learn(330, progress=False), cls.load(tmp_path / f"{case}_on"))


@pytest.mark.parametrize("case", CASES)
def test_save_does_not_disturb_and_every_switch_trains(case, tmp_path):
    agent = make(case).learn(250, progress=False)
    before, _ = tensors(agent)
    before = {k: v.copy() for k, v in before.items()}
    agent.save(tmp_path / "a")
    agent.learn(330, progress=False)
    assert_same(agent, make(case).learn(330, progress=False))
    after, _ = tensors(agent)
    assert all(np.isfinite(v).all() for v in after.values())
    assert not any(
        np.array_equal(before[k], after[k])
        for k in after
        if k != "log_temperature" or case not in ("sac_fixed", "sac_discrete")
    )
    assert all(np.isfinite(v) for v in agent.metrics().values())
    c = agent.config
    assert agent.n_updates == (330 - 40) // c.train_every * c.updates
    assert isinstance(agent.buffer, PrioritizedReplay) == (c.prioritized or getattr(c, "lap", False))
    assert agent.evaluate(2).shape == (2,)


# ---- networks


def twins(critics):
    """The critics as torch modules of their own, in float64."""
    return copy.deepcopy(critics.to_torch()).double()


def test_networks_start_like_linear_layers_and_differ():
    agent = TD3("Pendulum-v1", hidden=(400, 300))
    for name, view in agent.critics.parameters().items():
        n_in = {"0": 4, "2": 400, "4": 300}[name.split(".")[1]]
        assert abs(view).max() <= n_in**-0.5
        if view.size >= 600:
            assert abs(view).max() > 0.97 * n_in**-0.5 and abs(view.mean()) < 0.1 * n_in**-0.5
    first, second = np.split(agent.critics.vector, 2)
    assert (first != second).mean() > 0.99
    hidden = agent.actor.parameters()["2.weight"] * 400**0.5, agent.critics.parameters()["0.2.weight"] * 400**0.5
    assert abs(np.corrcoef(hidden[0].ravel(), hidden[1].ravel())[0, 1]) < 0.02
    assert (agent.target_critics.vector == agent.critics.vector).all()
    assert (agent.target_actor.vector == agent.actor.vector).all()


@pytest.mark.parametrize("cls", AGENTS)
def test_update_costs_no_critic_gradients_in_the_actors_pass(cls, monkeypatch):
    """The critics' gradient is computed once an update, and the actor's step changes neither it nor the critics."""
    agent = cls("Pendulum-v1", **SMALL).learn(60, progress=False)
    agent.n_updates = 1  # so that TD3 takes an actor's step
    passes, seen = [], []

    def recorded(network, name):
        backward = network.backward

        def record(d_out, **kw):
            passes.append((name, kw.get("parameters", True)))
            assert d_out.any()
            return backward(d_out, **kw)

        monkeypatch.setattr(network, "backward", record)

    recorded(agent.critics, "critics")
    recorded(agent.actor, "actor")
    step = agent.critic_optimizer.step
    monkeypatch.setattr(
        agent.critic_optimizer,
        "step",
        lambda **kw: (step(**kw), seen.append((agent.critics.vector.copy(), agent.critics.grad.copy())))[0],
    )
    agent._update()
    assert passes == [("critics", True), ("critics", False), ("actor", True)]
    ((vector, grad),) = seen
    assert (agent.critics.vector == vector).all() and (agent.critics.grad == grad).all()


# ---- actions and bounds


class Wide(gym.Env):
    """Actions ``[2, 2]`` with bounds of their own in each dimension."""

    observation_space = gym.spaces.Box(-1, 1, (2, 3), np.float64)
    low, high = np.array([[-3, 0], [2, -1e-3]]), np.array([[-1, 100], [2.5, 1e-3]])

    def __init__(self, dtype=np.float32, low=None, high=None):
        low, high = (self.low if low is None else low), (self.high if high is None else high)
        self.action_space = gym.spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, (2, 3)), {}

    def step(self, action):
        assert action.dtype == self.action_space.dtype and self.action_space.contains(action)
        self.actions.append(action.copy())
        return self.np_random.uniform(-1, 1, (2, 3)), 0.0, False, len(self.actions) % 9 == 0, {}


@pytest.mark.parametrize("cls", AGENTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_have_the_shape_dtype_and_bounds_of_the_box(cls, dtype):
    env = Wide(dtype)
    agent = cls(env, **{**SMALL, "learning_starts": 300}).learn(310, progress=False)
    sent = np.array(env.actions)
    random = (sent[:300] - env.low) / (env.high - env.low)  # uniform before learning_starts
    assert (random.min(0) < 0.05).all() and (random.max(0) > 0.95).all() and (abs(random.mean(0) - 0.5) < 0.1).all()
    kept = agent.buffer.transitions().action
    assert kept.shape[1:] == (4,) and kept.dtype == np.float32 and abs(kept).max() <= 1
    obs = env.reset(seed=1)[0]
    for deterministic in (True, False):
        action = agent.predict(obs, deterministic)
        assert action.shape == (2, 2) and action.dtype == dtype and env.action_space.contains(action)
        assert agent.predict(np.stack([obs] * 5), deterministic).shape == (5, 2, 2)
    np.testing.assert_array_equal(agent.predict(obs), agent.predict(obs))
    assert not np.array_equal(agent.predict(obs, deterministic=False), agent.predict(obs, deterministic=False))


def test_bounds_are_reached_exactly():
    agent = TD3(Wide(), **SMALL)
    ends = np.array([[-1, -1, -1, -1], [1, 1, 1, 1]], np.float32)
    sent = agent._to_env(ends)
    np.testing.assert_array_equal(sent[0], Wide.low.astype(np.float32))
    np.testing.assert_array_equal(sent[1], Wide.high.astype(np.float32))


@pytest.mark.parametrize("cls", AGENTS)
@pytest.mark.parametrize(
    ("where", "low", "high", "text"),
    [
        ((0, 1), -np.inf, 1.0, r"\[-inf, 1\] in dimension \(0, 1\)"),
        ((1, 0), 0.0, np.inf, r"\[0, inf\] in dimension \(1, 0\)"),
        ((1, 1), -np.inf, np.inf, r"\[-inf, inf\] in dimension \(1, 1\)"),
        ((1, 1), 0.5, 0.5, r"\[0.5, 0.5\] in dimension \(1, 1\)"),
    ],
)
def test_unusable_bounds_name_the_dimension(cls, where, low, high, text):
    lows, highs = Wide.low.copy(), Wide.high.copy()
    lows[where], highs[where] = low, high
    with pytest.raises(InputError, match=rf"^{cls.__name__} needs finite action bounds with low < high; .* {text}"):
        cls(Wide(low=lows, high=highs), **SMALL)


@pytest.mark.parametrize("cls", AGENTS)
def test_discrete_actions_are_refused(cls):
    with pytest.raises(InputError, match=f"^{cls.__name__} needs Box actions of floats; CartPole-v1 has action space"):
        cls("CartPole-v1")


def test_settings_are_checked():
    for name, value in {
        "tau": 0.0,
        "gamma": 1.5,
        "batch_size": 0,
        "learning_rate": 0.0,
        "actor_learning_rate": -1.0,
    }.items():
        with pytest.raises(InputError, match=f"ContinuousConfig: {name} must be"):
            ContinuousConfig(**{name: value})
    with pytest.raises(InputError, match="hidden must name at least one layer"):
        TD3("Pendulum-v1", hidden=())
    with pytest.raises(InputError, match="TD3Config: policy_delay must be"):
        TD3("Pendulum-v1", policy_delay=0)
    with pytest.raises(InputError, match="DDPGConfig: ou_theta must be"):
        DDPG("Pendulum-v1", ou_theta=0.0)
    with pytest.raises(InputError, match="SACConfig: log_std_min must be"):
        SAC("Pendulum-v1", log_std_min=3.0)


# ---- the loop


def test_learning_rates(monkeypatch):
    settings = {"learning_rate_end": 2e-3, "learning_rate_steps": 100, "actor_learning_rate": 1e-3}
    agent = SAC("Pendulum-v1", learning_rate=1e-2, **settings, **SMALL)
    assert agent.learning_rate == 1e-2
    for steps, wanted in ((50, 6e-3), (1000, 2e-3)):
        agent.steps = steps
        assert agent.learning_rate == agent.metrics()["learning_rate"] == pytest.approx(wanted)
    rates = {}
    for name in ("critic_optimizer", "temperature_optimizer", "actor_optimizer"):
        step = getattr(agent, name).step
        record = lambda *, lr, name=name, step=step, **kw: (rates.update({name: lr}), step(lr=lr, **kw))  # noqa: E731
        monkeypatch.setattr(getattr(agent, name), "step", record)
    agent.learn(1001, progress=False)
    assert list(rates.values()) == pytest.approx([2e-3, 2e-4, 2e-3])
    assert TD3("Pendulum-v1", learning_rate=1e-2, **SMALL).learning_rate == 1e-2


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("cls", AGENTS)
def test_vector_environments_in_all_autoreset_modes(cls, mode):
    def env():
        return gym.make("Pendulum-v1", max_episode_steps=7)

    agent = cls(SyncVectorEnv([env] * 3, autoreset_mode=mode), **SMALL).learn(120, progress=False)
    assert agent.steps == 120 and agent.n_updates > 0 and np.isfinite(agent.metrics()["loss"])
    batch = agent.buffer.sample(200)
    assert batch.truncated.any() and not batch.terminated.any()
    assert (batch.discount == np.float32(0.99)).all()  # a truncation is bootstrapped
    dummy = 120 // 8 if mode == AutoresetMode.NEXT_STEP else 0  # its resets are no transitions
    assert agent.buffer._added == 120 - dummy


def batch_of(n_obs, n_actions, size, seed=0):
    rng = np.random.default_rng(seed)
    terminated = rng.random(size) < 0.4

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return Batch(
        obs=normal(size, n_obs),
        action=rng.uniform(-1, 1, (size, n_actions)).astype(np.float32),
        reward=normal(size),
        next_obs=normal(size, n_obs),
        terminated=terminated,
        truncated=rng.random(size) < 0.4,
        indices=np.arange(size),
        weights=rng.uniform(0.2, 1, size).astype(np.float32),
        discount=np.where(terminated, 0, 0.9 ** rng.integers(1, 4, size)).astype(np.float32),
    )


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("cls", AGENTS)
def test_critic_step_against_autograd(cls, prioritized, monkeypatch):
    agent = cls("Pendulum-v1", **SMALL, prioritized=prioritized)
    batch, seen = batch_of(3, 1, 16), {}
    monkeypatch.setattr(agent.buffer, "sample", lambda n: batch)
    if prioritized:
        monkeypatch.setattr(agent.buffer, "update_priorities", lambda i, e: seen.update(indices=i, errors=e))
    y, nets = np.random.default_rng(1).standard_normal(16, np.float32), twins(agent.critics)
    monkeypatch.setattr(sys.modules[cls.__module__], "min_q_targets", lambda *_, **__: y)
    x = torch.from_numpy(np.concatenate((batch.obs, batch.action), 1)).double()
    error = torch.stack([net(x).squeeze(1) for net in nets]) - torch.from_numpy(y).double()
    weights = torch.from_numpy(batch.weights).double() if prioritized else torch.ones(16).double()
    loss = (weights * error**2).mean(1).sum()
    loss.backward()
    agent._update()
    assert agent.metrics()["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, p in nets.named_parameters():
        np.testing.assert_allclose(agent.critics.parameters(agent.critics.grad)[name], p.grad, rtol=1e-4, atol=1e-5)
    if prioritized:
        assert seen["indices"] is batch.indices
        np.testing.assert_allclose(seen["errors"], error.abs().mean(0).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", AGENTS)
def test_targets_move_by_tau(cls):
    agent = cls("Pendulum-v1", **SMALL, tau=0.25).learn(60, progress=False)
    agent.n_updates = 1
    before = agent.target_critics.vector.copy()
    agent._update()
    expected = 0.75 * before + 0.25 * agent.critics.vector
    np.testing.assert_allclose(agent.target_critics.vector, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [DDPG, TD3, SAC])
def test_divergence_is_not_blamed_on_the_environment(cls):
    agent = cls("Pendulum-v1", hidden=(8,), batch_size=8, learning_starts=20)
    agent.learn(30, progress=False)
    agent.actor.vector[:] = np.nan
    with pytest.raises(InputError, match="loss is not finite at step 30, .* training diverged"):
        agent.learn(40, progress=False)


@pytest.mark.parametrize("cls", [TD3, SAC])
def test_updates_are_those_of_stable_baselines3(cls, monkeypatch):
    """From the same weights, on the same batches and with the same noise, 30 updates move all networks alike."""
    sb3 = pytest.importorskip("stable_baselines3", reason="a library that only the benchmarks install")
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    rows, rates = 32, {"learning_rate": 1e-3, "actor_learning_rate": 1e-3}
    settings = {"target_noise": 0.0} if cls is TD3 else {}
    agent = cls("Pendulum-v1", hidden=(16, 16), batch_size=rows, seed=3, **rates, **settings)
    theirs = getattr(sb3, cls.__name__)(
        "MlpPolicy", "Pendulum-v1", learning_rate=1e-3, batch_size=rows, policy_kwargs={"net_arch": [16, 16]},
        device="cpu", **({"target_policy_noise": 0.0} if cls is TD3 else {}),
    )  # fmt: skip
    theirs._setup_learn(1)
    heads = [theirs.actor.mu] if cls is TD3 else [theirs.actor.latent_pi, theirs.actor.mu, theirs.actor.log_std]

    def linear(*modules):
        return [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]

    layers = linear(*heads)

    def found():
        """Their parameters, and ours, in the order of ours: mean and log_std of SAC are one layer here."""
        state = {}
        for i, layer in enumerate(layers if cls is TD3 else layers[:-2]):
            state |= {f"{2 * i}.weight": layer.weight, f"{2 * i}.bias": layer.bias}
        if cls is SAC:
            mean, log_std = layers[-2:]
            state["4.weight"] = torch.cat((mean.weight, log_std.weight))
            state["4.bias"] = torch.cat((mean.bias, log_std.bias))
        for k, q in enumerate(theirs.critic.q_networks):
            for i, layer in enumerate(linear(q)):
                state |= {f"{k}.{2 * i}.weight": layer.weight, f"{k}.{2 * i}.bias": layer.bias}
        names = [*agent.actor.parameters(), *agent.critics.parameters()]
        flat = torch.cat([state[name].detach().flatten() for name in names]).numpy()
        return flat, np.concatenate((agent.actor.vector, agent.critics.vector))

    with torch.no_grad():
        ours = {name: torch.from_numpy(x) for name, x in agent.actor.parameters().items()}
        for i, layer in enumerate(layers):
            column = slice(None) if cls is TD3 or i < 2 else slice(i - 2, i - 1)
            layer.weight.copy_(ours[f"{2 * min(i, 2)}.weight"][column])
            layer.bias.copy_(ours[f"{2 * min(i, 2)}.bias"][column])
        ours = {name: torch.from_numpy(x) for name, x in agent.critics.parameters().items()}
        for k, q in enumerate(theirs.critic.q_networks):
            for i, layer in enumerate(linear(q)):
                layer.weight.copy_(ours[f"{k}.{2 * i}.weight"])
                layer.bias.copy_(ours[f"{k}.{2 * i}.bias"])
        theirs.actor_target = copy.deepcopy(theirs.actor) if cls is TD3 else None
        theirs.critic_target.load_state_dict(theirs.critic.state_dict())

    start, same = found()
    assert (start == same).all()
    rng = np.random.default_rng(5)
    if cls is SAC:  # ours draws for the next observations first, theirs for these
        drawn = {"ours": [], "theirs": []}

        def given(sample):
            return lambda *args, generator, **kw: sample(*args, noise=drawn["ours"].pop(0), **kw)

        for name in ("tanh_normal_sample", "tanh_normal_sample_pullback"):
            monkeypatch.setattr(sac, name, given(getattr(sac, name)))
        monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda *_, **__: drawn["theirs"].pop(0))
    for _ in range(30):
        obs, next_obs = (torch.from_numpy(x) for x in rng.standard_normal((2, rows, 3), np.float32))
        action = torch.from_numpy(rng.uniform(-1, 1, (rows, 1)).astype(np.float32))
        reward = torch.from_numpy(rng.standard_normal(rows, np.float32))
        if cls is SAC:
            noise = [torch.from_numpy(x) for x in rng.standard_normal((2, rows, 1), np.float32)]
            drawn["ours"], drawn["theirs"] = [x.numpy() for x in noise], noise[::-1]
        zero = torch.zeros(rows)
        batch = Batch(obs, action, reward, next_obs, zero, zero, zero.long(), zero + 1, zero + 0.99)
        batch = Batch(*(x.numpy() for x in batch))
        monkeypatch.setattr(agent.buffer, "sample", lambda n, batch=batch: batch)
        their_batch = ReplayBufferSamples(obs, action, next_obs, zero[:, None], reward[:, None])
        monkeypatch.setattr(theirs.replay_buffer, "sample", lambda *_, b=their_batch, **__: b)
        agent._update()
        theirs.train(1, rows)
    wanted, same = found()
    # Adam makes steps of equal size of gradients near 0 too, where the rounding (and the epsilon in their log) decides.
    assert np.linalg.norm(same - wanted) < 0.01 * np.linalg.norm(wanted - start)

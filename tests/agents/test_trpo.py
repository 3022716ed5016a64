"""TRPO: its step against an independent one, the KL bound that no update breaks, and degenerate batches."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastrl.agents import TRPO, trpo
from fastrl.agents.config import InputError

BENCH = Path(__file__).parents[2] / "bench"
SMALL = {"hidden": (8,), "num_envs": 2, "n_steps": 16, "value_epochs": 1, "minibatches": 1}


def distribution(agent, obs):
    """The policy as torch has it, in float64, from float32 outputs."""
    out = torch.from_numpy(agent.policy.output(obs)).double()
    if agent.policy.log_std is None:
        return Categoricals(out, agent.policy.sizes.tolist())
    return torch.distributions.Normal(out, torch.from_numpy(agent.policy.log_std).double().exp().expand_as(out))


class Categoricals:
    """Independent ones, of the logits [B, K] of all."""

    def __init__(self, logits, sizes):
        self.parts = [torch.distributions.Categorical(logits=x) for x in torch.split(logits, sizes, 1)]

    def log_prob(self, action):
        action = action.reshape(len(action), -1)
        return sum(part.log_prob(action[:, i]) for i, part in enumerate(self.parts))

    def kl(self, new):
        pairs = zip(self.parts, new.parts, strict=True)
        return sum(torch.distributions.kl_divergence(p, q) for p, q in pairs)


def mean_kl(old, new):
    if isinstance(old, Categoricals):
        return float(old.kl(new).mean())
    kl = torch.distributions.kl_divergence(old, new)
    return float((kl if kl.dim() == 1 else kl.sum(1)).mean())


def batch_of(agent, size, rng, **given):
    """Observations, actions of the agent's own policy, advantages and the value's targets."""
    policy = agent.policy
    obs = rng.normal(size=(size, *agent.envs.observation_space.shape)).astype(np.float32)
    action, _ = policy.act(obs, agent.generator)
    batch = {"obs": obs, "action": action, "advantage": rng.normal(size=size).astype(np.float32), **given}
    return [np.asarray(batch[name]) for name in ("obs", "action", "advantage")]


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "parts"])
def test_the_step_is_the_natural_gradient_of_an_explicit_fisher_matrix(env, rng):
    """F and g by float64 autograd, row by row; the step by a dense solve; the line search takes the whole of it."""
    settings = {**SMALL, "cg_iterations": 300, "cg_rtol": 1e-9, "cg_damping": 0.1, "max_kl": 1e-4}
    if env == "parts":
        env, settings["num_envs"] = Bandit(ACTIONS["parts"]), 1
    agent = TRPO(env, **settings)
    batch = batch_of(agent, 64, rng)
    obs, action, advantage = map(torch.from_numpy, batch)
    names = [n for n in agent.policy.parameters() if "critic" not in n]
    weights = [
        torch.from_numpy(p).double().requires_grad_() for n, p in agent.policy.state_dict().items() if n in names
    ]

    def at(*parameters):
        given = dict(zip(names, parameters, strict=True))
        hidden = torch.tanh(obs.double() @ given["actor.0.weight"].T + given["actor.0.bias"])
        out = hidden @ given["actor.2.weight"].T + given["actor.2.bias"]
        if "log_std" not in given:
            return Categoricals(out, agent.policy.sizes.tolist())
        return torch.distributions.Normal(out, given["log_std"].exp().expand_as(out))

    def kl(*parameters):
        old, new = at(*(w.detach() for w in weights)), at(*parameters)
        if isinstance(old, Categoricals):
            return old.kl(new).mean()
        terms = torch.distributions.kl_divergence(old, new)
        return (terms if terms.dim() == 1 else terms.sum(1)).mean()

    sizes = [w.numel() for w in weights]
    hessian = torch.autograd.functional.hessian(kl, tuple(weights))
    F = torch.cat([torch.cat([h.reshape(m, n) for h, n in zip(row, sizes, strict=True)], 1)
                   for row, m in zip(hessian, sizes, strict=True)])  # fmt: skip
    log_prob = at(*weights).log_prob(action)
    log_prob = log_prob if log_prob.dim() == 1 else log_prob.sum(1)
    g = torch.cat([x.flatten() for x in torch.autograd.grad((log_prob * advantage).mean(), weights)])
    damped = F + 0.1 * torch.eye(len(F))
    x = torch.linalg.solve(damped, g)
    step = torch.sqrt(2 * 1e-4 / (x @ damped @ x)) * x

    agent = TRPO(env, **settings)  # float32 again
    before = agent.theta.copy()
    log = agent._improve_policy(*batch)
    assert log["step_fraction"] == 1.0 and 0 < log["kl"] <= 1e-4 and log["policy_loss"] < -float(advantage.mean())
    taken = torch.from_numpy(agent.theta - before).double()
    assert torch.linalg.norm(taken - step) < 1e-3 * torch.linalg.norm(step)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_policy_and_value_have_the_vector_of_parameters_to_themselves(env, rng):
    agent = TRPO(env, **SMALL)
    critic = agent.policy.critic.vector.copy()
    theta = agent.theta.copy()
    obs, action, advantage = batch_of(agent, 32, rng)
    assert agent._improve_policy(obs, action, advantage)["kl"] > 0
    assert not np.array_equal(theta, agent.theta)
    assert np.array_equal(critic, agent.policy.critic.vector)
    theta = agent.theta.copy()
    first = agent._fit_value(obs, obs[:, 0])
    assert np.array_equal(theta, agent.theta) and not np.array_equal(critic, agent.policy.critic.vector)
    assert np.array_equal(agent.policy.vector, np.concatenate([theta, agent.policy.critic.vector]))
    for _ in range(200):
        last = agent._fit_value(obs, obs[:, 0])
    assert last < first / 2


class Bandit(gym.Env):
    """One reward for everything, or what `reward` says."""

    def __init__(self, actions, reward=lambda action: 1.0):
        self.observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
        self.action_space, self.reward = actions, reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        obs = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return obs, float(self.reward(action)), self.t % 4 == 0, self.t % 7 == 0, {}


ACTIONS = {
    "discrete": gym.spaces.Discrete(3), "box": gym.spaces.Box(-1, 1, (2,), np.float32),
    "parts": gym.spaces.MultiDiscrete([3, 2, 5]),
}  # fmt: skip


def scramble(agent, rng):
    """Random parameters: of many sizes, up to policies that are deterministic but for rounding."""
    scale = 10.0 ** rng.uniform(-3, 2)
    agent.theta[:] = scale * rng.normal(size=agent.theta.shape)
    if agent.policy.log_std is not None:
        agent.policy.log_std[:] = rng.uniform(-20, 3, 2)


def degenerate(agent, rng):
    """A batch that gives an optimiser trouble."""
    size = int(rng.choice([1, 2, 3, 17, 64]))
    kind = rng.choice(["random", "zero", "equal", "huge", "tiny", "one state", "one action"])
    given = {}
    if kind in ("zero", "equal"):
        given["advantage"] = np.full(size, 0.0 if kind == "zero" else rng.normal(), np.float32)
    if kind in ("huge", "tiny"):
        given["advantage"] = (rng.normal(size=size) * (1e20 if kind == "huge" else 1e-20)).astype(np.float32)
    if kind == "one state":
        given["obs"] = np.repeat(rng.normal(size=(1, 3)), size, 0).astype(np.float32)
    if kind == "one action":
        given["action"] = np.zeros(
            batch_of(agent, size, rng)[1].shape, np.int64 if agent.policy.discrete else np.float32
        )
    return batch_of(agent, size, rng, **given)


def updates(count, actions):
    """Updates of random policies on degenerate batches; how many of them moved the policy."""
    rng = np.random.default_rng(7)
    agent = TRPO(Bandit(ACTIONS[actions]), **{**SMALL, "hidden": (4,), "num_envs": 1}, max_kl=0.01)
    moved = 0
    for k in range(count):
        if k % 4 == 0:  # otherwise on from where the last update led
            scramble(agent, rng)
        agent.config = trpo.TRPOConfig(**{**SMALL, "max_kl": 10.0 ** rng.uniform(-6, 0)})
        obs, action, advantage = degenerate(agent, rng)
        before, theta = distribution(agent, obs), agent.theta.copy()
        log = agent._improve_policy(obs, action, advantage)
        assert np.isfinite(agent.theta).all() and all(np.isfinite(list(log.values()))), (k, log)
        kl = mean_kl(before, distribution(agent, obs))
        if log["step_fraction"] == 0:
            assert np.array_equal(theta, agent.theta) and log["kl"] == 0
        else:
            moved += 1
            # Of the same float32 outputs, by formulas that share nothing: what may differ is the last bits.
            assert 0 <= log["kl"] <= agent.config.max_kl and kl <= agent.config.max_kl * (1 + 1e-9) + 1e-12, (
                k,
                log,
                kl,
            )
    return moved


@pytest.mark.parametrize("actions", ACTIONS)
def test_no_update_breaks_the_bound_or_gives_a_nan(actions):
    assert updates(100, actions) > 30


@pytest.mark.slow
@pytest.mark.parametrize("actions", ACTIONS)
def test_a_thousand_updates_neither_break_the_bound_nor_give_a_nan(actions):
    assert updates(1000, actions) > 300


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("settings", [{}, {"n_steps": 1, "num_envs": 1}, {"log_std": -20.0}, {"gamma": 0.0}], ids=str)
def test_training_where_there_is_nothing_to_learn(actions, settings):
    """Identical rewards, batches of one step, policies without noise: whole updates, from the environment on."""
    envs = settings.get("num_envs", 2)
    env = SyncVectorEnv([lambda: Bandit(ACTIONS[actions])] * envs, autoreset_mode=AutoresetMode.SAME_STEP)
    agent = TRPO(env, **{**SMALL, **settings}).learn(64 if settings else 320, progress=False)
    assert agent.n_updates == (64 if "n_steps" in settings else 2 if settings else 10)
    assert bool(np.isfinite(agent.policy.vector).all()) and agent.metrics()["kl"] <= agent.config.max_kl


def test_an_update_beyond_the_bound_is_taken_back(monkeypatch, rng):
    agent = TRPO("CartPole-v1", **SMALL)
    batch = batch_of(agent, 32, rng)
    theta = agent.theta.copy()
    search = trpo.line_search

    def careless(evaluate, params, step, **settings):  # accepts a step that is far too long
        found = search(evaluate, params, step, **settings)
        return found._replace(accepted=True, fraction=1.0, params=params + 100 * step)

    monkeypatch.setattr(trpo, "line_search", careless)
    log = agent._improve_policy(*batch)
    assert np.array_equal(agent.theta, theta) and log["kl"] == log["step_fraction"] == 0

    def lost(evaluate, params, step, **settings):
        return search(evaluate, params, step, **settings)._replace(params=params * float("nan"))

    monkeypatch.setattr(trpo, "line_search", lost)
    assert np.array_equal(agent.theta, theta) and agent._improve_policy(*batch)["kl"] == 0
    assert np.array_equal(agent.theta, theta)


def test_the_search_shortens_a_step_that_is_too_long(rng):
    """With a policy far from uniform the quadratic model of the KL is wrong, and many a whole step breaks the bound."""
    fractions = []
    for seed in range(10):
        agent = TRPO("CartPole-v1", **SMALL, max_kl=0.5, cg_damping=1e-6, cg_iterations=50, seed=seed)
        agent.theta *= 20
        log = agent._improve_policy(*batch_of(agent, 128, rng))
        assert 0 < log["kl"] <= 0.5
        assert log["step_fraction"] == pytest.approx(0.8 ** round(np.log(log["step_fraction"]) / np.log(0.8)))
        fractions.append(log["step_fraction"])
    assert min(fractions) < 1


def test_the_bound_falls_with_the_steps():
    agent = TRPO("CartPole-v1", **SMALL, max_kl=0.1, max_kl_end=1e-5, learning_rate_steps=64)
    assert agent.max_kl == 0.1
    agent.learn(32, progress=False)
    assert agent.max_kl == pytest.approx(0.050005)
    assert 0 < agent.metrics()["kl"] <= agent.max_kl  # steps are counted before the update
    agent.learn(96, progress=False)
    assert agent.max_kl == pytest.approx(1e-5) and agent.metrics()["kl"] <= 1e-5


def test_metrics_say_what_an_update_did():
    agent = TRPO("CartPole-v1", **SMALL).learn(320, progress=False)
    log = agent.metrics()
    assert {"kl", "step_fraction", "cg_iterations", "cg_status", "policy_loss", "value_loss", "entropy"} < set(log)
    assert 0 < log["kl"] <= 0.01 and 0 < log["step_fraction"] <= 1 and 1 <= log["cg_iterations"] <= 15
    assert trpo.CG_STATUS[int(log["cg_status"])] in ("converged", "max_iter")


def test_learns_a_bandit():
    env = SyncVectorEnv([lambda: Bandit(ACTIONS["box"], lambda a: -np.abs(a - 0.5).sum())] * 2)
    agent = TRPO(env, **{**SMALL, "n_steps": 128}, gamma=0.0, max_kl=0.05).learn(20_000, progress=False)
    assert np.abs(agent.predict(np.zeros((1, 3), np.float32)) - 0.5).max() < 0.15


def test_parts_of_ones_own_network_move_as_those_of_an_mlp(rng):
    """The torch products of a module, a part at a time, give the step of the MLP's, of all parts at once."""
    settings = {**SMALL, "num_envs": 1, "cg_damping": 0.1}  # or 15 iterations blow rounding up to a thousandth
    steps = []
    for own in (False, True):
        agent = TRPO(Bandit(ACTIONS["parts"]), **settings, seed=3)
        batch = batch_of(agent, 64, np.random.default_rng(0))
        if own:
            policy = agent.policy
            network = {"actor": policy.actor.to_torch(), "critic": policy.critic.to_torch()}
            agent = TRPO(Bandit(ACTIONS["parts"]), **settings, seed=3, network=network)
        before = agent.theta.copy()
        log = agent._improve_policy(*batch)
        assert log["step_fraction"] == 1 and 0 < log["kl"] <= 0.01
        steps.append(agent.theta - before)
    assert np.linalg.norm(steps[0] - steps[1]) < 1e-5 * np.linalg.norm(steps[0])


@pytest.mark.slow
def test_learns_cartpole():
    assert TRPO("CartPole-v1", seed=0).learn(100_000, progress=False).evaluate().mean() >= 475


@pytest.mark.parametrize(
    "settings",
    [
        {"max_kl": 0.0},
        {"max_kl_end": 0.0},
        {"cg_iterations": 0},
        {"cg_damping": -1.0},
        {"backtrack": 1.0},
        {"backtracks": 0},
        {"value_epochs": 0},
        {"minibatches": 0},
        {"gae_lambda": 2.0},
        {"learning_rate": 0.0},
        {"hidden": ()},
    ],
    ids=str,
)
def test_bad_hyperparameters_are_named(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        TRPO("CartPole-v1", **settings)


def test_the_speed_benchmark_adds_up(tmp_path):
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); import agents_trpo as b; b.STEPS = 64; "
        "b.CONTENDERS = {'fastrl': b.Ours, 'sb3-contrib': b.Ours}; "  # needs no peer
        "r = b.measure('Pendulum-v1', 2); "
        "report = {'machine': __import__('_harness').machine(), 'env': 'Pendulum-v1', 'rollouts': 2, "
        "'note': '', 'record': r}; "
        "assert '| an update, ms |' in b.markdown(report); print(json.dumps(r))"
    )
    done = subprocess.run([sys.executable, "-c", code, BENCH], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["fastrl"]["steps_per_s"] > 0 and record["sb3-contrib"]["update_ms"] > 0
    for name in ("whole_ratio", "update_ratio"):
        median, least, most = record[name]
        assert 0 < least <= median <= most

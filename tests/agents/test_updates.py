"""200 updates are those of plain torch: autograd, torch.optim.Adam, the same batches and the same noise."""

import copy
import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batch_norm_oracle import batch_norm_oracle
from odd_envs import Bright
from torch import nn

from fastrl.agents import D4PG, DDPG, DQN, NAF, SAC, TD3, TQC, CrossQ, QTOpt, SACDiscrete, crossq, sac
from fastrl.kernels import normal_sample
from fastrl.replay import Batch

B, UPDATES = 32, 200
SHAPES = {"CartPole-v1": (4,), "Pendulum-v1": (3,), "images": (2, 36, 36)}
OWN = pytest.mark.parametrize("own", [False, True], ids=["mlp", "own network"])


def batches(env, n, seed=0):
    rng = np.random.default_rng(seed)
    draw = rng.standard_normal if env != "images" else rng.random
    for _ in range(n):
        terminated = rng.random(B) < 0.2
        yield Batch(
            obs=draw((B, *SHAPES[env]), np.float32),
            action=rng.integers(2, size=B) if env != "Pendulum-v1" else rng.uniform(-1, 1, (B, 1)).astype(np.float32),
            reward=rng.standard_normal(B, np.float32),
            next_obs=draw((B, *SHAPES[env]), np.float32),
            terminated=terminated,
            truncated=rng.random(B) < 0.2,
            indices=np.arange(B),
            weights=rng.uniform(0.2, 1, B).astype(np.float32),
            discount=np.where(terminated, 0, 0.9 ** rng.integers(1, 4, B)).astype(np.float32),
        )


def twin(network):
    """The network as a torch module of its own, in float64."""
    return copy.deepcopy(network.to_torch()).double()


def adam(module, lr):
    return torch.optim.Adam(module.parameters(), lr=lr)


def step(optimizer, loss, max_norm=None):
    optimizer.zero_grad()
    loss.backward()
    parameters = optimizer.param_groups[0]["params"]
    if max_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


@torch.no_grad()
def follow(target, online, tau):
    for p, q in zip(target.parameters(), online.parameters(), strict=True):
        p.lerp_(q, tau)


def of(network):
    return torch.cat([p.detach().double().flatten() for p in network.to_torch().parameters()])


def assert_same(pairs, starts):
    """Rounding apart: by less than a thousandth of how far 200 updates went."""
    for (network, module), start in zip(pairs, starts, strict=True):
        wanted = torch.cat([p.detach().flatten() for p in module.parameters()])
        moved = torch.linalg.norm(wanted - start)
        assert moved > 0.05 and torch.linalg.norm(of(network) - wanted) < 1e-3 * moved


def run(agent, env, monkeypatch, update, n=UPDATES):
    """Feed the same batches to the agent and to `update`, as float64 tensors."""
    monkeypatch.setattr(agent.buffer, "update_priorities", lambda *_: None, raising=False)
    for batch in batches(env, n):
        monkeypatch.setattr(agent.buffer, "sample", lambda n, batch=batch: batch)
        update(Batch(*(torch.from_numpy(x).double() if x.dtype == np.float32 else torch.from_numpy(x) for x in batch)))
        agent._update()
    assert agent.n_updates == n


def mlp(*sizes):
    layers = [layer for n_in, n_out in pairwise(sizes) for layer in (nn.Linear(n_in, n_out), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


SWITCHES = {
    "plain": {},
    "double": {"double": True},
    "dueling": {"dueling": True},
    "prioritized": {"prioritized": True},
    "huber, clipped": {"loss": "huber", "max_grad_norm": 0.3},
    "hard targets, averaging": {"target_every": 7, "tau": 1.0, "averaging": True},
    "all": {"double": True, "dueling": True, "prioritized": True, "n_step": 3, "averaging": True, "max_grad_norm": 1.0},
}


@OWN
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_dqn(switches, own, monkeypatch):
    if own and switches.get("dueling"):
        switches = {**switches, "dueling": False}
    settings = {"max_grad_norm": None, "averaging": False, "tau": 0.05, **switches, "hidden": (16, 12), "batch_size": B}
    network = functools.partial(mlp, 4, 16, 12, 2) if own else None
    agent = DQN("CartPole-v1", **settings, learning_rate_end=1e-3, seed=3, network=network)
    c = agent.config
    agent.target.vector += np.float32(0.05)
    online, target, greedy = twin(agent.online), twin(agent.target), twin(agent.greedy)
    starts, optimizer, n = [of(agent.online), of(agent.target), of(agent.greedy)], adam(online, c.learning_rate), 0

    def update(b):
        nonlocal n
        n += 1
        with torch.no_grad():
            next_q = target(b.next_obs)
            best = (online(b.next_obs) if c.double else next_q).argmax(1, keepdim=True)
            y = b.reward + b.discount * next_q.gather(1, best)[:, 0]
        q = online(b.obs).gather(1, b.action[:, None])[:, 0]
        per_item = F.huber_loss(q, y, reduction="none") if c.loss == "huber" else (q - y) ** 2
        step(optimizer, (per_item * (b.weights if c.prioritized else 1)).mean(), c.max_grad_norm)
        if n % c.target_every == 0:
            follow(target, online, c.tau)
        follow(greedy, online, 10 / (n + 9))

    run(agent, "CartPole-v1", monkeypatch, update)
    pairs = [(agent.online, online), (agent.target, target), (agent.greedy, greedy if c.averaging else online)]
    assert_same(pairs, starts)


class Critic(nn.Module):
    def __init__(self, n_out=1):
        super().__init__()
        self.net = mlp(4, 16, 12, n_out)

    def forward(self, obs, action):
        return self.net(torch.cat((obs, action), 1))


def quantiles(critics, obs, action):
    """The critics' outputs: ``[n, B, N]``."""
    x = torch.cat((obs, action), 1)
    return torch.stack([(q.net if isinstance(q, Critic) else q)(x) for q in critics])


def values(critics, obs, action):
    """Q_k(s, a): ``[n, B]``."""
    return quantiles(critics, obs, action)[:, :, 0]


def make(cls, own, n_out, critic=Critic, **settings):
    network = {"actor": functools.partial(mlp, 3, 16, 12, n_out), "critic": critic} if own else None
    rates = {"learning_rate": 2e-3, "actor_learning_rate": 1e-3}
    agent = cls("Pendulum-v1", hidden=(16, 12), batch_size=B, seed=5, **{**rates, **settings}, network=network)
    agent.target_critics.vector += np.float32(0.05)
    return agent, [twin(x) for x in (agent.actor, agent.critics, agent.target_critics)]


CONTINUOUS = {"plain": {}, "prioritized, clipped": {"prioritized": True, "n_step": 3, "max_grad_norm": 0.5}}


# At the rate of the others float32 drifts by 0.25 % in 200 updates on one backend.
WITH_LAP = {**CONTINUOUS, "lap": {"lap": True, "learning_rate": 5e-4}}


@OWN
@pytest.mark.parametrize("switches", WITH_LAP.values(), ids=WITH_LAP)
@pytest.mark.parametrize("cls", [TD3, DDPG])
def test_td3_and_ddpg(cls, switches, own, monkeypatch):
    agent, (actor, critics, target_critics) = make(cls, own, 1, **switches)
    agent.target_actor.vector -= np.float32(0.05)
    target_actor, c, n = twin(agent.target_actor), agent.config, 0
    pairs = [(agent.actor, actor), (agent.critics, critics)]
    pairs += [(agent.target_actor, target_actor), (agent.target_critics, target_critics)]
    starts = [of(network) for network, _ in pairs]
    actor_adam, critic_adam = adam(actor, c.actor_learning_rate), adam(critics, c.learning_rate)
    rng = copy.deepcopy(agent.rng)

    def update(b):
        nonlocal n
        n += 1
        with torch.no_grad():
            next_action = target_actor(b.next_obs).tanh()
            if cls is TD3:
                noise = torch.from_numpy(0.2 * rng.standard_normal((B, 1), np.float32)).clamp(-0.5, 0.5)
                next_action = (next_action + noise).clamp(-1, 1)
            y = b.reward + b.discount * values(target_critics, b.next_obs, next_action).amin(0)
        w = b.weights if c.prioritized else 1
        q = values(critics, b.obs, b.action)
        losses = F.huber_loss(q, y.expand_as(q), reduction="none") if c.lap else (q - y) ** 2
        step(critic_adam, (w * losses).mean(1).sum(), c.max_grad_norm)
        if cls is DDPG or n % 2 == 0:
            step(actor_adam, -values(critics, b.obs, actor(b.obs).tanh())[0].mean(), c.max_grad_norm)
            follow(target_actor, actor, c.tau)
            follow(target_critics, critics, c.tau)

    run(agent, "Pendulum-v1", monkeypatch, update)
    assert_same(pairs, starts)


@OWN
@pytest.mark.parametrize("switches", CONTINUOUS.values(), ids=CONTINUOUS)
def test_d4pg(switches, own, monkeypatch):
    network = {"actor": functools.partial(mlp, 3, 16, 12, 1), "critic": functools.partial(Critic, 11)} if own else None
    settings = {"hidden": (16, 12), "batch_size": B, "n_atoms": 11, "v_min": -2.0, "v_max": 3.0, **switches}
    agent = D4PG("Pendulum-v1", **settings, seed=5, network=network)
    agent.target_critics.vector += np.float32(0.05)
    agent.target_actor.vector -= np.float32(0.05)
    names = ("actor", "critics", "target_actor", "target_critics")
    twins, c = [twin(getattr(agent, name)) for name in names], agent.config
    actor, critics, target_actor, target_critics = twins
    pairs = [(getattr(agent, name), module) for name, module in zip(names, twins, strict=True)]
    starts = [of(network) for network, _ in pairs]
    actor_adam, critic_adam = adam(actor, c.actor_learning_rate), adam(critics, c.learning_rate)
    z = torch.linspace(-2, 3, 11, dtype=torch.float64)

    def logits(module, obs, action):
        x = torch.cat((obs, action), 1)
        return (module[0].net if own else module[0])(x)

    def update(b):
        with torch.no_grad():
            p = logits(target_critics, b.next_obs, target_actor(b.next_obs).tanh()).softmax(1)
            moved = (b.reward[:, None] + b.discount[:, None] * z).clamp(-2, 3)
            share = (1 - (moved[:, :, None] - z).abs() / 0.5).clamp(min=0)  # [B, from, to]
            m = (p[:, :, None] * share).sum(1)
        entropy = -(m * logits(critics, b.obs, b.action).log_softmax(1)).sum(1)
        step(critic_adam, ((b.weights if c.prioritized else 1) * entropy).mean(), c.max_grad_norm)
        q = logits(critics, b.obs, actor(b.obs).tanh()).softmax(1) @ z
        step(actor_adam, -q.mean(), c.max_grad_norm)
        follow(target_actor, actor, c.tau)
        follow(target_critics, critics, c.tau)

    run(agent, "Pendulum-v1", monkeypatch, update)
    assert_same(pairs, starts)


@OWN
@pytest.mark.parametrize("switches", CONTINUOUS.values(), ids=CONTINUOUS)
def test_naf(switches, own, monkeypatch):
    network = functools.partial(mlp, 3, 16, 12, 3) if own else None
    settings = {"hidden": (16, 12), "batch_size": B, "reward_scale": 2.0, **switches}
    agent = NAF("Pendulum-v1", **settings, seed=5, network=network)
    agent.target.vector += np.float32(0.05)
    online, target, c = twin(agent.online), twin(agent.target), agent.config
    pairs = [(agent.online, online), (agent.target, target)]
    starts, optimizer = [of(network) for network, _ in pairs], adam(online, c.learning_rate)

    def update(b):
        with torch.no_grad():
            y = 2.0 * b.reward + b.discount * target(b.next_obs)[:, 1]
        mean, value, log_factor = online(b.obs).T
        q = value - 0.5 * (log_factor.exp() * (b.action[:, 0] - mean.tanh())) ** 2
        step(optimizer, ((b.weights if c.prioritized else 1) * (q - y) ** 2).mean(), c.max_grad_norm)
        follow(target, online, c.tau)

    run(agent, "Pendulum-v1", monkeypatch, update)
    assert_same(pairs, starts)


@OWN
@pytest.mark.parametrize("switches", CONTINUOUS.values(), ids=CONTINUOUS)
def test_qt_opt(switches, own, monkeypatch):
    settings = {"hidden": (16, 12), "batch_size": B, "lag": 60, "cem_samples": 16, "cem_elites": 4, **switches}
    agent = QTOpt("Pendulum-v1", **settings, seed=5, network=Critic if own else None)
    agent.target.vector += np.float32(0.05)
    online, target, lagged, c = twin(agent.online), twin(agent.target), twin(agent.lagged_target), agent.config
    pairs = [(agent.online, online), (agent.target, target), (agent.lagged_target, lagged)]
    starts, optimizer, n = [of(network) for network, _ in pairs], adam(online, c.learning_rate), 0
    generator = copy.deepcopy(agent.generator)

    def search(obs):
        """argmax_a Q_1(s, a), state by state."""
        zero = np.zeros((2 * 16, 1), np.float32)
        noise = torch.from_numpy(normal_sample(zero, zero[0], generator=generator)[0]).double().reshape(2, 16)
        found = []
        for s in obs:
            first = noise[0].clamp(-1, 1)
            q = values([target], s.expand(16, -1), first[:, None])[0]
            elites = first[q.argsort(descending=True)[:4]]
            second = (elites.mean() + elites.std(correction=0) * noise[1]).clamp(-1, 1)
            tried = torch.cat((first, second))
            found.append(tried[values([target], s.expand(32, -1), tried[:, None])[0].argmax()])
        return torch.stack(found)[:, None]

    def update(b):
        nonlocal n
        n += 1
        with torch.no_grad():
            next_action = search(b.next_obs)
            y = b.reward + b.discount * values([target, lagged], b.next_obs, next_action).amin(0)
        q = values([online], b.obs, b.action)[0]
        step(optimizer, ((b.weights if c.prioritized else 1) * (q - y) ** 2).mean(), c.max_grad_norm)
        follow(target, online, c.tau)
        if n % 60 == 0:
            follow(lagged, target, 1.0)

    run(agent, "Pendulum-v1", monkeypatch, update)
    assert_same(pairs, starts)


def quantile_loss(theta, y):
    """Dabney et al. 2018, eq. 10: ``[B]`` for quantiles ``[B, N]`` and targets ``[B, J]``."""
    tau = (torch.arange(theta.shape[1]) + 0.5) / theta.shape[1]
    u = y[:, None, :] - theta[:, :, None]
    huber = F.huber_loss(u, torch.zeros_like(u), reduction="none")
    return ((tau[:, None] - (u < 0).double()).abs() * huber).mean(2).sum(1)


def same_noise(module, actor, monkeypatch):
    """Let the agent's samples have given noise; returns a function that draws with the same from `actor`."""
    ours, theirs = np.random.default_rng(1), np.random.default_rng(1)

    def given(sample):
        return lambda *out, generator, **kw: sample(*out, noise=ours.standard_normal((B, 1), np.float32), **kw)

    for name in ("tanh_normal_sample", "tanh_normal_sample_pullback"):
        monkeypatch.setattr(module, name, given(getattr(module, name)))

    def draw(obs):
        mean, log_std = actor(obs).chunk(2, 1)
        policy = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
        u = mean + policy.stddev * torch.from_numpy(theirs.standard_normal((B, 1), np.float32))
        squash = torch.distributions.transforms.TanhTransform()
        return u.tanh(), (policy.log_prob(u) - squash.log_abs_det_jacobian(u, u.tanh())).sum(1)

    return draw


@OWN
@pytest.mark.parametrize("temperature", [None, 0.3])
@pytest.mark.parametrize("switches", CONTINUOUS.values(), ids=CONTINUOUS)
@pytest.mark.parametrize("cls", [SAC, TQC])
def test_sac_and_tqc(cls, switches, temperature, own, monkeypatch):
    more = {"n_critics": 3, "n_quantiles": 5, "drop_per_critic": 1} if cls is TQC else {}
    critic = functools.partial(Critic, 5 if cls is TQC else 1)
    agent, (actor, critics, target_critics) = make(cls, own, 2, critic, temperature=temperature, **switches, **more)
    c = agent.config
    pairs = [(agent.actor, actor), (agent.critics, critics), (agent.target_critics, target_critics)]
    starts = [of(network) for network, _ in pairs]
    log_alpha = torch.tensor(np.log(temperature or 1.0), dtype=torch.float64, requires_grad=True)
    actor_adam, critic_adam = adam(actor, c.actor_learning_rate), adam(critics, c.learning_rate)
    alpha_adam = torch.optim.Adam([log_alpha], lr=c.learning_rate)
    draw = same_noise(sac, actor, monkeypatch)

    def update(b):
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            next_action, next_log_prob = draw(b.next_obs)
            if cls is SAC:
                next_value = values(target_critics, b.next_obs, next_action).amin(0) - alpha * next_log_prob
            else:
                pooled = torch.cat(list(quantiles(target_critics, b.next_obs, next_action)), 1)
                next_value = (pooled.sort(1).values[:, : 3 * 4] - alpha * next_log_prob[:, None]).T
            y = b.reward + b.discount * next_value
        w = b.weights if c.prioritized else 1
        if cls is SAC:
            losses = (values(critics, b.obs, b.action) - y) ** 2
        else:
            losses = torch.stack([quantile_loss(theta, y.T) for theta in quantiles(critics, b.obs, b.action)])
        step(critic_adam, (w * losses).mean(1).sum(), c.max_grad_norm)
        action, log_prob = draw(b.obs)
        q = values(critics, b.obs, action).amin(0) if cls is SAC else quantiles(critics, b.obs, action).mean((0, 2))
        step(actor_adam, (alpha * log_prob - q).mean(), c.max_grad_norm)
        if temperature is None:
            step(alpha_adam, -log_alpha * (log_prob.detach() + agent.target_entropy).mean())
        follow(target_critics, critics, c.tau)

    run(agent, "Pendulum-v1", monkeypatch, update)
    assert_same(pairs, starts)
    assert agent.temperature == pytest.approx(log_alpha.exp().item(), rel=1e-5)
    assert temperature is not None or agent.temperature != 1.0


@pytest.mark.parametrize("kind", ["mlp", "own network", "nature"])
@pytest.mark.parametrize("temperature", [None, 0.3])
@pytest.mark.parametrize("switches", CONTINUOUS.values(), ids=CONTINUOUS)
def test_sac_discrete(switches, temperature, kind, monkeypatch):
    own = dict.fromkeys(("actor", "critic"), functools.partial(mlp, 4, 16, 12, 2))
    settings = {"hidden": (16, 12), "batch_size": B, "temperature": temperature, "learning_rate_end": None, **switches}
    inputs, env, n = "CartPole-v1", "CartPole-v1", UPDATES
    if (
        kind == "nature"
    ):  # a large network, whose rounding Adam makes more of in a few updates than 200 of the others do
        inputs, env, n = "images", Bright(SHAPES["images"], np.float32, 1), 5
    agent = SACDiscrete(env, **settings, seed=5, network=own if kind == "own network" else kind)
    agent.target_critics.vector += np.float32(0.05)
    pairs = [(x, twin(x)) for x in (agent.actor, agent.critics, agent.target_critics)]
    actor, critics, target_critics = (module for _, module in pairs)
    c, starts = agent.config, [of(network) for network, _ in pairs]
    log_alpha = torch.tensor(np.log(temperature or 1.0), dtype=torch.float64, requires_grad=True)
    actor_adam, critic_adam = adam(actor, c.actor_learning_rate), adam(critics, c.learning_rate)
    alpha_adam = torch.optim.Adam([log_alpha], lr=c.learning_rate)

    def q(networks, obs):
        return torch.stack([network(obs) for network in networks])

    def update(b):
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            policy = torch.distributions.Categorical(logits=actor(b.next_obs))
            next_q = q(target_critics, b.next_obs).amin(0)
            y = b.reward + b.discount * ((policy.probs * next_q).sum(1) + alpha * policy.entropy())
        error = q(critics, b.obs).gather(2, b.action.expand(2, -1)[:, :, None])[:, :, 0] - y
        step(critic_adam, ((b.weights if c.prioritized else 1) * error**2).mean(1).sum(), c.max_grad_norm)
        policy = torch.distributions.Categorical(logits=actor(b.obs))
        best = (policy.probs * q(critics, b.obs).detach().amin(0)).sum(1)
        step(actor_adam, -(best + alpha * policy.entropy()).mean(), c.max_grad_norm)
        if temperature is None:
            step(alpha_adam, log_alpha * (policy.entropy().detach().mean() - 0.98 * np.log(2)))
        follow(target_critics, critics, c.tau)

    run(agent, inputs, monkeypatch, update, n)
    assert_same(pairs, starts)
    assert agent.temperature == pytest.approx(log_alpha.exp().item(), rel=1e-5)
    assert temperature is not None or agent.temperature != 1.0


@pytest.mark.parametrize("temperature", [None, 0.3])
@pytest.mark.parametrize("switches", CONTINUOUS.values(), ids=CONTINUOUS)
def test_crossq(switches, temperature, monkeypatch):
    settings = {"hidden": (16, 12), "critic_hidden": (18,), "batch_size": B, "temperature": temperature, **switches}
    agent = CrossQ("Pendulum-v1", **settings, norm_warmup=50, norm_momentum=0.05, policy_delay=2, seed=5)
    actor, critics = networks = [batch_norm_oracle(x) for x in (agent.actor, agent.critics)]
    pairs, c, n = list(zip((agent.actor, agent.critics), networks, strict=True)), agent.config, 0
    starts = [of(network) for network, _ in pairs]
    log_alpha = torch.tensor(np.log(temperature or 1.0), dtype=torch.float64, requires_grad=True)
    actor_adam, critic_adam = (
        torch.optim.Adam(x.parameters(), lr=lr, betas=(0.5, 0.999))
        for x, lr in ((actor, c.actor_learning_rate), (critics, c.learning_rate))
    )
    alpha_adam = torch.optim.Adam([log_alpha], lr=c.learning_rate)
    draw = same_noise(crossq, actor, monkeypatch)

    def update(b):
        nonlocal n
        n += 1
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            next_action, next_log_prob = draw(b.next_obs)
        critics.train()
        q = values(critics, torch.cat((b.obs, b.next_obs)), torch.cat((b.action, next_action)))
        critics.eval()
        y = b.reward + b.discount * (q[:, B:].amin(0) - alpha * next_log_prob)
        losses = (q[:, :B] - y.detach()) ** 2
        step(critic_adam, ((b.weights if c.prioritized else 1) * losses).mean(1).sum(), c.max_grad_norm)
        if n % 2:
            return
        actor.train()
        action, log_prob = draw(b.obs)
        actor.eval()
        step(actor_adam, (alpha * log_prob - values(critics, b.obs, action).amin(0)).mean(), c.max_grad_norm)
        if temperature is None:
            step(alpha_adam, -log_alpha * (log_prob.detach() + agent.target_entropy).mean())

    run(agent, "Pendulum-v1", monkeypatch, update)
    assert_same(pairs, starts)
    for network, module in pairs:
        state = network.state_dict()
        for name, buffer in module.named_buffers():
            np.testing.assert_allclose(state[name], buffer, rtol=1e-3, atol=1e-3)
    assert agent.temperature == pytest.approx(log_alpha.exp().item(), rel=1e-4)
    assert temperature is not None or agent.temperature != 1.0

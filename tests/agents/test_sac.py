"""SAC's losses and gradients against plain torch, its temperature, and its draws."""

import math

import numpy as np
import pytest
import torch

from fastrl.agents import SAC, SACConfig, sac
from fastrl.agents.config import InputError

SMALL = {"hidden": (16, 12), "learning_starts": 40, "batch_size": 16, "buffer_size": 400, "seed": 1}


def layers(mlp, k):
    """(weight ``[in, out]``, bias) of each layer of network k in float64, to be differentiated."""
    module = mlp.to_torch() if mlp.n is None else mlp.to_torch()[k]
    pairs = [(layer.weight.detach().double().T, layer.bias.detach().double()) for layer in module[::2]]
    return [(weight.clone().requires_grad_(), bias.clone().requires_grad_()) for weight, bias in pairs]


def forward(parameters, x):
    """An MLP by its formula, in float64."""
    for weight, bias in parameters[:-1]:
        x = (x @ weight + bias).clamp(min=0)
    weight, bias = parameters[-1]
    return x @ weight + bias


def squashed(out, eps, low=-20.0, high=2.0):
    """Action and log-probability by torch.distributions, in float64."""
    mean, log_std = out.chunk(2, 1)
    base = torch.distributions.Normal(mean, log_std.clamp(low, high).exp())
    u = mean + base.stddev * eps
    transform = torch.distributions.transforms.TanhTransform()
    log_prob = base.log_prob(u) - transform.log_abs_det_jacobian(u, u.tanh())
    return u.tanh(), log_prob.sum(1)


@pytest.fixture
def given_noise(monkeypatch):
    """Every draw of the update takes its noise from here, and leaves the rest to the kernel."""
    noises = []

    def given(sample):
        def with_noise(mean, log_std, *, generator, **bounds):
            noises.append(np.random.default_rng(len(noises)).standard_normal(mean.shape, np.float32))
            return sample(mean, log_std, noise=noises[-1], **bounds)

        return with_noise

    for name in ("tanh_normal_sample", "tanh_normal_sample_pullback"):
        monkeypatch.setattr(sac, name, given(getattr(sac, name)))
    return noises


@pytest.mark.parametrize("temperature", [None, 0.0, 0.3])
def test_update_against_plain_torch(temperature, given_noise, monkeypatch):
    agent = SAC("Pendulum-v1", **SMALL, n_step=2, temperature=temperature, initial_temperature=0.7)
    given_noise.clear()
    agent.learn(40, progress=False)  # random actions only
    agent.target_critics.vector += 0.1
    batch, seen = agent.buffer.sample(16), {}
    batch = batch._replace(terminated=np.arange(16) % 3 == 0, truncated=np.arange(16) % 2 == 0)
    batch = batch._replace(discount=batch.discount * ~batch.terminated)
    monkeypatch.setattr(agent.buffer, "sample", lambda n: batch)
    step = sac.q_regression_loss
    monkeypatch.setattr(sac, "q_regression_loss", lambda q, y, **kw: (seen.update(y=y), step(q, y, **kw))[1])
    alpha = 0.7 if temperature is None else temperature
    actor = layers(agent.actor, 0)
    targets = [layers(agent.target_critics, k) for k in range(2)]
    critics = [layers(agent.critics, k) for k in range(2)]
    given_noise.clear()
    agent._update()
    assert len(given_noise) == 2

    given = [torch.from_numpy(x).double() for x in given_noise]
    obs, next_obs, taken = (torch.from_numpy(x).double() for x in (batch.obs, batch.next_obs, batch.action))
    next_action, next_log_prob = squashed(forward(actor, next_obs), given[0])
    next_q = [forward(net, torch.cat((next_obs, next_action), 1)).squeeze(1) for net in targets]
    value = torch.minimum(*next_q) - alpha * next_log_prob
    y = torch.from_numpy(batch.reward) + torch.from_numpy(batch.discount) * value
    np.testing.assert_allclose(seen["y"], y.detach(), rtol=1e-4, atol=1e-4)
    q = [forward(net, torch.cat((obs, taken), 1)).squeeze(1) for net in critics]
    loss = sum(((x - y) ** 2).mean() for x in q)
    assert agent.metrics()["loss"] == pytest.approx(loss.item(), rel=1e-4)

    after = [layers(agent.critics, k) for k in range(2)]
    action, log_prob = squashed(forward(actor, obs), given[1])
    q = [forward(net, torch.cat((obs, action), 1)).squeeze(1) for net in after]
    loss = (alpha * log_prob - torch.minimum(*q)).mean()
    for pair in actor:
        for p in pair:
            p.grad = None
    loss.backward()
    metrics = agent.metrics()
    assert metrics["actor_loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    assert metrics["entropy"] == pytest.approx(-log_prob.mean().item(), rel=1e-4, abs=1e-5)
    for (weight, bias), layer in zip(actor, agent.actor.to_torch()[::2], strict=True):
        torch.testing.assert_close(layer.weight.grad.double().T, weight.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.bias.grad.double(), bias.grad, rtol=1e-3, atol=1e-5)

    if temperature is None:  # the first step of Adam is the learning rate long
        gradient = -(log_prob + agent.target_entropy).mean().item()
        assert agent.temperature_optimizer.grad.item() == pytest.approx(gradient, rel=1e-4)
        assert agent.log_temperature.item() == pytest.approx(math.log(0.7) - math.copysign(1e-3, gradient), rel=1e-4)
    else:
        assert agent.temperature == pytest.approx(temperature, rel=1e-6)
        assert agent.temperature_optimizer is None and "fixed temperature" in agent.describe()


@pytest.mark.parametrize(("target", "sign"), [(-50.0, -1), (50.0, 1)])
def test_temperature_goes_where_the_entropy_has_to(target, sign):
    agent = SAC("Pendulum-v1", **SMALL, target_entropy=target, initial_temperature=0.5).learn(80, progress=False)
    change = math.log(agent.metrics()["temperature"] / 0.5)
    assert change * sign > 0.02  # 39 steps of 1e-3


def test_default_target_entropy_is_minus_the_dimensions(target_env):
    assert SAC("Pendulum-v1", **SMALL).target_entropy == -1
    assert SAC(target_env(), **SMALL).target_entropy == -4
    assert SAC(target_env(), **SMALL, target_entropy=-2.5).target_entropy == -2.5


def test_draws_are_the_policys_and_repeat_with_the_seed():
    a, b = (SAC("Pendulum-v1", **SMALL) for _ in range(2))
    other = SAC("Pendulum-v1", **{**SMALL, "seed": 2})
    obs = np.zeros((20_000, 3), np.float32)
    for agent in (a, b, other):
        agent.steps = 40
    drawn = a._act(obs, a.rng)
    np.testing.assert_array_equal(drawn, b._act(obs, b.rng))
    assert not np.array_equal(drawn, other._act(obs, other.rng))
    mean, log_std = a.actor.forward(obs[:1])[0].tolist()
    u = np.arctanh(drawn.astype(np.float64))
    assert abs(u.mean() - mean) < 4 * math.exp(log_std) / 140 and abs(u.std() / math.exp(log_std) - 1) < 0.03
    assert a._mode(obs[:1])[0, 0] == pytest.approx(math.tanh(mean), rel=1e-5)
    # Neither draw nor prediction has anything in common with another stream.
    assert len({g.seed for g in (a.generator, a._action_generator, a._predict_generator)} | {SMALL["seed"]}) == 4


def test_log_std_is_clamped():
    agent = SAC("Pendulum-v1", **SMALL, log_std_min=-1.0, log_std_max=-0.5)
    agent.steps = 40
    for bias, wanted in ((-9.0, -1.0), (9.0, -0.5)):
        last = agent.actor.parameters()
        last["4.weight"][:], last["4.bias"][:] = 0, (0.0, bias)
        u = np.arctanh(agent._act(np.zeros((20_000, 3), np.float32), agent.rng).astype(np.float64))
        assert abs(u.std() / math.exp(wanted) - 1) < 0.03


@pytest.mark.slow
def test_learns_pendulum():
    agent = SAC("Pendulum-v1", hidden=(64, 64), batch_size=128, actor_learning_rate=1e-3).learn(10_000, progress=False)
    assert agent.evaluate(10).mean() > -250


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"log_std_max": -30.0}, r"log_std_max must be in \[-20, 5\], got -30.0"),
        ({"log_std_min": 1.0, "log_std_max": 0.0}, "log_std_min must be at most log_std_max, got 1.0 and 0.0"),
        ({"target_entropy": -math.inf}, "target_entropy must be finite, got -inf"),
        ({"temperature": 1e300}, r"temperature must be in \[0, 1e\+12\], got 1e\+300"),
        ({"temperature": 1e13}, r"temperature must be in \[0, 1e\+12\], got 10000000000000.0"),
        ({"initial_temperature": 1e300}, r"initial_temperature must be in \[1e-12, 1e\+12\], got 1e\+300"),
        ({"initial_temperature": 0.0}, r"initial_temperature must be in \[1e-12, 1e\+12\], got 0.0"),
    ],
)
def test_settings_that_cannot_work(settings, text):
    with pytest.raises(InputError, match=f"^SACConfig: {text}$"):
        SACConfig(**settings)


@pytest.mark.parametrize("name", ["temperature", "initial_temperature"])
@pytest.mark.parametrize("value", [1e12, 1e-12])
def test_the_largest_and_smallest_temperatures_train(name, value, tmp_path):
    agent = SAC("Pendulum-v1", **SMALL, **{name: value})
    agent.save(tmp_path / "before")
    agent.learn(300, progress=False).save(tmp_path / "a")
    loaded = SAC.load(tmp_path / "a").metrics()
    assert loaded["temperature"] == pytest.approx(value, rel=0.5) and math.isfinite(loaded["loss"])

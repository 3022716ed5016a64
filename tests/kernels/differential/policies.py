"""Random numbers, policy heads with their gradients, and the advantage of NAF."""

import math

import numpy as np

import fastrl
from fastrl.kernels._core.backends import choose

from ..categorical.helpers import random_logits
from .helpers import (
    compare,
    drawn_dtype,
    generator_at,
    laid_out,
    like,
    normals,
    same,
    size,
    tensor,
    torch,
    with_gradients,
)

LOG_2PI = math.log(2 * math.pi)


def words(oracle, seed, counter, n):
    """The n blocks from `counter` on."""
    key = (seed & 0xFFFFFFFF, seed >> 32)
    blocks = [(counter + i) % 2**64 for i in range(n)]
    return np.array([oracle.philox4x32((b & 0xFFFFFFFF, b >> 32, 0, 0), key) for b in blocks], np.float64).reshape(n, 4)


def box_muller(oracle, seed, counter, n):
    x = words(oracle, seed, counter, -(-n // 4))
    u = (x[:, ::2] + 1 - x[:, ::2] % 2) / 2**32
    angle = 2 * np.pi * x[:, 1::2] / 2**32
    radius = np.sqrt(-2 * np.log(u))
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1).reshape(-1)[:n]


def random_draw(rng, oracle):
    seed, counter, make = generator_at(rng)
    n, normal = int(rng.integers(0, 20)), bool(rng.integers(2))
    wanted = box_muller(oracle, seed, counter, n) if normal else oracle.uniforms(seed, counter, n)

    def check():
        generator = make()
        same(choose("fastrl.kernels.random").cpu.draw(generator.state, n, normal), wanted)
        assert generator.counter == (counter + (-(-n // 4) if normal else n)) % 2**64

    return check


def categorical_sample(rng, oracle):
    z = random_logits(rng, int(rng.integers(1, 9)), size(rng, 90), drawn_dtype(rng))
    seed, counter, make = generator_at(rng)
    x = z.astype(np.float64)
    e = np.exp(x - x.max(1, keepdims=True))
    sums, u = np.cumsum(e, 1), np.array(oracle.uniforms(seed, counter, len(z)))
    log_p = x - x.max(1, keepdims=True) - np.log(e.sum(1, keepdims=True))

    def check():
        action, log_prob = fastrl.categorical_sample(laid_out(rng, z), generator=make())
        for b, k in enumerate(action.tolist()):
            slack = 1e-13 * sums[b, -1]
            assert e[b, k] > 0 and (sums[b, k - 1] if k else 0) - slack <= u[b] * sums[b, -1] <= sums[b, k] + slack
        same(log_prob, log_p[np.arange(len(z)), action], np.abs(x[np.isfinite(x)]).max())

    return check


def categorical_log_prob_entropy(rng, oracle):
    z = random_logits(rng, int(rng.integers(1, 9)), size(rng, 90), drawn_dtype(rng))
    action = np.array([rng.choice(np.flatnonzero(np.isfinite(row))) for row in z], rng.choice(["int32", "int64"]))

    def exact(logits):
        log_p = torch.where(torch.isinf(logits), -1e30, logits).log_softmax(1)
        chosen = log_p.gather(1, torch.from_numpy(action).long()[:, None]).squeeze(1)
        return chosen, -(log_p.exp() * log_p).sum(1)

    def call(logits):
        return fastrl.categorical_log_prob_entropy(
            logits, torch.from_numpy(action) if hasattr(logits, "detach") else action
        )

    return with_gradients(call, exact, [z], terms=float(np.abs(z[np.isfinite(z)]).max()))


def gaussian(rng):
    rows, columns, dtype = int(rng.integers(1, 9)), size(rng, 40), drawn_dtype(rng)
    mean, noise = normals(rng, (2, rows, columns), dtype)
    log_std = rng.uniform(-2, 1, columns if rng.integers(2) else (rows, columns)).astype(dtype)
    return mean, log_std, noise


def normal_sample(rng, oracle):
    mean, log_std, noise = gaussian(rng)
    if rng.integers(2):
        return with_gradients(
            lambda m, s: fastrl.normal_sample(m, s, noise=like(noise, m)),
            lambda m, s: (m + s.exp() * tensor(noise), (-(tensor(noise) ** 2) / 2 - s - LOG_2PI / 2).sum(1)),
            [mean, log_std],
            terms=noise.size,
        )
    seed, counter, make = generator_at(rng)
    eps = box_muller(oracle, seed, counter, mean.size).reshape(mean.shape)
    s = log_std.astype(np.float64)
    wanted = mean + np.exp(s) * eps, (-(eps**2) / 2 - s - LOG_2PI / 2).sum(1)
    return compare(lambda: fastrl.normal_sample(mean, log_std, generator=make()), wanted, terms=noise.shape[1])


def normal_log_prob_entropy(rng, oracle):
    mean, log_std, noise = gaussian(rng)
    action = (mean + np.exp(log_std) * noise).astype(mean.dtype)

    def exact(m, s, a):
        z = (a - m) / s.exp()
        return (-z * z / 2 - s - LOG_2PI / 2).sum(1), (s + (1 + LOG_2PI) / 2 + 0 * m).sum(1)

    return with_gradients(fastrl.normal_log_prob_entropy, exact, [mean, log_std, action], terms=noise.size)


def bounds(rng, columns, dtype):
    low = rng.uniform(-3, 0, columns).astype(dtype)
    return low, (low + rng.uniform(0.5, 4, columns)).astype(dtype)


def log_slope(u):
    return 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))


def tanh_normal_sample(rng, oracle):
    mean, log_std, noise = gaussian(rng)
    low, high = bounds(rng, mean.shape[1], mean.dtype)
    limits = {"log_std_min": -1.5, "log_std_max": 0.5} if rng.integers(2) else {}
    scale, bias = (tensor(high) - tensor(low)) / 2, (tensor(high) + tensor(low)) / 2

    def formula(m, s):
        s = s.clamp(-1.5, 0.5) if limits else s
        u = m + s.exp() * tensor(noise)
        terms = -(tensor(noise) ** 2) / 2 - s - LOG_2PI / 2 - scale.log() - log_slope(u)
        return bias + scale * u.tanh(), terms.sum(1)

    def call(m, s):
        return fastrl.tanh_normal_sample(m, s, noise=like(noise, m), low=like(low, m), high=like(high, m), **limits)

    return with_gradients(call, formula, [mean, log_std], terms=noise.size)


def tanh_normal_log_prob(rng, oracle):
    mean, log_std, noise = gaussian(rng)
    low, high = bounds(rng, mean.shape[1], mean.dtype)
    scale, bias = (tensor(high) - tensor(low)) / 2, (tensor(high) + tensor(low)) / 2
    action = (bias + scale * torch.tanh(0.7 * tensor(noise))).numpy().astype(mean.dtype)

    def formula(m, s, a):
        u = torch.atanh((a - bias) / scale)
        z = (u - m) / s.exp()
        return (-z * z / 2 - s - LOG_2PI / 2 - scale.log() - log_slope(u)).sum(1)

    def call(m, s, a):
        return fastrl.tanh_normal_log_prob(m, s, a, low=like(low, m), high=like(high, m))

    # An action near a bound has lost digits of u already: they are lost alike in the oracle, which sees the action.
    return with_gradients(call, formula, [mean, log_std, action], terms=100.0 * noise.size)


def tanh_normal_mode(rng, oracle):
    mean = gaussian(rng)[0]
    low, high = bounds(rng, mean.shape[1], mean.dtype)
    scale, bias = (tensor(high) - tensor(low)) / 2, (tensor(high) + tensor(low)) / 2
    return with_gradients(
        lambda m: fastrl.tanh_normal_mode(m, low=like(low, m), high=like(high, m)),
        lambda m: bias + scale * m.tanh(),
        [mean],
    )


def quadratic_advantage(rng, oracle):
    rows, columns, dtype = int(rng.integers(1, 9)), int(rng.integers(1, 9)), drawn_dtype(rng)
    mean, action = normals(rng, (2, rows, columns), dtype)
    entries = (0.5 * rng.standard_normal((rows, columns * (columns + 1) // 2))).astype(dtype)
    i, j = np.tril_indices(columns)

    def formula(m, c, a):
        lower = torch.zeros(rows, columns, columns, dtype=torch.float64)
        lower = lower.index_put((torch.arange(rows)[:, None], torch.from_numpy(i), torch.from_numpy(j)), c)
        lower = torch.where(torch.eye(columns, dtype=torch.bool), lower.exp(), lower)
        return -0.5 * (lower.transpose(1, 2) @ (a - m)[:, :, None]).square().sum((1, 2))

    return with_gradients(fastrl.quadratic_advantage, formula, [mean, entries, action])


CASES = {
    "Generator": random_draw,
    "categorical_sample": categorical_sample,
    "categorical_log_prob_entropy": categorical_log_prob_entropy,
    "normal_sample": normal_sample,
    "normal_log_prob_entropy": normal_log_prob_entropy,
    "tanh_normal_sample": tanh_normal_sample,
    "tanh_normal_log_prob": tanh_normal_log_prob,
    "tanh_normal_mode": tanh_normal_mode,
    "quadratic_advantage": quadratic_advantage,
}

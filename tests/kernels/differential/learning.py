"""Optimizers, networks, losses, Fisher products, conjugate gradients, and the cross-entropy method."""

import functools

import numpy as np

import fastrl
from fastrl.kernels.curvature.mlp import MLPFisherProduct

from ..complex_step import exact, log_softmax
from ..conjugate_gradient.helpers import spd
from ..curvature.fisher_oracle import fisher_product
from ..distributional import helpers as distributional
from ..mlp import test_losses
from ..mlp.helpers import by_hand, dyadic
from .helpers import compare, drawn_dtype, laid_out, normals, same, size


def adam_step(rng, oracle):
    dtype, numbers = drawn_dtype(rng), {"lr": float(10 ** rng.uniform(-4, -1)), "weight_decay": 0.1 * rng.integers(2)}
    numbers |= {"beta1": float(rng.choice([0.0, 0.9])), "beta2": float(rng.choice([0.0, 0.999])), "eps": 1e-8}
    shapes = [tuple(rng.integers(1, 9, rng.integers(1, 3))) for _ in range(int(rng.integers(1, 4)))]
    lists = [[normals(rng, shape, dtype) for shape in shapes] for _ in range(3)]
    lists.append([normals(rng, shape, dtype) ** 2 for shape in shapes])
    if numbers["weight_decay"]:  # where g + weight_decay p cancels, 1 / sqrt(v) magnifies what float32 has lost
        lists[1] = [np.copysign(g, p) for p, g in zip(*lists[:2], strict=True)]
    steps = [float(rng.integers(0, 1000)) for _ in shapes]
    wanted = []
    for p, g, m, v, t in zip(*[[x.astype(np.float64) for x in xs] for xs in lists], steps, strict=True):
        b1, b2 = numbers["beta1"], numbers["beta2"]
        g = g + numbers["weight_decay"] * p
        m, v = m + (1 - b1) * (g - m), b2 * v + (1 - b2) * g * g
        p = p - numbers["lr"] / (1 - b1 ** (t + 1)) * m / (np.sqrt(v / (1 - b2 ** (t + 1))) + numbers["eps"])
        wanted.append((p, m, v))

    def check():
        p, g, m, v = ([laid_out(np.random.default_rng(0), x.copy()) for x in xs] for xs in lists)
        t = [np.array(s, dtype) for s in steps]
        fastrl.adam_step(p, g, m, v, t, **numbers)
        for i, right in enumerate(wanted):
            for got, x in zip((p[i], m[i], v[i]), right, strict=True):
                same(got, x)
            assert t[i] == steps[i] + 1

    return check


def mlp(rng, oracle):
    sizes = [int(x) for x in rng.choice([1, 2, 3, 15, 16, 17, 40], rng.integers(2, 5))]
    activation = str(rng.choice(["relu", "tanh", "silu", "none"]))
    n = [None, 1, 2, 3][rng.integers(4)]
    rows = size(rng, 100)
    layer_norm, dueling = bool(rng.integers(4) == 0), len(sizes) > 2 and bool(rng.integers(4) == 0)
    if layer_norm:  # of one or three numbers that are nearly equal 1 / sqrt(var + eps) loses all digits
        sizes = [sizes[0], *(max(w, 15) for w in sizes[1:-1]), sizes[-1]]
        activation = "tanh" if activation == "relu" else activation  # no ReLU may differ by rounding
    seed = int(rng.integers(2**32))

    def network():
        net = fastrl.MLP(sizes, activation, n=n, layer_norm=layer_norm, dueling=dueling, seed=seed)
        if activation == "relu":  # exact sums, for the same reason
            net.vector[:] = dyadic(np.random.default_rng(seed), net.vector.shape, 2**-5, 4)
        return net

    x = dyadic(rng, (rows, sizes[0]), 2**-2)
    d_out = dyadic(rng, (rows, sizes[-1]) if n is None else (n, rows, sizes[-1]), 2**-3)
    wanted, grad, d_x = by_hand(network(), x, d_out)

    def check():
        net = network()
        same(net.forward(x), wanted)
        same(net.forward_cached(x), wanted)
        same(net.backward(d_out, inputs=True), d_x)
        same(net.grad, grad)

    return check


def curvature(rng, oracle):
    sizes = [int(w) for w in rng.integers(1, 8, rng.integers(2, 4))]
    activation = str(rng.choice(["tanh", "silu", "none"]))
    policy = fastrl.MLP(sizes, activation, seed=int(rng.integers(2**32)))
    obs = normals(rng, (int(rng.integers(1, 20)), sizes[0]), np.float32)
    log_std = rng.uniform(-1, 1, sizes[-1]).astype(np.float32) if rng.integers(2) else None
    v = normals(rng, len(policy.vector) + (0 if log_std is None else len(log_std)), np.float32)
    wanted = fisher_product(policy, log_std, obs, 0.1)(v)
    return compare(lambda: MLPFisherProduct(policy, log_std, obs, 0.1)(v), (wanted,))


def conjugate_gradient(rng, oracle):
    n, dtype, most = int(rng.integers(1, 40)), drawn_dtype(rng), int(rng.integers(1, 6))
    matrix = spd(rng, n, float(rng.uniform(1, 8))).astype(dtype)
    b, x0 = normals(rng, (2, n), dtype)
    damping, start = float(rng.choice([0.0, 0.1])), bool(rng.integers(2))
    A = matrix.astype(np.float64) + damping * np.eye(n)
    x = x0.astype(np.float64) if start else np.zeros(n)
    r = b - A @ x
    p, left = r.copy(), []
    for _ in range(most):
        z = A @ p
        alpha = (r @ r) / (p @ z)
        x, after = x + alpha * p, r - alpha * z
        p, r = after + (after @ after) / (r @ r) * p, after
        left.append(np.linalg.norm(r) / (1e-3 * np.linalg.norm(b)))
        if left[-1] <= 1:
            break
    if any(0.99 < x < 1.01 for x in left):  # rounding decides whether that is the end
        return lambda: None

    def check():
        found, info = fastrl.conjugate_gradient(
            matrix, b, x0=x0 if start else None, max_iter=most, rtol=1e-3, damping=damping
        )
        assert (info.iterations, info.status) == (len(left), "converged" if left[-1] <= 1 else "max_iter")
        same(found, x)

    return check


def cem(rng, oracle):
    rows, a, obs_size = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    samples = int(rng.integers(2, 20))
    elites, iterations = int(rng.integers(1, samples + 1)), int(rng.integers(1, 4))
    obs = normals(rng, (rows, obs_size), np.float32)
    noise = normals(rng, (iterations, samples, a), np.float32)
    net = fastrl.MLP((obs_size + a, 8, 1), "tanh", seed=int(rng.integers(2**32)))

    def q(row, actions):
        x = np.concatenate((np.repeat(exact(obs[row])[None], len(actions), 0), actions), 1)
        return by_hand(net, x, np.zeros((len(x), 1)))[0][:, 0]

    wanted = []
    for row in range(rows):
        mean, sigma, seen = np.zeros(a), 1.0, []
        for t in range(iterations):
            actions = np.clip(mean + sigma * noise[t].astype(np.float64), -1, 1).astype(np.float32).astype(np.float64)
            values = q(row, actions)
            order = np.argsort(-values, kind="stable")
            ranked = values[order]
            if elites < samples and ranked[elites - 1] - ranked[elites] < 1e-5 and (
                actions[order[elites - 1]] != actions[order[elites]]
            ).any():  # rounding decides which is chosen  # fmt: skip
                return lambda: None
            seen += list(zip(values, actions, strict=True))
            chosen = actions[order[:elites]]
            mean, sigma = chosen.mean(0), chosen.std(0)
        wanted.append(max(value for value, _ in seen))

    def check():
        twin = fastrl.MLP((obs_size + a, 8, 1), "tanh", vector=net.vector.copy())
        action, value = fastrl.cem_argmax(twin, obs, noise=noise, elites=elites)
        assert (np.abs(action) <= 1).all()
        same(value, np.array(wanted))
        same(value, np.array([q(row, action[row : row + 1].astype(np.float64))[0] for row in range(rows)]))

    return check


def projection(rng, oracle):
    rows, n = int(rng.integers(1, 9)), int(rng.integers(2, 60))
    probs = rng.dirichlet(np.ones(n), rows).astype(np.float32)
    rewards, discounts = normals(rng, rows, np.float32), (0.99 * (rng.random(rows) < 0.8)).astype(np.float32)
    low, high = float(rng.uniform(-5, -1)), float(rng.uniform(1, 5))
    wanted = distributional.projected(*map(exact, (probs, rewards, discounts)), low, high)
    return compare(lambda: fastrl.categorical_projection(probs, rewards, discounts, v_min=low, v_max=high), (wanted,))


def distributional_loss(op, rng, oracle):
    rows, actions, n = int(rng.integers(1, 9)), int(rng.integers(1, 5)), int(rng.integers(2, 40))
    batch = distributional.Batch(int(rng.integers(2**32)), rows, actions, n)
    online = batch.online if rng.integers(2) else None
    usual = batch.exact(online is not None, weighted=True)
    if op == "c51_loss":
        options = {"v_min": -3.0, "v_max": 4.0, "next_logits_online": online}
        values = np.exp(log_softmax(usual[5])) @ np.linspace(-3, 4, n)
        wanted = distributional.c51(*usual, -3.0, 4.0)
    else:
        options = {"taus": batch.taus, "kappa": 0.7, "next_quantiles_online": online}
        values = usual[5].mean(2)
        wanted = distributional.quantiles(*usual, exact(batch.taus), 0.7)
    best = -np.sort(-values, 1)
    if actions > 1 and (best[:, 0] - best[:, 1]).min() < 1e-4:  # rounding decides which is the best
        return lambda: None

    def check():
        found = getattr(fastrl, op)(*batch.arguments, weights=batch.weights, **options)
        same(np.float32(found.loss), wanted[0])
        same(found.d_q, wanted[3])
        same(found.td_errors, wanted[1], 10.0)
        same(np.float32(found.mean_q), wanted[2], 10.0)

    return check


def actor(rng, oracle):
    rows, n = int(rng.integers(1, 9)), int(rng.integers(2, 60))
    logits = 3 * normals(rng, (rows, n), np.float32)
    wanted = distributional.c51_actor(exact(logits), -2.0, 3.0)

    def check():
        loss, d = fastrl.c51_actor_loss(logits, v_min=-2.0, v_max=3.0)
        same(np.float32(loss), wanted[0])
        same(d, wanted[1])

    return check


def two_hot(rng, oracle):
    values, n = 3 * normals(rng, int(rng.integers(1, 9)), np.float32), int(rng.integers(2, 60))
    z = np.linspace(-2, 3, n)
    wanted = np.maximum(0, 1 - np.abs(values.astype(np.float64).clip(-2, 3)[:, None] - z) / (z[1] - z[0]))
    return compare(lambda: fastrl.two_hot(values, n, v_min=-2.0, v_max=3.0), (wanted,))


def flat_adam(rng, oracle):
    n, most, t = size(rng, 3000), float(rng.choice([0.5, 1e6])), int(rng.integers(0, 100))
    p, g, m, target, average = normals(rng, (5, n), np.float32)
    v = normals(rng, n, np.float32) ** 2
    P, G, M, V, T, A = (x.astype(np.float64) for x in (p, g, m, v, target, average))
    norm = np.linalg.norm(G)
    G = G * min(1, most / (norm + 1e-6))
    M, V = M + 0.1 * (G + 0.1 * P - M), 0.999 * V + 0.001 * (G + 0.1 * P) ** 2
    P = P - 0.01 * M / (1 - 0.9 ** (t + 1)) / (np.sqrt(V / (1 - 0.999 ** (t + 1))) + 1e-8)
    wanted = norm, G, P, M, V, T + 0.3 * (P - T), A + 0.6 * (P - A)

    def check():
        vector, grad, follower, mean = (x.copy() for x in (p, g, target, average))
        adam = fastrl.FlatAdam(vector, grad, lr=0.01, weight_decay=0.1)
        adam.load_state_dict({"exp_avg": m.copy(), "exp_avg_sq": v.copy(), "steps": t})
        found = adam.step(max_grad_norm=most, target=follower, tau=0.3, average=mean, average_weight=0.6)
        for got, right in zip(
            (np.float32(found), grad, vector, adam.exp_avg, adam.exp_avg_sq, follower, mean), wanted, strict=True
        ):
            same(got, right)

    return check


def loss(test, draws, rng, oracle):
    """The body of a property test of tests/kernels/mlp/test_losses.py, which compares with plain float64."""
    arguments = [draw(rng) for draw in draws]
    return lambda: test.hypothesis.inner_test(None, lambda found, right: same(found, right), *arguments)


def flag(rng):
    return bool(rng.integers(2))


def one_of(*values):
    return lambda rng: values[rng.integers(len(values))]


ROWS, SEED = one_of(1, 2, 3, 17, 31, 64), lambda rng: int(rng.integers(2**32))
PPO = (ROWS, one_of(1, 2, 6), one_of(None, 0.2), flag, flag, SEED)
HUBER = one_of("mse", "huber")


CASES = {
    "categorical_projection": projection,
    "two_hot": two_hot,
    "c51_loss": functools.partial(distributional_loss, "c51_loss"),
    "c51_actor_loss": actor,
    "quantile_huber_loss": functools.partial(distributional_loss, "quantile_huber_loss"),
    "MLP": mlp,
    "FlatAdam": flat_adam,
    "adam_step": adam_step,
    "q_learning_loss": functools.partial(
        loss, test_losses.test_q_learning, (ROWS, one_of(1, 2, 17), flag, flag, HUBER, SEED)
    ),
    "q_regression_loss, min_q_targets, min_q_loss": functools.partial(
        loss, test_losses.test_critics, (ROWS, one_of(1, 2, 5), flag, flag, HUBER, SEED)
    ),
    "value_loss": functools.partial(loss, test_losses.test_values, (ROWS, one_of(None, 0.1, 0.5), flag, SEED)),
    "ppo_categorical_loss": functools.partial(loss, test_losses.test_ppo_categorical, PPO),
    "ppo_normal_loss": functools.partial(loss, test_losses.test_ppo_normal, PPO),
    "MLPFisherProduct": curvature,
    "conjugate_gradient": conjugate_gradient,
    "cem_argmax": cem,
}

"""Ops that torch serves on a GPU, captured in a graph: a replay gives what a call gives."""

import pytest
from cuda_graphs import captured

import fastrl

torch = pytest.importorskip("torch", reason="CUDA tensors need torch, which is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

ACTION = torch.tensor([0, 2, 1, 3, 0, 1, 2, 3], device="cuda")


def adam(p, g, m, v, t):
    fastrl.adam_step([p], [g], [m], [v], [t], lr=1e-3)
    return p, m, v, t


def flat_adam(p, g, target, average):
    fastrl.FlatAdam(p, g).step(max_grad_norm=1.0, target=target, tau=0.1, average=average, average_weight=0.2)
    return p, target, average


def solve(A, b):
    return fastrl.conjugate_gradient(A.abs() + 9 * torch.eye(8, device="cuda"), b, max_iter=5)[0]


def q_learning(q, following, r, w):
    return *fastrl.q_learning_loss(q, ACTION, r, w, following, next_q_online=q, weights=w), *fastrl.min_q_loss(q.T)


def critics(q, r, w, b):
    y = fastrl.min_q_targets(q, r, w, next_log_prob=b, temperature=0.2)
    return *fastrl.q_regression_loss(q, y, weights=w, loss="huber"), *fastrl.value_loss(r, b)


def ppo(logits, mean, log_std, x, old, advantage):
    how = {"clip_range": 0.2, "entropy_coef": 0.01, "normalize_advantages": True}
    losses = fastrl.ppo_categorical_loss(logits, ACTION, old, advantage, **how)[:5]
    return *losses, *fastrl.ppo_normal_loss(mean, log_std, x, old, advantage, **how)


def distributions(x, following, r, w):
    c51 = fastrl.c51_loss(x, ACTION, r, w, following, weights=w, v_min=-3.0, v_max=3.0)
    return *c51, *fastrl.quantile_huber_loss(x, ACTION, r, w, following, weights=w)


def naf(mean, cholesky, action, grad):
    value, pullback = fastrl.quadratic_advantage_pullback(mean, cholesky, action)
    return value, *pullback(grad)


def cem(obs, noise):
    return fastrl.cem_argmax(lambda s, a: -((a - s) ** 2).sum(1), obs, noise=noise)


SERVED_BY_TORCH = {  # and the shapes of their arguments
    adam: [(9,), (9,), (9,), (9,), ()],
    flat_adam: [(9,), (9,), (9,), (9,)],
    solve: [(8, 8), (8,)],
    q_learning: [(8, 4), (8, 4), (8,), (8,)],
    critics: [(2, 8), (8,), (8,), (8,)],
    ppo: [(8, 4), (8, 3), (3,), (8, 3), (8,), (8,)],
    distributions: [(8, 4, 5), (8, 4, 5), (8,), (8,)],
    naf: [(8, 3), (8, 6), (8, 3), (8,)],
    cem: [(8, 3), (2, 16, 3)],
}


@pytest.mark.parametrize("work", SERVED_BY_TORCH)
def test_captured(work):
    held = [torch.rand(shape, device="cuda") for shape in SERVED_BY_TORCH[work]]
    graph, found = captured(lambda: work(*held))
    for _ in range(2):
        new = [torch.rand(x.shape, device="cuda") for x in held]
        for x, y in zip(held, new, strict=True):
            x.copy_(y)
        graph.replay()
        torch.testing.assert_close(found, work(*new))

"""Small networks: acting, forward and backward, and one minibatch step of PPO, against the matrix products alone, torch
and NumPy."""

import numpy as np
from _harness import RTOL, Case

import fastrl

ACT = [{"sizes": (4, 64, 64, 2), "batch": b} for b in (1, 8)]
PASS = [
    {"sizes": sizes, "batch": batch}
    for sizes, batch in (
        ((4, 64, 64, 2), 64),
        ((64, 64, 64, 64), 32),
        ((64, 64, 64, 64), 256),
        ((128, 128, 128), 128),
        ((256, 256, 256), 32),
        ((256, 256, 256), 256),
    )
]
PPO = [{"batch": b} for b in (64, 256)]


class Networks:
    """One network in every form, its inputs, and what is wanted."""

    def __init__(self, sizes, batch, activation="relu"):
        import torch

        self.torch, self.sizes = torch, sizes
        rng = np.random.default_rng(0)
        self.net = fastrl.MLP(sizes, activation, seed=0)
        self.module = fastrl.MLP(sizes, activation, vector=self.net.vector.copy()).to_torch()
        self.x = rng.standard_normal((batch, sizes[0]), np.float32)
        self.d_out = rng.standard_normal((batch, sizes[-1]), np.float32)
        self.tensors = torch.from_numpy(self.x), torch.from_numpy(self.d_out)

    def autograd(self):
        self.module.zero_grad()
        self.module(self.tensors[0]).backward(self.tensors[1])
        return np.concatenate([p.grad.numpy().ravel() for p in self.module.parameters()])

    def explicit(self):
        self.net.forward_cached(self.x)
        self.net.backward(self.d_out)
        return self.net.grad

    def products(self):
        """The matrix products of forward and backward, as torch.mm does them."""
        torch, batch = self.torch, len(self.x)
        weights = [torch.randn(a, b) for a, b in zip(self.sizes[:-1], self.sizes[1:], strict=True)]
        h = [torch.randn(batch, n) for n in self.sizes]

        def run():
            for k, w in enumerate(weights):
                torch.mm(h[k], w)
                torch.mm(h[k].t(), h[k + 1])
                if k:
                    torch.mm(h[k + 1], w.t())

        return run


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=RTOL, atol=RTOL * max(1.0, float(np.abs(wanted).max())))


def acting(name):
    def build(sizes, batch):
        n = Networks(sizes, batch)
        torch = n.torch
        weights = [(n.net.parameters()[f"{2 * k}.weight"].T, n.net.parameters()[f"{2 * k}.bias"]) for k in range(3)]

        def numpy():
            h = n.x
            for weight, bias in weights[:-1]:
                h = np.maximum(h @ weight + bias, 0)
            return h @ weights[-1][0] + weights[-1][1]

        def eager():
            with torch.inference_mode():
                return n.module(n.tensors[0]).numpy()

        call = {"fastrl": lambda: n.net.forward(n.x), "NumPy": numpy, "torch": eager}[name]
        close(call(), eager())
        return call

    return build


def passing(name):
    def build(sizes, batch):
        n = Networks(sizes, batch)
        close(n.explicit(), n.autograd())
        return {"fastrl": n.explicit, "torch": n.autograd, "torch.mm alone": n.products()}[name]

    return build


class Ppo:
    """Two networks of 64-64 with tanh: loss, backward, clip, Adam."""

    def __init__(self, batch):
        import torch

        self.torch, rng = torch, np.random.default_rng(0)
        sizes = [(4, 64, 64, n) for n in (2, 1)]
        counts = [fastrl.MLP.num_parameters(s) for s in sizes]
        self.flat, self.grad = (np.zeros(sum(counts), np.float32) for _ in range(2))
        parts = [slice(0, counts[0]), slice(counts[0], None)]
        self.policy, self.value = (
            fastrl.MLP(s, "tanh", seed=k, vector=self.flat[part], grad=self.grad[part])
            for k, (s, part) in enumerate(zip(sizes, parts, strict=True))
        )
        self.adam = fastrl.FlatAdam(self.flat, self.grad, lr=3e-4, eps=1e-5)
        self.modules = [
            fastrl.MLP(s, "tanh", vector=self.flat[part].copy()).to_torch()
            for s, part in zip(sizes, parts, strict=True)
        ]
        self.parameters = [p for m in self.modules for p in m.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=3e-4, eps=1e-5)
        self.obs, self.actions = rng.standard_normal((batch, 4), np.float32), rng.integers(0, 2, batch)
        self.advantages, self.returns = (rng.standard_normal(batch, np.float32) for _ in range(2))
        self.old = np.full(batch, np.log(0.5), np.float32)
        arrays = self.obs, self.actions, self.advantages, self.returns, self.old
        self.tensors = [torch.from_numpy(x) for x in arrays]

    def explicit(self):
        logits, values = self.policy.forward_cached(self.obs), self.value.forward_cached(self.obs)
        policy = fastrl.ppo_categorical_loss(
            logits,
            self.actions,
            self.old,
            self.advantages,
            clip_range=0.2,
            entropy_coef=0.01,
            normalize_advantages=True,
        )
        _, d_values = fastrl.value_loss(values, self.returns, coef=0.5)
        self.policy.backward(policy.d_out)
        self.value.backward(d_values)
        self.adam.step(max_grad_norm=0.5)
        return self.flat

    def eager(self):
        torch, (obs, actions, a, returns, old) = self.torch, self.tensors
        policy, value = self.modules
        a = (a - a.mean()) / (a.std(correction=0) + 1e-8)
        log_p = policy(obs).log_softmax(1)
        ratio = (log_p.gather(1, actions[:, None]).squeeze(1) - old).exp()
        loss = -torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a).mean()
        loss = loss + 0.5 * 0.5 * (value(obs).squeeze(1) - returns).square().mean()
        loss = loss + 0.01 * (log_p.exp() * log_p).sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 0.5)
        self.optimizer.step()
        return np.concatenate([p.detach().numpy().ravel() for p in self.parameters])


def stepping(name):
    def build(batch):
        p = Ppo(batch)
        close(p.explicit(), p.eager())
        products = [Networks((4, 64, 64, n), batch).products() for n in (2, 1)]
        return {"fastrl": p.explicit, "torch": p.eager, "torch.mm alone": lambda: [run() for run in products]}[name]

    return build


CASES = [
    Case("MLP, acting", ACT, {name: acting(name) for name in ("fastrl", "NumPy", "torch")}),
    Case("MLP, forward and backward", PASS, {name: passing(name) for name in ("fastrl", "torch.mm alone", "torch")}),
    Case("PPO minibatch, 64-64", PPO, {name: stepping(name) for name in ("fastrl", "torch.mm alone", "torch")}),
]


def test_mlp(contender):
    contender()

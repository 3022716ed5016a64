"""Fisher products and conjugate gradient of TRPO: one product, ten iterations, and the vector work alone.

Policies are Gaussian MLPs with tanh, as in Schulman et al. 2015: 17-64-64-6 and 376-256-256-17.  "matrix products
alone" is no contender but a denominator: torch.mm at the shapes of one product, results preallocated, nothing else.
"""

from itertools import pairwise

import numpy as np
from _harness import Case

from fastrl import FisherVectorProduct, conjugate_gradient
from fastrl.kernels import conjugate_gradient_reference

NETS = {"17-64-64-6": (17, 64, 64, 6), "376-256-256-17": (376, 256, 256, 17)}
SIZES = [{"net": net, "batch": batch} for net in NETS for batch in (1000, 2048, 15000)]
VECTORS = [{"n": n} for n in (5708, 166_690, 1_000_000)]  # the parameters of the two policies, and more
DAMPING = 0.1
ITERATIONS = 10


def plain_cg(product, b, iterations=ITERATIONS):
    """As most code bases write it, in torch."""
    x, r, p = b.clone().zero_(), b.clone(), b.clone()
    rr = r.dot(r)
    for _ in range(iterations):
        z = product(p)
        alpha = rr / p.dot(z)
        x += alpha * p
        r -= alpha * z
        rr_next = r.dot(r)
        if rr_next < 1e-30:
            break
        p = r + (rr_next / rr) * p
        rr = rr_next
    return x


def make_policy(net):
    import torch
    from torch import nn

    torch.manual_seed(0)
    sizes = NETS[net]

    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [layer for i, j in pairwise(sizes) for layer in (nn.Linear(i, j), nn.Tanh())]
            self.net = nn.Sequential(*layers[:-1])
            self.log_std = nn.Parameter(torch.full(sizes[-1:], -0.5))

        def forward(self, obs):
            return self.net(obs), self.log_std

    return Policy()


class Product:
    """F v + damping v; a subclass has `begin`, what is done once for a solve, and `product`."""

    def __init__(self, net, batch):
        import torch

        self.torch = torch
        self.policy = make_policy(net)
        self.params = list(self.policy.parameters())  # log_std, then the layers
        self.obs = torch.randn(batch, NETS[net][0])
        self.n = sum(p.numel() for p in self.params)
        self.v, self.b = torch.randn(self.n), 1e-2 * torch.randn(self.n)
        self.prepare()
        self.begin()
        self.check()

    def prepare(self):
        pass

    def begin(self):
        pass

    def check(self):
        """By formula in float64, on the rows of the batch one layer at a time."""
        torch = self.torch
        layers = [m for m in self.policy.net if isinstance(m, torch.nn.Linear)]
        parts = [
            x.view_as(p)
            for x, p in zip(self.v.double().split([p.numel() for p in self.params]), self.params, strict=True)
        ]
        h, tangent, inputs, slopes = self.obs.double(), None, [], []
        with torch.no_grad():
            for k, layer in enumerate(layers):
                W, V, bias = layer.weight.double(), parts[1 + 2 * k], parts[2 + 2 * k]
                inputs.append(h)
                t = h @ V.T + bias + (0 if tangent is None else tangent @ W.T)
                h = h @ W.T + layer.bias.double()
                if k + 1 < len(layers):
                    h = h.tanh()
                    slopes.append(1 - h * h)
                    t = t * slopes[-1]
                tangent = t
            g = tangent * torch.exp(-2 * self.policy.log_std.double()) / len(self.obs)
            out = []
            for k in range(len(layers) - 1, -1, -1):
                out = [(g.T @ inputs[k]).reshape(-1), g.sum(0), *out]
                if k:
                    g = (g @ layers[k].weight.double()) * slopes[k - 1]
            exact = torch.cat([2 * parts[0], *out]) + DAMPING * self.v.double()
        found = self.canonical(self.product(self.v)).detach().double()
        assert (found - exact).abs().max() <= 1e-5 * exact.abs().max(), "a wrong product"

    def canonical(self, product):
        return product

    def __call__(self):
        return self.product(self.v)


class Fastrl(Product):
    method = "auto"

    def prepare(self):
        self.product = FisherVectorProduct(self.policy, self.obs, DAMPING, method=self.method)

    def begin(self):
        self.product.refresh()

    def solve(self):
        return conjugate_gradient(self.product, self.b, max_iter=ITERATIONS, rtol=0.0)[0]


class FastrlFunc(Fastrl):
    method = "func"


class FastrlDoubleBackward(Fastrl):
    method = "double_backward"


class Peer(Product):
    def solve(self):
        return plain_cg(self.product, self.b)


class DoubleBackward(Peer):
    """torch.distributions and two calls of autograd.grad; the KL's gradient is built once."""

    def begin(self):
        torch = self.torch
        mean, log_std = self.policy(self.obs)
        new = torch.distributions.Normal(mean, log_std.exp())
        old = torch.distributions.Normal(mean.detach(), log_std.exp().detach())
        kl = torch.distributions.kl_divergence(old, new).sum(-1).mean()
        grads = torch.autograd.grad(kl, self.params, create_graph=True)
        self.gradient = torch.cat([g.reshape(-1) for g in grads])

    def product(self, v):
        grads = self.torch.autograd.grad((self.gradient * v).sum(), self.params, retain_graph=True)
        return self.torch.cat([g.reshape(-1) for g in grads]) + DAMPING * v


class Func(Peer):
    """torch.func.jvp and vjp under torch.compile."""

    def prepare(self):
        from torch.func import functional_call, jvp, vjp

        torch = self.torch
        names = [name for name, _ in self.policy.named_parameters()]
        shapes, sizes = [p.shape for p in self.params], [p.numel() for p in self.params]
        base = {name: p.detach() for name, p in zip(names, self.params, strict=True)}

        def product(v, base):
            tangent = {name: x.view(s) for name, x, s in zip(names, v.split(sizes), shapes, strict=True)}
            (_, log_std), (dm, ds) = jvp(lambda p: functional_call(self.policy, p, (self.obs,)), (base,), (tangent,))
            _, pull = vjp(lambda p: functional_call(self.policy, p, (self.obs,)), base)
            (grads,) = pull((dm * torch.exp(-2 * log_std) / len(self.obs), 2 * ds))
            return torch.cat([grads[name].reshape(-1) for name in names]) + DAMPING * v

        torch._dynamo.reset()
        compiled = torch.compile(product, dynamic=False)
        self.product = lambda v: compiled(v, base)


class Tianshou(Peer):
    def prepare(self):
        from tianshou.algorithm.modelfree.npg import NPG

        outer, torch = self, self.torch

        class Solver(NPG):
            def __init__(self):  # only the solver's methods are used
                torch.nn.Module.__init__(self)
                self._damping = DAMPING

            class policy:
                actor = outer.policy

        self.solver = Solver()

    def begin(self):
        torch = self.torch
        mean, log_std = self.policy(self.obs)
        new = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
        old = torch.distributions.Normal(mean.detach(), log_std.exp().detach())
        kl = torch.distributions.kl_divergence(torch.distributions.Independent(old, 1), new).mean()
        self.gradient = self.solver._get_flat_grad(kl, self.policy, create_graph=True)

    def product(self, v):
        return self.solver._MVP(v, self.gradient)

    def solve(self):
        return self.solver._conjugate_gradients(self.b, self.gradient, nsteps=ITERATIONS)


class Sb3Contrib(Peer):
    def prepare(self):
        import gymnasium as gym
        from sb3_contrib import TRPO

        n_in, *hidden, n_out = (self.params[1].shape[1], *(p.shape[0] for p in self.params[1::2]))

        class Env(gym.Env):
            observation_space = gym.spaces.Box(-10, 10, (n_in,), np.float32)
            action_space = gym.spaces.Box(-1, 1, (n_out,), np.float32)

        heads = {"net_arch": {"pi": hidden, "vf": [8]}}
        self.trpo = TRPO("MlpPolicy", Env(), n_steps=128, batch_size=128, cg_damping=DAMPING, policy_kwargs=heads)
        policy = self.trpo.policy
        linear = [m for m in policy.mlp_extractor.policy_net if isinstance(m, self.torch.nn.Linear)]
        linear.append(policy.action_net)
        ours = [m for m in self.policy.net if isinstance(m, self.torch.nn.Linear)]
        for theirs, layer in zip(linear, ours, strict=True):
            theirs.load_state_dict(layer.state_dict())
        policy.log_std.data.copy_(self.policy.log_std)
        self.order = [policy.log_std, *(p for layer in linear for p in (layer.weight, layer.bias))]
        self.actions = self.torch.zeros(len(self.obs), n_out)

    def begin(self):
        import copy

        from stable_baselines3.common.distributions import kl_divergence

        policy = self.trpo.policy
        with self.torch.no_grad():
            old = copy.copy(policy.get_distribution(self.obs))
        new = policy.get_distribution(self.obs)
        kl, objective = kl_divergence(new, old).mean(), new.log_prob(self.actions).mean()
        self.actor, _, self.gradient, _ = self.trpo._compute_actor_grad(kl, objective)

    def product(self, v):
        parts = dict(zip(map(id, self.order), v.split([p.numel() for p in self.order]), strict=True))
        v = self.torch.cat([parts[id(p)] for p in self.actor])
        return self.trpo.hessian_vector_product(self.actor, self.gradient, v, retain_graph=True)

    def canonical(self, product):
        parts = dict(zip(map(id, self.actor), product.split([p.numel() for p in self.actor]), strict=True))
        flat = self.torch.cat([parts[id(p)] for p in self.order])
        # It averages the KL over action dimensions too: its product is F / A + damping.
        return (flat - DAMPING * self.v) * self.actions.shape[1] + DAMPING * self.v

    def solve(self):
        from sb3_contrib.common.utils import conjugate_gradient_solver

        return conjugate_gradient_solver(
            lambda v: self.trpo.hessian_vector_product(self.actor, self.gradient, v), self.b, max_iter=ITERATIONS
        )


class MatrixProducts:
    def __init__(self, net, batch, repeat=1):
        import torch

        self.mm, self.repeat, self.operands = torch.mm, repeat, []
        for k, (n_in, n_out) in enumerate(pairwise(NETS[net])):
            h, w, g = torch.randn(batch, n_in), torch.randn(n_out, n_in), torch.randn(batch, n_out)
            self.operands += [(h, w.t(), torch.empty(batch, n_out)), (g.t(), h, torch.empty(n_out, n_in))]
            if k:
                self.operands += [(h, w.t(), torch.empty(batch, n_out)), (g, w, torch.empty(batch, n_in))]

    def __call__(self):
        for _ in range(self.repeat):
            for a, b, out in self.operands:
                self.mm(a, b, out=out)


def solved(base):
    """What a policy update does: `begin`, and ten iterations from zero."""

    def run(**size):
        contender = base(**size)
        assert contender.torch.isfinite(contender.solve()).all()

        def update():
            contender.begin()
            return contender.solve()

        return update

    return run


def many_matrix_products(**size):
    return MatrixProducts(**size, repeat=ITERATIONS)


# ---- the vector work: ten iterations with a diagonal matrix --------------------------------------------------------


class Diagonal:
    def __init__(self, n):
        import torch

        self.torch = torch
        torch.manual_seed(0)
        self.d, self.b = torch.linspace(1, 100, n), torch.randn(n)
        self.z = torch.empty(n)
        exact = plain_cg(lambda p: self.d.double() * p, self.b.double())
        found = torch.as_tensor(self()).double()
        assert (found - exact).abs().max() <= 1e-3 * exact.abs().max(), "a wrong solution"

    def product(self, p):
        return self.torch.mul(self.d, p, out=self.z)

    def __call__(self):
        return conjugate_gradient(self.product, self.b, max_iter=ITERATIONS, rtol=0.0)[0]


class DiagonalReference(Diagonal):
    def __call__(self):
        return conjugate_gradient_reference(self.product, self.b, max_iter=ITERATIONS, rtol=0.0)[0]


class DiagonalTorch(Diagonal):
    def __call__(self):
        return plain_cg(self.product, self.b)


class DiagonalSb3Contrib(Diagonal):
    def __call__(self):
        from sb3_contrib.common.utils import conjugate_gradient_solver

        return conjugate_gradient_solver(self.product, self.b, max_iter=ITERATIONS, residual_tol=0.0)


class DiagonalSciPy(Diagonal):
    def __call__(self):
        from scipy.sparse.linalg import LinearOperator, cg

        d = self.d.numpy()
        operator = LinearOperator((len(d), len(d)), matvec=lambda p: d * p, dtype=np.float32)
        return cg(operator, self.b.numpy(), rtol=0.0, maxiter=ITERATIONS)[0]


class DiagonalProducts(Diagonal):
    """The ten products alone."""

    def __init__(self, n):
        import torch

        self.torch, self.d, self.z = torch, torch.ones(n), torch.empty(n)

    def __call__(self):
        for _ in range(ITERATIONS):
            self.product(self.d)


CASES = [
    Case(
        "Fisher product",
        SIZES,
        {
            "fastrl": Fastrl,
            'fastrl, method="func"': FastrlFunc,
            'fastrl, method="double_backward"': FastrlDoubleBackward,
            "double backward": DoubleBackward,
            "torch.func, compiled": Func,
            "tianshou": Tianshou,
            "sb3-contrib": Sb3Contrib,
            "matrix products alone": MatrixProducts,
        },
    ),
    Case(
        "10 CG iterations with Fisher products",
        SIZES,
        {
            "fastrl": solved(Fastrl),
            "double backward": solved(DoubleBackward),
            "torch.func, compiled": solved(Func),
            "tianshou": solved(Tianshou),
            "sb3-contrib": solved(Sb3Contrib),
            "matrix products alone": many_matrix_products,
        },
    ),
    Case(
        "10 CG iterations with a diagonal matrix",
        VECTORS,
        {
            "fastrl": Diagonal,
            "fastrl, reference": DiagonalReference,
            "torch loop": DiagonalTorch,
            "sb3-contrib": DiagonalSb3Contrib,
            "SciPy": DiagonalSciPy,
            "products alone": DiagonalProducts,
        },
    ),
]


def test_conjugate_gradient(contender):
    contender()

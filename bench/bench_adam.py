"""Adam on the parameters of SAC's and DQN's networks: as lists, and flattened to one tensor."""

import numpy as np
from _harness import RTOL, Case

from fastrl.kernels import adam_step, adam_step_reference

LR = 1e-3


def linear(n_in, n_out, copies=()):
    return [(*copies, n_in, n_out), (*copies, 1, n_out)]


NETWORKS = {
    "SAC actor 3-256-256-2": linear(3, 256) + linear(256, 256) + linear(256, 2),
    "SAC critics 2 x 4-256-256-1": linear(4, 256, (2,)) + linear(256, 256, (2,)) + linear(256, 1, (2,)),
    "DQN 4-64-64-2": linear(4, 64) + linear(64, 64) + linear(64, 2),
}
SIZES = [{"network": network, "flat": flat} for network in NETWORKS for flat in (False, True)]


class Adam:
    """The lists of a network; calling it takes a step."""

    def __init__(self, network, flat):
        import torch

        self.torch = torch
        rng = np.random.default_rng(0)
        shapes = NETWORKS[network]
        if flat:
            shapes = [(sum(int(np.prod(s)) for s in shapes),)]
        self.start, self.grads = ([rng.standard_normal(s).astype(np.float32) for s in shapes] for _ in range(2))
        self.p = [torch.nn.Parameter(torch.from_numpy(x.copy())) for x in self.start]
        self.g = [torch.from_numpy(x.copy()) for x in self.grads]
        for p, g in zip(self.p, self.g, strict=True):
            p.grad = g
        self.build()

    def build(self):
        pass

    def answer(self):
        return [p.detach().numpy() for p in self.p]

    def wanted(self):
        """The first step: m_hat = g and v_hat = g^2."""
        return [p - LR * g / (abs(g) + 1e-8) for p, g in zip(self.start, self.grads, strict=True)]


class AdamLists(Adam):
    """The state outside of an optimizer."""

    function = staticmethod(adam_step)

    def build(self):
        zeros_like = self.torch.zeros_like
        self.state = [zeros_like(p) for p in self.p], [zeros_like(p) for p in self.p]
        self.steps = [self.torch.tensor(0.0) for _ in self.p]

    def __call__(self):
        self.function(self.p, self.g, *self.state, self.steps, lr=LR)


class AdamReference(AdamLists):
    function = staticmethod(adam_step_reference)


class TorchFunction(AdamLists):
    """What torch.optim.Adam(fused=True) calls in the end; a private function."""

    def __call__(self):
        torch = self.torch
        with torch.no_grad():
            torch._foreach_add_(self.steps, 1)
            torch._fused_adam_(
                self.p, self.g, *self.state, [], self.steps, lr=LR, beta1=0.9, beta2=0.999, weight_decay=0.0,
                eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip


def torch_adam(**how):
    class TorchAdam(Adam):
        def build(self):
            self.optimizer = self.torch.optim.Adam(self.p, lr=LR, **how)

        def __call__(self):
            self.optimizer.step()

    return TorchAdam


def checked(contender_class):
    def build(network, flat):
        contender = contender_class(network, flat)
        contender()
        for found, wanted in zip(contender.answer(), contender.wanted(), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=RTOL, atol=RTOL)
        return contender

    return build


CONTENDERS = {
    "fastrl": AdamLists,
    "fastrl, reference": AdamReference,
    "torch._fused_adam_": TorchFunction,
    "torch.optim.Adam(fused=True)": torch_adam(fused=True),
    "torch.optim.Adam(foreach=True)": torch_adam(foreach=True),
    "torch.optim.Adam()": torch_adam(),
}
CASES = [Case("adam_step", SIZES, {name: checked(c) for name, c in CONTENDERS.items()})]


def test_adam(contender):
    contender()

"""The agents' Adam against torch.optim.Adam: several groups, missing gradients, state that loads either way."""

import pytest
import torch
from torch import nn

from fastrl.agents.adam import Adam

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def problem(cls, **keywords):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 17), nn.Tanh(), nn.Linear(17, 2), nn.Linear(2, 2))
    groups = [
        {"params": net[0].parameters(), "lr": 0.01},
        {"params": [*net[2].parameters(), *net[3].parameters()], "weight_decay": 0.1, "betas": (0.5, 0.9), "eps": 1e-5},
    ]
    return net, cls(groups, **keywords)


def step(net, optimizer, k):
    optimizer.zero_grad()
    x = torch.sin(torch.arange(12.0).reshape(4, 3) + k)
    (net[:3] if k < 5 else net)(x).square().mean().backward()  # at first the last layer has no gradient
    optimizer.step()


def same(net, other):
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, **CLOSE)


def test_it_is_torch_adam_and_their_states_load_into_each_other():
    net, optimizer = problem(Adam)
    reference, wanted = problem(torch.optim.Adam)
    for k in range(40):
        step(net, optimizer, k)
        step(reference, wanted, k)
        if k % 10 == 9:
            same(net, reference)
            state = optimizer.state_dict()
            _, optimizer = problem(Adam if k == 19 else lambda p: torch.optim.Adam(p, fused=True))
            for group, layers in zip(optimizer.param_groups, ((0,), (2, 3)), strict=True):
                group["params"][:] = [p for i in layers for p in net[i].parameters()]
            optimizer.load_state_dict(state)
    assert {float(optimizer.state[p]["step"]) for p in net[3].parameters()} == {35}


def test_closure_and_scheduler():
    net, optimizer = problem(Adam)
    before = [p.detach().clone() for p in net.parameters()]

    def closure():
        loss = net(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss

    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    assert optimizer.step(closure).requires_grad
    after = [p.detach().clone() for p in net.parameters()]
    assert all(not torch.equal(x, y) for x, y in zip(before, after, strict=True))
    scheduler.step()
    optimizer.step(closure)
    assert all(torch.equal(x, y) for x, y in zip(after, net.parameters(), strict=True))


def test_bad_hyperparameters_are_refused_as_by_torch():
    with pytest.raises(ValueError, match="Invalid learning rate"):
        Adam([nn.Parameter(torch.zeros(2))], lr=-1.0)

"""The agents' Adam against torch.optim.Adam: several groups, missing gradients, state that loads either way."""

import copy

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


@pytest.mark.parametrize(
    "cls, options",
    [
        (torch.optim.Adam, {"maximize": True}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {"weight_decay": 0.5}),
    ],
    ids=["maximize", "amsgrad", "AdamW"],
)
def test_options_of_a_loaded_state_are_kept(cls, options):
    """Gradients that grow and shrink, so that amsgrad's maximum is not the last one."""

    def trained(optimizer, p, steps):
        for k in steps:
            p.grad = torch.tensor([2.0, -1.0]) * (10.0 if k == 1 else 0.1)
            optimizer.step()

    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    wanted = cls([p], lr=0.1, betas=(0.9, 0.5), fused=True, **options)
    trained(wanted, p, range(3))
    optimizer = Adam([q])
    optimizer.load_state_dict(copy.deepcopy(wanted.state_dict()))  # else its tensors are shared
    q.data.copy_(p)
    trained(wanted, p, range(3, 8))
    trained(optimizer, q, range(3, 8))
    torch.testing.assert_close(q, p, **CLOSE)
    plain = nn.Parameter(torch.ones(2))
    trained(Adam([plain], lr=0.1, betas=(0.9, 0.5)), plain, range(8))
    assert not torch.allclose(plain, p, rtol=1e-2)  # the options matter here


def test_grad_scaler():
    p = nn.Parameter(torch.ones(2))
    optimizer, scaler = Adam([p], lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((p * torch.tensor([float("inf"), 1.0])).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert p.tolist() == [1.0, 1.0] and not optimizer.state  # overflowed: no step
    optimizer.zero_grad()
    scaler.scale((p * torch.tensor([3.0, -1.0])).sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.tensor([0.3, -0.1]), **CLOSE)


def test_bad_hyperparameters_are_refused_as_by_torch():
    with pytest.raises(ValueError, match="Invalid learning rate"):
        Adam([nn.Parameter(torch.zeros(2))], lr=-1.0)

"""`fastrl.tanh_normal_sample` inside a plain PyTorch module under torch.compile: the policy of SAC, without NaN at +-1.

Needs torch.  Run: python examples/tanh_normal_policy.py   (--backend aot_eager where there is no C++ compiler)
"""

import argparse

import torch
from torch import nn

import fastrl


class Policy(nn.Module):
    """Actions in [low, high] and their log-probability, both differentiable."""

    def __init__(self, n_obs: int, n_actions: int, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.net = nn.Sequential(nn.Linear(n_obs, 64), nn.ReLU(), nn.Linear(64, 2 * n_actions))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = self.net(obs).chunk(2, dim=-1)
        return fastrl.tanh_normal_sample(
            mean, log_std, low=self.low, high=self.high, log_std_min=-20.0, log_std_max=2.0
        )


def main() -> None:
    """Maximise E[-|a - target(s)|^2] + alpha H, as SAC's policy step does, with a known reward instead of a critic."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    args = parser.parse_args()
    torch.manual_seed(0)
    fastrl.manual_seed(0)
    torch.set_num_threads(1)
    policy = Policy(3, 2, low=-2.0, high=2.0)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)

    @torch.compile(fullgraph=True, backend=args.backend)
    def loss_of(obs: torch.Tensor) -> torch.Tensor:
        action, log_prob = policy(obs)
        reward = -(action - 1.5 * torch.tanh(obs[:, :2])).square().sum(1)
        return (0.01 * log_prob - reward).mean()

    losses = []
    for _ in range(args.steps):
        loss = loss_of(torch.randn(256, 3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    action, log_prob = policy(torch.randn(1000, 3))
    assert action.abs().max() <= 2 and torch.isfinite(log_prob).all()
    print(f"loss: first {losses[0]:.3f}, last {losses[-1]:.3f}; actions in [{action.min():.2f}, {action.max():.2f}]")


if __name__ == "__main__":
    main()

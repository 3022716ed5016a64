"""A policy that was trained elsewhere acts through `fastrl.MLP`: CleanRL's nn.Sequential, and one of Stable-Baselines3.

python examples/act_from_torch.py [--calls 2000]        # the second where stable-baselines3 is installed
"""

import argparse
import time
from importlib.util import find_spec

import numpy as np
import torch
from torch import nn

import fastrl


def cleanrl_agent() -> nn.Sequential:
    """The actor of CleanRL's ppo.py, as its script makes it (load your own state_dict into it)."""
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))


def sb3_policy() -> tuple[nn.Module, nn.Sequential]:
    """A policy that Stable-Baselines3 trained, and its layers from observations to logits."""
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=2, seed=0, device="cpu").learn(128)
    return model.policy, nn.Sequential(*model.policy.mlp_extractor.policy_net, model.policy.action_net)


def microseconds(call, obs: np.ndarray, calls: int) -> float:
    """The fastest of the calls, which a busy machine disturbs least."""
    fastest = float("inf")
    for _ in range(calls):
        start = time.perf_counter()
        call(obs)
        fastest = min(fastest, time.perf_counter() - start)
    return 1e6 * fastest


def compare(name: str, layers: nn.Sequential, act_torch, calls: int) -> None:
    mlp = fastrl.MLP.from_torch(layers)  # shares memory: it stays the policy, however that goes on being trained
    obs = np.random.default_rng(0).standard_normal((1000, 4), np.float32)

    def act(x: np.ndarray) -> np.ndarray:
        return mlp.forward(x).argmax(1)

    assert (act(obs) == act_torch(obs)).all()
    theirs, ours = (microseconds(call, obs[:1], calls) for call in (act_torch, act))
    print(f"{name}: one greedy action {theirs:.1f} us before, {ours:.1f} us by fastrl.MLP, {theirs / ours:.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    calls = parser.parse_args().calls
    torch.set_num_threads(1)
    actor = cleanrl_agent()

    @torch.no_grad()
    def act_cleanrl(obs: np.ndarray) -> np.ndarray:
        return actor(torch.as_tensor(obs)).argmax(1).numpy()

    compare("CleanRL", actor, act_cleanrl, calls)
    if find_spec("stable_baselines3") is not None:
        policy, layers = sb3_policy()
        compare("Stable-Baselines3", layers, lambda obs: policy.predict(obs, deterministic=True)[0], calls)


if __name__ == "__main__":
    main()

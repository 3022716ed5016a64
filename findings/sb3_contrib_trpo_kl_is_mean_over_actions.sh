#!/usr/bin/env bash
# sb3-contrib 2.9.2 with stable-baselines3 2.9.2, TRPO on Box actions: the KL divergence that `target_kl` bounds, in the line
# search and in the Fisher products, is the mean over action dimensions too, not their sum, since kl_divergence() of a
# DiagGaussianDistribution returns one value a dimension. For A dimensions the policy may move A times as far as
# target_kl says; of MultiDiscrete actions the same function sums over the dimensions, and log_prob() does for both.
# Seen: with 2 action dimensions kl_divergence() has shape (batch, 2) for Box and (batch,) for MultiDiscrete, and the logged
# train/kl_divergence_loss is half the KL of the two joint policies.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 stable-baselines3==2.9.2 sb3-contrib==2.9.2 \
  gymnasium==1.4.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import TRPO
from stable_baselines3.common.distributions import kl_divergence


class Walk(gym.Env):
    """20 steps; the reward is the first action dimension."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self, actions):
        self.action_space = actions

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), float(action[0]), self.t == 20, False, {}


def run(actions):
    """KL of old and new policy, one value as kl_divergence() gives it, and the logged mean."""
    model = TRPO("MlpPolicy", Walk(actions), n_steps=512, batch_size=512, target_kl=0.01, seed=0, device="cpu")
    old = copy.deepcopy(model.policy)
    model.learn(512)
    obs = torch.as_tensor(model.rollout_buffer.observations.reshape(-1, 3))
    with torch.no_grad():
        kl = kl_divergence(model.policy.get_distribution(obs), old.get_distribution(obs))
    return kl, model.logger.name_to_value["train/kl_divergence_loss"]


kl, logged = run(gym.spaces.Box(-1, 1, (2,), np.float32))
joint = float(kl.sum(1).mean())
print("sb3-contrib", version("sb3-contrib"), "Box:", tuple(kl.shape), f"logged {logged:.5f}, of the joint policies {joint:.5f}")
assert kl.shape == (512, 2)
assert np.isclose(logged, joint / 2, rtol=1e-3) and joint > 0.01

kl, logged = run(gym.spaces.MultiDiscrete([3, 3]))
print("MultiDiscrete:", tuple(kl.shape), f"logged {logged:.5f}, of the joint policies {float(kl.mean()):.5f}")
assert kl.shape == (512,) and np.isclose(logged, float(kl.mean()), rtol=1e-3)
PY

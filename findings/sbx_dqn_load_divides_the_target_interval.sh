#!/usr/bin/env bash
# sbx-rl 0.28.0, DQN with several environments: `target_update_interval` is divided by their number when the model is set
# up, is saved divided, and is divided again by each load(): a run that is resumed a few times copies its target network
# after every step. (stable-baselines3 and sb3-contrib had this and mended it: 2.9.2 divides where it counts.)
# Seen, 4 environments: 1000 becomes 250, and after one load and two and three 62, 15, 3; of stable-baselines3 it stays 1000.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 stable-baselines3==2.9.2 sbx-rl==0.28.0 \
  tfp-nightly==0.26.0.dev20261027 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 gymnasium==1.4.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import sbx
import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env


def intervals(algorithm):
    envs = make_vec_env("CartPole-v1", 4)
    model = algorithm("MlpPolicy", envs, target_update_interval=1000, buffer_size=100)
    seen = [model.target_update_interval]
    for _ in range(3):
        model.save("model")
        model = algorithm.load("model", env=envs)
        seen.append(model.target_update_interval)
    return seen


found, host = intervals(sbx.DQN), intervals(stable_baselines3.DQN)
print("sbx-rl", version("sbx-rl"), found, "stable-baselines3", version("stable-baselines3"), host)
assert found == [250, 62, 15, 3] and host == [1000] * 4
PY

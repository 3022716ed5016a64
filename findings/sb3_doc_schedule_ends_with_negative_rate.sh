#!/usr/bin/env bash
# stable-baselines3 2.9.2: the linear schedule of its own documentation (rate * progress_remaining, "from 1 to 0") makes
# PPO's last update at a NEGATIVE learning rate whenever total_timesteps is no multiple of n_steps * n_envs: the last
# rollout is collected whole, progress_remaining goes below 0, and torch's Adam, whose constructor refuses a negative
# rate, takes one in param_groups: n_epochs of steps away from the minimum, without a word.
# Seen: PPO(learning_rate=lambda p: 3e-4 * p).learn(10_000), n_steps 2048: the fifth update is made at -7.2e-06.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 stable-baselines3==2.9.2 gymnasium==1.4.0
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
import stable_baselines3
from stable_baselines3 import PPO


class Watched(PPO):
    rates = []

    def train(self):
        super().train()
        self.rates.append(round(self.policy.optimizer.param_groups[0]["lr"], 8))


Watched("MlpPolicy", "CartPole-v1", n_epochs=1, learning_rate=lambda p: 3e-4 * p, device="cpu").learn(10_000)
print("stable-baselines3", stable_baselines3.__version__, "learning rates of PPO's updates:", Watched.rates)
assert len(Watched.rates) == 5 and Watched.rates[-1] == -7.2e-06
PY

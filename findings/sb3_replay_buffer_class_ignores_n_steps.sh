#!/usr/bin/env bash
# stable-baselines3 2.9.2: DQN(..., n_steps=3) learns from 3-step returns by way of its NStepReplayBuffer. With
# replay_buffer_class= given as well (a subclass of one's own, say), n_steps is dropped without a word: the model keeps
# the plain buffer and learns from 1-step targets.
# Seen: the largest sampled CartPole reward is 2.9701 = 1 + .99 + .99^2 with n_steps=3 alone, and 1.0 with
# replay_buffer_class=ReplayBuffer added.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 stable-baselines3==2.9.2 gymnasium==1.4.0
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
import stable_baselines3
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer


def largest_reward(**settings):
    model = DQN("MlpPolicy", "CartPole-v1", n_steps=3, learning_starts=1000, seed=0, device="cpu", **settings)
    model.learn(200)
    return round(float(model.replay_buffer.sample(256).rewards.max()), 4)


alone, with_class = largest_reward(), largest_reward(replay_buffer_class=ReplayBuffer)
print("stable-baselines3", stable_baselines3.__version__, "n_steps=3:", alone, "and replay_buffer_class:", with_class)
assert (alone, with_class) == (2.9701, 1.0)
PY

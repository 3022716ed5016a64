#!/usr/bin/env bash
# sbx-rl 0.28.0 takes three arguments of stable-baselines3 and does nothing with them, without an error or a warning:
# PPO's `clip_range_vf` (its docstring says what it clips), a schedule as DQN's `learning_rate` (only its value at the
# start is used), and `n_steps` beside `replay_buffer_class` (there stable-baselines3 2.9.2 warns; SBX has its own set-up).
# Seen, networks after training: with clip_range_vf=1e-6 and without it the same to the bit; with a rate that falls to 0
# after the first step and with the constant one the same to the bit; DQN(n_steps=3, ...) holds the 1-step ReplayBuffer.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 stable-baselines3==2.9.2 sbx-rl==0.28.0 \
  tfp-nightly==0.26.0.dev20261027 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 gymnasium==1.4.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
import warnings
from importlib.metadata import version

import jax
import numpy as np
import sbx
import stable_baselines3
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer


def flat(params):
    return np.concatenate([np.ravel(x) for x in jax.tree_util.tree_leaves(params)])


def value_network(**settings):
    return flat(sbx.PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, **settings).learn(128).policy.vf_state.params)


def q_network(rate):
    settings = {"learning_starts": 10, "buffer_size": 1000, "seed": 0}
    model = sbx.DQN("MlpPolicy", "CartPole-v1", learning_rate=rate, **settings)
    return flat(model.policy.qf_state.params), flat(model.learn(200).policy.qf_state.params)


def buffer_and_warnings(package, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = package.DQN("MlpPolicy", "CartPole-v1", n_steps=3, buffer_size=100, **settings)
    return type(model.replay_buffer), sum("n_steps" in str(w.message) for w in caught)


clipped, unclipped = value_network(clip_range_vf=1e-6), value_network()
begun, constant = q_network(1e-3)
_, falling = q_network(lambda progress: 1e-3 if progress == 1 else 0.0)
sbx_plain, sbx_class = buffer_and_warnings(sbx), buffer_and_warnings(sbx, replay_buffer_class=ReplayBuffer)
sb3_class = buffer_and_warnings(stable_baselines3, replay_buffer_class=ReplayBuffer)
print("sbx-rl", version("sbx-rl"), "clip_range_vf has an effect:", not np.array_equal(clipped, unclipped))
print("the schedule has one:", not np.array_equal(falling, constant), "the rate has:", not np.array_equal(begun, constant))
print("n_steps=3:", sbx_plain, "with replay_buffer_class:", sbx_class, "stable-baselines3:", sb3_class)
assert np.array_equal(clipped, unclipped)
assert np.array_equal(falling, constant) and not np.array_equal(begun, constant)
assert sbx_plain == (NStepReplayBuffer, 0) and sbx_class == (ReplayBuffer, 0) and sb3_class == (ReplayBuffer, 1)
PY

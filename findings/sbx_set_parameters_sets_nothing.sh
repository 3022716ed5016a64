#!/usr/bin/env bash
# sbx-rl 0.28.0 (stable-baselines3's algorithms in JAX, with its interface): `model.set_parameters(file or dictionary)` sets
# nothing and says nothing, though `exact_match=True` is the default, and `get_parameters()` is {}: none of its networks
# are among those that the inherited methods know. Weights moved by them (a warm start, a copy for evaluation, averaging)
# are the untrained ones. `load(file)` does bring the weights, in a new model.
# Seen: after set_parameters("other.zip") the model acts as before to the bit; load("other.zip") acts as the other.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 stable-baselines3==2.9.2 sbx-rl==0.28.0 \
  tfp-nightly==0.26.0.dev20261027 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 gymnasium==1.4.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from sbx import SAC


def make(seed):
    return SAC("MlpPolicy", "Pendulum-v1", seed=seed, buffer_size=10, policy_kwargs={"net_arch": [8]})


def action(model):
    return model.predict(np.ones((1, 3), np.float32), deterministic=True)[0].item()


model, other = make(0), make(1)
other.save("other")
before = action(model)
model.set_parameters("other.zip", exact_match=True)
after, loaded = action(model), action(SAC.load("other"))
print("sbx-rl", version("sbx-rl"), "before", before, "after", after, "the other", action(other), "loaded", loaded)
assert model.get_parameters() == {}
assert after == before and loaded == action(other) and abs(after - loaded) > 0.1
PY

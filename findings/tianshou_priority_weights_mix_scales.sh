#!/usr/bin/env bash
# tianshou 2.0.1, PrioritizedReplayBuffer.get_weight: the importance weight is (p_i^alpha / min_j p_j)^-beta, where the
# smallest priority has NOT been raised to alpha (weight is stored as p^alpha, the minimum as p). So the weights are
# those of no distribution: the least likely item gets 0.77 here, not 1. With weight_norm=True, the default, sample()
# divides by the largest of the batch, which hides the factor; with weight_norm=False it scales every loss.
# Seen: priorities .2, 2, 3, 8 with alpha .6 and beta .4 give 0.773 0.445 0.404 0.319; (p^alpha / min p^alpha)^-beta is
# 1 0.575 0.522 0.413.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 tianshou==2.0.1 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from tianshou.data import Batch, PrioritizedReplayBuffer

buffer = PrioritizedReplayBuffer(4, alpha=0.6, beta=0.4, weight_norm=False)
for _ in range(4):
    step = {"act": 0, "rew": 0.0, "terminated": False, "truncated": False, "info": {}}
    buffer.add(Batch(obs=np.zeros(1), obs_next=np.zeros(1), **step))
p = np.array([0.2, 2.0, 3.0, 8.0])
buffer.update_weight(np.arange(4), p)
found = buffer.get_weight(np.arange(4))
mixed, right = (p**0.6 / p.min()) ** -0.4, (p / p.min()) ** (-0.6 * 0.4)
print("tianshou", version("tianshou"), found.round(3), "mixed:", mixed.round(3), "of one scale:", right.round(3))
assert np.allclose(found, mixed, rtol=1e-5) and not np.allclose(found, right, rtol=0.1)
PY

#!/usr/bin/env bash
# rlox 1.2.0, PrioritizedReplayBuffer: importance weights are divided by their largest over the whole buffer, so that
# none is above 1 (Schaul et al. 2016). One entry of priority 0, which can never be drawn, turns that off: the weights
# of all other entries then come unscaled and pass 1, so one such entry changes the step size of every update.
# Seen (alpha = beta = 1): priorities 1 2 3 4 give weights 1, 1/2, 1/3, 1/4; priorities 0 2 3 4 give 1.125, 0.75, 0.5625.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check rlox==1.2.0 torch==2.13.0 numpy==2.4.6 gymnasium==1.4.0
cd "$tmp" && "$tmp/venv/bin/python" - <<'PY'
import numpy as np
from rlox import PrioritizedReplayBuffer


def weights(*priorities):
    buffer = PrioritizedReplayBuffer(len(priorities), 1, 1, alpha=1.0, beta=1.0)
    row = np.zeros(1, np.float32)
    for priority in priorities:
        buffer.push(row, row, 0.0, False, False, row, priority=float(priority))
    found = {}
    for seed in range(300):
        batch = buffer.sample(2, seed=seed)
        found.update(zip(batch["indices"].tolist(), batch["weights"].tolist(), strict=True))
    return {int(i): round(found[i], 4) for i in sorted(found)}


plain, zero = weights(1, 2, 3, 4), weights(0, 2, 3, 4)
print("no zero:", plain)
print("one zero:", zero)
assert plain == {0: 1.0, 1: 0.5, 2: 0.3333, 3: 0.25}
assert zero == {1: 1.125, 2: 0.75, 3: 0.5625}
PY

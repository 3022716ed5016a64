#!/usr/bin/env bash
# tianshou 2.0.1, VectorReplayBuffer: the buffer of each environment has a generator of its own, all seeded with the same
# number (`random_seed`, 42 unless given), so a batch holds the SAME time steps of every environment: of those that run
# side by side, transitions that are least unlike each other. Since 42 is in the code, np.random.seed and torch's seed do
# not reach these draws either: runs with different seeds sample the same indices.
# Seen, 4 environments of 1000 steps: a first batch of 64 has 19 different time steps, and 500 batches 54 on the average,
# where independent draws have 62.0; the indices after np.random.seed(0) and np.random.seed(1) are the same.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 tianshou==2.0.1 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from tianshou.data import Batch, VectorReplayBuffer

ENVS, STEPS, BATCH = 4, 1000, 64


def filled():
    buffer, flags = VectorReplayBuffer(ENVS * STEPS, ENVS), np.zeros(ENVS, bool)
    step = {"act": np.zeros(ENVS), "rew": np.zeros(ENVS), "terminated": flags, "truncated": flags, "info": Batch()}
    for _ in range(STEPS):
        buffer.add(Batch(obs=np.zeros((ENVS, 1)), obs_next=np.zeros((ENVS, 1)), **step))
    return buffer


firsts = []
for seed in (0, 1):
    np.random.seed(seed)
    buffer = filled()
    firsts.append(buffer.sample_indices(BATCH))
first = len(np.unique(firsts[0] % STEPS))
mean = np.mean([len(np.unique(buffer.sample_indices(BATCH) % STEPS)) for _ in range(500)])
right = STEPS * (1 - (1 - 1 / STEPS) ** BATCH)
print("tianshou", version("tianshou"), f"different time steps of {BATCH}: first batch {first}, mean of 500 {mean:.1f},")
print(f"independent: {right:.1f}; the same indices after np.random.seed(0) and (1):", np.array_equal(*firsts))
assert np.array_equal(*firsts)
assert first < 30 and mean < 57 and right > 61.9
PY

#!/usr/bin/env bash
# rlox 1.2.0, SequenceReplayBuffer.sample_sequences: an episode is drawn first, each as likely as the next, and then a
# start in it, so the transitions of short episodes are drawn far more often than those of long ones; the running
# episode is never drawn. Nothing in its text says so, and one start is expected to be as likely as another.
# Seen (sequences of 3; episodes of 3 and 52 steps, 1 and 50 possible starts): the only start of the short episode comes
# in about 1 of 2 draws, where 1 of 51 would be uniform.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check rlox==1.2.0 torch==2.13.0 numpy==2.4.6 gymnasium==1.4.0
cd "$tmp" && "$tmp/venv/bin/python" - <<'PY'
import numpy as np
from rlox import SequenceReplayBuffer

buffer = SequenceReplayBuffer(1000, 1, 1)
for episode, length in enumerate((3, 52)):
    for step in range(length):
        obs = np.array([100 * episode + step], np.float32)
        buffer.push(obs, obs + 1, np.zeros(1, np.float32), 1.0, step == length - 1, False)
starts = np.concatenate([buffer.sample_sequences(2, 3, seed)["obs"][:, 0, 0] for seed in range(2000)])
share = float((starts == 0).mean())
print(f"starts seen: {len(np.unique(starts))} of 51; the short episode's share: {share:.3f} (uniform: {1 / 51:.3f})")
assert len(np.unique(starts)) == 51 and 0.45 < share < 0.55
PY

#!/usr/bin/env bash
# ale-py 0.12.1, AtariVectorEnv: the constructor writes its autoreset mode into `self.metadata`, which is the dict of the
# class gymnasium.vector.VectorEnv itself. So a second AtariVectorEnv of another mode (for evaluation, say) changes what
# the metadata of the first one say, and those of any vector environment without a `metadata` of its own; wrappers and
# training loops that ask there when episodes begin are then wrong about an environment that nobody touched.
# Seen (episodes of 10 steps, NEXT_STEP): RecordEpisodeStatistics gives lengths 10 10 10 10; after somebody has made one
# with SAME_STEP 10 11 11 11, and gymnasium.vector.VectorEnv.metadata, {} before, has an autoreset mode.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics


def make(mode):
    return AtariVectorEnv(
        "pong", 1, autoreset_mode=mode, max_num_frames_per_episode=40, noop_max=0, use_fire_reset=False, num_threads=1
    )


def lengths(env):
    env, seen = RecordEpisodeStatistics(env), []
    env.reset(seed=0)
    while len(seen) < 4:
        *_, truncated, info = env.step(np.zeros(1, np.int64))
        if truncated[0]:
            seen.append(int(info["episode"]["l"][0]))
    return seen


assert VectorEnv.metadata == {}
train = make(AutoresetMode.NEXT_STEP)
alone, mode_alone = lengths(train), train.metadata["autoreset_mode"]
other = make(AutoresetMode.SAME_STEP)
beside, mode_beside = lengths(train), train.metadata["autoreset_mode"]
print("ale-py", version("ale-py"), mode_alone.name, alone, "then", mode_beside.name, beside, "class:", VectorEnv.metadata)
assert train.autoreset_mode == mode_alone == AutoresetMode.NEXT_STEP and alone == [10, 10, 10, 10]
assert mode_beside == AutoresetMode.SAME_STEP and beside == [10, 11, 11, 11]
assert VectorEnv.metadata == {"autoreset_mode": AutoresetMode.SAME_STEP}
PY

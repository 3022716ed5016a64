#!/usr/bin/env bash
# gymnasium 1.4.0, SyncVectorEnv: the batched info of a key takes the type of the FIRST environment that gives it. If
# that is an int, the floats of the others are cut to whole numbers without a word, and a None of another is a
# TypeError; in the other order both come through. So what a run sees depends on which environment was first.
# Seen: infos 3 and 2.7 become [3, 2]; 2.7 and 3 become [2.7, 3.0]; 3 and None raise; None and 3 do not.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" - <<'PY'
import gymnasium as gym
import numpy as np


class Info(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self, value):
        self.value = value

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {"x": self.value}


def batched(*values):
    envs = gym.vector.SyncVectorEnv([lambda value=value: Info(value) for value in values])
    envs.reset(seed=0)
    try:
        return envs.step(np.zeros(len(values), np.int64))[-1]["x"].tolist()
    except TypeError:
        return "TypeError"


found = [batched(3, 2.7), batched(2.7, 3), batched(3, None), batched(None, 3)]
print("gymnasium", gym.__version__, found)
assert found == [[3, 2], [2.7, 3.0], "TypeError", [None, 3]]
PY

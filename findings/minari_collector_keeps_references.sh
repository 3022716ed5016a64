#!/usr/bin/env bash
# Minari 0.5.4, DataCollector: of each step it keeps the very arrays that it was handed, until the episode ends and is
# written. An environment that updates its observation in place (many do, to save the allocation; SyncVectorEnv copies
# for that reason), or a policy that writes its actions into one array, gives a dataset in which every observation and
# every action of an episode is its last one. Rewards, being numbers, are right, and nothing is said.
# Seen: 5 steps that count 1 to 5: observations 5 5 5 5 5 5 (0 to 5 wanted), actions 0.4 five times (0 to 0.4 wanted).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check minari==0.5.4 h5py==3.16.0 pillow==11.3.0 jax==0.10.2 \
  jaxlib==0.10.2 gymnasium==1.4.0 numpy==2.4.6
cd "$tmp" && MINARI_DATASETS_PATH="$tmp/datasets" "$tmp/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import gymnasium as gym
import minari
import numpy as np


class Count(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 100, (1,)), gym.spaces.Box(-1, 1, (1,))

    def __init__(self, copy):
        self.copy, self.x = copy, np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x[:] = 0
        return self.x.copy() if self.copy else self.x, {}

    def step(self, action):
        self.x += 1
        return self.x.copy() if self.copy else self.x, float(self.x[0]), False, bool(self.x[0] == 5), {}


def recorded(copy):
    env, action, ended = minari.DataCollector(Count(copy)), np.zeros(1, np.float32), False
    env.reset(seed=0)
    while not ended:
        action[0] = env.unwrapped.x[0] / 10
        _, _, _, ended, _ = env.step(action.copy() if copy else action)
    name = "copies-v0" if copy else "same-v0"
    episode = env.create_dataset(name, num_episodes_average_score=1)[0]
    return episode.observations.ravel().tolist(), episode.actions.ravel().round(1).tolist(), episode.rewards.tolist()


copies, same = recorded(True), recorded(False)
print("Minari", version("minari"), "copies:", *copies, "one array:", *same)
assert copies[0] == [0, 1, 2, 3, 4, 5] and np.allclose(copies[1], [0, 0.1, 0.2, 0.3, 0.4])
assert same[0] == [5] * 6 and np.allclose(same[1], [0.4] * 5)
assert copies[2] == same[2] == [1, 2, 3, 4, 5]
PY

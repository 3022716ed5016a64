#!/usr/bin/env bash
# gymnasium 1.4.0, wrappers.MaxAndSkipObservation: it keeps the frames of inner steps skip - 1 and skip only, in a buffer
# that neither step() nor reset() clears. If the episode ends on an earlier inner step, the observation that comes back is
# no frame of this step: it is that of the step before, or of the EPISODE before. Where a time limit inside ended it, a
# value is then bootstrapped from there. (stable-baselines3 2.9.2's MaxAndSkipEnv, from which it comes, does the same.)
# Seen: an environment whose observation is 10 * episode + step, skip 4. An episode of 6 steps ends with observation 14
# where 16 was reached, and the next one, of 2 steps, with 14 where 22 was.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" - <<'PY'
import gymnasium as gym
import numpy as np


class Count(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 100, (1,)), gym.spaces.Discrete(2)
    episode = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.t, self.limit = 0, {1: 6, 2: 2}[self.episode]
        return self.frame(), {}

    def frame(self):
        return np.full(1, 10 * self.episode + self.t, np.float32)

    def step(self, action):
        self.t += 1
        return self.frame(), 1.0, False, self.t == self.limit, {}


env, seen = gym.wrappers.MaxAndSkipObservation(Count(), skip=4), []
for _ in range(2):
    env.reset(seed=0)
    ended = False
    while not ended:
        obs, _, _, ended, _ = env.step(0)
        seen.append((float(obs[0]), float(env.unwrapped.frame()[0])))
print("gymnasium", gym.__version__, "(observation, frame reached) of each step:", seen)
assert seen == [(14.0, 14.0), (14.0, 16.0), (14.0, 22.0)]
PY

#!/usr/bin/env bash
# gymnasium 1.4.0, gymnasium.wrappers.NormalizeReward: its running discounted return starts anew after a termination
# only. After a truncation, and after reset(), it goes on from the episode before, so with time limits alone it is a
# sum over the whole run, and the rewards are divided by the spread of that sum.
# Seen: with reward 1, gamma 1 and a limit of 3 steps the accumulator is 3, 6, 9 at the ends of three episodes;
# with terminations in place of the limit it is 1 at each end (the step that terminates drops what was before it).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" - <<'PY'
import gymnasium as gym
import numpy as np


class ThreeSteps(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self, limit):
        self.limit = limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        done = self.t == 3
        return np.zeros(1, np.float32), 1.0, done and not self.limit, done and self.limit, {}


def accumulators(limit):
    env, seen = gym.wrappers.NormalizeReward(ThreeSteps(limit), gamma=1.0), []
    for _ in range(3):
        env.reset(seed=0)
        for _ in range(3):
            env.step(0)
        seen.append(float(env.discounted_reward[0]))
    return seen


print("gymnasium", gym.__version__, "truncated:", accumulators(True), "terminated:", accumulators(False))
assert accumulators(True) == [3.0, 6.0, 9.0]
assert accumulators(False) == [1.0, 1.0, 1.0]
PY

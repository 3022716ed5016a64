#!/usr/bin/env bash
# gymnasium 1.4.0, wrappers.vector.RecordEpisodeStatistics around SyncVectorEnv or AsyncVectorEnv with
# AutoresetMode.DISABLED: `reset(options={"reset_mask": ended})` begins new episodes where they ended, and only there, but
# returns and lengths of ALL environments go to 0. The inner environment takes the mask out of the caller's dict before
# the wrapper looks for it, so the wrapper takes the call for a full reset (a second call with that dict is one).
# Seen: episodes of 2 and of 5 steps with reward 1, side by side: those of 5 are recorded with return and length 1 or 2,
# and every fifth step cuts one of 2 to 1.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6
cd "$tmp" && cat >partial.py <<'PY'
import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv


class Steps(gym.Env):
    """`limit` steps; the observation counts them."""

    observation_space, action_space = gym.spaces.Box(0, 100, (1,)), gym.spaces.Discrete(2)

    def __init__(self, limit):
        self.limit = limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, False, self.t == self.limit, {}


def episodes(kind):
    """(return, length by the wrapper, steps by the environment) of each episode, by environment."""
    envs = kind([lambda: Steps(2), lambda: Steps(5)], autoreset_mode=AutoresetMode.DISABLED)
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    envs.reset(seed=0)
    seen = [set(), set()]
    for _ in range(20):
        obs, _, _, ended, info = envs.step(np.zeros(2, np.int64))
        for i in np.flatnonzero(ended):
            seen[i].add((float(info["episode"]["r"][i]), int(info["episode"]["l"][i]), int(obs[i, 0])))
        if ended.any():
            options = {"reset_mask": ended}
            envs.reset(options=options)
            assert options == {}
    envs.close()
    return [sorted(x) for x in seen]


if __name__ == "__main__":
    found = [episodes(kind) for kind in (SyncVectorEnv, AsyncVectorEnv)]
    print("gymnasium", gym.__version__, "(return, length, true length):", *found)
    for two, five in found:
        assert {x[2] for x in two} == {2} and {x[2] for x in five} == {5}
        assert {x[:2] for x in five} == {x[:2] for x in two} == {(1.0, 1), (2.0, 2)}
PY
"$tmp/venv/bin/python" partial.py

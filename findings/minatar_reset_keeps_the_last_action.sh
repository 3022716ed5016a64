#!/usr/bin/env bash
# MinAtar 1.0.15: reset() does not forget the last action, so with sticky actions (the default, 0.1) the first action of an
# episode may be replaced by the last one of the episode before; reset(seed=...) then does not begin the same episode
# again, whatever the seed. (The Arcade Learning Environment has had this mended since 2018.)
# Seen: Breakout, 200 seeds. After reset(seed=s) and a first action "stay", the paddle stands elsewhere than in a new
# environment with the same seed for 17 seeds if the last action before was "right", for none if it was "stay".
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6
"$tmp/venv/bin/pip" install -q --disable-pip-version-check --no-deps MinAtar==1.0.15
cd "$tmp" && "$tmp/venv/bin/python" - 2>/dev/null <<'PY'
from importlib.metadata import version

from minatar.gym import BaseEnv

STAY, RIGHT, PADDLE = 0, 2, 0  # of the minimal actions n, l, r; of the channels


def first_step(env, seed):
    env.reset(seed=seed)
    return env.step(STAY)[0][9, :, PADDLE].argmax()


used, differ = BaseEnv("breakout", use_minimal_action_set=True), {}
for name, last in (("stay", STAY), ("right", RIGHT)):
    differ[name] = 0
    for seed in range(200):
        new = BaseEnv("breakout", use_minimal_action_set=True)
        used.reset(seed=12345)
        for _ in range(5):
            used.step(last)
        differ[name] += int(first_step(used, seed) != first_step(new, seed))
print("MinAtar", version("MinAtar"), "seeds of 200 with another first step, by the last action before reset(seed):", differ)
assert differ["stay"] == 0 and differ["right"] == 17
PY

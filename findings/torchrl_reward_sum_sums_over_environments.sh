#!/usr/bin/env bash
# torchrl 0.14.1, RewardSum applied to collected data (its forward, for a collector's output or a replay buffer, which asks
# for a dimension named "time"): the running sum is taken along the dimension BEFORE time. Of [env, time] data that adds
# up the rewards of different environments; of [time] data it is the last, of size 1, and nothing is summed. Inside an
# environment (TransformedEnv) the same transform is right.
# Seen: rewards 1 in 2 environments of 3 steps give [1 1 1] and [2 2 2], where [1 2 3] is the sum of each; one environment
# of 4 steps gives [1 1 1 1].
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.envs.transforms import RewardSum


def summed(shape, names):
    rewards = torch.ones(*shape, 1)
    data = TensorDict({"next": {"reward": rewards}}, batch_size=shape, names=names)
    transform = RewardSum(in_keys=[("next", "reward")], out_keys=[("next", "episode_reward")])
    found = transform(data)["next", "episode_reward"].numpy()[..., 0]
    return found, np.cumsum(rewards.numpy()[..., 0], axis=names.index("time"))


one, one_right = summed([4], ["time"])
two, two_right = summed([2, 3], ["env", "time"])
print("torchrl", version("torchrl"), one.tolist(), "right:", one_right.tolist())
print(two.tolist(), "right:", two_right.tolist())
assert one.tolist() == [1, 1, 1, 1] and one_right.tolist() == [1, 2, 3, 4]
assert two.tolist() == [[1, 1, 1], [2, 2, 2]] and two_right.tolist() == [[1, 2, 3], [1, 2, 3]]
PY

#!/usr/bin/env bash
# Ray 2.60.0, RLlib's EpisodeReplayBuffer (and PrioritizedEpisodeReplayBuffer, whose set_state begins with it): set_state()
# of a buffer that already holds episodes keeps those, while the indices and counts come from the state. Transitions that
# are drawn afterwards are of the old episodes, or the draw fails.
# Seen: a buffer with episodes a0 and a1 that is given the state of one with b0 to b3 still holds a0 and a1 alone, says that
# it has 80 timesteps, and sample() raises IndexError; an empty buffer given the same state holds b0 to b3 and samples.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check "ray[rllib]==2.60.0" numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer


def buffer(name="", episodes=0, steps=0):
    made = EpisodeReplayBuffer(capacity=1000, batch_size_B=8, batch_length_T=1)
    made.add(
        [
            SingleAgentEpisode(
                id_=f"{name}{i}",
                observations=[np.float32(t) for t in range(steps + 1)],
                infos=[{}] * (steps + 1),
                actions=[0] * steps,
                rewards=[1.0] * steps,
                terminated=True,
                len_lookback_buffer=0,
            )
            for i in range(episodes)
        ]
    )
    return made


def outcome(of):
    try:
        for _ in range(100):
            of.sample(num_items=8, batch_length_T=1, n_step=1)
    except IndexError as error:
        return repr(error)
    return "samples"


state = buffer("b", episodes=4, steps=20).get_state()
empty, used = buffer(), buffer("a", episodes=2, steps=5)
for of in (empty, used):
    of.set_state(state)
    of.seen = [episode.id_ for episode in of.episodes], of.get_num_timesteps(), outcome(of)
print("ray", version("ray"), "empty before:", *empty.seen, "; held episodes before:", *used.seen)
assert empty.seen == (["b0", "b1", "b2", "b3"], 80, "samples")
assert used.seen[:2] == (["a0", "a1"], 80) and used.seen[2].startswith("IndexError")
PY

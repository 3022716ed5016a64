#!/usr/bin/env bash
# cpprb 11.0.0, MPPrioritizedReplayBuffer: while other processes add, `sample` gives transitions that nobody added: some
# of their numbers are of one transition and the rest of another (or zeros). Its purpose is to sample meanwhile.
# Seen: of 223,776 transitions of 10,000 equal numbers that were drawn in 20 seconds, 35 had unequal ones.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check --no-deps cpprb==11.0.0 numpy==2.4.6
cd "$tmp" && cat >torn.py <<'PY'
import multiprocessing
import time

import numpy as np
from cpprb import MPPrioritizedReplayBuffer

WIDTH = 10_000


def write(buffer, writer):
    k = 0
    while True:
        k += 1
        number = float(4 * k + writer)
        buffer.add(obs=np.full(WIDTH, number), rew=number)


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    fields = {"obs": {"shape": WIDTH, "dtype": np.float64}, "rew": {"dtype": np.float64}}
    buffer = MPPrioritizedReplayBuffer(200, fields, ctx=context)
    writers = [context.Process(target=write, args=(buffer, w), daemon=True) for w in range(2)]
    for process in writers:
        process.start()
    transitions = torn = 0
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if buffer.get_stored_size():
            batch = buffer.sample(32)
            transitions += 32
            torn += int((batch["obs"] != batch["rew"]).any(axis=1).sum())
    for process in writers:
        process.kill()
    print(f"{torn} of {transitions} transitions drawn are none that was added")
    assert torn > 0
PY
"$tmp/venv/bin/python" torn.py

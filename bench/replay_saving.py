"""`save` and `load` of a replay buffer beside the system's copies of the same bytes.

    python bench/replay_saving.py [--mb 256] [--rounds 15] [--folder /dev/shm] [--note TEXT] [--no-save]

On /dev/shm, which is memory, no disk is measured.  "write" and "read" are the bytes of the observations from and to
their array, "copy" is the saved file, read and written in pieces of 1 MiB; none of these has a checksum.  Ratios are
speeds of ours / speeds of theirs, medians over interleaved rounds.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from _harness import RESULTS, machine

from fastrl.replay import ReplayBuffer

FRAME = (84, 84)
AGAINST = {"save": ("write", "copy"), "load": ("read", "copy")}


class Calls:
    def __init__(self, folder, size):
        self.folder = folder
        n = size // int(np.prod(FRAME))
        self.buffer = ReplayBuffer(n, (FRAME, np.uint8), ((), np.int64), seed=0)
        frames = np.random.default_rng(0).integers(256, size=(n + 1, *FRAME), dtype=np.uint8)
        no = np.zeros(n, np.bool_)
        self.buffer.extend(frames[:-1], no.astype(np.int64), no.astype(np.float32), frames[1:], no, no)
        self.frames = frames
        self.save()
        self.load()
        np.testing.assert_array_equal(self.buffer.transitions().obs, frames[:-1])

    def save(self):
        self.buffer.save(self.folder / "buffer")

    def load(self):
        self.buffer.load(self.folder / "buffer")

    def write(self):
        with open(self.folder / "frames", "wb") as file:
            file.write(self.frames)

    def read(self):
        with open(self.folder / "frames", "rb") as file:
            assert file.readinto(self.frames) == self.frames.nbytes

    def copy(self):
        piece = memoryview(bytearray(1 << 20))
        with open(self.folder / "buffer", "rb") as source, open(self.folder / "copy", "wb") as target:
            while n := source.readinto(piece):
                target.write(piece[:n])

    def fresh(self, name):
        """Every write is to a new file, so that none finds its pages there."""
        made = {"save": "buffer", "write": "frames", "copy": "copy"}.get(name)
        if made:
            (self.folder / made).unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--note", default="")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    seconds = {name: [] for name in ("save", "write", "load", "read", "copy")}
    processor = {name: [] for name in seconds}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        calls = Calls(Path(folder), args.mb << 20)
        calls.write()
        size = os.path.getsize(calls.folder / "buffer")
        for _ in range(args.rounds):
            for name in seconds:
                calls.fresh(name)
                start, start_cpu = time.perf_counter(), time.process_time()
                getattr(calls, name)()
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - start_cpu)
    records = []
    for name, found in seconds.items():
        record = {"call": name, "gb_per_s": round(float(size / np.median(found) / 1e9), 2)}
        record["processor_s_per_gb"] = round(float(np.median(processor[name]) / size * 1e9), 3)
        for other in AGAINST.get(name, ()):
            ratios = np.divide(seconds[other], found)
            record[f"of_{other}"] = round(float(np.median(ratios)), 2)
        records.append(record)
        print(record)
    report = {"machine": machine(), "note": args.note, "mb": args.mb, "folder": args.folder, "rounds": args.rounds}
    if not args.no_save:
        text = json.dumps({**report, "records": records}, indent=1)
        (RESULTS / "replay_saving.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

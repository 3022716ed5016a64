"""Fuzzing of what reads files and foreign arrays: `python tests/fuzz/fuzz.py TARGET --seconds 60`.

An input is a list of edits (bits, cut ends, spliced pieces, other values in JSON) of a sound file, mostly with the
checksums put right, or the fields of a DLPack capsule.  With atheris (libFuzzer) inputs that reach new lines of fastrl
are kept and varied; without it they are random.  A run starts from tests/fuzz/corpus, which has an input a line: in
hex, or an edit in words, which each fault that was found once is; `--keep` adds what reaches further lines.

What comes must be one clear error of one line, with everything as it was, or something that works.  Anything else, a
crash or a call of over 30 s ends with a traceback and the input.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # which -P leaves out
from targets import TARGETS, Draw, atheris, fastrl

CORPUS = Path(__file__).parent / "corpus"


def from_line(line):
    return Draw(b"", json.loads(line)) if line.startswith("{") else Draw(bytes.fromhex(line))


def kept(name):
    """The inputs of the corpus."""
    return [from_line(line) for line in (CORPUS / f"{name}.txt").read_text().splitlines()]


def lines(call):
    """The lines of fastrl that a call reaches."""
    folder, reached = str(Path(fastrl.__file__).parent), set()

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(folder):
            return None
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return reached


def keep(name, target, found):
    """Make the corpus of what was found and what is there: of the shortest inputs those that reach a new line."""
    edits = [str(draw) for draw in kept(name) if draw.edit]
    reached, chosen = set(), []
    for data in sorted({draw.data for draw in kept(name) if not draw.edit} | found, key=lambda data: (len(data), data)):
        new = lines(lambda data=data: target(Draw(data))) - reached
        if new:
            reached |= new
            chosen.append(data.hex())
    (CORPUS / f"{name}.txt").write_text("".join(f"{line}\n" for line in edits + chosen))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=None, help="of the inputs; default: another one each time")
    parser.add_argument("--input", type=Path, help="make this input only")
    parser.add_argument("--keep", action="store_true", help="add the inputs that reached new lines to the corpus")
    options = parser.parse_args()
    if options.keep and atheris is None:
        parser.error("--keep needs atheris")
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "little") or 1
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        target = TARGETS[options.target](Path(folder))
        began, count, counted = time.monotonic(), 0, Path(folder) / "count"

        def once(draw):
            nonlocal count
            count += 1
            if atheris and count % 100 == 0:
                counted.write_text(str(count))
            signal.alarm(30)
            start = time.monotonic()
            try:
                with np.errstate(all="ignore"):
                    target(draw)
                assert time.monotonic() < start + 30, "it took over 30 s"  # libFuzzer keeps the alarm to itself
            except BaseException:
                text = str(draw)
                Path(f"fuzz-{options.target}-{hashlib.sha256(text.encode()).hexdigest()[:12]}").write_text(text)
                raise
            finally:
                signal.alarm(0)

        if options.input:
            once(from_line(options.input.read_text()))
            return
        print(f"{options.target}: seed {seed}, {'with' if atheris else 'without'} atheris", flush=True)
        rng = np.random.default_rng(seed)
        for draw in kept(options.target):
            once(draw)
        if atheris is None:
            while time.monotonic() < began + options.seconds:
                once(Draw(rng.bytes(64)))
        else:
            corpus, starts = Path(folder) / "corpus", Path(folder) / "starts"
            corpus.mkdir(), starts.mkdir()
            counted.write_text("0")
            for i, data in enumerate([draw.data for draw in kept(options.target)] + [rng.bytes(64) for _ in range(50)]):
                (starts / str(i)).write_bytes(data)
            pid = os.fork()  # libFuzzer ends its process
            if not pid:
                limits = [f"-max_total_time={options.seconds}", f"-seed={seed}", "-max_len=128", "-len_control=0"]
                limits += ["-rss_limit_mb=0", "-print_final_stats=1", "-timeout=60"]
                atheris.Setup([sys.argv[0], str(corpus), str(starts), *limits], lambda data: once(Draw(data)))
                atheris.Fuzz()
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                sys.exit(1)
            count = int(counted.read_text())
            found = {path.read_bytes() for path in corpus.iterdir()}
            if options.keep:
                keep(options.target, target, found)
        # None is found where the corpus reaches every line, or atheris sees none: those of an editable install.
        how = ", at random" if atheris is None else "" if found else ", which reached no new line"
        print(f"{options.target}: {count} inputs{how} in {time.monotonic() - began:.0f} s, nothing found", flush=True)


if __name__ == "__main__":
    main()

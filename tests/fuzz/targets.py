"""What is fuzzed: a target damages a file as an input says, and looks at what comes of reading it."""

import contextlib
import copy
import hashlib
import json
import math
import shutil
import sys
import zlib
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["fastrl"]) if atheris else contextlib.nullcontext():
    import fastrl
    from fastrl import plot
    from fastrl.agents import DQN, PPO, logs
    from fastrl.agents.config import InputError
    from fastrl.cli import runs
    from fastrl.replay import PrioritizedReplay, ReplayBuffer, SequenceReplay, mapped

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from capsules import Managed, Producer, Versioned, integers

NUMBERS = (0, 1, -1, 7, 127, 255, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1)
WRONG = (None, True, False, "", "x", "\0", 0.5, -0.0, 1e308, float("nan"), float("inf"), [], {}, [[]], 2**70)
VALUES = (*WRONG, *NUMBERS)


class Draw:
    """Numbers out of the bytes of an input; 0 behind their end.  Or `edit`: what to do, in words."""

    def __init__(self, data, edit=None):
        self.data, self.at, self.edit = data, 0, edit

    def __str__(self):
        return json.dumps(self.edit) if self.edit else self.data.hex()

    def below(self, n):
        size = max(1, ((n - 1).bit_length() + 7) // 8)
        piece = self.data[self.at : self.at + size]
        self.at += size
        return int.from_bytes(piece, "little") % n

    def one_of(self, values):
        return values[self.below(len(values))]


def edited(draw, whole, others=()):
    """The bytes with one to four edits."""
    data = bytearray(whole)
    for _ in range(1 + draw.below(4)):
        at, kind = draw.below(len(data) + 1), draw.below(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.below(8)
        elif kind == 1 and at < len(data):
            data[at] = draw.below(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + 1 + draw.below(64)]
        elif kind == 4:
            data[at:at] = bytes(draw.below(256) for _ in range(1 + draw.below(16)))
        elif kind == 5:
            data[at : at + 8] = (draw.one_of(NUMBERS) % 2**64).to_bytes(8, "little")
        else:
            other = draw.one_of([whole, *others])
            start = draw.below(len(other) + 1)
            data[at:at] = other[start : start + 1 + draw.below(4096)]
    return bytes(data)


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def edited_json(draw, value, large=()):
    """The value with one or two of its parts replaced or left out; nothing `large` gets a large value that is right."""
    value = json.loads(json.dumps(value))
    if draw.edit:
        put(value, draw.edit["at"], draw.edit.get("value", put))
        return value
    for _ in range(1 + draw.below(2)):
        path = draw.one_of(list(places(value)))
        new = copy.deepcopy(draw.one_of((*WRONG, 0, -1, 7, 2**63, -(2**63)) if set(path) & set(large) else VALUES))
        if path:
            put(value, path, put if draw.below(8) == 0 else new)
        elif draw.below(8) == 0:
            value = new
    return value


def put(value, path, new):
    """Replace a part; without it if `new` is this function."""
    for key in path[:-1]:
        value = value[key]
    if new is put:
        del value[path[-1]]
    else:
        value[path[-1]] = new


def one_line(error, begins=""):
    text = str(error)
    assert text.startswith(begins) and "\n" not in text and len(text) < 2000, text[:300]


# ---- replay buffers -------------------------------------------------------------------------------------------------

SPEC = ((2,), np.float32), ((), np.int64)
BUFFERS = [
    lambda **o: ReplayBuffer(10, *SPEC, seed=0, **o),
    lambda **o: PrioritizedReplay(10, *SPEC, 2, n_step=3, seed=0, **o),
    lambda **o: ReplayBuffer(8, *SPEC, store_next_obs=True, seed=0, **o),
    lambda **o: PrioritizedReplay(9, ((3, 2), np.uint8), ((), np.int64), frame_stack=3, seed=0, **o),
    lambda **o: SequenceReplay(12, *SPEC, 2, length=3, burn_in=1, seed=0, **o),
]


def add(buffer, steps):
    shape = (buffer.num_envs, *buffer._store.columns[0].shape[1:])
    if buffer.frame_stack > 1:
        shape = (buffer.num_envs, 3, 2)
    for k in range(steps):
        obs = np.full(shape, k % 100, buffer._store.columns[0].dtype)
        if buffer.frame_stack > 1:  # frames k, k + 1, k + 2
            obs += np.arange(3, dtype=obs.dtype)[:, None]
        ends = np.full(buffer.num_envs, k % 5 == 4)
        many = np.full(buffer.num_envs, k, np.int64)
        row = obs, many, many.astype(np.float32), obs + 1, ends, np.zeros_like(ends)
        buffer.add(*row if buffer.num_envs > 1 else (x[0] for x in row))


def use(buffer):
    """What was loaded works: it draws, learns priorities, and goes on."""
    with np.errstate(all="ignore"):
        for _ in range(2):
            if len(buffer):
                with contextlib.suppress(ValueError):  # no sequence is long enough yet, say
                    batch = buffer.sample(4)
                    if isinstance(buffer, PrioritizedReplay):
                        buffer.update_priorities(batch.indices, np.ones(len(batch.indices)))
            add(buffer, 3)
        repr(buffer), len(buffer)


def saved(buffer, path):
    buffer.save(path)
    return path.read_bytes()


class Replay:
    """Files of `save`."""

    def __init__(self, folder):
        self.folder, self.files = folder, []
        for make in BUFFERS:
            for steps in (3, 30):
                buffer = make()
                add(buffer, steps)
                self.files.append((make, saved(buffer, folder / "file")))

    def damaged(self, draw, whole):
        if draw.edit is None and draw.below(4) == 0:
            return edited(draw, whole, [w for _, w in self.files])
        length = int.from_bytes(whole[8:16], "little")
        header, arrays = json.loads(whole[16 : 16 + length]), whole[20 + length : -4]
        if draw.edit or draw.below(3):
            text = json.dumps(edited_json(draw, header)).encode()
        else:
            text = json.dumps(header).encode()
            arrays = edited(draw, arrays)
            arrays = arrays if draw.below(4) == 0 else (arrays + bytes(len(whole)))[: len(whole) - 24 - length]
        start = whole[:8] + len(text).to_bytes(8, "little") + text
        if draw.edit is None and draw.below(4) == 0:  # of version 1
            start = start[:7] + b"\1" + start[8:]
            start += hashlib.sha256(start).digest() + arrays
            return start + hashlib.sha256(start).digest()
        first = zlib.crc32(start)
        return start + first.to_bytes(4, "little") + arrays + zlib.crc32(arrays, first).to_bytes(4, "little")

    def __call__(self, draw):
        make, whole = self.files[draw.edit["of"]] if draw.edit else draw.one_of(self.files)
        path = self.folder / "damaged"
        path.write_bytes(self.damaged(draw, whole))
        buffer = make()
        add(buffer, 4)
        before = saved(buffer, self.folder / "state")
        with contextlib.suppress(ValueError):
            mapped.describe(path)
        try:
            buffer.load(path)
        except ValueError as error:
            one_line(error, "replay.load: ")
            assert saved(buffer, self.folder / "state") == before, "changed by a load that failed"
            return
        use(buffer)


class Folders(Replay):
    """Folders of buffers with `storage`."""

    def __init__(self, folder):
        self.folder, self.files, self.folders = folder, [], []
        for i, make in enumerate(BUFFERS):
            buffer = make(storage=folder / f"good{i}")
            add(buffer, 30)
            if i % 2:
                buffer.close()
            else:
                buffer.flush()
            self.folders.append((make, folder / f"good{i}"))

    def __call__(self, draw):
        make, good = self.folders[draw.edit["of"]] if draw.edit else draw.one_of(self.folders)
        bad = self.folder / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        name = "state" if draw.edit else draw.one_of(sorted(p.name for p in bad.iterdir()))
        whole = (bad / name).read_bytes()
        kind = 1 if draw.edit else draw.below(12)
        if kind == 0:
            (bad / name).unlink()
        elif name == "state":
            (bad / name).write_bytes(self.damaged(draw, whole))
        elif kind < 6:
            (bad / name).write_bytes(whole[:128] + edited(draw, whole[128:])[: len(whole) - 128])
        else:
            (bad / name).write_bytes(edited(draw, whole[:128]) + whole[128:])
        before = {p.name: p.read_bytes() for p in bad.iterdir()}
        with contextlib.suppress(ValueError, FileNotFoundError):
            mapped.describe(bad)
        try:
            buffer = make(storage=bad)
        except ValueError as error:
            one_line(error, "replay: ")
            assert {p.name: p.read_bytes() for p in bad.iterdir()} == before, "changed by an opening that failed"
            return
        use(buffer)
        buffer.close()


# ---- runs -----------------------------------------------------------------------------------------------------------

# Of these a large number is right, takes long and may take gigabytes.
LARGE = ("num_envs", "buffer_size", "updates", "hidden", "total_steps", "n_steps", "epochs", "quantiles", "atoms")


class Checkpoints:
    def __init__(self, folder):
        self.folder, self.agents = folder, []
        small = {"hidden": (8,), "learning_starts": 20, "train_every": 4, "updates": 1, "batch_size": 8}
        for cls, config in (
            (DQN, {**small, "buffer_size": 50}),
            (DQN, {**small, "buffer_size": 50, "prioritized": True, "n_step": 3}),
            (PPO, {"hidden": (8,), "n_steps": 16, "num_envs": 1, "normalize_obs": True, "normalize_rewards": True}),
        ):
            agent = cls("CartPole-v1", **config).learn(64, progress=False)
            good = folder / f"good{len(self.agents)}"
            agent.save(good)
            self.agents.append((cls, good))

    def __call__(self, draw):
        cls, good = self.agents[draw.edit["of"]] if draw.edit else draw.one_of(self.agents)
        bad = self.folder / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        name = draw.edit["file"] if draw.edit else draw.one_of(sorted(p.name for p in bad.iterdir()))
        whole, fits = (bad / name).read_bytes(), draw.edit is not None or draw.below(8) > 0
        if draw.edit and "text" in draw.edit:
            data = draw.edit["text"].encode() * draw.edit.get("times", 1)
        elif name.endswith(".json") and (draw.edit or draw.below(4)):
            data = json.dumps(edited_json(draw, json.loads(whole), LARGE)).encode()
        elif name == "model.safetensors" and draw.below(2):
            length = int.from_bytes(whole[:8], "little")
            text = json.dumps(edited_json(draw, json.loads(whole[8 : 8 + length]))).encode()
            data = len(text).to_bytes(8, "little") + text + whole[8 + length :]
        else:
            data = edited(draw, whole)
        (bad / name).write_bytes(data)
        if fits and name != "manifest.json":
            manifest = json.loads((bad / "manifest.json").read_text())
            manifest["files"][name] = hashlib.sha256(data).hexdigest()
            (bad / "manifest.json").write_text(json.dumps(manifest))
        try:
            agent = cls.load(bad)
            agent.learn(agent.steps + 8, progress=False)
            assert not draw.edit or not draw.edit.get("refused"), "it was taken"
        except InputError as error:
            one_line(error)


class Tables:
    """CSV and JSON of run folders."""

    def __init__(self, folder):
        self.run = folder / "run"
        DQN("CartPole-v1", hidden=(8,), learning_starts=20, batch_size=8, buffer_size=50).learn(
            3000, folder=self.run, progress=False, eval_every=1000
        )
        self.files = {p: p.read_bytes() for p in (self.run / "progress.csv", self.run / "evaluations.csv")}
        for path in (self.run / "run.json", self.run / "checkpoint" / "config.json"):
            self.files[path] = path.read_bytes() if path.exists() else b'{"algorithm": "dqn", "config": {}}'

    def __call__(self, draw):
        for path, whole in self.files.items():
            path.write_bytes(whole)
        path = self.run / draw.edit["file"] if draw.edit else draw.one_of(list(self.files))
        whole = self.files[path]
        data = edited(draw, whole)
        if draw.edit and "cell" in draw.edit:
            lines = whole.decode().split("\r\n")
            cells = lines[draw.edit["line"]].split(",")
            cells[draw.edit["cell"]] = draw.edit["text"] * draw.edit.get("times", 1)
            lines[draw.edit["line"]] = ",".join(cells)
            data = "\r\n".join(lines).encode()
        elif draw.edit:
            data = draw.edit["text"].encode() * draw.edit.get("times", 1)
        elif path.suffix == ".csv" and draw.below(3):  # cells
            lines = [line.split(b",") for line in whole.split(b"\r\n")]
            for _ in range(1 + draw.below(3)):
                line = draw.one_of(lines)
                cell = draw.one_of([b"", b"x", b"nan", b"-inf", b"1e999", b"-1", b"\xff", b'"', b"\0", b"\xc2\xb2"])
                line[draw.below(len(line))] = cell * draw.one_of([1, 1, 1, 2, 200_000]) or b"9" * 5000
            data = b"\r\n".join(b",".join(line) for line in lines)
        elif path.suffix == ".json" and draw.below(3):
            data = json.dumps(edited_json(draw, json.loads(whole))).encode()
        path.write_bytes(data)
        runs.read(self.run), runs.returns(self.run), runs.evaluations(self.run), runs.last_step(self.run)
        try:
            found = plot.read_runs([self.run])
            plot.group_runs(found)
        except InputError as error:
            one_line(error)
        if path.suffix == ".csv":
            names = self.files[self.run / "progress.csv"].split(b"\r\n")[0].decode().split(",")
            found = logs.Logs(self.run, names, 2000)
            found.write({"step": 2001}), found.write_evaluation({"step": 2001})
            found.close(), found.remove()


# ---- foreign arrays -------------------------------------------------------------------------------------------------


MEMORY = np.zeros(1 << 16, np.uint8)


def foreign(draw):
    """An array whose capsule has the fields of the input."""
    struct = Versioned() if draw.below(2) else Managed()
    t = struct.tensor
    t.device_type, t.device_id = draw.one_of([1, 1, 1, 1, 1, 2, 3, 0, -1, 99]), draw.one_of([0, 0, 0, 1, -1])
    t.ndim = draw.one_of([1, 2, 1, 2, 1, 2, 0, 3, 16, 17, 64, -1, 2**31 - 1])
    t.code, t.bits = draw.one_of([2, 2, 2, 0, 1, 6, 4, 5, 3, 200]), draw.one_of([32, 64, 32, 64, 8, 16, 1, 0, 255])
    t.lanes = draw.one_of([1, 1, 1, 1, 1, 0, 2, 65535])
    n = max(0, min(t.ndim, 64))
    shape = [draw.one_of([2, 3, 4, 1, 0, -1, 2**62, -(2**63)]) for _ in range(n)]
    strides = [draw.one_of([1, 3, 4, 0, -1, 2**60, -(2**63)]) for _ in range(n)] if draw.below(2) else None
    t.byte_offset = draw.one_of([0, 0, 0, 8, 1, 3, 2**63])
    # An honest producer's memory holds what its fields say: that it does not is a lie that none can detect, but where
    # the fields are beyond all addresses.
    if all(extent > 0 for extent in shape):
        steps = strides or [math.prod(shape[i + 1 :]) for i in range(n)]
        reach = sum(abs(step) * (extent - 1) for step, extent in zip(steps, shape, strict=True))
        if max(reach, t.byte_offset) < 2**63 and (reach * 64 + t.byte_offset > 1 << 14 or n > 16):
            t.ndim, shape = min(t.ndim, 3), [min(extent, 4) for extent in shape]
            strides = strides and [max(-4, min(step, 4)) for step in strides]
            t.byte_offset = min(t.byte_offset, 8)
    t.shape = integers(shape) if draw.below(16) else None
    t.strides = integers(strides) if strides else None
    t.data = MEMORY.ctypes.data + (1 << 15) if draw.below(16) else None
    if isinstance(struct, Versioned):
        struct.major, struct.minor = draw.one_of([1, 1, 1, 1, 0, 2, 2**32 - 1]), draw.below(4)
        struct.flags = draw.one_of([0, 0, 1, 2, 3, 2**64 - 1])
    name = None if draw.below(16) else b"used_dltensor"
    says = draw.one_of([(1, 0)] * 6 + [(2, 0), (1,), None, "cpu", (-1, 2**70)])
    return Producer(struct, name=name, says=says, deleter=bool(draw.below(8)))


def stated(fields):
    """A sound array of [2, 3] float32, but for these fields."""
    struct = Managed()
    sound = {
        "device_type": 1,
        "ndim": 2,
        "code": 2,
        "bits": 32,
        "lanes": 1,
        "shape": [2, 3],
        "data": MEMORY.ctypes.data,
    }
    for name, value in {**sound, **fields}.items():
        setattr(struct.tensor, name, integers(value) if isinstance(value, list) else value)
    return Producer(struct)


class Capsules:
    def __init__(self, folder):
        self.flags = np.zeros((2, 3), bool)

    def __call__(self, draw):
        MEMORY[:] = draw.one_of([0, 1, 63])
        first, second = foreign(draw), foreign(draw)
        if draw.edit:
            first = stated(draw.edit["fields"])
        values, indices = np.ones((2, 3), np.float32), np.array([0, 1])
        calls = [
            lambda: fastrl.gather_rows(values, first),
            lambda: fastrl.gather_rows(first, indices),
            lambda: fastrl.gather_rows([first, second], indices),
            lambda: fastrl.gather_rows(values, indices, out=first),
            lambda: fastrl.gae(first, first, first, second, second, gamma=0.9, lam=0.9),
            lambda: fastrl.gae(values, values, first, self.flags, second, gamma=0.9, lam=0.9),
            lambda: fastrl.discounted_returns(values, self.flags, self.flags, gamma=0.9, out=first),
            lambda: fastrl.normal_sample(first, second, noise=first),
            lambda: fastrl.categorical_log_prob_entropy(first, second),
            lambda: fastrl.SumTree(8).update(first, second),
            lambda: fastrl.adam_step([first], [second], [first], [second], [first], lr=0.1),
        ]
        with contextlib.suppress(TypeError, ValueError, IndexError, BufferError, RuntimeError):
            (calls[draw.edit["call"]] if draw.edit else draw.one_of(calls))()
        assert first.deleted <= first.exported and second.deleted <= second.exported


TARGETS = {"replay": Replay, "folders": Folders, "checkpoints": Checkpoints, "tables": Tables, "capsules": Capsules}

"""Several processes with one prioritized buffer, beside cpprb's multi-process one, in turns.

    python bench/replay_writers.py [--writers 4] [--steps 5000] [--samplers 2] [--batches 2000] [--rounds 5] [--no-save]

Each writer adds its steps one by one as fast as it can.  Case "add": the learner only waits until all of them are in
the buffer.  Case "learn": it draws 256 transitions and updates their priorities once for every 16 that were added.
Batches with a transition that is no whole one are counted, and the buffer must have all of them in the end.  Case
"sample": the buffer is full, and each sampler draws its batches of 256 and updates their priorities.  Each round runs
all once; cpprb is left out where it is not installed.  Seconds are those of the clock, and of processors, all processes
together, which other programs on the machine change least.
"""

import argparse
import importlib.util
import json
import multiprocessing
import time

import numpy as np
from _harness import RESULTS, machine

BATCH, WIDTH, CAPACITY = 256, 17, 2**17
CASES = {"add": 0, "learn": 16}  # transitions a batch
fork = multiprocessing.get_context("fork")


def transition(writer, step):
    """[1, ...] arrays; every number of it tells which one it is."""
    number = np.float32(writer * 2**20 + step)
    obs = np.full((1, WIDTH), number)
    return obs, np.array([[step]]), np.array([number]), obs + np.float32(0.5), np.zeros(1, np.bool_)


def is_torn(obs, reward, next_obs):
    reward = np.reshape(reward, (-1, 1))
    return not (obs == reward).all() or not (next_obs == reward + np.float32(0.5)).all()


class Fastrl:
    def __init__(self, writers):
        from fastrl import PrioritizedReplay

        self.buffer = PrioritizedReplay(CAPACITY, ((WIDTH,), np.float32), ((1,), np.int64), writers, seed=0)
        self.ends = self.buffer.writers(writers)

    def write(self, writer, transitions):
        add = self.ends[writer].add
        for obs, action, reward, next_obs, done in transitions:
            add(obs, action, reward, next_obs, done, done)

    def learn(self, new_td):
        batch = self.buffer.sample(BATCH)
        self.buffer.update_priorities(batch.indices, new_td)
        return batch.obs, batch.reward, batch.next_obs

    def fill(self, obs, action, reward, next_obs, done):
        for part in np.array_split(np.arange(len(reward)), 64):
            self.buffer.extend(obs[part], action[part], reward[part], next_obs[part], done[part], done[part])

    def samplers(self, n):
        self.served = self.buffer.samplers(n, BATCH)

    def draw(self, sampler, batches, new_td):
        served = self.served[sampler]
        for _ in range(batches):
            batch = served.sample()
            served.update_priorities(batch.indices, new_td)

    def serve(self):
        return self.buffer.serve()

    def size(self):
        self.buffer.receive()
        return len(self.buffer)

    def rewards(self):
        batch = self.buffer.transitions()
        assert not is_torn(batch.obs, batch.reward, batch.next_obs)
        return batch.reward


class Cpprb:
    def __init__(self, writers):
        from cpprb import MPPrioritizedReplayBuffer

        fields = {"obs": {"shape": WIDTH, "dtype": np.float32}, "act": {"shape": 1, "dtype": np.int64}, "rew": {}}
        fields |= {"next_obs": {"shape": WIDTH, "dtype": np.float32}, "done": {"dtype": np.bool_}}
        self.buffer = MPPrioritizedReplayBuffer(CAPACITY, fields, ctx=fork)

    def write(self, writer, transitions):
        for obs, action, reward, next_obs, done in transitions:
            self.buffer.add(obs=obs, act=action, rew=reward, next_obs=next_obs, done=done)

    def learn(self, new_td):
        found = self.buffer.sample(BATCH)
        self.buffer.update_priorities(found["indexes"], new_td)
        return found["obs"], found["rew"], found["next_obs"]

    def fill(self, obs, action, reward, next_obs, done):
        for part in np.array_split(np.arange(len(reward)), 64):
            self.buffer.add(obs=obs[part], act=action[part], rew=reward[part], next_obs=next_obs[part], done=done[part])

    def samplers(self, n):
        pass

    def draw(self, sampler, batches, new_td):
        for _ in range(batches):
            self.learn(new_td)

    def serve(self):
        return 0

    def size(self):
        return self.buffer.get_stored_size()

    def rewards(self):
        found = self.buffer.get_all_transitions()
        assert not is_torn(found["obs"], found["rew"], found["next_obs"])
        return found["rew"].reshape(-1)


def write(contender, writer, steps, begin, cpu):
    transitions = [transition(writer, step) for step in range(steps)]
    begin.wait()
    start = time.process_time()
    contender.write(writer, transitions)
    cpu[writer] = time.process_time() - start


def run(cls, writers, steps, per_batch):
    """Seconds until all transitions are in the buffer and there was a batch for each `per_batch` of them."""
    contender, begin, cpu = cls(writers), fork.Event(), fork.Array("d", writers)
    processes = [fork.Process(target=write, args=(contender, w, steps, begin, cpu)) for w in range(writers)]
    for process in processes:
        process.start()
    new_td = np.random.default_rng(0).random(BATCH).astype(np.float32)
    time.sleep(1)  # all are ready
    batches = size = torn = 0
    start, start_cpu = time.perf_counter(), time.process_time()
    begin.set()
    while size < writers * steps or (per_batch and batches < size // per_batch):
        size = contender.size()
        if per_batch and batches < size // per_batch:
            torn += is_torn(*contender.learn(new_td))
            batches += 1
        else:
            time.sleep(1e-3)
    seconds, own_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    for process in processes:
        process.join()
    wanted = [np.float32(w * 2**20 + step) for w in range(writers) for step in range(steps)]
    assert sorted(contender.rewards().tolist()) == wanted, "a transition is lost"
    assert not torn or cls is not Fastrl, f"{torn} batches are torn"
    return {
        "torn_batches": torn,
        "us": seconds / len(wanted) * 1e6,
        "processor_us": (sum(cpu) + own_cpu) / len(wanted) * 1e6,
    }


def draw(contender, sampler, batches, begin, cpu):
    new_td = np.random.default_rng(sampler).random(BATCH).astype(np.float32)
    begin.wait()
    start = time.process_time()
    contender.draw(sampler, batches, new_td)
    cpu[sampler] = time.process_time() - start


def run_samplers(cls, samplers, batches):
    """Seconds a batch, of all samplers together."""
    contender, begin, cpu = cls(1), fork.Event(), fork.Array("d", samplers)
    n = np.arange(CAPACITY, dtype=np.float32)
    obs = np.repeat(n[:, None], WIDTH, 1)
    contender.fill(obs, n[:, None].astype(np.int64), n, obs + np.float32(0.5), np.zeros(len(n), np.bool_))
    contender.samplers(samplers)
    processes = [fork.Process(target=draw, args=(contender, i, batches, begin, cpu)) for i in range(samplers)]
    for process in processes:
        process.start()
    time.sleep(1)  # all are ready
    start, start_cpu = time.perf_counter(), time.process_time()
    begin.set()
    while any(process.is_alive() for process in processes):
        if not contender.serve():
            time.sleep(1e-4)
    seconds, own_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    assert all(process.exitcode == 0 for process in processes)
    return {
        "us": seconds / (samplers * batches) * 1e6,
        "processor_us": (sum(cpu) + own_cpu) / (samplers * batches) * 1e6,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--samplers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    contenders = {"fastrl": Fastrl}
    if importlib.util.find_spec("cpprb") is None:
        print("cpprb is not installed: left out")
    else:
        contenders["cpprb"] = Cpprb
    runs = {(case, name): [] for case in (*CASES, "sample") for name in contenders}
    for _ in range(args.rounds):
        for case, name in runs:
            if case == "sample":
                found = run_samplers(contenders[name], args.samplers, args.batches)
            else:
                found = run(contenders[name], args.writers, args.steps, CASES[case])
            runs[case, name].append(found)
            print(case, name, runs[case, name][-1], flush=True)
    records = []
    for (case, name), found in runs.items():
        record = {"case": case, "contender": name}
        for key in found[0]:
            record[key] = round(float(np.median([r[key] for r in found])), 2)
            if key == "torn_batches":
                record[key] = [r[key] for r in found]
                continue
            ratios = [r[key] / own[key] for r, own in zip(found, runs[case, "fastrl"], strict=True)]
            record[f"{key}_ratio"] = round(float(np.median(ratios)), 2)
        records.append(record)
        print(record)
    report = {"machine": machine(), "note": args.note, "writers": args.writers, "steps": args.steps, "batch": BATCH}
    report |= {"samplers": args.samplers, "batches": args.batches}
    if not args.no_save:
        text = json.dumps({**report, "rounds": args.rounds, "records": records}, indent=1)
        (RESULTS / "replay_writers.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

"""TRPO as a whole: environment steps a second, and the time of an update, beside sb3-contrib's on HalfCheetah-v5.

    python bench/agents_trpo.py                          writes bench/results/agents_trpo.json and .md
    python bench/agents_trpo.py --rollouts 2 --no-save   a quick look

Both: one environment x 2048 steps, policy and value 64-64 tanh, 15 iterations of conjugate gradient with damping 0.1,
KL 0.01, 10 passes of 16 minibatches for the value, one thread.  They take turns, a rollout and its update each; the
first of each is not timed.  Needs the extra mujoco, and sb3-contrib.  GAE belongs to our update and to sb3-contrib's
rollout.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib import metadata

os.environ["FASTRL_NUM_THREADS"] = "1"  # before _harness sets the threads of everything from it

import numpy as np
import torch
from _harness import RESULTS, machine

from fastrl.agents import TRPO

STEPS = 2048


class Ours:
    def __init__(self, env: str, seed: int) -> None:
        self.agent = TRPO(
            env,
            seed=seed,
            num_envs=1,
            n_steps=STEPS,
            hidden=(64, 64),
            gamma=0.99,
            gae_lambda=0.95,
            max_kl=0.01,
            max_kl_end=0.01,
            cg_damping=0.1,
            value_epochs=10,
            minibatches=16,
        )

    def rollout(self) -> None:
        self.agent.rollout.collect(self.agent.generator)
        self.agent.steps += STEPS

    def update(self) -> None:
        self.agent._update()

    def kl(self) -> float:
        return self.agent.metrics()["kl"]


class Sb3Contrib:
    def __init__(self, env: str, seed: int) -> None:
        from sb3_contrib import TRPO

        self.model = TRPO("MlpPolicy", env, n_steps=STEPS, batch_size=128, seed=seed, device="cpu")
        _, self.callback = self.model._setup_learn(10**9)

    def rollout(self) -> None:
        m = self.model
        assert m.collect_rollouts(m.env, self.callback, m.rollout_buffer, n_rollout_steps=STEPS)

    def update(self) -> None:
        self.model.train()

    def kl(self) -> float:
        return float(self.model.logger.name_to_value["train/kl_divergence_loss"])


CONTENDERS = {"fastrl": Ours, "sb3-contrib": Sb3Contrib}


def measure(env: str, rollouts: int) -> dict:
    agents = {name: make(env, 0) for name, make in CONTENDERS.items()}
    seconds = {name: [] for name in agents}  # of rollout and update
    for turn in range(rollouts + 1):
        for name, agent in agents.items():
            began = time.perf_counter()
            agent.rollout()
            between = time.perf_counter()
            agent.update()
            end = time.perf_counter()
            assert 0 <= agent.kl() <= 0.01, f"{name}: KL {agent.kl()}"
            if turn:
                seconds[name].append((between - began, end - between))
    times = {name: np.array(t) for name, t in seconds.items()}
    record = {
        name: {
            "steps_per_s": round(float(np.median(STEPS / t.sum(1))), 1),
            "update_ms": round(float(np.median(t[:, 1])) * 1e3, 1),
        }
        for name, t in times.items()
    }
    for what, column in (("whole", slice(None)), ("update", slice(1, 2))):
        ratios = times["sb3-contrib"][:, column].sum(1) / times["fastrl"][:, column].sum(1)
        record[f"{what}_ratio"] = [round(float(x), 2) for x in np.percentile(ratios, (50, 0, 100))]
    return record


def markdown(report: dict) -> str:
    m, r = report["machine"], report["record"]
    return "\n".join([
        "# agents_trpo",
        "",
        f"`python bench/agents_trpo.py --env {report['env']} --rollouts {report['rollouts']}` with 1 thread on "
        f"{m['cpu']} ({m['cores']} cores, {m['system']}); backend {m['cpu_backend']}, {m['simd']}.",
        f"TRPO on {report['env']}: medians of interleaved rollouts of {STEPS} steps with their updates, and the median "
        "(least, most) of their ratios.",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in m["versions"].items()) + f". {report['note']}".rstrip(),
        "",
        "| | fastrl | sb3-contrib | ratio |",
        "|---|---|---|---|",
        f"| environment steps a second | {r['fastrl']['steps_per_s']:,.0f} | {r['sb3-contrib']['steps_per_s']:,.0f} | "
        "{} ({} to {}) |".format(*r["whole_ratio"]),
        f"| an update, ms | {r['fastrl']['update_ms']:,.0f} | {r['sb3-contrib']['update_ms']:,.0f} | "
        "{} ({} to {}) |".format(*r["update_ratio"]),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--rollouts", type=int, default=10, help="timed rollouts of each")
    parser.add_argument("--note", default="", help="a remark to keep with the results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = {"machine": machine(), "env": args.env, "rollouts": args.rollouts, "note": args.note}
    for name in ("gymnasium", "mujoco", "sb3-contrib"):
        report["machine"]["versions"][name] = metadata.version(name)
    report["record"] = measure(args.env, args.rollouts)
    text = markdown(report)
    print(text)
    if not args.no_save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "agents_trpo.json").write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / "agents_trpo.md").write_text(text + "\n")


if __name__ == "__main__":
    main()

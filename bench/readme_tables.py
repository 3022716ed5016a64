"""Print the tables of README and docs/benchmarks.md from the kept results; a test compares them."""

import csv
import json
import statistics
from pathlib import Path

from fastrl.bench import microseconds

RESULTS = Path(__file__).parent / "results"


def bench() -> str:
    """What `fastrl bench` saved: our time a call, and how many times longer the others take."""
    rows: dict[tuple[str, str], list[str]] = {}
    with (RESULTS / "fastrl_bench.csv").open() as file:
        for row in csv.DictReader(file):
            cells = rows.setdefault((row["kernel"], row["size"]), [])
            if row["contender"] == "fastrl":
                cells.append(f"{microseconds(float(row['us']))} us |")
            else:
                cells.append(f"{row['contender'].removeprefix('reference: ')} {microseconds(float(row['ratio']))}x,")
    lines = ["| kernel | size | fastrl | the others take |", "|---" * 4 + "|"]
    lines += [f"| {kernel} | {size} | {' '.join(cells).rstrip(',')} |" for (kernel, size), cells in rows.items()]
    return "\n".join(lines)


WHOLE = {
    "sb3": "Stable-Baselines3",
    "sbx": "SBX (JAX)",
    "rltools": "RLtools (C++, MKL)",
}


def agents() -> str:
    """Environment steps a second of whole agents, and how many times fewer the others do."""
    report = json.loads((RESULTS / "whole_agents.json").read_text())
    lines = [f"| agent | fastrl | {' | '.join(WHOLE.values())} |", "|---" * (2 + len(WHOLE)) + "|"]
    for record in report["records"]:
        found = record["results"]
        name = record["task"].removesuffix(str(record["hidden"])).upper()
        what = f"{name}, {record['env']}, {record['hidden']}-{record['hidden']}, batch {record['batch']}"
        ours = f"{statistics.median(found['fastrl']['steps_per_s']):,.0f} steps/s, {found['fastrl']['peak_mb']} MB"
        others = [f"{found[x]['ratio']:.1f}x, {found[x]['peak_mb']} MB" if x in found else "-" for x in WHOLE]
        lines.append(f"| {what} | {ours} | {' | '.join(others)} |")
    return "\n".join(lines)


PEERS = {
    "torchrl": ("torchrl segment trees", "torchrl PrioritizedSampler", "torchrl"),
    "Tianshou": ("tianshou",),
    "cpprb": ("cpprb",),
    "flashbax": ("flashbax (jit)",),
}
ROWS = {
    ("sum_tree", "sum_tree.sample_weighted"): "draw with importance weights",
    ("sum_tree", "sum_tree.update"): "update from TD errors",
    ("sum_tree", "sum_tree.sample_then_update"): "draw, then update",
    ("replay", "replay.sample"): "whole sample, 17 floats an observation",
}


def speed() -> str:
    """At 1e6 items: our median time a call, and how many times longer the peers take (torchrl: its fastest way)."""
    lines = [f"| 1e6 items | batch | fastrl | {' | '.join(PEERS)} |", "|---" * (3 + len(PEERS)) + "|"]
    for (file, case), title in ROWS.items():
        for record in json.loads((RESULTS / f"{file}.json").read_text())["records"]:
            if record["case"] != case or record["size"]["capacity"] != 1_000_000:
                continue
            results = record["results"]
            ratios = []
            for names in PEERS.values():
                found = [results[name]["ratio"] for name in names if name in results]
                ratios.append(f"{min(found):.1f}x" if found else "-")
            us = results["fastrl"]["us"]
            lines.append(f"| {title} | {record['size']['batch']} | {us:.1f} us | {' | '.join(ratios)} |")
    return "\n".join(lines)


SCAN_PEERS = {
    "Tianshou": "tianshou _gae",
    "JAX lax.scan": "JAX lax.scan",
    "SB3": "Stable-Baselines3 RolloutBuffer",
    "torchrl": "torchrl, loop",
    "Numba by hand": "Numba loop by hand",
}


def scans() -> str:
    """GAE: our median time a call with NumPy arrays, and how many times longer the others take."""
    lines = [f"| GAE [T, N] | fastrl | {' | '.join(SCAN_PEERS)} |", "|---" * (2 + len(SCAN_PEERS)) + "|"]
    for record in json.loads((RESULTS / "scans.json").read_text())["records"]:
        if record["case"] != "gae":
            continue
        results = record["results"]
        ratios = [f"{results[name]['ratio']:.1f}x" if name in results else "-" for name in SCAN_PEERS.values()]
        size = f"{record['size']['T']} x {record['size']['N']}"
        lines.append(f"| {size} | {results['fastrl']['us']:.1f} us | {' | '.join(ratios)} |")
    return "\n".join(lines)


HEAD_PEERS = {
    "CleanRL's code": "CleanRL inline",
    "SB3": "Stable-Baselines3",
    "torchrl": "torchrl TanhNormal",
    "TransformedDistribution": "torch TransformedDistribution",
    "torch.compile": "torch.compile, CleanRL",
    "plain torch": "torch inline",
}


def tanh_normal() -> str:
    """Drawing actions with their log_prob: our median time a call, and how many times longer the others take."""
    lines = [f"| tanh-Gaussian | [B, A] | fastrl | {' | '.join(HEAD_PEERS)} |", "|---" * (3 + len(HEAD_PEERS)) + "|"]
    titles = {"tanh_normal_sample": "forward", "tanh_normal forward + backward": "forward + backward"}
    for record in json.loads((RESULTS / "tanh_normal.json").read_text())["records"]:
        results, size = record["results"], record["size"]
        ratios = " | ".join(f"{results[name]['ratio']:.1f}x" for name in HEAD_PEERS.values())
        us = results["fastrl"]["us"]
        lines.append(f"| {titles[record['case']]} | {size['batch']} x {size['dims']} | {us:.0f} us | {ratios} |")
    return "\n".join(lines)


FISHER_PEERS = {
    "Tianshou": "tianshou",
    "sb3-contrib": "sb3-contrib",
    "double backward": "double backward",
    "torch.func, compiled": "torch.func, compiled",
    "its matrix products": "matrix products alone",
}


def fisher() -> str:
    """A Fisher product: our median time, and the times of the others in ours."""
    lines = [
        f"| Fisher product | batch | fastrl | {' | '.join(FISHER_PEERS)} |",
        "|---" * (3 + len(FISHER_PEERS)) + "|",
    ]
    for record in json.loads((RESULTS / "conjugate_gradient.json").read_text())["records"]:
        if record["case"] != "Fisher product":
            continue
        results, size = record["results"], record["size"]
        ratios = [f"{results[name]['ratio']:.1f}x" if name in results else "-" for name in FISHER_PEERS.values()]
        ms = results["fastrl"]["us"] / 1e3
        lines.append(f"| {size['net']} | {size['batch']} | {ms:.1f} ms | {' | '.join(ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(agents(), bench(), speed(), scans(), tanh_normal(), fisher(), sep="\n\n")

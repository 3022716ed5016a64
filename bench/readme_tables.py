"""Print README's tables from the kept results: `python bench/readme_tables.py`.  A test compares them."""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
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


def learning() -> str:
    """The kept logs' table, from learning.py."""
    from learning import table  # beside this file

    return table(5)


if __name__ == "__main__":
    print(speed(), scans(), learning(), sep="\n\n")

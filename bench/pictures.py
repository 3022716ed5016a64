"""Draw docs/pictures from the kept results, each for light and for dark pages: `python bench/pictures.py`.

A picture says what it was drawn from (in its description), and a test compares that with the results.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import learning  # beside this file

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
COLOURS = {  # of Okabe and Ito: told apart by the colour-blind, and on both grounds
    "light": {"text": "#222222", "grid": "#cccccc"},
    "dark": {"text": "#e8e8e8", "grid": "#555555"},
}
OURS, OTHERS = "#D55E00", ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
CONTENDERS = {"fastrl": "fastrl", "rltools": "RLtools (C++)", "sbx": "SBX (JAX)", "sb3": "Stable-Baselines3"}
CURVES = {  # environment -> the lines of its panel: algorithm, variant, title
    "CartPole-v1": [
        ("ppo", "clip", "PPO"),
        ("trpo", "default", "TRPO"),
        ("dqn", "plain", "DQN"),
        ("dqn", "all", "DQN, double dueling prioritized"),
    ],
    "Pendulum-v1": [
        ("sac", "automatic", "SAC"),
        ("td3", "default", "TD3"),
        ("ddpg", "gaussian", "DDPG"),
        ("naf", "gaussian", "NAF"),
    ],
    "HalfCheetah-v5": [
        ("td3", "default", "TD3"),
        ("td3", "sb3", "TD3 of Stable-Baselines3"),
        ("sac", "automatic", "SAC"),
        ("sac", "sb3", "SAC of Stable-Baselines3"),
    ],
}


def speeds() -> dict[str, dict[str, float]]:
    """task -> contender -> steps a second over those of Stable-Baselines3, from the medians of paired ratios."""
    found = {}
    for record in json.loads((RESULTS / "whole_agents.json").read_text())["records"]:
        results = record["results"]
        name = f"{record['task'].removesuffix(str(record['hidden'])).upper()}, {record['hidden']}-{record['hidden']}"
        base = results["sb3"]["ratio"]
        found[name] = {title: base / results[key]["ratio"] for key, title in CONTENDERS.items() if key in results}
    return found


def curves() -> dict[str, dict[str, list[list[float]]]]:
    """environment -> line -> rows of step and the greedy policy's return with each seed."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for env, lines in CURVES.items():
        for algorithm, variant, title in lines:
            seeds = []
            for path in sorted(learning.log_path(algorithm, env, variant, 0).parent.glob("seed*.csv")):
                with path.open() as file:
                    seeds.append([(float(row["step"]), float(row["greedy_return"])) for row in csv.DictReader(file)])
            length = min(map(len, seeds))
            rows = [[seeds[0][i][0], *(seed[i][1] for seed in seeds)] for i in range(length)]
            found.setdefault(env, {})[title] = rows
    return found


def digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def draw_speeds(data: dict[str, dict[str, float]]) -> Any:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # one row an agent, so that it fits beside the table on a first screen
    colours = dict(zip(CONTENDERS.values(), (OURS, OTHERS[1], OTHERS[0], OTHERS[5]), strict=True))
    figure = Figure((5, 2.5), layout="constrained")
    axes = figure.add_subplot()
    for y, values in enumerate(data.values()):
        axes.plot(
            (min(values.values()), max(values.values())),
            (y, y),
            color=mpl.rcParams["grid.color"],
            linewidth=2,
            zorder=1,
        )
        for title, value in values.items():
            axes.scatter(value, y, 60, color=colours[title], zorder=3 if title == "fastrl" else 2)
        axes.annotate(
            f"{values['fastrl']:.1f}x", (values["fastrl"], y), (0, 7), textcoords="offset points", ha="center"
        )
    axes.set_yticks(range(len(data)), list(data))
    axes.set_ylim(len(data) - 0.5, -0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log")
    axes.set_xticks(ticks := (1, 2, 5, 10), [f"{tick}x" for tick in ticks])
    axes.minorticks_off()
    every = [value for values in data.values() for value in values.values()]
    axes.set_xlim(0.85 * min(every), 1.25 * max(every))
    axes.set_xlabel("steps a second, Stable-Baselines3 = 1")
    handles = [axes.scatter([], [], 60, color=colour, label=title) for title, colour in colours.items()]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=9,
        handletextpad=0,
        columnspacing=1,
    )
    return figure


def draw_curves(data: dict[str, dict[str, list[list[float]]]]) -> Any:
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter
    from scipy.stats import bootstrap, trim_mean

    def iqm(x, axis=-1):
        return trim_mean(x, 0.25, axis=axis)

    figure = Figure((5, 9), layout="constrained")
    for axes, (env, lines) in zip(figure.subplots(len(data)), data.items(), strict=True):
        for colour, (title, rows) in zip((OURS, *OTHERS), lines.items(), strict=False):
            steps, returns = np.array(rows)[:, 0], np.array(rows)[:, 1:]
            interval = bootstrap((returns,), iqm, axis=1, n_resamples=2000, method="percentile", rng=0)
            low, high = interval.confidence_interval
            axes.plot(steps, iqm(returns), color=colour, label=title, linewidth=2)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(env, loc="left", size=11)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(frameon=False, fontsize=9, loc="best")
        axes.grid(True, linewidth=0.5)
    axes.set_xlabel("environment steps")
    return figure


def main() -> None:
    import matplotlib as mpl

    PICTURES.mkdir(exist_ok=True)
    for name, data, draw in (("speed", speeds(), draw_speeds), ("learning", curves(), draw_curves)):
        for theme, colours in COLOURS.items():
            style = {f"{part}.color": colours["text"] for part in ("text", "xtick", "ytick")}
            style |= {"axes.labelcolor": colours["text"], "axes.edgecolor": colours["grid"]}
            style |= {"grid.color": colours["grid"], "font.size": 10, "svg.hashsalt": "fastrl"}
            style |= {"axes.spines.top": False, "axes.spines.right": False}
            with mpl.rc_context(style):
                about = {"Date": None, "Creator": None, "Description": digest(data)}
                draw(data).savefig(PICTURES / f"{name}-{theme}.svg", transparent=True, metadata=about)


if __name__ == "__main__":
    main()

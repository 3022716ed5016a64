"""Write docs/reference-agents.md: every hyperparameter of every agent, from the config classes.

python docs/make_reference.py
"""

from dataclasses import fields
from pathlib import Path

from fastrl.agents.config import meanings
from fastrl.agents.hyperparameters import CONFIGS
from fastrl.agents.loading import algorithm_class

BAR = "\\|"  # in a cell of a table
PAGE = Path(__file__).with_name("reference-agents.md")
HEAD = """\
# Hyperparameters

Each is a keyword of the agent's constructor (`SAC("Pendulum-v1", tau=0.01)`), a field of its config class
(`SACConfig(tau=0.01)`) and an option of the command line (`fastrl train sac --tau 0.01`). `help(SAC)` shows them, too.
This page is made by `python docs/make_reference.py`. What the agents have in common is in [agents.md](agents.md).
"""


def page():
    """The text of the page."""
    parts = [HEAD]
    for name, config in CONFIGS.items():
        agent = algorithm_class(name)
        summary = " ".join(agent.__doc__.split("\n\n")[0].split()).replace("``", "`")
        parts.append(f"## {agent.__name__}\n\n`{name}`, `{config.__name__}`. {summary}\n")
        rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
        told = meanings(config)
        for field in fields(config):
            cells = f"`{field.name}`", f"`{field.type}`", f"`{field.default!r}`", " ".join(told[field.name].split())
            rows.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

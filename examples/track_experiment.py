"""A logger as a callback: Weights & Biases if wandb is installed, else a file of JSON lines with the same calls.

python examples/track_experiment.py [folder]
"""

import dataclasses
import json
import sys
from pathlib import Path

from fastrl.agents import DQN, Callback

try:
    import wandb
except ImportError:
    wandb = None


class JsonLines:
    """A run of wandb's kind, in a file."""

    def __init__(self, path, config):
        self._file = path.open("w")
        self.log({"config": config}, step=0)

    def log(self, scalars, step):
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")

    def finish(self):
        self._file.close()


class Track(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_start(self, agent):
        config = {"algorithm": agent.algorithm, "env": agent.envs.env_id, **dataclasses.asdict(agent.config)}
        if wandb is None:
            self.run = JsonLines(self.folder / "log.jsonl", config)
        else:
            self.run = wandb.init(project="fastrl", config=config, dir=self.folder, mode="offline")

    def on_log(self, agent, scalars):
        self.run.log(scalars, step=agent.steps)

    def on_evaluation(self, agent, evaluation):
        self.run.log({"eval_return": evaluation.mean, "eval_best": evaluation.best}, step=agent.steps)

    def on_end(self, agent):  # after an error or Ctrl-C, too
        self.run.finish()


folder = Path(sys.argv[1] if len(sys.argv) > 1 else "tracked")
folder.mkdir(parents=True, exist_ok=True)
agent = DQN("CartPole-v1", hidden=(32, 32), seed=0)
agent.learn(6000, progress=False, eval_every=2000, callback=Track(folder))
print(f"{agent.steps} steps logged in {folder}, {'by wandb' if wandb else 'log.jsonl'}")

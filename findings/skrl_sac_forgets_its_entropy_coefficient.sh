#!/usr/bin/env bash
# skrl 2.1.1, SAC: a checkpoint (agent.save, and those that a trainer writes) holds the optimizer of the learned entropy
# coefficient, but not the coefficient. After load() it is back at `initial_entropy_value`, with Adam's moments and step
# count of the one that was learned, so a run that goes on explores as at its start. Nothing is said at save or load.
# Seen: after 300 updates the coefficient is 0.0085 (0.2 at first); in the agent that loads the checkpoint it is 0.2, while its
# networks are the same and its entropy optimizer says that it has made 300 steps.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 skrl==2.1.1 gymnasium==1.4.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import gymnasium as gym
import torch
from skrl.agents.torch.sac import SAC
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
SPACES = {"observation_space": gym.spaces.Box(-1, 1, (3,)), "action_space": gym.spaces.Box(-1, 1, (1,))}


class Policy(GaussianMixin, Model):
    def __init__(self):
        Model.__init__(self, **SPACES, device="cpu")
        GaussianMixin.__init__(self)
        self.net, self.log_std = nn.Linear(3, 1), nn.Parameter(torch.zeros(1))

    def compute(self, inputs, role):
        return self.net(inputs["observations"]), {"log_std": self.log_std}


class Critic(DeterministicMixin, Model):
    def __init__(self):
        Model.__init__(self, **SPACES, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = nn.Linear(4, 1)

    def compute(self, inputs, role):
        return self.net(torch.cat([inputs["observations"], inputs["taken_actions"]], 1)), {}


def make():
    critics = {name: Critic() for name in ("critic_1", "critic_2", "target_critic_1", "target_critic_2")}
    agent = SAC(
        models={"policy": Policy(), **critics},
        memory=RandomMemory(memory_size=50, device="cpu"),
        device="cpu",
        cfg={"batch_size": 16, "learning_rate": 1e-2, "experiment": {"write_interval": 0, "checkpoint_interval": 0}},
        **SPACES,
    )
    agent.init()
    agent.enable_training_mode(True)
    return agent


trained, no = make(), torch.zeros(1, 1, dtype=torch.bool)
for t in range(50):
    obs = {"observations": torch.randn(1, 3), "next_observations": torch.randn(1, 3), "states": None, "next_states": None}
    step = {"actions": torch.rand(1, 1), "rewards": torch.ones(1, 1), "terminated": no, "truncated": no, "infos": {}}
    trained.record_transition(**obs, **step, timestep=t, timesteps=50)
for t in range(300):
    trained.update(timestep=t, timesteps=300)
trained.save("agent.pt")
loaded = make()
loaded.load("agent.pt")

before, after = float(trained._entropy_coefficient), float(loaded._entropy_coefficient)
steps = int(loaded.entropy_optimizer.state_dict()["state"][0]["step"])
print("skrl", version("skrl"), f"coefficient saved at {before:.4f}, loaded at {after:.4f}; its optimizer's steps:", steps)
same = zip(trained.policy.parameters(), loaded.policy.parameters(), strict=True)
assert all(torch.equal(p, q) for p, q in same) and steps == 300
assert before < 0.02 and after == trained.cfg.initial_entropy_value == 0.2
assert float(loaded.log_entropy_coefficient.exp()) > 0.19
PY

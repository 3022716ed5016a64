"""Whole agents, environment steps a second with updates running: fastrl beside other libraries, in turns.

    python bench/whole_agents.py --python fastrl=PY [--python sb3=PY] [--python sbx=PY] [--python baseline=PY] \
        [--python rltools=PY] [--tasks dqn sac64 td3 sac256 ppo] [--rounds 5] [--threads 1] [--note TEXT] [--no-save]

Each PY is the interpreter of a virtual environment that holds that contender: fastrl-kernels[agents] (baseline: of the
commit to compare with), stable-baselines3, sbx-rl, or "rltools[mkl]" with gymnasium and a C++ compiler.  Every round
runs all contenders of a task once, each in a fresh process pinned to `--threads` processors.  Same environment,
network, batch, one update a step (PPO: 20 of every 256 steps); warm-up and compilation are not counted.  RLtools has
no DQN, and its PPO drops truncation.

A speed counts only if in the timed steps the agent made exactly the updates that belong to them and most of its
parameters changed, to finite values (of RLtools, which shows neither: its actions).  Whether agents learn is told by
learning.py.
"""

import functools
from typing import Any, NamedTuple

from _harness import fresh_run, interleaved_speeds, runs_parser, runs_report


class Task(NamedTuple):
    env: str
    hidden: int
    batch: int
    warm: int  # steps before the clock
    steps: int  # timed
    updates: int  # in the timed steps


TASKS = {
    "dqn": Task("CartPole-v1", 64, 64, 1000, 3000, 3000),
    "sac64": Task("Pendulum-v1", 64, 128, 400, 1500, 1500),
    "td3": Task("Pendulum-v1", 64, 128, 400, 1500, 1500),
    "sac256": Task("Pendulum-v1", 256, 256, 400, 300, 300),
    "ppo": Task("CartPole-v1", 64, 256, 1024, 16384, 1280),
}
CHECK = """
import numpy as np

def flat(arrays):
    return np.concatenate([np.array(x, np.float64).ravel() for x in arrays])

def checked(speed, before, after, updates=UPDATES):
    changed = np.mean(before != after)
    assert updates == UPDATES, f"{updates} updates in the timed steps, not {UPDATES}"
    assert np.isfinite(after).all() and changed > 0.5, f"{changed:.0%} changed, finite: {np.isfinite(after).mean():.0%}"
    report(speed=speed)
"""
AGENT = """
import fastrl; fastrl.set_num_threads(THREADS)
from fastrl.agents import DQN, SAC, TD3, PPO
h = dict(seed=SEED, hidden=(H, H))
if NAME == "dqn":
    agent = DQN(ENV, batch_size=B, train_every=1, learning_starts=500, averaging=False, **h)
elif NAME == "ppo":
    agent = PPO(ENV, num_envs=8, n_steps=32, epochs=20, minibatches=1, **h)
else:
    agent = (TD3 if NAME == "td3" else SAC)(ENV, batch_size=B, learning_starts=300, **h)
"""
FASTRL = (
    AGENT
    + """
def parameters():
    parts = [getattr(agent, name) for name in ("online", "policy", "actor", "critics") if hasattr(agent, name)]
    return flat(x for part in parts for x in part.state_dict().values())

agent.learn(WARM, progress=False)
begun, steps, updates = parameters(), agent.steps, agent.n_updates
start = time.perf_counter()
agent.learn(agent.steps + STEPS, progress=False)
speed = (agent.steps - steps) / (time.perf_counter() - start)
checked(speed, begun, parameters(), agent.n_updates - updates)
"""
)
SB3 = """
if LIBRARY == "sbx":
    import jax
else:
    import torch; torch.set_num_threads(THREADS)
import importlib
from stable_baselines3.common.env_util import make_vec_env
library = importlib.import_module(LIBRARY)
k = dict(seed=SEED, batch_size=B, policy_kwargs=dict(net_arch=[H, H]))
if NAME == "ppo":
    agent = library.PPO("MlpPolicy", make_vec_env(ENV, 8), n_steps=32, n_epochs=20, **k)
elif NAME == "dqn":
    agent = library.DQN("MlpPolicy", ENV, learning_starts=500, train_freq=1, **k)
else:
    agent = (library.TD3 if NAME == "td3" else library.SAC)("MlpPolicy", ENV, learning_starts=300, **k)

def parameters():
    if LIBRARY != "sbx":
        return flat(p.detach() for name, p in agent.policy.named_parameters() if "target" not in name)
    states = [x for x in vars(agent.policy).values() if hasattr(x, "params")]
    return flat(x for state in states for x in jax.tree_util.tree_leaves(state.params))

agent.learn(WARM)
begun, steps, updates = parameters(), agent.num_timesteps, agent._n_updates
start = time.perf_counter()
agent.learn(STEPS, reset_num_timesteps=False)
speed = (agent.num_timesteps - steps) / (time.perf_counter() - start)
checked(speed, begun, parameters(), agent._n_updates - updates)
"""
RLTOOLS = """
import gymnasium as gym
from rltools import SAC, TD3
if NAME not in ("sac64", "sac256", "td3"):
    raise SystemExit(3)
make = lambda: gym.wrappers.RescaleAction(gym.make(ENV), -1, 1)
module = (TD3 if NAME == "td3" else SAC)(
    make, enable_evaluation=False, STEP_LIMIT=WARM + STEPS, ACTOR_HIDDEN_DIM=H, CRITIC_HIDDEN_DIM=H,
    ACTOR_BATCH_SIZE=B, CRITIC_BATCH_SIZE=B, N_WARMUP_STEPS=300, interface_name=f"{NAME}{WARM + STEPS}",
)
observations = [make().observation_space.sample() for _ in range(64)]
actions = lambda: flat(state.action(obs) for obs in observations)
state, n = module.State(SEED), 0
while not state.step():
    n += 1
    if n == WARM:
        begun = actions()
        start = time.perf_counter()
speed = (n - WARM) / (time.perf_counter() - start)
checked(speed, begun, actions())
"""
CODE = {
    "fastrl": FASTRL,
    "baseline": FASTRL,
    "sb3": "LIBRARY = 'stable_baselines3'" + SB3,
    "sbx": "LIBRARY = 'sbx'" + SB3,
    "rltools": RLTOOLS,
}


def measure(name: str, pythons: dict[str, str], rounds: int, threads: int) -> dict[str, Any]:
    task = TASKS[name]
    values = {"NAME": name, "THREADS": threads, "ENV": task.env, "H": task.hidden, "B": task.batch}
    values |= {"WARM": task.warm, "STEPS": task.steps, "UPDATES": task.updates}

    def run(contender: str, seed: int) -> Any:
        return fresh_run(pythons[contender], CHECK + CODE[contender], threads, **values, SEED=seed)

    runs = {contender: functools.partial(run, contender) for contender in pythons}
    return {"task": name, **task._asdict(), "results": interleaved_speeds(runs, rounds)}


def main() -> None:
    parser = runs_parser(__doc__, TASKS)
    parser.add_argument("--python", action="append", required=True, metavar="NAME=PY")
    args = parser.parse_args()
    pythons = dict(text.split("=", 1) for text in args.python)
    unknown = set(pythons) - set(CODE)
    if unknown or next(iter(pythons)) != "fastrl":
        parser.error(f"--python must name fastrl, then others of {', '.join(CODE)}, got {', '.join(pythons)}")
    distributions = {"fastrl": "numpy", "baseline": "torch", "sb3": "stable-baselines3", "sbx": "sbx-rl"}
    installed = {}
    for contender, python in pythons.items():
        distribution = distributions.get(contender, contender)
        own = distribution in ("numpy", "torch")  # what the networks of fastrl's own runs on
        installed[f"{contender}'s {distribution}" if own else distribution] = python, distribution
    runs_report(
        "whole_agents",
        args,
        (measure(name, pythons, args.rounds, args.threads) for name in args.tasks),
        lambda r: f"{r['task']}: {r['env']}, {r['hidden']}-{r['hidden']}, batch {r['batch']}",
        installed,
    )


if __name__ == "__main__":
    main()

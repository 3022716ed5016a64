"""Members of the DQN family that whole_agents.py has not: Rainbow beside Tianshou's, DQN of images beside SB3's.

    python bench/dqn_family.py --tianshou PY [--tasks rainbow images acting] [--rounds 5] [--threads 1] [--note TEXT]
        [--no-save]

Needs the extra sb3; PY is the interpreter of a virtual environment with tianshou 2 and ordered_set.  In turns, each in
a fresh process pinned to `--threads` processors, on one thread by the process's CPU time; warm-up is not counted.

rainbow: CartPole-v1, all layers of a 64-64 MLP noisy, dueling, double, 51 atoms, 3 steps, priorities, batch 64, an
    update a step.  Tianshou by its collector and `update`, without its trainer.
images: bytes [4, 84, 84], the Nature network, batch 32, an update a step; the environment gives random images.
acting: greedy actions of that network, one observation a call; torch is the bare module without gradients.

A speed counts only if the timed steps held exactly the updates that belong to them, both networks have as many
parameters, and most of these changed, to finite values; of acting, if all take the same actions with the same weights.
"""

import functools
import sys
from typing import Any, NamedTuple

from _harness import fresh_run, interleaved_speeds, runs_parser, runs_report


class Task(NamedTuple):
    text: str
    contenders: tuple[str, ...]
    warm: int  # steps before the clock
    steps: int  # timed
    updates: int  # in the timed steps


TASKS = {
    "rainbow": Task("Rainbow, CartPole-v1, 64-64, batch 64", ("fastrl", "tianshou"), 800, 2000, 2000),
    "images": Task("DQN, bytes 4x84x84, Nature, batch 32", ("fastrl", "sb3"), 150, 200, 200),
    "acting": Task("its greedy actions alone", ("fastrl", "sb3", "torch"), 50, 2000, 0),
}
COMMON = """
import gymnasium as gym
import numpy as np

if CONTENDER != "fastrl":
    import torch
    torch.set_num_threads(THREADS)
clock = time.process_time if THREADS == 1 else time.perf_counter

class Images(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Discrete(6)

    def __init__(self):
        self.images, self.n = np.random.default_rng(0).integers(0, 256, (64, 4, 84, 84), np.uint8), 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.images[0], {}

    def step(self, action):
        self.n += 1
        return self.images[self.n % 64], float(action == self.n % 6), False, self.n % 500 == 0, {}

def flat(arrays):
    return np.concatenate([np.array(x, np.float64).ravel() for x in arrays])

def timed(learn, parameters, updates):
    learn(WARM)
    before, n = parameters(), updates()
    start = clock()
    learn(STEPS)
    speed = STEPS / (clock() - start)
    after, n = parameters(), updates() - n
    changed = np.mean(before != after)
    assert n == UPDATES, f"{n} updates in the timed steps, not {UPDATES}"
    assert np.isfinite(after).all() and changed > 0.5, f"{changed:.0%} changed, finite: {np.isfinite(after).mean():.0%}"
    report(speed=speed, same=len(after))

def acting(act):
    images = Images().images
    taken = [act(image) for image in images[:WARM]]
    start = clock()
    for i in range(STEPS):
        act(images[i % 64])
    report(speed=STEPS / (clock() - start), same=[int(x) for x in taken])
"""
FASTRL = """
import fastrl; fastrl.set_num_threads(THREADS)
from fastrl.agents import DQN
how = dict(seed=SEED, train_every=1, averaging=False, tau=1, target_every=250, epsilon_steps=1, max_grad_norm=None)
if NAME == "rainbow":
    agent = DQN(
        "CartPole-v1", rainbow=True, hidden=(64, 64), batch_size=64, learning_starts=500, buffer_size=20_000, **how
    )
else:
    import torch; torch.set_num_threads(THREADS)
    agent = DQN(Images(), batch_size=32, learning_starts=100, buffer_size=1_000, **how)
if NAME == "acting":
    torch.manual_seed(0)
    agent.online.module.load_state_dict(WEIGHTS(agent.online.module))
    acting(lambda image: agent.predict(image, deterministic=True))
else:
    learn = lambda n: agent.learn(agent.steps + n, progress=False)
    timed(learn, lambda: agent.online.vector.copy(), lambda: agent.n_updates)
"""
# The same weights for all, whatever the names of the layers.
WEIGHTS = """
def WEIGHTS(module):
    draw = np.random.default_rng(1)
    made = {}
    for name, x in module.state_dict().items():
        fan = x[0].numel() if x.ndim > 1 else 100
        made[name] = torch.from_numpy(draw.uniform(-1, 1, tuple(x.shape)).astype(np.float32) * (3 / fan) ** 0.5)
    return made
"""
SB3 = """
from stable_baselines3 import DQN
agent = DQN(
    "CnnPolicy", Images(), seed=SEED, batch_size=32, learning_starts=100, train_freq=1, buffer_size=1_000,
    target_update_interval=250, exploration_fraction=1e-6, learning_rate=1e-3, max_grad_norm=1e9,
)
if NAME == "images":
    learn = lambda n: agent.learn(n, reset_num_timesteps=False)
    timed(learn, lambda: flat(p.detach() for p in agent.q_net.parameters()), lambda: agent._n_updates)
else:
    agent.q_net.load_state_dict(WEIGHTS(agent.q_net))
    if CONTENDER == "sb3":
        acting(lambda image: agent.predict(image, deterministic=True)[0])
    else:
        with torch.inference_mode():
            bare = torch.nn.Sequential(*agent.q_net.features_extractor.children(), agent.q_net.q_net)
            acting(lambda image: bare(torch.from_numpy(image)[None].float() / 255).argmax())
"""
TIANSHOU = """
from functools import partial
from tianshou.algorithm import RainbowDQN
from tianshou.algorithm.algorithm_base import policy_within_training_step
from tianshou.algorithm.modelfree.c51 import C51Policy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, PrioritizedVectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import NoisyLinear
from tianshou.utils.torch_utils import torch_train_mode
np.random.seed(SEED); torch.manual_seed(SEED)
envs = DummyVectorEnv([lambda: gym.make("CartPole-v1")]); envs.seed(SEED)
noisy = {"linear_layer": NoisyLinear}
net = Net(
    state_shape=(4,), action_shape=(2,), hidden_sizes=[64], softmax=True, num_atoms=51,
    dueling_param=({"hidden_sizes": [64], **noisy}, {"hidden_sizes": [64], **noisy}), **noisy,
)
policy = C51Policy(model=net, action_space=envs.action_space[0], v_min=-100, v_max=100)
algorithm = RainbowDQN(
    policy=policy, optim=AdamOptimizerFactory(lr=1e-3), gamma=0.99, n_step_return_horizon=3, target_update_freq=250
)
buffer = PrioritizedVectorReplayBuffer(20_000, buffer_num=1, alpha=0.6, beta=0.4)
collector = Collector(algorithm, envs, buffer, exploration_noise=True)
collector.reset()
made = 0
def learn(n):
    global made
    with policy_within_training_step(policy), torch_train_mode(algorithm):
        for _ in range(n):
            collector.collect(n_step=1)
            if len(buffer) > 500:
                algorithm.update(buffer=buffer, sample_size=64)
                made += 1
trained = [p for p in net.parameters() if p.requires_grad]
timed(learn, lambda: flat(p.detach() for p in trained), lambda: made)
"""
CODE = {"fastrl": FASTRL, "sb3": SB3, "torch": SB3, "tianshou": TIANSHOU}


def measure(name: str, tianshou: str, rounds: int, threads: int) -> dict[str, Any]:
    task, same = TASKS[name], []

    def run(contender: str, seed: int) -> Any:
        python = tianshou if contender == "tianshou" else sys.executable
        values = {"NAME": name, "CONTENDER": contender, "THREADS": threads, "SEED": seed, "WARM": task.warm}
        values |= {"STEPS": task.steps, "UPDATES": task.updates}
        found = fresh_run(python, COMMON + WEIGHTS + CODE[contender], threads, **values)
        same.append(found.pop("same"))
        return found

    results = interleaved_speeds({c: functools.partial(run, c) for c in task.contenders}, rounds)
    assert all(x == same[0] for x in same), f"{name}: not the same parameters or actions: {same}"
    return {"task": name, **task._asdict(), "results": results}


def main() -> None:
    parser = runs_parser(__doc__, TASKS)
    parser.add_argument("--tianshou", metavar="PY", help="an interpreter with tianshou")
    args = parser.parse_args()
    if "rainbow" in args.tasks and args.tianshou is None:
        parser.error("--tianshou must name an interpreter for the task rainbow")
    installed = {name: (sys.executable, name) for name in ("numpy", "torch", "stable-baselines3")}
    if args.tianshou:
        installed["tianshou"] = args.tianshou, "tianshou"
    records = (measure(name, args.tianshou, args.rounds, args.threads) for name in args.tasks)
    runs_report("dqn_family", args, records, lambda r: r["text"], installed)


if __name__ == "__main__":
    main()

"""fastrl in the whole-agent benchmark (family F): copy this file beside `fam_f_agents.py`.

The same hyperparameters, environment wrappers and steps as its CleanRL-style DQN.
"""

import sys

F = sys.modules.get("fam_f_agents")
if F is not None:
    from fastrl.agents import DQN

    def dqn(clk, every):
        agent = DQN(
            F.vec("CartPole-v1"),
            hidden=(120, 84),
            learning_rate=2.5e-4,
            learning_rate_end=2.5e-4,
            buffer_size=10_000,
            batch_size=128,
            learning_starts=200,
            train_every=every,
            updates=1,
            target_every=500 // every,
            tau=1.0,
            loss="mse",
            max_grad_norm=None,
            epsilon_start=0.1,
            epsilon_end=0.1,
            seed=1,
        )
        clk.env(agent.envs.vec)
        clk.torch_opt()
        clk.wrap(agent.buffer, "add", "buf")
        clk.wrap(agent.buffer, "sample", "buf")
        clk.wrap(agent, "_update", "fwd")
        clk.wrap(agent, "_act", "act")
        agent.learn(10**9, progress=False)

    for _every in (10, 1):
        F.agent(f"DQN-f{_every}", "fastrl")(lambda clk, every=_every: dqn(clk, every))

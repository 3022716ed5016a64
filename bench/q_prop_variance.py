"""Variance of Q-Prop's policy gradient with and without its control variate, of the same rollouts on Pendulum-v1.

    python bench/q_prop_variance.py [--rollouts 60]

After so many steps of training the policy stands still for some rollouts; the variance is that of their gradients,
summed over the parameters, and the ratio is with by without.  Advantages are not normalised here, for both.
"""

import argparse
import os

os.environ["FASTRL_NUM_THREADS"] = "1"  # before _harness sets the threads of everything from it

import numpy as np
from _harness import processor
from learning import TRPO_PENDULUM

from fastrl.agents import QProp

STEPS = 10_000, 30_000, 60_000


def gradient(agent: QProp, obs, action, advantage, drift) -> np.ndarray:
    """That of L at the old policy, as `TRPO._improve_policy` has it."""
    policy, out = agent.policy, agent.policy.output(obs, cached=True)
    _, _, d_out, d_log_std = policy.policy_gradient(out, action, advantage)
    policy.backward(d_out if drift is None else d_out - drift / len(out), None, d_log_std)
    return -policy.grad[: policy.n_policy].astype(np.float64)


def variances(agent: QProp, rollouts: int) -> tuple[float, float]:
    c, r, found = agent.config, agent.rollout, []
    for _ in range(rollouts):
        r.collect(agent.generator)
        advantages, returns, _ = r.advantages(c.gamma, c.gae_lambda, agent.scale_rewards)
        obs, action, _, advantage, _ = r.batch(advantages, returns)
        centred = advantage - advantage.mean()
        signals = (centred, None), agent._signal(obs, action, advantage)
        found.append([gradient(agent, obs, action, *signal) for signal in signals])
    without, with_ = np.array(found).var(0, ddof=1).sum(1)
    return without, with_


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=60)
    rollouts = parser.parse_args().rollouts
    print(f"{processor()}\n\n| control | steps | seed | without | with | ratio |\n" + "|---" * 6 + "|")
    for control in ("conservative", "aggressive"):
        for seed in (0, 1):
            settings = {**TRPO_PENDULUM, "normalize_advantages": False, "control": control}
            agent = QProp("Pendulum-v1", seed=seed, **settings)
            for steps in STEPS:
                agent.learn(steps, schedule_steps=100_000, progress=False)
                without, with_ = variances(agent, rollouts)
                print(f"| {control} | {steps:,} | {seed} | {without:.3g} | {with_:.3g} | {with_ / without:.2f} |")


if __name__ == "__main__":
    main()

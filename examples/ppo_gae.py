"""`fastrl.gae` inside a PPO script in one file, the usual way to write one: it replaces the loop over the rollout.

Needs torch and gymnasium.  Run: python examples/ppo_gae.py --env-id CartPole-v1 --total-steps 100000
"""

import argparse

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import fastrl


class Agent(nn.Module):
    def __init__(self, n_obs: int, n_actions: int) -> None:
        super().__init__()
        self.actor = nn.Sequential(
            nn.Linear(n_obs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n_actions)
        )
        self.critic = nn.Sequential(nn.Linear(n_obs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        return self.critic(obs).squeeze(-1)


def main() -> float:
    """Train, and return the mean return of the last 20 episodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--total-steps", type=int, default=100_000)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--n-steps", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    # SAME_STEP: where an episode ends, the step returns the next one's first observation, and the last in `info`.
    envs = gym.vector.SyncVectorEnv(
        [lambda: gym.make(args.env_id) for _ in range(args.num_envs)],
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    agent = Agent(int(np.prod(envs.single_observation_space.shape)), int(envs.single_action_space.n))
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3, eps=1e-5)

    T, N = args.n_steps, args.num_envs
    obs = torch.zeros(T, N, *envs.single_observation_space.shape)
    next_obs = torch.zeros_like(obs)  # the observation that a step really reached
    actions = torch.zeros(T, N, dtype=torch.int64)
    log_probs, rewards = torch.zeros(T, N), torch.zeros(T, N)
    terminated, truncated = torch.zeros(T, N, dtype=torch.bool), torch.zeros(T, N, dtype=torch.bool)

    episode_returns, running = [], np.zeros(N)
    current, _ = envs.reset(seed=args.seed)
    for update in range(max(1, args.total_steps // (T * N))):
        for t in range(T):
            obs[t] = torch.from_numpy(current)
            with torch.no_grad():
                policy = Categorical(logits=agent.actor(obs[t]))
                actions[t] = policy.sample()
                log_probs[t] = policy.log_prob(actions[t])
            current, reward, ends, cuts, info = envs.step(actions[t].numpy())
            reached = current.copy()
            for i in np.flatnonzero(ends | cuts):
                reached[i] = info["final_obs"][i]
            next_obs[t] = torch.from_numpy(reached)
            rewards[t], terminated[t], truncated[t] = map(torch.from_numpy, (reward.astype(np.float32), ends, cuts))
            running += reward
            episode_returns += running[ends | cuts].tolist()
            running[ends | cuts] = 0

        # What was a loop backwards over t. A time limit bootstraps from the value of the observation reached, an end
        # does not.
        with torch.no_grad():
            values, next_values = agent.value(obs), agent.value(next_obs)
        advantages, returns = fastrl.gae(rewards, values, next_values, terminated, truncated, gamma=0.98, lam=0.8)

        flat = [x.flatten(0, 1) for x in (obs, actions, log_probs, advantages, returns)]
        for _ in range(args.epochs):
            for rows in torch.randperm(T * N).split(args.batch_size):
                o, a, old_log_prob, advantage, target = (x[rows] for x in flat)
                policy = Categorical(logits=agent.actor(o))
                ratio = (policy.log_prob(a) - old_log_prob).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy_loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
                value_loss = 0.5 * (agent.value(o) - target).square().mean()
                optimizer.zero_grad()
                (policy_loss + 0.5 * value_loss).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        if update % 10 == 0 and episode_returns:
            print(f"step {(update + 1) * T * N}: mean return of the last episodes {np.mean(episode_returns[-20:]):.1f}")
    envs.close()
    result = float(np.mean(episode_returns[-20:])) if episode_returns else float("nan")
    print(f"mean return of the last 20 of {len(episode_returns)} episodes: {result:.1f}")
    return result


if __name__ == "__main__":
    main()

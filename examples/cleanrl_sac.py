"""SAC in one file, in CleanRL's style, with replay, networks, losses and Adam of fastrl: no autograd, no PyTorch.

Needs gymnasium.  Run: python examples/cleanrl_sac.py --env-id Pendulum-v1 --total-timesteps 20000
"""

import argparse
import copy
import time

import gymnasium as gym
import numpy as np

import fastrl

LIMITS = {"log_std_min": -5.0, "log_std_max": 2.0}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env-id", default="Pendulum-v1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-timesteps", type=int, default=1_000_000)
    parser.add_argument("--buffer-size", type=int, default=1_000_000)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--tau", type=float, default=0.005)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-starts", type=int, default=5_000)
    parser.add_argument("--policy-lr", type=float, default=3e-4)
    parser.add_argument("--q-lr", type=float, default=1e-3)
    return parser.parse_args()


class Agent:
    """The policy, two critics side by side, their targets and the temperature, with one update of all of them."""

    def __init__(self, n_obs: int, n_actions: int, args: argparse.Namespace) -> None:
        self.n, self.args, self.generator = n_actions, args, fastrl.Generator(args.seed)
        self.actor = fastrl.MLP((n_obs, 256, 256, 2 * n_actions), seed=args.seed)
        self.critics = fastrl.MLP((n_obs + n_actions, 256, 256, 1), n=2, seed=args.seed + 1)
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha, self.d_log_alpha = np.zeros((2, 1), np.float32)
        self.q_optimizer = fastrl.FlatAdam(self.critics.vector, self.critics.grad, lr=args.q_lr)
        self.actor_optimizer = fastrl.FlatAdam(self.actor.vector, self.actor.grad, lr=args.policy_lr)
        self.alpha_optimizer = fastrl.FlatAdam(self.log_alpha, self.d_log_alpha, lr=args.q_lr)

    def act(self, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions in [-1, 1] and their log-probabilities."""
        out = self.actor(obs)
        return fastrl.tanh_normal_sample(out[:, : self.n], out[:, self.n :], generator=self.generator, **LIMITS)

    def update(self, b) -> float:
        alpha, n, B = float(np.exp(self.log_alpha[0])), self.n, len(b.reward)
        # Critics: towards r + gamma (1 - terminated) [min_k Q_target,k(s', a') - alpha log pi(a'|s')].
        next_action, next_log_prob = self.act(b.next_obs)
        next_q = self.targets((b.next_obs, next_action))
        y = fastrl.min_q_targets(next_q, b.reward, b.discount, next_log_prob=next_log_prob, temperature=alpha)
        q = fastrl.q_regression_loss(self.critics.forward_cached((b.obs, b.action)), y)
        self.critics.backward(q.d_q)
        self.q_optimizer.step(target=self.targets.vector, tau=self.args.tau)

        # Actor: down alpha log pi(a|s) - min_k Q_k(s, a), through the action that it drew.
        out = self.actor.forward_cached(b.obs)
        action, log_prob, pullback = fastrl.tanh_normal_sample_pullback(
            out[:, :n], out[:, n:], generator=self.generator, **LIMITS
        )
        _, d_q = fastrl.min_q_loss(self.critics.forward_cached((b.obs, action)))
        d_action = self.critics.backward(d_q, parameters=False, inputs=slice(-n, None))
        d_out = pullback(d_action, np.full(B, alpha / B, np.float32))
        self.actor.backward(np.concatenate(d_out, 1))
        self.actor_optimizer.step()

        # Temperature: up while the entropy is below its target, -(number of actions).
        self.d_log_alpha[0] = -log_prob.mean() + n
        self.alpha_optimizer.step()
        return float(q.loss)


def main() -> None:
    args = parse_args()
    rng = np.random.default_rng(args.seed)
    env = gym.make(args.env_id)
    low, high = env.action_space.low, env.action_space.high
    n_obs, n_actions = int(np.prod(env.observation_space.shape)), int(np.prod(env.action_space.shape))
    agent = Agent(n_obs, n_actions, args)
    spaces = ((n_obs,), np.float32), ((n_actions,), np.float32)
    rb = fastrl.ReplayBuffer(args.buffer_size, *spaces, gamma=args.gamma, seed=args.seed)

    episodes, running, loss, start = [], 0.0, None, time.time()
    obs = np.asarray(env.reset(seed=args.seed)[0], np.float32).reshape(n_obs)
    for global_step in range(args.total_timesteps):
        if global_step < args.learning_starts:
            action = rng.uniform(-1, 1, n_actions).astype(np.float32)
        else:
            action = agent.act(obs[None])[0][0]
        scaled = low + (action.reshape(low.shape) + 1) / 2 * (high - low)
        next_obs, reward, terminated, truncated, _ = env.step(np.clip(scaled, low, high))
        next_obs = np.asarray(next_obs, np.float32).reshape(n_obs)
        rb.add(obs, action, reward, next_obs, terminated=terminated, truncated=truncated)
        obs, running = next_obs, running + float(reward)
        if terminated or truncated:
            episodes.append(running)
            obs, running = np.asarray(env.reset()[0], np.float32).reshape(n_obs), 0.0

        if global_step >= args.learning_starts:
            loss = agent.update(rb.sample(args.batch_size))
        if global_step % 1_000 == 0 and episodes and loss is not None:
            speed = global_step / (time.time() - start)
            print(f"step {global_step}: return {np.mean(episodes[-10:]):.1f}, loss {loss:.3f}, {speed:.0f} steps/s")
    env.close()
    print(f"mean return of the last 10 of {len(episodes)} episodes: {np.mean(episodes[-10:]):.1f}, loss {loss}")


if __name__ == "__main__":
    main()

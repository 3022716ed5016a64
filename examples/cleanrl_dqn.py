"""DQN in one file, in CleanRL's style, with replay, networks, loss and Adam of fastrl: no autograd, no PyTorch.

Needs gymnasium.  Run: python examples/cleanrl_dqn.py --env-id CartPole-v1 --total-timesteps 100000
"""

import argparse
import copy
import time

import gymnasium as gym
import numpy as np

import fastrl


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-timesteps", type=int, default=500_000)
    parser.add_argument("--learning-rate", type=float, default=2.5e-4)
    parser.add_argument("--buffer-size", type=int, default=10_000)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--tau", type=float, default=1.0)
    parser.add_argument("--target-network-frequency", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--start-e", type=float, default=1.0)
    parser.add_argument("--end-e", type=float, default=0.05)
    parser.add_argument("--exploration-fraction", type=float, default=0.5)
    parser.add_argument("--learning-starts", type=int, default=10_000)
    parser.add_argument("--train-frequency", type=int, default=10)
    return parser.parse_args()


def linear_schedule(start_e: float, end_e: float, duration: float, t: int) -> float:
    return max(start_e + (end_e - start_e) * t / duration, end_e)


def main() -> None:
    args = parse_args()
    rng = np.random.default_rng(args.seed)
    env = gym.make(args.env_id)
    n_obs, n_actions = int(np.prod(env.observation_space.shape)), int(env.action_space.n)
    q_network = fastrl.MLP((n_obs, 120, 84, n_actions), seed=args.seed)
    target_network = copy.deepcopy(q_network)
    optimizer = fastrl.FlatAdam(q_network.vector, q_network.grad, lr=args.learning_rate)
    rb = fastrl.ReplayBuffer(
        args.buffer_size, ((n_obs,), np.float32), env.action_space, gamma=args.gamma, seed=args.seed
    )

    episodes, running, loss, start = [], 0.0, None, time.time()
    obs = np.asarray(env.reset(seed=args.seed)[0], np.float32).reshape(n_obs)
    for global_step in range(args.total_timesteps):
        duration = args.exploration_fraction * args.total_timesteps
        if rng.random() < linear_schedule(args.start_e, args.end_e, duration, global_step):
            action = int(rng.integers(n_actions))
        else:
            action = int(q_network(obs[None])[0].argmax())
        next_obs, reward, terminated, truncated, _ = env.step(action)
        next_obs = np.asarray(next_obs, np.float32).reshape(n_obs)
        rb.add(obs, action, reward, next_obs, terminated=terminated, truncated=truncated)
        obs, running = next_obs, running + float(reward)
        if terminated or truncated:
            episodes.append(running)
            obs, running = np.asarray(env.reset()[0], np.float32).reshape(n_obs), 0.0

        if global_step >= args.learning_starts and global_step % args.train_frequency == 0:
            b = rb.sample(args.batch_size)  # b.discount is gamma, and 0 where an episode terminated
            next_q = target_network(b.next_obs)
            td = fastrl.q_learning_loss(q_network.forward_cached(b.obs), b.action, b.reward, b.discount, next_q)
            q_network.backward(td.d_q)
            due = global_step % args.target_network_frequency == 0
            optimizer.step(target=target_network.vector if due else None, tau=args.tau)
            loss = td.loss
        if global_step % 10_000 == 0 and episodes and loss is not None:
            speed = global_step / (time.time() - start)
            print(f"step {global_step}: return {np.mean(episodes[-20:]):.1f}, loss {loss:.3f}, {speed:.0f} steps/s")
    env.close()
    print(f"mean return of the last 20 of {len(episodes)} episodes: {np.mean(episodes[-20:]):.1f}, loss {loss}")


if __name__ == "__main__":
    main()

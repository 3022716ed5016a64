"""PPO in one file, in CleanRL's style, with networks, advantages, losses and Adam of fastrl: no autograd, no PyTorch.

Needs gymnasium.  Run: python examples/cleanrl_ppo.py --env-id CartPole-v1 --total-timesteps 100000
"""

import argparse
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
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--num-minibatches", type=int, default=4)
    parser.add_argument("--update-epochs", type=int, default=4)
    parser.add_argument("--clip-coef", type=float, default=0.2)
    parser.add_argument("--ent-coef", type=float, default=0.01)
    parser.add_argument("--vf-coef", type=float, default=0.5)
    parser.add_argument("--max-grad-norm", type=float, default=0.5)
    return parser.parse_args()


class Agent:
    """Actor and critic, whose parameters lie in one vector, so that one optimizer clips and steps both."""

    def __init__(self, n_obs: int, n_actions: int, seed: int) -> None:
        shapes = (n_obs, 64, 64, n_actions), (n_obs, 64, 64, 1)
        sizes = [fastrl.MLP.num_parameters(shape) for shape in shapes]
        self.vector, self.grad = np.zeros((2, sum(sizes)), np.float32)
        parts = slice(0, sizes[0]), slice(sizes[0], None)
        self.actor, self.critic = (
            fastrl.MLP(shape, "tanh", vector=self.vector[part], grad=self.grad[part], seed=seed + k)
            for k, (shape, part) in enumerate(zip(shapes, parts, strict=True))
        )


def main() -> None:
    args = parse_args()
    rng, generator = np.random.default_rng(args.seed), fastrl.Generator(args.seed)
    # SAME_STEP: where an episode ends, the step returns the next one's first observation, and the last in `info`.
    envs = gym.vector.SyncVectorEnv(
        [lambda: gym.make(args.env_id) for _ in range(args.num_envs)],
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    n_obs = int(np.prod(envs.single_observation_space.shape))
    agent = Agent(n_obs, int(envs.single_action_space.n), args.seed)
    optimizer = fastrl.FlatAdam(agent.vector, agent.grad, eps=1e-5)

    T, N = args.num_steps, args.num_envs
    obs, next_obs = np.zeros((2, T, N, n_obs), np.float32)
    actions = np.zeros((T, N), np.int64)
    logprobs, rewards = np.zeros((2, T, N), np.float32)
    terminated, truncated = np.zeros((2, T, N), bool)

    episodes, running, start = [], np.zeros(N), time.time()
    current, _ = envs.reset(seed=args.seed)
    num_iterations = max(1, args.total_timesteps // (T * N))
    for iteration in range(num_iterations):
        for step in range(T):
            obs[step] = current.reshape(N, n_obs)
            actions[step], logprobs[step] = fastrl.categorical_sample(agent.actor(obs[step]), generator=generator)
            current, rewards[step], terminated[step], truncated[step], info = envs.step(actions[step])
            next_obs[step] = current.reshape(N, n_obs)
            ended = terminated[step] | truncated[step]
            for i in np.flatnonzero(ended):  # the observation that was really reached
                next_obs[step, i] = info["final_obs"][i].reshape(-1)
            running += rewards[step]
            episodes += running[ended].tolist()
            running[ended] = 0

        # A time limit bootstraps from the observation reached, the end of an episode does not.
        values, next_values = (agent.critic(x.reshape(T * N, n_obs)).reshape(T, N) for x in (obs, next_obs))
        advantages, returns = fastrl.gae(
            rewards, values, next_values, terminated, truncated, gamma=args.gamma, lam=args.gae_lambda
        )

        data = [x.reshape(T * N, *x.shape[2:]) for x in (obs, actions, logprobs, advantages, returns, values)]
        lr = args.learning_rate * (1 - iteration / num_iterations)
        for _ in range(args.update_epochs):
            for rows in np.array_split(rng.permutation(T * N), args.num_minibatches):
                b_obs, b_actions, b_logprobs, b_advantages, b_returns, b_values = (x[rows] for x in data)
                pi = fastrl.ppo_categorical_loss(
                    agent.actor.forward_cached(b_obs), b_actions, b_logprobs, b_advantages,
                    clip_range=args.clip_coef, entropy_coef=args.ent_coef, normalize_advantages=True,
                )  # fmt: skip
                v_loss, d_value = fastrl.value_loss(
                    agent.critic.forward_cached(b_obs), b_returns,
                    old_values=b_values, clip_range=args.clip_coef, coef=args.vf_coef,
                )  # fmt: skip
                agent.actor.backward(pi.d_out)  # each writes its part of agent.grad
                agent.critic.backward(d_value)
                optimizer.step(lr=lr, max_grad_norm=args.max_grad_norm)

        if iteration % 10 == 0 and episodes:
            steps = (iteration + 1) * T * N
            speed = steps / (time.time() - start)
            losses = f"policy {pi.policy_loss:.3f}, value {v_loss:.3f}"
            print(f"step {steps}: return {np.mean(episodes[-20:]):.1f}, losses: {losses}, {speed:.0f} steps/s")
    envs.close()
    print(f"mean return of the last 20 of {len(episodes)} episodes: {np.mean(episodes[-20:]):.1f}")


if __name__ == "__main__":
    main()

"""Deep Q-network (Mnih et al. 2015, doi:10.1038/nature14236) with four switches, in any combination:

double       van Hasselt et al. 2016, arXiv:1509.06461
dueling      Wang et al. 2016, arXiv:1511.06581
prioritized  Schaul et al. 2016, arXiv:1511.05952
n_step       Sutton and Barto 2018, section 7.1; Hessel et al. 2018 (Rainbow), arXiv:1710.02298
"""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from fastrl.agents.checkpoint import load_checkpoint, load_optimizer_tensors, optimizer_tensors, save_checkpoint
from fastrl.agents.config import InputError, check_range, make_config, resolve_device
from fastrl.agents.envs import Envs, make_env
from fastrl.agents.networks import flatten_parameters, numpy_forward, q_network
from fastrl.agents.training import Training, check_loss, evaluate
from fastrl.replay import PrioritizedReplay, ReplayBuffer

INF = float("inf")


@dataclass(frozen=True)
class DQNConfig:
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [M] Mnih et al. 2015, [S] Schaul et al. 2016, [Z] rl-baselines3-zoo's tuned settings for CartPole-v1,
    # [T] tuned here on CartPole-v1; `bench/learning.py` shows what they reach.
    # The string under a setting is its help on the command line.
    double: bool = False
    """The online network chooses the next action, the target network values it."""
    dueling: bool = False
    """State value and advantages in separate streams."""
    prioritized: bool = False
    """Replay in proportion to |TD error|^alpha, corrected by importance weights."""
    n_step: int = 1
    """Rewards summed before the bootstrap; fewer at the end of an episode."""
    num_envs: int = 1
    """Environments stepped together."""
    hidden: tuple[int, ...] = (64, 64)  # [T]
    """Sizes of the hidden layers."""
    learning_rate: float = 1e-3  # [T]
    """Of Adam, at the start."""
    learning_rate_end: float = 1e-5  # [T] a policy learned at a constant rate is lost again now and then
    """Of Adam, from learning_rate_steps on."""
    learning_rate_steps: int = 50_000  # [T]
    """Environment steps over which the learning rate falls linearly: as many as there will be, as a rule."""
    reward_scale: float = 0.02  # [T] Q of CartPole-v1 and Acrobot-v1 is then in [-2, 2]
    """The network learns Q of the rewards times this, and so numbers that its initial weights are fit for."""
    gamma: float = 0.99  # [M] [Z]
    """Discount."""
    buffer_size: int = 100_000  # [Z]
    """Transitions kept for replay."""
    batch_size: int = 64  # [Z]
    """Transitions in an update."""
    learning_starts: int = 1000  # [Z]
    """Environment steps before the first update."""
    train_every: int = 1  # [T]
    """Environment steps from one round of updates to the next."""
    updates: int = 1
    """Updates in a round."""
    target_every: int = 1
    """Updates from one update of the target network to the next."""
    tau: float = 0.005  # [T] steadier with `double` than 0.01
    """Target <- tau online + (1 - tau) target: 1 copies, less is Polyak averaging."""
    loss: Literal["huber", "mse"] = "mse"  # [T] Huber's bounded gradient is slow to learn that an episode ends
    """Of the TD error."""
    max_grad_norm: float | None = 1.0  # [T]
    """Gradients are scaled down to this norm; None leaves them alone."""
    exploration: Literal["epsilon-greedy", "boltzmann"] = "epsilon-greedy"  # [M]
    """How actions are chosen in training."""
    epsilon_start: float = 1.0  # [M]
    """Probability of a random action at the start."""
    epsilon_end: float = 0.1  # [M] the replay keeps states that the policy itself would leave out
    """Probability of a random action from epsilon_steps on."""
    epsilon_steps: int = 8000  # [Z]
    """Environment steps over which epsilon falls linearly."""
    temperature: float = 1.0
    """Of Boltzmann exploration: the probability of an action is proportional to exp(Q / temperature), in rewards."""
    per_alpha: float = 0.6  # [S]
    """Exponent of the priorities: 0 is uniform replay."""
    per_beta: float = 0.4  # [S]
    """Exponent of the importance weights at the start."""
    per_beta_end: float = 1.0  # [S]
    """Exponent of the importance weights from per_beta_steps on."""
    per_beta_steps: int = 50_000  # [S] the end of training
    """Environment steps over which beta rises linearly."""
    per_eps: float = 1e-6
    """Added to |TD error|, so that no priority is 0."""
    seed: int = 0
    """Of everything random: environments, initial weights, exploration, replay."""
    device: str = "cpu"
    """cpu, cuda or auto; small networks are faster on the CPU."""

    def __post_init__(self) -> None:
        check_range(self, 1, 2**16, "num_envs", "hidden")
        check_range(self, 1, 10**9, "buffer_size", "batch_size")
        check_range(self, 1, INF, "n_step", "train_every", "updates")
        check_range(self, 1, INF, "target_every", "learning_rate_steps", "epsilon_steps", "per_beta_steps")
        check_range(self, 0, INF, "learning_starts", "learning_rate_end", "per_alpha", "per_beta", "per_beta_end")
        check_range(self, 0, 2**63 - 1, "seed")
        check_range(self, 0, 1, "gamma", "epsilon_start", "epsilon_end")
        check_range(self, 1e-12, INF, "learning_rate", "max_grad_norm", "temperature", "per_eps", "reward_scale")
        check_range(self, 1e-12, 1, "tau")
        if not self.hidden:
            raise InputError("DQNConfig: hidden must name at least one layer, got ()")


class DQN:
    """An agent for environments with discrete actions and Box observations (which an MLP sees flattened).

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `DQNConfig`.  Raises InputError for anything that cannot work.

    >>> agent = DQN("CartPole-v1", seed=0, prioritized=True).learn(50_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "dqn"
    config_class = DQNConfig

    def __init__(
        self,
        env: str | gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
        config: DQNConfig | None = None,
        **overrides: Any,
    ) -> None:
        c = make_config(DQNConfig, {**(asdict(config) if config else {}), **overrides}, "DQN")
        self.device = resolve_device(c.device)
        self.envs = Envs(env, c.num_envs, c.seed)
        self.config = c = replace(c, num_envs=self.envs.num_envs)
        observation_space, action_space = self.envs.observation_space, self.envs.action_space
        name = self.envs.env_id or "this environment"
        if not isinstance(action_space, gym.spaces.Discrete) or action_space.start != 0:
            raise InputError(f"DQN needs discrete actions 0, 1, ...; {name} has action space {action_space}")
        if not isinstance(observation_space, gym.spaces.Box):
            raise InputError(f"DQN needs Box observations; {name} has observation space {observation_space}")
        self.n_actions = int(action_space.n)
        n_obs = int(np.prod(observation_space.shape))

        with torch.random.fork_rng(devices=[]):  # the layers draw from torch's global generator: leave it as it was
            torch.default_generator.manual_seed(c.seed)
            self.online = q_network(n_obs, self.n_actions, c.hidden, c.dueling).to(self.device)
        self.target = copy.deepcopy(self.online)
        self._online_vector, self._gradient = flatten_parameters(self.online)
        self._target_vector, _ = flatten_parameters(self.target)
        self.optimizer = torch.optim.Adam([self._online_vector], lr=c.learning_rate, fused=True)
        self._numpy_q = numpy_forward(self.online) if self.device.type == "cpu" else None

        space = (c.buffer_size, observation_space, action_space, c.num_envs)
        common: dict[str, Any] = {"n_step": c.n_step, "gamma": c.gamma, "device": self.device, "seed": c.seed}
        self.buffer: ReplayBuffer = (
            PrioritizedReplay(
                *space,
                **common,
                alpha=c.per_alpha,
                beta=c.per_beta,
                beta_end=c.per_beta_end,
                beta_steps=c.per_beta_steps,
                eps=c.per_eps,
            )
            if c.prioritized
            else ReplayBuffer(*space, **common)
        )
        self.rng = np.random.default_rng(c.seed)  # exploration
        self._predict_rng = np.random.default_rng(c.seed)
        self.steps = 0  # of the environments, all together
        self.n_updates = 0
        self.total_steps = 0  # that the last `learn` was asked for
        self.run_folder: Path | None = None  # of the run that this agent goes on with
        self._loss = self._mean_q = torch.zeros(())

    @property
    def epsilon(self) -> float:
        """The probability of a random action now: linear from epsilon_start to epsilon_end."""
        return self._linear(self.config.epsilon_start, self.config.epsilon_end, self.config.epsilon_steps)

    @property
    def learning_rate(self) -> float:
        """The optimizer's learning rate now: linear from learning_rate to learning_rate_end."""
        c = self.config
        return self._linear(c.learning_rate, c.learning_rate_end, c.learning_rate_steps)

    def _linear(self, start: float, end: float, steps: int) -> float:
        return start + (end - start) * min(1.0, self.steps / steps)

    def learn(
        self,
        total_steps: int,
        *,
        folder: str | os.PathLike[str] | None = None,
        save_every: int | None = None,
        progress: bool = True,
    ) -> DQN:
        """Train until `total_steps` environment steps have been taken since the agent was made.

        Training on after a save and a load does what training without a break would have done: ``learn(15_000)`` is
        ``learn(10_000)`` and ``learn(15_000)``.  Logs and checkpoints go to `folder`, see `Training`.
        """
        c = self.config
        self.total_steps = total_steps
        with Training(self, total_steps, folder, progress=progress, save_every=save_every) as run:
            while not run.done():
                obs = self.envs.obs
                action = self._act(obs, self.rng)
                t = self.envs.step(action)
                self.buffer.add(obs, action, t.reward, t.next_obs, t.terminated, t.truncated, t.mask)
                before, self.steps = self.steps, self.steps + c.num_envs
                if self.steps > c.learning_starts and self.steps // c.train_every > before // c.train_every:
                    self.optimizer.param_groups[0]["lr"] = self.learning_rate
                    for _ in range(c.updates):
                        self._update()
        return self

    def _update(self) -> None:
        """One gradient step on L = mean_i w_i l(Q(s_i, a_i) - y_i), and the target network's turn when it is due.

        y = reward_scale sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) Q_target(s', a'), where s' is m <= n_step
        steps on, at the end of the episode at most, and a' the best action of the target network, or with `double` of
        the online network.  Truncation does not stop the bootstrap.  With `prioritized` |Q - y| is the new priority.
        """
        c = self.config
        batch = self.buffer.sample(c.batch_size)
        obs, next_obs = batch.obs.float(), batch.next_obs.float()
        with torch.no_grad():
            next_q = self.target(next_obs)
            if c.double:
                next_value = next_q.gather(1, self.online(next_obs).argmax(1, keepdim=True)).squeeze(1)
            else:
                next_value = next_q.amax(1)
            y = c.reward_scale * batch.reward + batch.discount * next_value
        q = self.online(obs).gather(1, batch.action.unsqueeze(1)).squeeze(1)
        loss = F.huber_loss if c.loss == "huber" else F.mse_loss
        if c.prioritized:
            mean_loss = (batch.weights * loss(q, y, reduction="none")).mean()
        else:
            mean_loss = loss(q, y)
        self._gradient.zero_()
        mean_loss.backward()
        if c.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._online_vector, c.max_grad_norm)
        self.optimizer.step()
        self.n_updates += 1
        self._loss, self._mean_q = mean_loss.detach(), q.detach().mean()
        if isinstance(self.buffer, PrioritizedReplay):
            check_loss(self._loss.item(), self.steps)  # no priority can be made of a NaN
            self.buffer.update_priorities(batch.indices, (q.detach() - y).abs())
        if self.n_updates % c.target_every == 0:
            self._target_vector.data.lerp_(self._online_vector.data, c.tau)  # tau = 1 copies exactly

    def _q_values(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        """Q(s, .) of the online network for observations ``[B, ...]``, as NumPy ``[B, A]``."""
        obs = np.asarray(obs, np.float32)
        if self._numpy_q is not None:
            return self._numpy_q(obs)
        with torch.inference_mode():
            q: Tensor = self.online(torch.from_numpy(obs).to(self.device))
            return q.cpu().numpy()

    def _act(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.int64]:
        """Actions ``[B]`` of the exploring policy for observations ``[B, ...]``."""
        c, n = self.config, len(obs)
        if c.exploration == "boltzmann":  # the largest of logits + Gumbel noise is a draw from their softmax
            logits = self._q_values(obs) / (c.reward_scale * c.temperature)
            action: NDArray[np.int64] = (logits + rng.gumbel(size=logits.shape)).argmax(1)
            return action
        random = rng.random(n) < self.epsilon
        if random.all():
            return rng.integers(self.n_actions, size=n)
        action = self._q_values(obs).argmax(1)
        if random.any():
            action[random] = rng.integers(self.n_actions, size=n)[random]
        return action

    def predict(self, obs: Any, deterministic: bool = True) -> Any:
        """The greedy action for one observation (an int) or actions for a batch ``[B, ...]`` (int64 ``[B]``).

        With ``deterministic=False`` it explores as in training now, from a generator of its own.
        Raises ValueError for an observation of another shape.
        """
        obs = np.asarray(obs)
        shape = self.envs.observation_space.shape
        if obs.shape != shape and obs.shape[1:] != shape:
            raise ValueError(f"predict: obs must have shape {shape} or (B, *{shape}), got {obs.shape}")
        batch = obs[None] if obs.shape == shape else obs
        actions = self._q_values(batch).argmax(1) if deterministic else self._act(batch, self._predict_rng)
        return int(actions[0]) if obs.shape == shape else actions

    def evaluate(
        self, episodes: int = 20, seed: int = 1_000_000, env: gym.Env[Any, Any] | None = None
    ) -> NDArray[np.float64]:
        """Returns ``[episodes]`` of the greedy policy in a fresh environment; training is not disturbed.

        Episode i begins with ``reset(seed + i)``.  `env` is needed if the agent's own cannot be made a second time.
        """
        if episodes < 1:
            raise InputError(f"episodes must be >= 1, got {episodes}")
        if seed < 0:
            raise InputError(f"seed must be >= 0, got {seed}")
        if env is not None:
            return evaluate(self.predict, env, episodes, seed)
        if self.envs.spec is None:
            raise InputError("evaluate: give it `env`, because the agent was made from an environment without a spec")
        own = make_env(self.envs.spec)
        try:
            return evaluate(self.predict, own, episodes, seed)
        finally:
            own.close()

    def metrics(self) -> dict[str, float]:
        """For the logs: of the last update the loss and the mean Q(s, a), in rewards; and the exploration now."""
        explore = {"epsilon": self.epsilon} if self.config.exploration == "epsilon-greedy" else {}
        mean_q = self._mean_q.item() / self.config.reward_scale
        return {"loss": self._loss.item(), "mean_q": mean_q, "updates": self.n_updates, **explore}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a checkpoint folder from which `load` goes on exactly; see `fastrl.agents.checkpoint`."""
        tensors = {
            **{f"online.{k}": v for k, v in self.online.state_dict().items()},
            **{f"target.{k}": v for k, v in self.target.state_dict().items()},
            **optimizer_tensors(self.optimizer),
            "obs": torch.from_numpy(self.envs.obs),
            "metrics": torch.stack((self._loss, self._mean_q)),
        }
        env = {"env": self.envs.env_id, "made_from_id": self.envs.made_from_id}
        config = {"algorithm": self.algorithm, **env, "config": asdict(self.config)}
        state = {
            "steps": self.steps,
            "total_steps": self.total_steps,
            "n_updates": self.n_updates,
            "rng": self.rng.bit_generator.state,
            "envs": self.envs.state_dict(),
        }
        save_checkpoint(folder, config, state, tensors, self.buffer.save)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        env: str | gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | None = None,
        device: str | None = None,
    ) -> DQN:
        """The agent of a checkpoint or run folder, ready to go on training.

        `env` is needed only if the agent was not made from an id.  `device`: another one than it was saved on.
        Raises InputError for a damaged checkpoint, or one of another environment.  If the environment cannot be
        brought back to where it was (it was given as an object, or it does not repeat itself), a warning says that
        new episodes begin.
        """
        checkpoint = load_checkpoint(folder)
        saved, state, tensors = checkpoint.config, checkpoint.state, checkpoint.tensors
        if saved.get("algorithm") != "dqn":
            raise InputError(f"checkpoint {checkpoint.folder} is of algorithm {saved.get('algorithm')!r}, not 'dqn'")
        if env is None and not saved["made_from_id"]:
            raise InputError(f"checkpoint {checkpoint.folder}: give `env`, because the agent was not made from an id")
        config = make_config(DQNConfig, saved["config"], f"checkpoint {checkpoint.folder}")
        agent = cls(env or saved["env"], config if device is None else replace(config, device=device))
        if agent.envs.env_id != saved["env"]:
            raise InputError(f"checkpoint {checkpoint.folder} is of {saved['env']}, not {agent.envs.env_id}")
        try:
            agent.online.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("online.")})
            agent.target.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("target.")})
            load_optimizer_tensors(agent.optimizer, tensors)
            agent.buffer.load(checkpoint.folder / "replay")
        except (RuntimeError, ValueError) as error:
            what = " ".join(str(error).split())
            raise InputError(f"checkpoint {checkpoint.folder} does not fit its config.json: {what}") from error
        agent.run_folder = checkpoint.folder.parent.resolve()
        agent._loss, agent._mean_q = tensors["metrics"]
        agent.rng.bit_generator.state = state["rng"]
        agent.steps, agent.total_steps, agent.n_updates = state["steps"], state["total_steps"], state["n_updates"]
        if not agent.envs.load_state_dict(state["envs"], tensors["obs"].numpy()):
            warnings.warn("the environment cannot be brought back to where it was: new episodes begin", stacklevel=2)
        return agent

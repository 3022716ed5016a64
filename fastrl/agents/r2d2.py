"""R2D2: Q-learning with a memory, from replayed sequences (Kapturowski et al. 2019, "Recurrent Experience Replay in
Distributed Reinforcement Learning"), with one process that acts and learns.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Env
from fastrl.agents.envs import Transition
from fastrl.agents.hyperparameters.recurrent import R2D2Config
from fastrl.agents.memory import Memory, check_network
from fastrl.agents.off_policy import OffPolicyAgent
from fastrl.kernels import FlatAdam, QLoss, n_step_returns, q_learning_loss
from fastrl.replay import SequenceBatch, SequenceReplay

Array = NDArray[Any]
EPS = 1e-3  # of h


def rescaled(x: Array) -> NDArray[np.float64]:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + EPS x (Pohlen et al. 2018, arXiv:1805.11593)."""
    x = np.asarray(x, np.float64)
    return np.sign(x) * (np.sqrt(abs(x) + 1) - 1) + EPS * x  # type: ignore[no-any-return]


def rescaled_back(x: Array) -> NDArray[np.float64]:
    """h^-1(x) = sign(x) (u^2 - 1) with u = (sqrt(1 + 4 EPS (|x| + 1 + EPS)) - 1) / (2 EPS)."""
    x = np.asarray(x, np.float64)
    u = 2 * (abs(x) + 1 + EPS) / (np.sqrt(1 + 4 * EPS * (abs(x) + 1 + EPS)) + 1)  # the same without a difference
    return np.sign(x) * (u * u - 1)  # type: ignore[no-any-return]


class R2D2(OffPolicyAgent[R2D2Config]):
    """R2D2 (Kapturowski et al. 2019): Q-learning with an LSTM or GRU, from prioritized sequences with stored states.

    mean w (Q(h_t, s_t, a_t) - y_t)^2 with y_t the n-step target of double DQN, whose steps are those of a sequence.
    h is unrolled from the state that was stored when the sequence was played, first over `burn_in` steps, into which no
    gradient goes.  p = eta max_t |delta_t| + (1 - eta) mean_t |delta_t| is a sequence's priority.

    For discrete actions.  The network is that of `fastrl.agents.recurrent_networks`, and sees observations flattened,
    discrete ones one-hot; the last action and reward are no part of them.  Needs PyTorch, and runs on the CPU.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `R2D2Config`.  Raises InputError for anything that cannot work.

    >>> agent = R2D2("fastrl/TMaze-v0", seed=0).learn(30_000)
    >>> memory = agent.memory()  # at the start of an episode
    >>> action = agent.predict(observation, memory=memory)
    """

    algorithm = "r2d2"
    config_class = R2D2Config
    continuous = False
    cpu_only = True
    _trained = {"online": "optimizer"}  # noqa: RUF012

    buffer: SequenceReplay

    def __init__(self, env: Env, config: R2D2Config | None = None, **overrides: Any) -> None:
        check_network("R2D2", overrides.get("network"))
        super().__init__(env, config, **overrides)
        from fastrl.agents.recurrent_networks import recurrent_network

        c, action_space = self.config, self.envs.action_space
        assert isinstance(action_space, gym.spaces.Discrete)
        self.n_actions, self._start = int(action_space.n), int(action_space.start)
        sizes: dict[str, Any] = {"n_in": self._n_obs, "n_out": self.n_actions, "memory_size": c.memory_size}
        self.online = recurrent_network(c.network, **sizes, hidden=c.hidden, dueling=c.dueling, seed=self._seeds[0])
        self.target = copy.deepcopy(self.online)
        self.greedy = copy.deepcopy(self.online) if c.averaging else self.online
        self.optimizer = FlatAdam(self.online.vector, self.online.grad, lr=c.learning_rate)
        self._memory = self.memory(c.num_envs)
        self._before = self._memory.state  # before the last observation
        self.buffer = self._replay(action_space)
        self._log = {"loss": 0.0, "mean_q": 0.0}

    def memory(self, n: int = 1) -> Memory:
        """What `predict` remembers of `n` episodes, as at their start."""
        return Memory(n, self.online.module.state_size)

    def _replay(self, action_space: Any) -> SequenceReplay:
        c = self.config
        beta = {} if c.per_beta_steps is None else {"beta_steps": c.per_beta_steps}
        return SequenceReplay(
            c.buffer_size, self.envs.observation_space, action_space, c.num_envs,
            length=c.length, burn_in=c.burn_in, state_space=((self.online.module.state_size,), np.float32),
            eta=c.eta, alpha=c.per_alpha, beta=c.per_beta, beta_end=c.per_beta_end, eps=c.per_eps, gamma=c.gamma,
            frame_stack=self.envs.frame_stack, seed=c.seed, **beta,
        )  # fmt: skip

    @property
    def epsilon(self) -> float:
        """The probability of a random action now: linear from epsilon_start to epsilon_end."""
        c = self.config
        return self._linear(c.epsilon_start, c.epsilon_end, c.epsilon_steps)

    def _update(self) -> None:
        """One gradient step on a batch's loss, and the target network's turn when it is due."""
        if len(self.buffer):  # a sequence is whole
            self._learn()

    def _learn(self) -> None:
        c, b = self.config, self._sample()
        q = self._loss(b)
        self.online.backward(q.d_q)
        self.n_updates += 1
        due = self.n_updates % c.target_every == 0
        self.optimizer.step(
            lr=self.learning_rate, max_grad_norm=c.max_grad_norm,
            target=self.target.vector if due else None, tau=c.tau,
            average=self.greedy.vector if c.averaging else None,
            average_weight=10 / (self.n_updates + 9),  # weight ~ (number of the update)^9
        )  # fmt: skip
        self._learned(b, q)

    def _loss(self, b: Any) -> QLoss:
        """The loss, its gradient `d_q` in the online network's outputs, and `td_errors` ``[B, length]``, 0 in padding.

        With k = burn_in, and t counted from the first step of a sequence, which ends before step L:

        L = mean_{i,t} w_i l(Q(h_t, s_t, a_t) - y_t),  k <= t < L,  where h_k is unrolled from the stored state
        y_t = h(sum_{j<m} gamma^j r_{t+j} + gamma^m (1 - terminated) h^-1(Q_target(s_{t+m}, a'))),  m = min(n, L - t)

        a' is the best action of the target network, or with `double` of the online network; h the identity, or
        `rescaled`.  Each network has states of its own.
        """
        c, k = self.config, self.config.burn_in
        obs = self._observations(b)  # [T + 1, B, n]
        following = self.target.unroll(obs, b.state)[0][k + 1 :]
        out = self.online.unroll_cached(obs, b.state, burn_in=k)  # [length + 1, B, n_actions]
        best = (out[1:] if c.double else following).argmax(2)
        values = np.take_along_axis(following, best[..., None], 2)[..., 0].astype(np.float64)
        action, reward, terminated, truncated, mask = (
            x.swapaxes(0, 1)[k:] for x in (b.action, b.reward, b.terminated, b.truncated, b.mask)
        )
        y, _, _ = n_step_returns(
            reward.astype(np.float64), rescaled_back(values) if c.rescaling else values, terminated, truncated,
            gamma=c.gamma, n=c.n_step, cut=~mask,
        )  # fmt: skip
        y = (rescaled(y) if c.rescaling else y)[mask].astype(np.float32)
        weights = np.broadcast_to(b.weights, mask.shape)[mask]
        q_t = out[:-1][mask]
        q = q_learning_loss(q_t, action[mask], y, np.zeros_like(y), q_t, weights=weights, loss=c.loss)  # y as it is
        d_out, errors = np.zeros_like(out), np.zeros(mask.shape, np.float32)
        d_out[:-1][mask], errors[mask] = q.d_q, q.td_errors
        return q._replace(d_q=d_out, td_errors=errors.T)

    def _observations(self, b: SequenceBatch) -> NDArray[np.float32]:
        """s_0, ..., s_L of each sequence, and then padding, as the networks take them: ``[T + 1, B, n]``."""
        x = np.concatenate((b.obs, b.next_obs[:, -1:]), 1)
        rows, lengths = np.arange(len(x)), b.mask.sum(1)
        x[rows, lengths] = b.next_obs[rows, lengths - 1]
        inputs: NDArray[np.float32] = self._inputs(x.swapaxes(0, 1).reshape(-1, *self._obs_shape))
        return inputs.reshape(x.shape[1], len(x), -1)

    def _sample(self) -> Any:
        return self.buffer.sample(self.config.batch_size)

    @staticmethod
    def _td_errors(q: QLoss) -> Any:
        return q.td_errors

    def _prioritize(self, batch: Any, errors: Any) -> None:
        self.buffer.update_priorities(batch.indices, errors, batch.mask[:, self.config.burn_in :])

    def _values(self, network: Any, obs: Array, memory: Memory) -> NDArray[np.float32]:
        """Q(h, s, .) ``[B, n_actions]`` for observations ``[B, ...]``, which `memory` then remembers."""
        x = self._inputs(np.asarray(obs, np.float32))
        out, memory.state = network.unroll(x[None], memory.state)
        return out[0]  # type: ignore[no-any-return]

    def _act(self, obs: Array, rng: np.random.Generator) -> NDArray[np.int64]:
        self._before = self._memory.state
        return self._explore(obs, rng, self._memory)

    def _explore(self, obs: Array, rng: np.random.Generator, memory: Memory) -> NDArray[np.int64]:
        greedy: NDArray[np.int64] = self._values(self.online, obs, memory).argmax(1)
        random = rng.random(len(obs)) < self.epsilon
        return np.where(random, rng.integers(self.n_actions, size=len(obs)), greedy)

    def _kept_besides(self) -> dict[str, Any]:
        return {"state": self._before}

    def _after_step(self, transition: Transition) -> None:
        c = self.config
        if 0 < self.total_steps <= self.steps + c.num_envs and not len(self.buffer):
            whole = f"a sequence is up to length = {c.length} steps after the first burn_in = {c.burn_in} of an episode"
            warnings.warn(f"nothing was learned in {self.total_steps} steps: {whole}, and none is whole", stacklevel=4)
        new = transition.terminated | transition.truncated
        if transition.mask is not None:  # the step was the reset
            new |= ~transition.mask
        if np.count_nonzero(new):
            self._memory.new_episodes(new)

    def _to_env(self, action: Array) -> Array:
        return action + self._start if self._start else action

    def _predict(self, obs: Array, deterministic: bool, memory: Any = None) -> Array:
        if not deterministic:
            return self._to_env(self._explore(obs, self._predict_rng, memory))
        return self._to_env(self._values(self.greedy, obs, memory).argmax(1))

    def _deploy(self, deploy: Any) -> Any:
        return deploy.RecurrentTorchPolicy(self.greedy, self.envs)

    def _switches(self) -> list[str]:
        c = self.config
        switches = [name for name in ("double", "dueling", "rescaling") if getattr(c, name)]
        return [c.network, *switches] + [f"{c.n_step}-step"] * (c.n_step > 1)

    def metrics(self) -> dict[str, float]:
        """For the logs: of the last update the loss and the mean Q(s, a), and the exploration now."""
        return {**super().metrics(), "epsilon": self.epsilon}

    def _parts(self) -> dict[str, Any]:
        greedy = {"greedy": self.greedy} if self.config.averaging else {}
        others = {"optimizer": self.optimizer, "memory": self._memory}
        return {"online": self.online, "target": self.target, **greedy, **others}

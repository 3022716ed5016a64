"""Deep Q-network (Mnih et al. 2015, doi:10.1038/nature14236) with switches, in any combination:

double       van Hasselt et al. 2016, arXiv:1509.06461
dueling      Wang et al. 2016, arXiv:1511.06581
prioritized  Schaul et al. 2016, arXiv:1511.05952
n_step       Sutton and Barto 2018, section 7.1
distributional
    c51      Bellemare et al. 2017, arXiv:1707.06887
    qr       Dabney et al. 2018, arXiv:1710.10044
    iqn      Dabney et al. 2018, arXiv:1806.06923
noisy        Fortunato et al. 2018, arXiv:1706.10295
rainbow      Hessel et al. 2018, arXiv:1710.02298: all of them, with c51

It acts with the weights of the moment; the policy that it is judged by has averaged ones, unless averaging=False
(Shamir and Zhang 2013, arXiv:1212.1824, polynomial-decay averaging).
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Env
from fastrl.agents.config import InputError
from fastrl.agents.hyperparameters.off_policy import DQNConfig
from fastrl.agents.masks import Masks, masked, of_allowed, random_allowed
from fastrl.agents.networks import Network, OwnNetwork, own_network
from fastrl.agents.noisy import NoisyMLP
from fastrl.agents.off_policy import OffPolicyAgent
from fastrl.agents.quantile_networks import QuantileMLP
from fastrl.kernels import MLP, FlatAdam, QLoss, c51_loss, q_learning_loss, quantile_huber_loss
from fastrl.replay import Batch


class DQN(OffPolicyAgent[DQNConfig]):
    """Deep Q-network (Mnih et al. 2015, doi:10.1038/nature14236), with the switches of Double, Dueling, prioritized,
    n-step and noisy DQN, C51, QR-DQN and IQN, all of them Rainbow (sources: ``help(fastrl.agents.dqn)``).

    mean w (Q(s, a) - y)^2 with y = r + gamma (1 - terminated) Q'(s', a'), a' = argmax Q'(s', .) or, with `double`,
    argmax Q(s', .); with `distributional` the loss of `fastrl.c51_loss` or `fastrl.quantile_huber_loss`

    Where the environment has action masks (`fastrl.agents.masks`), only allowed actions are taken, and a' is one.

    For discrete actions.  Images of bytes are seen by a convolutional network (the setting `network`), all else
    flattened by an MLP, discrete observations one-hot.  `network`: a torch module of
    your own instead, or a function that makes one, that maps observations ``[B, ...]`` (bytes as 0..1) to
    ``[B, n_actions]``,
    with `distributional` to ``[B, n_actions * atoms]``, and with iqn observations and taus ``[B, N]`` to
    ``[B, n_actions * N]``.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `DQNConfig`.  Raises InputError for anything that cannot work.

    >>> agent = DQN("CartPole-v1", seed=0, prioritized=True).learn(50_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "dqn"
    config_class = DQNConfig
    continuous = False
    masks = True
    _trained = {"online": "optimizer"}  # noqa: RUF012

    def __init__(self, env: Env, config: DQNConfig | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c, action_space = self.config, self.envs.action_space
        assert isinstance(action_space, gym.spaces.Discrete)
        self.n_actions, self._start = int(action_space.n), int(action_space.start)
        self._atoms = np.linspace(c.v_min, c.v_max, c.atoms, dtype=np.float32)
        k = c.num_quantile_samples
        midpoints = (np.arange(k, dtype=np.float32) + np.float32(0.5)) / np.float32(k)
        self._taus: tuple[Any, ...] = (midpoints,) if c.distributional == "iqn" else ()  # what actions are chosen by
        self.online: Any = self._implicit() if self._taus else self._explicit()
        self.target: Any = copy.deepcopy(self.online)
        self.greedy: Any = copy.deepcopy(self.online) if c.averaging else self.online
        self.optimizer = FlatAdam(self.online.vector, self.online.grad, lr=c.learning_rate)
        self.buffer = self._replay(action_space)
        self._log = {"loss": 0.0, "mean_q": 0.0}

    def _explicit(self) -> Network | NoisyMLP:
        """A network of all outputs at once, Q(s, .), or with `distributional` atoms or quantiles of it."""
        c, each = self.config, self.config.atoms if self.config.distributional else 1
        n = self.n_actions * each
        how: dict[str, Any] = {"seed": self._seeds[0], "device": self.device}
        if self._ready_made is not None:
            from fastrl.agents.convolution import q_network

            return q_network(self._ready_made, n, dueling=each if c.dueling else 0, **how)
        if self._network is not None:
            return self._given([self._obs_shape], n)
        sizes, dueling = (self._n_obs, *c.hidden, n), each if c.dueling else False
        return NoisyMLP(sizes, dueling=dueling, sigma=c.sigma, **how) if c.noisy else MLP(sizes, dueling=dueling, **how)

    def _implicit(self) -> QuantileMLP | NoisyMLP | OwnNetwork:
        """A network of observations and taus, whose outputs are the quantiles at these."""
        c = self.config
        how: dict[str, Any] = {"seed": self._seeds[0], "device": self.device}
        embedding: dict[str, Any] = {"embedding_dim": c.quantile_embedding_dim}
        if self._ready_made is not None:
            from fastrl.agents.torch_quantiles import quantile_convolution

            made, n = self._ready_made, self.n_actions
            return quantile_convolution(made, n, dueling=int(c.dueling), **embedding, **how)
        if self._network is not None:
            from fastrl.agents.torch_quantiles import QuantileNetwork

            shapes, n = [self._obs_shape, (c.num_tau_samples,)], self.n_actions * c.num_tau_samples
            return QuantileNetwork(self._given(shapes, n).module, self._obs_shape, device=self.device)
        if len(c.hidden) < 2:
            raise InputError(
                "DQN: hidden must name at least 2 layers with iqn, whose taus come in before the last, got "
                f"{c.hidden!r}"
            )
        sizes, how = (self._n_obs, *c.hidden, self.n_actions), {**how, "dueling": c.dueling}
        if c.noisy:
            return NoisyMLP(sizes, sigma=c.sigma, kind=partial(QuantileMLP, **embedding), **how)
        return QuantileMLP(sizes, **embedding, **how)

    def _given(self, shapes: list[tuple[int, ...]], n_out: int) -> OwnNetwork:
        """The network that the user gave."""
        for switch, why in (("dueling", "which has the streams or not"), ("noisy", "whose layers are what they are")):
            if getattr(self.config, switch):
                raise InputError(f"DQN: {switch} must be False with a network of your own, {why}")
        how: dict[str, Any] = {"seed": self._seeds[0], "device": self.device}
        own: OwnNetwork = own_network(self._network, "DQN: network", shapes, n_out, **how)
        return own

    @property
    def epsilon(self) -> float:
        """The probability of a random action now: linear from epsilon_start to epsilon_end, with `noisy` to 0."""
        c = self.config
        return self._linear(c.epsilon_start, 0.0 if c.noisy else c.epsilon_end, c.epsilon_steps)

    def _update(self) -> None:
        """One gradient step on a batch's loss, and the target network's turn when it is due.

        L = mean_i w_i l(Q(s_i, a_i) - y_i), or with `distributional` that of distributions, whose means are Q.

        y = sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) Q_target(s', a'), where s' is m <= n_step
        steps on, at the end of the episode at most, and a' the best action of the target network, or with `double` of
        the online network.  Truncation does not stop the bootstrap.  With `prioritized` |Q - y| is the new priority.
        """
        c, b = self.config, self._sample()
        for network in (self.online, self.target):
            if isinstance(network, NoisyMLP):
                network.resample(self.rng)
        q = self._loss(b)
        self.online.backward(q.d_q.reshape(len(q.d_q), -1))
        self.n_updates += 1
        due = self.n_updates % c.target_every == 0
        self.optimizer.step(
            lr=self.learning_rate, max_grad_norm=c.max_grad_norm,
            target=self.target.vector if due else None, tau=c.tau,
            average=self.greedy.vector if c.averaging else None,
            average_weight=10 / (self.n_updates + 9),  # weight ~ (number of the update)^9
        )  # fmt: skip
        self._learned(b, q)

    def _loss(self, b: Batch) -> QLoss:
        """The loss, and its gradient in the outputs of the online network ``[B, n_actions]`` or ``[B, n_actions, N]``.

        The target network's forward is first: the online network's last one is what is gone back through.
        """
        c, rows = self.config, len(b.obs)
        drawn = (c.num_tau_samples, c.num_tau_prime_samples) if self._taus else ()
        each = [self.rng.random((rows, n), np.float32) for n in drawn]
        taus, next_taus = each[:1], each[1:]  # what the networks take besides observations, with iqn
        following, online = self.target.forward(b.next_obs, *next_taus), None
        if c.double or self._taus:
            online = (self.online if c.double else self.target).forward(b.next_obs, *self._taus)
        out = self.online.forward_cached(b.obs, *taus)
        if c.distributional is not None:
            shape = (rows, self.n_actions, -1)
            out, following = out.reshape(shape), following.reshape(shape)
            online = None if online is None else online.reshape(shape)
        if self._next_allowed is not None:
            following = of_allowed(following, self._means(following if online is None else online), self._next_allowed)
            online = None
        weights = b.weights if c.prioritized else None
        transitions = (out, b.action, b.reward, b.discount, following)
        if c.distributional is None:
            return q_learning_loss(*transitions, next_q_online=online, weights=weights, loss=c.loss)
        if c.distributional == "c51":
            return c51_loss(*transitions, next_logits_online=online, weights=weights, v_min=c.v_min, v_max=c.v_max)
        at = self._array(*taus) if taus else None
        return quantile_huber_loss(*transitions, taus=at, next_quantiles_online=online, weights=weights)

    def _values(self, network: Any, obs: NDArray[Any]) -> NDArray[np.float32]:
        """Q(s, .) ``[B, n_actions]`` for observations ``[B, ...]``."""
        out = self._forward(network, obs, *self._taus)
        if self.config.distributional is None:
            return out
        each = math.prod(out.shape[1:]) // self.n_actions
        return self._means(out.reshape(len(out), self.n_actions, each))  # type: ignore[no-any-return]

    def _means(self, out: Any) -> Any:
        """Q ``[B, n_actions]`` of outputs, which with `distributional` are ``[B, n_actions, N]``."""
        kind = self.config.distributional
        if kind is None:
            return out
        if kind != "c51":
            return out.mean(2)
        if not isinstance(out, np.ndarray):
            return out.softmax(2) @ self._array(self._atoms)
        p = np.exp(out - out.max(2, keepdims=True))
        return p @ self._atoms / p.sum(2)

    def _act(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.int64]:
        return self._explore(obs, rng, self.envs.allowed)

    def _explore(self, obs: NDArray[Any], rng: np.random.Generator, allowed: Masks | None) -> NDArray[np.int64]:
        """Actions ``[B]`` of the exploring policy for observations ``[B, ...]``, of those `allowed` ``[B, n_actions]``.

        None: all are.
        """
        c, n = self.config, len(obs)
        if isinstance(self.online, NoisyMLP):
            self.online.resample(rng)
        if c.exploration == "boltzmann":  # the largest of logits + Gumbel noise is a draw from their softmax
            logits = self._values(self.online, obs) / c.temperature
            action: NDArray[np.int64] = masked(logits + rng.gumbel(size=logits.shape), allowed).argmax(1)
            return action
        random = rng.random(n) < self.epsilon
        n_random = np.count_nonzero(random)
        if n_random < n:
            action = masked(self._values(self.online, obs), allowed).argmax(1)
        if n_random:
            drawn = rng.integers(self.n_actions, size=n) if allowed is None else random_allowed(allowed, rng)
            action = drawn if n_random == n else np.where(random, drawn, action)
        return action

    def _to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        return action + self._start if self._start else action

    def _predict(self, obs: NDArray[Any], deterministic: bool, allowed: Masks | None = None) -> NDArray[Any]:
        if not deterministic:
            return self._to_env(self._explore(obs, self._predict_rng, allowed))
        return self._to_env(masked(self._values(self._judged, obs), allowed).argmax(1))

    def _deploy(self, deploy: Any) -> Any:
        c = self.config
        atoms = {"c51": self._atoms, "qr": c.atoms, "iqn": c.num_quantile_samples, None: None}[c.distributional]
        return deploy.TorchPolicy(self._judged, self.envs, atoms=atoms, taus=next(iter(self._taus), None))

    @property
    def _judged(self) -> Any:
        """The greedy policy's network: of a noisy one that without noise."""
        return self.greedy.mean if isinstance(self.greedy, NoisyMLP) else self.greedy

    def _switches(self) -> list[str]:
        c = self.config
        n_step = [f"{c.n_step}-step"] if c.n_step > 1 else []
        kind = [c.distributional] if c.distributional else []
        return [name for name in ("double", "dueling", "prioritized", "noisy") if getattr(c, name)] + kind + n_step

    def metrics(self) -> dict[str, float]:
        """For the logs: of the last update the loss and the mean Q(s, a), and the exploration now."""
        explore = {"epsilon": self.epsilon} if self.config.exploration == "epsilon-greedy" else {}
        return {**super().metrics(), **explore}

    def _parts(self) -> dict[str, Any]:
        greedy = {"greedy": self.greedy} if self.config.averaging else {}
        return {"online": self.online, "target": self.target, **greedy, "optimizer": self.optimizer}

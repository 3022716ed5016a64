"""PPO with a memory: the policy and its value share an LSTM or a GRU (Schulman et al. 2017, arXiv:1707.06347; after the
recurrent PPO of Huang et al. 2022, "The 37 implementation details of proximal policy optimization").
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Env
from fastrl.agents.hyperparameters.recurrent import RecurrentPPOConfig
from fastrl.agents.memory import Memory, check_network
from fastrl.agents.ppo import PPO
from fastrl.agents.recurrent_policies import RecurrentPolicy, RecurrentRollout, Sequences
from fastrl.agents.training import check_loss
from fastrl.kernels import Generator


class RecurrentPPO(PPO):
    """PPO (Schulman et al. 2017, arXiv:1707.06347) whose policy and value remember, by an LSTM or GRU that they share.

    The loss is that of `PPO` with objective "clip".  A minibatch is the whole sequences ``[n_steps]`` of some of the
    environments, unrolled from the states in which the rollout began; gradients go back to its first step.  An episode
    begins with the state 0.

    For discrete, MultiDiscrete, MultiBinary and continuous (Box) actions.  The network is that of
    `fastrl.agents.recurrent_networks`, and sees observations flattened, discrete ones one-hot; the last action and
    reward are no part of them.  Needs PyTorch, and runs on the CPU.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `RecurrentPPOConfig`.  Raises InputError for anything that cannot work.

    >>> agent = RecurrentPPO("fastrl/TMaze-v0", seed=0).learn(50_000)
    >>> memory = agent.memory()  # at the start of an episode
    >>> action = agent.predict(observation, memory=memory)
    """

    algorithm = "recurrent_ppo"
    config: RecurrentPPOConfig
    config_class = RecurrentPPOConfig  # type: ignore[assignment]  # its networks have other names
    cpu_only = True
    policy: RecurrentPolicy
    rollout: RecurrentRollout

    def __init__(
        self, env: Env, config: RecurrentPPOConfig | None = None, *, network: Any = None, **overrides: Any
    ) -> None:
        check_network("RecurrentPPO", network)
        super().__init__(env, config, network=network, **overrides)

    def _make_policy(self, n_steps: int, **settings: Any) -> None:
        from fastrl.agents.recurrent_networks import recurrent_network

        c, envs = self.config, self.envs
        network = partial(recurrent_network, c.network, hidden=c.hidden, memory_size=c.memory_size)
        self.policy = RecurrentPolicy(
            envs.observation_space,
            envs.action_space,
            c.hidden,
            log_std=c.log_std,
            normalize_obs=c.normalize_obs,
            seed=c.seed,
            network=partial(network, activation=c.activation),
        )
        self.policy.memory = self.memory(c.num_envs)
        self.rollout = RecurrentRollout(envs, self.policy, n_steps)
        self.generator, self._predict_generator = Generator(c.seed), Generator(self._predict_seed)

    def memory(self, n: int = 1) -> Memory:
        """What `predict` remembers of `n` episodes, as at their start."""
        return Memory(n, self.policy.actor.module.state_size)

    def _update(self) -> None:
        """`epochs` passes over the environments in random order, one step down the gradient for each minibatch of them.

        The advantages A_t and the value's targets G_t = A_t + V(s_t) are GAE's, of the values when it acted.
        With `target_kl` the passes end early.
        """
        c, policy, rollout = self.config, self.policy, self.rollout
        columns = [rollout.action, rollout.log_prob]
        columns += rollout.advantages(c.gamma, c.gae_lambda, self.scale_rewards)
        obs = policy.prepare(rollout.obs)
        kept = np.ones(rollout.reward.shape, np.bool_) if rollout.mask is None else rollout.mask
        for _ in range(c.epochs):
            for envs in np.array_split(self.rng.permutation(c.num_envs), c.minibatches):
                mask = kept[:, envs]
                sequences = Sequences(obs[:, envs], rollout.state[envs], rollout.starts[:, envs], mask)
                allowed = None if rollout.allowed is None else rollout.allowed[:, envs][mask]
                action, log_prob, advantage, target, value = (x[:, envs][mask] for x in columns)
                terms = self._loss(sequences, action, log_prob, advantage, target, value, allowed=allowed)
                self.optimizer.step(max_grad_norm=c.max_grad_norm)
                self.n_updates += 1
            if c.target_kl is not None and float(terms["kl"]) > c.target_kl:
                break
        self._log = {name: float(value) for name, value in terms.items()}  # of the last minibatch
        check_loss(self._log["loss"], self.steps, policy.vector)
        self._update_moments()

    def _predict(
        self, obs: NDArray[Any], deterministic: bool, allowed: Any = None, memory: Memory | None = None
    ) -> NDArray[Any]:
        with self.policy.remembering(memory):
            return super()._predict(obs, deterministic, allowed)

    def _deploy(self, deploy: Any) -> Any:
        policy = self.policy
        moments = None if policy.moments is None else (policy.moments.mean, policy.moments.var)
        return deploy.RecurrentTorchPolicy(policy.actor, self.envs, units=policy.units, moments=moments)

    def _switches(self) -> list[str]:
        return [self.config.network]

    def _parts(self) -> dict[str, Any]:
        return {**super()._parts(), "memory": self.policy.memory}

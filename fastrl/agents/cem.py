"""Policy search by the cross-entropy method (Rubinstein 1999; Mannor et al. 2003), with the noise that keeps it from
narrowing too soon (Szita and Lorincz 2006, doi:10.1162/neco.2006.18.12.2936)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Agent, Env
from fastrl.agents.hyperparameters.on_policy import CEMConfig
from fastrl.agents.policies import ActorCritic


class CEM(Agent[CEMConfig]):
    """Policy search by the cross-entropy method (Szita and Lorincz 2006, doi:10.1162/neco.2006.18.12.2936).

    In each generation `population` policies play, with weights theta_k ~ N(m, diag(sigma^2)); m and sigma^2 become mean
    and variance of those with the largest returns, and sigma^2 grows by extra_std^2.  No gradient is taken.

    For discrete and for continuous (Box) actions.  An MLP sees observations flattened, and discrete ones one-hot.
    `network`: a torch module of your own instead, or a function that makes one, that maps observations ``[B, ...]``
    (bytes as 0..1) to ``[B, K]``, of which the largest is the action, or the Box action itself.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode, whose episodes must end.
    `config` and keyword overrides set the hyperparameters of `CEMConfig`.  Raises InputError for anything that cannot
    work.

    >>> agent = CEM("CartPole-v1", seed=0).learn(100_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "cem"
    config_class = CEMConfig
    cpu_only = True
    masks = True

    def __init__(self, env: Env, config: CEMConfig | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c, envs = self.config, self.envs
        self.policy = ActorCritic(
            envs.observation_space,
            envs.action_space,
            c.hidden,
            critic=False,
            activation=c.activation,
            seed=c.seed,
            device=self.device,
            network=self._network,
        )
        self.weights: NDArray[np.float32] = self.policy.actor.vector  # m, but while the population plays
        self.log_std = np.full(len(self.weights), np.log(c.std))  # log sigma
        self._log = dict.fromkeys(("loss", "best_return", "elite_return"), 0.0) | {"std": c.std}

    @property
    def extra_std(self) -> float:
        """What the spread grows by now: linear from extra_std to 0."""
        return self._linear(self.config.extra_std, 0.0, self.config.extra_std_steps)

    def _iterate(self) -> None:
        """One generation.

        theta_k = m + sigma eps_k and R_k its mean return over `episodes` episodes in every environment, k < population;
        with E the `elites` largest R_k:  m <- m + learning_rate (mean_E theta_k - m),
        sigma^2 <- sigma^2 + learning_rate (var_E theta_k - sigma^2) + extra_std^2.
        """
        c = self.config
        mean, std = self.weights.astype(np.float64), np.exp(self.log_std)
        noise = self.rng.standard_normal((c.population, len(mean)), np.float32)
        population = (mean + std * noise).astype(np.float32)
        returns, before = np.empty(c.population), self.steps
        try:
            for k, weights in enumerate(population):
                self.weights[:] = weights
                returns[k] = self._play_episodes()
        except BaseException:
            self.steps = before  # nothing will be learned from these
            raise
        finally:
            self.weights[:] = mean
        best = np.argsort(-returns, kind="stable")[: c.elites]
        elites, rate = population[best].astype(np.float64), self.learning_rate
        self.weights[:] = mean + rate * (elites.mean(0) - mean)
        variance = std**2 + rate * (elites.var(0) - std**2) + self.extra_std**2
        self.log_std[:] = 0.5 * np.log(np.maximum(variance, 1e-300))
        self.n_updates += 1
        self._log = {
            "loss": -float(returns.mean()),
            "best_return": float(returns[best[0]]),
            "elite_return": float(returns[best].mean()),
            "std": float(np.exp(self.log_std).mean()),
        }

    def _play_episodes(self) -> float:
        """The mean return of the policy's mode over `episodes` episodes in every environment, begun anew."""
        envs, episodes = self.envs, self.config.episodes
        envs.reset()
        to_play, total = np.full(envs.num_envs, episodes), 0.0
        while (active := to_play > 0).any():
            step = envs.step(self.policy.to_env(self.policy.mode(envs.obs, envs.allowed)))
            real = active if step.mask is None else active & step.mask
            total += float(step.reward[real].sum())
            to_play -= real & (step.terminated | step.truncated)
            self._stepped()
        return total / (envs.num_envs * episodes)

    def _predict(self, obs: NDArray[Any], deterministic: bool, allowed: Any = None) -> NDArray[Any]:
        return self.policy.predict(obs, None, allowed)

    def _deploy(self, deploy: Any) -> Any:
        return deploy.TorchPolicy(self.policy.actor, self.envs, units=self.policy.units)

    def _replaced(self) -> list[str]:
        return [] if self.policy.whole else ["policy"]

    def _parts(self) -> dict[str, Any]:
        return {"actor": self.policy.actor, "log_std": self.log_std}

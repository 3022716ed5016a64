"""What the on-policy agents share: a policy with a value beside it, and the rollout it acts in."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fastrl.agents.agent import Agent, C
from fastrl.agents.policies import ActorCritic
from fastrl.agents.rollout import RewardScaling, Rollout
from fastrl.kernels import Generator


class OnPolicyAgent(Agent[C]):
    """An agent that learns from what its policy did last, and then forgets it."""

    optimizer: Any  # FlatAdam or FlatRMSprop
    scale_rewards: RewardScaling | None = None

    def _make_policy(self, n_steps: int, **settings: Any) -> None:
        """Policy, rollout and generators; `settings` go to `ActorCritic`."""
        c, envs = self.config, self.envs
        self.policy = ActorCritic(
            envs.observation_space,
            envs.action_space,
            c.hidden,  # type: ignore[attr-defined]
            activation=c.activation,  # type: ignore[attr-defined]
            log_std=c.log_std,  # type: ignore[attr-defined]
            seed=c.seed,  # type: ignore[attr-defined]
            device=self.device,
            network=self._network,
            ready_made=self._ready_made,
            **settings,
        )
        self.rollout = Rollout(envs, self.policy, n_steps)
        self.generator = Generator(c.seed, self.device)  # type: ignore[attr-defined]  # of the actions
        self._predict_generator = Generator(self._predict_seed, self.device)

    def _predict(self, obs: NDArray[Any], deterministic: bool, allowed: Any = None) -> NDArray[Any]:
        return self.policy.predict(obs, None if deterministic else self._predict_generator, allowed)

    def _deploy(self, deploy: Any) -> Any:
        policy = self.policy
        moments = None if policy.moments is None else (policy.moments.mean, policy.moments.var)
        return deploy.TorchPolicy(policy.actor, self.envs, units=policy.units, moments=moments)

    def _replaced(self) -> list[str]:
        return [] if self.policy.whole else ["policy"]

    def _collect(self) -> None:
        """Fill the rollout with the policy's next steps."""
        before = self.steps
        try:
            self.rollout.collect(self.generator, self._stepped)
        except BaseException:
            self.steps = before  # nothing will be learned from these
            raise

    def _update_moments(self) -> None:
        """Count the rollout's observations in; after the update, which sees them as they were when acted on."""
        if self.policy.moments is not None:
            self.policy.moments.update(self.rollout.real(self.rollout.obs))

    def _parts(self) -> dict[str, Any]:
        policy = self.policy
        parts = {
            "actor": policy.actor,
            "critic": policy.critic,
            "log_std": policy.log_std,
            "optimizer": self.optimizer,
            "generator": self.generator,
            "obs_moments": policy.moments,
            "reward_scaling": self.scale_rewards,
        }
        return {name: part for name, part in parts.items() if part is not None}

"""The exploration of deterministic policies: Gaussian noise, or the process of Uhlenbeck and Ornstein."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Env
from fastrl.agents.continuous import BoxAgent, clip
from fastrl.agents.envs import Transition
from fastrl.agents.hyperparameters.off_policy import NoiseConfig

NC = TypeVar("NC", bound="NoiseConfig")


class NoisyAgent(BoxAgent[NC]):
    """Base of the agents whose exploring action is clip(mode + noise, -1, 1)."""

    def __init__(self, env: Env, config: NC | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c = self.config
        self.ou = OrnsteinUhlenbeck((c.num_envs, self.n_actions), c.noise_std, c.ou_theta) if c.noise == "ou" else None

    def _explore(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        mean = self._mode(obs)
        if self.ou is None:
            noise = self.config.noise_std * rng.standard_normal(mean.shape, np.float32)
        elif rng is self.rng:
            noise = self.ou.step(rng)
        else:  # a prediction is no step of the process
            noise = self.ou.stationary_std * rng.standard_normal(mean.shape, np.float32)
        action: NDArray[np.float32] = clip(mean + noise, 1)
        return action

    def _after_step(self, transition: Transition) -> None:
        if self.ou is not None:
            over = transition.terminated | transition.truncated
            self.ou.reset(over if transition.mask is None else over | ~transition.mask)

    def _switches(self) -> list[str]:
        return ["Ornstein-Uhlenbeck noise"] * (self.ou is not None) + super()._switches()

    def _parts(self) -> dict[str, Any]:
        noise = {} if self.ou is None else {"ou": self.ou}
        return {**super()._parts(), **noise}


class OrnsteinUhlenbeck:
    """x <- (1 - theta) x + std N(0, 1) in every element of ``[num_envs, A]``, from 0 in each episode.

    That is the process of Uhlenbeck and Ornstein (1930) in time steps of 1, as in section 7 of the paper.  In the long
    run x has the standard deviation std / sqrt(theta (2 - theta)).
    """

    def __init__(self, shape: tuple[int, int], std: float, theta: float) -> None:
        self.x = np.zeros(shape, np.float32)
        self.std, self.theta = std, theta
        self.stationary_std = std / (theta * (2 - theta)) ** 0.5

    def step(self, rng: np.random.Generator) -> NDArray[np.float32]:
        self.x += self.std * rng.standard_normal(self.x.shape, np.float32) - self.theta * self.x
        return self.x

    def reset(self, which: NDArray[np.bool_]) -> None:
        self.x[which] = 0.0

    def new_episodes(self) -> None:
        self.x[:] = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        x = np.asarray(state["x"], np.float32)
        if x.shape == self.x.shape:  # else these are other environments, where new episodes begin
            self.x = x

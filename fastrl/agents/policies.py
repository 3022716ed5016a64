"""Policies with a state value beside them, as the on-policy agents use them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.agents.config import InputError
from fastrl.agents.networks import building, flatten_parameters, input_scale, mlp, numpy_forward, orthogonal
from fastrl.kernels import (
    Generator,
    categorical_log_prob_entropy,
    categorical_sample,
    normal_log_prob_entropy,
    normal_sample,
)

Activation = Literal["tanh", "relu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class ActorCritic(nn.Module):
    """A stochastic policy pi(a|s) and a state value V(s), in networks of their own or with the hidden layers shared.

    Discrete actions: the actor's output is logits ``[B, K]``.  Box actions: it is the mean ``[B, A]`` of a Gaussian
    whose log_std ``[A]`` is a parameter, the same in all states; samples are scaled, if the Box is far from [-2, 2]
    (`box_units`), and clipped to it only on their way to the environment (`to_env`); it is those before that are
    learned from.

    A copy (deepcopy, pickle) has parameters of its own, views of a vector of its own.

    Weights are orthogonal and the actor's last layer small, so that training begins with a nearly uniform policy (Huang
    et al. 2022, "The 37 implementation details of proximal policy optimization").
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        hidden: Sequence[int],
        *,
        shared: bool = False,
        critic: bool = True,
        activation: Activation = "tanh",
        log_std: float = 0.0,
        normalize_obs: bool = False,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.device = device or torch.device("cpu")
        self.action_space = action_space
        self.discrete = isinstance(action_space, gym.spaces.Discrete)
        shape = observation_space.shape or ()
        n_in = int(np.prod(shape))
        n_out = int(action_space.n) if self.discrete else int(np.prod(action_space.shape or ()))  # type: ignore[attr-defined]
        layer, sizes = ACTIVATIONS[activation], (n_in, *hidden)
        with building(seed):
            trunk = [*mlp(sizes, layer), layer()] if shared else []
            self.trunk = orthogonal(nn.Sequential(nn.Flatten(), *trunk), 2**0.5)
            sizes = sizes[-1:] if shared else sizes
            self.actor = orthogonal(mlp((*sizes, n_out), layer), 0.01)
            self.critic = orthogonal(mlp((*sizes, 1), layer), 1.0) if critic else None
            self.log_std = None if self.discrete else nn.Parameter(torch.full((n_out,), log_std))
        self.moments = RunningMoments(shape) if normalize_obs else None
        self._input_scale = input_scale(observation_space)
        self._units = box_units(action_space) if isinstance(action_space, gym.spaces.Box) else None
        self.to(self.device)
        self._flatten()

    def _flatten(self) -> None:
        self.flat = flatten_parameters(self)  # a tuple, so that the vector is not registered as one more parameter
        self._numpy_actor = self._numpy_log_std = None
        if self.device.type == "cpu":  # these read the parameters in place, so they follow training
            self._numpy_actor = numpy_forward(nn.Sequential(self.trunk, self.actor))
            self._numpy_log_std = None if self.log_std is None else self.log_std.detach().numpy()

    def __getstate__(self) -> dict[str, Any]:
        derived = ("flat", "_numpy_actor", "_numpy_log_std")  # a copy makes its own
        return {name: value for name, value in self.__dict__.items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._flatten()

    def __setattr__(self, name: str, value: Any) -> None:
        if "flat" in self.__dict__ and (name in self._modules or name in self._parameters):
            raise InputError(
                f"policy: {name} cannot be replaced, because the old one would go on being trained; the settings "
                "hidden and activation shape the networks, and load_state_dict gives them other weights"
            )
        super().__setattr__(name, value)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits or mean ``[B, K or A]`` and V ``[B]`` (``[0]`` without a critic) of prepared observations."""
        features = self.trunk(obs)
        value = features.new_empty(0) if self.critic is None else self.critic(features).squeeze(1)
        return self.actor(features), value

    def distribution_chain(self) -> tuple[list[nn.Module], nn.Parameter | None]:
        """The modules that give the distribution one after the other, and log_std; for FisherVectorProduct."""
        return [self.trunk, self.actor], self.log_std

    def log_prob_entropy(self, out: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(a|s) and the entropy of pi(.|s), ``[B]`` each, from the actor's output."""
        if self.log_std is None:
            return categorical_log_prob_entropy(out, action)
        return normal_log_prob_entropy(out, self.log_std, action)

    def kl(self, old_out: Tensor, old_log_std: Tensor | None, out: Tensor) -> Tensor:
        """KL(pi_old || pi) ``[B]``, exact, from the actor's outputs then and now.

        Categorical: sum_k p_old,k (log p_old,k - log p_k).
        Gaussian: sum_j [log(s_j / s_old,j) + (s_old,j^2 + (m_old,j - m_j)^2) / (2 s_j^2) - 1/2].
        """
        if self.log_std is None:
            old, new = old_out.log_softmax(1), out.log_softmax(1)
            return (old.exp() * (old - new)).sum(1)
        assert old_log_std is not None
        log_std = self.log_std.to(out.dtype)
        ratio = torch.exp(2 * (old_log_std - log_std))
        distance = ((old_out - out) * torch.exp(-log_std)).square()
        return (log_std - old_log_std + 0.5 * (ratio + distance - 1)).sum(1)

    def prepare(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        """Observations ``[..., *observation]`` as the networks take them: float32, normalised if that is wanted.

        Without that, bytes 0..255 become 0..1.
        """
        if self.moments is not None:
            return self.moments.normalize(obs)
        x = np.asarray(obs, np.float32)
        return x if self._input_scale is None else x * np.float32(self._input_scale)

    @torch.no_grad()
    def act(self, obs: NDArray[Any], generator: Generator) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Draw actions (int64 ``[B]`` or float32 ``[B, A]``) for observations ``[B, ...]``, with their log pi(a|s)."""
        x = self.prepare(obs)
        if self._numpy_actor is None:
            out = self.actor(self.trunk(torch.from_numpy(x).to(self.device)))
        else:  # NumPy: for one small batch torch is all overhead
            out = self._numpy_actor(x)
        if self.log_std is None:
            action, log_prob = categorical_sample(out, generator=generator)
        else:
            log_std = self.log_std if self._numpy_actor is None else self._numpy_log_std
            action, log_prob = normal_sample(out, log_std, generator=generator)
        if self._numpy_actor is None:
            action, log_prob = action.cpu().numpy(), log_prob.cpu().numpy()
        return action, log_prob

    @torch.no_grad()
    def mode(self, obs: NDArray[Any]) -> NDArray[Any]:
        """The most probable actions, as `act` gives them."""
        x = self.prepare(obs)
        if self._numpy_actor is None:
            out = self.actor(self.trunk(torch.from_numpy(x).to(self.device))).cpu().numpy()
        else:
            out = self._numpy_actor(x)
        return out.argmax(1) if self.discrete else out  # type: ignore[no-any-return]

    def to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        """Actions as the environment takes them: in its units, of the Box's shape and dtype, and clipped to it."""
        space = self.action_space
        if not isinstance(space, gym.spaces.Box):
            return action
        action = action.reshape(len(action), *space.shape)
        if self._units is not None:
            middle, half = self._units
            action = middle + half * action
        clipped: NDArray[Any] = np.clip(action, space.low, space.high)
        return clipped.astype(space.dtype, copy=False)

    def predict(self, obs: NDArray[Any], generator: Generator | None) -> NDArray[Any]:
        """Actions for the environment: the mode, or draws from `generator`."""
        return self.to_env(self.mode(obs) if generator is None else self.act(obs, generator)[0])


def box_units(space: gym.spaces.Box) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(middle, half) of the Box, by which actions a of the policy are sent as middle + half * a; None: all as they are.

    The first policy is about N(0, 1), most of it in [-2, 2].  A dimension is scaled where that and [low, high] have
    less than a tenth of what they cover in common, and else left in its own units, (0, 1).  A bound that is infinite or
    beyond 1e6 is none; where the other one keeps most of [-2, 2] out, a warning says so.
    """
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    closed = (low >= -1e6) & (high <= 1e6) & (low < high)
    common = np.minimum(high, 2) - np.maximum(low, -2)
    far = common < 0.1 * np.where(closed, np.maximum(high, 2) - np.minimum(low, -2), 4)
    if (far & ~closed & (low < high)).any():
        warnings.warn(
            f"most actions of the first policy, which is about N(0, 1), are outside {space}; "
            "gymnasium.wrappers.TransformAction can shift them",
            stacklevel=2,
        )
    far &= closed
    if not far.any():
        return None
    return np.where(far, high / 2 + low / 2, 0.0), np.where(far, high / 2 - low / 2, 1.0)


class RunningMoments:
    """Mean and variance of all arrays ``[n, *shape]`` seen so far (Chan et al. 1983), to normalise more of them."""

    def __init__(self, shape: Sequence[int] = ()) -> None:
        self.count = 0
        self.mean = np.zeros(shape)
        self.var = np.ones(shape)

    def update(self, x: NDArray[Any]) -> None:
        if not len(x):
            return
        total = self.count + len(x)
        delta = x.mean(0, dtype=np.float64) - self.mean
        squares = self.var * self.count + x.var(0, dtype=np.float64) * len(x)
        self.var = (squares + delta**2 * (self.count * len(x) / total)) / total
        self.mean = self.mean + delta * (len(x) / total)
        self.count = total

    def normalize(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """(x - mean) / sqrt(var + 1e-8), clipped to [-10, 10]."""
        scaled = (x - self.mean) / np.sqrt(self.var + 1e-8)
        return np.clip(scaled, -10.0, 10.0).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean.tolist(), "var": self.var.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        mean, var = np.asarray(state["mean"]), np.asarray(state["var"])
        if not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all()):
            raise ValueError("moments must be finite, and variances >= 0")
        self.count, self.mean, self.var = state["count"], mean, var

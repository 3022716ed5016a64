"""Policies with a state value beside them, as the on-policy agents use them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fastrl.agents.arrays import concatenate, double, exp, log_softmax, on_device, to_numpy
from fastrl.agents.config import InputError
from fastrl.agents.hyperparameters.on_policy import Activation
from fastrl.agents.images import ReadyMade
from fastrl.agents.masks import masked
from fastrl.agents.networks import OwnNetwork, own_network
from fastrl.agents.spaces import input_scale, values_of
from fastrl.kernels import (
    MLP,
    Generator,
    categorical_log_prob_entropy,
    categorical_sample,
    normal_log_prob_entropy,
    normal_sample,
    ppo_categorical_loss,
    ppo_normal_loss,
)
from fastrl.kernels._core.arrays import assign
from fastrl.kernels.mlp import PPOLoss


class ActorCritic:
    """A stochastic policy pi(a|s) and a state value V(s), in networks of their own or in one.

    Discrete actions: the actor's output is logits ``[B, K]``.  Box actions: it is the mean ``[B, A]`` of a Gaussian
    whose log_std ``[A]`` is a parameter, the same in all states; samples are scaled, if the Box is far from [-2, 2]
    (`box_units`), and clipped to it only on their way to the environment (`to_env`); it is those before that are
    learned from.  MultiDiscrete and MultiBinary actions are int64 ``[B, parts]``: pi(a|s) is the product of one
    categorical a part, and the logits ``[B, K]`` are those of all parts, one after another.

    `actor` and `critic` are networks (`fastrl.MLP`); if `shared`, `actor` has one output more, V, and `critic` is None.
    `network` gives others instead: a torch module (or a function that makes one) ``[B, *observation] -> [B, K + 1]``
    whose last output is V, or {"actor": module ``-> [B, K]``, "critic": module ``-> [B, 1]``}; autograd trains them.
    `ready_made` is a `Convolution`.  Their parameters and log_std are views of one
    `vector` (actor, log_std, critic), what `backward` writes is in `grad`.  Arrays are NumPy's on the CPU, tensors on
    CUDA.  A copy (deepcopy, pickle) has a vector of its own.

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
        device: str = "cpu",
        network: Any = None,
        ready_made: ReadyMade | None = None,
    ) -> None:
        self.device = device
        self.action_space, self.shared = action_space, shared
        self.discrete = not isinstance(action_space, gym.spaces.Box)
        # Of discrete actions, the number of values of each part, and the first of each.
        values: tuple[Any, Any] = values_of(action_space) if self.discrete else (None, None)
        self.sizes, self._first = values
        self.multi = self.discrete and not isinstance(action_space, gym.spaces.Discrete)
        shape = observation_space.shape or ()
        self.moments = RunningMoments(shape) if normalize_obs else None
        self._input_scale = input_scale(observation_space) if self.moments is None else None
        self.obs_dtype: Any = np.float32 if self._input_scale is None else np.uint8  # of prepared observations
        self.units = box_units(action_space) if isinstance(action_space, gym.spaces.Box) else None
        n_in = int(np.prod(shape))
        self.n_out = int(np.prod(action_space.shape or ()) if self.sizes is None else self.sizes.sum())
        self.actor: Any
        self.critic: Any = None
        if ready_made is not None:
            from fastrl.agents.convolution import policy_network  # needs torch

            network = policy_network(ready_made, self.n_out, critic)
        if network is None:
            self.actor = MLP((n_in, *hidden, self.n_out + shared), activation, device=device)
            if critic and not shared:
                self.critic = MLP((n_in, *hidden, 1), activation, device=device)
        else:
            self._take_networks(network, shape, critic, seed)
        self._flatten()
        if network is None:
            self._initialize(seed)
        if self.log_std is not None:
            self.log_std[...] = log_std

    def _take_networks(self, given: Any, shape: Sequence[int], critic: bool, seed: int) -> None:
        own: dict[str, Any] = {"seed": seed, "device": self.device}
        self.shared = critic and not isinstance(given, dict)
        if self.shared:
            self.actor = own_network(given, "network: policy and value", [shape], self.n_out + 1, **own)
            return
        names = {"actor", "critic"} if critic else {"actor"}
        networks = given if isinstance(given, dict) else {"actor": given}
        if set(networks) != names:
            raise InputError(f"network: the dict must have {' and '.join(sorted(names))}, got {sorted(networks)}")
        self.actor = own_network(networks["actor"], "network: actor", [shape], self.n_out, **own)
        if critic:
            self.critic = own_network(networks["critic"], "network: critic", [shape], 1, **own)

    def _flatten(self) -> None:
        """Move all parameters into one vector, and their gradients into another."""
        a = len(self.actor.vector)
        b = a if self.discrete else a + self.n_out
        size = b if self.critic is None else b + len(self.critic.vector)
        self.vector, self.grad = (self.array(np.zeros(size, np.float32)) for _ in range(2))
        for name, part in (("actor", slice(0, a)), ("critic", slice(b, size))):
            net, memory = getattr(self, name), {"vector": self.vector[part], "grad": self.grad[part]}
            if net is None:
                continue
            memory["vector"][...] = net.vector
            if isinstance(net, OwnNetwork):
                net.move(**memory)
            else:
                setattr(self, name, MLP(net.sizes, net.activation, device=net.device, **memory))
        self.log_std: Any = None if a == b else self.vector[a:b]
        self._d_log_std: Any = None if a == b else self.grad[a:b]
        self.n_policy = b  # parameters of the policy, those in front
        self._held = [(net, net.vector) for net in (self.actor, self.critic) if net is not None]
        self._built = True

    def _initialize(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.vector[...] = 0  # the biases
        last = self.n_out
        for net, gain in ((self.actor, 0.01), (self.critic, 1.0)):
            weights = [] if net is None else [w for w in net.parameters().values() if w.ndim == 2]
            for w in weights[:-1]:
                w[...] = self.array(orthogonal(w.shape, 2**0.5, rng))
            for w in weights[-1:]:
                w[:last] = self.array(orthogonal((min(last, len(w)), w.shape[1]), gain, rng))
                if len(w) > last:  # the value of a shared network
                    w[last:] = self.array(orthogonal((1, w.shape[1]), 1.0, rng))

    def __getstate__(self) -> dict[str, Any]:
        views = ("vector", "grad", "_d_log_std", "_held", "_built")  # a copy makes its own
        return {name: value for name, value in self.__dict__.items() if name not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        log_std = self.log_std
        self._flatten()
        if self.log_std is not None:
            self.log_std[...] = log_std

    def __setattr__(self, name: str, value: Any) -> None:
        held = ("actor", "critic", "log_std", "vector", "grad")
        if name in held and "_built" in self.__dict__ and value is not self.__dict__[name]:  # += gives the same
            raise InputError(
                f"policy: {name} cannot be replaced, because the old one would go on being trained; the settings "
                "hidden and activation shape the networks, and load_state_dict gives them other weights"
            )
        super().__setattr__(name, value)

    # ---- parameters

    @property
    def whole(self) -> bool:
        """Are the networks' parameters still those that `vector` holds?"""
        return all(net.vector is vector and getattr(net, "whole", True) for net, vector in self._held)

    def parameters(self, vector: Any = None) -> dict[str, Any]:
        """Name ("actor.0.weight", ..., "critic.0.weight", ..., "log_std") -> view, of `vector` or of one like it."""
        flat, b = self.vector if vector is None else vector, self.n_policy
        a = b if self.log_std is None else b - self.n_out
        found = {f"actor.{name}": view for name, view in self.actor.parameters(flat[:a]).items()}
        if self.log_std is not None:
            found["log_std"] = flat[a:b]
        if self.critic is not None:
            found |= {f"critic.{name}": view for name, view in self.critic.parameters(flat[b:]).items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Copies of the parameters by name."""
        return {name: view + 0 for name, view in self.parameters().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the parameters of `state_dict`; nothing changes if a name or a shape does not fit."""
        views = self.parameters()
        if set(views) != set(state):
            missing, extra = sorted(set(views) - set(state)), sorted(set(state) - set(views))
            raise ValueError(f"policy: state_dict does not fit: missing {missing}, unexpected {extra}")
        for name, view in views.items():
            if tuple(state[name].shape) != tuple(view.shape):
                raise ValueError(f"policy: {name} must have shape {tuple(view.shape)}, got {tuple(state[name].shape)}")
        for name, view in views.items():
            assign(view, state[name])

    # ---- what the networks compute, of prepared observations ``[B, *observation]``

    def forward(self, obs: Any) -> tuple[Any, Any]:
        """Logits or mean ``[B, K or A]`` and V ``[B]`` (None without one)."""
        return self._both(obs, False)

    def forward_cached(self, obs: Any, allowed: Any = None) -> tuple[Any, Any]:
        """`forward`, and what `backward` needs is kept; logits of actions not `allowed` ``[B, K]`` are -inf."""
        out, value = self._both(obs, True)
        return masked(out, allowed), value

    def _both(self, obs: Any, cached: bool) -> tuple[Any, Any]:
        x = self._rows(obs)
        out = self.actor.forward_cached(x) if cached else self.actor.forward(x)
        if self.shared:
            return out[:, :-1], out[:, -1]
        if self.critic is None:
            return out, None
        value = self.critic.forward_cached(x) if cached else self.critic.forward(x)
        return out, value[:, 0]

    def backward(self, d_out: Any, d_value: Any, d_log_std: Any) -> None:
        """Overwrite `grad`, given a loss's gradients in the outputs of the last `forward_cached` and in log_std.

        Without that in V the critic's part stays as it is.
        """
        if self.shared:
            both = (d_out, d_value[:, None])
            self.actor.backward(concatenate(both, 1))
        else:
            self.actor.backward(d_out)
            if self.critic is not None and d_value is not None:
                self.critic.backward(d_value[:, None])
        if self._d_log_std is not None:
            self._d_log_std[...] = d_log_std

    def output(self, obs: Any, cached: bool = False, allowed: Any = None) -> Any:
        """Logits or mean ``[B, K or A]``; `cached`: what `backward` needs is kept; `allowed`: see `forward_cached`."""
        x = self._rows(obs)
        out = self.actor.forward_cached(x) if cached else self.actor.forward(x)
        return masked(out[:, :-1] if self.shared else out, allowed)

    def value(self, obs: Any) -> Any:
        """V ``[B]``."""
        net = self.actor if self.shared else self.critic
        return net.forward(self._rows(obs))[:, -1]

    def _rows(self, obs: Any) -> Any:
        return self.floats(obs.reshape(len(obs), -1))

    def floats(self, obs: Any) -> Any:
        """Prepared observations as the networks take them: float32, and bytes as 0..1."""
        if self._input_scale is None or "float" in str(obs.dtype):
            return obs
        x: Any = obs.astype(np.float32) if isinstance(obs, np.ndarray) else obs.float()
        return x * np.float32(self._input_scale)

    def log_prob_entropy(self, out: Any, action: Any) -> tuple[Any, Any]:
        """log pi(a|s) and the entropy of pi(.|s), ``[B]`` each, from the actor's output."""
        if self.multi:
            log_probs, entropy = self._factors(out, action)
            return sum(log_probs), entropy
        if self.log_std is None:
            return categorical_log_prob_entropy(out, action)
        return normal_log_prob_entropy(out, self.log_std, action)

    def loss(
        self,
        out: Any,
        action: Any,
        old_log_prob: Any,
        advantage: Any,
        *,
        old: tuple[Any, Any] | None = None,
        **how: Any,
    ) -> PPOLoss:
        """`ppo_categorical_loss` or `ppo_normal_loss`; `old`: the output and log_std from which the KL is measured."""
        if self.multi:
            return self._factored_loss(out, action, old_log_prob, advantage, old, **how)
        if self.log_std is None:
            if old is not None:
                how["old_logits"] = old[0]
            return ppo_categorical_loss(out, action, old_log_prob, advantage, **how)
        if old is not None:
            how["old_mean"], how["old_log_std"] = old
        return ppo_normal_loss(out, self.log_std, action, old_log_prob, advantage, **how)

    def _parts(self, x: Any) -> list[Any]:
        """The logits ``[B, K]`` of the parts of an action, contiguous."""
        ends = np.cumsum(self.sizes)
        cut = [x[:, end - size : end] for end, size in zip(ends, self.sizes, strict=True)]
        return [np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part.contiguous() for part in cut]

    def _factors(self, out: Any, action: Any) -> tuple[list[Any], Any]:
        """log pi of each part ``[B]``, and the entropy of all ``[B]``, which is the sum of the parts'."""
        found = [categorical_log_prob_entropy(part, action[:, i] + 0) for i, part in enumerate(self._parts(out))]
        return [log_prob for log_prob, _ in found], sum(entropy for _, entropy in found)

    def _factored_loss(self, out: Any, action: Any, old_log_prob: Any, advantage: Any, old: Any, **how: Any) -> PPOLoss:
        """The loss of a product of categoricals, from `ppo_categorical_loss` of one part at a time.

        For the logits of part i, the log pi of the others are constants: rho = exp(log pi_i - (log pi_old - theirs)).
        So its gradient is right, mean rho A the same from every part, and entropies and KLs add up.
        """
        log_probs, _ = self._factors(out, action)
        total = sum(log_probs)
        losses = []
        for i, part in enumerate(self._parts(out)):
            more = how if old is None else {**how, "old_logits": self._parts(old[0])[i]}
            before = None if old_log_prob is None else old_log_prob - (total - log_probs[i])
            losses.append(ppo_categorical_loss(part, action[:, i] + 0, before, advantage, **more))
        d_out, entropy = [one.d_out for one in losses], sum(one.entropy for one in losses)
        policy_loss, kl = losses[0].policy_loss, losses[0].kl
        if old is not None:  # the policy's loss has the KL in it
            kl = sum(one.kl for one in losses)
            policy_loss = policy_loss + how.get("kl_coef", 0.0) * (kl - losses[0].kl)
        return PPOLoss(
            policy_loss - how.get("entropy_coef", 0.0) * entropy,
            policy_loss,
            entropy,
            kl,
            concatenate(d_out, 1),
        )

    def policy_gradient(
        self, out: Any, action: Any, advantage: Any, entropy_coef: float = 0.0
    ) -> tuple[Any, Any, Any, Any]:
        """Of L = -mean A log pi(a|s) - entropy_coef mean H(pi(.|s)): log pi ``[B]``, the mean H, and L's gradients.

        They are those in the actor's output and in log_std (None if there is none).
        """
        log_prob, _ = self.log_prob_entropy(out, action)
        pi = self.loss(out, action, None, advantage, entropy_coef=entropy_coef)
        return log_prob, pi.entropy, pi.d_out, pi.d_log_std

    def kl(self, old_out: Any, old_log_std: Any, out: Any) -> Any:
        """KL(pi_old || pi) ``[B]``, exact and in float64, from the actor's outputs then and now, and log_std then.

        Categorical: sum_k p_old,k (log p_old,k - log p_k).
        Gaussian: sum_j [log(s_j / s_old,j) + (s_old,j^2 + (m_old,j - m_j)^2) / (2 s_j^2) - 1/2].
        """
        old, new = double(old_out), double(out)
        with np.errstate(over="ignore", invalid="ignore"):
            if self.log_std is None:
                parts = zip(self._parts(old), self._parts(new), strict=True) if self.multi else [(old, new)]
                return sum(_categorical_kl(p, q) for p, q in parts)
            old_log_std, log_std = double(old_log_std), double(self.log_std)
            distance = (old - new) * exp(-log_std)
            ratio = exp(2 * (old_log_std - log_std))
            return (log_std - old_log_std + 0.5 * (ratio + distance * distance - 1)).sum(1)

    # ---- acting

    def array(self, x: NDArray[Any]) -> Any:
        """`x` itself on the CPU, a tensor on a CUDA device."""
        return on_device(x, self.device)

    def prepare(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Observations ``[..., *observation]`` as they are kept: float32, normalised if that is wanted.

        Without that, bytes 0..255 stay bytes; the networks get them as 0..1, a batch at a time.
        """
        if self.moments is not None:
            return self.moments.normalize(obs)
        if obs.dtype == np.uint8 and self._input_scale is not None:
            return obs
        x = np.asarray(obs, np.float32)
        return x if self._input_scale is None else x * np.float32(self._input_scale)

    def act(
        self, obs: NDArray[Any], generator: Generator, allowed: Any = None
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Draw actions for observations ``[B, ...]``, with their log pi(a|s), of those `allowed` ``[B, K]``.

        They are int64 ``[B]`` or ``[B, parts]``, or float32 ``[B, A]``.
        """
        out = self._outputs(obs, allowed)
        if self.multi:
            drawn = [categorical_sample(part, generator=generator) for part in self._parts(out)]
            action = np.stack([to_numpy(one) for one, _ in drawn], 1)
            log_prob = sum(one for _, one in drawn)
        elif self.log_std is None:
            action, log_prob = categorical_sample(out, generator=generator)
        else:
            action, log_prob = normal_sample(out, self.log_std, generator=generator)
        return to_numpy(action), to_numpy(log_prob)

    def mode(self, obs: NDArray[Any], allowed: Any = None) -> NDArray[Any]:
        """The most probable actions, as `act` gives them."""
        out = to_numpy(self._outputs(obs, allowed))
        if self.multi:
            return np.stack([part.argmax(1) for part in self._parts(out)], 1)
        return out.argmax(1) if self.discrete else out  # type: ignore[no-any-return]

    def to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        """Actions as the environment takes them: in its units, of the Box's shape and dtype, and clipped to it."""
        space = self.action_space
        if self.multi:
            sent: NDArray[Any] = (action + self._first).reshape(len(action), *(space.shape or ())).astype(space.dtype)
            return sent
        if not isinstance(space, gym.spaces.Box):
            return action + self._first if self._first.any() else action
        action = action.reshape(len(action), *space.shape)
        if self.units is not None:
            middle, half = self.units
            action = middle + half * action
        clipped: NDArray[Any] = np.minimum(np.maximum(action, space.low), space.high)  # as np.clip, in less time
        return clipped.astype(space.dtype, copy=False)

    def predict(self, obs: NDArray[Any], generator: Generator | None, allowed: Any = None) -> NDArray[Any]:
        """Actions for the environment: the mode, or draws from `generator`."""
        return self.to_env(self.mode(obs, allowed) if generator is None else self.act(obs, generator, allowed)[0])

    def _outputs(self, obs: NDArray[Any], allowed: Any) -> Any:
        return self.output(self.array(self.prepare(obs)), allowed=None if allowed is None else self.array(allowed))


def _categorical_kl(old: Any, new: Any) -> Any:
    """KL ``[B]`` of the softmax of the one logits from that of the others; what both forbid adds 0."""
    old, new = log_softmax(old), log_softmax(new)
    difference = old - new
    difference[old == -np.inf] = 0.0
    return (exp(old) * difference).sum(1)


def orthogonal(shape: Sequence[int], gain: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A matrix with orthogonal rows or columns of the length `gain`, of all such ones alike (Saxe et al. 2014)."""
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q *= np.sign(np.diag(r))
    found: NDArray[np.float32] = (gain * (q if rows >= columns else q.T)).astype(np.float32)
    return found


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
        mean, var = (np.asarray(state[name], np.float64) for name in ("mean", "var"))
        if mean.shape != self.mean.shape or var.shape != self.var.shape:
            raise ValueError(f"moments must have shape {self.mean.shape}, got {mean.shape} and {var.shape}")
        if type(state["count"]) is not int or not 0 <= state["count"] < 2**62:
            raise ValueError(f"moments must have a count >= 0, got {state['count']!r}")
        if not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all()):
            raise ValueError("moments must be finite, and variances >= 0")
        self.count, self.mean, self.var = state["count"], mean, var

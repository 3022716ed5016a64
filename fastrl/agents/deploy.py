"""A trained policy as a plain torch module, to be exported or run where fastrl is not.  Imports torch."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.agents.envs import Envs
from fastrl.agents.hyperparameters.off_policy import QTOptConfig
from fastrl.agents.networks import Network, OwnNetwork
from fastrl.agents.spaces import input_scale, values_of


class TorchPolicy(nn.Module):
    """Observations ``[B, ...]`` -> the actions ``[B, ...]`` of the greedy policy, both as the environment has them.

    discrete: argmax_a out_a(s), of each part of a MultiDiscrete or MultiBinary
    continuous: clip(middle + half * f(out), low, high) with f = tanh or the identity

    ``policy(obs, action_masks)`` with masks ``[B, K]`` or ``[K]`` of bools, or 0 and 1, keeps to the allowed actions.
    Observations are raw, as vector environments stack them: bytes of images as they are, Discrete ones as numbers
    ``[B]``, of a Dict space a dict of tensors and of a Tuple a tuple.  Raises ValueError for another shape, and for
    floats where the space has whole numbers.  It holds copies, on the CPU, and shares nothing with the agent.

    Args:
        network: its outputs begin with values or logits ``[B, K]``, or with the actions' ``[B, A]``.
        envs: whose spaces it is for.
        tanh: f.
        units: (middle, half), shaped like the actions.
        atoms: the outputs are ``[B, K, N]``, in rows: logits of probabilities on these N atoms, or if it is a number,
            N quantiles; their mean is the value.
        taus: what the network takes besides, the same for all observations, ``[N]``; None: nothing.
        moments: (mean, var) by which observations are normalised, to (s - mean) / sqrt(var + 1e-8) in [-10, 10].
    """

    mean: Tensor
    var: Tensor
    middle: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    atoms: Tensor | None
    taus: Tensor | None
    first: Tensor

    def __init__(
        self,
        network: Network | nn.Module,
        envs: Envs,
        *,
        tanh: bool = False,
        units: Any = None,
        moments: Any = None,
        atoms: Any = None,
        taus: Any = None,
    ) -> None:
        super().__init__()
        module = network if isinstance(network, nn.Module) else network.to_torch()
        self.network = copy.deepcopy(module).cpu().eval()
        for p in self.network.parameters():
            p.grad = None
            p.requires_grad_(False)
        self.tanh, self._flat = tanh, not isinstance(network, OwnNetwork)
        self.inputs = Inputs(envs, scaled=moments is None)
        self._moments = moments is not None
        if moments is not None:
            for name, x in zip(("mean", "var"), moments, strict=True):
                self.register_buffer(name, torch.as_tensor(np.array(x, np.float64)))
        space: Any = envs.action_space
        self.discrete = not isinstance(space, gym.spaces.Box)
        self._sizes: list[int] = []
        if self.discrete:
            sizes, first = values_of(space)
            self._sizes = sizes.tolist()
            self.register_buffer("first", torch.as_tensor(first))
            self._dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
        if not self.discrete:
            middle, half = (np.zeros(space.shape), np.ones(space.shape)) if units is None else units
            bounds = {"middle": middle, "scale": half, "low": space.low, "high": space.high}
            for name, x in bounds.items():
                self.register_buffer(name, torch.as_tensor(np.array(x, space.dtype)))
        self._quantiles = isinstance(atoms, int)
        self.register_buffer("atoms", None if atoms is None else torch.as_tensor(np.array(atoms, np.float32)))
        self.register_buffer("taus", None if taus is None else torch.as_tensor(np.array(taus, np.float32)))
        self._shape, self._n_actions = space.shape, sum(self._sizes) if self.discrete else int(np.prod(space.shape))

    def forward(self, obs: Any, action_masks: Tensor | None = None) -> Tensor:
        x = self._inputs(obs)
        more = () if self.taus is None else (self.taus.expand(x.shape[0], -1),)
        return self._actions(self.network(x.flatten(1) if self._flat else x, *more), action_masks)

    def _inputs(self, obs: Any) -> Tensor:
        x: Tensor = self.inputs(obs)
        if self._moments:
            scaled = (x - self.mean) / torch.sqrt(self.var + 1e-8)
            return scaled.clamp(-10.0, 10.0).float()
        return x

    def _actions(self, out: Tensor, action_masks: Tensor | None = None) -> Tensor:
        if action_masks is not None and not self.discrete:
            raise ValueError("policy: action_masks must be None, because actions are continuous")
        if self.atoms is not None:
            each = out.reshape(out.shape[0], self._n_actions, -1)
            out = each.mean(2) if self._quantiles else each.softmax(2) @ self.atoms
        action = out[:, : self._n_actions]
        if action_masks is not None:
            if action_masks.shape[-1] != self._n_actions or action_masks.ndim > 2:
                got = f"(B, {self._n_actions}) or ({self._n_actions},), got {tuple(action_masks.shape)}"
                raise ValueError(f"policy: action_masks must have shape {got}")
            action = action.masked_fill(action_masks == 0, -torch.inf)
        if self.discrete:
            best = [part.argmax(1) for part in torch.split(action, self._sizes, 1)]
            return (torch.stack(best, 1) + self.first).reshape(-1, *self._shape).to(self._dtype)
        action = (action.tanh() if self.tanh else action).to(self.scale.dtype).reshape(-1, *self._shape)
        scaled = self.middle + self.scale * action
        return torch.minimum(torch.maximum(scaled, self.low), self.high)


class Inputs(nn.Module):
    """Raw observations ``[B, ...]`` -> what the networks take, in float32: those of a Box in their shape, others as one
    vector ``[B, n]``, as `fastrl.agents.spaces.Flattened` makes it.  Bytes 0..255 become 0..1.

    `scaled`: unless bytes of a Box are to stay as they are.
    """

    def __init__(self, envs: Envs, *, scaled: bool) -> None:
        super().__init__()
        self._flat = envs.flattened is not None
        self._scaled = scaled or self._flat
        self._plan = _plan(envs.raw_space, "obs")

    def forward(self, obs: Any) -> Tensor:
        parts = self._parts(self._plan, obs)
        return torch.cat([part.flatten(1) for part in parts], 1) if self._flat else parts[0]

    def _parts(self, plan: Any, obs: Any) -> list[Tensor]:
        if isinstance(plan, Leaf):
            plan.check(obs)
            return [self._part(plan, obs)]
        keys: list[Any] = plan.keys
        if plan.named and (not isinstance(obs, dict) or len(obs) != len(keys) or any(key not in obs for key in keys)):
            got = ", ".join(map(str, obs)) if isinstance(obs, dict) else type(obs).__name__
            raise ValueError(f"policy: {plan.name} must be a dict with {', '.join(map(str, keys))}, got {got}")
        if not plan.named and (not isinstance(obs, (tuple, list)) or len(obs) != len(keys)):
            got = str(len(obs)) if isinstance(obs, (tuple, list)) else type(obs).__name__
            raise ValueError(f"policy: {plan.name} must be a tuple of {len(keys)}, got {got}")
        found = []
        for i, key in enumerate(keys):
            found += self._parts(plan.parts[i], obs[key])
        return found

    def _part(self, leaf: Leaf, x: Tensor) -> Tensor:
        if leaf.values is None:
            if leaf.scale is not None and self._scaled:
                return x.float() * leaf.scale
            return x.float() if self._flat or self._scaled else x.double()  # as moments are
        columns = []
        for i, (size, first) in enumerate(leaf.values):
            place = x.reshape(x.shape[0], -1)[:, i, None].long() - first
            columns.append(torch.zeros(x.shape[0], size).scatter(1, place, 1.0))  # raises for what is not there
        return torch.cat(columns, 1)


class Leaf:
    """A simple space, as plain numbers, which torch.export can follow."""

    def __init__(self, space: Any, name: str) -> None:
        self.name, self.shape, self.scale = name, tuple(space.shape or ()), input_scale(space)
        self.wanted = f"a tensor of shape ({', '.join(map(str, ('B', *self.shape)))})"
        box = isinstance(space, gym.spaces.Box)
        self.whole = "bytes 0..255" if self.scale is not None else None if box else "whole numbers"
        numbers = box or isinstance(space, gym.spaces.MultiBinary)
        # How many values each part has, and the first of them; None: numbers that are taken as they are.
        self.values: list[list[int]] | None = None if numbers else np.stack(values_of(space), 1).tolist()

    def check(self, x: Any) -> None:
        """Raise ValueError unless `x` is a batch of observations."""
        if not isinstance(x, Tensor) or x.ndim != len(self.shape) + 1 or tuple(x.shape[1:]) != self.shape:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"policy: {self.name} must be {self.wanted}, got {got}")
        if self.whole is not None and x.is_floating_point():
            raise ValueError(f"policy: {self.name} must be {self.whole} as the environment gives them, got {x.dtype}")


class Branch:
    """A Dict or a Tuple space."""

    def __init__(self, space: Any, name: str) -> None:
        self.name, self.named = name, isinstance(space, gym.spaces.Dict)
        self.keys = list(space.spaces) if self.named else list(range(len(space.spaces)))
        self.parts = [_plan(space[key], f"{name}[{key!r}]") for key in self.keys]


def _plan(space: Any, name: str) -> Leaf | Branch:
    return (Branch if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)) else Leaf)(space, name)


class RecurrentTorchPolicy(TorchPolicy):
    """Observations ``[B, ...]`` and the state ``[B, S]`` -> actions ``[B, ...]`` and the state after them.

    ``policy(obs, state, action_masks)`` keeps to the allowed actions.  The state is 0 where an episode
    begins: ``policy.start(B)``.
    """

    def __init__(self, network: Any, envs: Envs, **options: Any) -> None:
        super().__init__(network, envs, **options)
        self._state_size: int = network.module.state_size

    def forward(  # type: ignore[override]
        self, obs: Any, state: Tensor, action_masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        out, state = self.network(self._inputs(obs).flatten(1)[None], state)
        return self._actions(out[0], action_masks), state

    def start(self, n: int = 1) -> Tensor:
        """The state ``[n, S]`` of episodes that begin."""
        return torch.zeros(n, self._state_size)


class Search(nn.Module):
    """`cem_argmax` in plain torch: observations ``[B, n]`` -> actions ``[B, A]``.

    `own`: the shape of the observations that a network of the user's own takes, beside the actions.
    """

    noise: Tensor

    def __init__(self, q: nn.Module, own: tuple[int, ...] | None, noise: NDArray[Any], config: QTOptConfig) -> None:
        super().__init__()
        self.q, self.own = q, own
        self.register_buffer("noise", torch.as_tensor(noise, dtype=torch.float64))
        self.elites, self.std = config.cem_elites, config.cem_std

    def forward(self, obs: Tensor) -> Tensor:
        iterations, samples, a = self.noise.shape
        states = obs[:, None].expand(-1, samples, -1).flatten(0, 1)
        mean, sigma = self.noise.new_zeros(obs.shape[0], 1, a), self.noise.new_full((1,), self.std)
        found, values = [], []
        for t in range(iterations):
            x = (mean + sigma * self.noise[t]).clamp(-1, 1).float()
            flat = x.flatten(0, 1)
            if self.own is None:
                q = self.q(torch.cat((states, flat), 1))
            else:
                q = self.q(states.reshape(-1, *self.own), flat)
            order = q.reshape(-1, samples).argsort(dim=1, descending=True, stable=True)[:, : self.elites]
            chosen = x.gather(1, order[:, :, None].expand(-1, -1, a))
            found.append(chosen[:, 0])
            values.append(q.reshape(-1, samples).amax(1))
            mean = chosen.double().mean(1, keepdim=True)
            sigma = chosen.double().std(1, correction=0, keepdim=True)
        best = torch.stack(values).argmax(0)
        return torch.stack(found, 1).gather(1, best[:, None, None].expand(-1, 1, a))[:, 0]


def values_of_model(model: Any) -> nn.Module:
    """Q ``[B, A]`` of `fastrl.agents.fqi.FQI`'s model, as a module."""
    if hasattr(model, "nodes"):
        return Trees(model)
    if hasattr(model, "net"):
        return Least(model.net.to_torch())
    states, actions = model.q.shape
    table = nn.Linear(states, actions, bias=False)
    table.weight.data = torch.as_tensor(model.q.T.copy())
    return nn.Sequential(ToDouble(), table)


class ToDouble(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


class Least(nn.Module):
    """The least of what several networks give, ``[B, A]``."""

    def __init__(self, networks: nn.Module) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x) for network in self.networks.children()]).amin(0)


class Trees(nn.Module):
    """The mean over each action's trees, ``[B, A]``."""

    feature: Tensor
    threshold: Tensor
    child: Tensor
    value: Tensor

    def __init__(self, forest: Any) -> None:
        super().__init__()
        self.actions, self.trees = forest.actions, forest.trees
        for name, array in forest.nodes._asdict().items():
            self.register_buffer(name, torch.as_tensor(np.array(array)))

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(self.actions * self.trees).expand(x.shape[0], -1)
        while True:
            child = self.child[at]
            if not child.any():
                return self.value[at].reshape(-1, self.actions, self.trees).mean(2).float()
            right = x.gather(1, self.feature[at]) >= self.threshold[at]
            at = torch.where(child > 0, child + right, at)


class TablePolicy(nn.Module):
    """Observations ``[B]`` -> actions ``[B]``, from a table; raises IndexError for states that it does not have.

    Raises ValueError for another shape, and for floats.
    """

    actions: Tensor

    def __init__(self, actions: NDArray[Any], space: Any) -> None:
        super().__init__()
        self.register_buffer("actions", torch.from_numpy(actions.astype(np.int64)))
        self._states, self._first = Leaf(space, "obs"), int(space.start)

    def forward(self, obs: Tensor) -> Tensor:
        self._states.check(obs)
        return self.actions.index_select(0, obs.long() - self._first)

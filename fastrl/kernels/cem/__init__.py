"""The cross-entropy method (Rubinstein 1999) as the argmax over actions, as QT-Opt has it (Kalashnikov et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.backends import choose
from fastrl.kernels.cem import reference
from fastrl.kernels.mlp import MLP
from fastrl.kernels.normal import normal_sample
from fastrl.kernels.random import Generator

backend = choose(__package__)

_ACTIVATIONS = {"none": 0, "relu": 1, "tanh": 2, "silu": 3}  # as the extension numbers them


def cem_argmax(
    q: MLP | Callable[[Any, Any], Any],
    obs: Any,
    n_actions: int | None = None,
    *,
    iterations: int = 2,
    samples: int = 64,
    elites: int = 6,
    std: float = 1.0,
    noise: Any = None,
    generator: Generator | None = None,
) -> tuple[Any, Any]:
    """About argmax_a Q(s_b, a) over a in [-1, 1]^A, and Q there, for each state b = 0 .. B-1.

    For t = 0 .. T-1 and i = 0 .. N-1: a_bi = clip(m_b + sigma_b eps_ti, -1, 1), from m = 0 and sigma = std;  then m_b
    and sigma_b are mean and standard deviation (divisor M), action by action, of the M a_bi with the largest
    Q(s_b, a_bi).  The result is the best of all T N actions.

    All states share the noise, so what is found for one does not depend on the others.  Of equal values the first is
    the better one, NaN is the least.  Values that differ by no more than rounding may be ranked otherwise on another
    backend.

    Args:
        q: an `MLP` with n + A inputs and one output, whose forward pass is part of the kernel; or any function of
            (obs [R, ...], action [R, A]) that gives [R].
        obs: float32 [B, n], NumPy or torch; what the function takes, [B, ...].
        n_actions: A; may be left out with an MLP or with `noise`.
        iterations, samples, elites: T, N, and M <= N.
        std: of the first iteration, finite and > 0.
        noise: eps float32 [T, N, A] instead of a draw, which says T, N and A then.
        generator: a `Generator` on the device of `obs`; None: the default one (`fastrl.manual_seed`).  T N A standard
            normals, drawn as those of `normal_sample`.

    Returns:
        action [B, A] and value [B], of the kind and on the device of `obs`, without gradients.

    Raises:
        TypeError, ValueError: a wrong kind, dtype, shape or value.

    Sources: Rubinstein 1999, doi:10.1023/A:1010091220143; Kalashnikov et al. 2018, arXiv:1806.10293, section 4.2 (whose
    T, N and M are the defaults).

    >>> def q(obs, action):
    ...     return -((action[:, 0] - obs[:, 0]) ** 2)
    >>> action, value = cem_argmax(q, np.full((1, 3), 0.5, np.float32), 1, generator=Generator(0))
    >>> bool(abs(action[0, 0] - 0.5) < 0.05)
    True
    """
    if isinstance(q, MLP) and (q.n is not None or q.sizes[-1] != 1):
        raise ValueError(f"cem_argmax: q must be one network with one output, got {q!r}")
    if not isinstance(q, MLP) and not callable(q):
        raise TypeError(f"cem_argmax: q must be an MLP or a function, got {type(q).__name__}")
    x = _arrays.load_on_device(obs, "cem_argmax: obs", ("float32",))
    if x.ndim < 2:
        raise ValueError(f"cem_argmax: obs must have shape [B, ...], got {tuple(x.shape)}")
    if noise is None:
        a = q.sizes[0] - x.shape[1] if n_actions is None and isinstance(q, MLP) else n_actions
        noise = _draw(obs, {"iterations": iterations, "samples": samples, "n_actions": a}, generator)
    eps = _arrays.load_on_device(noise, "cem_argmax: noise", ("float32",), first=obs, name="obs")
    if eps.ndim != 3 or 0 in eps.shape or n_actions not in (None, eps.shape[2]):
        wanted = "A" if n_actions is None else n_actions
        raise ValueError(f"cem_argmax: noise must have shape [T, N, {wanted}], got {tuple(eps.shape)}")
    if not _arrays.is_int(elites) or not 1 <= elites <= eps.shape[1]:
        raise ValueError(f"cem_argmax: elites must be an int in [1, samples = {eps.shape[1]}], got {elites!r}")
    if _arrays.load_float(std, "cem_argmax: std") == 0:
        raise ValueError("cem_argmax: std must be > 0, got 0.0")
    if not isinstance(q, MLP):
        if not isinstance(obs, np.ndarray):
            obs, noise = obs.detach(), noise.detach()
        return reference.search(_checked(q), obs, noise, int(elites), float(std))
    n = q.sizes[0] - eps.shape[2]
    if tuple(x.shape) != (len(x), n):
        raise ValueError(
            f"cem_argmax: obs must have shape (B, {n}), beside {eps.shape[2]} of the {q.sizes[0]} inputs of q, "
            f"got {tuple(x.shape)}"
        )
    if q.device != "cpu":
        return reference.search(lambda s, u: q.forward((s, u))[:, 0], x, eps, int(elites), float(std))
    found: tuple[Any, Any] = backend.of(obs).cem_argmax(
        list(q.sizes), _ACTIVATIONS[q.activation], q.layer_norm, q.dueling, q.vector, obs, noise, int(elites),
        float(std),
    )  # fmt: skip
    return found


def _checked(q: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def checked(states: Any, action: Any) -> Any:
        value = q(states, action)
        if not isinstance(value, type(action)) or tuple(value.shape) != (len(action),):
            got = f"a {type(value).__name__} {tuple(getattr(value, 'shape', ()))}"
            raise ValueError(f"cem_argmax: q must give a {type(action).__name__} of shape ({len(action)},), got {got}")
        return value if isinstance(value, np.ndarray) else value.detach()

    return checked


def _draw(obs: Any, sizes: dict[str, Any], generator: Generator | None) -> Any:
    """eps [T, N, A] of the kind and on the device of `obs`."""
    for name, value in sizes.items():
        if not _arrays.is_int(value) or not 1 <= value <= 2**20:
            raise ValueError(f"cem_argmax: {name} must be an int in [1, 2**20], got {value!r}")
    t, n, a = map(int, sizes.values())
    zero = np.zeros((t * n, a), np.float32)
    if not isinstance(obs, np.ndarray):
        zero = obs.detach().new_zeros(t * n, a)
    eps, _ = normal_sample(zero, zero[0], generator=generator)
    return eps.reshape(t, n, a)


def cem_argmax_reference(q: Any, obs: Any, *, noise: Any, elites: int = 6, std: float = 1.0) -> tuple[Any, Any]:
    """`cem_argmax` in plain NumPy (torch for a CUDA tensor), for the noise given."""
    forward = (lambda s, u: q.forward((s, u))[:, 0]) if isinstance(q, MLP) else q
    return reference.search(forward, obs, noise, elites, std)

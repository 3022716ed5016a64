"""The scans and the sum tree inside JAX programs, on the CPU: XLA calls the compiled kernels (extra ``jax``).

`gae`, `lambda_returns`, `discounted_returns`, `n_step_returns`, `vtrace`, `off_policy_returns`, `reverse_affine_scan`
and `SumTree` are those of ``fastrl`` for JAX arrays and tracers: inside `jax.jit`, `jax.vmap`, `jax.lax.scan` and
`jax.grad`, with no callback into Python.  What the scans share:

- Equations, shapes ``[T, N]`` or ``[T]``, masks and cont_t are those of ``help(fastrl.kernels.scans)``, and so are the
  numbers, to the last bit.  All float arrays of a call are float32 or all float64 (which needs ``jax_enable_x64``).
- Flags are bool, or numbers of which any but 0 counts as 1: their values are not looked at, as tracers have none.
- gamma, lam, n and the clips are Python numbers, fixed when a program is traced.
- ``vmap`` puts the batch before T; what is not batched is repeated for it.
- No gradient flows through them (`jax.grad` finds zeros, as behind `jax.lax.stop_gradient`), except through
  `reverse_affine_scan`.
- On other devices than the CPU XLA says, when it compiles, that it has no such function.

Raises TypeError for arguments of a wrong kind and traced parameters, ValueError for wrong dtypes, shapes and ranges,
and ImportError on import without the compiled extension or with a JAX that has no `jax.ffi` (before 0.5).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrl import _backend

try:
    import jax
    import jax.ffi
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError(f"fastrl.jax needs JAX with jax.ffi, which came with 0.5 (pip install jax): {error}") from error
if _backend._C is None:
    raise ImportError(f"fastrl.jax needs the compiled extension fastrl._C ({_backend.C_ERROR})")

__all__ = [
    "SumTree",
    "discounted_returns",
    "gae",
    "lambda_returns",
    "n_step_returns",
    "off_policy_returns",
    "reverse_affine_scan",
    "vtrace",
]

Array = Any  # a JAX array or tracer, or what jnp.asarray takes
TRUNCATED, MASK, CUT, NEXT_VALUES = 1, 2, 4, 8  # which arguments a call has, as csrc/scans/jax.cpp reads it


def _register() -> None:
    """Make the kernels known to XLA, as of the version of the interface that this JAX has."""
    header = (Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h").read_text(encoding="utf-8")
    major, minor = (int(re.search(rf"#define XLA_FFI_API_{n} (\d+)", header)[1]) for n in ("MAJOR", "MINOR"))  # type: ignore[index]
    if major != 0:
        raise ImportError(f"fastrl.jax needs version 0 of XLA's FFI, JAX {jax.__version__} has {major}.{minor}")
    for name, handler in _backend._C.jax_handlers(major, minor).items():
        jax.ffi.register_ffi_target(f"fastrl_{name}", handler, platform="cpu")


_register()


def gae(
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    *,
    gamma: float,
    lam: float,
    mask: Array = None,
) -> tuple[Any, Any]:
    """Advantages A_t = delta_t + gamma lam A_{t+1} where cont_t, else delta_t, and returns_t = A_t + V_t.

    delta_t = r_t + gamma (1 - terminated_t) V'_t - V_t.  Arguments and results are those of `fastrl.gae`.
    """
    call = _Call("gae", rewards=rewards, values=values, next_values=next_values)
    call.flags(terminated=terminated, truncated=truncated, mask=mask)
    g = call.discount("gamma", gamma)
    lam = call.discount("lam", lam)
    return call.run(2, gamma=g, continuation=call.rounded(g * lam))  # type: ignore[no-any-return]


def lambda_returns(
    rewards: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    *,
    gamma: float,
    lam: float,
    mask: Array = None,
) -> Any:
    """G_t = r_t + gamma [(1 - lam) V'_t + lam G_{t+1}] where cont_t, else r_t + gamma (1 - terminated_t) V'_t.

    Arguments and results are those of `fastrl.lambda_returns`.
    """
    call = _Call("lambda_returns", rewards=rewards, next_values=next_values)
    call.flags(terminated=terminated, truncated=truncated, mask=mask)
    g = call.discount("gamma", gamma)
    lam = call.discount("lam", lam)
    return call.run(1, gamma=g, continuation=call.rounded(g * lam))


def discounted_returns(
    rewards: Array,
    terminated: Array,
    truncated: Array,
    *,
    gamma: float,
    next_values: Array = None,
    mask: Array = None,
) -> Any:
    """G_t = r_t + gamma G_{t+1} where cont_t, else r_t + gamma (1 - terminated_t) V'_t; without `next_values` V' is 0.

    Arguments and results are those of `fastrl.discounted_returns`.
    """
    call = _Call("discounted_returns", rewards=rewards, next_values=next_values)
    call.flags(terminated=terminated, truncated=truncated, mask=mask)
    return call.run(1, gamma=call.discount("gamma", gamma))


def n_step_returns(
    rewards: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    *,
    gamma: float,
    n: int,
    cut: Array = None,
    mask: Array = None,
) -> tuple[Any, Any, Any]:
    """G_t = sum_{k=0}^{m-1} gamma^k r_{t+k} + gamma^m (1 - terminated_{t+m-1}) V'_{t+m-1}, m <= n up to the end.

    Arguments and results are those of `fastrl.n_step_returns`; ``last`` is int32 without ``jax_enable_x64``.
    """
    call = _Call("n_step_returns", rewards=rewards, next_values=next_values)
    call.flags(terminated=terminated, truncated=truncated, mask=mask, cut=cut)
    g = call.discount("gamma", gamma)
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"n_step_returns: n must be an int, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"n_step_returns: n must be >= 1, got {n}")
    return call.run(3, gamma=g, n=np.int64(min(n, 2**62)))  # type: ignore[no-any-return]


def vtrace(
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    log_rhos: Array,
    *,
    gamma: float,
    lam: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    pg_rho_clip: float = 1.0,
    mask: Array = None,
) -> tuple[Any, Any]:
    """V-trace targets vs and the advantages of the policy gradient; `fastrl.vtrace` has the equations.

    Arguments and results are those of `fastrl.vtrace`, but for pg_lam, discounts, layout and out.
    """
    call = _Call("vtrace", rewards=rewards, values=values, next_values=next_values, log_rhos=log_rhos)
    call.flags(terminated=terminated, truncated=truncated, mask=mask)
    g = call.discount("gamma", gamma)
    lam = call.discount("lam", lam)
    clips = {"rho_clip": rho_clip, "c_clip": c_clip, "pg_rho_clip": pg_rho_clip}
    numbers = {name: call.number(name, clip, math.inf) for name, clip in clips.items()}
    return call.run(2, gamma=g, lam=lam if call.rounded(g * lam) else 0.0, **numbers)  # type: ignore[no-any-return]


def off_policy_returns(
    rewards: Array,
    q_values: Array,
    next_state_values: Array,
    traces: Array,
    terminated: Array,
    truncated: Array,
    *,
    gamma: float,
    mask: Array = None,
) -> Any:
    """y_t = r_t + gamma (1 - terminated_t) [V'_t + c_{t+1} (y_{t+1} - Q_{t+1})], the last term only where cont_t.

    Arguments and results are those of `fastrl.off_policy_returns`.
    """
    floats = {"rewards": rewards, "q_values": q_values, "next_state_values": next_state_values, "traces": traces}
    call = _Call("off_policy_returns", **floats)
    call.flags(terminated=terminated, truncated=truncated, mask=mask)
    return call.run(1, gamma=call.discount("gamma", gamma))


def reverse_affine_scan(a: Array, b: Array, y_T: Array = None) -> Any:
    """y_t = b_t + a_t y_{t+1} for t = T-1 .. 0, with y_T given (a number, or like b[0]) or 0.

    Differentiable in a, b and y_T, any number of times: with g_t = dL/dy_t and l_t = g_t + a_{t-1} l_{t-1},
    dL/db_t = l_t, dL/da_t = l_t y_{t+1} and dL/dy_T = a_{T-1} l_{T-1}.
    """
    call = _Call("reverse_affine_scan", a=a, b=b)
    a, b = call.arrays
    if y_T is not None and b.shape[0]:
        y_T = jnp.asarray(y_T, b.dtype)
        if y_T.shape not in ((), b.shape[1:]):
            raise ValueError(f"reverse_affine_scan: y_T must have shape {b.shape[1:]} like b[0], got {y_T.shape}")
        b = b.at[-1].add(jnp.where(a[-1] != 0, a[-1] * y_T, 0))
    return _affine(a, b)


@jax.custom_vjp
def _affine(a: Any, b: Any) -> Any:
    return _run("reverse_affine_scan", 0, 1, 2, (), a, b, jnp.zeros(a.shape, jnp.bool_))


def _affine_forward(a: Any, b: Any) -> tuple[Any, Any]:
    y = _affine(a, b)
    return y, (a, y)


def _affine_backward(saved: Any, g: Any) -> tuple[Any, Any]:
    a, y = saved
    zero = jnp.zeros_like(a[:1])
    grad_b = _affine(jnp.concatenate([zero, a[:-1]])[::-1], g[::-1])[::-1]
    return grad_b * jnp.concatenate([y[1:], zero]), grad_b


_affine.defvjp(_affine_forward, _affine_backward)


@jax.tree_util.register_pytree_node_class
class SumTree:
    """`fastrl.SumTree` as a value: a pytree of JAX arrays, all priorities 0 at first.

    P(i) = p_i / sum_k p_k of p_0 .. p_{capacity - 1}.  `update` returns the tree after it.  It is done in place,
    without a copy, where nothing else uses the tree before it: in the carry of `jax.lax.scan`, and in a `jax.jit` that
    donates it; else XLA copies the tree first.  Leaves are float32 or float64 (which needs ``jax_enable_x64``), sums
    always float64.

    ``vmap`` maps over trees (whose arrays then have the batch before them), keys, indices and priorities; a tree that
    is not mapped is sampled without being repeated.  No gradient flows through a tree.

    Args:
        capacity: int in [1, 2^31 - 1].
        dtype: of the leaves.

    Source: Schaul et al., "Prioritized Experience Replay" (2016), arXiv:1511.05952.
    """

    def __init__(self, capacity: int, dtype: Any = np.float32) -> None:
        self.capacity = _integer("sum_tree: capacity", capacity)
        name = jnp.dtype(dtype).name
        if name not in ("float32", "float64") or jax.dtypes.canonicalize_dtype(dtype) != name:
            x64 = " (which needs jax_enable_x64)" if name == "float64" else ""
            raise ValueError(f"sum_tree: dtype must be float32 or float64, got {name}{x64}")
        leaves, nodes = _backend._C.jax_sum_tree_sizes(self.capacity, name == "float64")
        self._arrays = jnp.zeros(leaves, name), jnp.zeros(nodes, jnp.uint32), jnp.zeros(1, name)

    def update(self, indices: Array, priorities: Array) -> SumTree:
        """The tree with p[indices[b]] = priorities[b] for b = 0 .. B-1 in order: of equal indices the last one wins.

        Args:
            indices: int32 or int64, ``[B]`` or ``[]``, each in [0, capacity).
            priorities: float32 or float64, like `indices` or ``[]``; finite and >= 0, at most 2^960.  A positive one
                below the smallest normal number of the tree's dtype counts as that number.

        Indices and priorities that are none end the program by XLA's error, which names the first of them.
        """
        found, given = jnp.asarray(indices), jnp.asarray(priorities)
        if found.dtype not in (jnp.int32, jnp.int64):
            raise ValueError(f"sum_tree.update: indices must have dtype int32 or int64, got {found.dtype}")
        if given.dtype not in (jnp.float32, jnp.float64):
            if not isinstance(priorities, (int, float)) or isinstance(priorities, bool):
                raise ValueError(f"sum_tree.update: priorities must have dtype float32 or float64, got {given.dtype}")
            given = given.astype(jnp.float32)
        if found.ndim > 1:
            raise ValueError(f"sum_tree.update: indices must have shape [B] or [], got {found.shape}")
        if given.shape not in ((), found.shape):
            raise ValueError(
                f"sum_tree.update: priorities must have shape {found.shape} like indices, got {given.shape}"
            )
        return self.tree_unflatten(self.capacity, _update_tree(self.capacity, *self._one("update"), found, given))

    def sample(self, key: Array, batch_size: int, *, stratified: bool = True) -> tuple[Any, Any]:
        """Draw `batch_size` indices with P(i) = p_i / total, as the bits of `key` have it.

        stratified: u_b uniform in slice b of `batch_size` equal slices of [0, total); else independent draws.

        Args:
            key: one of `jax.random`: the same key draws the same.
            batch_size: a Python int >= 1, fixed when a program is traced.

        Returns:
            indices ``[B]`` and probabilities P(i) ``[B]``, int64 and float64 with ``jax_enable_x64``, else int32 and
            float32.  Of a tree whose total is 0 indices 0 and probabilities NaN, not an error: under ``vmap`` both
            branches of a `jax.lax.cond` are run.
        """
        n = _integer("sum_tree.sample: batch_size", batch_size)
        return _sample_tree(self.capacity, n, bool(stratified), *self._one("sample"), key)  # type: ignore[no-any-return]

    @property
    def priorities(self) -> Any:
        """p ``[capacity]``."""
        return self._arrays[0][..., : self.capacity]

    @property
    def total(self) -> Any:
        """The sum of all priorities ``[]``, rounded to the tree's dtype."""
        return self._arrays[2][..., 0]

    def __repr__(self) -> str:
        return f"fastrl.jax.SumTree(capacity={self.capacity}, dtype={self._arrays[0].dtype})"

    def _one(self, method: str) -> tuple[Any, Any]:
        leaves, nodes, _ = self._arrays
        if leaves.ndim != 1:
            raise ValueError(f"sum_tree.{method}: these are {leaves.shape[:-1]} trees: use jax.vmap")
        return leaves, nodes

    def tree_flatten(self) -> tuple[tuple[Any, ...], int]:
        """For JAX: the arrays, and the capacity."""
        return self._arrays, self.capacity

    @classmethod
    def tree_unflatten(cls, capacity: int, arrays: Any) -> SumTree:
        """For JAX: the tree of these arrays."""
        tree = object.__new__(cls)
        tree.capacity, tree._arrays = capacity, tuple(arrays)
        return tree


def _integer(where: str, x: Any) -> int:
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)):
        raise TypeError(f"{where} must be an int, got {type(x).__name__}")
    if not 1 <= x < 2**31:
        raise ValueError(f"{where} must be in [1, {2**31 - 1}], got {x}")
    return int(x)


@functools.partial(jax.jit, static_argnums=0)
def _update_tree(capacity: int, leaves: Any, nodes: Any, indices: Any, priorities: Any) -> Any:
    struct: Any = jax.ShapeDtypeStruct
    shapes = [struct(leaves.shape, leaves.dtype), struct(nodes.shape, nodes.dtype), struct((1,), leaves.dtype)]
    call: Any = jax.ffi.ffi_call(
        "fastrl_sum_tree_update", shapes, vmap_method="broadcast_all", input_output_aliases={0: 0, 1: 1}
    )
    indices = jnp.atleast_1d(indices)
    priorities = jnp.broadcast_to(priorities, indices.shape)
    inputs = [jax.lax.stop_gradient(x) for x in (leaves, nodes, indices, priorities)]
    return call(*inputs, capacity=np.int64(capacity))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sample_tree(capacity: int, n: int, stratified: bool, leaves: Any, nodes: Any, key: Any) -> Any:
    struct: Any = jax.ShapeDtypeStruct
    shapes = [struct((n,), jax.dtypes.canonicalize_dtype(x)) for x in (np.int64, np.float64)]
    call: Any = jax.ffi.ffi_call("fastrl_sum_tree_sample", shapes, vmap_method="expand_dims")
    seed = jax.random.bits(key, (2,), jnp.uint32)
    inputs = jax.lax.stop_gradient(leaves), nodes, seed
    return tuple(call(*inputs, capacity=np.int64(capacity), stratified=np.int64(stratified)))


class _Call:
    """The arguments of one call, checked one after another."""

    def __init__(self, op: str, **arrays: Any) -> None:
        self.op, self.present = op, NEXT_VALUES if arrays.get("next_values") is not None else 0
        self.arrays: list[Any] = []
        for name, array in arrays.items():
            if array is None and name == "next_values" and op in ("discounted_returns", "n_step_returns"):
                continue
            self.arrays.append(self._array(name, array))
            first = self.arrays[0]
            if self.arrays[-1].dtype not in (jnp.float32, jnp.float64):
                raise ValueError(f"{op}: {name} must have dtype float32 or float64, got {self.arrays[-1].dtype}")
            if self.arrays[-1].dtype != first.dtype:
                like = f"{first.dtype} like {next(iter(arrays))}"
                raise ValueError(f"{op}: {name} must have dtype {like}, got {self.arrays[-1].dtype}")
        if self.arrays[0].ndim not in (1, 2):
            shape = self.arrays[0].shape
            raise ValueError(f"{op}: {next(iter(arrays))} must have shape [T] or [T, N], got {shape}")
        self.first = next(iter(arrays))
        for name, array in zip([n for n, x in arrays.items() if x is not None], self.arrays, strict=True):
            self._check_shape(name, array)
        self.narrow, self.floats = self.arrays[0].dtype == jnp.float32, len(self.arrays)

    def flags(self, terminated: Any, **optional: Any) -> None:
        given = {"terminated": terminated, **{name: x for name, x in optional.items() if x is not None}}
        for name, x in given.items():
            flag = self._array(name, x)
            self._check_shape(name, flag)
            self.arrays.append(flag)
        bits = {"truncated": TRUNCATED, "mask": MASK, "cut": CUT}
        self.present |= sum(bits[name] for name in given if name in bits)

    def rounded(self, x: float) -> float:
        """A discount, or a product of them: 0 where the dtype of the arrays makes it that."""
        return 0.0 if self.narrow and np.float32(x) == 0 else x

    def discount(self, name: str, given: Any) -> float:
        return self.rounded(self.number(name, given))

    def number(self, name: str, given: Any, high: float = 1.0) -> float:
        if isinstance(given, jax.core.Tracer):
            raise TypeError(f"{self.op}: {name} must be a Python number, fixed when tracing; got a tracer")
        if isinstance(given, bool) or np.ndim(given) or not np.issubdtype(np.asarray(given).dtype, np.number):
            raise TypeError(f"{self.op}: {name} must be a float, got {type(given).__name__}")
        x = float(given)
        if not 0 <= x <= high:
            raise ValueError(f"{self.op}: {name} must be {'in [0, 1]' if high == 1 else '>= 0'}, got {x}")
        return x

    def run(self, results: int, **attributes: Any) -> Any:
        values = tuple((name, x if name == "n" else np.float64(x)) for name, x in attributes.items())
        return _run(self.op, self.present, results, self.floats, values, *self.arrays)

    def _array(self, name: str, x: Any) -> Any:
        if isinstance(x, jax.Array):
            return x
        try:
            if x is None:  # before JAX 0.6 an array of NaN
                raise TypeError
            return jnp.asarray(x)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{self.op}: {name} must be an array, got {type(x).__name__}") from error

    def _check_shape(self, name: str, array: Any) -> None:
        shape = self.arrays[0].shape
        if array.shape != shape:
            raise ValueError(f"{self.op}: {name} must have shape {shape} like {self.first}, got {array.shape}")


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _run(op: str, present: int, results: int, floats: int, attributes: Sequence[tuple[str, Any]], *arrays: Any) -> Any:
    """The call of a kernel: `floats` arrays of numbers, then flags."""
    first = arrays[0]
    inputs = [jax.lax.stop_gradient(x) for x in arrays[:floats]]
    flags = [x if x.dtype == jnp.bool_ else x != 0 for x in arrays[floats:]]
    struct: Any = jax.ShapeDtypeStruct
    shapes: Any = [struct(first.shape, first.dtype)] * min(results, 2)
    if results == 3:
        shapes.append(struct(first.shape, jax.dtypes.canonicalize_dtype(np.int64)))
    call: Any = jax.ffi.ffi_call(f"fastrl_{op}", shapes, vmap_method="broadcast_all")
    found = call(*inputs, *flags, rank=np.int64(first.ndim), flags=np.int64(present), **dict(attributes))
    return tuple(found) if results > 1 else found[0]

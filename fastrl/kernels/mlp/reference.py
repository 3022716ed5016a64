"""MLPs, their losses and their optimizer in NumPy and float64: what the other backends are held to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.call import Call, give
from fastrl.kernels.mlp._layout import layout, size_of

_F = ("float32",)
_EPS = 1e-5  # of LayerNorm


__all__ = [
    "MlpCore",
    "flat_adam",
    "min_q_loss",
    "min_q_targets",
    "ppo_categorical_loss",
    "ppo_normal_loss",
    "q_learning_loss",
    "q_regression_loss",
    "value_loss",
]


# ---- arguments
def new_vector(n: int, device: str) -> Any:
    return np.zeros(n, np.float32)


def zeros_like(vector: Any) -> Any:
    if isinstance(vector, np.ndarray):
        return np.zeros(len(vector), np.float32)
    return vector.detach().new_zeros(len(vector))


def check_vector(x: Any, where: str, n: int, write: bool = True) -> Any:
    a = _arrays.load(x, where, _F)
    if a.shape != (n,):
        raise ValueError(f"{where} must have shape ({n},), got {a.shape}")
    if not (a.flags.c_contiguous and a.flags.aligned):
        raise ValueError(f"{where} must be contiguous")
    if write and not a.flags.writeable:
        raise ValueError(f"{where} must be writable")
    return a


def load_inputs(x: Any, columns: int) -> tuple[Any, Any]:
    """The columns of x side by side, and the array whose kind the results are of."""
    several = isinstance(x, (tuple, list))
    parts: list[Any] = []
    for i, part in enumerate(x if several else (x,)):
        where = f"MLP: x[{i}]" if several else "MLP: x"
        a = _arrays.load(part, where, _F)
        if a.ndim != 2:
            raise ValueError(f"{where} must have shape [B, C], got {a.shape}")
        if not a.flags.aligned:
            raise ValueError(f"{where} must be aligned")
        if parts and len(a) != len(parts[0]):
            raise ValueError(f"{where} must have {len(parts[0])} rows like x[0], got {len(a)}")
        kind, wanted = _arrays.kind_name(part), _arrays.kind_name(x[0] if several else x)
        if kind != wanted:
            raise TypeError(f"{where} must be a {wanted} like x[0], got a {kind}")
        parts.append(a)
    found = sum(a.shape[1] for a in parts)
    if found != columns:
        raise ValueError(f"MLP: x must have {columns} columns, got {found}")
    return np.concatenate(parts, axis=1), x[0] if several else x


# ---- the networks
class MlpCore:
    """Of fastrl/kernels/mlp/__init__.py."""

    dtype: Any = np.float64

    def __init__(
        self, sizes: list[int], activation: str, n: int, stacked: bool, layer_norm: bool, dueling: int
    ) -> None:
        self._sizes, self._activation, self._n, self._stacked = tuple(sizes), activation, n, stacked
        self._norm, self._dueling = layer_norm, dueling
        self._layout = layout(self._sizes, layer_norm, dueling)
        self.size = size_of(self._layout) * n
        self._tape: list[list[Any]] | None = None  # of each network what each layer saw, a block of layers each

    def forward(self, vector: Any, x: Any, first: int, cached: bool) -> Any:
        v = check_vector(vector, "MLP: vector", self.size, write=False)
        inputs, like = load_inputs(x, self._sizes[0])
        with np.errstate(all="ignore"):
            runs = [self._run(v, k, inputs.astype(self.dtype, order="C")) for k in range(first)]
        if cached:
            self._tape = [tape for _, tape in runs]
            self._shape = (first, len(inputs), self._sizes[-1])
        out = np.stack([y for y, _ in runs]).astype(np.float32)
        return _arrays.like(out if self._stacked else out[0], like)

    def backward(self, d_out: Any, grad: Any, begin: int, end: int) -> Any:
        d = _arrays.load(d_out, "MLP: d_out", _F)
        g = None if grad is None else check_vector(grad, "MLP: grad", self.size)
        if self._tape is None:
            raise RuntimeError("MLP: backward needs a forward_cached before it")
        wanted = self._shape if self._stacked else self._shape[1:]
        if d.shape != wanted:
            raise ValueError(f"MLP: d_out must have shape {wanted} like the outputs of forward_cached, got {d.shape}")
        d = d.reshape(self._shape).astype(self.dtype, order="C")
        if g is not None:
            g[:] = 0
        with np.errstate(all="ignore"):
            parts = [self._go_back(tape, d[k], g, k) for k, tape in enumerate(self._tape)]
        total = np.sum([part[:, begin:end] for part in parts], axis=0).astype(np.float32)
        return _arrays.like(total, d_out) if end > begin else None

    def _views(self, vector: Any, k: int) -> dict[str, Any]:
        start = k * (self.size // self._n)
        return {p.name: vector[start + p.begin : start + p.end].reshape(p.shape) for p in self._layout}

    def _chains(self) -> tuple[list[str], list[str], list[str]]:
        """The names of the Linear layers of the trunk, of the value's stream and of the advantages'."""
        layers, step = len(self._sizes) - 1, 2 + self._norm
        trunk = layers - 2 if self._dueling else layers
        value, advantage = ([f"{step * trunk}.{s}.{i}" for i in (0, step)] for s in ("value", "advantage"))
        return [f"{step * k}" for k in range(trunk)], value, advantage

    def _run(self, vector: Any, k: int, x: Any) -> tuple[Any, list[Any]]:
        p = self._views(vector, k)
        trunk, value, advantage = self._chains()
        h, tape = self._forward(p, trunk, x, ends=not self._dueling)
        if not self._dueling:
            return h, [tape]
        v, value_tape = self._forward(p, value, h, ends=True)
        a, advantage_tape = self._forward(p, advantage, h, ends=True)
        a = a.reshape(len(a), -1, self._dueling)  # [B, actions, atoms]
        out = v[:, None] + a - a.mean(1, keepdims=True)
        return out.reshape(len(a), -1), [tape, value_tape, advantage_tape]

    def _go_back(self, tapes: list[Any], d: Any, grad: Any, k: int) -> Any:
        g = None if grad is None else self._views(grad, k)
        if self._dueling:
            d = d.reshape(len(d), -1, self._dueling)
            d_a = (d - d.mean(1, keepdims=True)).reshape(len(d), -1)
            d = self._backward(tapes[1], d.sum(1), g) + self._backward(tapes[2], d_a, g)
        return self._backward(tapes[0], d, g)

    def _forward(self, p: dict[str, Any], names: list[str], x: Any, ends: bool) -> tuple[Any, list[Any]]:
        """Through the Linear layers `names`; `ends`: the last one has no activation.  The tape has a row a layer."""
        tape = []
        for i, name in enumerate(names):
            weight, hidden = p[f"{name}.weight"].astype(self.dtype), not (ends and i + 1 == len(names))
            z = x @ weight.T + p[f"{name}.bias"].astype(self.dtype)
            scale = normal = inverse = slope = None
            if hidden and self._norm:
                head, _, last = name.rpartition(".")
                norm = f"{head}.{int(last) + 1}" if head else f"{int(last) + 1}"
                scale = p[f"{norm}.weight"].astype(self.dtype)
                inverse = 1 / np.sqrt(z.var(1, keepdims=True) + _EPS)
                normal = (z - z.mean(1, keepdims=True)) * inverse
                z = normal * scale + p[f"{norm}.bias"].astype(self.dtype)
            y = z
            if hidden:
                y, slope = self._activate(z)
            tape.append((name, x, weight, scale, normal, inverse, slope))
            x = y
        return x, tape

    def _backward(self, tape: list[Any], d: Any, g: dict[str, Any] | None) -> Any:
        for name, x, weight, scale, normal, inverse, slope in reversed(tape):
            if slope is not None:
                d = np.where(slope == 0, 0, d * slope) if self._activation == "relu" else d * slope
            if normal is not None:
                if g is not None:
                    head, _, last = name.rpartition(".")
                    norm = f"{head}.{int(last) + 1}" if head else f"{int(last) + 1}"
                    g[f"{norm}.weight"][...], g[f"{norm}.bias"][...] = (d * normal).sum(0), d.sum(0)
                e = d * scale
                d = inverse * (e - e.mean(1, keepdims=True) - normal * (e * normal).mean(1, keepdims=True))
            if g is not None:
                g[f"{name}.weight"][...], g[f"{name}.bias"][...] = d.T @ x, d.sum(0)
            d = d @ weight
        return d

    def _activate(self, z: Any) -> tuple[Any, Any]:
        """f(z) and f'(z)."""
        if self._activation == "relu":
            return np.where(z < 0, 0, z), np.where(z <= 0, 0, 1).astype(z.dtype)
        if self._activation == "tanh":
            y = np.tanh(z)
            return y, 1 - y * y
        if self._activation == "silu":
            s, rest = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
            y = np.where(s == 0, 0, z * s)
            return y, np.where(s == 0, 0, s * (1 + np.where(rest == 0, 0, z * rest)))
        return z, None


# ---- the optimizer
def flat_adam(
    param: Any, grad: Any, exp_avg: Any, exp_avg_sq: Any, target: Any, average: Any, lr: float, beta1: float,
    beta2: float, eps: float, weight_decay: float, steps: float, max_norm: float, tau: float, average_weight: float,
) -> float:  # fmt: skip
    p, g, m, v, t, a = load_adam(param, grad, exp_avg, exp_avg_sq, target, average)
    norm = math.nan
    with np.errstate(all="ignore"):
        if max_norm >= 0:
            norm = float(np.sqrt(np.square(g, dtype=np.float64).sum()))
            factor = max_norm / (norm + 1e-6)
            if not factor >= 1:
                g *= np.float32(factor)
        bias1, bias2 = 1 - beta1**steps, 1 - beta2**steps
        d = g + weight_decay * p if weight_decay else g
        m[:] = m + (1 - beta1) * (d - m) if beta1 > 0.5 else d - beta1 * (d - m)
        v[:] = v * beta2 + (1 - beta2) * d * d
        p -= lr / bias1 * m / (np.sqrt(v) * (1 / math.sqrt(bias2)) + eps)
        follow(t, p, tau)
        follow(a, p, average_weight)
    return norm


def load_adam(*arrays: Any) -> list[Any]:
    names = ("vector", "grad", "exp_avg", "exp_avg_sq", "target", "average")
    loaded: list[Any] = []
    for name, x in zip(names, arrays, strict=True):
        if x is None:
            loaded.append(None)
            continue
        where = f"FlatAdam: {name}"
        n = _arrays.load(x, where, _F).size if not loaded else loaded[0].size
        loaded.append(check_vector(x, where, n))
        for other, y in zip(names, loaded[:-1], strict=False):
            if y is not None and np.may_share_memory(loaded[-1], y):
                raise ValueError(f"{where} must not share memory with {other}")
    return loaded


def follow(x: Any, end: Any, weight: float) -> None:
    """x + weight (end - x), from the end that is nearer."""
    if x is not None:
        x[:] = end if weight == 1 else x + weight * (end - x) if weight < 0.5 else end - (1 - weight) * (end - x)


# ---- the losses
def _point_loss(e: Any, huber: bool) -> tuple[Any, Any]:
    """l(e) and l'(e)."""
    if not huber:
        return e * e, 2 * e
    size = np.abs(e)
    return np.where(size <= 1, 0.5 * e * e, size - 0.5), np.clip(e, -1, 1)


def _times(a: Any, x: Any) -> Any:
    """a x, and 0 where a is 0."""
    return np.where(a == 0, 0, a * x)


def q_learning_loss(
    q: Any, actions: Any, rewards: Any, discounts: Any, next_q: Any, next_q_online: Any, weights: Any, huber: bool
) -> tuple[float, Any, Any, float]:
    load = Call("q_learning_loss")
    values = load.floats(q, "q", (-1, -1))
    rows, n = values.shape
    load.check_rows(min(rows, n), "q")
    a = load.actions(actions, rows, n)
    r, discount = load.floats(rewards, "rewards", (rows,)), load.floats(discounts, "discounts", (rows,))
    following = load.floats(next_q, "next_q", (rows, n))
    chooser = load.maybe(next_q_online, "next_q_online", (rows, n))
    w = load.maybe(weights, "weights", (rows,))
    each = np.arange(rows)
    with np.errstate(all="ignore"):
        best = (following if chooser is None else chooser).argmax(1)
        y = r + _times(discount, following[each, best])
        error = (values[each, a] - y.astype(np.float32)).astype(np.float32)
        value, slope = _point_loss(error.astype(np.float64), huber)
        share = (1 if w is None else w) / rows
        d = np.zeros_like(values)
        d[each, a] = share * slope
        return float((share * value).sum()), give(d, q), give(error, rewards), float(values[each, a].mean())


def min_q_targets(next_q: Any, rewards: Any, discounts: Any, next_log_prob: Any, temperature: float) -> Any:
    load = Call("min_q_targets")
    q = load.floats(next_q, "next_q", (-1, -1), optional=True)
    load.check_rows(len(q), "next_q")
    rows = q.shape[1]
    r, discount = load.floats(rewards, "rewards", (rows,)), load.floats(discounts, "discounts", (rows,))
    log_prob = load.maybe(next_log_prob, "next_log_prob", (rows,))
    with np.errstate(all="ignore"):
        value = q.min(0) - (0 if log_prob is None else _times(np.float64(np.float32(temperature)), log_prob))
        return give(r + _times(discount, value), rewards)


def q_regression_loss(q: Any, targets: Any, weights: Any, huber: bool) -> tuple[float, Any, Any, float]:
    load = Call("q_regression_loss")
    values = load.floats(q, "q", (-1, -1), optional=True)
    load.check_rows(min(values.shape), "q")
    rows = values.shape[1]
    y, w = load.floats(targets, "targets", (rows,)), load.maybe(weights, "weights", (rows,))
    with np.errstate(all="ignore"):
        error = (values - y).astype(np.float32)
        value, slope = _point_loss(error.astype(np.float64), huber)
        share = (1 if w is None else w) / rows
        return (
            float((share * value).sum()), give(share * slope, q), _arrays.like(error, q), float(values.mean())
        )  # fmt: skip


def min_q_loss(q: Any) -> tuple[float, Any]:
    load = Call("min_q_loss")
    values = load.floats(q, "q", (-1, -1), optional=True)
    load.check_rows(min(values.shape), "q")
    least, rows = values.argmin(0), values.shape[1]
    d = np.where(np.arange(len(values))[:, None] == least, -1 / rows, 0)
    return float(-values.min(0).mean()), give(d, q)


def value_loss(values: Any, returns: Any, old_values: Any, clip_range: float, coef: float) -> tuple[float, Any]:
    load = Call("value_loss")
    v = load.floats(values, "values", (-1,), optional=True)
    load.check_rows(len(v), "values")
    g, old = load.floats(returns, "returns", v.shape), load.maybe(old_values, "old_values", v.shape)
    with np.errstate(all="ignore"):
        error = v - g
        square, slope = error**2, error
        if old is not None:
            moved = v - old
            near = (old + np.clip(moved, -clip_range, clip_range) - g) ** 2
            outside = (abs(moved) > clip_range) & (near >= square)  # at a tie each has half of the gradient
            slope = np.where(outside, np.where(near > square, 0, 0.5 * slope), slope)
            square = np.where(outside, near, square)
        return float(coef * 0.5 * square.mean()), give(coef / len(v) * slope, values)


def _surrogate(log_ratio: Any, advantage: Any, clip_range: float) -> tuple[Any, Any, Any]:
    """min(rho A, clip(rho) A), its derivative by log rho, and rho - 1 - log rho."""
    ratio = np.exp(log_ratio)
    plain, clipped = ratio * advantage, np.clip(ratio, 1 - clip_range, 1 + clip_range) * advantage
    cut = clipped < plain
    return np.where(cut, clipped, plain), np.where(cut, 0, plain), ratio - 1 - log_ratio


def _advantages(a: Any, normalize: bool) -> Any:
    return (a - a.mean()) / (a.std() + 1e-8) if normalize else a


def _log_softmax(z: Any) -> Any:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def ppo_categorical_loss(
    logits: Any, actions: Any, old_log_probs: Any, advantages: Any, old_logits: Any, clip_range: float,
    kl_coef: float, entropy_coef: float, normalize: bool,
) -> tuple[float, float, float, float, Any]:  # fmt: skip
    load = Call("ppo_categorical_loss")
    z = load.floats(logits, "logits", (-1, -1))
    rows, n = z.shape
    load.check_rows(min(rows, n), "logits")
    a = load.actions(actions, rows, n)
    old = load.maybe(old_log_probs, "old_log_probs", (rows,))
    advantage = _advantages(load.floats(advantages, "advantages", (rows,)), normalize)
    before = load.maybe(old_logits, "old_logits", (rows, n))
    with np.errstate(all="ignore"):
        log_p = _log_softmax(z)
        p, each = np.exp(log_p), np.arange(rows)
        entropy = -_times(p, log_p).sum(1)
        log_prob = log_p[each, a]
        gain, slope, kl = _surrogate(log_prob - (log_prob if old is None else old), advantage, clip_range)
        taken = np.arange(n) == a[:, None]
        d = -slope[:, None] * (taken - p) + entropy_coef * _times(p, log_p + entropy[:, None])
        penalty = 0.0
        if before is not None:
            old_log_p = _log_softmax(before)
            old_p = np.exp(old_log_p)
            kl = _times(old_p, old_log_p - log_p).sum(1)
            d += kl_coef * (p - old_p)
            penalty = kl_coef * kl.mean()
        policy, mean_entropy = float(penalty - gain.mean()), float(entropy.mean())
        return policy - entropy_coef * mean_entropy, policy, mean_entropy, float(kl.mean()), give(d / rows, logits)


def ppo_normal_loss(
    mean: Any, log_std: Any, actions: Any, old_log_probs: Any, advantages: Any, old_mean: Any, old_log_std: Any,
    clip_range: float, kl_coef: float, entropy_coef: float, normalize: bool,
) -> tuple[float, float, float, float, Any, Any]:  # fmt: skip
    load = Call("ppo_normal_loss")
    m = load.floats(mean, "mean", (-1, -1))
    rows, n = m.shape
    load.check_rows(min(rows, n), "mean")
    s = load.floats(log_std, "log_std", (n,))
    a = load.floats(actions, "actions", (rows, n))
    old = load.maybe(old_log_probs, "old_log_probs", (rows,))
    advantage = _advantages(load.floats(advantages, "advantages", (rows,)), normalize)
    before = load.maybe(old_mean, "old_mean", (rows, n))
    before_std = load.maybe(old_log_std, "old_log_std", (n,))
    with np.errstate(all="ignore"):
        inverse, half = np.exp(-s), 0.5 * math.log(2 * math.pi)
        x = (a - m) * inverse
        log_prob = (-0.5 * x * x - s - half).sum(1)
        gain, slope, kl = _surrogate(log_prob - (log_prob if old is None else old), advantage, clip_range)
        d = -slope[:, None] * x * inverse
        d_std = (-slope[:, None] * (x * x - 1)).sum(0)
        penalty = 0.0
        if before is not None:
            ratio = (np.exp(2 * before_std) + (m - before) ** 2) * inverse**2
            kl = (s - before_std + 0.5 * (ratio - 1)).sum(1)
            d += kl_coef * (m - before) * inverse**2
            d_std += kl_coef * (1 - ratio).sum(0)
            penalty = kl_coef * kl.mean()
        policy, entropy = float(penalty - gain.mean()), float((s + 0.5 + half).sum())
        d_std = d_std / rows - entropy_coef
        return (
            policy - entropy_coef * entropy, policy, entropy, float(kl.mean()), give(d / rows, mean),
            give(d_std, log_std),
        )  # fmt: skip

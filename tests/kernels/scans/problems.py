"""What the tests of this op share."""

import functools
import math
from types import SimpleNamespace

import numpy as np


def stretches(term, trunc, valid):
    """[first, last] of every run of real steps that is of one episode."""
    first = None
    for t in range(len(term)):
        if not valid[t]:
            first = None
            continue
        first = t if first is None else first
        if term[t] or trunc[t] or t + 1 == len(term) or not valid[t + 1]:
            yield first, t
            first = None


def bootstrap(gamma, terminated, next_value):
    return 0.0 if terminated or gamma == 0 else gamma * next_value


def oracle_affine(a, b, y_T):
    """y_t = sum_k a_t ... a_{k-1} b_k + a_t ... a_{T-1} y_T."""
    y = []
    for t in range(len(a)):
        product, terms = 1.0, []
        for k in range(t, len(a)):
            terms.append(product * b[k])
            product *= a[k]
            if a[k] == 0:
                break
        else:
            terms.append(product * y_T)
        y.append(math.fsum(terms))
    return (y,)


def oracle_gae(r, v, nv, term, trunc, valid, gamma, lam):
    """A_t = sum_k (gamma lam)^k delta_{t+k}."""
    advantages, returns = [0.0] * len(r), [0.0] * len(r)
    for first, last in stretches(term, trunc, valid):
        deltas = [math.fsum((r[t], bootstrap(gamma, term[t], nv[t]), -v[t])) for t in range(first, last + 1)]
        weights = [(gamma * lam) ** k for k in range(len(deltas))]
        for i, t in enumerate(range(first, last + 1)):
            advantages[t] = math.fsum(w * d for w, d in zip(weights, deltas[i:], strict=False))
            returns[t] = advantages[t] + v[t]
    return advantages, returns


def n_step(r, nv, term, t, last, gamma):
    """sum_k gamma^k r_{t+k} + gamma^m V' for the steps t .. last."""
    terms = [r[t]] + [gamma**k * r[t + k] for k in range(1, last - t + 1) if gamma]
    return math.fsum([*terms, bootstrap(gamma ** (last - t + 1), term[last], nv[last])])


def oracle_discounted(r, nv, term, trunc, valid, gamma):
    returns = [0.0] * len(r)
    for first, last in stretches(term, trunc, valid):
        for t in range(first, last + 1):
            returns[t] = n_step(r, nv, term, t, last, gamma)
    return (returns,)


def oracle_lambda(r, nv, term, trunc, valid, gamma, lam):
    """G_t = (1 - lam) sum_{j<L} lam^{j-1} G_t^(j) + lam^{L-1} G_t^(L), of the j-step returns up to the end."""
    returns = [0.0] * len(r)
    powers = [gamma**k for k in range(len(r) + 1)]
    for first, last in stretches(term, trunc, valid):
        for t in range(first, last + 1):
            rewards, terms = 0.0, []
            for k in range(last - t + 1):
                rewards += powers[k] * r[t + k] if k == 0 or gamma else 0.0
                weight = lam**k if t + k == last else (1 - lam) * lam**k
                if weight:
                    terms += [weight * rewards, weight * bootstrap(powers[k + 1], term[t + k], nv[t + k])]
            returns[t] = math.fsum(terms)
    return (returns,)


def oracle_n_step(r, nv, term, trunc, cut, valid, gamma, n):
    returns, discounts, lasts = [0.0] * len(r), [0.0] * len(r), list(range(len(r)))
    for first, last in stretches(term, trunc, valid):
        for t in range(first, last + 1):
            end = t
            while end < last and end - t + 1 < n and not cut[end + 1]:
                end += 1
            returns[t] = n_step(r, nv, term, t, end, gamma)
            discounts[t] = 0.0 if term[end] else gamma ** (end - t + 1)
            lasts[t] = end
    return returns, discounts, lasts


def exp(x):
    return math.exp(x) if x < 700 else math.inf


def oracle_vtrace(r, v, nv, log_rhos, term, trunc, valid, gamma, lam, rho_clip, c_clip, pg_rho_clip):
    """Espeholt et al. (2018), eq. 1: vs_s = V_s + sum_t gamma^{t-s} (c_s ... c_{t-1}) delta_t V."""
    vs, advantages = [0.0] * len(r), [0.0] * len(r)
    rhos = [exp(x) for x in log_rhos]
    errors = [math.fsum((r[t], bootstrap(gamma, term[t], nv[t]), -v[t])) if valid[t] else 0.0 for t in range(len(r))]
    for first, last in stretches(term, trunc, valid):
        for s in range(first, last + 1):
            product, terms = 1.0, [v[s]]
            for t in range(s, last + 1):
                terms.append(product * min(rho_clip, rhos[t]) * errors[t])
                product *= gamma * lam * min(c_clip, rhos[t])
                if product == 0:
                    break
            vs[s] = math.fsum(terms)
        for s in range(first, last + 1):
            target = [r[s], bootstrap(gamma, term[s], nv[s])]
            if s < last:
                target += [gamma * vs[s + 1], -gamma * v[s + 1]]
            advantages[s] = min(pg_rho_clip, rhos[s]) * math.fsum([*target, -v[s]])
    return vs, advantages


def oracle_off_policy(r, q, nv, traces, term, trunc, valid, gamma):
    """Munos et al. (2016), eq. 3: y_s = Q_s + sum_t gamma^{t-s} (c_{s+1} ... c_t) (r_t + gamma V'_t - Q_t)."""
    returns = [0.0] * len(r)
    errors = [math.fsum((r[t], bootstrap(gamma, term[t], nv[t]), -q[t])) if valid[t] else 0.0 for t in range(len(r))]
    for first, last in stretches(term, trunc, valid):
        for s in range(first, last + 1):
            product, terms = 1.0, [q[s]]
            for t in range(s, last + 1):
                product *= gamma * traces[t] if t > s else 1.0
                if product == 0:
                    break
                terms.append(product * errors[t])
            returns[s] = math.fsum(terms)
    return (returns,)


FLOATS = {
    "reverse_affine_scan": ("a", "b"),
    "gae": ("rewards", "values", "next_values"),
    "discounted_returns": ("rewards", "next_values"),
    "lambda_returns": ("rewards", "next_values"),
    "n_step_returns": ("rewards", "next_values"),
    "vtrace": ("rewards", "values", "next_values", "log_rhos"),
    "off_policy_returns": ("rewards", "q_values", "next_state_values", "traces"),
}
OPS = tuple(FLOATS)
FLAGGED = OPS[1:]
BOOTSTRAPS = ("next_values", "next_state_values")


def laid_out(x, layout):
    """The values of x [T, N] in a memory layout; what lies between them is poison.  The last three repeat the first."""
    T, N = x.shape
    poison = 255 if x.dtype == np.uint8 else True if x.dtype == bool else np.nan if x.dtype.kind == "f" else -7
    if layout.startswith(("same", "all")):
        strides = (0 if layout != "same columns" else x.itemsize, 0 if layout != "same rows" else x.itemsize)
        seed = (x[:1] if layout != "same columns" else x[:, :1]).copy()
        return np.lib.stride_tricks.as_strided(seed, x.shape, strides)
    if layout == "batch-major":
        return np.ascontiguousarray(x.T).T
    if layout == "unaligned":
        view = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    elif layout == "field of records":
        view = np.zeros(x.shape, [("pad", "i1"), ("x", x.dtype)])["x"]
    else:
        shape, index = {
            "C": ((T, N), ...),
            "read-only": ((T, N), ...),
            "every second row": ((2 * T + 1, N), slice(1, 2 * T + 1, 2)),
            "every second column": ((T, 2 * N), (slice(None), slice(0, 2 * N, 2))),
            "inner": ((T + 2, N + 3), (slice(1, T + 1), slice(2, N + 2))),
            "reversed rows": ((T, N), slice(None, None, -1)),
            "reversed columns": ((T, N), (slice(None), slice(None, None, -1))),
        }[layout]
        view = np.full(shape, poison, x.dtype)[index]
    view[...] = x
    view.flags.writeable = layout != "read-only"
    return view


@functools.cache
def problem(op, T, N, one_dim=False, dtype="float32", seed=0, layouts=("C",), **fixed):
    """Inputs of an op, and what must come of them.  `fixed` replaces what else is drawn: done, gamma, lam, n, mask."""
    rng = np.random.default_rng([seed, T, N, OPS.index(op)])
    done = fixed.get("done", float(rng.choice([0.0, 0.03, 0.1, 0.4, 1.0] if T <= 150 else [0.03, 0.1])))
    chosen = iter(rng.choice(layouts, 12))

    def place(x):
        view = laid_out(x, next(chosen))
        return view[:, 0] if one_dim else view

    def floats(low=None, high=None, scale=1.0):
        x = rng.standard_normal((T, N)) * scale if low is None else rng.uniform(low, high, (T, N))
        return x.astype(np.float32).astype(dtype)  # the same numbers in both dtypes

    def flags(p):
        return (rng.random((T, N)) < p).astype(rng.choice(["bool", "uint8"]))

    kwargs = {}
    if op == "reverse_affine_scan":
        a = floats(-1.1, 1.1)
        a[rng.random((T, N)) < done] = 0
        kwargs = {"a": place(a), "b": place(floats())}
        kind = rng.integers(3)
        kwargs["y_T"] = [None, 0.75, kwargs["b"][0] * 2 if T else None][kind]
    else:
        for name in FLOATS[op]:
            kwargs[name] = {"log_rhos": lambda: floats(scale=0.5), "traces": lambda: floats(0, 1.2)}.get(name, floats)()
        kwargs["terminated"], kwargs["truncated"] = flags(done / 2), flags(done * 2 / 3)  # both set now and then
        masked = fixed.get("mask", bool(rng.integers(2)))
        if masked:
            kwargs["mask"] = flags(0.85)
        if op == "n_step_returns" and rng.integers(2):
            kwargs["cut"] = flags(0.15)
        kwargs = {name: place(x) for name, x in kwargs.items()}
        # Poison what must not be read, where a layout does not show one number in several places.
        for name in FLOATS[op]:
            x = kwargs[name]
            if 0 in x.strides or not x.flags.writeable:
                continue
            if name in BOOTSTRAPS:
                x[kwargs["terminated"] != 0] = np.nan
            if masked:
                x[kwargs["mask"] == 0] = rng.choice([np.nan, np.inf])
        kwargs["gamma"] = fixed.get("gamma", float(rng.choice([0.0, 0.5, 0.99, 1.0])))
        if op in ("gae", "lambda_returns", "vtrace"):
            kwargs["lam"] = fixed.get("lam", float(rng.choice([0.0, 0.3, 0.95, 1.0])))
        if op == "n_step_returns":
            kwargs["n"] = fixed.get("n", int(rng.choice([1, 2, 3, 5, 10, max(T - 1, 1), max(T, 1), T + 1, 10**30])))
        if op == "vtrace":
            kwargs |= {name: float(rng.choice([0.5, 1.0, 2.0, np.inf])) for name in CLIPS}
        if op in ("discounted_returns", "n_step_returns") and rng.random() < 0.2:
            del kwargs["next_values"]
            if op == "n_step_returns":
                kwargs["next_values"] = None
    wanted = oracle(op, T, N, kwargs)
    assert all(np.isfinite(x).all() for x in wanted)
    shape = (T,) if one_dim else (T, N)
    return SimpleNamespace(op=op, kwargs=kwargs, wanted=tuple(x.reshape(shape) for x in wanted), shape=shape)


CLIPS = ("rho_clip", "c_clip", "pg_rho_clip")


def oracle(op, T, N, kwargs):
    def column(name, i, default):
        x = kwargs.get(name)
        return [default] * T if x is None else np.asarray(x).reshape(T, N)[:, i].tolist()

    columns = []
    for i in range(N):
        term, trunc = column("terminated", i, 0), column("truncated", i, 0)
        valid, x = column("mask", i, 1), [column(name, i, 0.0) for name in FLOATS[op]]
        gamma, lam = kwargs.get("gamma"), kwargs.get("lam")
        if op == "reverse_affine_scan":
            y_T = kwargs["y_T"]
            y_T = 0.0 if y_T is None else y_T if isinstance(y_T, float) else y_T.reshape(N)[i].item()
            columns.append(oracle_affine(*x, y_T))
        elif op == "gae":
            columns.append(oracle_gae(*x, term, trunc, valid, gamma, lam))
        elif op == "discounted_returns":
            columns.append(oracle_discounted(*x, term, trunc, valid, gamma))
        elif op == "lambda_returns":
            columns.append(oracle_lambda(*x, term, trunc, valid, gamma, lam))
        elif op == "n_step_returns":
            columns.append(oracle_n_step(*x, term, trunc, column("cut", i, 0), valid, gamma, kwargs["n"]))
        elif op == "vtrace":
            columns.append(oracle_vtrace(*x, term, trunc, valid, gamma, lam, *[kwargs[name] for name in CLIPS]))
        else:
            columns.append(oracle_off_policy(*x, term, trunc, valid, gamma))
    outputs = {"gae": 2, "n_step_returns": 3, "vtrace": 2}.get(op, 1)
    return [np.array([c[k] for c in columns], np.float64).reshape(N, T).T for k in range(outputs)]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def dtypes_of(op, dtype):
    return {"gae": (dtype,) * 2, "n_step_returns": (dtype, dtype, "int64"), "vtrace": (dtype,) * 2}.get(op, (dtype,))


def to_torch(torch, kwargs):
    return {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in kwargs.items()}


def fit(kernels, T):
    """A length for this backend: the reference, which is slow, is one loop whatever the length."""
    return min(T, 130) if kernels.name == "reference" else T


def call(kernels, op, kwargs, **more):
    return getattr(kernels.scans, op)(**kwargs, **more)


def same_bits(x, y):
    x, y = as_tuple(x), as_tuple(y)
    assert len(x) == len(y)
    for a, b in zip(x, y, strict=True):
        a, b = np.ascontiguousarray(np.asarray(a)), np.ascontiguousarray(np.asarray(b))
        assert a.dtype == b.dtype and a.size == b.size
        assert a.tobytes() == b.tobytes()


def weights(torch, *shape):
    return torch.from_numpy(np.random.default_rng(sum(shape) + 1).uniform(-1.0, 1.0, shape)).requires_grad_()

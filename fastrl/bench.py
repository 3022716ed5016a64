"""Small benchmarks of the kernels for any machine: what `fastrl bench` runs.

Every contender does the same work, and its answer is checked before it is timed.  The contenders take turns, so that
load from elsewhere hits all of them alike.  The repository's own benchmarks (bench/) share the timing with this module
and have more sizes, cases and peers.
"""

from __future__ import annotations

import csv
import gc
import importlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastrl
from fastrl import _backend

Call = Callable[[], Any]
OURS = "fastrl"
COLUMNS = ("kernel", "size", "contender", "us", "us_25", "us_75", "ratio")


class NotApplicable(Exception):
    """This contender cannot do this size."""


class Problem(NamedTuple):
    """A kernel at one size: builders of the functions to time, and the check of what these return.

    The first contender is fastrl and the second the reference, which is the plain way to write it.  A builder raises
    ImportError when its library is not installed.
    """

    contenders: dict[str, Callable[[], Call]]
    check: Callable[[Any], None]  # raises AssertionError


class Kernel(NamedTuple):
    problem: Callable[..., Problem]
    sizes: Sequence[Mapping[str, int]]
    quick: Mapping[str, int]  # the one size of a quick run


class Row(NamedTuple):
    """A line of the result: microseconds a call, and how many times longer than fastrl (medians over the rounds)."""

    kernel: str
    size: str
    contender: str
    us: float
    us_25: float
    us_75: float
    ratio: float


# ---- timing ---------------------------------------------------------------------------------------------------------


def size_label(size: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in size.items())


def _time_block(call: Call, calls: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - start) / calls / 1e3  # us per call


def interleave(
    contenders: Mapping[str, Call], rounds: int, block_ms: float, warm_up_ms: float = 100.0
) -> dict[str, NDArray[np.float64]]:
    """us per call, `rounds` values each: A B C A B C ..., each visit a block of calls that lasts about `block_ms`.

    Load from elsewhere hits all contenders alike, so that the ratio within a round is steadier than either time.
    """
    calls = {}
    for name, call in contenders.items():
        end = time.perf_counter() + warm_up_ms / 1e3
        best = _time_block(call, 1)
        while time.perf_counter() < end:
            best = min(best, _time_block(call, 1))
        calls[name] = max(1, int(block_ms * 1e3 / best))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in contenders.items():
                times[name].append(_time_block(call, calls[name]))
    finally:
        gc.enable()
    return {name: np.array(t) for name, t in times.items()}


def run(
    kernels: Sequence[str], quick: bool, report: Callable[[str], object], left_out: dict[str, str]
) -> Iterator[Row]:
    """The rows of the named kernels; `report` hears what comes next, and `left_out` gets contenders and why."""
    for name in kernels:
        kernel = KERNELS[name]
        for size in [kernel.quick] if quick else kernel.sizes:
            label = size_label(size)
            report(f"{name} {label}")
            problem = kernel.problem(**size)
            calls = {}
            for contender, build in problem.contenders.items():
                try:
                    call = build()
                    problem.check(call())
                except Exception as error:  # whatever another version of a library does
                    if contender == OURS:
                        raise
                    if isinstance(error, ImportError):
                        left_out[contender] = _short(error)
                    else:
                        what = "its answer is another" if isinstance(error, AssertionError) else "it fails"
                        left_out[f"{contender} ({name})"] = f"{what}: {_short(error)}"
                    continue
                calls[contender] = call
            times = interleave(calls, *((5, 1.0, 10.0) if quick else (15, 4.0, 100.0)))
            for contender, t in times.items():
                low, median, high = np.percentile(t, (25, 50, 75))
                yield Row(name, label, contender, median, low, high, float(np.median(t / times[OURS])))


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 100 else f"{text[:100]} ..."


def set_threads(threads: int) -> None:
    """As many for every contender, as far as a library that is loaded already lets one."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if threads == 1:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    fastrl.set_num_threads(threads)
    _library("torch").set_num_threads(threads)


def machine() -> str:
    """One line: processor, threads, backend."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    threads = fastrl.get_num_threads()
    simd = f", {_backend._C.simd_level()}" if _backend._C is not None else ""
    backend = f"backend {_backend.CPU_BACKEND}{simd}"
    return f"fastrl {fastrl.__version__} on {cpu}, {threads} thread{'s' * (threads > 1)}, {backend}"


# ---- results --------------------------------------------------------------------------------------------------------


def microseconds(us: float) -> str:
    return f"{us:.3g}" if us < 1000 else f"{us:,.0f}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([*row[:3], *(f"{x:.6g}" for x in row[3:])] for row in rows)


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """A panel for each kernel and size: how many times longer than fastrl each contender takes."""
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.kernel, row.size), []).append(row)
    heights = [len(panel) + 1.5 for panel in panels.values()]
    figure = Figure(figsize=(8, 0.28 * sum(heights) + 1), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, ((kernel, size), panel) in zip(axes, panels.items(), strict=True):
        panel = sorted(panel, key=lambda row: row.ratio, reverse=True)
        ratios = [row.ratio for row in panel]
        bars = ax.barh(
            [row.contender for row in panel],
            ratios,
            color=["#0072B2" if row.contender == OURS else "0.7" for row in panel],
        )
        ax.bar_label(bars, [f" {microseconds(row.us)} us, {row.ratio:.2f}x" for row in panel], fontsize="x-small")
        ax.set_xscale("log")
        ax.axvline(1, color="0.4", linewidth=0.8)
        ax.tick_params(labelsize="x-small")
        ax.set_title(f"{kernel} {size}", fontsize="small", loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    most = max(row.ratio for row in rows)
    axes[-1].set_xlim(0.3, 4 * max(most, 1.0))
    axes[-1].set_xlabel("time / time of fastrl", fontsize="small")
    figure.suptitle(title, fontsize="x-small")
    figure.savefig(path, dpi=150)


# ---- the kernels ----------------------------------------------------------------------------------------------------


def _library(name: str) -> Any:
    """A module that need not be installed."""
    return importlib.import_module(name)


def _close(found: Any, wanted: Sequence[NDArray[Any]], rtol: float = 1e-4) -> None:
    """Peers compute in float32."""
    for x, y in zip(found, wanted, strict=True):
        x = x.detach() if hasattr(x, "detach") else x
        np.testing.assert_allclose(np.asarray(x), y, rtol=rtol, atol=rtol * float(np.abs(y).max(initial=0.0)))


GAMMA, LAM = 0.99, 0.95


def _gae(T: int, N: int) -> Problem:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((T, N), np.float32)
    values = rng.standard_normal((T + 1, N), np.float32)
    v, nv = values[:-1], values[1:]
    ends, cuts = rng.random((T, N)) < 0.01, np.zeros((T, N), np.bool_)
    alive = 1 - ends.astype(np.float32)

    def loop(r: Any, v: Any, nv: Any, alive: Any) -> tuple[Any, Any]:
        advantages, last = np.empty_like(r), 0.0
        for t in reversed(range(len(r))):
            advantages[t] = last = r[t] + GAMMA * nv[t] * alive[t] - v[t] + GAMMA * LAM * alive[t] * last
        return advantages, advantages + v

    exact = loop(*(x.astype(np.float64) for x in (r, v, nv, alive)))

    def numba() -> Call:
        def source(r, v, nv, alive, gamma, decay, advantages, returns):  # type: ignore[no-untyped-def]
            T, N = r.shape
            for t in range(T - 1, -1, -1):
                for n in range(N):
                    after = advantages[t + 1, n] if t < T - 1 else np.float32(0)
                    x = r[t, n] - v[t, n] + alive[t, n] * (gamma * nv[t, n] + decay * after)
                    advantages[t, n] = x
                    returns[t, n] = x + v[t, n]

        compiled, factors = _library("numba").njit(fastmath=True)(source), (np.float32(GAMMA), np.float32(GAMMA * LAM))

        def call() -> Any:
            found = np.empty_like(r), np.empty_like(r)
            compiled(r, v, nv, alive, *factors, *found)
            return found

        return call

    def tianshou() -> Call:  # one array of all environments, one after another
        gae = _library("tianshou.algorithm.algorithm_base")._gae
        last = ends.copy()
        last[-1] = True
        flat = [np.ascontiguousarray(x.T).ravel() for x in (v, nv * alive, r.astype(np.float64), last)]

        def call() -> Any:
            advantages = gae(*flat, GAMMA, LAM)
            return tuple(x.reshape(N, T).T for x in (advantages, advantages + flat[0]))

        return call

    def stable_baselines3() -> Call:
        gym, torch = _library("gymnasium"), _library("torch")
        box = gym.spaces.Box(-1, 1, (1,))
        make = _library("stable_baselines3.common.buffers").RolloutBuffer
        buffer = make(T, box, box, device="cpu", gae_lambda=LAM, gamma=GAMMA, n_envs=N)
        buffer.values[:], buffer.rewards[:], buffer.episode_starts[1:] = v, r, ends[:-1]
        last = torch.from_numpy(nv[-1].copy()), ends[-1]

        def call() -> Any:
            buffer.compute_returns_and_advantage(*last)
            return buffer.advantages, buffer.returns

        return call

    def torchrl() -> Call:  # [N, T, 1] tensors
        torch, functional = _library("torch"), _library("torchrl.objectives.value.functional")
        tensors = [torch.from_numpy(np.ascontiguousarray(x.T)[:, :, None]) for x in (v, nv, r, ends, ends)]

        def call() -> Any:
            with torch.no_grad():
                found = functional.generalized_advantage_estimate(GAMMA, LAM, *tensors)
            return tuple(x[..., 0].T for x in found)

        return call

    def jax() -> Call:
        jax = _library("jax")
        jnp = jax.numpy

        @jax.jit  # type: ignore[untyped-decorator]
        def gae(r: Any, v: Any, nv: Any, alive: Any) -> Any:
            def step(last: Any, x: Any) -> Any:
                last = x[0] + GAMMA * LAM * x[1] * last
                return last, last

            deltas = r + GAMMA * alive * nv - v
            _, advantages = jax.lax.scan(step, jnp.zeros_like(r[0]), (deltas, alive), reverse=True)
            return advantages, advantages + v

        arrays = [jnp.asarray(x) for x in (r, v, nv, alive)]
        return lambda: jax.block_until_ready(gae(*arrays))

    return Problem(
        {
            OURS: lambda: lambda: fastrl.gae(r, v, nv, ends, cuts, gamma=GAMMA, lam=LAM),
            "reference: NumPy": lambda: lambda: loop(r, v, nv, alive),
            "Numba loop": numba,
            "tianshou": tianshou,
            "Stable-Baselines3": stable_baselines3,
            "torchrl": torchrl,
            "JAX lax.scan": jax,
        },
        lambda found: _close(found, exact),
    )


ALPHA, BETA = 0.6, 0.4


def _sum_tree(capacity: int, batch: int) -> Problem:
    """Draw with importance weights, then write priorities (|td| + eps)^alpha."""
    rng = np.random.default_rng(0)
    td = (np.abs(rng.standard_normal(capacity)) + 1e-3).astype(np.float32)
    new = [(np.abs(rng.standard_normal(batch)) + 1e-3).astype(np.float32) for _ in range(61)]

    def contender(sample: Call, update: Callable[[Any, Any], Any], eps: float) -> Call:
        """Its draws are checked here, before an update; what it returns is the last draw."""
        p = (td.astype(np.float64) + eps) ** ALPHA
        edges = np.arange(17) * capacity // 16
        share, counts, drawn = np.add.reduceat(p, edges[:-1]) / p.sum(), np.zeros(16), 0
        while drawn < 4096:
            indices, weights = (np.asarray(x) for x in sample())
            scaled = weights * p[indices] ** BETA
            np.testing.assert_allclose(scaled, scaled[0], rtol=1e-4)
            counts += np.histogram(indices, edges)[0]
            drawn += len(indices)
        chi_square = np.sum((counts - drawn * share) ** 2 / (drawn * share))
        assert chi_square < 56, f"chi-square {chi_square:.0f} of the draws"  # by chance once in 1e6
        k = 0

        def call() -> Any:
            nonlocal k
            k += 1
            indices, weights = sample()
            update(indices, new[k % 61])
            return indices, weights

        return call

    def ours() -> Call:
        tree = fastrl.SumTree(capacity, seed=0)
        tree.update_from_td_errors(np.arange(capacity), td, ALPHA, 1e-6)
        return contender(
            lambda: tree.sample_weighted(batch, BETA),
            lambda indices, td: tree.update_from_td_errors(indices, td, ALPHA, 1e-6),
            1e-6,
        )

    def reference() -> Call:
        p, rng = td.astype(np.float64) ** ALPHA, np.random.default_rng(0)

        def sample() -> Any:
            sums = np.cumsum(p)
            indices = np.minimum(np.searchsorted(sums, rng.random(batch) * sums[-1], side="right"), capacity - 1)
            weights = p[indices] ** -BETA
            return indices, weights / weights.max()

        def update(indices: Any, td: Any) -> None:
            p[indices] = td**ALPHA

        return contender(sample, update, 0.0)

    def tianshou() -> Call:
        data = _library("tianshou.data")
        np.random.seed(0)  # noqa: NPY002  (the generator that tianshou draws from)
        buffer = data.PrioritizedReplayBuffer(capacity, alpha=ALPHA, beta=BETA)
        x, no = np.zeros((capacity, 1), np.float32), np.zeros(capacity, bool)
        flags = {"terminated": no, "truncated": no.copy(), "done": no.copy()}
        buffer.set_batch(data.Batch(obs=x, act=x[:, 0], rew=x[:, 0], **flags, info=data.Batch()))
        buffer._size = capacity
        buffer.update_weight(np.arange(capacity), td)

        def sample() -> Any:
            indices = buffer.sample_indices(batch)
            weights = buffer.get_weight(indices)
            return indices, weights / np.max(weights)

        return contender(sample, buffer.update_weight, float(np.finfo(np.float32).eps))

    def cpprb() -> Call:  # it cannot sample without gathering: one float column is the least
        buffer = _library("cpprb").PrioritizedReplayBuffer(capacity, {"r": {"shape": 1}}, alpha=ALPHA, eps=1e-4)
        buffer.add(r=np.zeros((capacity, 1), np.float32), priorities=td)

        def sample() -> Any:
            found = buffer.sample(batch, BETA)
            return found["indexes"], found["weights"]

        return contender(sample, buffer.update_priorities, 1e-4)

    def torchrl() -> Call:
        torch = _library("torch")
        _library("torchrl._torchrl").SumSegmentTreeFp32  # noqa: B018  (the sampler fails late without it)
        torch.manual_seed(0)
        sampler = _library("torchrl.data.replay_buffers.samplers").PrioritizedSampler(capacity, alpha=ALPHA, beta=BETA)
        storage = _library("torchrl.data").LazyTensorStorage(capacity)
        storage.set(range(capacity), torch.zeros(capacity, 1))
        sampler.update_priority(torch.arange(capacity), torch.from_numpy(td))

        def sample() -> Any:
            indices, info = sampler.sample(storage, batch)
            return indices, info["priority_weight"]

        return contender(sample, lambda i, td: sampler.update_priority(i, torch.from_numpy(td)), 1e-8)

    def check(found: Any) -> None:
        indices, weights = (np.asarray(x) for x in found)
        assert indices.shape == weights.shape == (batch,) and weights.min() > 0 and weights.max() <= 1.0001

    return Problem(
        {
            OURS: ours,
            "reference: NumPy": reference,
            "tianshou": tianshou,
            "cpprb": cpprb,
            "torchrl": torchrl,
        },
        check,
    )


def _gather_rows(rows: int, batch: int) -> Problem:
    """A replay batch: obs, next_obs (the row after), action, reward."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((rows + 1, 17), np.float32)
    columns = [obs[:-1], obs[1:], rng.random((rows, 6), np.float32), rng.random((rows, 1), np.float32)]
    indices = rng.integers(0, rows, batch)

    def index_select() -> Call:
        torch = _library("torch")
        tensors, i = [torch.from_numpy(x) for x in columns], torch.from_numpy(indices)
        return lambda: [x.index_select(0, i) for x in tensors]

    return Problem(
        {
            OURS: lambda: lambda: fastrl.gather_rows(columns, indices),
            "reference: NumPy": lambda: lambda: [x[indices] for x in columns],
            "torch.index_select": index_select,
        },
        lambda found: _close(found, [x[indices] for x in columns], 0.0),
    )


def _n_step_gather(capacity: int, envs: int, batch: int, n: int) -> Problem:
    """n-step returns of sampled items of a full ring buffer."""
    rng = np.random.default_rng(0)
    rewards = rng.random((capacity, envs), np.float32)
    ends, cuts = rng.random((2, capacity, envs)) < 0.01
    indices, cursor = rng.integers(0, capacity * envs, batch), 10

    def by_hand() -> Any:  # a step of all items at a time
        t, env = np.divmod(indices, envs)
        returns, discounts = np.zeros(batch, np.float32), np.ones(batch, np.float32)
        going, last = np.ones(batch, bool), indices
        for _ in range(n):
            i = t % capacity
            returns += np.where(going, discounts * rewards[i, env], 0)
            discounts = np.where(going, discounts * GAMMA, discounts)
            last = np.where(going, i * envs + env, last)
            going = going & ~(ends[i, env] | cuts[i, env]) & ((i + 1) % capacity != cursor)
            t = t + 1
        return returns, discounts * ~ends.reshape(-1)[last], last

    exact = fastrl.kernels.n_step_gather_reference(rewards, ends, cuts, indices, cursor, capacity, gamma=GAMMA, n=n)
    return Problem(
        {
            OURS: lambda: (
                lambda: fastrl.n_step_gather(rewards, ends, cuts, indices, cursor, capacity, gamma=GAMMA, n=n)
            ),
            "reference: NumPy": lambda: by_hand,
        },
        lambda found: _close(found, [np.asarray(x) for x in exact]),
    )


def _with_gradients(both: Callable[..., Any], leaves: Sequence[Any], weights: Sequence[Any]) -> Call:
    """The outputs of `both(*leaves)` and their gradients, for given gradients of the outputs."""
    torch = _library("torch")

    def call() -> Any:
        found = both(*leaves)
        return (*found, *torch.autograd.grad(found, leaves, weights))

    return call


def _categorical(batch: int, actions: int) -> Problem:
    """log_prob and entropy of given actions, forward and backward."""
    torch = _library("torch")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, actions, generator=generator, requires_grad=True)
    action = torch.randint(0, actions, (batch,), generator=generator)
    weights = [torch.randn(batch, generator=generator) for _ in range(2)]

    def inline(logits: Any) -> Any:
        log_p = torch.log_softmax(logits, 1)
        return log_p.gather(1, action[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)

    def distribution(logits: Any) -> Any:
        found = torch.distributions.Categorical(logits=logits)
        return found.log_prob(action), found.entropy()

    exact = _with_gradients(inline, [logits.detach().double().requires_grad_()], [w.double() for w in weights])()
    return Problem(
        {
            name: lambda both=both: _with_gradients(both, [logits], weights)  # type: ignore[misc]
            for name, both in {
                OURS: lambda logits: fastrl.categorical_log_prob_entropy(logits, action),
                "reference: torch": inline,
                "torch.distributions": distribution,
            }.items()
        },
        lambda found: _close(found, [x.detach().numpy() for x in exact]),
    )


def _normal(batch: int, dims: int) -> Problem:
    """log_prob and entropy of given actions, forward and backward; one log_std for all states."""
    torch = _library("torch")
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(batch, dims, generator=generator, requires_grad=True)
    log_std = torch.zeros(dims, requires_grad=True)
    action = mean.detach() + torch.randn(batch, dims, generator=generator)
    weights = [torch.randn(batch, generator=generator) for _ in range(2)]

    def inline(mean: Any, log_std: Any) -> Any:
        z = (action - mean) * (-log_std).exp()
        log_prob = -0.5 * (z**2).sum(1) - (log_std + 0.5 * math.log(2 * math.pi)).sum()
        return log_prob, (log_std + 0.5 * (1 + math.log(2 * math.pi))).sum().expand(len(mean))

    def distribution(mean: Any, log_std: Any) -> Any:
        found = torch.distributions.Normal(mean, log_std.exp().expand_as(mean))
        return found.log_prob(action).sum(1), found.entropy().sum(1)

    leaves = [x.detach().double().requires_grad_() for x in (mean, log_std)]
    exact = _with_gradients(inline, leaves, [w.double() for w in weights])()
    return Problem(
        {
            name: lambda both=both: _with_gradients(both, [mean, log_std], weights)  # type: ignore[misc]
            for name, both in {
                OURS: lambda mean, log_std: fastrl.normal_log_prob_entropy(mean, log_std, action),
                "reference: torch": inline,
                "torch.distributions": distribution,
            }.items()
        },
        lambda found: _close(found, [x.detach().numpy() for x in exact]),
    )


def _tanh_normal(batch: int, dims: int) -> Problem:
    """Draw actions in (-1, 1) with their log_prob, forward and backward; log_std differs between states."""
    torch = _library("torch")
    generator = torch.Generator().manual_seed(0)
    leaves = [0.3 * torch.randn(batch, dims, generator=generator) - shift for shift in (0.0, 1.0)]
    weights = [torch.randn(batch, dims, generator=generator), torch.randn(batch, generator=generator)]
    for x in leaves:
        x.requires_grad_()

    def inline(mean: Any, log_std: Any) -> Any:
        noise = torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        correction = 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))
        log_prob = (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - correction).sum(1)
        return u.tanh(), log_prob

    def distribution(mean: Any, log_std: Any) -> Any:
        d = torch.distributions
        tanh = d.TanhTransform(cache_size=1)
        found = d.TransformedDistribution(d.Normal(mean, log_std.exp()), tanh)
        action = found.rsample()
        return action, found.log_prob(action).sum(1)

    def stable_baselines3() -> Call:
        make = _library("stable_baselines3.common.distributions").SquashedDiagGaussianDistribution
        return _with_gradients(lambda *leaves: make(dims).log_prob_from_params(*leaves), leaves, weights)

    def check(found: Any) -> None:
        """log_prob is that of the action, by the formula; the draws of no two contenders are the same."""
        mean, log_std = (x.detach().double().numpy() for x in leaves)
        action, log_prob = (x.detach().double().numpy() for x in found[:2])
        assert np.abs(action).max() < 1
        u = np.arctanh(action)
        z = (u - mean) / np.exp(log_std)
        exact = (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi) - np.log1p(-(action**2))).sum(1)
        np.testing.assert_allclose(log_prob, exact, rtol=1e-2, atol=1e-2)
        ga, gl = (w.double().numpy() for w in weights)
        d_mean = ga * (1 - action**2) + 2 * gl[:, None] * action
        gradients = (d_mean, d_mean * (u - mean) - gl[:, None])
        for x, wanted in zip(found[2:], gradients, strict=True):
            np.testing.assert_allclose(x.numpy(), wanted, rtol=1e-2, atol=1e-2)

    return Problem(
        {
            OURS: lambda: _with_gradients(fastrl.tanh_normal_sample, leaves, weights),
            "reference: torch": lambda: _with_gradients(inline, leaves, weights),
            "torch.distributions": lambda: _with_gradients(distribution, leaves, weights),
            "Stable-Baselines3": stable_baselines3,
        },
        check,
    )


def _conjugate_gradient(n: int, iterations: int) -> Problem:
    """A given number of iterations, far from the solution; the products with the matrix are the same for all."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    matrix = (q * np.geomspace(1, 1e4, n)) @ q.T
    b = rng.standard_normal(n)

    def loop() -> Any:
        x, r, p, rr = np.zeros(n), b.copy(), b.copy(), b @ b
        for _ in range(iterations):
            z = matrix @ p
            step = rr / (p @ z)
            x += step * p
            r -= step * z
            rr, before = r @ r, rr
            p = r + rr / before * p
        return (x,)

    def scipy() -> Call:
        linalg = _library("scipy.sparse.linalg")
        operator = linalg.aslinearoperator(matrix)
        return lambda: linalg.cg(operator, b, rtol=0.0, maxiter=iterations)[:1]

    (exact,) = loop()
    return Problem(
        {
            OURS: lambda: lambda: fastrl.conjugate_gradient(lambda p: matrix @ p, b, max_iter=iterations, rtol=0.0)[:1],
            "reference: NumPy": lambda: loop,
            "SciPy": scipy,
        },
        lambda found: _close(found, [exact]),
    )


def _fisher_product(batch: int, hidden: int) -> Problem:
    """(F + 0.1 I) v for the 17-hidden-hidden-6 Gaussian policy of HalfCheetah."""
    torch = _library("torch")
    nn = torch.nn

    class Policy(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(17, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 6)
            )
            self.log_std = nn.Parameter(torch.zeros(6))

        def forward(self, obs: Any) -> Any:
            return self.net(obs), self.log_std

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy, obs = Policy(), torch.randn(batch, 17)
        v = torch.randn(sum(p.numel() for p in policy.parameters()))
    parameters = list(policy.parameters())

    def double_backward(policy: Any = policy, obs: Any = obs, v: Any = v) -> Call:
        """The Hessian of the mean KL, its graph kept."""
        parameters = list(policy.parameters())
        mean, log_std = policy(obs)
        distance = (mean - mean.detach()) / log_std.exp()
        kl = log_std - log_std.detach() + 0.5 * ((2 * (log_std.detach() - log_std)).exp() + distance**2)
        gradient = torch.autograd.grad(kl.sum(1).mean(), parameters, create_graph=True)
        flat = torch.cat([g.flatten() for g in gradient])

        def call() -> Any:
            product = torch.autograd.grad(flat, parameters, v, retain_graph=True)
            return (torch.cat([g.flatten() for g in product]) + 0.1 * v,)

        return call

    def functional() -> Call:  # J^T M J v: one jvp and one vjp
        names = [name for name, _ in policy.named_parameters()]
        shapes = [p.shape for p in parameters]
        flat = torch.cat([p.detach().flatten() for p in parameters])

        def mean(theta: Any) -> Any:
            parts = theta.split([s.numel() for s in shapes])
            given = {name: x.view(s) for name, x, s in zip(names, parts, shapes, strict=True)}
            return torch.func.functional_call(policy, given, (obs,))[0]

        _, vjp = torch.func.vjp(mean, flat)
        position = sum(p.numel() for p in parameters[: names.index("log_std")])

        def call() -> Any:
            _, tangent = torch.func.jvp(mean, (flat,), (v,))
            product = vjp(tangent * torch.exp(-2 * policy.log_std.detach()) / batch)[0] + 0.1 * v
            product[position : position + 6] += 2 * v[position : position + 6]
            return (product,)

        return call

    def ours() -> Call:
        fisher = fastrl.FisherVectorProduct(policy, obs, damping=0.1)
        return lambda: (fisher(v).clone(),)

    (exact,) = double_backward()()
    return Problem(
        {OURS: ours, "reference: torch": double_backward, "torch.func": functional},
        lambda found: _close(found, [exact.detach().numpy()]),
    )


KERNELS: dict[str, Kernel] = {
    "gae": Kernel(_gae, [{"T": 128, "N": 8}, {"T": 2048, "N": 16}], {"T": 33, "N": 3}),
    "sum_tree": Kernel(_sum_tree, [{"capacity": 2**20, "batch": 256}], {"capacity": 1000, "batch": 32}),
    "gather_rows": Kernel(_gather_rows, [{"rows": 2**17, "batch": 256}], {"rows": 1000, "batch": 32}),
    "n_step_gather": Kernel(
        _n_step_gather,
        [{"capacity": 2**16, "envs": 4, "batch": 256, "n": 5}],
        {"capacity": 100, "envs": 2, "batch": 32, "n": 3},
    ),
    "categorical": Kernel(_categorical, [{"batch": 256, "actions": 6}], {"batch": 16, "actions": 3}),
    "normal": Kernel(_normal, [{"batch": 256, "dims": 6}], {"batch": 16, "dims": 2}),
    "tanh_normal": Kernel(_tanh_normal, [{"batch": 256, "dims": 6}], {"batch": 16, "dims": 2}),
    "conjugate_gradient": Kernel(
        _conjugate_gradient, [{"n": 100, "iterations": 10}, {"n": 500, "iterations": 10}], {"n": 20, "iterations": 5}
    ),
    "fisher_product": Kernel(
        _fisher_product, [{"batch": 1000, "hidden": 64}, {"batch": 2048, "hidden": 64}], {"batch": 32, "hidden": 8}
    ),
}
